"""Training from a few slabs in memory, which are exchanged all the time, against training with all splits in memory.

    taskset -c 0 python benchmarks/cached_training.py --folder scratch [--slices 256 --size 512 --share 0.25]

Two splits of noise as a folder of TIFF slices and as Zarr. Three sources of blocks take turns in front of one network
and one optimiser: all in memory; slabs from TIFF; slabs from Zarr. A measurement of the slabs goes over whole turns of
the cache and ends when the slab after those has been read too, so that all reading is in its time. Files that were
just written come from the page cache: this measures what reading costs the processor, not how fast a disk is.

Then a run of its own, in a process of its own, is told how much memory it may take (``max_memory``), and its peak
resident memory is compared with that.

``--chunks 64,128`` measures something else: how long it takes to read every slab once, without training, where the
splits are Zarr with cubic chunks of these sizes, and how often voxels are decoded for it.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zarr
from torch import Tensor, nn

from denoise.arithmetic import autocast, fast_layout, resolve_precision
from denoise.config.recipes import RECIPES
from denoise.config.train_section import TrainSection
from denoise.launch import World
from denoise.modes import mode_of
from denoise.networks.catalogue import build_network
from denoise.networks.spec import NetworkSpec
from denoise.patches.holdout import HoldOut
from denoise.patches.sampler import Sampler, VolumeSampler
from denoise.patches.slabs import divide
from denoise.patches.turns import SlabSampler
from denoise.tiles import Window
from denoise.training.data import BlockSource, bytes_per_voxel, open_blocks, resident_bytes
from denoise.training.footprint import Footprint
from denoise.training.job import TrainJob
from denoise.training.loop import run_worker
from denoise.training.objective import Objective, paired
from denoise.training.reading import sampled_normalization
from denoise.training.schedule import Schedule
from denoise.training.slots import SlabSlots
from denoise.volumes import create_sink, open_volume
from denoise.volumes.combined import chunks_of
from denoise.volumes.volume import SplitSet

CPU = World(0, 1, torch.device("cpu"))
FORMATS = {"TIFF": "", "Zarr": ".zarr"}


def write_splits(folder: Path, suffix: str, slices: int, size: int) -> SplitSet:
    """Noise, a few slices at a time; what is there is kept."""
    volumes = []
    for k in range(2):
        path = folder / f"split{k}_{slices}x{size}{suffix}"
        if not path.exists():
            generator = np.random.default_rng(k)
            with create_sink(path, shape=(slices, size, size)) as sink:
                for z in range(0, slices, 16):
                    count = min(16, slices - z)
                    sink.write(z, generator.normal(0, 1, (count, size, size)).astype(np.float32))
        volumes.append(open_volume(path))
    return SplitSet.of(volumes)


def write_cubes(folder: Path, chunk: int, slices: int, size: int) -> SplitSet:
    """Noise that compresses, in cubic chunks; what is there is kept."""
    volumes = []
    for k in range(2):
        path = folder / f"split{k}_{slices}x{size}_cubes{chunk}.zarr"
        if not path.exists():
            noise = np.random.default_rng(k).normal(0, 1, (slices, size, size)).astype(np.float32).round(2)
            zarr.create_array(str(path), data=noise, chunks=(chunk,) * 3)
        volumes.append(open_volume(path))
    return SplitSet.of(volumes)


def sampler_of(network: NetworkSpec, splits: SplitSet) -> tuple[VolumeSampler, Window]:
    """Blocks of the recipe's size."""
    window = mode_of(network).window(network, RECIPES[network.name].patch_size, 0.0, "uniform")
    return mode_of(network).sampler(HoldOut.of(splits.shape, window, 0.1), window, 0), window


