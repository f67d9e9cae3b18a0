"""Which blocks are trained on: a pure function of (seed, epoch, index), whatever the number of workers or ranks.

``SliceSampler`` (2.5D) visits every centre slice once an epoch, with a random crop; ``CubeSampler`` (3D) draws cubes or
flat blocks anywhere. Both give ``BlockPlace``s; ``block_offsets`` turns a batch of places into index vectors, so that
cropping, reflection and augmentation together are one gather, on whatever device the data lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from denoise.patches.holdout import HoldOut, Source
from denoise.patches.symmetry import CUBE, IDENTITY, PRISM, SQUARE, Symmetry
from denoise.tiles import Region, Triple, Window, reflect_indices


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
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self._centres))
        visited = []
        for index in indices:
            source, z = self._centres[order[index % len(order)]]
            visited.append(_place(self.window, source, z, _generator(self.seed, epoch, index), self.symmetries))
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
        return CUBE if len(set(self.window.read_zyx)) == 1 else PRISM

    @cached_property
    def _starts(self) -> list[tuple[Source, int]]:
        return _z_starts(self.holdout, self.z_stride)

    def places(self, epoch: int, indices: Sequence[int]) -> list[BlockPlace]:
        """See ``Sampler``."""
        drawn = []
        for index in indices:
            generator = _generator(self.seed, epoch, index)
            source, z = self._starts[int(generator.integers(len(self._starts)))]
            drawn.append(_place(self.window, source, z, generator, self.symmetries))
        return drawn


def _z_starts(holdout: HoldOut, z_stride: int) -> list[tuple[Source, int]]:
    return [(source, z) for source in holdout.sources for z in source.z_starts[::z_stride]]


def _generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    return np.random.default_rng((seed, epoch, index))


def _place(
    window: Window, source: Source, z: int, generator: np.random.Generator, symmetries: Sequence[Symmetry]
) -> BlockPlace:
    start = [z - window.before_zyx[0]]
    for axis in (1, 2):
        low, size = source.box.start_zyx[axis], source.box.shape_zyx[axis]
        start.append(low + int(generator.integers(max(size - window.read_zyx[axis], 0) + 1)))
    symmetry = symmetries[int(generator.integers(len(symmetries)))]
    return BlockPlace(Region((start[0], start[1], start[2]), window.read_zyx), source.box, symmetry)


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

    Blocks may read past the held-out region (that is context), never past the volume, where they are reflected.
    """
    starts = []
    for axis in range(3):
        low, size = holdout.held_out.start_zyx[axis], holdout.held_out.shape_zyx[axis]
        predict = window.predict_zyx[axis]
        if size >= predict:
            last = low + size - predict
            positions = sorted({*range(low, last, predict), last})
        else:  # a band thinner than a block: centred on it as far as the volume allows
            centred = low + size // 2 - predict // 2
            positions = [min(max(centred, 0), max(shape[axis] - predict, 0))]
        starts.append([p - window.before_zyx[axis] for p in positions])
    grid = [(z, y, x) for z in starts[0] for y in starts[1] for x in starts[2]]
    chosen = np.unique(np.linspace(0, len(grid) - 1, min(at_most, len(grid))).round().astype(int))
    whole = Region((0, 0, 0), shape)
    return [BlockPlace(Region(grid[i], window.read_zyx), whole) for i in chosen]


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
    """Flat voxel offsets of a batch of blocks, as one vector per axis of the (turned) block.

    Returns
    -------
    three arrays of int64 with shapes (B, Z), (B, Y), (B, X): voxel (b, z, y, x) of the batch is element
    ``first[b, z] + second[b, y] + third[b, x]`` of the flattened volume (Z, Y, X).
    """
    steps = (shape[1] * shape[2], shape[2], 1)
    batch: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    for place in places:
        along = [
            step * reflect_indices(start, count, low, low + size)
            for step, start, count, low, size in zip(
                steps,
                place.region.start_zyx,
                place.region.shape_zyx,
                place.box.start_zyx,
                place.box.shape_zyx,
                strict=True,
            )
        ]
        for vectors, axis, reverse in zip(batch, place.symmetry.source_axis, place.symmetry.reverse, strict=True):
            vectors.append(along[axis][::-1] if reverse else along[axis])
    return tuple(np.stack(vectors) for vectors in batch)
