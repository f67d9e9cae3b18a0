"""Line integrals through slices of voxels, for many slices at once, on all cores. Loads numba: import it where it runs.

The geometry is that of ``backprojection``.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from denoise.volumes.volume import Float32Array


def project_slices(slices: Float32Array, angles_rad: NDArray[np.float64]) -> Float32Array:
    """Line integrals through voxels in a parallel beam, with the rotation axis in the middle of the slices.

    Samples one voxel apart along each ray, bilinear in between; the rays are one column apart. Detail of a few voxels
    is weakened by the interpolation, by a third at the Nyquist frequency on average.

    Parameters
    ----------
    slices
        (rows, columns, columns), per voxel length. Nothing is outside of them.
    angles_rad
        (angles,), radians.

    Returns
    -------
    float32 array, (angles, rows, columns).
    """
    rows_last = np.ascontiguousarray(np.moveaxis(slices, 0, 2), np.float32)
    angles = np.ascontiguousarray(angles_rad, np.float64)
    return np.ascontiguousarray(np.swapaxes(_line_integrals(rows_last, angles), 1, 2))


@numba.njit(parallel=True, cache=True)
def _line_integrals(voxels: Float32Array, angles_rad: NDArray[np.float64]) -> Float32Array:
    """(Y, X, rows) -> (angles, columns, rows); each thread owns whole projections."""
    columns, rows = voxels.shape[1:]
    middle = 0.5 * (columns - 1)
    integrals = np.zeros((angles_rad.size, columns, rows), np.float32)
    for a in numba.prange(angles_rad.size):
        cosine, sine = math.cos(angles_rad[a]), math.sin(angles_rad[a])
        for t in range(columns):
            for s in range(columns):
                x = (t - middle) * cosine + (s - middle) * sine + middle
                y = (s - middle) * cosine - (t - middle) * sine + middle
                if x < 0 or y < 0 or x > columns - 1 or y > columns - 1:
                    continue
                i, j = min(int(y), columns - 2), min(int(x), columns - 2)
                v, u = np.float32(y - i), np.float32(x - j)
                for r in range(rows):
                    above = voxels[i, j, r] + u * (voxels[i, j + 1, r] - voxels[i, j, r])
                    below = voxels[i + 1, j, r] + u * (voxels[i + 1, j + 1, r] - voxels[i + 1, j, r])
                    integrals[a, t, r] += above + v * (below - above)
    return integrals
