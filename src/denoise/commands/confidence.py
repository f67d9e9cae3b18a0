"""``denoise volume --confidence``: a volume of uncertainties beside the result, one standard deviation per voxel.

The model is run on every split, and how far the outputs differ is turned into an error by what the held-out slices
say (``denoise.trust.confidence``). That takes as many more passes as there are splits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from denoise.arithmetic import give_back_unused
from denoise.checkpoint import Checkpoint
from denoise.commands.display import say, slices_bar
from denoise.commands.inputs import open_splits
from denoise.commands.origin import uncertainty_path
from denoise.commands.report import held_out_region, runner
from denoise.config import RunConfig
from denoise.errors import ConfigError, DeviceError
from denoise.files import file_and_dataset, require_free
from denoise.inference.engine import Denoiser
from denoise.inference.models import input_views
from denoise.inference.run import Progress, besides_slabs, fill_share
from denoise.inference.slabs import SlabPlan, plan_slabs
from denoise.launch import Compute, World, launch
from denoise.memory import denoising_bytes, give_back_freed, process_bytes, share_of
from denoise.run_folder import RunFolder
from denoise.tiles import Region, TileGrid
from denoise.trust.confidence import Confidence, calibrated
from denoise.trust.evidence import Evidence, collect, ellipse_of, shown_in
from denoise.volumes import SplitSet, Volume, VolumeSink, require_same_grid
from denoise.volumes.volume import Float32Array

#: Slices of a view that are denoised at a time; in 3D tiles that reach past them are computed again.
_SLICES = 64
#: What is held of these slices at most where no limit is given.
_MOST_BYTES = 2**30
#: Slices of working room while the outputs of a slice are compared: differences, smoothed, looked up in float64.
_COMPARING = 10
#: Of a voxel that is calibrated with: disagreement and error, float32, and a copy of one of them.
_CALIBRATED_BYTES = 12


@dataclass(frozen=True)
class Portion:
    """So many slices are denoised and compared at a time, with so much memory for the slabs of the engine."""

    slices: int
    slab_bytes: int | None

    @classmethod
    def of(cls, grid: TileGrid, images: int, max_memory: int | None, besides: int = 0) -> Portion:
        """What fits.

        Parameters
        ----------
        images
            So many are held of each slice of the portion.
        max_memory
            What this process may take, in bytes; None: as much as is fastest.
        besides
            What it takes besides slabs and portion.

        Raises
        ------
        DeviceError
            Not even one slice at a time fits; says how much would.
        """
        plane = 4 * grid.shape_zyx[1] * grid.shape_zyx[2]
        if max_memory is None:
            return cls(int(np.clip(_MOST_BYTES // (images * plane), 1, _SLICES)), None)
        least = SlabPlan(grid, 1, 1, 1).n_bytes
        left = max_memory - besides - images * plane
        if left < least:
            needed = besides + images * plane + least
            raise DeviceError(
                f"--confidence needs about {needed / 1e9:.2f} GB of memory for each process, on slices of "
                f"{grid.shape_zyx[1]} x {grid.shape_zyx[2]} voxels one at a time, and {max_memory / 1e9:.2f} GB are "
                "allowed; allow more with --max-memory, or use a smaller infer.tile_size"
            )
        slabs = plan_slabs(grid, 1, max(least, left // 2)).n_bytes
        slices = int(np.clip(min(left - slabs, _MOST_BYTES) // (images * plane) + 1, 1, _SLICES))
        return cls(slices, slabs)


@dataclass(frozen=True)
class UncertaintyJob:
    """The uncertainties of one result; picklable."""

    views: tuple[Volume, ...]
    denoiser: Denoiser
    confidence: Confidence
    z_range: range
    sink: VolumeSink
    progress: Progress
    max_memory: int | None = None
    """Host memory of all processes of a node together, in bytes."""


@dataclass(frozen=True)
class Uncertainty:
    """What is to be written beside a result, as far as it is known before the result is made."""

    splits: SplitSet
    views: tuple[Volume, ...]
    region: Region
    """Held out: calibrated on."""
    checkpoint: Checkpoint
    denoiser: Denoiser
    z_range: range
    sink: VolumeSink
    delivers: str
    max_memory: int | None
    """Host memory of all processes of a node together, in bytes."""
    calibrating: int
    """Processes of this node, each of which judges the held-out slices."""

    @classmethod
    def of(
        cls,
        config: RunConfig,
        compute: Compute,
        checkpoint: Checkpoint,
        denoiser: Denoiser,
        *,
        model: Path,
        grid: Volume,
        z_range: range,
        sink: VolumeSink,
    ) -> Uncertainty:
        """Check all that can be checked before anything is denoised.

        Parameters
        ----------
        denoiser
            That makes the result.
        model
            File or folder of the model.
        grid, z_range
            The volume that is denoised, and which of its slices.
        sink
            Takes the uncertainties; not entered yet.

        Raises
        ------
        VolumeError
            The splits are no splits of the volume; too little was held out to calibrate with.
        DeviceError
            The memory that is allowed is not enough.
        """
        splits = open_splits(config)
        require_same_grid(splits.volumes[0], grid, "split 0", "the volume that is denoised")
        run = RunFolder(model if model.is_dir() else model.parent)
        region, _ = held_out_region(config, checkpoint, splits, run)
        views = input_views(splits.volumes, checkpoint.strategy)
        joined = compute.place
        processes = len(compute.devices()) if joined is None else joined.local_size
        made = cls(
            splits,
            views,
            region,
            checkpoint,
            denoiser,
            z_range,
            sink,
            delivers=config.infer.input,
            max_memory=config.max_memory,
            calibrating=1 if joined is None else joined.local_size,
        )
        made.calibration()
        # Those processes are not there yet: they will take what this one does, or what such a process is known to.
        more = max(0, denoising_bytes("cpu", 1) - process_bytes())
        portion_of(views, denoiser, sink, config.max_memory, processes, more)
        return made

    def calibration(self) -> Portion:
        """How many held-out slices are judged at a time.

        Raises
        ------
        DeviceError
            Not even one fits into the memory that is allowed.
        """
        count = len(self.splits)
        # Of each slice: splits, means of the others, outputs, the image from all, its answer to a probe, that probe.
        images = 4 * count + 7
        # Of one slice all of these again in float64, and the terms of its error.
        judging = 2 * images + 20
        z, y, x = self.region.shape_zyx
        allowed, besides = None, 0
        if self.max_memory is not None:
            allowed = share_of(self.max_memory, self.calibrating)
            besides = besides_slabs(self.splits.volumes, self._judged) + (_CALIBRATED_BYTES * z + 4 * judging) * y * x
        return Portion.of(TileGrid(self.splits.shape, self.denoiser.window), images, allowed, besides)

    def calibrated(self) -> Confidence:
        """Judge the held-out slices, a few at a time."""
        found = calibrated(self._evidence(self.calibration()))
        give_back_freed()
        give_back_unused(self.denoiser.device)
        return found

    @property
    def _judged(self) -> Denoiser:
        return replace(self.denoiser, dtype=torch.float32)

    def _evidence(self, portion: Portion) -> Iterator[Evidence]:
        run = runner(self._judged, portion.slab_bytes)
        start, stop = self.region.start_zyx[0], self.region.stop_zyx[0]
        pieces = [range(z, min(z + portion.slices, stop)) for z in range(start, stop, portion.slices)]
        seen, known = self._looked_at(pieces)
        for piece in pieces:
            region = replace(
                self.region,
                start_zyx=(piece.start, *self.region.start_zyx[1:]),
                shape_zyx=(len(piece), *self.region.shape_zyx[1:]),
            )
            yield collect(
                self.splits.volumes,
                region,
                run,
                strategy=self.checkpoint.strategy,
                delivers=self.delivers,
                seen=seen & known,
            )

    def _looked_at(self, pieces: Sequence[range]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(Y, X) each: the field of view, and what is finite in all held-out slices."""
        shown, bad = np.zeros((2, *self.splits.shape[1:]), bool)
        for piece in pieces:
            splits = self._read(piece)
            shown |= shown_in(splits)
            bad |= ~np.isfinite(np.sum(splits, axis=0)).all(axis=0)
        return ellipse_of(shown), ~bad

    def _read(self, z_range: range) -> list[Float32Array]:
        whole = Region.of_slices(z_range.start, z_range.stop, self.splits.shape)
        return [volume.read(whole) for volume in self.splits.volumes]


