"""Objects of known attenuation on a voxel grid, and their line integrals: what `cases.py` scans besides foam.

Every object fits the cylinder of radius 0.45 x size around the rotation axis; voxels are float32 (Z, Y, X),
attenuation per voxel length, scaled such that on average a quarter of the beam passes through the middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Float32Array = NDArray[np.float32]
RADIUS = 0.45
"""Radius of the field of view in which everything is scored, of the width."""
_TRANSMISSION = 0.25


@dataclass(frozen=True)
class VoxelPhantom:
    """Voxels that can be projected; the same two methods as ``denoise.projections.phantom.FoamPhantom`` has."""

    voxels: Float32Array

    @property
    def center(self) -> float:
        """Detector column of the rotation axis."""
        return 0.5 * (self.voxels.shape[2] - 1)

    def project(self, angles_rad: NDArray[np.float64], rows: slice = slice(None)) -> Float32Array:
        """Line integrals (angles, rows, columns): samples one voxel apart along each ray, bilinear in between."""
        columns_last = np.ascontiguousarray(np.moveaxis(self.voxels[rows], 0, 2))
        return np.ascontiguousarray(np.swapaxes(_line_integrals(columns_last, np.asarray(angles_rad, float)), 1, 2))


def inside(size: int) -> NDArray[np.bool_]:
    """Which pixels of a slice are scored, (size, size)."""
    offset = np.arange(size) - 0.5 * (size - 1)
    return np.asarray(np.hypot(offset[:, None], offset[None, :]) < RADIUS * size)


def anatomy(size: int, slices: int, seed: int) -> VoxelPhantom:
    """Soft tissue with gradients and a fine texture, fat, bright vessels, and a bone of thin trabeculae."""
    rng = np.random.default_rng(seed)
    shape = (slices, size, size)
    scale = size / 256
    _, y, x = np.meshgrid(*(np.arange(n) - 0.5 * (n - 1) for n in shape), indexing="ij", sparse=True)
    wobble = _noise(rng, shape, 24 * scale)
    distance = np.hypot(x / (0.43 * size), y / (0.36 * size)) + 0.04 * wobble
    body = _step(1 - distance, 1 / (0.4 * size))
    tissue = 1.0 + 0.12 * _noise(rng, shape, 20 * scale) + 0.05 * _noise(rng, shape, 1.6)
    fat = _step(_noise(rng, shape, 9 * scale) - 1.0, 0.15)
    tissue = tissue * (1 - 0.35 * fat)
    bone = _step(1 - np.hypot((x - 0.17 * size) / (0.15 * size), (y + 0.03 * size) / (0.19 * size)), 0.03)
    trabeculae = _step(0.35 - np.abs(_noise(rng, shape, 2.6)), 0.12)
    shell = bone * _step(np.hypot((x - 0.17 * size) / (0.15 * size), (y + 0.03 * size) / (0.19 * size)) - 0.86, 0.03)
    tissue = tissue * (1 - bone) + bone * (0.8 + 1.2 * np.maximum(trabeculae, shell))
    vessels = np.zeros(shape, np.float32)
    for _ in range(14):
        start = rng.uniform(-0.3, 0.3, 3) * (slices, size, size)
        _draw_tubes(vessels, _walk(rng, start, 40, 6 * scale), rng.uniform(1.0, 2.6))
    tissue = tissue * (1 - vessels) + 1.45 * vessels
    return _scaled(gaussian_filter(tissue * body, 0.5).astype(np.float32))


def fibres(size: int, slices: int, seed: int) -> VoxelPhantom:
    """Fibres and cracks one to two voxels wide in a matrix, as in a composite."""
    rng = np.random.default_rng(seed)
    shape = (slices, size, size)
    y, x = (np.arange(size) - 0.5 * (size - 1) for _ in range(2))
    matrix = _step(0.43 * size - np.hypot(y[:, None], x[None, :]), 1.0)
    volume = np.zeros(shape, np.float32)
    for _ in range(round(420 * slices / 48 * (size / 256) ** 2 / (slices / 48 * size / 256))):
        centre = rng.uniform(-0.5, 0.5, 3) * shape
        direction = rng.normal(size=3) * (0.4, 1, 1)
        half = 0.5 * rng.uniform(40, 160) * size / 256
        ends = np.stack([centre - half * direction / np.linalg.norm(direction), centre])
        ends = np.concatenate([ends, (centre + half * direction / np.linalg.norm(direction))[None]])
        _draw_tubes(volume, ends, rng.uniform(0.5, 1.0))
    cracks = np.zeros(shape, np.float32)
    for _ in range(12):
        _draw_crack(
            cracks,
            rng.uniform(-0.3, 0.3, 3) * shape,
            rng.normal(size=3) * (0.3, 1, 1),
            rng.uniform(25, 60) * size / 256,
            rng.uniform(0.5, 1.0),
            rng.uniform(-1, 1, 3),
        )
    return _scaled(((0.6 + 0.6 * volume) * (1 - cracks) * matrix).astype(np.float32))


def _noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Float32Array:
    """Gaussian noise of one correlation length (voxels), standard deviation 1."""
    field = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=3.0)
    return np.asarray(field / field.std(), dtype=np.float32)


def _step(values: NDArray[np.floating], width: float) -> Float32Array:
    """0 below zero, 1 above, with a ramp of this width."""
    return np.clip(values / width + 0.5, 0, 1).astype(np.float32)


def _walk(rng: np.random.Generator, start: NDArray[np.float64], steps: int, length: float) -> NDArray[np.float64]:
    direction = rng.normal(size=3)
    points = [start]
    for _ in range(steps):
        direction = 0.8 * direction / np.linalg.norm(direction) + 0.35 * rng.normal(size=3)
        points.append(points[-1] + length * direction / np.linalg.norm(direction))
    return np.array(points)


def _scaled(voxels: Float32Array) -> VoxelPhantom:
    unscaled = VoxelPhantom(voxels)
    size = voxels.shape[2]
    middle = unscaled.project(np.linspace(0, np.pi, 16, endpoint=False))[:, :, int(0.4 * size) : int(0.6 * size)]
    return VoxelPhantom(np.asarray(voxels * np.float32(-math.log(_TRANSMISSION) / middle.mean()), np.float32))


def _draw_tubes(volume: Float32Array, points: NDArray[np.float64], radius: float) -> None:
    """Set voxels along a broken line (Z, Y, X from the centre) to 1, with a rim of one voxel that fades."""
    centre = 0.5 * (np.array(volume.shape) - 1)
    for begin, end in zip(points[:-1] + centre, points[1:] + centre, strict=True):
        _draw_segment(volume, begin, end, radius)


@numba.njit(cache=True)
def _draw_segment(volume: Float32Array, begin: NDArray[np.float64], end: NDArray[np.float64], radius: float) -> None:
    low = np.empty(3, np.int64)
    high = np.empty(3, np.int64)
    for i in range(3):
        low[i] = max(math.floor(min(begin[i], end[i]) - radius - 1), 0)
        high[i] = min(math.ceil(max(begin[i], end[i]) + radius + 1) + 1, volume.shape[i])
    along = end - begin
    squared = max((along * along).sum(), 1e-12)
    for z in range(low[0], high[0]):
        for y in range(low[1], high[1]):
            for x in range(low[2], high[2]):
                dz, dy, dx = z - begin[0], y - begin[1], x - begin[2]
                t = min(max((dz * along[0] + dy * along[1] + dx * along[2]) / squared, 0.0), 1.0)
                d = math.sqrt((dz - t * along[0]) ** 2 + (dy - t * along[1]) ** 2 + (dx - t * along[2]) ** 2)
                value = np.float32(min(max(radius + 0.5 - d, 0.0), 1.0))
                if value > volume[z, y, x]:
                    volume[z, y, x] = value


@numba.njit(cache=True)
def _draw_crack(
    volume: Float32Array,
    centre: NDArray[np.float64],
    normal: NDArray[np.float64],
    extent: float,
    half_width: float,
    wave: NDArray[np.float64],
) -> None:
    """A slightly wavy disc of 2 x half_width voxels."""
    normal = normal / math.sqrt((normal * normal).sum())
    for z in range(volume.shape[0]):
        for y in range(volume.shape[1]):
            for x in range(volume.shape[2]):
                dz = z - 0.5 * (volume.shape[0] - 1) - centre[0]
                dy = y - 0.5 * (volume.shape[1] - 1) - centre[1]
                dx = x - 0.5 * (volume.shape[2] - 1) - centre[2]
                r = math.sqrt(dz * dz + dy * dy + dx * dx)
                if r > extent:
                    continue
                bend = 2.0 * math.sin(0.15 * (dz * wave[0] + dy * wave[1] + dx * wave[2]))
                d = abs(dz * normal[0] + dy * normal[1] + dx * normal[2] + bend)
                value = np.float32(min(max(half_width + 0.5 - d, 0.0), 1.0))
                if value > volume[z, y, x]:
                    volume[z, y, x] = value


@numba.njit(parallel=True, cache=True)
def _line_integrals(voxels: Float32Array, angles: NDArray[np.float64]) -> Float32Array:
    """(Y, X, rows) -> (angles, columns, rows), in the geometry of ``denoise.projections.backprojection``."""
    height, width, rows = voxels.shape
    middle = 0.5 * (width - 1)
    result = np.zeros((angles.size, width, rows), np.float32)
    for a in numba.prange(angles.size):
        cosine, sine = math.cos(angles[a]), math.sin(angles[a])
        for t in range(width):
            for s in range(width):
                across, along = t - middle, s - middle
                x = across * cosine + along * sine + middle
                y = -across * sine + along * cosine + middle
                if x < 0 or y < 0 or x > width - 1 or y > height - 1:
                    continue
                i, j = min(int(y), height - 2), min(int(x), width - 2)
                v, u = np.float32(y - i), np.float32(x - j)
                w00, w01 = (1 - v) * (1 - u), (1 - v) * u
                w10, w11 = v * (1 - u), v * u
                for r in range(rows):
                    result[a, t, r] += (
                        w00 * voxels[i, j, r]
                        + w01 * voxels[i, j + 1, r]
                        + w10 * voxels[i + 1, j, r]
                        + w11 * voxels[i + 1, j + 1, r]
                    )
    return result
