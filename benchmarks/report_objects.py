"""Two more kinds of object for `report_calibration.py`: grains of even grey values, and layers with pores."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from phantoms import Float32Array, VoxelPhantom, _noise, _scaled, _step


def grains(size: int, slices: int, seed: int) -> VoxelPhantom:
    """Packed polyhedral grains of several densities with thin dark boundaries and small bright inclusions."""
    rng = np.random.default_rng(seed)
    shape = (slices, size, size)
    count = round(260 * slices / 48 * (size / 128) ** 2)
    centres = rng.uniform(0, 1, (count, 3)) * shape
    tree = cKDTree(centres)
    density = rng.choice([0.8, 1.0, 1.15, 1.5], size=count, p=[0.3, 0.4, 0.2, 0.1])
    volume = np.empty(shape, np.float32)
    plane = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), axis=-1).reshape(-1, 2)
    for z in range(slices):
        points = np.concatenate([np.full((len(plane), 1), z), plane], axis=1)
        distance, nearest = tree.query(points, k=2)
        boundary = _step(distance[:, 1] - distance[:, 0] - 0.9, 1.0)
        volume[z] = (density[nearest[:, 0]] * (0.55 + 0.45 * boundary)).reshape(size, size)
    specks = _step(_noise(rng, shape, 1.2) - 3.0, 0.3)
    return _scaled(gaussian_filter((volume * (1 - specks) + 2.2 * specks) * _cylinder(size), 0.5).astype(np.float32))


def layers(size: int, slices: int, seed: int) -> VoxelPhantom:
    """Straight and wavy layers, as in a battery or a coating, one of them porous, one one to two voxels thin."""
    rng = np.random.default_rng(seed)
    shape = (slices, size, size)
    z, y, x = np.meshgrid(*(np.arange(n) - 0.5 * (n - 1) for n in shape), indexing="ij", sparse=True)
    wave = 0.02 * size * np.sin(6.3 * x / size + 0.03 * z) + 0.01 * size * _noise(rng, shape, 14)
    height = (y + 0.12 * z + wave) / size
    volume = np.full(shape, 0.15, np.float32)
    pores = _step(_noise(rng, shape, 1.8) - 0.5, 0.25)
    for low, high, density, porous in (
        (-0.42, -0.28, 0.8, False), (-0.26, -0.08, 1.3, True), (-0.06, -0.052, 2.0, False), (-0.03, 0.14, 0.95, True),
        (0.16, 0.168, 0.9, False), (0.19, 0.2, 1.6, False), (0.24, 0.42, 0.6, False),
    ):  # fmt: skip
        inside = _step(height - low, 1 / size) * _step(high - height, 1 / size)
        volume = volume * (1 - inside) + inside * density * (1 - 0.85 * pores * porous)
    return _scaled(gaussian_filter(volume * _cylinder(size), 0.5).astype(np.float32))


def _cylinder(size: int) -> Float32Array:
    offset = np.arange(size) - 0.5 * (size - 1)
    return _step(0.43 * size - np.hypot(offset[:, None], offset[None, :]), 1.0)
