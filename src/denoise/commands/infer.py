"""``denoise slice`` and ``denoise volume``: one is a range of length one of the other."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from denoise.api import Compute, load_checkpoint, make_denoiser
from denoise.checkpoint import Checkpoint, software_versions
from denoise.commands.display import progress_bar, say, say_device
from denoise.commands.inputs import (
    InferenceInputs,
    given_normalization,
    open_inference_inputs,
    require_not_an_input,
)
from denoise.config import RunConfig
from denoise.errors import CheckpointError, VolumeError
from denoise.inference.engine import denoise_slices
from denoise.modes import mode_of
from denoise.volumes import create_sink, slice_range
from denoise.volumes.volume import describe_numbers

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What the user chose on the command line, the same for a slice and a volume."""

    criterion: str = "val"
    model: Path | None = None
    mode: str | None = None
    output: str | None = None
    overwrite: bool = False
    dtype: str = "float32"
    progress: bool = True


def denoise_volume(
    config: RunConfig, compute: Compute, choice: Choice, *, start: int | None = None, end: int | None = None
) -> str:
    """Denoise slices start..end-1 (numbers) into a folder or file; returns its path."""
    checkpoint = _model(config, choice)
    inputs = open_inference_inputs(config)
    z_range = slice_range(inputs.grid, start, end)
    numbers = inputs.grid.slice_numbers[z_range.start : z_range.stop]
    mode = mode_of(checkpoint.network).name
    name = f"{config.sample_name}_denoised_volume_{mode}{_suffix(choice.criterion)}"
    if len(numbers) < inputs.grid.shape[0]:
        name += f"_slices_{numbers[0]:05d}-{numbers[-1]:05d}"
    output = choice.output or str(config.dataset.folder / name)
    return _denoise(config, compute, choice, checkpoint, inputs, z_range, output)


def denoise_slice(config: RunConfig, compute: Compute, choice: Choice, *, number: int) -> str:
    """Denoise the slice of this number into a TIFF file; returns its path."""
    checkpoint = _model(config, choice)
    inputs = open_inference_inputs(config)
    numbers = inputs.grid.slice_numbers
    if number not in numbers:
        raise VolumeError(
            f"there is no slice {number} in {inputs.grid.name}; its slices are {describe_numbers(numbers)}"
        )
    z = numbers.index(number)
    mode = mode_of(checkpoint.network).name
    name = f"{config.sample_name}_{mode}{_suffix(choice.criterion)}_{number:05d}.tif"
    output = choice.output or str(config.dataset.folder / f"{config.sample_name}_denoised_slices" / name)
    return _denoise(config, compute, choice, checkpoint, inputs, range(z, z + 1), output)


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


def _suffix(criterion: str) -> str:
    """The default model has no suffix; results of the others must not take its place."""
    return "" if criterion == "val" else f"_{criterion}"


def _denoise(
    config: RunConfig,
    compute: Compute,
    choice: Choice,
    checkpoint: Checkpoint,
    inputs: InferenceInputs,
    z_range: range,
    output: str,
) -> str:
    require_not_an_input(output, config)
    grid = inputs.grid
    devices = compute.devices()
    say_device(devices[:1], compute.device == "cpu")
    if len(devices) > 1:
        _log.warning("inference runs on one device, %s; the other %d stay idle", devices[0], len(devices) - 1)
    denoiser = make_denoiser(
        checkpoint,
        config.infer,
        devices[0],
        shape=grid.shape,
        normalization=given_normalization(config),
        patch_size=config.patch,
        fill_non_finite=config.dataset.non_finite == "fill",
    )
    sink = create_sink(
        output,
        shape=(len(z_range), *grid.shape[1:]),
        dtype=_output_type(choice.dtype, grid.dtype),
        voxel_size_um=grid.voxel_size_um,
        slice_numbers=grid.slice_numbers[z_range.start : z_range.stop],
        overwrite=choice.overwrite,
        description=_description(checkpoint, inputs),
    )
    begun = time.monotonic()
    plane = grid.shape[1] * grid.shape[2]
    with sink, progress_bar("denoising", len(z_range), plane) as progress:
        denoise_slices(inputs.views, denoiser, z_range, sink.write, progress)
    seconds = time.monotonic() - begun
    _log.info(
        "%d slices of %d x %d in %.1f s, %.2f Mvoxel/s",
        len(z_range),
        *grid.shape[1:],
        seconds,
        len(z_range) * plane / seconds / 1e6,
    )
    say(sink.path)
    return sink.path


def _output_type(name: str, stored: np.dtype[Any]) -> np.dtype[Any]:
    return stored if name == "input" else np.dtype(name)


def _description(checkpoint: Checkpoint, inputs: InferenceInputs) -> str:
    """Where the result comes from, for the file's own metadata."""
    facts = {
        "software": "ct-denoise",
        "versions": software_versions(),
        "network": checkpoint.network.name,
        "criterion": checkpoint.criterion,
        "epoch": checkpoint.epoch,
        "inputs": [Path(path).name for path in inputs.paths],
    }
    return json.dumps(facts)
