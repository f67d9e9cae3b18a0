"""Places in a volume, and the grid of tiles that covers one: integers and 1-D weights only.

Axis order is (Z, Y, X). A *block* is what a tile reads (its predicted part plus halo); a *tile* is a place. Nothing
here touches voxels: volumes, samplers and the inference engine all take their geometry, and the one rule for
coordinates outside the volume (reflection), from this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Triple: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Region:
    """A box of voxels: where it starts and how large it is, both (Z, Y, X). Starts may lie outside a volume."""

    start_zyx: Triple
    shape_zyx: Triple

    @classmethod
    def of_slices(cls, start: int, stop: int, volume_shape: Triple) -> Region:
        """Whole slices start..stop-1 of a volume."""
        return cls((start, 0, 0), (stop - start, volume_shape[1], volume_shape[2]))

    @property
    def stop_zyx(self) -> Triple:
        """One past the last voxel on each axis."""
        z, y, x = (a + n for a, n in zip(self.start_zyx, self.shape_zyx, strict=True))
        return z, y, x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """For indexing an array with non-negative starts."""
        z, y, x = (slice(a, a + n) for a, n in zip(self.start_zyx, self.shape_zyx, strict=True))
        return z, y, x

    def inside(self, shape_zyx: Triple) -> bool:
        """Whether every voxel lies in a volume of this shape."""
        return all(
            a >= 0 and a + n <= size for a, n, size in zip(self.start_zyx, self.shape_zyx, shape_zyx, strict=True)
        )


def reflect_indices(start: int, count: int, low: int, high: int) -> NDArray[np.int64]:
    """Coordinates start..start+count-1, those outside [low, high) mirrored at the edge voxel (which is not repeated).

    The same as numpy's pad mode "reflect", continued as often as needed; a range of one voxel repeats that voxel.

    Returns
    -------
    array of int64, shape (count,), every value in [low, high).
    """
    if high - low < 1:
        raise ValueError(f"nothing to reflect in: low {low}, high {high}")
    found: NDArray[np.int64] = reflected(np.array([start]), count, np.array([low]), np.array([high]))[0]
    return found


def reflected(
    starts: NDArray[np.int64], count: int, lows: NDArray[np.int64], highs: NDArray[np.int64]
) -> NDArray[np.int64]:
    """``reflect_indices`` of B runs of equal length at once: all arguments (B,), the result (B, count)."""
    period = 2 * np.maximum(highs - lows - 1, 0)[:, None]
    offset = (starts - lows)[:, None] + np.arange(count)
    offset %= np.maximum(period, 1)  # a range of one voxel: always 0
    found: NDArray[np.int64] = lows[:, None] + np.minimum(offset, period - offset)
    return found


@dataclass(frozen=True)
class Window:
    """What one tile reads, the part of that it predicts, and the step from tile to tile, each (Z, Y, X).

    ``before`` is how many voxels of the block lie before the predicted part. 2.5D with 5 slices: read (5, P, P),
    predict (1, P, P), before (2, 0, 0). 3D: read = predict = (P, P, P).
    """

    read_zyx: Triple
    predict_zyx: Triple
    stride_zyx: Triple
    before_zyx: Triple
    taper: str = "hann"
    multiple_zyx: Triple = (1, 1, 1)
    """Tiles start at multiples of these where strides do: a network that pools by them then sees one grid."""

    def __post_init__(self) -> None:
        for read, predict, stride, before in zip(
            self.read_zyx, self.predict_zyx, self.stride_zyx, self.before_zyx, strict=True
        ):
            if not (1 <= stride <= predict and before >= 0 and before + predict <= read):
                raise ValueError(f"impossible window: {self}")

    @property
    def after_zyx(self) -> Triple:
        """How many voxels of the block lie after the predicted part."""
        z, y, x = (r - b - p for r, b, p in zip(self.read_zyx, self.before_zyx, self.predict_zyx, strict=True))
        return z, y, x

    @property
    def is_cube(self) -> bool:
        """Whether what is read and what is predicted are the same cube, in which no axis differs from the others."""
        return len({*self.read_zyx, *self.predict_zyx}) == 1

    @property
    def predicted(self) -> tuple[slice, slice, slice]:
        """The predicted part within the block that is read."""
        z, y, x = (slice(b, b + p) for b, p in zip(self.before_zyx, self.predict_zyx, strict=True))
        return z, y, x

    def spread_over(
        self,
        shape_zyx: Triple,
        edges: Mapping[int, int],
        *,
        overlaps: Mapping[int, int],
        multiples: Mapping[int, int],
        shrinks: bool,
    ) -> Window:
        """The same context with tiles of about these edges that cover a volume evenly.

        Parameters
        ----------
        shape_zyx
            Of the volume.
        edges
            Axis (0 to 2) to the desired size of the tiles along it; axes that are left out stay as they are.
        overlaps
            Of neighbouring tiles along each of these axes, voxels; rounded up to a multiple of what ``multiples`` says.
        multiples
            Axis to what tile sizes and starts along it must be divisible by; 1 for axes that are left out.
        shrinks
            Whether a tile gets smaller where the volume is smaller than it, instead of reading reflections.
        """
        read, predict, stride = list(self.read_zyx), list(self.predict_zyx), list(self.stride_zyx)
        all_multiples = [1, 1, 1]
        for axis, edge in edges.items():
            multiple = multiples.get(axis, 1)
            length = shape_zyx[axis] if shrinks else max(shape_zyx[axis], edge)
            context = read[axis] - predict[axis]
            predict[axis], stride[axis] = even_tiles(length, edge, overlaps[axis], multiple)
            read[axis], all_multiples[axis] = predict[axis] + context, multiple
        return replace(
            self,
            read_zyx=(read[0], read[1], read[2]),
            predict_zyx=(predict[0], predict[1], predict[2]),
            stride_zyx=(stride[0], stride[1], stride[2]),
            multiple_zyx=(all_multiples[0], all_multiples[1], all_multiples[2]),
        )


def even_tiles(length: int, edge: int, overlap: int, multiple: int) -> tuple[int, int]:
    """Size and stride of tiles that cover ``length`` voxels evenly, of the size nearest to ``edge`` (as a ratio).

    Without this, the last tile of a row is pushed back over its neighbour: 512 voxels in tiles of 256 that overlap by
    32 would take three tiles, and predict half of the voxels twice.
    """
    overlap = min(_rounded_up(overlap, multiple), max(edge - 1, 0) // multiple * multiple)
    fitting = max((length - overlap) / (edge - overlap), 1.0)
    sizes = [
        _rounded_up(-(-(length + (count - 1) * overlap) // count), multiple)
        for count in {math.floor(fitting), math.ceil(fitting)}
    ]
    size = min(sizes, key=lambda size: abs(math.log(size / edge)))
    return size, max(size - overlap, multiple)


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def taper_weights(name: str, size: int) -> NDArray[np.float64]:
    """1-D taper of a tile, float64, shape (size,), every value positive.

    ``hann`` is sampled at voxel centres, sin^2(pi (i + 1/2) / size), so that it never reaches zero; ``uniform`` is 1.
    """
    if name == "hann":
        return np.asarray(np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2, dtype=np.float64)
    if name == "uniform":
        return np.ones(size)
    raise ValueError(f"no taper is called {name!r}")


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis: where each predicted part starts, and its weights there.

    ``weights`` has shape (tiles, predict): over all tiles they add up to 1 at every voxel of the volume, and are 0
    outside it. ``starts`` are sorted; the last tile is moved back so that it ends with the volume (or less than
    ``multiple`` after it), and a volume smaller than a tile has one tile that starts at 0; what lies beyond the end is
    read as reflections.
    """

    starts: tuple[int, ...]
    weights: NDArray[np.float64]

    @classmethod
    def covering(cls, length: int, predict: int, stride: int, taper: str, multiple: int = 1) -> Axis:
        """Lay tiles over ``length`` voxels."""
        last = _rounded_up(max(length - predict, 0), multiple)
        starts = tuple(sorted({*range(0, last, stride), last}))
        profile = taper_weights(taper, predict)
        total = np.zeros(length)
        for start in starts:
            stop = min(start + predict, length)
            total[start:stop] += profile[: stop - start]
        weights = np.zeros((len(starts), predict))
        for row, start in zip(weights, starts, strict=True):
            stop = min(start + predict, length)
            row[: stop - start] = profile[: stop - start] / total[start:stop]
        return cls(starts, weights)


