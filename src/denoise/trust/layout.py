"""Geometry of what splits share and what not: shifts, spokes of single projections, concentric rings, the rim."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, median_filter

Float64Array = NDArray[np.float64]

#: Cycles per voxel between which gaps between projections are looked for; coarser, they overlap.
_SPOKES_AT = (0.40, 0.48)
#: Modes on a ring among which the noise is taken to be alike.
_NEIGHBOURS = 41
#: Of the power that the splits share: less is no noise.
_LEAST_NOISE = 1e-6
#: Width of the median that a radial profile is compared with, and radii nearer the middle than this are left out,
#: voxels.
_SMOOTH, _INNERMOST = 9, 12
_RIM = 0.01


@dataclass(frozen=True)
class Shift:
    """How far one image lies from another in the plane, voxels; and the cross-correlation there."""

    y: float
    x: float
    peak: float

    @property
    def length(self) -> float:
        """Voxels."""
        return float(np.hypot(self.y, self.x))


def shift_between(cross_spectrum: NDArray[np.complex128], width: int) -> Shift:
    """From the sum of the cross-spectra of slices.

    The nearest whole shift is the peak of the cross-correlation; the rest is the slope of the phase, by least squares
    weighted with the cross-power (as in Foroosh, Zerubia & Berthod 2002, IEEE TIP 11:188, doi 10.1109/83.988953).
    """
    height = cross_spectrum.shape[0]
    correlation = np.fft.irfft2(cross_spectrum, (height, width))
    y, x = (int(i) for i in np.unravel_index(int(correlation.argmax()), correlation.shape))
    whole = np.array([y - height if y > height // 2 else y, x - width if x > width // 2 else x], dtype=float)
    q = np.stack(np.broadcast_arrays(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]))
    turned = cross_spectrum * np.exp(2j * np.pi * np.tensordot(whole, q, axes=1))
    # Where the noise is stronger than the object the phase is random; what is left of the shift turns these little.
    used = np.hypot(*q) < 0.25
    weight = np.where(used, np.abs(turned), 0)
    slope = 2 * np.pi * q
    matrix = np.einsum("iyx,jyx,yx->ij", slope, slope, weight)
    vector = np.einsum("iyx,yx->i", slope, -np.where(used, turned.imag, 0))
    rest = np.linalg.lstsq(matrix, vector, rcond=None)[0]
    found = whole + rest
    return Shift(float(found[0]), float(found[1]), float(correlation.max()))


def spoke_scatter(noise: Float64Array, signal: Float64Array, count: int) -> float:
    """How unevenly noise is spread along a ring of fine frequencies, beyond what ``count`` slices leave to chance.

    Parameters
    ----------
    noise, signal
        Re F G* of half-plane transforms (Y, X//2+1), mean over slices; F of a split, G of what it has more than
        another, and of that other one.
    count
        Slices: their noise is independent, the directions of the projections are the same.

    Returns
    -------
    Relative standard deviation from the mean of neighbouring directions. Of a mode with noise of the power N in both
    splits and signal of the power S, ``noise`` has a variance of N^2 (3/2 + S/N): directions in which an object has
    sharp edges count less.
    """
    height, half = noise.shape
    y, x = np.fft.fftfreq(height)[:, None], (np.arange(half) / max(2 * (half - 1), 1))[None, :]
    radius, angle = np.hypot(y, x), np.arctan2(y, x + 0 * y)
    ring = (radius > _SPOKES_AT[0]) & (radius < _SPOKES_AT[1])
    if ring.sum() < 4 * _NEIGHBOURS:
        return 0.0
    # Bins of one angle each, narrower than the gaps that are looked for: a third of a mode at the rim.
    bins = 3 * int(np.pi * 0.44 * height)
    place = ((angle[ring] / np.pi + 0.5) * (bins - 1)).astype(int)
    number = np.bincount(place, minlength=bins)
    profile, shared = (
        np.bincount(place, weights=power[ring], minlength=bins)[number > 0] / number[number > 0]
        for power in (noise, signal)
    )
    number = number[number > 0]
    padded = np.pad(profile, _NEIGHBOURS // 2, mode="wrap")
    least = max(_LEAST_NOISE * float(shared.mean()), 1e-300)  # of two copies of an image only rounding differs
    around = np.maximum(np.convolve(padded, np.full(_NEIGHBOURS, 1 / _NEIGHBOURS), mode="valid"), least)
    chance = 1.5 + np.maximum(shared, 0) / around
    excess = np.average(np.square(profile / around - 1) - chance / (number * count), weights=chance**-2)
    return float(np.sqrt(max(float(excess), 0.0)))


class RingProfiles:
    """Means over quarters of concentric circles, of two splits: what is a ring is in all of them."""

    def __init__(self, height: int, width: int) -> None:
        y, x = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
        radius = np.hypot(y[:, None], x[None, :])
        self._size = min(height, width) // 2
        quarter = 2 * (y[:, None] > 0) + (x[None, :] > 0)
        self._inside = radius < self._size
        self._place = (quarter * self._size + radius.astype(int))[self._inside]
        self._number = np.maximum(np.bincount(self._place, minlength=4 * self._size), 1)
        self._sums: list[Float64Array] = []

    def add(self, one: Float64Array, other: Float64Array) -> None:
        """Profiles of a slice of two splits."""
        both = [np.bincount(self._place, weights=v[self._inside], minlength=len(self._number)) for v in (one, other)]
        self._sums.append(np.array(both).reshape(2, 4, self._size) / self._number.reshape(4, self._size))

    def strength(self) -> tuple[float, float]:
        """Standard deviation of rings common to splits and quarters, grey values, and by how much it exceeds chance.

        From the signs alone: two Gaussian values of correlation r agree in sign with a probability of
        1/2 + asin(r) / pi (Sheppard 1899), and the few radii where an edge of the object is round do not count more
        than others.
        """
        last = self._size - 4
        if last <= _INNERMOST:
            return 0.0, 0.0
        agreement: list[float] = []
        chance: list[float] = []
        spreads: list[float] = []
        for profiles in self._sums:
            fine = (profiles - median_filter(profiles, (1, 1, _SMOOTH)))[:, :, _INNERMOST:last]
            spreads.append(float(np.median(np.abs(fine))) * 1.4826)
            signs = np.sign(fine)
            for a, b in permutations(range(4), 2):
                agreement.append(float(np.mean(signs[0, a] * signs[1, b])))
                chance.append(float(np.mean(signs[0, a] * np.roll(signs[1, b], signs.shape[2] // 3))))
        if not agreement:
            return 0.0, 0.0
        mean = float(np.mean(agreement))
        error = float(np.std(chance)) / np.sqrt(len(chance) / 12)  # rings are the same in neighbouring slices and pairs
        shared = max(float(np.sin(0.5 * np.pi * mean)), 0.0)
        return float(np.sqrt(shared) * np.median(spreads)), mean / max(error, 1e-300)


def rim(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The outermost hundredth of the field of view and two voxels, without the last one, bool (Y, X)."""
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return np.asarray((depth > 1) & (depth < 3 + _RIM * min(mask.shape)))
