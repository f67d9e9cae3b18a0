"""Denoising into an output, in one process or many: what every process of ``denoise volume`` executes.

The slices that are still missing are divided between the processes. Each streams its own through the engine into its
own copy of the output; the first process creates the output, and publishes it when all are done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial

from denoise.inference.engine import Denoiser, denoise_slices
from denoise.launch import World
from denoise.memory import process_bytes
from denoise.volumes import VolumeSink
from denoise.volumes.volume import Float32Array, Volume

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Takes how many slices there are to do; the function that it gives takes how many are done."""

#: Slabs get what is left of the memory that is allowed; a batch on its way through the network takes about this much.
_BATCH_BYTES = 200_000_000


@dataclass(frozen=True)
class InferenceJob:
    """One output to fill; picklable."""

    inputs: tuple[Volume, ...]
    denoiser: Denoiser
    z_range: range
    """Consecutive slices of the inputs, counted from 0: slice 0 of the output is the first of them."""
    sink: VolumeSink
    progress: Progress
    max_memory: int | None = None
    """Host memory of all processes of a node together, in bytes."""


def run_worker(world: World, job: InferenceJob) -> None:
    """Denoise this process's share of what is missing.

    Raises
    ------
    DenoiseError
        As ``denoise_slices`` and ``VolumeSink`` say.
    """
    denoiser = replace(job.denoiser, device=world.device)
    with ExitStack() as stack:
        sink = stack.enter_context(job.sink) if world.is_chief else job.sink
        missing: list[range] = world.from_chief(sink.missing)
        share = shares(missing, world.size)[world.rank]
        progress = stack.enter_context(job.progress(sum(map(len, share)))) if world.is_chief else _unseen
        done = 0
        for piece in share:
            denoise_slices(
                job.inputs,
                denoiser,
                range(job.z_range.start + piece.start, job.z_range.start + piece.stop),
                partial(_write, sink, piece.start),
                partial(_advance, progress, done),
                budget=_budget(job, world),
            )
            done += len(piece)
        sink.flush()
        world.barrier()


def _budget(job: InferenceJob, world: World) -> int | None:
    if job.max_memory is None:
        return None
    return max(0, job.max_memory // world.local_size - process_bytes() - _BATCH_BYTES)


def _write(sink: VolumeSink, first: int, start: int, slab: Float32Array) -> None:
    sink.write(first + start, slab)


def _advance(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _unseen(done: int) -> None:
    """The other processes are as far as the first."""


def shares(missing: Sequence[range], count: int) -> list[list[range]]:
    """Divide runs of slices into ``count`` parts of nearly equal size, each of few runs, in order."""
    total = sum(map(len, missing))
    parts: list[list[range]] = []
    for k in range(count):
        low, high = k * total // count, (k + 1) * total // count
        part, passed = [], 0
        for run in missing:
            piece = run[max(low - passed, 0) : max(high - passed, 0)]
            passed += len(run)
            if piece:
                part.append(piece)
        parts.append(part)
    return parts
