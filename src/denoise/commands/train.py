"""``denoise train``."""

from __future__ import annotations

from pathlib import Path

from denoise.api import Compute, run_training
from denoise.checkpoint import CRITERIA, RunFolder
from denoise.commands.display import say, say_device
from denoise.commands.inputs import open_splits
from denoise.config import RunConfig


def train(
    config: RunConfig, compute: Compute, *, resume: bool = False, finetune: Path | None = None, progress: bool = True
) -> RunFolder:
    """Train on the splits of a config; says where the models are."""
    splits = open_splits(config)
    say_device(compute.devices(), compute.device == "cpu")
    run = run_training(config, splits, compute, resume=resume, finetune=finetune, show_progress=progress)
    for criterion in CRITERIA:
        if run.model(criterion).exists():
            say(str(run.model(criterion)))
    return run
