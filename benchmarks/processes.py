"""Held-out scores of the same training with one and with two processes, in both modes, on the demo's foam.

    python benchmarks/processes.py --folder scratch [--epochs 6]

Two seeds with one process show what "within noise" means; the batch size is the global batch in all runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from denoise.commands.prepare import prepare
from denoise.modes import MODES
from denoise.projections.phantom import simulate_foam_scan


def trained(folder: Path, mode: str, processes: int, seed: int) -> tuple[float, float, float]:
    """Best held-out L1, the L2 of the same epoch, and seconds."""
    out = folder / f"run_{mode}_{processes}p_seed{seed}"
    config = folder / f"foam_seed{seed}.yaml"
    config.write_text((folder / "foam_config.yaml").read_text().replace("seed: 0", f"seed: {seed}"))
    command = [sys.executable, "-m", "denoise", "train", "--config", str(config), "--mode", mode]
    command += ["--device", "cpu", "--processes", str(processes), "--output-dir", str(out)]
    begun = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    records = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    best = min(records, key=lambda record: float(record["val_l1"]))
    return best["val_l1"], best["val_l2"], time.monotonic() - begun


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    folder: Path = options.folder
    if not (folder / "foam_config.yaml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        phantom = simulate_foam_scan(folder / "scan.h5", size=options.size, slices=48, angles=2 * options.size)
        settings = {
            "train": {
                "network": "residual",
                "patch_size": 64,
                "patch_size_3d": 32,
                "batch_size": 8,
                "patches_per_epoch": 80,
                "patches_per_epoch_3d": 40,
                "learning_rate": 0.002,
                "schedule": "cosine",
                "max_epochs": options.epochs,
                "seed": 0,
            }
        }
        prepare(folder / "scan.h5", out=folder, center=phantom.center, settings=settings)
    print("| mode | processes | seed | best held-out L1 | L2 | seconds |\n| --- | --- | --- | --- | --- | --- |")
    for mode in MODES:
        for processes, seed in ((1, 0), (2, 0), (1, 1)):
            l1, l2, seconds = trained(folder, mode, processes, seed)
            print(f"| {mode} | {processes} | {seed} | {l1:.5f} | {l2:.5f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
