"""Splits that are larger than memory: blocks are cut from a few slabs in memory, which are exchanged one by one.

Training blocks say which slab they are cut from (``patches/turns.py``); the few blocks that every score looks at are
read from the files once and kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from denoise.arithmetic import sent_to
from denoise.launch import World
from denoise.normalization import Normalization
from denoise.patches.sampler import BlockPlace
from denoise.patches.turns import SlabPlace, Turns
from denoise.tiles import reflect_indices
from denoise.training.reading import common_dtype, non_finite_voxels, sampled_normalization
from denoise.training.slots import SlabSlots
from denoise.volumes.volume import Float32Array, SplitSet, Volume, read_reflected


class CachedBlocks:
    """Blocks from slabs in memory, cut one batch ahead of the network."""

    def __init__(
        self, splits: SplitSet, slots: SlabSlots, device: torch.device, fill: bool, normalization: Normalization
    ) -> None:
        self.slots = slots
        self.normalization = normalization
        self._splits = splits
        self._device = device
        self._fill = fill
        self._kept: dict[BlockPlace, Float32Array] = {}
        self._cutter = ThreadPoolExecutor(1, thread_name_prefix="block-cutter")

    @classmethod
    def open(
        cls,
        splits: SplitSet,
        turns: Turns,
        world: World,
        non_finite: str,
        normalization: Normalization | None,
        used: range | None = None,
    ) -> CachedBlocks:
        """Make room for the slabs; measure the normalisation on some slices that are used, unless it is given.

        Raises
        ------
        VolumeError
            As ``sampled_normalization``.
        """
        normalization = normalization or sampled_normalization(splits, world, non_finite, used)
        fill = non_finite == "fill"
        slots = SlabSlots(splits, turns, world, common_dtype(splits), normalization.mean if fill else None)
        return cls(splits, slots, world.device, fill, normalization)

    def batches(self, requests: Iterable[Sequence[BlockPlace]]) -> Iterator[Tensor]:
        """See ``BlockSource``. Training blocks must come in the order of their turns."""
        ahead: deque[Future[Float32Array]] = deque()
        for places in requests:
            ahead.append(self._cutter.submit(self._cut, places))
            if len(ahead) == 2:
                yield self._normalised(ahead.popleft())
        while ahead:
            yield self._normalised(ahead.popleft())

    def close(self) -> None:
        """End the threads and release the memory."""
        self.slots.stop()
        self._cutter.shutdown(cancel_futures=True)
        self.slots.close()
        self._kept.clear()

    def _normalised(self, cut: Future[Float32Array]) -> Tensor:
        return self.normalization.apply(sent_to(self._device, torch.from_numpy(cut.result())))

    def _cut(self, places: Sequence[BlockPlace]) -> Float32Array:
        """A batch (B, K, Z, Y, X), in grey values."""
        splits, extent = len(self._splits), places[0].region.shape_zyx
        batch = np.empty((len(places), splits, *extent), np.float32)
        for block, place in zip(batch, places, strict=True):
            block[...] = self._from_slab(place) if isinstance(place, SlabPlace) else self._kept_block(place)
        return batch

    def _from_slab(self, place: SlabPlace) -> NDArray[Any]:
        self.slots.require(place.turn)
        slab, low = self.slots.slab(place.loaded)
        along = [
            reflect_indices(start, count, face, face + size) - first
            for start, count, face, size, first in zip(
                place.region.start_zyx,
                place.region.shape_zyx,
                place.box.start_zyx,
                place.box.shape_zyx,
                low,
                strict=True,
            )
        ]
        lengths = tuple(int(indices[-1] - indices[0]) + 1 for indices in along)
        if lengths == place.region.shape_zyx:  # nothing is reflected: a view, ten times as fast as index vectors
            z, y, x = (slice(int(indices[0]), int(indices[-1]) + 1) for indices in along)
            block = slab[:, z, y, x]
        else:
            block = slab[np.ix_(np.arange(len(slab)), *along)]
        return place.symmetry.apply(block)

    def _kept_block(self, place: BlockPlace) -> Float32Array:
        if place not in self._kept:
            read = np.stack([self._read(volume, place) for volume in self._splits.volumes])
            self._kept[place] = np.ascontiguousarray(place.symmetry.apply(read))
        return self._kept[place]

    def _read(self, volume: Volume, place: BlockPlace) -> Float32Array:
        block = read_reflected(volume, place.region, place.box)
        bad = ~np.isfinite(block)
        if bad.any():
            z = int(np.nonzero(bad.any(axis=(1, 2)))[0][0])
            start, low, size = place.region.start_zyx[0], place.box.start_zyx[0], place.box.shape_zyx[0]
            where = volume.slice_numbers[int(reflect_indices(start + z, 1, low, low + size)[0])]
            if not self._fill:
                raise non_finite_voxels(int(bad[z].sum()), volume, f"in slice {where}")
            block[bad] = self.normalization.mean
        return block
