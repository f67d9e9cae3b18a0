"""Line integrals through spheres, on all cores. Loads numba: import it where it runs.

The geometry is that of ``backprojection``.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from denoise.volumes.volume import Float32Array


@numba.njit(parallel=True, cache=True)
def add_spheres(
    integrals: Float32Array,
    angles_rad: NDArray[np.float64],
    rows: NDArray[np.float64],
    spheres: NDArray[np.float64],
) -> None:
    """Add chord length times attenuation for every sphere, averaged over 3 x 3 rays in each pixel, in place.

    Parameters
    ----------
    integrals
        (angles, rows, columns); each thread owns whole projections.
    rows
        Places of the rows along z, in pixels.
    spheres
        (spheres, 5): x, y from the rotation axis, z, radius (pixels), attenuation (per pixel).
    """
    columns = integrals.shape[2]
    middle = 0.5 * (columns - 1)
    for a in numba.prange(integrals.shape[0]):
        cosine, sine = math.cos(angles_rad[a]), math.sin(angles_rad[a])
        for s in range(spheres.shape[0]):
            x, y, z, radius, attenuation = spheres[s]
            across = middle + x * cosine - y * sine
            first = max(math.ceil(across - radius - 0.5), 0)
            last = min(math.floor(across + radius + 0.5), columns - 1)
            for r in range(rows.shape[0]):
                if abs(rows[r] - z) >= radius + 0.5:
                    continue
                for column in range(first, last + 1):
                    total = 0.0
                    for j in range(-1, 2):
                        rest = radius * radius - (rows[r] + j / 3.0 - z) ** 2
                        for i in range(-1, 2):
                            squared = rest - (column + i / 3.0 - across) ** 2
                            if squared > 0.0:
                                total += math.sqrt(squared)
                    integrals[a, r, column] += np.float32(2.0 / 9.0 * attenuation * total)
