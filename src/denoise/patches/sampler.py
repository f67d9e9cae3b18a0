"""Which blocks are trained on: a pure function of (seed, epoch, index), whatever the number of workers or ranks.

``SliceSampler`` (2.5D) visits every centre slice once an epoch, with a random crop; ``CubeSampler`` (3D) draws cubes or
flat blocks anywhere. Both give ``BlockPlace``s; ``block_offsets`` turns a batch of places into index vectors, so that
cropping, reflection and augmentation together are one gather, on whatever device the data lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from denoise.patches.holdout import HoldOut, Source
from denoise.patches.symmetry import CUBE, IDENTITY, PRISM, SQUARE, Symmetry
from denoise.tiles import Region, Triple, Window, reflected


@dataclass(frozen=True)
class BlockPlace:
    """Where one block is read: its region, the box at whose faces it is reflected, and how it is turned."""

    region: Region
    box: Region
    symmetry: Symmetry = IDENTITY


class Sampler(Protocol):
    """Draws training blocks."""

    @property
    def epoch_size(self) -> int:
        """How many blocks make an epoch."""
        ...

    def places(self, epoch: int, indices: Sequence[int]) -> list[BlockPlace]:
        """These blocks of an epoch; an index past the epoch's size goes round again with other crops."""
        ...


class VolumeSampler(Sampler, Protocol):
    """Draws from the whole training part, and says what it draws: so that others can draw the same from less of it."""

    @property
    def holdout(self) -> HoldOut:
        """Where blocks may be read."""
        ...

    @property
    def window(self) -> Window:
        """What a block reads and predicts."""
        ...

    @property
    def seed(self) -> int:
        """Of every draw."""
        ...

    @property
    def z_stride(self) -> int:
        """Of the starts along z that a source offers, every so many are used."""
        ...

    @property
    def symmetries(self) -> Sequence[Symmetry]:
        """One of these turns each block."""
        ...


#: Blocks whose random numbers are drawn together.
_PAGE = 256
#: The least of an epoch in 2.5D that the user does not set.
FEWEST_PATCHES = 256


@dataclass(frozen=True)
class SliceSampler:
    """2.5D: every ``z_stride``-th centre slice once an epoch, in random order, cropped at a random place.

    Where slices are few, each is visited several times, so that an epoch is worth scoring after.
    """

    holdout: HoldOut
    window: Window
    seed: int
    augment: bool = True
    z_stride: int = 1
    patches_per_epoch: int | None = None

    @property
    def epoch_size(self) -> int:
        """One block per centre slice, or the fewest that make an epoch, unless told otherwise."""
        return self.patches_per_epoch or max(len(self._centres), FEWEST_PATCHES)

    @property
    def symmetries(self) -> Sequence[Symmetry]:
        """Those of the square, or none."""
        return SQUARE if self.augment else (IDENTITY,)

    @cached_property
    def _centres(self) -> list[tuple[Source, int]]:
        return _z_starts(self.holdout, self.z_stride)

    def places(self, epoch: int, indices: Sequence[int]) -> list[BlockPlace]:
        """See ``Sampler``."""
        order = _order(self.seed, epoch, len(self._centres))
        visited = []
        for index in indices:
            source, z = self._centres[order[index % len(order)]]
            visited.append(_place(self.window, source, z, drawn(self.seed, epoch, index), self.symmetries))
        return visited


@dataclass(frozen=True)
class CubeSampler:
    """3D: blocks at random places; an epoch is as many as fill the volume once, unless told otherwise."""

    holdout: HoldOut
    window: Window
    seed: int
    augment: bool = True
    z_stride: int = 1
    patches_per_epoch: int | None = None

    @property
    def epoch_size(self) -> int:
        """How many blocks make an epoch."""
        if self.patches_per_epoch:
            return self.patches_per_epoch
        voxels = sum(math.prod(source.box.shape_zyx) for source in self.holdout.sources)
        return max(1, round(voxels / math.prod(self.window.predict_zyx)))

    @property
    def symmetries(self) -> Sequence[Symmetry]:
        """Those of the cube; of a prism, where blocks are none; or none."""
        if not self.augment:
            return (IDENTITY,)
        return CUBE if self.window.is_cube else PRISM

    @cached_property
    def _starts(self) -> list[tuple[Source, int]]:
        return _z_starts(self.holdout, self.z_stride)

    def places(self, epoch: int, indices: Sequence[int]) -> list[BlockPlace]:
        """See ``Sampler``."""
        found = []
        for index in indices:
            numbers = drawn(self.seed, epoch, index)
            source, z = self._starts[chosen(numbers[3], len(self._starts))]
            found.append(_place(self.window, source, z, numbers, self.symmetries))
        return found


def _z_starts(holdout: HoldOut, z_stride: int) -> list[tuple[Source, int]]:
    return [(source, z) for source in holdout.sources for z in source.z_starts[::z_stride]]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(count)


@lru_cache(maxsize=8)
def _page(seed: int, epoch: int, page: int) -> list[list[float]]:
    numbers: list[list[float]] = np.random.default_rng((seed, epoch, page, 3)).random((_PAGE, 4)).tolist()
    return numbers


