"""The training data of a run, opened: what of the splits is in memory, and what draws blocks from that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from denoise.checkpoint import TrainState
from denoise.errors import DeviceError
from denoise.launch import World
from denoise.memory import is_out_of_memory
from denoise.normalization import Normalization
from denoise.patches.sampler import Sampler, VolumeSampler
from denoise.patches.slabs import Division
from denoise.patches.turns import SlabSampler
from denoise.readable import gigabytes
from denoise.training.data import BlockSource, open_blocks, resident_bytes
from denoise.training.footprint import Footprint
from denoise.training.job import TrainJob
from denoise.training.memory_plan import plan_again, plan_memory
from denoise.training.part import TrainingPart


@dataclass(frozen=True)
class TrainingData:
    """Where blocks come from, and which.

    Attributes
    ----------
    division
        How the training part is divided where not all of it fits in memory; None where it does.
    """

    source: BlockSource
    sampler: Sampler
    division: Division | None

    @classmethod
    def open(
        cls,
        job: TrainJob,
        part: TrainingPart,
        whole: VolumeSampler,
        dtype: torch.dtype,
        world: World,
        state: TrainState | None,
    ) -> TrainingData:
        """Decide, the same on every process, and read.

        Parameters
        ----------
        whole
            Draws from the whole training part.
        dtype
            That the network computes in.
        state
            Of the run that goes on: it keeps its division and its normalisation.

        Raises
        ------
        VolumeError
            As ``open_blocks`` and ``plan_memory``.
        DeviceError
            There is less memory than that takes.
        """
        division = world.from_chief(_divided(job, part, whole, dtype, world, state) if world.is_chief else None)
        in_whole_batches = math.ceil(whole.epoch_size / job.batch_size) * job.batch_size
        cached = SlabSampler(whole, division, in_whole_batches) if division else None
        source = _opened(job, part, cached, world, state.normalization if state else None)
        return cls(source, cached or whole, division)


def _divided(
    job: TrainJob, part: TrainingPart, whole: VolumeSampler, dtype: torch.dtype, world: World, state: TrainState | None
) -> Division | None:
    footprint = Footprint(
        job.network,
        whole.window,
        device_type=world.device.type,
        processes=world.local_size,
        blocks_each=math.ceil(job.batch_size / world.size),
        splits=len(part.splits),
        itemsize=dtype.itemsize,
        symmetric=part.wants_symmetry(job.settings),
    )
    if state is None:
        return plan_memory(part.splits, whole, footprint, job.max_memory).division
    earlier = Division.of_plain(state.progress.get("division"))
    return plan_again(part.splits, whole, footprint, job.max_memory, earlier).division


def _opened(
    job: TrainJob, part: TrainingPart, cached: SlabSampler | None, world: World, normalization: Normalization | None
) -> BlockSource:
    try:
        return open_blocks(part.splits, world, job.non_finite, normalization, cached, part.used)
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        size = gigabytes(resident_bytes(part.splits))
        raise DeviceError(
            f"memory ran out while the splits were read ({size} in all); give --max-memory less than is free, and only "
            "a part of them is kept in memory"
        ) from error
