"""One mean and one standard deviation for a whole run: measured once, kept in the checkpoint, used everywhere.

Values are summed in float64 around their own mean (Welford; pairwise merging after Chan, Golub and LeVeque 1983), so
that a mean of 30000 with a standard deviation of 5 comes out right. NaN and Inf are left out and counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from denoise.errors import VolumeError


class _Arithmetic(Protocol):
    """What numpy arrays and torch tensors have in common here."""

    def __sub__(self, other: float, /) -> Self: ...
    def __add__(self, other: float, /) -> Self: ...
    def __mul__(self, other: float, /) -> Self: ...
    def __truediv__(self, other: float, /) -> Self: ...


Block = TypeVar("Block", bound=_Arithmetic)
#: More standard deviations, and larger factors between them, than scans of one kind differ by.
_FARTHEST = 5.0


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation, in the volume's units, pooled over the splits."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise VolumeError(
                f"the normalisation needs a finite mean and a positive standard deviation, found mean {self.mean} and "
                f"standard deviation {self.std}; check mean4norm and std4norm, or whether the volumes are constant"
            )

    def resembles(self, found: Moments) -> bool:
        """Whether a slice has grey values like those that were trained on.

        Not where its mean lies more than five standard deviations away, or its standard deviation is more than five
        times larger or smaller: scans of one kind do not differ by that much.
        """
        if found.count == 0 or found.squared_deviation == 0:
            return True  # nothing is there
        std = math.sqrt(found.squared_deviation / found.count)
        return abs(found.mean - self.mean) <= _FARTHEST * self.std and (
            self.std / _FARTHEST <= std <= _FARTHEST * self.std
        )

    def apply(self, block: Block) -> Block:
        """Grey values to normalised values, same shape and type."""
        return (block - self.mean) / self.std

    def invert(self, block: Block) -> Block:
        """Normalised values back to grey values, same shape and type."""
        return block * self.std + self.mean


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviation of finite values, and how many values were not finite."""

    count: int = 0
    mean: float = 0.0
    squared_deviation: float = 0.0
    non_finite: int = 0

    @classmethod
    def of(cls, values: NDArray[Any]) -> Moments:
        """Two passes over an array of any shape and real type, in float64."""
        if np.issubdtype(values.dtype, np.integer):
            finite, bad = values.ravel(), 0
        else:
            good = np.isfinite(values)
            bad = int(values.size - np.count_nonzero(good))
            finite = values[good] if bad else values.ravel()
        if finite.size == 0:
            return cls(non_finite=bad)
        mean = float(finite.mean(dtype=np.float64))
        deviation = finite.astype(np.float64) - mean
        return cls(int(finite.size), mean, float(np.dot(deviation, deviation)), bad)

    @classmethod
    def of_slice(cls, image: NDArray[Any]) -> Moments:
        """Moments of one slice (Y, X), without exact zeros outside the inscribed ellipse, where slices are masked."""
        return cls.of_rows(image, range(len(image)), len(image))

    @classmethod
    def of_rows(cls, band: NDArray[Any], rows: range, height: int) -> Moments:
        """The same of some rows (Y, X) of a slice that is too large to be looked at whole.

        Parameters
        ----------
        rows
            Which rows of the slice these are.
        height
            Of the slice.
        """
        masked = _outside_inscribed_ellipse(rows, height, band.shape[1]) & (band == 0)
        return cls.of(band[~masked] if masked.any() else band)

    def merged(self, other: Moments) -> Moments:
        """Moments of both sets together."""
        count = self.count + other.count
        non_finite = self.non_finite + other.non_finite
        if count == 0:
            return Moments(non_finite=non_finite)
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / count
        squared = self.squared_deviation + other.squared_deviation + delta**2 * self.count * other.count / count
        return Moments(count, mean, squared, non_finite)

    def normalization(self) -> Normalization:
        """Mean and (population) standard deviation.

        Raises
        ------
        VolumeError
            No finite value was seen, or all are the same.
        """
        if self.count == 0:
            raise VolumeError("the sub-reconstructions hold no finite value at all; check the files")
        std = math.sqrt(self.squared_deviation / self.count)
        if std <= 1e-12 * abs(self.mean) or std == 0:
            raise VolumeError(
                f"every voxel of the sub-reconstructions has the same value {self.mean:g}: there is no noise to learn "
                "from; check the files"
            )
        return Normalization(self.mean, std)


def _outside_inscribed_ellipse(rows: range, height: int, width: int) -> NDArray[np.bool_]:
    y = (np.asarray(rows) - (height - 1) / 2) / (height / 2)
    x = (np.arange(width) - (width - 1) / 2) / (width / 2)
    return np.asarray(y[:, None] ** 2 + x[None, :] ** 2 > 1.0)
