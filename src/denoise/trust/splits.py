"""What can be measured on splits alone: what they share (signal), and what differs (noise).

Slices in neighbouring pairs, spread over the volume, are read one after the other and summed up; products of different
splits hold no noise on average, squares less these products hold nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from denoise.resolution import Rings
from denoise.tiles import Region
from denoise.trust.evidence import field_of_view
from denoise.trust.layout import RingProfiles, rim, shift_between, spoke_scatter
from denoise.volumes import SplitSet, Volume

Float64Array = NDArray[np.float64]

#: Of ``measure``, for each pixel of a slice of each split; measured 83 to 148 on slices of 2048^2 to 512^2.
_BYTES_PER_PIXEL = 150
_MOST_SLICES = 24
_MOST_VOXELS = 24_000_000
"""Of one split: 6 slices of 2048 x 2048."""
_FINE = (0.375, 0.5)
_COARSER, _FINEST = (0.3, 0.4), (0.44, 0.5)
#: Power falls with the third power of frequency or faster, detail by more than half from one to the other; shared noise
#: does not.
_FLAT = 0.6
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
    shift: float
    shift_error: float
    contrast_ratio: float
    offset: float
    scale_error: float
    offset_error: float
    noise_ratio: float
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
    return _BYTES_PER_PIXEL * len(splits) * splits.shape[1] * splits.shape[2]


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
    sums = _Sums(len(volumes), shape[1], shape[2])
    for z in chosen:
        region = Region.of_slices(z, z + 1, shape)
        sums.add(z, np.stack([volume.read(region)[0] for volume in volumes]))
    return sums.facts()


class _Sums:
    """Collects slices (K, Y, X), one after the other."""

    def __init__(self, count: int, height: int, width: int) -> None:
        self.count = count
        self.mask: NDArray[np.bool_] | None = None
        self.looked_at = self.bad = self.constant = 0
        self.clipped: list[float] = []
        self.rings = Rings.of(height, width)
        self.power: list[Float64Array] = []  # (K, rings) a slice
        self.cross: list[Float64Array] = []  # (rings,): mean over pairs
        self.means: dict[int, Float64Array] = {}  # (K,)
        self.cross_spectrum = np.zeros((count - 1, height, width // 2 + 1), np.complex128)
        self.shifts: list[float] = []
        self.mode_power = np.zeros((height, width // 2 + 1))
        self.profiles = RingProfiles(height, width)
        self.rim_covariance: list[float] = []

    def add(self, z: int, images: NDArray[np.float32]) -> None:
        """Another slice."""
        self.looked_at += 1
        finite = np.isfinite(images)
        self.bad += int(finite.size - np.count_nonzero(finite))
        if not finite.all():
            images = np.where(finite, images, 0)
        if any(image.min() == image.max() for image in images):
            self.constant += 1
            return
        if self.mask is None:
            self.mask = field_of_view([image[None] for image in images])
        inside = images[:, self.mask].astype(np.float64)
        self.means[z] = inside.mean(axis=1)
        self.clipped.append(max(_at_extremes(values) for values in inside))
        centred = np.where(self.mask, images - self.means[z][:, None, None], 0).astype(np.float64)
        spectra = [self.rings.transform(torch.from_numpy(image)) for image in centred]
        self.power.append(np.array([self.rings.sums(f, f).numpy() for f in spectra]))
        total = sum(spectra[1:], spectra[0])
        pairs = self.count * (self.count - 1)
        self.cross.append((self.rings.sums(total, total).numpy() - self.power[-1].sum(axis=0)) / pairs)
        plain = [f.numpy().reshape(self.mode_power.shape) for f in spectra]
        cross = np.array([plain[0] * f.conj() for f in plain[1:]])
        self.cross_spectrum += cross
        self.shifts.append(max(np.hypot(*shift_between(c, centred.shape[2])) for c in cross))
        self.mode_power += np.square(np.abs(plain[0]))
        self.profiles.add(centred[0], centred[1])
        edge = rim(self.mask)
        self.rim_covariance.append(float(np.cov(centred[0][edge], centred[1][edge])[0, 1]))

    def facts(self) -> SplitFacts | None:
        """What all slices say together; None where all are constant."""
        if not self.power or self.mask is None:
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
        noisy = power[:, _between(frequencies, (0.25, 0.5))].sum(axis=1)
        shift = max(np.hypot(*shift_between(c, self.mask.shape[1])) for c in self.cross_spectrum)
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
            shift=float(shift),
            shift_error=float(np.std(self.shifts) / np.sqrt(slices)),
            contrast_ratio=float(np.sqrt(strong.max() / strong.min())),
            offset=float(np.ptp(np.mean(list(self.means.values()), axis=0)) / known),
            scale_error=float(np.std(ratios) / np.sqrt(slices)),
            offset_error=float(np.std(offsets) / np.sqrt(slices)),
            noise_ratio=float(noisy.max() / max(noisy.min(), 1e-300)),
            spokes=spoke_scatter(self.mode_power / slices, slices),
            rings=float(rings / np.sqrt(max(noise / self.count, 1e-300))),
            rings_certainty=certainty,
            slice_jumps=float(_jumps(self.means) / known),
            signal_to_noise=float(cross.sum() / tapered / max(noise, 1e-300)),
            clipped=float(np.max(self.clipped)),
            rim_contrast=float(np.sqrt(max(float(np.mean(self.rim_covariance)), 0.0)) / known),
            frequencies=tuple(float(f) for f in frequencies),
            correlations=tuple(float(c) for c in correlation),
        )


def _at_extremes(values: Float64Array) -> float:
    """Share of values that equal the largest or the smallest, beyond the one that there has to be."""
    at = int((values == values.max()).sum() + (values == values.min()).sum()) - 2
    return at / values.size


def _between(frequencies: Float64Array, band: tuple[float, float]) -> NDArray[np.bool_]:
    return np.asarray((frequencies > band[0]) & (frequencies <= band[1]))


def _is_flat(frequencies: Float64Array, cross: Float64Array, power: Float64Array) -> bool:
    coarser, finest = (
        float(cross[band].sum() / max(power[band].sum(), 1e-300))
        for band in (_between(frequencies, _COARSER), _between(frequencies, _FINEST))
    )
    return finest > _FLAT * coarser


def _jumps(means: dict[int, Float64Array]) -> float:
    """Typical step of the mean between neighbouring slices that all splits share, grey values."""
    steps = [means[z + 1] - means[z] for z in means if z + 1 in means]
    products = [step[0] * step[1] for step in steps]
    return float(np.sqrt(max(float(np.median(products)), 0.0))) if products else 0.0
