"""What can be measured on splits alone: what they share (signal), and what differs (noise).

Slices in neighbouring pairs, spread over the volume, are read one after the other and summed up; products of different
splits hold no noise on average, squares less these products hold nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from denoise.resolution import Rings
from denoise.tiles import Region
from denoise.trust.evidence import ellipse_of, shown_in
from denoise.trust.layout import RingProfiles, Shift, rim, shift_between, spoke_scatter
from denoise.trust.smooth import SmoothPlaces
from denoise.volumes import SplitSet, Volume

Float64Array = NDArray[np.float64]

#: Of ``measure``: anyhow, for each pixel of a slice, and for each of each split; within 10 % of what was measured on
#: slices of 512^2 to 4096^2 of 2 and of 4 splits.
_BYTES, _BYTES_PER_PIXEL, _BYTES_PER_PIXEL_OF_A_SPLIT = 13_000_000, 95, 55
_MOST_SLICES = 24
_MOST_VOXELS = 24_000_000
"""Of one split: 6 slices of 2048 x 2048."""
_FINE = (0.375, 0.5)
_COARSER, _FINEST = (0.3, 0.4), (0.44, 0.5)
#: The power of detail falls with the third power of frequency or faster and that of noise rises: detail over noise fell
#: to 0.24 to 0.31 from one to the other (foams, layers and blocks, 400 to 40,000 photons). Noise that is shared, over
#: noise that is not, stays what it is.
_FLAT = 0.45
#: Standard deviations by which a peak among all places must stand out: the highest of noise has 4 to 6.
_PEAK = 7.0
#: Edge of the smallest slices that can be tested, voxels.
SMALLEST = 8
_COHERENT = 0.9


@dataclass(frozen=True)
class SplitFacts:
    """Numbers on some slices of K splits; see ``before`` for what each means. Errors are standard errors."""

    slices: int
    voxels: int
    non_finite: float
    constant: float
    correlation: float
    fine_correlation: float
    fine_correlation_error: float
    is_flat: bool
    smooth_correlation: float | None
    smooth_correlation_error: float
    shift: float
    shift_error: float
    shift_is_seen: bool
    contrast_ratio: float
    offset: float
    scale_error: float
    offset_error: float
    noise_ratio: float
    noise_ratio_error: float
    spokes: float
    rings: float
    rings_certainty: float
    slice_jumps: float
    signal_to_noise: float
    clipped: float
    rim_contrast: float
    frequencies: tuple[float, ...] = ()
    correlations: tuple[float, ...] = ()
    """Of two splits, per Fourier ring."""


def testing_bytes(splits: SplitSet) -> int:
    """Memory that ``measure`` takes besides what the process has."""
    each = _BYTES_PER_PIXEL + _BYTES_PER_PIXEL_OF_A_SPLIT * len(splits)
    # Decoded for a slice, beside what is stored of it.
    layers = [2 * v.chunk_zyx[0] * v.dtype.itemsize for v in splits.volumes if v.chunk_zyx[0] > 1]
    return _BYTES + (each + max(layers, default=0)) * splits.shape[1] * splits.shape[2]


def chosen_slices(depth: int, plane: int) -> list[int]:
    """Which slices are read: neighbouring pairs, evenly spread."""
    pairs = max(1, min(_MOST_SLICES, _MOST_VOXELS // plane) // 2)
    if depth <= 2 * pairs:
        return list(range(depth))
    firsts = np.linspace(0, depth - 2, pairs + 2)[1:-1].round()
    return sorted({int(z) + i for z in firsts for i in (0, 1)})


def measure(volumes: Sequence[Volume], z_range: range) -> SplitFacts | None:
    """Read slices within a range of all splits and measure; None where there is nothing in them.

    Raises
    ------
    VolumeError
        A slice cannot be read.
    """
    shape = volumes[0].shape
    chosen = [z_range.start + z for z in chosen_slices(len(z_range), shape[1] * shape[2])]
    pairs = [chosen[i : i + 2] for i in range(0, len(chosen), 2)]
    shown = np.zeros(shape[1:], bool)
    for pair in pairs:
        shown |= shown_in([_read(volumes[0], pair)])
    sums = _Sums(len(volumes), ellipse_of(shown))
    for pair in pairs:
        read = [_read(volume, pair) for volume in volumes]
        for i, z in enumerate(pair):
            sums.add(z, np.stack([images[i] for images in read]))
    return sums.facts()


def _read(volume: Volume, chosen: Sequence[int]) -> NDArray[np.float32]:
    """Slices that are mostly neighbours, and then read together: they may be stored together."""
    if chosen[-1] - chosen[0] == len(chosen) - 1:
        return volume.read(Region.of_slices(chosen[0], chosen[-1] + 1, volume.shape))
    return np.concatenate([volume.read(Region.of_slices(z, z + 1, volume.shape)) for z in chosen])


class _Sums:
    """Collects slices (K, Y, X), one after the other."""

    def __init__(self, count: int, mask: NDArray[np.bool_]) -> None:
        height, width = mask.shape
        self.count = count
        self.mask = mask
        self.looked_at = self.bad = self.constant = 0
        self.clipped: list[float] = []
        self.rings = Rings.of(height, width)
        self.power: list[Float64Array] = []  # (K, rings) a slice
        self.cross: list[Float64Array] = []  # (rings,): mean over pairs
        self.means: dict[int, Float64Array] = {}  # (K,)
        self.cross_spectrum = np.zeros((count - 1, height, width // 2 + 1), np.complex128)
        self.shifts: list[float] = []
        self.mode_noise, self.mode_signal = np.zeros((2, height, width // 2 + 1))
        self.profiles = RingProfiles(height, width)
        self.smooth = SmoothPlaces(count, mask & (self.rings.window.numpy() == 1))
        self.rim_covariance: list[float] = []

    def add(self, z: int, images: NDArray[np.float32]) -> None:
        """Another slice."""
        self.looked_at += 1
        finite = np.isfinite(images)
        self.bad += int(finite.size - np.count_nonzero(finite))
        known = [image[here] for image, here in zip(images, finite & self.mask, strict=True)]
        if any(not values.size or values.min() == values.max() for values in known):
            self.constant += 1
            return
        self.means[z] = np.array([values.mean(dtype=np.float64) for values in known])
        self.clipped.append(max(_at_extremes(values) for values in known))
        as_stored = images
        if not finite.all():  # as the mean, which says nothing
            images = np.where(finite, images, self.means[z][:, None, None].astype(np.float32))
        centred = np.where(self.mask, images - self.means[z][:, None, None], 0).astype(np.float64)
        spectra = [self.rings.transform(torch.from_numpy(image)) for image in centred]
        self.power.append(np.array([self.rings.sums(f, f).numpy() for f in spectra]))
        total = sum(spectra[1:], spectra[0])
        pairs = self.count * (self.count - 1)
        self.cross.append((self.rings.sums(total, total).numpy() - self.power[-1].sum(axis=0)) / pairs)
        plain = [f.numpy().reshape(self.mode_noise.shape) for f in spectra]
        cross = np.array([plain[0] * f.conj() for f in plain[1:]])
        self.cross_spectrum += cross
        self.shifts.append(max(shift_between(c, centred.shape[2]).length for c in cross))
        self.smooth.add(plain, as_stored)
        self.mode_signal += cross[0].real
        self.mode_noise += np.square(np.abs(plain[0])) - cross[0].real
        self.profiles.add(centred[0], centred[1])
        edge = rim(self.mask)
        if np.count_nonzero(edge) > 1:
            self.rim_covariance.append(float(np.cov(centred[0][edge], centred[1][edge])[0, 1]))

    def facts(self) -> SplitFacts | None:
        """What all slices say together; None where all are constant."""
        if not self.power:
            return None
        slices = len(self.power)
        power, cross = np.sum(self.power, axis=0), np.sum(self.cross, axis=0)
        frequencies, modes = self.rings.frequencies.numpy(), self.rings.modes.numpy()
        mean_power = power.mean(axis=0)
        correlation = cross / np.maximum(mean_power, 1e-300)
        voxels = slices * int(self.mask.sum())
        # Tapered as the transforms are, to compare with variances in the plane.
        tapered = float(self.rings.window.square().mean()) * self.mask.size * slices
        noise = np.maximum(mean_power - cross, 0).sum() / tapered
        contrast = np.sqrt(max(cross.sum() / tapered, 0.0))
        known = max(contrast, 0.1 * np.sqrt(noise), 1e-300)
        fine = _between(frequencies, _FINE)
        coherent = correlation > _COHERENT
        strong = power[:, coherent].sum(axis=1) if coherent.any() else power.sum(axis=1)
        per_slice = [p[:, coherent].sum(axis=1) for p in self.power] if coherent.any() else self.power
        ratios = [float(np.sqrt(p.max() / max(p.min(), 1e-300))) for p in per_slice]
        offsets = [float(np.ptp(m) / known) for m in self.means.values()]
        shift = max((shift_between(c, self.mask.shape[1]) for c in self.cross_spectrum), key=lambda s: s.length)
        chance = _Chance.of(self.rings, mean_power / slices, cross / slices, slices)
        in_smooth = self.smooth.correlation()
        ratio, ratio_error = self.smooth.noise_ratio() or _noise_ratio(frequencies, power)
        rings, certainty = self.profiles.strength()
        return SplitFacts(
            slices=self.looked_at,
            voxels=voxels,
            non_finite=self.bad / (self.looked_at * self.count * self.mask.size),
            constant=self.constant / self.looked_at,
            correlation=float(cross.sum() / mean_power.sum()),
            fine_correlation=float(cross[fine].sum() / mean_power[fine].sum()),
            # The field of view and noise that differs from place to place leave fewer independent modes: by a half.
            fine_correlation_error=float(1.5 / np.sqrt(2 * modes[fine].sum() * slices * self.count / 2)),
            is_flat=_is_flat(frequencies, cross, mean_power),
            smooth_correlation=None if in_smooth is None else in_smooth[0],
            smooth_correlation_error=0.0 if in_smooth is None else in_smooth[1],
            shift=shift.length,
            shift_error=max(_error_of_mean(self.shifts), chance.shift_error),
            shift_is_seen=chance.is_seen(shift),
            contrast_ratio=float(np.sqrt(strong.max() / strong.min())),
            offset=float(np.ptp(np.mean(list(self.means.values()), axis=0)) / known),
            scale_error=max(_error_of_mean(ratios), chance.scale_error(coherent)),
            offset_error=max(_error_of_mean(offsets), chance.mean_error(int(self.mask.sum())) / known),
            noise_ratio=ratio,
            noise_ratio_error=ratio_error,
            spokes=spoke_scatter(self.mode_noise / slices, self.mode_signal / slices, slices),
            rings=float(rings / np.sqrt(max(noise / self.count, 1e-300))),
            rings_certainty=certainty,
            slice_jumps=float(_jumps(self.means) / known),
            signal_to_noise=float(cross.sum() / tapered / max(noise, 1e-300)),
            clipped=float(np.max(self.clipped)),
            rim_contrast=float(np.sqrt(max(float(np.mean(self.rim_covariance or [0.0])), 0.0)) / known),
            frequencies=tuple(float(f) for f in frequencies),
            correlations=tuple(float(c) for c in correlation),
        )


@dataclass(frozen=True)
class _Chance:
    """What noise alone does to what is compared: errors that are known of a single slice too.

    Attributes
    ----------
    signal, noise
        (rings,): mean |F|^2 of a coefficient, of what the splits share, and of what each has more.
    count
        (rings,): coefficients of both half-planes.
    alike
        So many of them tell as much as one, as the taper mixes neighbours.
    """

    rings: Rings
    signal: Float64Array
    noise: Float64Array
    count: Float64Array
    alike: float
    slices: int

    @classmethod
    def of(cls, rings: Rings, power: Float64Array, cross: Float64Array, slices: int) -> _Chance:
        """From sums over rings, means over slices."""
        count = rings.weight(torch.ones_like(rings.window)).numpy() / float(rings.window.square().mean())
        signal = np.maximum(cross, 0) / count
        alike = float(count.sum() / (2 * rings.modes.sum()))
        return cls(rings, signal, np.maximum(power / count - signal, 0), count, alike, slices)

    @property
    def _product(self) -> Float64Array:
        """(rings,): variance of the product of two splits' coefficients."""
        return self.noise * (2 * self.signal + self.noise)

    def is_seen(self, shift: Shift) -> bool:
        """Whether the peak of the cross-correlation stands out from what noise makes of all its places."""
        scatter = np.sqrt(self.slices * (self.count * self._product).sum()) / self.rings.window.numel()
        return shift.peak > _PEAK * float(scatter)

    @property
    def shift_error(self) -> float:
        """Of a slope of the phase, both axes together, voxels."""
        frequencies = self.rings.frequencies.numpy()
        square = np.where(frequencies < 0.25, self.count * np.square(2 * np.pi * frequencies) / 4, 0)  # one half-plane
        known = max(float((square * self.signal).sum()), 1e-300)
        return float(np.sqrt(self.alike * (square * self._product).sum() / self.slices) / known)

    def scale_error(self, rings: NDArray[np.bool_]) -> float:
        """Of the ratio of the contrasts of two splits."""
        used = rings if rings.any() else np.ones_like(rings)
        both = self.alike * (self.count * (2 * self.signal * self.noise + self.noise**2))[used].sum() / self.slices
        return float(np.sqrt(both) / max(float((self.count * (self.signal + self.noise))[used].sum()), 1e-300))

    def mean_error(self, voxels: int) -> float:
        """Of the difference of the means of two splits, grey values; from the noise at the coarsest frequencies."""
        coarse = float(self.noise[:3].mean() / self.rings.window.square().mean())
        return float(np.sqrt(2 * coarse / (voxels * self.slices)))


