"""The splits as the training loop sees them: batches of blocks (B, K, Z, Y, X), normalised, on the device.

Where they fit, the splits are read once per node, by all its processes together, into memory that those share, and
from there onto the accelerator if they fit there too; cropping, reflection and augmentation are then one gather. Where
they do not fit, every block is read from the files when it is needed, one batch ahead.
"""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from denoise.errors import VolumeError
from denoise.launch import World
from denoise.memory import available_bytes
from denoise.normalization import Moments, Normalization
from denoise.patches.sampler import BlockPlace, block_offsets
from denoise.tiles import Region, Triple
from denoise.volumes.volume import SplitSet, Volume, read_reflected

_log = logging.getLogger(__name__)

#: Share of the free memory that the splits may take; the rest is for the network and the page cache.
_HOST_SHARE = 0.6
_DEVICE_SHARE = 0.4
#: Slices per split that the mean and deviation are taken from where the splits are too large to read whole.
_SAMPLED_SLICES = 64


class BlockSource(Protocol):
    """Gives batches of normalised blocks."""

    normalization: Normalization

    def batches(self, requests: Iterable[Sequence[BlockPlace]]) -> Iterator[Tensor]:
        """For every list of B places one float32 tensor (B, K, Z, Y, X) on the device."""
        ...

    def close(self) -> None:
        """Release memory and threads."""
        ...


def open_blocks(splits: SplitSet, world: World, non_finite: str, normalization: Normalization | None) -> BlockSource:
    """Choose where the splits live, read them if they fit, and measure the normalisation unless it is given.

    Parameters
    ----------
    non_finite
        "error": NaN or Inf voxels are refused; "fill": they are replaced by the mean, and counted.

    Raises
    ------
    VolumeError
        NaN or Inf (naming split and slice), constant volumes, unreadable files.
    """
    if world.from_chief(fits_in_memory(splits)):
        return ResidentBlocks.read(splits, world, _common_dtype(splits), non_finite, normalization)
    return StreamedBlocks.open(splits, world, non_finite, normalization)


def resident_bytes(splits: SplitSet) -> int:
    """How much memory the splits take where they are kept in it, in bytes per node."""
    return len(splits) * int(np.prod(splits.shape, dtype=np.int64)) * _common_dtype(splits).itemsize


def fits_in_memory(splits: SplitSet) -> bool:
    """Whether the splits leave enough of the free memory for everything else."""
    return resident_bytes(splits) <= _HOST_SHARE * available_bytes()


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
    ) -> ResidentBlocks:
        """Read all splits, each process of a node its share of the slices."""
        shape = splits.shape
        array, keep_open = _shared_array((len(splits), *shape), stored, world)
        shares = range(
            world.local_rank * shape[0] // world.local_size, (world.local_rank + 1) * shape[0] // world.local_size
        )
        moments = np.zeros((len(splits) * shape[0], 4))
        for k, volume in enumerate(splits.volumes):
            for z in range(shares.start, shares.stop, 8):
                stop = min(z + 8, shares.stop)
                slab = volume.read_stored(Region.of_slices(z, stop, shape))
                array[k, z:stop] = slab
                for i, image in enumerate(slab):
                    found = Moments.of_slice(image)
                    _refuse_non_finite(found, volume, z + i, non_finite)
                    moments[k * shape[0] + z + i] = _as_row(found)
        # Every node fills the same table: keep the chief's node's rows, then merge them in slice order, so that the
        # result has the same bits whatever the number of processes.
        table = torch.from_numpy(moments if world.rank == world.local_rank else np.zeros_like(moments))
        world.barrier()
        merged = _merged(world.sum(table).numpy())
        normalization = normalization or merged.normalization()
        if merged.non_finite:
            fill = stored.type(normalization.mean)
            for k in range(len(splits)):
                for z in shares:
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
            first, second, third = (
                torch.from_numpy(v).to(self._data.device) for v in block_offsets(places, self._shape)
            )
            offsets = first[:, :, None, None] + second[:, None, :, None] + third[:, None, None, :]
            picked = torch.stack([split[offsets] for split in self._data], dim=1)
            picked = picked.to(self._device)
            if self._unsigned:
                picked = picked.to(torch.int32).bitwise_and_(0xFFFF)
            yield self.normalization.apply(picked.float())

    def close(self) -> None:
        """Release the memory."""
        self._data = torch.empty(0)
        self._keep_open = None


