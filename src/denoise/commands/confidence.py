"""``denoise volume --confidence``: a volume of uncertainties beside the result, one standard deviation per voxel.

The model is run on every split, and how far the outputs differ is turned into an error by what the held-out slices
say (``denoise.trust.confidence``). That takes as many more passes as there are splits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from denoise.api import Compute, input_views
from denoise.checkpoint import Checkpoint, RunFolder
from denoise.commands.display import say, slices_bar
from denoise.commands.inputs import open_splits
from denoise.commands.report import held_out_region, runner
from denoise.config import RunConfig
from denoise.errors import ConfigError
from denoise.files import require_free
from denoise.inference.engine import Denoiser
from denoise.inference.run import Progress, fill_share
from denoise.launch import World, launch
from denoise.tiles import Triple
from denoise.trust.confidence import Confidence, calibrated
from denoise.trust.evidence import collect
from denoise.volumes import Volume, VolumeSink, create_sink, require_same_grid

#: Slices of a view that are denoised at a time; in 3D tiles that reach past them are computed again.
_SLICES = 64
#: Outputs of all views are held at a time, and as much again while they are compared.
_MOST_BYTES = 2**30


@dataclass(frozen=True)
class UncertaintyJob:
    """The uncertainties of one result; picklable."""

    views: tuple[Volume, ...]
    denoiser: Denoiser
    confidence: Confidence
    z_range: range
    sink: VolumeSink
    progress: Progress


def write_uncertainty(
    config: RunConfig,
    compute: Compute,
    checkpoint: Checkpoint,
    denoiser: Denoiser,
    *,
    model: Path,
    grid: Volume,
    z_range: range,
    result: str,
    how: dict[str, Any],
) -> str:
    """Write the uncertainties of a result; returns their path.

    Parameters
    ----------
    denoiser
        That made the result.
    model
        File or folder of the model.
    grid, z_range
        The volume that was denoised, and which of its slices.
    result
        Path of the result; this one is named after it.
    how
        Arguments of ``create_sink`` that both have in common.

    Raises
    ------
    VolumeError
        Too little was held out to calibrate with; the splits are no splits of the volume.
    """
    splits = open_splits(config)
    require_same_grid(splits.volumes[0], grid, "split 0", "the volume that is denoised")
    run = RunFolder(model if model.is_dir() else model.parent)
    region, _ = held_out_region(config, checkpoint, splits, run)
    exact = replace(denoiser, dtype=torch.float32)
    evidence = collect(splits.volumes, region, runner(exact), strategy=checkpoint.strategy, delivers=config.infer.input)
    confidence = calibrated(evidence)
    leads = compute.spread.leads(os.environ)
    facts = {**how.pop("facts"), "holds": "uncertainty"}
    sink = create_sink(
        uncertainty_path(result),
        shape=(len(z_range), *grid.shape[1:]),
        voxel_size_um=grid.voxel_size_um,
        slice_numbers=grid.slice_numbers[z_range.start : z_range.stop],
        description=json.dumps({"software": "ct-denoise", "holds": "uncertainty (one standard deviation)"}),
        facts=facts,
        leads=leads,
        **how,
    )
    devices = compute.devices()
    plane = grid.shape[1] * grid.shape[2]
    progress = partial(slices_bar, "uncertainty", plane * len(devices))
    views = input_views(splits.volumes, checkpoint.strategy)
    job = UncertaintyJob(views, denoiser, confidence, z_range, sink, progress)
    launch(run_uncertainty, job, devices, spread=compute.spread, guard=lambda: sink, name=sink.path)
    if leads:
        say(sink.path)
    return sink.path


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
    require_free(Path(uncertainty_path(result).partition("::")[0]), overwrite=overwrite)


def uncertainty_path(result: str) -> str:
    """Beside the result, named after it."""
    place, inside, dataset = result.partition("::")
    path = Path(place)
    return f"{path.with_name(f'{path.stem}_uncertainty{path.suffix}')}{inside}{dataset}"


def run_uncertainty(world: World, job: UncertaintyJob) -> None:
    """What every process executes."""
    denoiser = replace(job.denoiser, device=world.device)
    run = runner(denoiser)
    at_once = _slices_at_once(job.views[0].shape, len(job.views))

    def fill(piece: range, advance: Callable[[int], None]) -> None:
        for start in range(piece.start, piece.stop, at_once):
            stop = min(start + at_once, piece.stop)
            z_range = range(job.z_range.start + start, job.z_range.start + stop)
            outputs = [run(view, z_range) for view in job.views]
            job.sink.write(start, job.confidence.uncertainty(outputs))
            advance(stop - piece.start)

    fill_share(world, job.sink, job.progress, fill)


def _slices_at_once(shape: Triple, views: int) -> int:
    plane = 4 * shape[1] * shape[2] * (views + 3)
    return int(np.clip(_MOST_BYTES // plane, 1, _SLICES))
