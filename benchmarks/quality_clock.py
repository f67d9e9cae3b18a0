"""Optimiser steps in seconds of the calibrated machine, and back.

Our 3D network makes its first steps on single slices, at most half of all (``denoise/training/loop.py``); those have a
time of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from denoise.config.recipes import RECIPES

#: Ends the names of our methods in rows of before 2026-11-28, when Adam trained all weights; none can be made again.
ADAM = "_adam"
_MOST_ON_SLICES = RECIPES["residual3d"].slices_first


def calibrated_as(method: str, splits: int) -> str:
    """What the calibration calls it: targets and turns do not change the time of a step, the splits do.

    Nor does Adam instead of Muon, by more than a machine does from day to day.
    """
    return f"{method.replace('clean', 'ours').removesuffix('_tta').removesuffix(ADAM)}_k{splits}"


@dataclass(frozen=True)
class Clock:
    """Of one method: seconds per step, and of the steps on single slices where it makes any."""

    per_step: float
    per_step_on_slices: float | None = None

    @classmethod
    def of(cls, method: str, splits: int, seconds_per_step: Mapping[str, float]) -> Clock:
        """As calibrated."""
        name = calibrated_as(method, splits)
        return cls(seconds_per_step[name], seconds_per_step.get(f"{name}_on_slices"))

    def steps(self, seconds: float) -> int:
        """How many steps a run of so many seconds makes."""
        if self.per_step_on_slices is None:
            return round(seconds / self.per_step)
        short = 2 * seconds / (self.per_step_on_slices + self.per_step)
        if short <= 2 * _MOST_ON_SLICES:
            return round(short)
        return round(_MOST_ON_SLICES + (seconds - _MOST_ON_SLICES * self.per_step_on_slices) / self.per_step)

    def seconds(self, steps: int, of_steps: int) -> float:
        """When a run of ``of_steps`` steps has made so many."""
        if self.per_step_on_slices is None:
            return steps * self.per_step
        on_slices = min(steps, _MOST_ON_SLICES, of_steps // 2)
        return on_slices * self.per_step_on_slices + (steps - on_slices) * self.per_step