class StreamedBlocks:
    """Splits that are larger than memory: every block is read from its file, one batch ahead of the network."""

    def __init__(self, splits: SplitSet, device: torch.device, fill: bool, normalization: Normalization):
        self._splits = splits
        self._device = device
        self._fill = fill
        self._pool = ThreadPoolExecutor(max_workers=1 + min(8, os.cpu_count() or 1))
        self.normalization = normalization

    @classmethod
    def open(
        cls, splits: SplitSet, world: World, non_finite: str, normalization: Normalization | None
    ) -> StreamedBlocks:
        """Measure the normalisation on slices spread evenly over the splits."""
        chosen = np.unique(np.linspace(0, splits.shape[0] - 1, _SAMPLED_SLICES).round().astype(int))
        if normalization is None:
            rows = np.zeros((len(splits) * len(chosen), 4))
            for i in world.share(len(rows)):
                volume, z = splits.volumes[i // len(chosen)], int(chosen[i % len(chosen)])
                found = Moments.of_slice(volume.read_stored(Region.of_slices(z, z + 1, splits.shape))[0])
                _refuse_non_finite(found, volume, z, non_finite)
                rows[i] = _as_row(found)
            normalization = _merged(world.sum(torch.from_numpy(rows)).numpy()).normalization()
        return cls(splits, world.device, non_finite == "fill", normalization)

    def batches(self, requests: Iterable[Sequence[BlockPlace]]) -> Iterator[Tensor]:
        """See ``BlockSource``."""
        ahead: list[list[Future[NDArray[np.float32]]]] = []
        for places in requests:
            ahead.append([self._pool.submit(self._block, place) for place in places])
            if len(ahead) == 2:
                yield self._finished(ahead.pop(0))
        for futures in ahead:
            yield self._finished(futures)

    def _finished(self, futures: list[Future[NDArray[np.float32]]]) -> Tensor:
        blocks = torch.from_numpy(np.stack([future.result() for future in futures]))
        return self.normalization.apply(blocks.to(self._device))

    def _block(self, place: BlockPlace) -> NDArray[np.float32]:
        block = np.stack([self._read(volume, place) for volume in self._splits.volumes])
        return np.ascontiguousarray(place.symmetry.apply(block))

    def _read(self, volume: Volume, place: BlockPlace) -> NDArray[np.float32]:
        block = read_reflected(volume, place.region, place.box)
        bad = ~np.isfinite(block)
        if bad.any():
            if not self._fill:
                raise VolumeError(
                    _non_finite(
                        int(bad.sum()), volume.name, f"in the block that starts at {place.region.start_zyx} (z, y, x)"
                    )
                )
            block[bad] = self.normalization.mean
        return block

    def close(self) -> None:
        """End the reading threads."""
        self._pool.shutdown(cancel_futures=True)


def _common_dtype(splits: SplitSet) -> np.dtype[Any]:
    """The type that all splits are kept in: their own where it is small and shared, float32 otherwise."""
    kinds = {volume.dtype for volume in splits.volumes}
    kind = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)
    return kind if kind in (np.uint8, np.int16, np.uint16) else np.dtype(np.float32)


def _fits_on(device: torch.device, size: int) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return size <= _DEVICE_SHARE * free


def _shared_array(shape: tuple[int, ...], dtype: np.dtype[Any], world: World) -> tuple[NDArray[Any], object]:
    """An array that all processes of this node share, and what keeps it alive.

    On Linux it is an anonymous memory file of the node's first process, opened by the others through /proc: it needs
    no room in /dev/shm and leaves nothing behind, however the processes die.
    """
    if world.local_size == 1:
        return np.empty(shape, dtype), None
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    path, descriptor = "", -1
    if world.local_rank == 0:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("denoise-splits")
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
        else:
            descriptor, path = tempfile.mkstemp(prefix="denoise-splits-")
        os.ftruncate(descriptor, size)
    shared = Path(world.from_local_chief(path))
    with shared.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), size)
    world.barrier()
    if descriptor >= 0:
        os.close(descriptor)
        if not path.startswith("/proc/"):
            shared.unlink()
    return np.frombuffer(memory, dtype).reshape(shape), memory


def _as_row(moments: Moments) -> NDArray[np.float64]:
    return np.array([moments.count, moments.mean, moments.squared_deviation, moments.non_finite], dtype=np.float64)


def _merged(rows: NDArray[np.float64]) -> Moments:
    total = Moments()
    for count, mean, squared, non_finite in rows:
        total = total.merged(Moments(int(count), float(mean), float(squared), int(non_finite)))
    if total.non_finite:
        _log.warning("%d NaN or Inf voxels in the splits are replaced by their mean for training", total.non_finite)
    return total


def _refuse_non_finite(moments: Moments, volume: Volume, z: int, non_finite: str) -> None:
    if moments.non_finite and non_finite == "error":
        raise VolumeError(_non_finite(moments.non_finite, volume.name, f"in slice {volume.slice_numbers[z]}"))


def _non_finite(count: int, name: str, where: str) -> str:
    return (
        f"{name} holds {count} NaN or Inf voxels {where}; reconstruct again without them, or set "
        "dataset.non_finite: fill to replace them by the mean"
    )
