"""How fine the detail is that can be trusted: Fourier ring correlation, and its form for a denoised image.

Every function takes tensors (B, Z, Y, X); each (b, z) is one image in the plane (Y, X). Nothing here decides or prints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from denoise.quality import require_images

_TAPERED = 0.25  # share of each side that the Tukey window tapers: leakage is gone, 1.2 of 2.25 (Hann) modes are lost
_CERTAINTY = 3.0  # standard deviations of a correlation that stand out from chance


def frc(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Fourier ring correlation of two stacks, slice by slice, pooled.

    Re(sum F G*) / sqrt(sum |F|^2 sum |G|^2), the sums over a ring and over all slices (Saxton & Baumeister 1982, J.
    Microsc. 127:127). Each slice has its mean removed and is tapered over an eighth of each side at both ends
    (Tukey window). Rings are one mode of the shorter side wide.

    Parameters
    ----------
    one, other
        (B, Z, Y, X), Y and X at least 8. Between two *denoised* halves the result is no resolution: it measures how
        well they agree, not with what.

    Returns
    -------
    frequencies, correlation
        Each (rings,), float64: cycles per voxel, k/N for rings k = 1 .. N//2, N the shorter side; and -1..1, 0 for a
        ring of zeros.

    Raises
    ------
    ValueError
        Images smaller than 8 x 8, or not four axes, or shapes that differ.
    """
    frequencies, correlation, _ = _ring_correlation(one, other)
    return frequencies, correlation


def cross_frc(prediction_of_x0: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation of a denoised stack with the unknown truth, per frequency: FRC(f(x0), x1) / sqrt(FRC(x0, x1)).

    The noise of x1 is independent of f(x0), so that it lowers both correlations alike and divides out; invented detail
    does not. What all splits share (rings, streaks) counts as truth.

    Parameters
    ----------
    prediction_of_x0
        (B, Z, Y, X), f(x0), of held-out slices.
    x0, x1
        The split it was made from, and the other one.

    Returns
    -------
    frequencies, correlation
        As of `frc`. Not clipped; NaN where FRC(x0, x1) does not stand out from chance by three standard deviations,
        since nothing can be said there.
    """
    frequencies, seen, _ = _ring_correlation(prediction_of_x0, x1)
    _, between, modes = _ring_correlation(x0, x1)
    known = between > _CERTAINTY / modes.sqrt()
    return frequencies, torch.where(known, seen / between.clamp(min=1e-12).sqrt(), torch.nan)


def first_below(frequencies: Tensor, correlation: Tensor, level: float = 0.5) -> float | None:
    """The frequency at which a correlation first falls below a level (or is unknown, NaN): the resolution.

    Returns
    -------
    Cycles per voxel, interpolated between the two rings; None where the correlation stays above to the end.
    """
    below = ~(correlation >= level)
    if not bool(below.any()):
        return None
    k = int(below.int().argmax())
    here, c_here = float(frequencies[k]), float(correlation[k])
    if k == 0:
        return here
    before, c_before = float(frequencies[k - 1]), float(correlation[k - 1])
    if math.isnan(c_here):
        return before
    return before + (here - before) * (c_before - level) / (c_before - c_here)


@dataclass(frozen=True)
class Rings:
    """The Fourier rings of images of one size (Y, X): one mode of the shorter side wide, k = 1 .. N//2.

    Attributes
    ----------
    frequencies
        (rings,), float64, cycles per voxel.
    modes
        (rings,), float64: independent modes of one image in each ring; neighbours of a windowed one are correlated.
    """

    frequencies: Tensor
    modes: Tensor
    _ring: Tensor
    _twice: Tensor
    window: Tensor

    @classmethod
    def of(cls, y: int, x: int, device: torch.device | None = None) -> Rings:
        """Rings for images (y, x)."""
        shorter = min(y, x)
        radius = torch.hypot(
            torch.fft.fftfreq(y, dtype=torch.float64, device=device)[:, None],
            torch.fft.rfftfreq(x, dtype=torch.float64, device=device)[None, :],
        )
        ring = (radius * shorter).round().long().flatten()
        # The half-plane of a real transform holds each mode once, but twice in its first column, and for even x in its
        # last one.
        twice = torch.full((x // 2 + 1,), 2.0, dtype=torch.float64, device=device)
        twice[0] = 1
        if x % 2 == 0:
            twice[-1] = 1
        weight = twice.expand(y, -1).flatten()
        window = _tukey(y, device)[:, None] * _tukey(x, device)
        alike = window.numel() * window.pow(4).sum() / window.square().sum() ** 2
        modes = torch.bincount(ring, weights=weight)[1 : shorter // 2 + 1] / 2 / alike
        frequencies = torch.arange(1, shorter // 2 + 1, dtype=torch.float64, device=device) / shorter
        return cls(frequencies, modes, ring, weight, window)

    def transform(self, image: Tensor) -> Tensor:
        """Windowed half-plane transform of one image (Y, X) without its mean, flat."""
        v = image.double()
        transformed: Tensor = torch.fft.rfft2((v - v.mean()) * self.window, norm="ortho").flatten()
        return transformed

    def weight(self, mask: Tensor) -> Tensor:
        """Coefficients in each ring times the mean square of the taper, (rings,), in the part (Y, X) that is not zero.

        ``sums`` over it is the power of white noise in that part: its variance.
        """
        tapered = (self.window.square() * mask).mean()
        count = torch.bincount(self._ring, weights=self._twice)[1 : len(self.frequencies) + 1]
        return count * tapered

    def sums(self, one: Tensor, other: Tensor) -> Tensor:
        """Re(F G*) of two transforms, summed over each ring, (rings,); both half-planes are counted."""
        power = (one * other.conj()).real * self._twice
        return torch.bincount(self._ring, weights=power)[1 : len(self.frequencies) + 1]


def _tukey(size: int, device: torch.device | None) -> Tensor:
    """1-D Tukey window at voxel centres, (size,), float64: flat, with half a Hann window at both ends."""
    place = (torch.arange(size, dtype=torch.float64, device=device) + 0.5) / size
    to_end = torch.minimum(place, 1 - place)
    return torch.sin(0.5 * torch.pi * (to_end / (_TAPERED / 2)).clamp(max=1)).square()


def _ring_correlation(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies, correlation, and the number of independent Fourier modes in each ring, each (rings,)."""
    require_images(one, 8)
    if one.shape != other.shape:
        raise ValueError(f"expected two stacks of one shape, found {tuple(one.shape)} and {tuple(other.shape)}")
    rings = Rings.of(one.shape[2], one.shape[3], one.device)
    sums = torch.zeros(3, len(rings.frequencies), dtype=torch.float64, device=one.device)
    for a, b in zip(one.flatten(0, 1), other.flatten(0, 1), strict=True):
        f, g = rings.transform(a), rings.transform(b)
        for total, pair in zip(sums, ((f, g), (f, f), (g, g)), strict=True):
            total += rings.sums(*pair)
    cross, power_one, power_other = sums
    norm = (power_one * power_other).sqrt()
    correlation = torch.where(norm > 0, cross / norm, torch.zeros_like(cross))
    return rings.frequencies, correlation, rings.modes * one.shape[0] * one.shape[1]
