"""What reading the splits into memory needs, whichever part of them is kept there: types, sharing, statistics, NaN."""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from denoise.errors import VolumeError
from denoise.launch import World
from denoise.normalization import Moments, Normalization
from denoise.tiles import Region
from denoise.volumes.combined import chunks_of
from denoise.volumes.volume import SplitSet, Volume

_log = logging.getLogger(__name__)

#: Slices per split that the mean and deviation are taken from where the splits are too large to read whole.
_SAMPLED_SLICES = 64
#: And only so many that the run can begin within minutes, where slices are enormous or stored in deep chunks: 64 of
#: 2048^2, 16 of 4096^2.
_SAMPLED_VOXELS = 2**28
_FEWEST_SAMPLED = 4
#: Of the deviations of most slices: no object, and no metal, is so far beyond air.
_FAR_BEYOND = 10_000
#: So many of the smallest steps of float32 are to be in the standard deviation within slices.
_STEPS = 2
#: As a share of the slices that are looked at: of more than these they are the object, beside slices of nothing.
_EXCEPTIONS = 0.15
#: No reconstruction has grey values as large, whatever its unit.
_NO_GREY_VALUE = 1e15
#: Of a slice that is looked at for its moments at a time, which takes 24 bytes for each voxel.
_BAND_VOXELS = 2**20
_BYTES_FOR_MOMENTS = 24
#: Read by one thread at a time: enough for a disk to be fast. More only where slices are larger, or stored together.
_PIECE_BYTES = 16_000_000
#: A layer of slices that are decoded together is read whole up to here; larger ones are decoded again for each piece.
_MOST_OF_A_LAYER = 512_000_000
#: Read by all threads at a time.
_AT_ONCE_BYTES = 128_000_000
_THREADS = 4


