"""A few slabs of the splits in memory, the next one always being read: what blocks are cut from where not all fit.

The slots are shared by the processes of a node. Each reads its share of every slab in the background, and tells the
others through a few counters in the same memory how far it has read and what it still needs; nothing else is exchanged.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise.errors import WorkerError
from denoise.launch import World
from denoise.patches.slabs import Slab
from denoise.patches.turns import Turns
from denoise.tiles import Region, Triple
from denoise.training.reading import non_finite_voxels, shared_array
from denoise.volumes.combined import chunks_of
from denoise.volumes.volume import SplitSet, Volume

_log = logging.getLogger(__name__)

_THREADS = 4
#: Read at a time by one thread: enough for a disk to be fast, little beside the slots. A chunk may be more.
_PIECE_BYTES, _LARGEST_PIECE_BYTES = 16_000_000, 64_000_000
#: Longer than any disk takes for one piece. Whoever waits longer waits for a process that is gone.
_PATIENCE_SECONDS = 600.0
#: So that the process which failed reports first, in its own words.
_GRACE_SECONDS = 10.0
_LOOK_AGAIN_SECONDS = 0.002


@dataclass(frozen=True)
class Piece:
    """A part of a slab that is read at once: of one split."""

    split: int
    region: Region


class SlabSlots:
    """Slots of one size, filled ahead of need.

    Parameters
    ----------
    turns
        Which slab is loaded when.
    stored
        The type that voxels are kept in.
    fill
        Replaces NaN and Inf; None: they are refused.
    """

    def __init__(self, splits: SplitSet, turns: Turns, world: World, stored: np.dtype[Any], fill: float | None) -> None:
        self._splits, self._turns, self._world = splits, turns, world
        self._fill = None if fill is None else stored.type(fill)
        self._count = slot_count(turns)
        largest = max(slab.voxels for slab in turns.slabs)
        self._slots, keep_slots = shared_array((self._count, len(splits) * largest), stored, world)
        counters, keep_counters = shared_array((4, world.local_size), np.dtype(np.int64), world)
        self._keep_open: object = (keep_slots, keep_counters)
        # Of each process of this node; each writes its own column only, and whole numbers of 8 bytes are written whole.
        # needed: no block will be cut any more from what was loaded earlier; -1 before the first block.
        # filled: the last turn whose share of the slab is read. failed: 1. pieces: how many were read, a sign of life.
        self._needed, self._filled, self._failed, self._pieces = counters
        me = world.local_rank
        self._needed[me] = self._filled[me] = -1
        self._failed[me] = self._pieces[me] = 0
        world.barrier()
        self._stop = threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._reading: Future[None] | None = None
        self._warned: set[int] = set()

    @property
    def nbytes(self) -> int:
        """Memory of all slots."""
        return self._slots.nbytes

    @property
    def is_ahead(self) -> bool:
        """Whether nothing can be read before something more is given up."""
        return bool(self._filled.min() - self._needed.min() + 1 >= self._count)

    def slab(self, loaded: int) -> tuple[NDArray[Any], Triple]:
        """The voxels (K, Z, Y, X) of the slab that was loaded at this turn, and where it starts; after ``require``."""
        slab = self._turns.slab(loaded)
        return self._view(loaded, slab), slab.region.start_zyx

    def require(self, turn: int) -> None:
        """Wait until all slabs of a turn are there; what is not needed at it or later may be replaced from now on.

        Raises
        ------
        VolumeError
            The reading failed.
        WorkerError
            Another process of this node is gone or hangs.
        """
        oldest, me = self._turns.residents(turn)[0], self._world.local_rank
        assert oldest >= self._needed[me], f"turn {turn} comes after one that began at {self._needed[me]}"
        self._needed[me] = oldest
        if self._reading is None:
            self._pool = ThreadPoolExecutor(1 + min(_THREADS, os.cpu_count() or 1), thread_name_prefix="slab-reader")
            self._reading = self._pool.submit(self._read_ahead)
            self._reading.add_done_callback(self._note_failure)
        last, begun, failed_at = self._signs_of_life(), time.monotonic(), None
        while self._filled.min() < turn:
            self._raise_if_failed()
            now, alive = time.monotonic(), self._signs_of_life()
            if alive != last:
                last, begun = alive, now
            if self._failed.any():
                failed_at = failed_at or now
            if now - begun > _PATIENCE_SECONDS or (failed_at and now - failed_at > _GRACE_SECONDS):
                raise WorkerError(
                    f"waited {now - begun:.0f} s for slab {turn} of the training data, which another process of this "
                    "node should have read; look at the messages of the others, then start again with --resume"
                )
            time.sleep(_LOOK_AGAIN_SECONDS)
        self._raise_if_failed()

    def stop(self) -> None:
        """End the reading, and every wait for it."""
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Release the memory, after ``stop``."""
        self._slots = np.empty((0, 0), self._slots.dtype)
        self._keep_open = None

    def _signs_of_life(self) -> int:
        return int(self._pieces.sum())

    def _raise_if_failed(self) -> None:
        if self._stop.is_set():
            raise WorkerError("the training data was closed while a block was being cut")
        if self._reading is not None and self._reading.done():
            self._reading.result()

    def _note_failure(self, reading: Future[None]) -> None:
        if not self._stop.is_set() and reading.exception() is not None:
            self._failed[self._world.local_rank] = 1

    def _read_ahead(self) -> None:
        """Fill slots until all slabs are there or the run is over."""
        # Where a batch lies in two turns, processes begin with different ones: all must read from the earlier one on.
        if not self._wait_until_needed(0):
            return
        turn = int(self._needed.min())
        last = len(self._turns.slabs) - 1 if self._turns.all_stay else None
        while last is None or turn <= last:
            if not (self._wait_for_slot(turn) and self._load(turn)):
                return
            self._filled[self._world.local_rank] = turn
            turn += 1

    def _wait_for_slot(self, turn: int) -> bool:
        """Wait until every process has done with what was loaded into the slot before."""
        return self._wait_until_needed(turn - self._count + 1)

    def _wait_until_needed(self, loaded: int) -> bool:
        """Whether nothing from before this turn is needed any more; False when the run is over.

        How long training takes for a turn nobody knows: there is no end to patience here.
        """
        while self._needed.min() < loaded:
            if self._stop.wait(_LOOK_AGAIN_SECONDS):
                return False
        return not self._stop.is_set()

    def _load(self, turn: int) -> bool:
        """Read this process's share of a slab; whether all of it was read before the run was over."""
        slab, world = self._turns.slab(turn), self._world
        room = self._view(turn, slab)
        pieces = pieces_of(slab, len(self._splits), self._slots.dtype.itemsize, chunks_of(self._splits.volumes))
        mine = pieces[world.local_rank :: world.local_size]
        assert self._pool is not None
        reading = [self._pool.submit(self._read, piece, slab, room) for piece in mine]
        for each in reading:
            each.result()
        return not self._stop.is_set()

    def _read(self, piece: Piece, slab: Slab, room: NDArray[Any]) -> None:
        if self._stop.is_set():
            return
        volume = self._splits.volumes[piece.split]
        low = slab.region.start_zyx
        z, y, x = (slice(s.start - a, s.stop - a) for s, a in zip(piece.region.slices, low, strict=True))
        part = room[piece.split, z, y, x]
        part[...] = volume.read_stored(piece.region)
        if part.dtype.kind == "f":
            for number, image in enumerate(part, piece.region.start_zyx[0]):
                self._require_finite(image, volume, piece.split, number)
        self._pieces[self._world.local_rank] += 1

    def _require_finite(self, image: NDArray[Any], volume: Volume, split: int, z: int) -> None:
        good = np.isfinite(image)
        if good.all():
            return
        count, where = int(good.size - np.count_nonzero(good)), f"in slice {volume.slice_numbers[z]}"
        if self._fill is None:
            raise non_finite_voxels(count, volume, where)
        image[~good] = self._fill
        if split not in self._warned:
            self._warned.add(split)
            _log.warning(
                "%s holds NaN or Inf voxels, %d of them %s; they are replaced by the mean for training",
                volume.name,
                count,
                where,
            )

    def _view(self, loaded: int, slab: Slab) -> NDArray[Any]:
        slot: NDArray[Any] = self._slots[loaded % self._count]
        return slot[: len(self._splits) * slab.voxels].reshape(len(self._splits), *slab.region.shape_zyx)


