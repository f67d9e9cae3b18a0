"""The jobs of this package as functions on arrays and Volumes; the command line calls the same ones.

``train`` makes a model from two or more splits, ``denoise_volume`` applies one, ``load_checkpoint`` finds one. Files
are opened and created with ``open_volume`` and ``create_sink`` (``denoise.volumes``).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from denoise.arithmetic import resolve_precision
from denoise.checkpoint import Checkpoint, RunFolder, TrainState, digest, find_model
from denoise.cluster import Spread, was_restarted
from denoise.config import InferSection, RunConfig, render
from denoise.errors import CheckpointError, ConfigError, OutputError
from denoise.files import write_text
from denoise.inference.engine import Denoiser, denoise_slices
from denoise.launch import choose_devices, launch
from denoise.locking import only_run
from denoise.modes import default_tile, inference_window
from denoise.networks.catalogue import find_network
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.tiles import Triple
from denoise.training.job import Observer, TrainJob
from denoise.training.loop import run_worker
from denoise.training.objective import Objective
from denoise.training.schedule import Schedule
from denoise.volumes import ArrayVolume, MeanVolume, SplitSet, Volume, VolumeSink, open_volume, slice_range
from denoise.volumes.volume import Float32Array

_log = logging.getLogger(__name__)

VolumeLike: TypeAlias = Volume | NDArray[Any] | str | os.PathLike[str]


@dataclass(frozen=True)
class Compute:
    """Where to run: see ``denoise.launch.choose_devices``; on several machines: see ``denoise.cluster.Spread``."""

    device: str | None = None
    gpus: tuple[int, ...] | None = None
    processes: int | None = None
    spread: Spread = field(default_factory=Spread)

    def devices(self) -> list[torch.device]:
        """One device per process."""
        return choose_devices(self.device, self.gpus, self.processes)

    def training_devices(self, batch_size: int) -> list[torch.device]:
        """The same; of GPUs that nobody named no more than a batch has blocks for, as each needs one."""
        devices = self.devices()
        if self.gpus is not None or devices[0].type != "cuda":
            return devices
        return devices[: max(1, batch_size // (self.spread.nodes or 1))]


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
    run_training(
        config,
        SplitSet.of([as_volume(split) for split in splits]),
        compute or Compute(),
        resume=resume,
        finetune=None if finetune is None else Path(finetune),
        show_progress=show_progress,
        observers=observers,
    )
    return load_checkpoint(folder)


def run_training(
    config: RunConfig,
    splits: SplitSet,
    compute: Compute,
    *,
    resume: bool = False,
    finetune: Path | None = None,
    show_progress: bool = True,
    observers: Sequence[Observer] = (),
) -> RunFolder:
    """Check everything that can be checked, then train in one process per device; returns the folder of the run."""
    run = RunFolder(config.output_dir)
    resume = resume or was_restarted(os.environ)
    network = NetworkSpec(config.network_name, config.network_options)
    initial = None
    if finetune is not None:
        network, initial = _begun_from(finetune, network)
    elif resume and run.state.exists():
        network = _as_resumed(run, network)
    devices = compute.training_devices(config.batch_size)
    first, last = config.dataset.train_start_slice, config.dataset.train_end_slice
    job = TrainJob(
        splits=splits,
        network=network,
        settings=config.train,
        patch_size=config.patch,
        batch_size=config.batch_size,
        schedule=Schedule(config.schedule, config.learning_rate),
        objective=Objective(config.loss, config.train.huber_delta, config.train.strategy, config.lcl_weight),
        folder=run.path,
        ema_decay=config.ema_decay,
        adam=config.recipe.adam,
        slices_first=config.recipe.slices_first,
        sample=config.sample_name,
        patches_per_epoch=config.patches_per_epoch,
        train_slices=None if first is None and last is None else slice_range(splits.volumes[0], first, last),
        non_finite=config.dataset.non_finite,
        resume=resume,
        initial=initial,
        begun_from=None if initial is None else digest(initial),
        show_progress=show_progress,
        max_memory=config.max_memory,
        observers=tuple(observers),
    )
    launch(
        run_worker,
        job,
        devices,
        spread=compute.spread,
        guard=lambda: _own_folder(run, config, resume=resume, finetune=finetune),
        name=f"{run.path} (settings {hashlib.sha256(render(config).encode()).hexdigest()[:8]})",
    )
    return run


@contextmanager
def _own_folder(run: RunFolder, config: RunConfig, *, resume: bool, finetune: Path | None) -> Iterator[None]:
    """The folder of a run for this run alone, with the record of its config; what is of value in it is kept."""
    with only_run(run.lock, f"the training in {run.path}"):
        if not resume and run.holds_a_run:
            raise OutputError(
                f"{run.path} holds a training run already; continue it with --resume, or choose another --output-dir"
            )
        if not run.state.exists():
            if run.holds_models:
                raise CheckpointError(
                    f"{run.path} holds models but no state to resume from ({run.state.name}); begin anew with another "
                    f"--output-dir, from the best model with --finetune {run.path}"
                )
            if resume:
                start = "the beginning" if finetune is None else str(finetune)
                _log.info("nothing to resume in %s yet: the training starts from %s", run.path, start)
            write_text(run.config, render(config))
        yield


def _begun_from(path: Path, wanted: NetworkSpec) -> tuple[NetworkSpec, dict[str, torch.Tensor]]:
    """Network and weights of a model; what an older one could not choose is as it was."""
    file = find_model(path, "val")
    checkpoint = Checkpoint.load(file)
    network, kind = checkpoint.network, find_network(wanted.name)
    options = {**kind.complete(wanted.options), **{name: network.options.get(name) for name in kind.unsaid}}
    if network.name != wanted.name or find_network(network.name).complete(network.options) != options:
        raise CheckpointError(
            f"{file} holds the network {network.name} {dict(network.options)} but the config "
            f"asks for {wanted.name} {dict(wanted.options)}; make them equal to fine-tune"
        )
    return network, checkpoint.weights


def _as_resumed(run: RunFolder, wanted: NetworkSpec) -> NetworkSpec:
    """A run that began from an older model goes on with the network of that model, which no config can ask for."""
    stored = TrainState.load(run.state).fingerprint
    kept = {name: stored.get(f"network.{name}") for name in find_network(wanted.name).unsaid}
    return NetworkSpec(wanted.name, {**wanted.options, **{k: v for k, v in kept.items() if type(v) is int}})


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
    checkpoint: Checkpoint,
    *,
    start_slice: int | None = None,
    end_slice: int | None = None,
    infer: InferSection | None = None,
    compute: Compute | None = None,
    progress: Callable[[int], None] = lambda slices: None,
) -> Float32Array:
    """Denoise a volume, or a range of its slices, into an array.

    Parameters
    ----------
    inputs
        The full reconstruction; or a list of K splits, over which the network's output is averaged.
    checkpoint
        From ``train`` or ``load_checkpoint``.
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
    volumes = _opened(inputs, checkpoint)
    z_range = slice_range(volumes[0], start_slice, end_slice)
    result = np.empty((len(z_range), *volumes[0].shape[1:]), dtype=np.float32)

    def keep(start: int, slab: Float32Array) -> None:
        result[start : start + len(slab)] = slab

    device = (compute or Compute()).devices()[0]
    denoiser = make_denoiser(checkpoint, infer or InferSection(), device, shape=volumes[0].shape)
    denoise_slices(volumes, denoiser, z_range, keep, progress)
    return result