@dataclass(frozen=True)
class TileGrid:
    """The tiles that cover a volume of ``shape_zyx``; weights are separable and form a partition of unity.

    Each 1-D taper is divided once, in float64, by its sum over the tiles: no weight volume, no division at the end,
    nothing darkened at a border (the usual floor and epsilon make a constant volume come back as 0.5 on its faces).
    """

    shape_zyx: Triple
    window: Window

    @cached_property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        """The tiles along z, y and x."""
        z, y, x = (
            Axis.covering(n, p, s, self.window.taper, m)
            for n, p, s, m in zip(
                self.shape_zyx,
                self.window.predict_zyx,
                self.window.stride_zyx,
                self.window.multiple_zyx,
                strict=True,
            )
        )
        return z, y, x

    def layers(self, z_start: int, z_stop: int) -> list[int]:
        """Indices along z of the tile layers that contribute to slices z_start..z_stop-1, in order."""
        depth = self.window.predict_zyx[0]
        return [i for i, z in enumerate(self.axes[0].starts) if z < z_stop and z + depth > z_start]

    def in_layer(self) -> Iterator[tuple[int, int]]:
        """Indices (y, x) of the tiles of one layer."""
        _, y, x = self.axes
        return ((j, i) for j in range(len(y.starts)) for i in range(len(x.starts)))

    @property
    def tiles_per_layer(self) -> int:
        """How many tiles one layer has."""
        return len(self.axes[1].starts) * len(self.axes[2].starts)

    @property
    def redundancy(self) -> float:
        """Voxels predicted over voxels of the volume: 1 is the least possible."""
        predicted = float(np.prod([len(a.starts) * p for a, p in zip(self.axes, self.window.predict_zyx, strict=True)]))
        return predicted / float(np.prod(self.shape_zyx))
