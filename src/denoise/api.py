"""The jobs of this package as functions on arrays and Volumes; the command line calls the same ones.

``train`` makes a model from two or more splits, ``denoise_volume`` applies one, ``load_checkpoint`` finds one. Files
are opened and created with ``open_volume`` and ``create_sink`` (``denoise.volumes``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from denoise.checkpoint import Checkpoint
from denoise.config import InferSection, RunConfig
from denoise.inference.engine import Denoiser, denoise_slices
from denoise.inference.models import input_views, make_denoiser, warn_of_another_scale
from denoise.launch import Compute
from denoise.run_folder import RunFolder, find_model
from denoise.training.job import Observer
from denoise.training.part import training_slices
from denoise.training.start import run_training
from denoise.volumes import ArrayVolume, SplitSet, Volume, VolumeSink, open_volume, slice_range
from denoise.volumes.volume import Float32Array

VolumeLike: TypeAlias = Volume | NDArray[Any] | str | os.PathLike[str]


def train(
    splits: Sequence[VolumeLike],
    output_dir: str | os.PathLike[str],
    *,
    mode: str = "2.5d",
    finetune: str | os.PathLike[str] | None = None,
    resume: bool = False,
    compute: Compute | None = None,
    show_progress: bool = False,
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> Checkpoint:
    """Train a network that removes the noise of these splits.

    Parameters
    ----------
    splits
        Two or more sub-reconstructions (Z, Y, X) of one scan from interleaved angles: arrays, Volumes or paths.
    output_dir
        Folder for models, history and resume state; must not hold a run, unless ``resume``.
    mode
        "2.5d" or "3d".
    finetune
        Model file or training folder to start from.
    resume
        Continue the run in ``output_dir``, or begin it where there is none yet; with ``finetune``, it must have begun
        from that model.
    compute
        Devices; None: all GPUs that are visible, else the CPU.
    observers
        Told of steps and scores while the run goes on (``denoise.training.job.Observer``); picklable where there are
        several processes.
    settings
        Any field of the config's section ``train``, by its documented name, e.g. ``network="residual"``.

    Returns
    -------
    Checkpoint
        The best model by held-out score.

    Raises
    ------
    DenoiseError
        As the command line says it.
    """
    folder = Path(output_dir)
    config = RunConfig.from_mapping(
        {
            "dataset": {"folder": str(folder), "full": "none", "sample": folder.name or "sample"},
            "train": {"mode": mode, "output_dir": str(folder.absolute()), **settings},
        }
    )
    opened = SplitSet.of([as_volume(split) for split in splits])
    compute = compute or Compute()
    if compute.spread.leads(os.environ) and not (resume and RunFolder(folder).holds_a_run):
        # Imported where it is used: what judges splits takes 70 MB of memory, and denoising does without.
        from denoise.trust.before import warn_of_splits

        warn_of_splits(opened, training_slices(config, opened), config.max_memory)
    run_training(
        config,
        opened,
        compute,
        resume=resume,
        finetune=None if finetune is None else Path(finetune),
        show_progress=show_progress,
        observers=observers,
    )
    return load_checkpoint(folder)


def load_checkpoint(path: str | os.PathLike[str], criterion: str = "val") -> Checkpoint:
    """A model from a file, or from a training folder the one that is best by a criterion ("val", "lcl", "edge").

    Raises
    ------
    CheckpointError
        There is none, or it is damaged, hostile or unknown.
    """
    return Checkpoint.load(find_model(Path(path), criterion))


def denoise_volume(
    inputs: VolumeLike | Sequence[VolumeLike],
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    start_slice: int | None = None,
    end_slice: int | None = None,
    infer: InferSection | None = None,
    compute: Compute | None = None,
    progress: Callable[[int], None] = lambda slices: None,
) -> Float32Array:
    """Denoise a volume, or a range of its slices, into an array.

    A warning is logged where its grey values are of another scale than those that the model was trained on.

    Parameters
    ----------
    inputs
        The full reconstruction; or a list of K splits, over which the network's output is averaged.
    checkpoint
        From ``train`` or ``load_checkpoint``; or the file or folder to load.
    start_slice, end_slice
        Slice numbers, half-open; None: from the first, to the last.
    infer
        Overlap, window, tile and batch size; None: the defaults.
    compute
        Device; None: the first visible GPU, else the CPU.
    progress
        Called with the number of slices done.

    Returns
    -------
    float32 array (Z, Y, X) in the units of the input.

    Raises
    ------
    VolumeError
        A slice that does not exist, cannot be read, or holds NaN or Inf.
    DeviceError
        The device is not there, or its memory too small for a single tile.
    """
    checkpoint = _loaded(checkpoint)
    volumes = _opened(inputs, checkpoint)
    z_range = slice_range(volumes[0], start_slice, end_slice)
    result = np.empty((len(z_range), *volumes[0].shape[1:]), dtype=np.float32)

    def keep(start: int, slab: Float32Array) -> None:
        result[start : start + len(slab)] = slab

    denoiser = _denoiser(checkpoint, infer, compute, volumes[0], z_range)
    denoise_slices(volumes, denoiser, z_range, keep, progress)
    return result


def denoise_into(
    sink: VolumeSink,
    inputs: VolumeLike | Sequence[VolumeLike],
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    infer: InferSection | None = None,
    compute: Compute | None = None,
    progress: Callable[[int], None] = lambda slices: None,
) -> None:
    """As ``denoise_volume``, of all slices, into a sink from ``create_sink``: memory does not grow with the volume.

    The sink is entered and left here, so that the result has its name when this returns; one that the caller has
    entered is filled, and gets its name where the caller's ``with`` ends.
    """
    checkpoint = _loaded(checkpoint)
    volumes = _opened(inputs, checkpoint)
    z_range = range(volumes[0].shape[0])
    denoiser = _denoiser(checkpoint, infer, compute, volumes[0], z_range)
    with nullcontext() if sink.is_entered else sink:
        denoise_slices(volumes, denoiser, z_range, sink.write, progress)


def _denoiser(
    checkpoint: Checkpoint, infer: InferSection | None, compute: Compute | None, grid: Volume, z_range: range
) -> Denoiser:
    """For some slices of a volume, which are looked at first."""
    device = (compute or Compute()).devices()[0]
    denoiser = make_denoiser(checkpoint, infer or InferSection(), device, shape=grid.shape)
    warn_of_another_scale(denoiser.normalization, grid, z_range)
    return denoiser


def _loaded(checkpoint: Checkpoint | str | os.PathLike[str]) -> Checkpoint:
    return checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)


def _opened(inputs: VolumeLike | Sequence[VolumeLike], checkpoint: Checkpoint) -> tuple[Volume, ...]:
    if isinstance(inputs, list | tuple):
        return input_views(SplitSet.of([as_volume(volume) for volume in inputs]).volumes, checkpoint.strategy)
    return (as_volume(inputs),)  # type: ignore[arg-type]


def as_volume(source: VolumeLike) -> Volume:
    """An array, a path or a Volume as a Volume.

    Raises
    ------
    TypeError
        Something else.
    VolumeError
        There is no such volume; the array cannot be one.
    """
    if isinstance(source, np.ma.MaskedArray):
        raise TypeError("expected an array without a mask; fill it first: array.filled(value)")
    if isinstance(source, np.ndarray):
        return ArrayVolume(source)
    if isinstance(source, str | os.PathLike):
        return open_volume(source)
    if not isinstance(source, Volume):
        kind = f"{type(source).__module__}.{type(source).__name__}"
        raise TypeError(f"expected a numpy array (Z, Y, X), a path or a Volume, found {kind}; try numpy.asarray")
    return source
