"""Simulated scans of a foam: something to try the whole chain on, with a known truth.

In: a size, a number of photons, a seed. Out: exact line integrals, or a DXchange file of Poisson counts like those of
a detector. The foam is that of Pelt, Hendriksen, Batenburg 2022, J. Synchrotron Rad. 29:254, doi
10.1107/S1600577521011322 in kind: a cylinder full of spherical pores of many sizes that do not overlap; a few of
them are filled with a denser material here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denoise.errors import ScanError
from denoise.projections.scan import write_scan
from denoise.volumes.volume import Float32Array

_CYLINDER_RADIUS = 0.45  # of the width: the object stays inside the field of view
_LARGEST_PORE, _SMALLEST_PORE = 0.06, 0.008  # of the width
_TRANSMISSION = 0.25  # on average, through the middle
_GRAINS, _GRAIN_DENSITY = 0.06, 2.0  # share of the spheres; attenuation relative to the walls


@dataclass(frozen=True)
class FoamPhantom:
    """A cylinder along z around the rotation axis, less its pores, plus grains.

    Attributes
    ----------
    size, slices
        Detector columns (also the width and height of a slice) and detector rows.
    spheres
        (pores and grains, 5), float64: x, y, z of the centre in pixels, x and y from the rotation axis and z from the
        centre of row 0; radius in pixels; attenuation in it minus that of the walls, per pixel.
    attenuation
        Of the walls, per pixel.
    """

    size: int
    slices: int
    spheres: NDArray[np.float64]
    attenuation: float

    @classmethod
    def create(cls, *, size: int = 256, slices: int = 48, seed: int = 0, n_pores: int = 1500) -> FoamPhantom:
        """Throw spheres into the cylinder, largest first, where they touch no other.

        Spheres for which no place is left after 200 throws are left out. The attenuation is set such that a quarter of
        the beam gets through the middle.
        """
        rng = np.random.default_rng(seed)
        cylinder = _CYLINDER_RADIUS * size
        smallest, largest = _SMALLEST_PORE * size, _LARGEST_PORE * size
        # Equal numbers in equal steps of 1/radius: few large pores, many small ones.
        radii = np.sort(1 / rng.uniform(1 / largest, 1 / smallest, n_pores))[::-1]
        placed = np.empty((n_pores, 4))
        count = 0
        for radius in radii:
            throws = rng.uniform(-1, 1, (200, 3)) * (cylinder, cylinder, 0.5 * slices + radius)
            throws[:, 2] += 0.5 * (slices - 1)
            throws = throws[np.hypot(throws[:, 0], throws[:, 1]) + radius < 0.98 * cylinder]
            others = placed[:count, :3]
            squared = (throws**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2 * throws @ others.T
            free = (squared > (placed[:count, 3] + radius) ** 2).all(axis=1)
            if free.any():
                placed[count] = (*throws[free.argmax()], radius)
                count += 1
        spheres = placed[:count]
        contrast = np.where(rng.uniform(size=count) < _GRAINS, _GRAIN_DENSITY - 1.0, -1.0)
        unscaled = cls(size, slices, np.column_stack([spheres, contrast]), 1.0)
        middle = unscaled.project(np.linspace(0, np.pi, 16, endpoint=False))[
            :, :, int(0.4 * size) : math.ceil(0.6 * size)
        ]
        attenuation = -math.log(_TRANSMISSION) / float(middle.mean())
        unscaled.spheres[:, 4] *= attenuation
        return cls(size, slices, unscaled.spheres, attenuation)

    @property
    def center(self) -> float:
        """Detector column of the rotation axis."""
        return 0.5 * (self.size - 1)

    def inside(self) -> NDArray[np.bool_]:
        """Which pixels of a slice lie inside the cylinder, (size, size): where errors are to be measured."""
        offset = np.arange(self.size) - self.center
        return np.asarray(np.hypot(offset[:, None], offset[None, :]) < _CYLINDER_RADIUS * self.size)

    def project(self, angles_rad: NDArray[np.float64], rows: slice = slice(None)) -> Float32Array:
        """Exact line integrals in a parallel beam, averaged over 3 x 3 rays in each detector pixel.

        Parameters
        ----------
        angles_rad
            (angles,), radians.
        rows
            Which detector rows.

        Returns
        -------
        float32 array, (angles, rows, size).
        """
        from denoise.projections.raytracing import add_spheres

        numbers = np.arange(self.slices)[rows]
        assert numbers.size > 0, f"no rows in {rows}"
        rays = (np.arange(3 * self.size) - 1) / 3 - self.center  # three in each column
        radius = _CYLINDER_RADIUS * self.size
        chords = 2 * np.sqrt(np.maximum(radius**2 - rays**2, 0)).reshape(self.size, 3).mean(axis=1)
        shape = (len(angles_rad), numbers.size, self.size)
        integrals = np.empty(shape, dtype=np.float32)
        integrals[:] = self.attenuation * chords
        add_spheres(integrals, np.ascontiguousarray(angles_rad, np.float64), numbers.astype(np.float64), self.spheres)
        return integrals


def simulate_foam_scan(
    path: str | Path, *, size: int = 256, slices: int = 48, angles: int = 512, photons: float = 200.0, seed: int = 0
) -> FoamPhantom:
    """Write a DXchange scan of a foam: Poisson counts (uint16) at equal steps over 0 to 180 degrees, 180 excluded.

    Two flats and two darks. The darks are 0. The flats differ as two exposures do, and their mean is noise-free, as
    that of many would nearly be.

    Parameters
    ----------
    photons
        Mean count of a pixel without the sample. The default gives a full reconstruction of 256 x 256 x 48 voxels
        from 512 angles a PSNR of 15.9 dB inside the cylinder against that of the noise-free projections
        (data range = that of the latter).

    Returns
    -------
    The phantom; ``reconstruct_rows(phantom.project(angles_rad), angles_rad, phantom.center)`` is the noise-free
    reconstruction to compare with.

    Raises
    ------
    ScanError
        ``photons`` is not between 1 and 60000, what 16 bits can count.
    OutputError
        The disk is full, or the folder cannot be written.
    """
    if not 1 <= photons <= 60000:
        raise ScanError(f"photons is {photons:g}; expected 1 to 60000 photons per pixel, which 16 bits can count")
    phantom = FoamPhantom.create(size=size, slices=slices, seed=seed)
    theta_deg = np.arange(angles) * (180.0 / angles)
    rng = np.random.default_rng((seed, 1))
    counts = np.empty((angles, slices, size), dtype=np.uint16)
    step = 64
    for start in range(0, angles, step):
        integrals = phantom.project(np.deg2rad(theta_deg[start : start + step]))
        counts[start : start + step] = rng.poisson(photons * np.exp(-integrals.astype(np.float64)))
    noise = np.sqrt(photons / 2) * rng.standard_normal((slices, size))
    white = (photons + np.stack([noise, -noise])).astype(np.float32)
    write_scan(path, counts, white, np.zeros_like(white), theta_deg, sample_name="foam")
    return phantom
