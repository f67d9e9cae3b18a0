"""The two numerical steps of filtered back-projection, for many rows at once, on all cores.

In: line integrals (angles, rows, columns). Out: slices (rows, columns, columns). Loads numba: import it where it runs.

Geometry, the same as algotom's: voxel (y, x) of an N x N slice, seen at angle a, falls on detector column
``center + (x - (N-1)/2) cos a - (y - (N-1)/2) sin a``. algotom's own CPU back-projector is not used because its
threads add into one image without a lock: with two threads the image was wrong by up to 0.2 of its standard deviation,
differently in each run (algotom 1.7.0; with one thread it agrees with this one).
"""

from __future__ import annotations

import math

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from denoise.projections.footprint import FILTERED_TOGETHER
from denoise.volumes.volume import Float32Array


def ramp_response(length: int) -> Float32Array:
    """Ramp filter for real FFTs of an even ``length``, as the transform of its band-limited kernel.

    Kak and Slaney 1988, Principles of Computerized Tomographic Imaging, eq. 3.61: 1/4 at 0, -1/(pi n)^2 at odd n, 0 at
    even n. Sampling |frequency| instead would lower every grey value by a constant.
    """
    n = np.arange(length // 2 + 1)
    n = np.concatenate([n, n[-2:0:-1]])
    kernel = np.zeros(length)
    kernel[0] = 0.25
    kernel[n % 2 == 1] = -1.0 / (np.pi * n[n % 2 == 1]) ** 2
    return np.asarray(scipy.fft.rfft(kernel).real, dtype=np.float32)


def filter_projections(sinograms: Float32Array, weights: NDArray[np.float64]) -> Float32Array:
    """Ramp-filter projections and multiply each by its angular weight.

    Projections are continued by their edge pixels to twice their width before the transform, so that the circular
    convolution does not fold one side onto the other.

    Parameters
    ----------
    sinograms
        (angles, rows, columns).
    weights
        (angles,), radians.

    Returns
    -------
    float32 array, (angles, columns, rows): rows last, so that back-projection of many rows streams through memory.
    """
    angles, rows, columns = sinograms.shape
    length = scipy.fft.next_fast_len(2 * columns, real=True)
    length += length % 2
    before = (length - columns) // 2
    response = ramp_response(length)
    filtered = np.empty((angles, columns, rows), dtype=np.float32)
    step = max(1, FILTERED_TOGETHER // (rows * length))
    for start in range(0, angles, step):
        part = sinograms[start : start + step]
        padded = np.pad(part, ((0, 0), (0, 0), (before, length - columns - before)), mode="edge")
        spectrum = scipy.fft.rfft(padded, axis=-1, workers=-1)
        spectrum *= response
        smooth = scipy.fft.irfft(spectrum, n=length, axis=-1, workers=-1)[..., before : before + columns]
        smooth *= weights[start : start + step, None, None].astype(np.float32)
        filtered[start : start + step] = np.swapaxes(smooth, 1, 2)
    return filtered


@numba.njit(parallel=True, cache=True)
def back_project(filtered: Float32Array, angles_rad: NDArray[np.float64], center: float) -> Float32Array:
    """Add up filtered projections along their rays, with linear interpolation between detector columns.

    Each thread owns whole image lines, so that no two threads write to the same voxel and the sum is taken in the
    same order whatever their number: results are the same bit for bit.

    Parameters
    ----------
    filtered
        (angles, columns, rows), C-contiguous.
    angles_rad
        (angles,).
    center
        Detector column of the rotation axis, counted from 0.

    Returns
    -------
    float32 array, (rows, columns, columns). Rays that miss the detector add nothing; voxels outside the circle that
    touches the image's sides are 0.
    """
    angles, columns, rows = filtered.shape
    middle = 0.5 * (columns - 1)
    slices = np.zeros((rows, columns, columns), dtype=np.float32)
    cosines = np.cos(angles_rad)
    sines = np.sin(angles_rad)
    for y in numba.prange(columns):
        y_offset = y - middle
        half_line = math.sqrt(max((0.5 * columns) ** 2 - y_offset**2, 0.0))
        first = max(math.ceil(middle - half_line), 0)
        last = min(math.floor(middle + half_line), columns - 1)
        line = np.zeros((columns, rows), dtype=np.float32)
        for a in range(angles):
            origin = center - middle * cosines[a] - y_offset * sines[a]
            for x in range(first, last + 1):
                position = origin + x * cosines[a]
                if position < 0.0 or position > columns - 1:
                    continue
                left = min(int(position), columns - 2)
                share = np.float32(position - left)
                for row in range(rows):
                    value = filtered[a, left, row]
                    line[x, row] += value + share * (filtered[a, left + 1, row] - value)
        for row in range(rows):
            for x in range(first, last + 1):
                slices[row, y, x] = line[x, row]
    return slices
