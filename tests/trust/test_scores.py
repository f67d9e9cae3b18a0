"""The headline where estimates contradict themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from denoise.tiles import Region
from denoise.trust.evidence import collect
from denoise.trust.report import Report
from denoise.volumes import ArrayVolume, Volume


@pytest.mark.parametrize("slices", [2, 12])
def test_a_correlation_above_one_is_no_resolution(slices: int) -> None:
    """What is opposed in the splits counts as noise, and hides so much of the object: 1 / sqrt(1 - 0.7^2) = 1.4."""
    shape = (slices, 96, 96)
    rng = np.random.default_rng(0)
    truth, other = (gaussian_filter(rng.standard_normal(shape), (0, 1, 1)).astype(np.float32) for _ in range(2))
    opposed = other - gaussian_filter(other, (0, 4, 4))  # as streaks are: nothing of the coarsest

    def right(volume: Volume, z_range: range) -> NDArray[np.float32]:
        return truth[z_range.start : z_range.stop]

    def report(strength: float) -> Report:
        splits = [truth + sign * strength * opposed + 0.01 * rng.standard_normal(shape) for sign in (-1, 1)]
        volumes = [ArrayVolume(split.astype(np.float32), f"split {sign}") for sign, split in enumerate(splits)]
        return Report.of(collect(volumes, Region((0, 0, 0), shape), right))

    told = report(0.7)
    assert math.isnan(told.scores.resolution_after.value)
    assert told.headline[2].endswith(" before, unknown after.")
    assert told.as_plain()["scores"]["resolution_after"] is None
    assert not math.isnan(report(0.0).scores.resolution_after.value)