@dataclass
class Trainer:
    """One network that is trained on whatever comes."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    window: Window
    dtype: torch.dtype

    def step(self, blocks: Tensor) -> None:
        """Forward, backward, and the optimiser."""
        inputs, targets = paired(blocks, "X:1")
        with autocast(CPU.device, self.dtype):
            prediction = self.network(inputs)
        loss = (prediction.float() - targets[(slice(None), *self.window.predicted)]).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def endless(source: BlockSource, sampler: Sampler, batch: int) -> Iterator[Tensor]:
    """Batches, epoch after epoch."""
    steps = math.ceil(sampler.epoch_size / batch)
    return source.batches(
        sampler.places(epoch, [step * batch + i for i in range(batch)])
        for epoch in range(10**6)
        for step in range(steps)
    )


def measured(trainer: Trainer, batches: Iterator[Tensor], steps: int, source: BlockSource) -> float:
    """Steps per second; with slabs, until the next one has been read."""
    begun = time.perf_counter()
    for _ in range(steps):
        trainer.step(next(batches))
    slots = getattr(source, "slots", None)
    while slots is not None and not slots.is_ahead:
        time.sleep(0.001)
    return steps / (time.perf_counter() - begun)


def limited_run(splits: SplitSet, network: NetworkSpec, folder: Path, max_memory: int, results: object) -> None:
    """Train for a while, and tell the peak of this process."""
    recipe = RECIPES[network.name]
    folder.mkdir(exist_ok=True)
    job = TrainJob(
        splits=splits,
        network=network,
        settings=TrainSection(max_epochs=1, validate_every=1),
        patch_size=recipe.patch_size,
        batch_size=recipe.batch_size,
        schedule=Schedule("constant", 1e-3),
        objective=Objective("l2"),
        folder=folder,
        ema_decay=0.995,
        patches_per_epoch=1500,
        show_progress=False,
        max_memory=max_memory,
    )
    run_worker(CPU, job)
    # Not ru_maxrss, which begins with that of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    results.put(int(status["VmHWM"].split()[0]) * 1024)  # type: ignore[attr-defined]


def compare_speed(network: NetworkSpec, folder: Path, options: argparse.Namespace) -> None:
    """Print a table."""
    recipe = RECIPES[network.name]
    formats = {name: write_splits(folder, suffix, options.slices, options.size) for name, suffix in FORMATS.items()}
    sources: dict[str, tuple[BlockSource, Iterator[Tensor]]] = {}
    steps = 0
    for name, splits in formats.items():
        whole, window = sampler_of(network, splits)
        if not sources:
            resident = open_blocks(splits, CPU, "error", None)
            sources["in memory"] = resident, endless(resident, whole, recipe.batch_size)
        budget = int(options.share * resident_bytes(splits))
        division = divide(whole, bytes_per_voxel(splits), budget, chunks_of(splits.volumes))
        blocks = math.ceil(whole.epoch_size / recipe.batch_size) * recipe.batch_size
        sampler = SlabSampler(whole, division, blocks)
        cached = open_blocks(splits, CPU, "error", None, sampler)
        sources[name] = cached, endless(cached, sampler, recipe.batch_size)
        turns = sampler.turns
        steps = max(1, round(options.turns * turns.blocks_per_round / len(turns.slabs) / recipe.batch_size))
    deepest = max(slab.region.shape_zyx for slab in turns.slabs)
    print(
        f"\n{network.name}, {options.slices} x {options.size} x {options.size}: {turns.resident} + 1 of "
        f"{len(turns.slabs)} slabs of at most {deepest} voxels; {steps} steps of {recipe.batch_size} blocks a "
        "measurement\n"
    )
    dtype = resolve_precision("auto", CPU.device)
    torch.manual_seed(0)
    model = fast_layout(build_network(network))
    trainer = Trainer(model, torch.optim.Adam(model.parameters(), 1e-3, fused=True), window, dtype)
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for round_number in range(options.rounds + 1):
        for name, (source, batches) in sources.items():
            rate = measured(trainer, batches, steps if round_number else 5, source)
            if round_number:
                rates[name].append(rate)
    for source, _ in sources.values():
        source.close()
    print("| blocks from | steps/s, median | of that in memory, median of rounds |\n| --- | --- | --- |")
    for name in sources:
        ratios = [a / b for a, b in zip(rates[name], rates["in memory"], strict=True)]
        print(f"| {name} | {statistics.median(rates[name]):.2f} | {statistics.median(ratios):.3f} |", flush=True)


def compare_reading(network: NetworkSpec, folder: Path, options: argparse.Namespace) -> None:
    """Print a table."""
    print(
        f"\n| {network.name}: chunks | slabs | at most | voxels read / voxels | normalisation, s | all slabs once, s |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for chunk in map(int, options.chunks.split(",")):
        splits = write_cubes(folder, chunk, options.slices, options.size)
        whole, _ = sampler_of(network, splits)
        budget = int(options.share * resident_bytes(splits))
        sampler = SlabSampler(whole, divide(whole, bytes_per_voxel(splits), budget, chunks_of(splits.volumes)), 1000)
        turns = sampler.turns
        begun = time.perf_counter()
        sampled_normalization(splits, CPU, "error")
        known = time.perf_counter()
        slots = SlabSlots(splits, turns, CPU, np.dtype(np.float32), None)
        for turn in range(turns.first, len(turns.slabs)):
            slots.require(turn)
        ended = time.perf_counter()
        slots.stop()
        decoded = sum(
            math.prod(-(-s.stop // chunk) * chunk - s.start // chunk * chunk for s in slab.region.slices)
            for slab in turns.slabs
        )
        largest = max((slab.region.shape_zyx for slab in turns.slabs), key=math.prod)
        print(
            f"| {chunk}^3 | {len(turns.slabs)} | {' x '.join(map(str, largest))} | "
            f"{decoded / math.prod(splits.shape):.1f} | {known - begun:.1f} | {ended - known:.1f} |",
            flush=True,
        )


def compare_memory(network: NetworkSpec, folder: Path, options: argparse.Namespace) -> None:
    """Print a table."""
    recipe = RECIPES[network.name]
    splits = write_splits(folder, "", options.slices, options.size)
    _, window = sampler_of(network, splits)
    itemsize = resolve_precision("auto", CPU.device).itemsize
    processes = Footprint(network, window, "cpu", 1, recipe.batch_size, len(splits), itemsize).bytes
    print("\n| network | data, MB | may take, MB | peak, MB |\n| --- | --- | --- | --- |")
    context = multiprocessing.get_context("spawn")
    for share in (options.share, 1.0):
        allowed = processes + int(share * resident_bytes(splits))
        results = context.Queue()
        arguments = (splits, network, folder / f"limited_{network.name}_{share}_{time.time():.0f}", allowed, results)
        process = context.Process(target=limited_run, args=arguments)
        process.start()
        peak = results.get()
        process.join()
        print(
            f"| {network.name} | {resident_bytes(splits) / 1e6:.0f} | {allowed / 1e6:.0f} | {peak / 1e6:.0f} |",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=256)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--share", type=float, default=0.25, help="of the splits that fits in memory")
    parser.add_argument("--turns", type=float, default=2.0, help="of the cache, per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", help="sizes of cubic chunks: how long reading takes, and nothing else")
    parser.add_argument("--networks", nargs="+", default=["residual2d", "residual3d"])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.networks:
        network = NetworkSpec(name, {})
        if options.chunks:
            compare_reading(network, options.folder, options)
            continue
        compare_speed(network, options.folder, options)
        compare_memory(network, options.folder, options)


if __name__ == "__main__":
    main()
