"""Denoising into an output, in one process or many: what every process of ``denoise volume`` executes.

The slices that are still missing are divided between the processes. Each streams its own through the engine into its
own copy of the output. Whoever launches them creates the output before, and publishes it after all are done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from denoise.errors import DeviceError
from denoise.inference.engine import Denoiser, denoise_slices
from denoise.inference.reader import LARGEST_LAYER_BYTES, layer_bytes
from denoise.inference.slabs import SlabPlan, plan_slabs
from denoise.launch import World
from denoise.memory import available_bytes, process_bytes, share_of
from denoise.readable import gigabytes
from denoise.tiles import TileGrid
from denoise.volumes import VolumeSink
from denoise.volumes.slice_pool import waiting_bytes
from denoise.volumes.volume import Float32Array, Volume

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Takes how many slices there are to do; the function that it gives takes how many are done."""

#: What libraries take when a batch first goes through the network (measured).
FIRST_BATCH_BYTES = 47_000_000
#: Where no limit is given, layers that are stored together may take this part of the free memory.
_LAYERS_SHARE = 8


@dataclass(frozen=True)
class InferenceJob:
    """One output to fill; picklable."""

    inputs: tuple[Volume, ...]
    denoiser: Denoiser
    z_range: range
    """Consecutive slices of the inputs, counted from 0: slice 0 of the output is the first of them."""
    sink: VolumeSink
    """Entered by whoever launches, in the first process or above it."""
    progress: Progress
    max_memory: int | None = None
    """Host memory of all processes of a node together, in bytes."""


@dataclass(frozen=True)
class MemoryShares:
    """How a process divides the host memory that its inputs and their denoised slices may take.

    Attributes
    ----------
    slabs
        What slabs may take, in bytes; None: as much as is fastest.
    layer
        What may be kept of each input that stores several slices together, in bytes.
    """

    slabs: int | None
    layer: int

    @classmethod
    def of(cls, inputs: Sequence[Volume], grid: TileGrid, allowed: int | None, processes: int) -> MemoryShares:
        """Layers get what is left by the slabs that are fastest.

        Parameters
        ----------
        inputs
            Those that are read at the same time.
        grid
            The tiles that they are denoised in.
        allowed
            What slabs and layers may take together, in bytes; None: layers get a part of the free memory.
        processes
            Of this node, which share that.
        """
        count = len(inputs)
        if allowed is None:
            return cls(None, max(LARGEST_LAYER_BYTES, available_bytes() // (_LAYERS_SHARE * processes * count)))
        layer = max(0, allowed - plan_slabs(grid, count).n_bytes) // count
        return cls(max(0, allowed - sum(layer_bytes(volume, layer) for volume in inputs)), layer)

    def n_bytes(self, inputs: Sequence[Volume], grid: TileGrid) -> int:
        """What slabs and layers take, in bytes.

        Raises
        ------
        DeviceError
            Not even the smallest slabs fit.
        """
        slabs = plan_slabs(grid, len(inputs), self.slabs).n_bytes
        return slabs + sum(layer_bytes(volume, self.layer) for volume in inputs)


def run_worker(world: World, job: InferenceJob) -> None:
    """Denoise this process's share of what is missing.

    Raises
    ------
    DenoiseError
        As ``denoise_slices`` and ``VolumeSink`` say.
    """
    denoiser = replace(job.denoiser, device=world.device)
    grid = TileGrid(job.inputs[0].shape, denoiser.window)
    allowed = None
    if job.max_memory is not None:
        besides = besides_slabs(job.inputs, denoiser, job.sink, largest_layer=0)
        allowed = share_of(job.max_memory, world.local_size) - besides
        least = SlabPlan(grid, len(job.inputs), 1, 1).n_bytes
        if allowed < least:
            needed = job.max_memory + world.local_size * (least - allowed)
            raise DeviceError(
                f"--max-memory {gigabytes(job.max_memory)} is too little for slices of {grid.shape_zyx[1]} x "
                f"{grid.shape_zyx[2]} voxels; allow at least {gigabytes(needed + 9_999_999)}, or use a smaller "
                "infer.tile_size"
            )
    shares = MemoryShares.of(job.inputs, grid, allowed, world.local_size)

    def fill(piece: range, advance: Callable[[int], None]) -> None:
        denoise_slices(
            job.inputs,
            denoiser,
            range(job.z_range.start + piece.start, job.z_range.start + piece.stop),
            partial(_write, job.sink, piece.start),
            advance,
            budget=shares.slabs,
            largest_layer=shares.layer,
        )

    fill_share(world, job.sink, job.progress, fill)


def fill_share(
    world: World, sink: VolumeSink, progress: Progress, fill: Callable[[range, Callable[[int], None]], None]
) -> None:
    """Fill this process's share of what an output misses.

    Parameters
    ----------
    fill
        Writes a run of slices of the output, and tells how many of them are done.
    """
    missing: list[range] = world.from_chief(sink.missing)
    share = shares(missing, world.size, sink.slices_together)[world.rank]
    done = 0
    with progress(sum(map(len, share))) if world.is_chief else nullcontext(_unseen) as shown:
        for piece in share:
            fill(piece, partial(_advance, shown, done))
            done += len(piece)
        sink.flush()


def besides_slabs(
    inputs: Sequence[Volume],
    denoiser: Denoiser,
    sink: VolumeSink | None = None,
    *,
    largest_layer: int = LARGEST_LAYER_BYTES,
) -> int:
    """What this process holds beside slabs while it denoises, in bytes.

    Parameters
    ----------
    inputs
        Those that are read at the same time.
    denoiser
        What they are denoised with.
    sink
        What is written; None: nothing.
    largest_layer
        What is kept at most of each input that stores several slices together.
    """
    _, height, width = inputs[0].shape
    plane = 4 * height * width
    layers = sum(layer_bytes(volume, largest_layer) for volume in inputs)
    taken = process_bytes() + FIRST_BATCH_BYTES + denoiser.batch_bytes + layers
    if sink is not None:
        taken += waiting_bytes(plane)
        if sink.slices_together > 1:
            taken += 2 * sink.slices_together * plane  # a group that is being collected, and one stored
    return taken


def _write(sink: VolumeSink, first: int, start: int, slab: Float32Array) -> None:
    sink.write(first + start, slab)


def _advance(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _unseen(done: int) -> None:
    """The other processes are as far as the first."""


def shares(missing: Sequence[range], count: int, together: int = 1) -> list[list[range]]:
    """Divide runs of slices into ``count`` parts of nearly equal size, each of few runs, in order.

    Runs are only cut at multiples of ``together``.
    """
    total = sum(map(len, missing))
    cuts = [k * total // count for k in range(count + 1)]
    parts: list[list[range]] = [[] for _ in range(count)]
    passed = 0
    for run in missing:
        # Where the parts' limits fall in this run, moved down to the beginning of a group.
        edges = [
            min(max((run.start + cut - passed) // together * together, run.start), run.stop)
            if cut < passed + len(run)
            else run.stop
            for cut in cuts
        ]
        for part, start, stop in zip(parts, edges, edges[1:], strict=False):
            if start < stop:
                part.append(range(start, stop))
        passed += len(run)
    return parts
