"""Which slabs are in memory when, and which blocks are drawn from them: a pure function of (seed, epoch, index).

Slabs are loaded one after the other; *turn* t begins when the slab that is loaded at t is there, and the one that was
loaded at t - resident is given up. Every block belongs to a turn. How many blocks a turn has follows from sizes alone,
never from how fast anything is, so that a run can be repeated and resumed. Integers only; no voxel is touched.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from denoise.patches.sampler import BlockPlace, VolumeSampler, chosen, drawn
from denoise.patches.slabs import Division, Slab
from denoise.tiles import Region, Window

#: Voxels that are predicted for each that is read, of one split. Of float32 splits a network that trains on 10 million
#: voxels a second, ten times what a CPU core does, then asks the disk for 320 MB/s; and in one round, which reads every
#: slab once, a quarter of the volume is trained on before it is read again.
COVERAGE = 0.25


@dataclass(frozen=True)
class SlabPlace(BlockPlace):
    """A block that is cut from a slab."""

    turn: int = 0
    """The turn that it belongs to."""
    loaded: int = 0
    """The turn at which its slab was loaded; no more than ``resident`` before."""


@dataclass(frozen=True)
class Turns:
    """The order of the slabs, and the number of blocks of every turn.

    In every round each slab is loaded once, in an order of its own. A slab stays for ``resident`` turns. A turn has so
    many blocks that, over its turns, every slab gets a share of them in proportion to its places: so every place of
    the volume is drawn equally often, however unlike the slabs are.
    """

    slabs: tuple[Slab, ...]
    resident: int
    seed: int
    window: Window
    _order: list[int] = field(default_factory=list, init=False, repr=False, compare=False)
    _ends: list[int] = field(default_factory=list, init=False, repr=False, compare=False)
    """One past the last block of turn ``first + i``."""
    _shares: list[int] = field(default_factory=lambda: [0], init=False, repr=False, compare=False)
    # Whoever draws, whoever cuts and whoever reads ask from threads of their own.
    _growing: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    @property
    def first(self) -> int:
        """The first turn that has blocks: as many slabs as can be are loaded by then."""
        return self.resident - 1

    @property
    def all_stay(self) -> bool:
        """Whether every slab is in memory: then the first turn never ends."""
        return self.resident >= len(self.slabs)

    @cached_property
    def blocks_per_round(self) -> int:
        """How many blocks are trained on while every slab is loaded once: at least one for each."""
        read = sum(slab.voxels for slab in self.slabs)
        return max(len(self.slabs), round(COVERAGE * read / int(np.prod(self.window.predict_zyx))))

    def slab(self, loaded: int) -> Slab:
        """The slab that is loaded at this turn."""
        return self.slabs[self.index(loaded)]

    def index(self, loaded: int) -> int:
        """Its number among the slabs."""
        with self._growing:
            while len(self._order) <= loaded:
                self._add_round()
        return self._order[loaded]

    def residents(self, turn: int) -> range:
        """When the slabs were loaded that a turn's blocks are drawn from."""
        return range(turn - self.resident + 1, turn + 1)

    def turn_of(self, block: int) -> tuple[int, int]:
        """The turn of the block with this number (counted from 0 over the whole run), and its number in that turn."""
        if self.all_stay:
            return self.first, block
        with self._growing:
            while not self._ends or self._ends[-1] <= block:
                self._add_turn()
        position = bisect_right(self._ends, block)
        return self.first + position, block - (self._ends[position - 1] if position else 0)

    def _add_round(self) -> None:
        """A random order in which no slab is loaded that is still there from the round before."""
        count = len(self.slabs)
        generator = np.random.default_rng((self.seed, len(self._order) // count, 1, 2))
        order = generator.permutation(count).tolist()
        for i in range(min(self.resident - 1, count - 1) if self._order else 0):
            still_there = self._order[len(self._order) - (self.resident - 1 - i) :]
            later = next(j for j in range(i, count) if order[j] not in still_there)
            order[i], order[later] = order[later], order[i]
        self._order.extend(order)

    def _add_turn(self) -> None:
        # Exact, in whole numbers: the same on every machine, however long the run.
        turn = self.first + len(self._ends)
        places = sum(self.slab(loaded).places for loaded in self.residents(turn))
        self._shares.append(self._shares[-1] + places)
        whole = self.resident * sum(slab.places for slab in self.slabs)
        self._ends.append(self._shares[-1] * self.blocks_per_round // whole)


class SlabSampler:
    """Draws what a sampler of the whole volume draws, but each block from the slabs that are in memory at its turn.

    Within a turn, its slabs and the starts along z in them are gone through in random order, all of them before any
    comes again; the place in the slice and the symmetry are drawn.

    Parameters
    ----------
    blocks_per_epoch
        How many blocks are drawn of an epoch: its size, rounded up to whole batches.
    """

    def __init__(self, whole: VolumeSampler, division: Division, blocks_per_epoch: int) -> None:
        self._whole = whole
        self._blocks_per_epoch = blocks_per_epoch
        self.turns = Turns(division.slabs(whole), division.resident, whole.seed, whole.window)
        # A batch lies in one turn or two.
        self._slices = lru_cache(maxsize=4)(self._slices_of)
        self._lap = lru_cache(maxsize=4)(self._lap_of)

    @property
    def epoch_size(self) -> int:
        """See ``Sampler``."""
        return self._whole.epoch_size

    def places(self, epoch: int, indices: Sequence[int]) -> list[BlockPlace]:
        """See ``Sampler``; indices are less than the blocks of an epoch."""
        return [self._place(epoch, index) for index in indices]

    def _place(self, epoch: int, index: int) -> SlabPlace:
        assert index < self._blocks_per_epoch, f"block {index} of an epoch of {self._blocks_per_epoch}"
        turn, number = self.turns.turn_of(epoch * self._blocks_per_epoch + index)
        slices = self._slices(turn)
        lap, number = divmod(number, len(slices))
        order, ends = self._lap(turn, lap)
        numbers = drawn(self._whole.seed, epoch, index)
        # Evenly spaced along the places of all slices, so that one with more places is met more often.
        position = (number + numbers[3]) / len(slices) * ends[-1]
        loaded, z = slices[order[min(int(np.searchsorted(ends, position, "right")), len(order) - 1)]]
        slab, window = self.turns.slab(loaded), self._whole.window
        _, rows, columns = slab.starts_zyx
        y, x = rows[chosen(numbers[0], len(rows))], columns[chosen(numbers[1], len(columns))]
        symmetries = self._whole.symmetries
        return SlabPlace(
            Region((z - window.before_zyx[0], y, x), window.read_zyx),
            slab.source.box,
            symmetries[chosen(numbers[2], len(symmetries))],
            turn,
            loaded,
        )

    def _slices_of(self, turn: int) -> list[tuple[int, int]]:
        """(when its slab was loaded, start along z) of all that a turn's blocks are drawn from."""
        return [(loaded, z) for loaded in self.turns.residents(turn) for z in self.turns.slab(loaded).starts_zyx[0]]

    def _lap_of(self, turn: int, lap: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A random order of a turn's slices, and their places added up in that order."""
        in_slice = [
            len(rows) * len(columns)
            for _, rows, columns in (self.turns.slab(loaded).starts_zyx for loaded, _ in self._slices(turn))
        ]
        order = np.random.default_rng((self._whole.seed, turn, lap, 1)).permutation(len(in_slice))
        return order, np.cumsum(np.asarray(in_slice, dtype=np.int64)[order])
