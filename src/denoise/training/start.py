"""From a config to a run: what is trained, from where it goes on, on which devices, and a folder for it alone."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from denoise.checkpoint import Checkpoint, TrainState, digest
from denoise.cluster import was_restarted
from denoise.config import RunConfig, render
from denoise.errors import CheckpointError, OutputError
from denoise.launch import Compute, launch
from denoise.locking import only_run
from denoise.networks.catalogue import find_network
from denoise.networks.spec import NetworkSpec
from denoise.run_folder import RunFolder, find_model
from denoise.seen import NOTHING
from denoise.training.job import Observer, TrainJob
from denoise.training.loop import run_worker
from denoise.training.objective import Objective
from denoise.training.part import training_slices
from denoise.training.schedule import Schedule
from denoise.volumes import SplitSet

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shares:
    """A step's blocks, and the devices of this machine that share them."""

    batch_size: int
    devices: list[torch.device]

    @classmethod
    def of(cls, config: RunConfig, compute: Compute, *, resume: bool = False) -> Shares:
        """As the config and the device say; of a run that goes on, as before, where the config does not say.

        Raises
        ------
        CheckpointError
            The state of the run that goes on is damaged.
        """
        size = config.batch_on(compute.devices()[0].type)
        if config.train.batch_size is None:
            kept = _stored_fingerprint(RunFolder(config.output_dir), resume).get("batch_size")
            size = kept if type(kept) is int and kept > 0 else size
        return cls(size, compute.training_devices(size))


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
    model = None
    if finetune is not None:
        model = _begun_from(finetune, network)
        network = model.network
    elif stored := _stored_fingerprint(run, resume):
        network = _as_resumed(stored, network)
    shares = Shares.of(config, compute, resume=resume)
    job = TrainJob(
        splits=splits,
        network=network,
        settings=config.train,
        patch_size=config.patch,
        batch_size=shares.batch_size,
        schedule=Schedule(config.schedule, config.learning_rate),
        objective=Objective(config.loss, config.train.huber_delta, config.train.strategy, config.lcl_weight),
        folder=run.path,
        ema_decay=config.ema_decay,
        adam=config.recipe.adam,
        muon=config.recipe.muon,
        slices_first=config.recipe.slices_first,
        sample=config.sample_name,
        patches_per_epoch=config.patches_per_epoch,
        train_slices=training_slices(config, splits),
        non_finite=config.dataset.non_finite,
        resume=resume,
        initial=None if model is None else model.weights,
        begun_from=None if model is None else digest(model.weights),
        seen_before=NOTHING if model is None else model.seen,
        show_progress=show_progress,
        config=config,
        max_memory=config.max_memory,
        observers=tuple(observers),
    )
    launch(
        run_worker,
        job,
        shares.devices,
        spread=compute.spread,
        guard=lambda: _own_folder(run, resume=resume, finetune=finetune),
        name=f"{run.path} (settings {hashlib.sha256(render(config).encode()).hexdigest()[:8]})",
    )
    return run


@contextmanager
def _own_folder(run: RunFolder, *, resume: bool, finetune: Path | None) -> Iterator[None]:
    """The folder of a run for this run alone; what is of value in it is kept."""
    with only_run(run.lock, f"the training in {run.path}"):
        if not resume and run.holds_a_run:
            raise OutputError(
                f"{run.path} holds a training run already; continue it with --resume, or choose another --output-dir"
            )
        if not run.state.exists():
            if run.holds_models:
                raise CheckpointError(
                    f"{run.path} holds models but no state to resume from ({run.state.name}); begin anew with another "
                    f"--output-dir, from the best model with --finetune {shlex.quote(str(run.path))}"
                )
            if resume:
                start = "the beginning" if finetune is None else str(finetune)
                _log.info("nothing to resume in %s yet: the training starts from %s", run.path, start)
        yield


def _begun_from(path: Path, wanted: NetworkSpec) -> Checkpoint:
    """The model that a run begins from; what an older one could not choose is as it was."""
    file = find_model(path, "val", "--finetune")
    checkpoint = Checkpoint.load(file)
    network, kind = checkpoint.network, find_network(wanted.name)
    options = {**kind.complete(wanted.options), **{name: network.options.get(name) for name in kind.unsaid}}
    if network.name != wanted.name or find_network(network.name).complete(network.options) != options:
        raise CheckpointError(
            f"{file} holds the network {_named(network)} but the config asks for {_named(wanted)}; make them equal to "
            "fine-tune"
        )
    return checkpoint


def _named(network: NetworkSpec) -> str:
    """With its options, as a config has them."""
    options = find_network(network.name).complete(network.options)
    return f"{network.name} ({', '.join(f'{name} {value}' for name, value in options.items())})"


def _stored_fingerprint(run: RunFolder, resume: bool) -> Mapping[str, Any]:
    """What the run that goes on was told; nothing where none goes on."""
    return TrainState.load(run.state).fingerprint if resume and run.state.exists() else {}


def _as_resumed(stored: Mapping[str, Any], wanted: NetworkSpec) -> NetworkSpec:
    """A run that began from an older model goes on with the network of that model, which no config can ask for."""
    kept = {name: stored.get(f"network.{name}") for name in find_network(wanted.name).unsaid}
    return NetworkSpec(wanted.name, {**wanted.options, **{k: v for k, v in kept.items() if type(v) is int}})
