"""``denoise slice`` and ``denoise volume``: one is a range of length one of the other."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from denoise.api import load_checkpoint
from denoise.checkpoint import Checkpoint
from denoise.commands.display import say, say_device, slices_bar
from denoise.commands.inputs import (
    InferenceInputs,
    given_normalization,
    made_by,
    open_inference_inputs,
    open_splits,
    require_not_an_input,
)
from denoise.commands.origin import Origin, described, is_there, made_how, made_with, uncertainty_path
from denoise.config import RunConfig
from denoise.config.recipes import RECIPES
from denoise.errors import CheckpointError, OutputError, VolumeError
from denoise.inference.engine import Denoiser
from denoise.inference.models import make_denoiser, warn_of_another_scale
from denoise.inference.run import InferenceJob, run_worker
from denoise.launch import Compute, launch
from denoise.modes import mode_of
from denoise.normalization import Normalization
from denoise.readable import counted
from denoise.volumes import (
    Volume,
    VolumeSink,
    create_sink,
    is_whole,
    require_same_grid,
    slice_range,
)
from denoise.volumes.volume import describe_numbers

_log = logging.getLogger(__name__)

#: Whole numbers keep an image whose standard deviation is a few of them.
_COARSEST = 2.0


@dataclass(frozen=True)
class Choice:
    """What the user chose on the command line, the same for a slice and a volume."""

    criterion: str = "val"
    model: Path | None = None
    mode: str | None = None
    output: str | None = None
    overwrite: bool = False
    resume: bool = False
    dtype: str = "float32"
    compression: str | None = None
    confidence: bool = False


def denoise_volume(
    config: RunConfig, compute: Compute, choice: Choice, *, start: int | None = None, end: int | None = None
) -> str:
    """Denoise slices start..end-1 (numbers) into a folder or file; returns its path."""
    checkpoint = _model(config, choice)
    inputs = open_inference_inputs(config, checkpoint.strategy)
    z_range = slice_range(inputs.grid, start, end)
    numbers = inputs.grid.slice_numbers[z_range.start : z_range.stop]
    name = f"{config.sample_name}_denoised_volume_{_made_by(config, checkpoint, choice)}"
    if len(numbers) < inputs.grid.shape[0]:
        name += f"_slices_{numbers[0]:05d}-{numbers[-1]:05d}"
    output = choice.output or str(config.dataset.folder / name)
    require_not_an_input(output, config)
    if choice.confidence:
        _denoise_with_uncertainty(config, compute, choice, checkpoint, inputs, z_range, output)
        return output
    origin = Origin.of(config, checkpoint, inputs, z_range)
    if _is_done(choice, output, inputs, numbers, origin):
        say(output)
    else:
        _denoise(config, compute, choice, checkpoint, inputs, z_range, output, origin)
    return output


def _denoise_with_uncertainty(
    config: RunConfig,
    compute: Compute,
    choice: Choice,
    checkpoint: Checkpoint,
    inputs: InferenceInputs,
    z_range: range,
    output: str,
) -> None:
    # Imported where it is used: what judges results takes 70 MB of memory.
    from denoise.commands.confidence import Uncertainty, require_uncertainty, write_uncertainty

    require_uncertainty(config, output, overwrite=choice.overwrite or choice.resume)
    beside = uncertainty_path(output)
    uncertainty = confidence = None
    splits = open_splits(config)
    require_same_grid(splits.volumes[0], inputs.grid, "split 0", "the volume that is denoised")
    origin = Origin.of(config, checkpoint, inputs, z_range)
    compared = origin.with_splits(splits.volumes, z_range)
    numbers = inputs.grid.slice_numbers[z_range.start : z_range.stop]
    if not _is_done(replace(choice, dtype="float32"), beside, inputs, numbers, compared):
        denoiser = _denoiser(config, compute, checkpoint, inputs.grid)
        sink = _sink(
            beside,
            compute,
            choice,
            inputs.grid,
            z_range,
            description=described({"holds": "uncertainty (one standard deviation)"}, compared),
            facts={**made_how(denoiser, inputs), **compared.parts, "holds": "uncertainty"},
        )
        model = choice.model or config.output_dir
        uncertainty = Uncertainty.of(
            config, compute, checkpoint, denoiser, model=model, grid=inputs.grid, z_range=z_range, sink=sink
        )
        confidence = uncertainty.calibrated()  # before hours of denoising: too little may have been held out
    if _is_done(choice, output, inputs, numbers, origin):
        say(output)
    else:
        _denoise(config, compute, choice, checkpoint, inputs, z_range, output, origin)
    if uncertainty is None or confidence is None:
        say(beside)
    else:
        write_uncertainty(uncertainty, confidence, compute)


def _sink(
    path: str,
    compute: Compute,
    choice: Choice,
    grid: Volume,
    z_range: range,
    *,
    description: str,
    facts: dict[str, Any],
    dtype: np.dtype[Any] | None = None,
) -> VolumeSink:
    """An output of these slices of a volume, of type float32 unless another is given."""
    return create_sink(
        path,
        shape=(len(z_range), *grid.shape[1:]),
        dtype=np.dtype(np.float32) if dtype is None else dtype,
        voxel_size_um=grid.voxel_size_um,
        slice_numbers=grid.slice_numbers[z_range.start : z_range.stop],
        overwrite=choice.overwrite,
        description=description,
        compression=choice.compression,
        resumable=len(z_range) > 1,
        resume=choice.resume,
        facts=facts,
        leads=compute.spread.leads(os.environ),
    )


def _is_done(choice: Choice, output: str, inputs: InferenceInputs, numbers: range, origin: Origin) -> bool:
    """Whether ``--resume`` finds a whole result."""
    if not choice.resume or choice.overwrite:
        return False
    _, rows, columns = inputs.grid.shape
    if not is_there(output, numbers, (rows, columns), _output_type(choice.dtype, inputs.dtype), origin):
        return False
    _log.info("nothing is left to do for %s", output)
    return True


def denoise_slice(config: RunConfig, compute: Compute, choice: Choice, *, number: int) -> str:
    """Denoise the slice of this number into a TIFF file; returns its path."""
    checkpoint = _model(config, choice)
    inputs = open_inference_inputs(config, checkpoint.strategy)
    numbers = inputs.grid.slice_numbers
    if number not in numbers:
        raise VolumeError(
            f"there is no slice {number} in {inputs.grid.name}; its slices are {describe_numbers(numbers)}"
        )
    z = numbers.index(number)
    name = f"{config.sample_name}_{_made_by(config, checkpoint, choice)}_{number:05d}.tif"
    output = choice.output or str(config.dataset.folder / f"{config.sample_name}_denoised_slices" / name)
    require_not_an_input(output, config)
    z_range = range(z, z + 1)
    origin = Origin.of(config, checkpoint, inputs, z_range)
    return _denoise(config, compute, choice, checkpoint, inputs, z_range, output, origin)


def _model(config: RunConfig, choice: Choice) -> Checkpoint:
    checkpoint = load_checkpoint(choice.model or config.output_dir, choice.criterion)
    mode = mode_of(checkpoint.network).name
    if choice.mode is not None and choice.mode.lower() != mode:
        raise CheckpointError(
            f"--mode {choice.mode} was asked for, but the model {choice.model or config.output_dir} works in {mode}; "
            "leave --mode out, or choose another --model"
        )
    if mode != config.mode:
        _log.info("the model works in %s (the config says %s)", mode, config.mode)
    return checkpoint


def _made_by(config: RunConfig, checkpoint: Checkpoint, choice: Choice) -> str:
    return made_by(checkpoint, choice.model or config.output_dir, choice.criterion)


def _denoise(
    config: RunConfig,
    compute: Compute,
    choice: Choice,
    checkpoint: Checkpoint,
    inputs: InferenceInputs,
    z_range: range,
    output: str,
    origin: Origin,
) -> str:
    grid = inputs.grid
    devices = compute.devices()
    say_device(devices, compute.device == "cpu")
    denoiser = _denoiser(config, compute, checkpoint, grid)
    warn_of_another_scale(denoiser.normalization, grid, z_range)
    output_type = _output_type(choice.dtype, inputs.dtype)
    _require_range(choice.dtype, output_type, denoiser.normalization)
    sink = _sink(
        output,
        compute,
        choice,
        grid,
        z_range,
        description=described(made_with(checkpoint, inputs), origin),
        facts={**made_how(denoiser, inputs), **origin.parts},
        dtype=output_type,
    )
    if choice.overwrite and not choice.confidence and is_whole(beside := uncertainty_path(output)):
        _log.warning(
            "%s is the uncertainty of the result that is replaced; remove it, or make both with --confidence", beside
        )
    begun = time.monotonic()
    plane = grid.shape[1] * grid.shape[2]
    progress = partial(slices_bar, "denoising", plane * len(devices))
    job = InferenceJob(inputs.views, denoiser, z_range, sink, progress, config.max_memory)
    launch(run_worker, job, devices, spread=compute.spread, guard=lambda: sink, name=sink.path)
    seconds = time.monotonic() - begun
    _log.info(
        "%s of %d x %d in %.1f s, %.2f Mvoxel/s",
        counted(len(z_range), "slice"),
        *grid.shape[1:],
        seconds,
        len(z_range) * plane / seconds / 1e6,
    )
    if compute.spread.leads(os.environ):
        say(sink.path)
    return sink.path


def _denoiser(config: RunConfig, compute: Compute, checkpoint: Checkpoint, grid: Volume) -> Denoiser:
    return make_denoiser(
        checkpoint,
        config.infer,
        compute.own_device(),
        shape=grid.shape,
        normalization=given_normalization(config),
        patch_size=config.given_patch(mode_of(checkpoint.network).name) or RECIPES[checkpoint.network.name].patch_size,
        fill_non_finite=config.dataset.non_finite == "fill",
    )


def _require_range(asked: str, dtype: np.dtype[Any], normalization: Normalization) -> None:
    """Refuse whole numbers that cannot hold the grey values.

    Raises
    ------
    OutputError
        Most of them would be rounded to a few numbers, or clipped.
    """
    if not np.issubdtype(dtype, np.integer):
        return
    if normalization.std < _COARSEST:
        raise OutputError(
            f"--dtype {asked} would round the grey values, whose standard deviation is {normalization.std:.3g}, to "
            "whole numbers; use float32"
        )
    limits = np.iinfo(dtype)
    if not limits.min <= normalization.mean <= limits.max:
        raise OutputError(
            f"--dtype {asked} holds {limits.min} to {limits.max}, and would clip most of the grey values, which are "
            f"{normalization.mean:.4g} +- {normalization.std:.3g}; use input, the type that the volume has, or float32"
        )


def _output_type(name: str, stored: np.dtype[Any]) -> np.dtype[Any]:
    return stored if name == "input" else np.dtype(name)
