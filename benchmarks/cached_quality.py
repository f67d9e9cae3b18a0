"""Does a network learn as well from a few slabs in memory as from all of the splits?

    python benchmarks/cached_quality.py --folder scratch [--share 0.25 --steps 600 --seeds 2]

The foam of low dose, 48 slices of 256^2, the recipe of residual2d; held-out scores of the last step, all in memory and
with memory for this share of the splits. Seeds show what "within noise" means.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from cases import open_case
from denoise.arithmetic import resolve_precision
from denoise.checkpoint import TrainState
from denoise.config.recipes import RECIPES
from denoise.config.train_section import TrainSection
from denoise.launch import World
from denoise.modes import mode_of
from denoise.networks.spec import NetworkSpec
from denoise.run_folder import RunFolder
from denoise.training.data import resident_bytes
from denoise.training.footprint import Footprint
from denoise.training.job import TrainJob
from denoise.training.loop import run_worker
from denoise.training.objective import Objective
from denoise.training.schedule import Schedule
from denoise.volumes.volume import ArrayVolume, SplitSet

_STEPS_PER_EPOCH = 60


def trained(splits: SplitSet, folder: Path, share: float, seed: int, steps: int) -> dict[str, float]:
    """The last line of the history."""
    network = NetworkSpec("residual2d", {})
    recipe = RECIPES[network.name]
    window = mode_of(network).window(network, recipe.patch_size, 0.0, "uniform")
    itemsize = resolve_precision("auto", torch.device("cpu")).itemsize
    taken = Footprint(network, window, "cpu", 1, recipe.batch_size, len(splits), itemsize).bytes
    folder.mkdir(parents=True)
    job = TrainJob(
        splits=splits,
        network=network,
        settings=TrainSection(seed=seed, max_epochs=steps // _STEPS_PER_EPOCH, validate_every=10**6, patience=0),
        patch_size=recipe.patch_size,
        batch_size=recipe.batch_size,
        schedule=Schedule(recipe.schedule, recipe.learning_rate),
        objective=Objective(recipe.loss, lcl_weight=recipe.lcl_weight),
        folder=folder,
        ema_decay=recipe.ema_decay,
        patches_per_epoch=_STEPS_PER_EPOCH * recipe.batch_size,
        show_progress=False,
        max_memory=taken + int(share * resident_bytes(splits)),
    )
    run_worker(World(0, 1, torch.device("cpu")), job)
    division = TrainState.load(RunFolder(folder).state).progress["division"]
    assert (division is None) == (share >= 1), "what is compared is not what was asked for"
    last: dict[str, float] = json.loads(RunFolder(folder).history.read_text().splitlines()[-1])
    return last


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    case = open_case(options.folder, "foam_low")
    splits = SplitSet.of([ArrayVolume(np.asarray(a), f"split {k}") for k, a in enumerate(case.splits(2))])
    print("| in memory | seed | held-out L2 | error (L2 less noise) | seconds |\n| --- | --- | --- | --- | --- |")
    for seed in range(options.seeds):
        for share in (1.0, options.share):
            folder = options.folder / f"quality_{share:g}_{seed}_{time.time():.0f}"
            last = trained(splits, folder, share, seed, options.steps)
            print(
                f"| {share:.0%} | {seed} | {last['val_l2']:.5f} | {last['val_mse']:.5f} | {last['seconds']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
