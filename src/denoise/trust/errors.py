"""Errors of held-out slices against the unknown truth: unbiased, voxel by voxel, and summed over blocks.

Single voxels of these maps are mostly noise and often negative; sums over many are the error. The blocks are what the
intervals are drawn from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from denoise.trust.evidence import Evidence

Float64Array = NDArray[np.float64]

#: Edge of a block in the plane, voxels: longer than noise and the errors of a network are correlated. Small images have
#: smaller ones, or there would be too few to draw from.
BLOCK, _SMALLEST_BLOCK, _BLOCKS_ACROSS = 32, 8, 6
#: Neighbouring slices of one block, which share their errors (a network sees five or more slices at once).
_SLICES_PER_BLOCK = 4


@dataclass(frozen=True)
class ErrorSums:
    """Sums over blocks, float64 (blocks,), and how many voxels count in each.

    Attributes
    ----------
    delivered
        Squared error of the delivered image.
    view
        Squared error of the output of one view, mean over the views.
    noisy
        Squared error of the full reconstruction.
    shift
        Delivered image minus the full reconstruction, not squared.
    """

    voxels: Float64Array
    delivered: Float64Array
    view: Float64Array
    noisy: Float64Array
    shift: Float64Array

    def of(self, blocks: NDArray[np.int64]) -> ErrorSums:
        """The same of some blocks, drawn with repetition."""
        return ErrorSums(*(getattr(self, name)[blocks] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class ErrorMaps:
    """Unbiased squared errors, float64 (Z, Y, X)."""

    delivered: Float64Array
    view: Float64Array
    noisy: Float64Array


def error_maps(part: Evidence) -> ErrorMaps:
    """Squared errors against the unknown truth of some slices.

    With y = truth + n the full reconstruction, d the probe and J the derivative of the network, that of f(y) is
    (f(y) - y)^2 - n^2 + 2 d (J d): Stein's unbiased risk estimate (Stein 1981, Ann. Stat. 9:1135, doi
    10.1214/aos/1176345632) with the divergence from one random direction (Ramani, Blu & Unser 2008, IEEE TIP 17:1540,
    doi 10.1109/TIP.2008.2001404). We depart from both in taking the direction, and n^2, from the splits: no model of
    the noise is needed, it may be coloured and differ from place to place, but it must be nearly Gaussian, as sums over
    hundreds of projections are. Of the output of a view it is (f - t)^2 less the noise of its target t (Marcos-Morales
    et al. 2023, arXiv 2210.05553), of the mean of outputs the mean of that less their scatter (Krogh & Vedelsby 1995,
    NIPS 7:231, eq. 6); these two ask only that the noise of the splits is independent.
    """
    count = len(part.splits)
    full = sum(part.splits) / count
    squares = sum(np.square(s) for s in part.splits)
    signal = (count**2 * np.square(full) - squares) / (count * (count - 1))  # mean product of two splits
    views = list(zip(part.outputs, part.others, strict=True))
    view = sum(np.square(f - t) - np.square(t) for f, t in views) / len(views) + signal
    noisy = sum(np.square(s - full) for s in part.splits) / (count * (count - 1))
    if part.response is None:
        scatter = sum(np.square(f - part.delivered) for f in part.outputs) / len(views)
        return ErrorMaps(view - scatter, view, noisy)
    delivered = np.square(part.delivered - full) - noisy + 2 * part.probe * part.response
    return ErrorMaps(np.asarray(delivered), view, noisy)


def error_sums(evidence: Evidence) -> ErrorSums:
    """Sums over blocks of some slices by at most ``BLOCK`` x ``BLOCK`` voxels."""
    rows: list[list[Float64Array]] = []
    counted = evidence.mask.astype(np.float64)
    for part in evidence.slices():
        maps = error_maps(part)
        shift = part.delivered - sum(part.splits) / len(part.splits)
        rows.append([_blocks(v * counted) for v in (maps.delivered, maps.view, maps.noisy, shift)])
    voxels = _blocks(counted[None])
    groups = max(1, round(len(rows) / _SLICES_PER_BLOCK))
    columns: list[list[Float64Array]] = [[] for _ in range(5)]
    for group in np.array_split(np.arange(len(rows)), groups):
        columns[0].append(voxels * len(group))
        for i in range(4):
            columns[i + 1].append(np.sum([rows[z][i] for z in group], axis=0))
    flat = [np.concatenate(column) for column in columns]
    return ErrorSums(*(column[flat[0] > 0] for column in flat))


def _blocks(plane: Float64Array) -> Float64Array:
    """Sums of (1, Y, X) over blocks, flat; those at the far ends are up to half an edge larger or smaller."""
    edge = int(np.clip(min(plane.shape[1:]) // _BLOCKS_ACROSS, _SMALLEST_BLOCK, BLOCK))
    starts = [np.arange(0, max(n - edge // 2, 1), edge) for n in plane.shape[1:]]
    return np.add.reduceat(np.add.reduceat(plane[0], starts[0], axis=0), starts[1], axis=1).ravel()


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], count: int, *, seed: int = 0, draws: int = 400
) -> tuple[float, float]:
    """A 95 % interval of a statistic of blocks drawn with repetition (Efron's percentiles), NaN results left out."""
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(0, count, count)) for _ in range(draws)])
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, (2.5, 97.5), method="inverted_cdf")  # values may be infinite: none between two
    return float(low), float(high)