def write_uncertainty(made: Uncertainty, confidence: Confidence, compute: Compute) -> None:
    """Write the uncertainties, as ``made.calibrated`` says, and where they are."""
    devices, sink = compute.devices(), made.sink
    plane = made.splits.shape[1] * made.splits.shape[2]
    progress = partial(slices_bar, "uncertainty", plane * len(devices))
    job = UncertaintyJob(made.views, made.denoiser, confidence, made.z_range, sink, progress, made.max_memory)
    launch(run_uncertainty, job, devices, spread=compute.spread, guard=lambda: sink, name=sink.path)
    if compute.spread.leads(os.environ):
        say(sink.path)


def require_uncertainty(config: RunConfig, result: str, *, overwrite: bool) -> None:
    """Refuse, before hours of denoising, what cannot be written after them.

    Raises
    ------
    ConfigError
        The config names no splits.
    OutputError
        The place is taken.
    """
    if not config.given_splits:
        raise ConfigError("--confidence needs the sub-reconstructions; name them in dataset.splits")
    require_free(Path(file_and_dataset(uncertainty_path(result))[0]), overwrite=overwrite)


def run_uncertainty(world: World, job: UncertaintyJob) -> None:
    """What every process executes."""
    held = portion_of(job.views, job.denoiser, job.sink, job.max_memory, world.local_size)
    run = runner(replace(job.denoiser, device=world.device), held.slab_bytes)

    def fill(piece: range, advance: Callable[[int], None]) -> None:
        for start in range(piece.start, piece.stop, held.slices):
            stop = min(start + held.slices, piece.stop)
            z_range = range(job.z_range.start + start, job.z_range.start + stop)
            outputs = [run(view, z_range) for view in job.views]
            job.sink.write(start, job.confidence.uncertainty(outputs))
            advance(stop - piece.start)

    fill_share(world, job.sink, job.progress, fill)


def portion_of(
    views: Sequence[Volume],
    denoiser: Denoiser,
    sink: VolumeSink,
    max_memory: int | None,
    processes: int,
    more: int = 0,
) -> Portion:
    """How many slices a process denoises and compares at a time.

    Parameters
    ----------
    max_memory
        What all processes of this node may take together, in bytes; None: as much as is fastest.
    processes
        Of this node.
    more
        What such a process takes more than this one does now.

    Raises
    ------
    DeviceError
        Not even one slice at a time fits.
    """
    images = len(views) + 2  # the outputs, the uncertainty, and what is written of it
    grid = TileGrid(views[0].shape, denoiser.window)
    if max_memory is None:
        return Portion.of(grid, images, None)
    besides = besides_slabs(views[:1], denoiser, sink) + 4 * _COMPARING * views[0].shape[1] * views[0].shape[2] + more
    return Portion.of(grid, images, share_of(max_memory, processes), besides)
