"""What of the splits is in memory during training, and how much that takes: decided before any of it is taken."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from denoise.errors import VolumeError
from denoise.memory import data_budget
from denoise.patches.sampler import VolumeSampler, validation_places
from denoise.patches.slabs import Division, divide
from denoise.training.data import bytes_per_voxel, resident_bytes
from denoise.training.footprint import Footprint
from denoise.training.reading import Pieces
from denoise.training.validation import MOST_BLOCKS
from denoise.volumes.combined import chunks_of
from denoise.volumes.volume import SplitSet

_log = logging.getLogger(__name__)

#: A run that is resumed keeps its division if that fits into so much more than would be planned with now: how much of
#: the memory is free is never quite the same twice.
_LENIENCE = 4 / 3
#: Measured 2.5 and 2.8, of chunks of 75 and 268 MB.
_COPIES_OF_A_CHUNK = 3


@dataclass(frozen=True)
class MemoryPlan:
    """What is kept in memory on every node.

    Attributes
    ----------
    division
        None: all of the splits; otherwise slabs.
    data_bytes
        What that takes, with the blocks that are scored, or with what reading all takes besides before training.
    """

    division: Division | None
    data_bytes: int


def plan_memory(splits: SplitSet, sampler: VolumeSampler, footprint: Footprint, max_memory: int | None) -> MemoryPlan:
    """All of the splits where they fit; otherwise slabs, as many as fit.

    Parameters
    ----------
    max_memory
        Bytes that all processes of a node may take together; None: what is free, but for a part.

    Raises
    ------
    DeviceError
        The processes need more than that without any data.
    VolumeError
        Not even the smallest slabs fit.
    """
    budget = _budget(footprint, max_memory)
    if (whole := _whole_bytes(splits, footprint)) <= budget:
        return MemoryPlan(None, whole)
    decoding = _decoding_bytes(splits, footprint)
    left = budget - _kept_bytes(splits, sampler) - decoding
    try:
        division = divide(sampler, bytes_per_voxel(splits), left, chunks_of(splits.volumes))
    except VolumeError as error:
        if not decoding:
            raise
        deepest = max(splits.volumes, key=lambda volume: math.prod(volume.chunk_zyx) * volume.dtype.itemsize)
        raise VolumeError(
            f"{error}; {decoding / 1e6:.1f} MB are set aside to read chunks of "
            f"{' x '.join(map(str, deepest.chunk_zyx))} voxels ({deepest.name}): thinner chunks take less"
        ) from error
    return MemoryPlan(division, _bytes_of(division, splits, sampler) + decoding)


def plan_again(
    splits: SplitSet,
    sampler: VolumeSampler,
    footprint: Footprint,
    max_memory: int | None,
    earlier: Division | None,
) -> MemoryPlan:
    """What a run that is resumed has in memory: the same as before where that fits, so that it draws the same blocks.

    Raises
    ------
    DeviceError, VolumeError
        As ``plan_memory``.
    """
    plan = plan_memory(splits, sampler, footprint, max_memory)
    if plan.division == earlier:
        return plan
    if earlier is None:
        taken = _whole_bytes(splits, footprint)
    else:
        taken = _bytes_of(earlier, splits, sampler) + _decoding_bytes(splits, footprint)
    if taken <= _budget(footprint, max_memory) * (_LENIENCE if max_memory is None else 1):
        return MemoryPlan(earlier, taken)
    _log.warning(
        "there is less memory for training data than before: from here on, blocks are drawn in another order than by "
        "a run that was not stopped"
    )
    return plan


def _budget(footprint: Footprint, max_memory: int | None) -> int:
    return data_budget(max_memory, footprint.bytes if max_memory is not None else 0)


def _whole_bytes(splits: SplitSet, footprint: Footprint) -> int:
    """All of the splits; and what reading takes, while no step takes anything yet, where that is more."""
    more = max(0, Pieces.of(splits).bytes - footprint.not_yet_bytes)
    return resident_bytes(splits) + footprint.processes * more


def _bytes_of(division: Division, splits: SplitSet, sampler: VolumeSampler) -> int:
    slabs = division.slabs(sampler)
    return division.bytes_of(slabs, bytes_per_voxel(splits)) + _kept_bytes(splits, sampler)


def _decoding_bytes(splits: SplitSet, footprint: Footprint) -> int:
    """What takes most beside slabs while one is read: chunks of several slices, stored, decoded and put together."""
    chunks = [math.prod(v.chunk_zyx) * v.dtype.itemsize for v in splits.volumes if v.chunk_zyx[0] > 1]
    return footprint.processes * _COPIES_OF_A_CHUNK * max(chunks, default=0)


def _kept_bytes(splits: SplitSet, sampler: VolumeSampler) -> int:
    """The blocks that every score looks at, float32."""
    places = validation_places(sampler.holdout, sampler.window, splits.shape, MOST_BLOCKS)
    return len(places) * len(splits) * 4 * math.prod(sampler.window.read_zyx)
