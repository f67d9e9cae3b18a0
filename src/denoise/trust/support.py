"""Is what the model shows supported by splits that it has not seen, and is what they show still there? Place by place.

Every slice is divided into octave bands of spatial frequency. In each band, and within it around each voxel, three
products are averaged: result x result, result x other split, split x other split. The noise of the other split is
independent of the result, so it averages out of the second and third, and its strength says how far chance reaches.

support   (result . other) / (result . result)    1: all contrast is really there; below: invented or exaggerated
kept      (result . other) / (split . other)      1: all of the object's contrast is kept; below: some is removed

Both are 1 for the truth. A result with the least possible squared error is the mean of all objects that fit the data;
its error is uncorrelated with all that can be computed from the data, so its support is 1 in every band, and what it
keeps is 1 where noise is weak and falls where noise is strong, never below what the best linear filter keeps:
S / (S + N), with the power S of the object and N of the noise (Wiener 1949).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

from denoise.trust.evidence import Evidence, Frame

Stack = NDArray[np.float32]
"""Half the memory of float64 for a dozen stacks; what is summed is summed in float64."""

#: Cycles per voxel: octaves down to structures of 32 voxels.
BANDS = ((1 / 32, 1 / 16), (1 / 16, 1 / 8), (1 / 8, 1 / 4), (1 / 4, 1 / 2))
#: Contrast without support in one place counts from so many mean squared errors of its band: the worst places of good
#: models, which are certain too where noise is weak, have less.
LARGE = 4.0
#: Half of what a linear filter would have kept.
HALF = 0.5
#: The object must stand out of a view's noise by this factor in power before its loss counts as avoidable.
_CLEAR = 1.0
#: Standard deviation of the average over slices, in slices, and in the plane, in longest waves of the band.
_SLICES, _WAVES = 1.0, 0.25
#: What is divided by is at least this; float32 knows nothing much smaller.
_TINY = 1e-30
#: Of the mean noise power: no place has less, or what rounds to something there would stand out from nothing.
_LEAST = 0.01


@dataclass(frozen=True)
class Place:
    """Where a test fails most clearly: voxel (z, y, x) of the held-out region, and the number it is judged by."""

    value: float
    z: int
    y: int
    x: int

    def within(self, frame: Frame) -> Place:
        """The same as slice number, row and column of the volume."""
        return Place(self.value, *frame.place(self.z, self.y, self.x))


@dataclass(frozen=True)
class BandSupport:
    """One band: totals over the field of view, and the worst places.

    Attributes
    ----------
    low, high
        Cycles per voxel.
    support, kept
        See the module.
    linear
        What the best linear filter of one view would keep.
    avoidable
        How much squared error a factor for this band alone would save: (1 - support)^2 of the result's power there.
    error
        Squared error in this band, unbiased. Both are sums over voxels, in noise variances of the full reconstruction.
    deviations
        By how many standard deviations the support differs from 1.
    invented
        Standard deviations by which contrast in one place is not supported, where that is ``LARGE``.
    removed
        Standard deviations by which less than half of what a linear filter keeps is kept.
    """

    low: float
    high: float
    support: float
    kept: float
    linear: float
    avoidable: float
    error: float
    deviations: float
    invented: Place
    removed: Place

    def within(self, frame: Frame) -> BandSupport:
        """With places in the volume."""
        return replace(self, invented=self.invented.within(frame), removed=self.removed.within(frame))


def support_of(evidence: Evidence) -> tuple[BandSupport, ...]:
    """Every band, from coarse to fine; those that slices this small do not have are left out."""
    shortest = min(evidence.shape[1:])
    return tuple(_band(evidence, band) for band in BANDS if shortest * band[0] >= 2)


def _band(evidence: Evidence, band: tuple[float, float]) -> BandSupport:
    views, others, outputs, noise = _filtered(evidence, band)
    width = _WAVES / band[0]
    inside = evidence.mask.astype(np.float32)
    seen = np.maximum(_smooth(inside[None], width)[0], 1e-3)
    count = len(outputs)

    def local(stack: Stack, sigma: float = width) -> Stack:
        return np.asarray(_smooth(stack * inside, sigma) / seen)

    result = _mean([np.square(f) for f in outputs])
    cross = _mean([f * t for f, t in zip(outputs, others, strict=True)])
    signal = _mean([v * t for v, t in zip(views, others, strict=True)])
    strength = _strength(others, signal, inside, 3 * width)
    strength_of_view = strength if len(views) == 2 else _strength(views, signal, inside, 3 * width)
    alike = _alike(outputs[0], noise, width, inside)

    def deviation(factor: Stack) -> Stack:
        """Of the local mean of factor x other, by the noise of the other."""
        spread = local(np.square(factor) * strength, width / np.sqrt(2))
        return np.asarray(np.sqrt(np.maximum(alike * spread, _TINY) / count))

    totals = np.array([(v * inside).sum(dtype=np.float64) for v in (result, cross, signal, strength_of_view)])
    error = totals[0] - 2 * totals[1] + totals[2]
    excess = local(result - cross)
    unsupported = excess / deviation(np.sqrt(result))
    unsupported[excess < LARGE * max(error / (inside.sum() * len(result)), _TINY)] = 0
    signal_there = local(signal)
    linear = np.clip(signal_there / np.maximum(signal_there + strength_of_view, _TINY), 0, 1)
    blend = _mean(outputs) - HALF * linear * _mean(views)
    missing = (HALF * linear * signal_there - local(cross)) / deviation(blend)
    missing[signal_there < _CLEAR * strength_of_view] = 0
    by_chance = np.sqrt(
        float((result * strength * inside).sum(dtype=np.float64)) * _modes_alike(evidence.shape[1:], band) / count
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN where a band of the outputs, or of the scan, is empty
        support, kept = totals[1] / totals[0], totals[1] / totals[2]
        linear, deviations = totals[2] / (totals[2] + totals[3]), (totals[0] - totals[1]) / np.float64(by_chance)
    return BandSupport(
        *band,
        support=float(support),
        kept=float(kept),
        linear=float(linear),
        avoidable=float((1 - support) ** 2 * totals[0]),
        error=float(error),
        deviations=float(deviations),
        invented=_worst(np.where(inside, unsupported, 0)),
        removed=_worst(np.where(inside, missing, 0)),
    )


def _filtered(evidence: Evidence, band: tuple[float, float]) -> tuple[list[Stack], ...]:
    """Views, others, outputs and probe, only this band of each, in standard deviations of the noise, without mean."""
    weight = _octave((evidence.shape[1], evidence.shape[2]), band)
    noise = float(evidence.probe[:, evidence.mask].std(dtype=np.float64))
    weight = weight / noise if noise > 0 else weight

    def passed(stack: NDArray[np.float32]) -> Stack:
        result = np.empty(stack.shape, np.float32)
        for z, image in enumerate(stack):
            centred = np.where(evidence.mask, image - image[evidence.mask].mean(dtype=np.float64), 0)
            result[z] = np.fft.irfft2(np.fft.rfft2(centred) * weight, image.shape)
        return result

    stacks = (evidence.views, evidence.others, evidence.outputs, (evidence.probe,))
    return tuple([passed(stack) for stack in group] for group in stacks)


def _octave(shape: tuple[int, int], band: tuple[float, float]) -> NDArray[np.float64]:
    """Weights of a half-plane transform: 1 in the (geometric) middle of the band, a cosine down to 0 an octave off."""
    y, x = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
    radius = np.maximum(np.hypot(y, x), 1e-9)
    octaves = np.abs(np.log2(radius / np.sqrt(band[0] * band[1])))
    return np.asarray(np.where(octaves < 1, np.cos(0.5 * np.pi * np.minimum(octaves, 1)), 0.0))


def _smooth(stack: Stack, width: float) -> Stack:
    """Local means: Gaussian in the plane, and over neighbouring slices."""
    return np.asarray(gaussian_filter(stack, (_SLICES, width, width), truncate=3.0))


def _strength(stacks: list[Stack], signal: Stack, inside: Stack, width: float) -> Stack:
    """Noise power around each voxel, what of a square is not signal: means over a box, which are quick to make."""
    square = _mean([np.square(v) for v in stacks])
    edge = 2 * round(width) + 1
    seen = np.maximum(uniform_filter(inside, edge), 1e-3)
    usual = float(((square - signal) * inside).sum(dtype=np.float64) / max(inside.sum() * len(square), 1))
    local = uniform_filter((square - signal) * inside, (3, edge, edge)) / seen
    return np.asarray(np.maximum(local, _LEAST * max(usual, 0.0)))


def _alike(result: Stack, noise: list[Stack], width: float, inside: Stack) -> float:
    """Variance of a local mean over that of a voxel, for result x noise: from noise that the result has never seen.

    That of a slice half a stack away; of a single slice, half an image away.
    """
    depth = len(result)
    shift = (depth // 2, 0, 0) if depth > 1 else (0, result.shape[1] // 2, 0)
    product = result * np.roll(noise[0], shift, (0, 1, 2)) * inside
    mean = _smooth(product, width)
    return float(np.square(mean).mean(dtype=np.float64) / max(np.square(product).mean(dtype=np.float64), _TINY))


def _modes_alike(shape: tuple[int, int], band: tuple[float, float]) -> float:
    """Voxels per independent value of noise in this band: white noise keeps the mean square of the weights."""
    weight = _octave(shape, band)
    return float(1 / np.square(weight).mean())


def _mean(stacks: list[Stack]) -> Stack:
    return np.asarray(np.mean(stacks, axis=0))


def _worst(stack: Stack) -> Place:
    z, y, x = np.unravel_index(int(stack.argmax()), stack.shape)
    return Place(float(stack[z, y, x]), int(z), int(y), int(x))