def denoise_into(
    sink: VolumeSink,
    inputs: VolumeLike | Sequence[VolumeLike],
    checkpoint: Checkpoint,
    *,
    infer: InferSection | None = None,
    compute: Compute | None = None,
    progress: Callable[[int], None] = lambda slices: None,
) -> None:
    """As ``denoise_volume``, of all slices, into a sink from ``create_sink``: memory does not grow with the volume."""
    volumes = _opened(inputs, checkpoint)
    device = (compute or Compute()).devices()[0]
    denoiser = make_denoiser(checkpoint, infer or InferSection(), device, shape=volumes[0].shape)
    with sink:
        denoise_slices(volumes, denoiser, range(volumes[0].shape[0]), sink.write, progress)


def _opened(inputs: VolumeLike | Sequence[VolumeLike], checkpoint: Checkpoint) -> tuple[Volume, ...]:
    if isinstance(inputs, list | tuple):
        return input_views(SplitSet.of([as_volume(volume) for volume in inputs]).volumes, checkpoint.strategy)
    return (as_volume(inputs),)  # type: ignore[arg-type]


def input_views(splits: Sequence[Volume], strategy: str) -> tuple[Volume, ...]:
    """What the network sees of K splits at inference: the same kind of input as in training, for every choice."""
    if len(splits) <= 2 or strategy == "1:X":
        return tuple(splits)
    return tuple(MeanVolume((*splits[:k], *splits[k + 1 :])) for k in range(len(splits)))


def make_denoiser(
    checkpoint: Checkpoint,
    infer: InferSection,
    device: torch.device,
    *,
    shape: Triple | None = None,
    normalization: Normalization | None = None,
    patch_size: int | None = None,
    fill_non_finite: bool = False,
) -> Denoiser:
    """A model for a device, with its tiles; ``prepared`` brings it there.

    Parameters
    ----------
    shape
        (Z, Y, X) of the volume: networks that give the same for any tile get none that reach far past it.
    normalization, patch_size
        For models that do not carry their own.

    Raises
    ------
    CheckpointError
        The model has no normalisation and none is given.
    ConfigError
        The network cannot take tiles of the size that was asked for.
    """
    normalization = checkpoint.normalization or normalization
    if normalization is None:
        raise CheckpointError(
            "this model was stored without its normalisation; give the mean and standard deviation that it was trained "
            "with as mean4norm and std4norm in the config's section dataset (they are in the config of that training)"
        )
    kind = find_network(checkpoint.network.name)
    edge = infer.tile_size or default_tile(checkpoint.network, checkpoint.patch_size or patch_size)
    divisor = kind.divisor(checkpoint.network.options)
    if edge % divisor:
        raise ConfigError(
            f"infer.tile_size is {edge}; it must be divisible by {divisor} for the network {checkpoint.network.name} "
            f"{dict(checkpoint.network.options)}"
        )
    window = inference_window(checkpoint.network, edge, infer.overlap, infer.window, shape)
    return Denoiser(
        network=checkpoint.build(),
        normalization=normalization,
        window=window,
        device=device,
        dtype=resolve_precision(infer.precision, device),
        batch_size=infer.batch_size,
        fill_non_finite=fill_non_finite,
        turns=infer.tta,
        forward_peak=kind.forward_peak(checkpoint.network.options),
    )


def as_volume(source: VolumeLike) -> Volume:
    """An array, a path or a Volume as a Volume."""
    if isinstance(source, np.ndarray):
        return ArrayVolume(source)
    if isinstance(source, str | os.PathLike):
        return open_volume(source)
    return source
