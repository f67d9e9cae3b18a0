"""``denoise train``."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from denoise.cluster import was_restarted
from denoise.commands.display import say, say_device
from denoise.commands.inputs import open_inference_inputs, open_splits, require_not_an_input
from denoise.config import RunConfig
from denoise.errors import ConfigError, OutputError, VolumeError
from denoise.files import require_free
from denoise.launch import Compute
from denoise.run_folder import CRITERIA, RunFolder
from denoise.training.part import training_slices
from denoise.training.start import Shares, run_training
from denoise.trust.before import warn_of_splits
from denoise.volumes import SplitSet, require_same_grid

_log = logging.getLogger(__name__)


def train(
    config: RunConfig, compute: Compute, *, resume: bool = False, finetune: Path | None = None, progress: bool = True
) -> RunFolder:
    """Train on the splits of a config; says where the models are."""
    splits = open_splits(config)
    require_own_folder(config)
    _warn_of_full(config, splits)
    _say_rate(config)
    if compute.spread.leads(os.environ) and not (resume and RunFolder(config.output_dir).holds_a_run):
        warn_of_splits(splits, training_slices(config, splits), config.max_memory)
    _say_devices(Shares.of(config, compute, resume=resume or was_restarted(os.environ)), compute)
    run = run_training(config, splits, compute, resume=resume, finetune=finetune, show_progress=progress)
    for criterion in CRITERIA if compute.spread.leads(os.environ) else ():
        if run.model(criterion).exists():
            say(str(run.model(criterion)))
    return run


def _warn_of_full(config: RunConfig, splits: SplitSet) -> None:
    """Say now what `denoise volume` will say tomorrow; training does without the full reconstruction."""
    if config.infer.input != "full":
        return
    try:
        full = open_inference_inputs(config, config.train.strategy).grid
        require_same_grid(splits.volumes[0], full, "split 0", "the full reconstruction")
    except (ConfigError, VolumeError) as error:
        _log.warning("training does not need it, but `denoise volume` will not work as the config is: %s", error)


def _say_rate(config: RunConfig) -> None:
    """Configs of the published tools give a learning rate, for the only network that there was, and no network."""
    given, own = config.train.learning_rate, config.recipe.learning_rate
    if given is not None and given != own and "network" not in config.train.model_fields_set:
        _log.info(
            "the config names no network, so that %s is trained, with the config's learning rate of %g; without "
            "train.learning_rate it would be %g, which is better for it (train.network: unet is the published one)",
            config.network_name,
            given,
            own,
        )


def _say_devices(shares: Shares, compute: Compute) -> None:
    """Name the devices, and why some of the GPUs are left out."""
    visible = compute.devices()
    say_device(shares.devices, compute.device == "cpu")
    if len(shares.devices) < len(visible):
        _log.info(
            "a step has %d blocks of this network: %d of %d GPUs are used; a larger train.batch_size uses more",
            shares.batch_size,
            len(shares.devices),
            len(visible),
        )


def require_own_folder(config: RunConfig) -> None:
    """Refuse a folder that cannot be written, is an input, or where the record would take the place of a user's config.

    Raises
    ------
    OutputError
        Names the file or folder.
    """
    run = RunFolder(config.output_dir)
    if not run.holds_a_run:
        require_not_an_input(str(run.path), config, "--output-dir", may_hold=True)
    require_free(run.config, overwrite=True, option="--output-dir")
    if run.config.exists() and not run.holds_a_run and not _is_record(run.config):
        raise OutputError(
            f"{run.config} exists and no run wrote it; a run keeps its settings under that name: choose another "
            "--output-dir (train.output_dir)"
        )


def _is_record(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline().startswith(b"# Resolved by denoise")
