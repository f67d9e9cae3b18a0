"""How fast is each output format written and read, and how large is it?

    python benchmarks/formats.py --folder scratch [--size 1024 --slices 64 --rounds 3]

Prints a Markdown table for noisy voxels and one for denoised ones: a foam (a smooth random field, cut at a threshold)
with white noise, and with the same noise smoothed, float32. *Write* includes all levels of a pyramid, *read* goes front
to back in runs of 16 slices, *one slice* reads a whole slice, *patch* a block of 32 x 256 x 256 voxels, both at random
places. Rates are megabytes of voxels per second of one core: the processor time of all
threads is counted, so that other work on the machine matters little, and so do the disk and its cache. All are medians
over rounds in which every format has a turn.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from denoise.tiles import Region, Triple
from denoise.volumes import create_sink, open_volume

OUTPUTS = [
    ("slices", "none"),
    ("slices", "gzip"),
    ("file.tif", "none"),
    ("file.h5", "none"),
    ("file.h5", "gzip"),
    ("file.h5", "blosc"),
    ("image.zarr", "none"),
    ("image.zarr", "gzip"),
    ("image.zarr", "blosc"),
]
SLAB = 8


def foam(shape: Triple, *, denoised: bool) -> NDArray[np.float32]:
    """Attenuation coefficients around 0.005 per voxel, (Z, Y, X)."""
    rng = np.random.default_rng(0)
    field = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 6)
    volume = gaussian_filter(np.where(field > 0.3 * field.std(), np.float32(0.005), np.float32(0)), 1)
    noise = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.002)
    volume += gaussian_filter(noise, 1.2) if denoised else noise
    return volume


def seconds(work: Callable[[], object]) -> float:
    """Processor time that it takes, once."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def write(path: Path, volume: NDArray[np.float32], compression: str) -> None:
    """Through the sink, slab by slab, as inference does."""
    with create_sink(path, shape=volume.shape, compression=compression, voxel_size_um=(1.0, 1.0, 1.0)) as sink:
        for z in range(0, len(volume), SLAB):
            sink.write(z, volume[z : z + SLAB])


def size_of(path: Path) -> int:
    """Bytes of a file or of all files in a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


def measure(path: Path, volume: NDArray[np.float32], compression: str, rng: np.random.Generator) -> dict[str, float]:
    """One turn of one format."""
    found = {"write": seconds(lambda: write(path, volume, compression)), "size": size_of(path) / volume.nbytes}
    opened = open_volume(path)
    depth, height, width = opened.shape
    runs = [Region.of_slices(z, min(z + 16, depth), opened.shape) for z in range(0, depth, 16)]
    found["read"] = seconds(lambda: [opened.read(run) for run in runs])
    z = int(rng.integers(depth))
    found["slice"] = seconds(lambda: opened.read(Region.of_slices(z, z + 1, opened.shape)))
    patch: Triple = (min(32, depth), min(256, height), min(256, width))
    low = [int(rng.integers(n - p + 1)) for n, p in zip(opened.shape, patch, strict=True)]
    found["patch"] = seconds(lambda: opened.read(Region((low[0], low[1], low[2]), patch)))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


def table(folder: Path, shape: Triple, rounds: int, *, denoised: bool) -> None:
    """Measure and print."""
    volume = foam(shape, denoised=denoised)
    rng = np.random.default_rng(1)
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for _ in range(rounds):
        for name, compression in OUTPUTS:
            found[name, compression].append(measure(folder / name, volume, compression, rng))
    print(f"\n{'Denoised' if denoised else 'Noisy'}, {' x '.join(map(str, shape))} float32:\n")
    print("| output | compression | size | write, MB/s per core | read, MB/s per core | one slice, ms | patch, ms |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (name, compression), turns in found.items():
        median = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
        rates = " | ".join(f"{volume.nbytes / 1e6 / median[key]:.0f}" for key in ("write", "read"))
        times = " | ".join(f"{1e3 * median[key]:.0f}" for key in ("slice", "patch"))
        print(f"| {name} | {compression} | {100 * median['size']:.0f} % | {rates} | {times} |", flush=True)


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--slices", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for denoised in (False, True):
        table(asked.folder, (asked.slices, asked.size, asked.size), asked.rounds, denoised=denoised)


if __name__ == "__main__":
    main()