def slot_count(turns: Turns) -> int:
    """How many slabs there is memory for: those that blocks are drawn from, and one that is read meanwhile."""
    return len(turns.slabs) if turns.all_stay else turns.resident + 1


def pieces_of(slab: Slab, splits: int, itemsize: int, chunk_zyx: Triple = (1, 1, 1)) -> list[Piece]:
    """A slab in parts of some MB, or of a chunk where that is more: no chunk is decoded for two of them.

    Runs of slices where a file has slices, or of rows where a single slice is larger. An enormous chunk is decoded more
    than once: what comes of it at a time must not be more than memory is reserved for.
    """
    region = slab.region
    step = [min(sizes) for sizes in zip(chunk_zyx, region.shape_zyx, strict=True)]
    for axis in (2, 1, 0):
        fitting = _PIECE_BYTES // (math.prod(step) // step[axis] * itemsize)
        if fitting < region.shape_zyx[axis]:
            step[axis] = max(step[axis], fitting // step[axis] * step[axis])
            break
        step[axis] = region.shape_zyx[axis]
    step[0] = min(step[0], max(1, _LARGEST_PIECE_BYTES // (math.prod(step[1:]) * itemsize)))
    along = [
        _edges(start, stop, size, chunk)
        for start, stop, size, chunk in zip(region.start_zyx, region.stop_zyx, step, chunk_zyx, strict=True)
    ]
    return [
        Piece(k, Region((z, y, x), (z_end - z, y_end - y, x_end - x)))
        for (z, z_end), (y, y_end), (x, x_end) in product(*(pairwise(edges) for edges in along))
        for k in range(splits)
    ]


def _edges(start: int, stop: int, size: int, chunk: int) -> list[int]:
    """Where parts of such a size begin and end, the last of them at ``stop``; whole chunks begin at multiples."""
    first = start // chunk * chunk if size % chunk == 0 else start
    return [start, *range(first + size, stop, size), stop]
