"""A small object with known truth, its noisy splits, and denoisers that are right or wrong in known ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from denoise.tiles import Region
from denoise.trust.evidence import Evidence, Run, collect
from denoise.volumes import ArrayVolume, Volume

Float32Array = NDArray[np.float32]
SHAPE = (16, 96, 96)
#: Standard deviation of the noise of one split; the object's is 1.
NOISE = 0.5

Filter = Callable[[Float32Array], Float32Array]


def white(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


def power(shape: tuple[int, ...] = SHAPE) -> NDArray[np.float64]:
    """Power spectrum of the object in the plane, half-plane layout: falls with the fourth power of frequency."""
    radius = np.hypot(np.fft.fftfreq(shape[1])[:, None], np.fft.rfftfreq(shape[2])[None, :])
    return 1 / (1 + (radius / 0.04) ** 4)


def in_plane(weight: NDArray[np.float64]) -> Filter:
    """A linear filter with these weights of the half-plane transform."""

    def apply(stack: Float32Array) -> Float32Array:
        return np.fft.irfft2(np.fft.rfft2(stack) * weight, stack.shape[1:]).astype(np.float32)

    return apply


def slices_of(change: Filter) -> Run:
    """A filter of slices as a model."""

    def run(volume: Volume, z_range: range) -> Float32Array:
        return change(volume.read(Region.of_slices(z_range.start, z_range.stop, volume.shape)))

    return run


@dataclass(frozen=True)
class Scan:
    """Truth and splits of noise that is alike in all places."""

    truth: Float32Array
    splits: tuple[Float32Array, ...]
    noise: float

    @classmethod
    def of(cls, seed: int, *, count: int = 2, noise: float = NOISE, shape: tuple[int, int, int] = SHAPE) -> Scan:
        spectrum = np.sqrt(power(shape))
        truth = np.fft.irfft2(np.fft.rfft2(white(seed, shape)) * spectrum, shape[1:])
        truth = truth / truth.std()
        splits = tuple((truth + noise * white(1000 * (k + 1) + seed, shape)).astype(np.float32) for k in range(count))
        return cls(truth.astype(np.float32), splits, noise)

    @property
    def volumes(self) -> list[Volume]:
        return [ArrayVolume(split, name=f"split {k}") for k, split in enumerate(self.splits)]

    def best_filter(self, noise: float | None = None) -> Filter:
        """The linear filter with the least error (Wiener), which for this object no denoiser can beat."""
        signal = power(self.truth.shape)
        mean = np.concatenate([signal, signal[:, -2:0:-1]], axis=1).mean()
        return in_plane(signal / (signal + mean * (self.noise if noise is None else noise) ** 2))

    def evidence(self, change: Filter, *, delivers: str = "full", strategy: str = "X:1") -> Evidence:
        region = Region((0, 0, 0), self.truth.shape)
        return collect(self.volumes, region, slices_of(change), strategy=strategy, delivers=delivers)


@pytest.fixture(scope="session")
def scan() -> Scan:
    return Scan.of(7)


@pytest.fixture(scope="session")
def scans() -> Callable[..., Scan]:
    """For other seeds, numbers of splits and noise."""
    return Scan.of


def specks(height: float, radius: float = 2.0, count: int = 6, shape: tuple[int, ...] = SHAPE) -> Float32Array:
    """Gaussian specks at fixed places."""
    stack = np.zeros(shape)
    rng = np.random.default_rng(3)
    for _ in range(count):
        z, y, x = (int(rng.integers(n // 5, n - n // 5)) for n in shape)
        stack[z, y, x] = 1
    stack = gaussian_filter(stack, radius)
    return (height * stack / stack.max()).astype(np.float32)


@pytest.fixture(scope="session")
def invented() -> Callable[..., Float32Array]:
    return specks
