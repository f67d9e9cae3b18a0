"""Projections that say nothing of the sample: taken without light, or copies of the one before.

In: a ``Scan`` with all of its projections. Out: their numbers, found in two rows in the middle of the detector,
whichever rows are used. Leaving them out is the job of ``Scan.without``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denoise.projections.scan import Scan
from denoise.volumes import describe_numbers

Float64Array = NDArray[np.float64]

#: Looked at: so many rows in the middle of the detector, so many darks; and so many projections at a time.
_ROWS, _DARKS, _TOGETHER = 2, 32, 256
#: What all but a tenth of the projections do not exceed is the light of a typical one.
_TYPICAL = 0.9
#: Of a typical projection: less is no light, and more beside it in angle is an end that no sample has.
_NO_LIGHT, _BRIGHT = 0.01, 0.25
#: So many times as much light must there be as successive projections differ by: else it is chance.
_CERTAIN = 5.0
#: Of a typical projection, both rows together: single photons come and go.
_FEWEST_COUNTS = 100.0
#: Radians; scans of half a turn have some more now and then.
_FULL = np.deg2rad(220)
#: Where noise makes successive projections differ in so many pixels at least, and in this share of them, equal ones are
#: copies; where they differ in fewer, there may be no noise, or hardly a photon.
_FEWEST, _SHARE = 30, 0.1
_KEEP = "--keep-projections uses all"
#: Runs of numbers that a message names.
_NAMED = 8


@dataclass(frozen=True)
class LostProjections:
    """Numbers of projections, counted from 0, ascending.

    Attributes
    ----------
    dark
        Those without light.
    copies
        Others whose pixels are those of the one before, noise and all: a detector that froze.
    """

    dark: tuple[int, ...] = ()
    copies: tuple[int, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(sorted((*self.dark, *self.copies)))

    def sentences(self, path: Path) -> list[str]:
        """What to tell the user of them."""
        said = []
        if self.dark:
            have, are = ("have", "are") if len(self.dark) > 1 else ("has", "is")
            said.append(f"{_named(self.dark)} of {path} {have} no light (beam lost?) and {are} left out; {_KEEP}")
        if self.copies:
            are, they = ("are copies", "they are") if len(self.copies) > 1 else ("is a copy", "it is")
            said.append(
                f"{_named(self.copies)} of {path} {are} of the one before, whose noise would be in several splits: "
                f"{they} left out; {_KEEP}"
            )
        return said


def lost_projections(scan: Scan) -> LostProjections:
    """Find the projections that are better left out.

    No light is in those that transmit less than 1 % of what a typical one does, where those beside them in angle are
    bright: a sample that lets hardly anything through lets more and more through, to both sides. Copies are equal in
    all pixels, where others that follow each other differ in many.

    Raises
    ------
    ScanError
        The file has become unreadable.
    """
    _, darks = scan.read_beam(_ROWS, _DARKS)
    light, differing = np.empty(scan.shape[0]), np.empty(scan.shape[0])
    smallest = np.inf
    before = np.full((1, 1, 1), np.nan, np.float32)
    # What is not finite is refused where it is used; here it does not count.
    with np.errstate(invalid="ignore", over="ignore"):
        level = darks.mean(axis=0)
        for start in range(0, len(light), _TOGETHER):
            stop = min(start + _TOGETHER, len(light))
            frames = scan.read_frames(np.arange(start, stop), _ROWS)
            light[start:stop] = _mean_light(frames - level)
            smallest = min(smallest, _smallest_step(frames))
            previous = np.concatenate([np.broadcast_to(before, frames[:1].shape), frames[:-1]])
            differing[start:stop] = (frames != previous).mean(axis=(1, 2))
            differing[start:stop][np.ptp(frames, axis=(1, 2)) == 0] = np.nan
            before = frames[-1:]
    differing[0] = np.nan
    dark = _without_light(light, scan.angles_rad, _FEWEST_COUNTS * smallest / frames[0].size)
    copies = _copies(differing, frames[0].size) & ~dark
    return LostProjections(*(tuple(map(int, np.flatnonzero(lost))) for lost in (dark, copies)))


def runs_of(numbers: Sequence[int]) -> list[str]:
    """Ascending numbers as a user would say them: ``40..47``, ``60``."""
    parts = np.split(np.asarray(numbers), np.flatnonzero(np.diff(numbers) > 1) + 1) if numbers else []
    return [describe_numbers(range(int(part[0]), int(part[-1]) + 1)) for part in parts]


def _mean_light(frames: NDArray[np.float32]) -> Float64Array:
    """Of the finite pixels of each frame; NaN where it has none."""
    finite = np.isfinite(frames)
    total = np.where(finite, frames, 0).sum(axis=(1, 2), dtype=np.float64)
    return np.asarray(total / finite.sum(axis=(1, 2)))


def _smallest_step(frames: NDArray[np.float32]) -> float:
    """Between two values of pixels: of whole counts one, of photons that are counted a photon."""
    values = np.unique(frames[np.isfinite(frames)])
    return float(np.diff(values).min()) if values.size > 1 else np.inf


def _without_light(light: Float64Array, angles_rad: Float64Array, fewest: float) -> NDArray[np.bool_]:
    """(projections,): whether there is none in it; nowhere, where a typical one has less than ``fewest``."""
    lost = np.zeros(len(light), np.bool_)
    # Views from opposite sides show the same, unless the axis is at the edge of the detector, in scans of a full turn.
    turn = 2 * np.pi if np.ptp(angles_rad) > _FULL else np.pi
    order = np.argsort(np.mod(angles_rad, turn), kind="stable")
    by_angle = light[order]
    known = light[np.isfinite(light)]
    if known.size < 2:
        return lost
    typical = float(np.quantile(known, _TYPICAL))
    # By angle, as successive ones may show the sample from elsewhere; by time, as half of a full turn may be lost.
    if typical <= max(fewest, _CERTAIN * min(_step(light), _step(by_angle))):
        return lost
    dim = by_angle < _NO_LIGHT * typical
    lit = np.concatenate([[0.0], by_angle[~dim], [0.0]])
    after = np.cumsum(~dim)[dim] + 1
    lost[order[dim]] = np.fmax(lit[after - 1], lit[after]) > _BRIGHT * typical
    return lost


def _copies(differing: Float64Array, pixels: int) -> NDArray[np.bool_]:
    """(projections,): whether it is a copy.

    Parameters
    ----------
    differing
        The share of pixels, of so many, that differ from the one before; NaN without one, or where all have one value.
    """
    copies = differing == 0
    others = differing[differing > 0]
    noisy = others.size > 0 and float(np.median(others)) >= max(_SHARE, _FEWEST / pixels)
    return copies if noisy else np.zeros_like(copies)


def _step(light: Float64Array) -> float:
    """By how much neighbours differ, for half of them."""
    steps = np.abs(np.diff(light))
    steps = steps[np.isfinite(steps)]
    return float(np.median(steps)) if steps.size else np.inf


def _named(numbers: Sequence[int]) -> str:
    runs = runs_of(numbers)
    text = ", ".join(runs[:_NAMED]) + (f" and others ({len(numbers)} in all)" if len(runs) > _NAMED else "")
    return f"projections {text}" if len(numbers) > 1 else f"projection {text}"
