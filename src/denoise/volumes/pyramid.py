"""The smaller copies of a volume in an OME-Zarr image: which there are, how they are cut up, and their voxels.

A voxel of a level is the mean of a block of voxels of the volume, 2 or 4 or 8 ... wide along each axis. Where a size is
no multiple of that, the last block has fewer voxels, and the level's size is rounded up: nothing is left out. Axes of
fewer than 64 voxels are not halved. The last level has at most 256^3 voxels.

A level is made while the volume is written if its blocks do not reach across groups of slices that are stored together.
Where slices are so large that a group holds few of them, the first two levels are halved along z as far as the group
allows, and the next catches up. So what is read again at the end is at most 1/16 of the volume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise.tiles import Region, Triple

_MOST_TOGETHER = 16
# A group is collected in memory before it is stored: 16 slices of 2048 x 2048 float32 values, one of 8192 x 8192.
# Smaller types count as float32: their means are computed in larger ones.
_GROUP_BYTES, _LEAST_ITEMSIZE = 2**28, 4
# 8 x 128 x 128 float32 values are 512 KiB: a patch reads little that it does not need, a single slice 8 times itself.
# Chunks of one or two slices are twice as wide, or zarr would spend more time on each than its compression takes.
_CHUNK_YX, _CHUNK_Z = 128, 8
_SHALLOW = 2
# 64 MiB of float32: few files, and a shard of 1024 x 1024 where the group is 16 slices deep.
_SHARD_VOXELS = 2**24
# Shards of levels that are made at the end; what is read for one is 8 times that, or up to 8 times that along z.
_LATE_SHARD_VOXELS = 2**21
_ENOUGH_VOXELS = 2**24
_SMALLEST_HALVED = 64
_LEVELS_THAT_CATCH_UP = 2


@dataclass(frozen=True)
class Level:
    """One array of the pyramid; ``factors`` are the voxels of the volume, (z, y, x), in one of its own."""

    factors: Triple
    shape: Triple
    chunks: Triple
    shards: Triple
    inline: bool
    """Whether every group of slices gives whole shards of it."""

    @property
    def voxels(self) -> int:
        """How many."""
        return math.prod(self.shape)


def slices_together(shape: Triple, itemsize: int) -> int:
    """How many slices a shard of the volume holds: a power of two."""
    depth, height, width = shape
    image = height * width * max(itemsize, _LEAST_ITEMSIZE)
    together = 1
    while together < min(depth, _MOST_TOGETHER) and 2 * together * image <= _GROUP_BYTES:
        together *= 2
    return together


def plan(shape: Triple, itemsize: int) -> list[Level]:
    """The levels, the volume itself first."""
    together = slices_together(shape, itemsize)
    largest = [_largest_factor(n) for n in shape]
    levels = [_level(shape, (1, 1, 1), together, inline=True)]
    while levels[-1].voxels > _ENOUGH_VOXELS:
        wanted = 2 ** len(levels)
        z, y, x = (min(wanted, most) for most in largest)
        inline = z <= together
        if not inline and len(levels) <= _LEVELS_THAT_CATCH_UP:
            z, inline = together, True
        if (z, y, x) == levels[-1].factors:
            break
        levels.append(_level(shape, (z, y, x), together // z if inline else _CHUNK_Z, inline=inline))
    return levels


def coarser(values: NDArray[Any], start: Triple, size: Triple, finer: Triple, factors: Triple) -> NDArray[Any]:
    """Means over blocks, for a level from a finer one.

    Parameters
    ----------
    values
        Part of the finer level, whose first voxel is at ``start`` there; whole blocks of the level that is made, or
        all that there is of one at the end of the volume.
    size
        Shape of the volume.
    finer, factors
        Voxels of the volume in one of ``values`` and of the result; powers of two.

    Returns
    -------
    Unrounded: float32 from float32, otherwise float64.
    """
    sums = values
    dtype = np.dtype(np.float32 if values.dtype == np.float32 else np.float64)
    for axis, (first, n, old, new) in enumerate(zip(start, size, finer, factors, strict=True)):
        if old > 1:
            sums = sums * _counts(first, n, old, sums.shape[axis], axis).astype(dtype)
        for _ in range((new // old).bit_length() - 1):
            sums = _halved(sums, axis, dtype)
    for axis, (first, n, old, new) in enumerate(zip(start, size, finer, factors, strict=True)):
        sums /= _counts(first * old // new, n, new, sums.shape[axis], axis).astype(dtype)
    return sums


def stored_as(means: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Means in the type of the volume; whole numbers are rounded, halves to the even one."""
    return (np.rint(means) if dtype.kind in "iu" else means).astype(dtype, copy=False)


def shard_regions(level: Level) -> list[Region]:
    """The parts of a level that are written at once."""
    z, y, x = (
        [range(a, min(a + step, n)) for a in range(0, n, step)]
        for n, step in zip(level.shape, level.shards, strict=True)
    )
    return [Region((i.start, j.start, k.start), (len(i), len(j), len(k))) for i in z for j in y for k in x]


def source_region(part: Region, level: Level, finer: Level) -> Region:
    """What of a finer level the voxels of a part of a level are made of."""
    ratio = [new // old for new, old in zip(level.factors, finer.factors, strict=True)]
    z, y, x = (a * r for a, r in zip(part.start_zyx, ratio, strict=True))
    depth, height, width = (
        min(stop * r, n) - a for stop, r, n, a in zip(part.stop_zyx, ratio, finer.shape, (z, y, x), strict=True)
    )
    return Region((z, y, x), (depth, height, width))


def late(levels: list[Level]) -> list[tuple[Level, Level]]:
    """Levels that are made when the volume is whole, each with the one that it is made from, in that order."""
    return [(finer, level) for finer, level in pairwise(levels) if not level.inline]


def _level(shape: Triple, factors: Triple, depth: int, *, inline: bool) -> Level:
    z, y, x = (-(-n // f) for n, f in zip(shape, factors, strict=True))
    depth = depth if inline else min(depth, z)
    most = _SHARD_VOXELS if inline else _LATE_SHARD_VOXELS
    chunk_yx = 2 * _CHUNK_YX if depth <= _SHALLOW else _CHUNK_YX
    edge = chunk_yx
    while depth * (2 * edge) ** 2 <= most:
        edge *= 2
    chunks = (min(depth, _CHUNK_Z), min(y, chunk_yx), min(x, chunk_yx))
    # A shard is made of whole chunks, also where they reach past the level.
    height, width = (min(edge, -(-n // c) * c) for n, c in zip((y, x), chunks[1:], strict=True))
    return Level(factors, (z, y, x), chunks, (depth, height, width), inline)


def _largest_factor(n: int) -> int:
    factor = 1
    while n // factor >= _SMALLEST_HALVED:
        factor *= 2
    return factor


def _halved(values: NDArray[Any], axis: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Sums of pairs along an axis; the last is alone where their number is odd."""
    before: tuple[slice, ...] = (slice(None),) * axis
    sums = values[(*before, slice(None, None, 2))].astype(dtype)
    sums[(*before, slice(values.shape[axis] // 2))] += values[(*before, slice(1, None, 2))]
    return sums


def _counts(first: int, n: int, factor: int, count: int, axis: int) -> NDArray[np.int64]:
    """How many voxels of the volume lie in each of some voxels of a level along an axis; to be broadcast."""
    within = np.minimum(factor, n - factor * (first + np.arange(count)))
    return np.expand_dims(within, [a for a in range(3) if a != axis])
