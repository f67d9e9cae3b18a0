"""Peak memory of `denoise volume` for a shallow and a deep volume, in both modes.

    python benchmarks/memory.py --folder scratch [--slices 64 512] [--size 512]
    python benchmarks/memory.py --folder scratch --chunks [--edge 256] [--rounds 3]

The second command denoises one volume, 2.5D, from a folder of TIFF slices and from files whose chunks are single slices
or many slices deep, in turn, and gives medians of the seconds, and of the processor's, of whole commands; the network
is a small one, so that files count for more than they otherwise would.

Every run is a process of its own, as a user would start it; its peak resident memory comes from the operating system
(ru_maxrss, which counts memory-mapped file pages too). The network has random weights: memory does not depend on them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
import zarr

from denoise.checkpoint import Checkpoint
from denoise.modes import MODES
from denoise.networks.catalogue import NETWORKS, build_network
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.volumes import create_sink

#: A network that takes little time.
_SMALL = {"width": 16, "levels": 1}


def write_volume(path: Path, slices: int, size: int) -> None:
    """Noise, as a folder of TIFF slices, written a slab at a time."""
    generator = np.random.default_rng(0)
    with create_sink(path, shape=(slices, size, size)) as sink:
        for z in range(0, slices, 16):
            count = min(16, slices - z)
            sink.write(z, generator.normal(0, 1, (count, size, size)).astype(np.float32))


def write_model(path: Path, mode: str, options: Mapping[str, int] | None = None) -> None:
    """A residual network with its default sizes, unless others are given, and random weights."""
    name = next(n for n, kind in NETWORKS.items() if kind.dimensions == MODES[mode].network_dimensions and "res" in n)
    spec = NetworkSpec(name, NETWORKS[name].complete(options or {}))
    torch.manual_seed(0)
    weights = build_network(spec).state_dict()
    Checkpoint(spec, weights, Normalization(0.0, 1.0), patch_size=NETWORKS[name].tile).save(path)


class Cost(NamedTuple):
    """Of a command: peak memory in MB, seconds, and seconds of the processor."""

    peak: float
    seconds: float
    processor: float


def measured(command: list[str]) -> Cost:
    """Run a command in a process that has no other children."""

    def run(results: multiprocessing.Queue[Cost]) -> None:
        begun = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        results.put(Cost(used.ru_maxrss * 1024 / 1e6, time.monotonic() - begun, used.ru_utime + used.ru_stime))

    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[Cost] = context.Queue()
    process = context.Process(target=run, args=(results,))
    process.start()
    found = results.get()
    process.join()
    return found


def write_chunked(folder: Path, edge: int) -> dict[str, str]:
    """The same noise in every way of storing it: what each is called, and its path."""
    noise = np.random.default_rng(0).normal(0, 1, (edge, edge, edge)).astype(np.float32)
    with create_sink(folder / "slices", shape=noise.shape, overwrite=True) as sink:
        sink.write(0, noise)
    found = {"TIFF slices": "slices"}
    for depth, yx in ((1, edge), (16, 64), (64, 64)):
        chunks = (depth, yx, yx)
        with h5py.File(folder / f"depth{depth}.h5", "w") as file:
            file.create_dataset("data", data=noise, chunks=chunks, compression="gzip")
        store = zarr.create_array(
            folder / f"depth{depth}.zarr", shape=noise.shape, chunks=chunks, dtype="f4", overwrite=True
        )
        store[:] = noise
        shape = " x ".join(map(str, chunks))
        found |= {f"HDF5, gzip, {shape}": f"depth{depth}.h5", f"Zarr, {shape}": f"depth{depth}.zarr"}
    return found


def measure_chunks(folder: Path, edge: int, rounds: int) -> None:
    """Print what a whole command takes, by how its input is stored."""
    stored = write_chunked(folder, edge)
    write_model(folder / "small.pth", "2.5d", _SMALL)
    costs: dict[str, list[Cost]] = {name: [] for name in stored}
    for _ in range(rounds):
        for name, path in stored.items():
            config = folder / "chunks.yaml"
            config.write_text(f"dataset: {{folder: ., full: {path}}}\n")
            command = [sys.executable, "-m", "denoise", "volume", "--config", str(config), "--overwrite"]
            command += ["--model", str(folder / "small.pth"), "--output", str(folder / "out")]
            costs[name].append(measured(command))
    print("| stored as | seconds | of the processor | peak memory, MB |\n| --- | --- | --- | --- |")
    for name, found in costs.items():
        seconds, processor = (statistics.median(each) for each in list(zip(*found, strict=True))[1:])
        print(f"| {name} | {seconds:.1f} | {processor:.1f} | {max(cost.peak for cost in found):.0f} |")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--slices", type=int, nargs=2, default=(64, 512))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--chunks", action="store_true")
    parser.add_argument("--edge", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    if options.chunks:
        measure_chunks(folder, options.edge, options.rounds)
        return
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
            peak, seconds, _ = measured(command)
            peaks.append(peak)
            rate = slices * options.size**2 / seconds / 1e6
            print(f"| {mode} | {slices} | {peak:.0f} | {seconds:.1f} | {rate:.2f} |", flush=True)
        print(f"| {mode} | ratio | {peaks[1] / peaks[0]:.3f} | | |", flush=True)


if __name__ == "__main__":
    main()