@dataclass(frozen=True)
class Pieces:
    """In what portions whole volumes are read into memory.

    Attributes
    ----------
    slices
        So many at a time.
    threads
        So many portions at a time.
    bytes
        Memory that takes, besides where the voxels go.
    """

    slices: int
    threads: int
    bytes: int

    @classmethod
    def of(cls, splits: SplitSet) -> Pieces:
        """Portions of some MB, that cut no layer of slices that are stored together unless it is enormous."""
        depth, height, width = splits.shape
        image = height * width * max(volume.dtype.itemsize for volume in splits.volumes)
        layer = chunks_of(splits.volumes)[0]
        slices = max(1, _PIECE_BYTES // image)
        if layer * image <= _MOST_OF_A_LAYER:
            slices = -(-slices // layer) * layer
        slices = min(slices, depth)
        threads = min(_THREADS, max(1, _AT_ONCE_BYTES // (slices * image)))
        looked_at = _BYTES_FOR_MOMENTS * min(height * width, max(_BAND_VOXELS, width))
        copies = 2 if layer > 1 else 1  # what is decoded, and where it is put together
        return cls(slices, threads, threads * (copies * slices * image + looked_at))


def common_dtype(splits: SplitSet) -> np.dtype[Any]:
    """The type that all splits are kept in: their own where it is small and shared, float32 otherwise."""
    kinds = {volume.dtype for volume in splits.volumes}
    kind = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)
    return kind if kind in (np.uint8, np.int16, np.uint16) else np.dtype(np.float32)


def shared_array(shape: tuple[int, ...], dtype: np.dtype[Any], world: World) -> tuple[NDArray[Any], object]:
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


def sampled_normalization(splits: SplitSet, world: World, non_finite: str, used: range | None = None) -> Normalization:
    """Mean and deviation from slices spread evenly over those that are used, each process its share of them.

    Raises
    ------
    VolumeError
        NaN or Inf in one of these slices, unless they are to be filled; constant volumes; unreadable files.
    """
    depth, height, width = splits.shape
    used = used or range(depth)
    decoded = height * width * max(volume.chunk_zyx[0] for volume in splits.volumes)
    at_most = max(_FEWEST_SAMPLED, min(_SAMPLED_SLICES, _SAMPLED_VOXELS // decoded))
    chosen = np.unique(np.linspace(used[0], used[-1], min(at_most, len(used))).round().astype(int))
    rows = np.zeros((len(splits) * len(chosen), 4))
    for i in world.share(len(rows)):
        volume, z = splits.volumes[i // len(chosen)], int(chosen[i % len(chosen)])
        bands = (
            (band, volume.read_stored(Region((z, band.start, 0), (1, len(band), width)))[0])
            for band in bands_of(height, width)
        )
        moments = moments_of(bands, height)
        refuse_non_finite(moments, volume, z, non_finite)
        rows[i] = as_row(moments)
    found = world.sum(torch.from_numpy(rows)).numpy()
    normalization = merged(found).normalization()
    refuse_unusable(found, splits, chosen.tolist())
    return normalization


def bands_of(height: int, width: int) -> Iterator[range]:
    """Rows of a slice that are looked at together."""
    step = max(1, _BAND_VOXELS // width)
    return (range(y, min(y + step, height)) for y in range(0, height, step))


def moments_of(bands: Iterable[tuple[range, NDArray[Any]]], height: int) -> Moments:
    """Of one slice of this height, from bands of its rows."""
    found = Moments()
    for rows, band in bands:
        found = found.merged(Moments.of_rows(band, rows, height))
    return found


def as_row(moments: Moments) -> NDArray[np.float64]:
    """Moments as numbers that can be added up over processes."""
    return np.array([moments.count, moments.mean, moments.squared_deviation, moments.non_finite], dtype=np.float64)


def merged(rows: NDArray[np.float64]) -> Moments:
    """Rows of moments together, in their order; tells of voxels that are not finite."""
    total = Moments()
    for count, mean, squared, non_finite in rows:
        total = total.merged(Moments(int(count), float(mean), float(squared), int(non_finite)))
    if total.non_finite:
        _log.warning("%d NaN or Inf voxels in the splits are replaced by their mean for training", total.non_finite)
    return total


def refuse_unusable(rows: NDArray[np.float64], splits: SplitSet, zs: Sequence[int]) -> None:
    """Raise a VolumeError that names a split which shows nothing, or a slice beside which all others show nothing.

    Parameters
    ----------
    rows
        Moments of slices, split after split, as many of each.
    zs
        Which slices (counted from 0) these are of each split.
    """
    for volume, mine in zip(splits.volumes, np.split(rows, len(splits)), strict=True):
        seen = mine[mine[:, 0] > 0]
        if len(seen) and not seen[:, 2].any() and np.ptp(seen[:, 1]) == 0:
            raise VolumeError(
                f"every voxel of {volume.name} that was looked at has the same value {seen[0, 1]:g}: nothing can be "
                "learnt from it; check the file"
            )
        deviations = np.sqrt(mine[:, 2] / np.maximum(mine[:, 0], 1))
        # Where most slices are empty, nearly, those of the object are no exception.
        usual = float(np.quantile(deviations[mine[:, 0] > 0], 0.75)) if len(seen) else 0.0
        worst = int(np.argmax(deviations))
        beyond = int(np.count_nonzero(deviations > _FAR_BEYOND * usual)) if usual > 0 else 0
        if beyond:
            found = (
                f"slice {volume.slice_numbers[zs[worst]]} of {volume.name} has a standard deviation of "
                f"{deviations[worst]:.3g}, the others have {usual:.3g}"
            )
            if beyond <= max(1, _EXCEPTIONS * len(seen)) or deviations[worst] > _NO_GREY_VALUE:
                raise VolumeError(
                    f"{found}: it holds values that mean something else, beside which the rest is nothing; replace "
                    "them (by NaN, with dataset.non_finite: fill), or leave the slice out (dataset.train_start_slice, "
                    "train_end_slice)"
                )
            _log.warning(
                "%s: if that is not the object beside slices of nothing, but fill values, nothing will be learnt; "
                "replace those by NaN, with dataset.non_finite: fill",
                found,
            )
        _refuse_too_far_from_zero(seen, volume)


def _refuse_too_far_from_zero(rows: NDArray[np.float64], volume: Volume) -> None:
    deviations = np.sqrt(rows[:, 2] / rows[:, 0])
    steps = np.spacing(np.abs(rows[:, 1]).astype(np.float32)).astype(np.float64)
    shown = deviations > 0
    lost = np.flatnonzero(shown & (deviations < _STEPS * steps))
    if 2 * len(lost) > np.count_nonzero(shown):
        mean, deviation, step = (float(v[lost[0]]) for v in (rows[:, 1], deviations, steps))
        raise VolumeError(
            f"the grey values of {volume.name} are {mean:.10g} +- {deviation:.3g}, and single precision, in which all "
            f"is computed, tells apart steps of {step:g} there; subtract an offset from all volumes"
        )


def refuse_non_finite(moments: Moments, volume: Volume, z: int, non_finite: str) -> None:
    """Raise a VolumeError that names split and slice, unless non-finite voxels are to be filled."""
    if moments.non_finite and non_finite == "error":
        raise non_finite_voxels(moments.non_finite, volume, f"in slice {volume.slice_numbers[z]}")


def non_finite_voxels(count: int, volume: Volume, where: str) -> VolumeError:
    """The error for voxels that are NaN or Inf and may not be filled."""
    return VolumeError(
        f"{volume.name} holds {count} NaN or Inf voxels {where}; reconstruct again without them, or set "
        "dataset.non_finite: fill to replace them by the mean"
    )