def drawn(seed: int, epoch: int, index: int) -> list[float]:
    """Four numbers in [0, 1) that belong to a block.

    Drawn for many blocks at a time: a generator for each would take longer than a fast GPU takes for a step.
    """
    page, row = divmod(index, _PAGE)
    return _page(seed, epoch, page)[row]


def chosen(number: float, count: int) -> int:
    """One of so many, by a number in [0, 1)."""
    return int(number * count)


def _place(
    window: Window, source: Source, z: int, numbers: Sequence[float], symmetries: Sequence[Symmetry]
) -> BlockPlace:
    box, (depth, height, width) = source.box, window.read_zyx
    (_, low_y, low_x), (_, rows, columns) = box.start_zyx, box.shape_zyx
    y = low_y + chosen(numbers[0], max(rows - height, 0) + 1)
    x = low_x + chosen(numbers[1], max(columns - width, 0) + 1)
    region = Region((z - window.before_zyx[0], y, x), (depth, height, width))
    return BlockPlace(region, box, symmetries[chosen(numbers[2], len(symmetries))])


def single_slices(window: Window) -> Window:
    """The same context, predicting one slice: what `sliced` blocks read and predict."""
    depth = window.read_zyx[0] - window.predict_zyx[0] + 1
    return replace(
        window,
        read_zyx=(depth, *window.read_zyx[1:]),
        predict_zyx=(1, *window.predict_zyx[1:]),
        stride_zyx=(1, *window.stride_zyx[1:]),
    )


def sliced(place: BlockPlace, window: Window, count: int) -> list[BlockPlace]:
    """Of a block, ``count`` blocks that predict one slice each, spread evenly over its depth."""
    read, predicted = single_slices(window).read_zyx, window.predict_zyx[0]
    z, y, x = place.region.start_zyx
    return [
        replace(place, region=Region((z + (2 * i + 1) * predicted // (2 * count), y, x), read)) for i in range(count)
    ]


def validation_places(holdout: HoldOut, window: Window, shape: Triple, at_most: int) -> list[BlockPlace]:
    """Fixed, unturned blocks whose predicted parts cover the held-out region, evenly thinned to ``at_most``.

    Blocks may read past the held-out region (that is context), never past the volume or what the user chose of it,
    where they are reflected.
    """
    near = holdout.near or range(shape[0])
    box = Region((near[0], 0, 0), (len(near), *shape[1:]))
    starts = []
    for axis in range(3):
        low, size = holdout.held_out.start_zyx[axis], holdout.held_out.shape_zyx[axis]
        predict = window.predict_zyx[axis]
        if size >= predict:
            last = low + size - predict
            positions = sorted({*range(low, last, predict), last})
        else:  # a band thinner than a block: centred on it as far as there is room
            centred = low + size // 2 - predict // 2
            face = box.start_zyx[axis]
            positions = [min(max(centred, face), max(face + box.shape_zyx[axis] - predict, face))]
        starts.append([p - window.before_zyx[axis] for p in positions])
    grid = [(z, y, x) for z in starts[0] for y in starts[1] for x in starts[2]]
    chosen = np.unique(np.linspace(0, len(grid) - 1, min(at_most, len(grid))).round().astype(int))
    return [BlockPlace(Region(grid[i], window.read_zyx), box) for i in chosen]


def scored_part(place: BlockPlace, holdout: HoldOut, window: Window) -> tuple[slice, slice, slice]:
    """The part of a prediction (its predicted part only) that lies in the held-out region."""
    parts = []
    for axis in range(3):
        start = place.region.start_zyx[axis] + window.before_zyx[axis]
        low = holdout.held_out.start_zyx[axis]
        high = low + holdout.held_out.shape_zyx[axis]
        parts.append(slice(max(low - start, 0), min(high - start, window.predict_zyx[axis])))
    return parts[0], parts[1], parts[2]


def block_offsets(places: Sequence[BlockPlace], shape: Triple) -> tuple[NDArray[np.int64], ...]:
    """Flat voxel offsets of a batch of blocks of one shape, as one vector per axis of the (turned) block.

    Returns
    -------
    three arrays of int64 with shapes (B, Z), (B, Y), (B, X): voxel (b, z, y, x) of the batch is element
    ``first[b, z] + second[b, y] + third[b, x]`` of the flattened volume (Z, Y, X).
    """
    steps = (shape[1] * shape[2], shape[2], 1)
    starts, lows, sizes = (
        np.array(column, dtype=np.int64).reshape(-1, 3)
        for column in (
            [place.region.start_zyx for place in places],
            [place.box.start_zyx for place in places],
            [place.box.shape_zyx for place in places],
        )
    )
    along = [
        step * reflected(starts[:, axis], count, lows[:, axis], lows[:, axis] + sizes[:, axis])
        for axis, (step, count) in enumerate(zip(steps, places[0].region.shape_zyx, strict=True))
    ]
    turned: list[NDArray[np.int64]] = []
    for axis in range(3):
        rows = []
        for number, place in enumerate(places):
            row = along[place.symmetry.source_axis[axis]][number]
            rows.append(row[::-1] if place.symmetry.reverse[axis] else row)
        turned.append(np.stack(rows))
    return tuple(turned)