def _noise_ratio(frequencies: Float64Array, power: Float64Array) -> tuple[float, float]:
    """Of slices that are too small to have smooth places: of all there is in the upper half of the frequencies."""
    noisy = power[:, _between(frequencies, (0.25, 0.5))].sum(axis=1)
    return float(noisy.max() / max(noisy.min(), 1e-300)), 0.0


def _error_of_mean(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _at_extremes(values: NDArray[Any]) -> float:
    """Share of values that equal the largest or the smallest, beyond the one that there has to be."""
    at = int((values == values.max()).sum() + (values == values.min()).sum()) - 2
    return at / values.size


def _between(frequencies: Float64Array, band: tuple[float, float]) -> NDArray[np.bool_]:
    return np.asarray((frequencies > band[0]) & (frequencies <= band[1]))


def _is_flat(frequencies: Float64Array, cross: Float64Array, power: Float64Array) -> bool:
    """Whether what the splits share, over what they do not, is as strong at the finest frequencies as at coarser ones.

    In the sum and in the median over rings: layers of one thickness have most of their power in a few rings.
    """
    noise = np.maximum(power - cross, 1e-300)
    coarser, finest = (_between(frequencies, band) for band in (_COARSER, _FINEST))
    in_sum = cross[finest].sum() / noise[finest].sum() > _FLAT * cross[coarser].sum() / noise[coarser].sum()
    over_noise = cross / noise
    return bool(in_sum and np.median(over_noise[finest]) > _FLAT * np.median(over_noise[coarser]))


def _jumps(means: dict[int, Float64Array]) -> float:
    """Typical step of the mean between neighbouring slices that all splits share, grey values."""
    steps = [means[z + 1] - means[z] for z in means if z + 1 in means]
    products = [step[0] * step[1] for step in steps]
    return float(np.sqrt(max(float(np.median(products)), 0.0))) if products else 0.0
