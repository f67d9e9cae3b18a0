"""Traces of the tiles that a volume was denoised in: is the result rougher across their borders than beside them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from denoise.tiles import TileGrid
from denoise.volumes.volume import Float32Array

Float64Array = NDArray[np.float64]

#: Steps on both sides of a border that it is compared with.
_BESIDE = (2, 3, 4, 5)


@dataclass(frozen=True)
class Seams:
    """Steps of the grey value across tile borders.

    Attributes
    ----------
    ratio
        Mean absolute step across borders over that beside them; 1: no trace.
    deviations
        By how many standard deviations it differs from what places without a border show.
    borders
        How many lines of the image are borders.
    """

    ratio: float
    deviations: float
    borders: int


def tile_borders(grid: TileGrid) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows, and columns, where a tile starts or ends: the step from the voxel before to this one crosses a border."""
    found = []
    for axis in (1, 2):
        size, predicted = grid.shape_zyx[axis], grid.window.predict_zyx[axis]
        starts = np.array(grid.axes[axis].starts)
        edges = np.unique(np.concatenate([starts, starts + predicted]))
        found.append(edges[(edges > 0) & (edges < size)])
    return found[0], found[1]


def find_seams(
    image: Float32Array, borders: tuple[NDArray[np.int64], NDArray[np.int64]], mask: NDArray[np.bool_]
) -> Seams | None:
    """Compare steps across borders with those beside them; None where there is no border, or no room beside it.

    Parameters
    ----------
    image
        Delivered slices, (Z, Y, X).
    borders
        Rows and columns, from ``tile_borders``, counted from the first of ``image``.
    mask
        Field of view, (Y, X).
    """
    at_borders: list[float] = []
    elsewhere: list[float] = []
    for axis, lines in zip((1, 2), borders, strict=True):
        roughness = _relative_steps(image, axis, mask)
        near = np.zeros(len(roughness), bool)
        for line in lines:
            near[max(line - max(_BESIDE), 0) : line + max(_BESIDE) + 1] = True
        at_borders += [float(v) for v in roughness[lines[lines < len(roughness)]] if np.isfinite(v)]
        elsewhere += [float(v) for v in roughness[~near] if np.isfinite(v)]
    if not at_borders or len(elsewhere) < 2 * len(_BESIDE):
        return None
    spread = float(np.std(elsewhere))
    excess = float(np.mean(at_borders) - np.mean(elsewhere))
    return Seams(
        ratio=float(np.exp(excess)),
        deviations=excess / max(spread / np.sqrt(len(at_borders)), 1e-12),
        borders=len(at_borders),
    )


def _relative_steps(image: Float32Array, axis: int, mask: NDArray[np.bool_]) -> Float64Array:
    """Log of the mean step into each line over that of lines beside it, (lines,); NaN where voxels are few."""
    lines_first = np.moveaxis(image.astype(np.float64), axis, 0)
    seen = np.moveaxis(np.broadcast_to(mask, image.shape), axis, 0)
    both = seen[1:] & seen[:-1]
    steps = np.where(both, np.abs(np.diff(lines_first, axis=0)), 0).sum(axis=(1, 2))
    count = both.sum(axis=(1, 2))
    few = count < 0.25 * count.max()
    mean = np.concatenate([[np.nan], np.where(few, np.nan, steps / np.maximum(count, 1))])
    beside = np.full((2 * len(_BESIDE), len(mean)), np.nan)
    for row, offset in enumerate((*_BESIDE, *(-o for o in _BESIDE))):
        low, high = max(0, -offset), min(len(mean), len(mean) - offset)
        beside[row, low:high] = mean[low + offset : high + offset]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(mean / beside.mean(axis=0)))


def shifted(
    borders: Sequence[NDArray[np.int64]], first_row: int, first_column: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Borders counted from the first row and column of a region."""
    rows, columns = borders
    return rows[rows > first_row] - first_row, columns[columns > first_column] - first_column
