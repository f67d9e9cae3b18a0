"""The splits as the training loop sees them: batches of blocks (B, K, Z, Y, X), normalised, on the device.

Where they fit, the splits are read once per node, by all its processes together, into memory that those share, and
from there onto the accelerator if they fit there too; cropping, reflection and augmentation are then one gather. Where
they do not fit, a few slabs of them are in memory at a time (``cache.py``), and blocks are drawn from those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from denoise.arithmetic import free_on, sent_to
from denoise.launch import World
from denoise.memory import give_back_freed, large_arrays_given_back
from denoise.normalization import Normalization
from denoise.patches.sampler import BlockPlace, block_offsets
from denoise.patches.turns import SlabSampler
from denoise.tiles import Region, Triple
from denoise.training.cache import CachedBlocks
from denoise.training.reading import (
    Pieces,
    as_row,
    bands_of,
    common_dtype,
    merged,
    moments_of,
    refuse_non_finite,
    refuse_unusable,
    shared_array,
)
from denoise.volumes.volume import SplitSet

_DEVICE_SHARE = 0.4


class BlockSource(Protocol):
    """Gives batches of normalised blocks."""

    normalization: Normalization

    def batches(self, requests: Iterable[Sequence[BlockPlace]]) -> Iterator[Tensor]:
        """For every list of B places one float32 tensor (B, K, Z, Y, X) on the device."""
        ...

    def close(self) -> None:
        """Release memory and threads."""
        ...


def open_blocks(
    splits: SplitSet,
    world: World,
    non_finite: str,
    normalization: Normalization | None,
    cached: SlabSampler | None = None,
    used: range | None = None,
) -> BlockSource:
    """Read the splits into memory, or make room for slabs of them; measure the normalisation unless it is given.

    Parameters
    ----------
    non_finite
        "error": NaN or Inf voxels are refused; "fill": they are replaced by the mean, and counted.
    cached
        What draws the training blocks where only slabs are kept (``memory_plan.py``); None: all is kept.
    used
        Slices that blocks read: mean and deviation are theirs, and others may hold anything; None: all.

    Raises
    ------
    VolumeError
        NaN or Inf (naming split and slice), constant volumes, unreadable files.
    """
    if cached is None:
        return ResidentBlocks.read(splits, world, common_dtype(splits), non_finite, normalization, used)
    return CachedBlocks.open(splits, cached.turns, world, non_finite, normalization, used)


def bytes_per_voxel(splits: SplitSet) -> int:
    """What a voxel of all splits together takes in memory."""
    return len(splits) * common_dtype(splits).itemsize


def resident_bytes(splits: SplitSet) -> int:
    """How much memory the splits take where all of them are kept in it, in bytes per node."""
    return bytes_per_voxel(splits) * int(np.prod(splits.shape, dtype=np.int64))


class ResidentBlocks:
    """Splits in memory: (K, Z*Y*X) on the device, or on the host where the device is too small."""

    def __init__(self, data: Tensor, shape: Triple, unsigned: bool, normalization: Normalization, device: torch.device):
        self._data = data
        self._shape = shape
        self._unsigned = unsigned
        self._device = device
        self.normalization = normalization

    @classmethod
    def read(
        cls,
        splits: SplitSet,
        world: World,
        stored: np.dtype[Any],
        non_finite: str,
        normalization: Normalization | None,
        used: range | None = None,
    ) -> ResidentBlocks:
        """Read all splits, each process of a node its share of the slices, some at a time (``Pieces``)."""
        shape = splits.shape
        used = used or range(shape[0])
        array, keep_open = shared_array((len(splits), *shape), stored, world)
        pieces = Pieces.of(splits)
        mine = range(0, shape[0], pieces.slices)[world.local_rank :: world.local_size]
        moments = np.zeros((len(splits) * shape[0], 4))

        def read(k: int, start: int) -> None:
            volume, stop = splits.volumes[k], min(start + pieces.slices, shape[0])
            slab = volume.read_stored(Region.of_slices(start, stop, shape))
            array[k, start:stop] = slab
            for z, image in enumerate(slab, start):
                if z not in used:
                    continue
                bands = ((rows, image[rows.start : rows.stop]) for rows in bands_of(*shape[1:]))
                found = moments_of(bands, shape[1])
                refuse_non_finite(found, volume, z, non_finite)
                moments[k * shape[0] + z] = as_row(found)

        pool = ThreadPoolExecutor(pieces.threads)
        # What stayed with the threads, 130 MB of four that read slices of 512^2, would come on top of the steps.
        with large_arrays_given_back():
            try:
                for done in [pool.submit(read, k, start) for k in range(len(splits)) for start in mine]:
                    done.result()
            finally:
                pool.shutdown(cancel_futures=True)
        give_back_freed()
        # Every node fills the same table: keep the chief's node's rows, then merge them in slice order, so that the
        # result has the same bits whatever the number of processes.
        table = torch.from_numpy(moments if world.rank == world.local_rank else np.zeros_like(moments))
        world.barrier()
        rows = world.sum(table).numpy()
        found_in_all = merged(rows)
        normalization = normalization or found_in_all.normalization()
        refuse_unusable(rows, splits, range(shape[0]))
        if found_in_all.non_finite:
            fill = stored.type(normalization.mean)
            for k in range(len(splits)):
                for z in (z for start in mine for z in range(start, start + pieces.slices) if z in used):
                    image = array[k, z]
                    image[~np.isfinite(image)] = fill
            world.barrier()
        unsigned = stored == np.uint16
        flat = torch.from_numpy((array.view(np.int16) if unsigned else array).reshape(len(splits), -1))
        if _fits_on(world.device, flat.nbytes):
            flat, keep_open = flat.to(world.device), None
        source = cls(flat, shape, unsigned, normalization, world.device)
        source._keep_open = keep_open
        return source

    _keep_open: object = None

    def batches(self, requests: Iterable[Sequence[BlockPlace]]) -> Iterator[Tensor]:
        """See ``BlockSource``."""
        for places in requests:
            along = block_offsets(places, self._shape)
            # Together: to a GPU every copy has its price.
            together = sent_to(self._data.device, torch.from_numpy(np.concatenate(along, axis=1)))
            first, second, third = torch.split(together, [vector.shape[1] for vector in along], dim=1)
            offsets = first[:, :, None, None] + second[:, None, :, None] + third[:, None, None, :]
            picked = torch.stack([split[offsets] for split in self._data], dim=1)
            picked = sent_to(self._device, picked) if picked.device != self._device else picked
            if self._unsigned:
                picked = picked.to(torch.int32).bitwise_and_(0xFFFF)
            yield self.normalization.apply(picked.float())

    def close(self) -> None:
        """Release the memory."""
        self._data = torch.empty(0)
        self._keep_open = None


def _fits_on(device: torch.device, size: int) -> bool:
    free = free_on(device)
    return free is not None and size <= _DEVICE_SHARE * free
