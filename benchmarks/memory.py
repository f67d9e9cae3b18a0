"""Peak memory of `denoise volume` for a shallow and a deep volume, in both modes.

    python benchmarks/memory.py --folder scratch [--slices 64 512] [--size 512]

Every run is a process of its own, as a user would start it; its peak resident memory comes from the operating system
(ru_maxrss, which counts memory-mapped file pages too). The network has random weights: memory does not depend on them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from denoise.checkpoint import Checkpoint
from denoise.modes import MODES
from denoise.networks.catalogue import NETWORKS, build_network
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.volumes import create_sink


def write_volume(path: Path, slices: int, size: int) -> None:
    """Noise, as a folder of TIFF slices, written a slab at a time."""
    generator = np.random.default_rng(0)
    with create_sink(path, shape=(slices, size, size)) as sink:
        for z in range(0, slices, 16):
            count = min(16, slices - z)
            sink.write(z, generator.normal(0, 1, (count, size, size)).astype(np.float32))


def write_model(path: Path, mode: str) -> None:
    """A residual network with its default sizes and random weights."""
    name = next(n for n, kind in NETWORKS.items() if kind.dimensions == MODES[mode].network_dimensions and "res" in n)
    spec = NetworkSpec(name, NETWORKS[name].defaults)
    torch.manual_seed(0)
    weights = build_network(spec).state_dict()
    Checkpoint(spec, weights, Normalization(0.0, 1.0), patch_size=NETWORKS[name].tile).save(path)


def measured(command: list[str]) -> tuple[float, float]:
    """Peak memory in MB and seconds of a command, in a process that has no other children."""

    def run(results: multiprocessing.Queue[tuple[float, float]]) -> None:
        begun = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        results.put((peak, time.monotonic() - begun))

    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[tuple[float, float]] = context.Queue()
    process = context.Process(target=run, args=(results,))
    process.start()
    found = results.get()
    process.join()
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--slices", type=int, nargs=2, default=(64, 512))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--overlap", type=float, default=0.25)
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    for slices in options.slices:
        if not (folder / f"noise{slices}").exists():
            write_volume(folder / f"noise{slices}", slices, options.size)
    print(
        f"| mode | slices of {options.size}^2 | peak memory, MB | seconds | Mvoxel/s |\n| --- | --- | --- | --- | --- |"
    )
    for mode in options.modes:
        write_model(folder / f"model_{mode}.pth", mode)
        peaks = []
        for slices in options.slices:
            config = folder / f"noise{slices}.yaml"
            config.write_text(f"dataset: {{folder: ., full: noise{slices}}}\ninfer: {{overlap: {options.overlap}}}\n")
            command = [sys.executable, "-m", "denoise", "volume", "--config", str(config), "--overwrite"]
            command += ["--model", str(folder / f"model_{mode}.pth"), "--output", str(folder / f"out_{mode}_{slices}")]
            peak, seconds = measured(command)
            peaks.append(peak)
            rate = slices * options.size**2 / seconds / 1e6
            print(f"| {mode} | {slices} | {peak:.0f} | {seconds:.1f} | {rate:.2f} |", flush=True)
        print(f"| {mode} | ratio | {peaks[1] / peaks[0]:.3f} | | |", flush=True)


if __name__ == "__main__":
    main()
