"""How fast are inference and training, how much of that is the networks' own time, and how does plain code compare?

    python benchmarks/throughput.py --folder scratch [--size 512 --slices 8 --seconds 20 --device cpu|cuda]

Prints four tables and writes them with all single measurements to ``throughput.json`` in the folder:

1. Matrix multiplication, the measure of the machine.
2. Every network from memory. *Bare* is the network alone: one batch of the engine's own tiles again and again, in the
   engine's arithmetic and layout. *Engine* is ``denoise_slices`` on an array, with the default tiles. *Redundancy* is
   voxels predicted per voxel of the volume, which the overlap of tiles costs; engine / bare cannot exceed its inverse.
   The column "of 512^3" is the redundancy in a volume of that size. "Per predicted voxel" is engine / bare times
   redundancy: what reading, batching, blending and writing leave of the network's speed.
3. TIFF folder to TIFF folder: the plain implementation (``plain.py``) and the engine, with the same weights.
4. Training: the real loop from its second step on, without scoring and saving. A sample is one patch that goes forward
   and backward; the loop makes two of every block of two splits. Those of residual3d are whole blocks, without the
   steps on single slices that come before them.

"Of matmul" is the arithmetic of the convolutions (two operations per multiply-accumulate; training three times that),
over the rate of a matrix multiplication in the same number format, measured in the same round.

What one row or table compares takes turns: after a warm-up of each, rounds of one measurement each until three are done
and ``--seconds`` are over (two, where those took twice that long). Rates are medians over rounds, ratios are medians of
the ratios within a round, so that both sides of a ratio see the same machine. Inputs are noise and weights are random:
neither matters to speed. The defaults take about ten minutes on two idle CPU cores; on a GPU ask for a larger volume
(--size 2048 --slices 64).

The volume in 2.5D is (slices, size, size), in 3D (64, size / 4, size / 4), at least 64 wide. unet3d costs 650,000
multiply-accumulates a voxel: on a CPU it gets a single tile of ``--cube`` voxels a side (32; it is published with 96,
which it has on a GPU). Training on a CPU takes at most four blocks a step.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from denoise.api import train
from denoise.arithmetic import autocast, has_bf16
from denoise.checkpoint import Checkpoint
from denoise.config import InferSection
from denoise.config.recipes import RECIPES
from denoise.inference import engine
from denoise.inference.engine import Denoiser, denoise_slices
from denoise.inference.models import make_denoiser
from denoise.launch import Compute, choose_devices, describe_device
from denoise.modes import default_tile, inference_window, mode_of
from denoise.networks.catalogue import NETWORKS, build_network
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.tiles import TileGrid, Triple
from denoise.training import slices_first
from denoise.training.job import Plan, Record
from denoise.training.validation import Preview
from denoise.volumes import ArrayVolume, create_sink, open_volume
from denoise.volumes.volume import Float32Array
from plain import denoise_plainly, patch_starts, train_plainly

#: Grey values as in a real scan; mean and deviation are taken off and put back again.
NOISE = Normalization(30.0, 5.0)
#: Of this volume the redundancy is given too, at the published patch sizes: those that are measured are small.
LARGE: Triple = (512, 512, 512)
#: Tiles that the bare network predicts per measurement: seconds on a CPU.
BARE_TILES = 16
#: Blocks per training step on a CPU, where 32 of unet2d take minutes.
CPU_BLOCKS = 4
MOST_ROUNDS = 9
#: Epochs or patches that no measurement reaches.
NEVER = 10**6
#: What is quicker is done several times in a row, so that a hiccup of the machine does not decide.
LEAST_SECONDS = 0.5

Work = Callable[[], float]
"""Does a piece of work and returns its rate: units per second."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    folder: Path
    size: int
    slices: int
    plain_slices: int
    cube: int
    seconds: float
    device: torch.device

    @property
    def is_cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.type == "cuda"

    @property
    def fast_dtype(self) -> torch.dtype:
        """What the engine and the loop compute in."""
        return torch.bfloat16 if has_bf16(self.device) else torch.float32


@dataclass(frozen=True)
class Rounds:
    """Rates of several works that took turns: element i of every list is from round i."""

    rates: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Units per second."""
        return statistics.median(self.rates[name])

    def ratio(self, name: str, other: str) -> float:
        """How many times as fast as another work."""
        return statistics.median(a / b for a, b in zip(self.rates[name], self.rates[other], strict=True))


def taking_turns(works: Mapping[str, Work], seconds: float) -> Rounds:
    """Measure works one after the other, again and again; see the top of this file for how often."""
    for work in works.values():
        work()
    rates: dict[str, list[float]] = {name: [] for name in works}
    begun = time.perf_counter()
    for done in range(1, MOST_ROUNDS + 1):
        for name, work in works.items():
            rates[name].append(work())
        spent = time.perf_counter() - begun
        if (done >= 3 and spent >= seconds) or (done >= 2 and spent >= 2 * seconds):
            break
    return Rounds(rates)


def rate_of(units: float, run: Callable[[], object], device: torch.device, at_least: float = 0.0) -> float:
    """Units per second of a function that does so many; it is called again until so many seconds have passed."""
    _finish(device)
    begun, calls, spent = time.perf_counter(), 0, 0.0
    while not calls or spent < at_least:
        run()
        _finish(device)
        calls, spent = calls + 1, time.perf_counter() - begun
    return calls * units / spent


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul(device: torch.device, dtype: torch.dtype) -> Work:
    """Multiplication of square matrices; floating-point operations per second."""
    side, repeats = (8192, 10) if device.type == "cuda" else (2048, 1)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def run() -> None:
        for _ in range(repeats):
            torch.mm(a, b)

    return lambda: rate_of(2 * side**3 * repeats, run, device, LEAST_SECONDS)


def checkpoint_of(name: str, options: Options) -> Checkpoint:
    """A network with its default sizes and random weights, as if trained on its usual patch."""
    spec = NetworkSpec(name, NETWORKS[name].defaults)
    torch.manual_seed(0)
    return Checkpoint(spec, build_network(spec).state_dict(), NOISE, patch_size=patch_of(name, options))


def patch_of(name: str, options: Options) -> int:
    """Edge of the training patches, voxels."""
    return options.cube if name == "unet3d" else RECIPES[name].patch_size


def counted(spec: NetworkSpec, block: Triple, predicted: Triple) -> tuple[int, float]:
    """Parameters, and multiply-accumulates of the convolutions per predicted voxel."""
    with torch.device("meta"):
        network = build_network(spec).eval()
    total = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        # Weights are (out, in / groups, *kernel): each is used once per output position. Those of a transposed
        # convolution are (in, out / groups, *kernel), and each is used once per input position.
        place = inputs[0] if isinstance(layer, nn.ConvTranspose3d) else output
        total += place.shape[0] * math.prod(place.shape[2:]) * layer.weight.numel()

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d):
            layer.register_forward_hook(count)
    network(torch.empty((1, *block), device="meta"))
    return sum(p.numel() for p in network.parameters()), total / math.prod(predicted)


def redundancy_of(grid: TileGrid) -> float:
    """Voxels that the engine predicts per voxel of the volume."""
    tiles = len(grid.layers(0, grid.shape_zyx[0])) * grid.tiles_per_layer
    return tiles * math.prod(grid.window.predict_zyx) / math.prod(grid.shape_zyx)


def volume_shape(name: str, options: Options) -> Triple:
    """Of the volume that a network denoises from memory."""
    if NETWORKS[name].dimensions == 2:
        return options.slices, options.size, options.size
    if name == "unet3d":
        if not options.is_cuda:
            return options.cube, options.cube, options.cube
        edge = max(options.cube, options.size // 4)
        return 2 * options.cube, edge, edge
    return 64, max(64, options.size // 4), max(64, options.size // 4)


def noise(shape: Triple, seed: int = 0) -> Float32Array:
    """A volume of noise."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    values *= np.float32(NOISE.std)
    values += np.float32(NOISE.mean)
    return values


def from_memory(denoiser: Denoiser, array: Float32Array) -> Work:
    """The engine from an array into an array; voxels of the volume per second."""
    volume, result = ArrayVolume(array), np.empty_like(array)

    def keep(start: int, slab: Float32Array) -> None:
        result[start : start + len(slab)] = slab

    def run() -> None:
        denoise_slices((volume,), denoiser, range(len(array)), keep)

    return lambda: rate_of(array.size, run, denoiser.device, LEAST_SECONDS)


def bare(denoiser: Denoiser, grid: TileGrid, batch_size: int) -> Work:
    """The network alone, on one batch that lies ready; predicted voxels per second."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn((batch_size, *grid.window.read_zyx), generator=generator).to(denoiser.device)
    passes = max(1, BARE_TILES // batch_size)
    voxels = passes * batch_size * math.prod(grid.window.predict_zyx)

    def run() -> None:
        with torch.inference_mode(), autocast(denoiser.device, denoiser.dtype):
            for _ in range(passes):
                denoiser.network(blocks)

    return lambda: rate_of(voxels, run, denoiser.device, LEAST_SECONDS)


def measure_matmul(options: Options) -> list[dict[str, Any]]:
    """Table 1."""
    dtypes = {"bf16": torch.bfloat16, "float32": torch.float32}
    found = taking_turns({name: matmul(options.device, dtype) for name, dtype in dtypes.items()}, 2.0)
    print("| matrix multiplication | GFLOP/s |\n| --- | --- |")
    for name in dtypes:
        print(f"| {name} | {found.median(name) / 1e9:.1f} |", flush=True)
    return [{"arithmetic": name, "flops": found.median(name), "rounds": found.rates[name]} for name in dtypes]


def measure_networks(options: Options) -> list[dict[str, Any]]:
    """Table 2."""
    print(
        f"\n| network, {_name(options.fast_dtype)} | parameters | MACs per voxel | volume | tile | batch | redundancy "
        f"| of {LARGE[0]}^3 | bare, Mvoxel/s | engine, Mvoxel/s | engine / bare | per predicted voxel "
        "| bare, of matmul | engine, of matmul |\n|" + " --- |" * 14
    )
    rows = []
    for name in NETWORKS:
        checkpoint, shape = checkpoint_of(name, options), volume_shape(name, options)
        denoiser = make_denoiser(checkpoint, InferSection(), options.device, shape=shape).prepared()
        grid = TileGrid(shape, denoiser.window)
        parameters, macs = counted(checkpoint.network, grid.window.read_zyx, grid.window.predict_zyx)
        # The engine's own choice, which depends on the device's free memory; it has no more tiles than there are.
        batch_size = min(engine._found_batch_size(denoiser), grid.tiles_per_layer * len(grid.layers(0, shape[0])))
        found = taking_turns(
            {
                "bare": bare(denoiser, grid, batch_size),
                "engine": from_memory(denoiser, noise(shape)),
                "matmul": matmul(options.device, options.fast_dtype),
            },
            options.seconds,
        )
        redundancy, ratio = redundancy_of(grid), found.ratio("engine", "bare")
        edge = default_tile(checkpoint.network, RECIPES[name].patch_size)
        large = TileGrid(LARGE, inference_window(checkpoint.network, edge, None, "hann", LARGE))
        row: dict[str, Any] = {
            "network": name,
            "arithmetic": _name(denoiser.dtype),
            "parameters": parameters,
            "macs_per_voxel": macs,
            "volume": shape,
            "tile": grid.window.predict_zyx,
            "batch_size": batch_size,
            "redundancy": redundancy,
            "redundancy_large": redundancy_of(large),
            "bare_voxels_per_second": found.median("bare"),
            "engine_voxels_per_second": found.median("engine"),
            "engine_over_bare": ratio,
            "engine_over_bare_predicted": ratio * redundancy,
            "bare_of_matmul": 2 * macs * found.ratio("bare", "matmul"),
            "engine_of_matmul": 2 * macs * redundancy * found.ratio("engine", "matmul"),
            "rounds": found.rates,
        }
        rows.append(row)
        print(
            f"| {name} | {parameters:,} | {macs:,.0f} | {_box(shape)} | {_box(grid.window.predict_zyx)} | {batch_size} "
            f"| {redundancy:.2f} | {row['redundancy_large']:.2f} | {_mega(found.median('bare'))} "
            f"| {_mega(found.median('engine'))} | {ratio:.3f} | {ratio * redundancy:.3f} "
            f"| {row['bare_of_matmul']:.3f} | {row['engine_of_matmul']:.3f} |",
            flush=True,
        )
    return rows


def measure_files(options: Options) -> list[dict[str, Any]]:
    """Table 3."""
    folder = options.folder / "throughput_files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, slices in (("noise", options.slices), ("noise_plain", options.plain_slices)):
        with create_sink(folder / name, shape=(slices, options.size, options.size)) as sink:
            sink.write(0, noise((slices, options.size, options.size)))
    shape: Triple = (options.slices, options.size, options.size)
    networks = [name for name, kind in NETWORKS.items() if kind.dimensions == 2]
    denoisers = {
        name: make_denoiser(checkpoint_of(name, options), InferSection(), options.device, shape=shape).prepared()
        for name in networks
    }
    works = {"plain unet2d": _plain_files(folder, options)}
    works |= {f"engine {name}": _engine_files(folder, denoisers[name]) for name in networks}
    works |= {_name(dtype): matmul(options.device, dtype) for dtype in (options.fast_dtype, torch.float32)}
    found = taking_turns(works, options.seconds)
    patch = patch_of("unet2d", options)
    covered = (len(patch_starts(options.size, patch)) * patch) ** 2 / options.size**2
    runs = [("plain unet2d", "unet2d", torch.float32, options.plain_slices, covered)]
    for name, denoiser in denoisers.items():
        redundancy = redundancy_of(TileGrid(shape, denoiser.window))
        runs.append((f"engine {name}", name, denoiser.dtype, options.slices, redundancy))
    print(
        "\n| file to file | arithmetic | slices | redundancy | Mvoxel/s | times plain unet2d | of matmul |\n|"
        + " --- |" * 7
    )
    rows = []
    for what, name, dtype, slices, redundancy in runs:
        window = denoisers[name].window
        _, macs = counted(checkpoint_of(name, options).network, window.read_zyx, window.predict_zyx)
        row: dict[str, Any] = {
            "what": what,
            "arithmetic": _name(dtype),
            "slices": slices,
            "redundancy": redundancy,
            "voxels_per_second": found.median(what),
            "times_plain": found.ratio(what, "plain unet2d"),
            "of_matmul": 2 * macs * redundancy * found.ratio(what, _name(dtype)),
            "rounds": found.rates[what],
        }
        rows.append(row)
        print(
            f"| {what} | {_name(dtype)} | {slices} | {redundancy:.2f} | {_mega(found.median(what))} "
            f"| {row['times_plain']:.2f} | {row['of_matmul']:.3f} |",
            flush=True,
        )
    shutil.rmtree(folder)
    return rows


def _plain_files(folder: Path, options: Options) -> Work:
    checkpoint = checkpoint_of("unet2d", options)
    network = checkpoint.build().to(options.device)
    patch, n_slices = patch_of("unet2d", options), checkpoint.network.options["n_slices"]
    source, target = folder / "noise_plain", folder / "plain"

    def work() -> float:
        shutil.rmtree(target, ignore_errors=True)
        return rate_of(
            options.plain_slices * options.size**2,
            lambda: denoise_plainly(source, target, network, NOISE, patch, n_slices),
            options.device,
        )

    return work


def _engine_files(folder: Path, denoiser: Denoiser) -> Work:
    """As ``denoise volume`` does it: the result is forced to the disk and then renamed, which plain code leaves out."""
    target = folder / "engine"

    def run() -> None:
        volume = open_volume(folder / "noise")
        with create_sink(target, shape=volume.shape, slice_numbers=volume.slice_numbers) as sink:
            denoise_slices((volume,), denoiser, range(volume.shape[0]), sink.write)

    def work() -> float:
        shutil.rmtree(target, ignore_errors=True)
        return rate_of(math.prod(open_volume(folder / "noise").shape), run, denoiser.device)

    return work


class EnoughError(Exception):
    """Ends a training run that has been measured."""


class StepWatch:
    """An observer that times the steps after the first and then ends the run.

    On a GPU it looks at every tenth step only, where the loop has just read the loss and so waited for the device.
    """

    def __init__(self, seconds: float, every: int) -> None:
        self._seconds, self._every = seconds, every
        self._marks: list[tuple[int, float]] = []

    @property
    def steps_per_second(self) -> float:
        """From the first mark to the last."""
        (first, begun), (last, ended) = self._marks[0], self._marks[-1]
        return (last - first) / (ended - begun)

    def started(self, plan: Plan) -> None:
        """See ``Observer``."""

    def stepped(self, step: int, epoch: int, done: float, loss: float | None) -> None:
        """Note the time."""
        if step % self._every == 0:
            self._marks.append((step, time.perf_counter()))
            if len(self._marks) >= 3 and self._marks[-1][1] - self._marks[0][1] >= self._seconds:
                raise EnoughError

    def validated(self, record: Record, preview: Preview | None) -> None:
        """See ``Observer``."""

    def close(self) -> None:
        """See ``Observer``."""


def training(name: str, splits: Sequence[Float32Array], blocks: int, options: Options) -> Work:
    """The real loop; samples (two per block) per second."""
    mode = mode_of(NetworkSpec(name, NETWORKS[name].defaults)).name
    suffix = "_3d" if NETWORKS[name].dimensions == 3 else ""
    sizes = {f"patch_size{suffix}": patch_of(name, options), f"patches_per_epoch{suffix}": NEVER, "batch_size": blocks}
    folder = options.folder / "throughput_training"

    def work() -> float:
        shutil.rmtree(folder, ignore_errors=True)
        watch = StepWatch(options.seconds / 10, 10 if options.is_cuda else 1)
        compute = Compute(options.device.type, gpus=(0,) if options.is_cuda else None)
        settings: dict[str, Any] = {"mode": mode, "network": name, "validate_every": NEVER, **sizes}
        with contextlib.suppress(EnoughError), mock.patch.object(slices_first, "SHARE", 0.0):
            train(splits, folder, compute=compute, observers=(watch,), **settings)
        shutil.rmtree(folder)
        return 2 * blocks * watch.steps_per_second

    return work


def measure_training(options: Options) -> list[dict[str, Any]]:
    """Table 4."""
    print(
        "\n| training | arithmetic | patch | blocks per step | samples/s | predicted Mvoxel/s | times plain "
        "| of matmul |\n|" + " --- |" * 8
    )
    rows = []
    for name, kind in NETWORKS.items():
        checkpoint, patch = checkpoint_of(name, options), patch_of(name, options)
        blocks = RECIPES[name].batch_size if options.is_cuda else min(RECIPES[name].batch_size, CPU_BLOCKS)
        edge = max(options.size, patch)
        shape: Triple = (16, edge, edge) if kind.dimensions == 2 else (max(64, 2 * patch), edge // 2, edge // 2)
        arrays = [noise(shape, seed) for seed in range(2)]
        works = {
            f"loop {name}": training(name, arrays, blocks, options),
            _name(options.fast_dtype): matmul(options.device, options.fast_dtype),
        }
        runs = [(f"loop {name}", options.fast_dtype)]
        if name == "unet2d":
            works |= {"plain unet2d": _plain_training(checkpoint, arrays, 2 * blocks, options)}
            works |= {"float32": matmul(options.device, torch.float32)}
            runs.insert(0, ("plain unet2d", torch.float32))
        found = taking_turns(works, options.seconds)
        window = mode_of(checkpoint.network).window(checkpoint.network, patch, 0.0, "uniform")
        _, macs = counted(checkpoint.network, window.read_zyx, window.predict_zyx)
        voxels = math.prod(window.predict_zyx)
        for what, dtype in runs:
            row: dict[str, Any] = {
                "what": what,
                "arithmetic": _name(dtype),
                "patch": window.read_zyx,
                "blocks_per_step": blocks,
                "samples_per_second": found.median(what),
                "voxels_per_second": found.median(what) * voxels,
                "times_plain": found.ratio(what, "plain unet2d") if name == "unet2d" else None,
                "of_matmul": 3 * 2 * macs * voxels * found.ratio(what, _name(dtype)),
                "rounds": found.rates[what],
            }
            rows.append(row)
            times = "" if row["times_plain"] is None else f"{row['times_plain']:.2f}"
            print(
                f"| {what} | {_name(dtype)} | {_box(window.read_zyx)} | {blocks} | {found.median(what):.2f} "
                f"| {_mega(row['voxels_per_second'])} | {times} | {row['of_matmul']:.3f} |",
                flush=True,
            )
    return rows


def _plain_training(checkpoint: Checkpoint, arrays: list[Float32Array], batch_size: int, options: Options) -> Work:
    network = checkpoint.build()
    patch, n_slices = patch_of("unet2d", options), checkpoint.network.options["n_slices"]

    def work() -> float:
        trained = copy.deepcopy(network).to(options.device)
        return train_plainly(arrays, trained, NOISE, patch, n_slices, batch_size, options.seconds / 10)

    return work


def _name(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "float32"


def _box(shape: Triple) -> str:
    return " x ".join(map(str, shape))


def _mega(rate: float) -> str:
    return f"{rate / 1e6:.3g}"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512, help="edge of the slices, voxels")
    parser.add_argument("--slices", type=int, default=8, help="of the volumes in 2.5D")
    parser.add_argument("--plain-slices", type=int, help="of the volume for the plain code (2 on a CPU, else as many)")
    parser.add_argument("--cube", type=int, help="trained patch of unet3d, voxels (32 on a CPU, else 96)")
    parser.add_argument("--seconds", type=float, default=20.0, help="per row or table of things that are compared")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    given = parser.parse_args()
    device = choose_devices(given.device, None, None)[0]
    is_cpu = device.type == "cpu"
    options = Options(
        folder=given.folder,
        size=given.size,
        slices=given.slices,
        plain_slices=given.plain_slices or (min(2, given.slices) if is_cpu else given.slices),
        cube=given.cube or (32 if is_cpu else RECIPES["unet3d"].patch_size),
        seconds=given.seconds,
        device=device,
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    machine = f"{describe_device(device)}, {platform.machine()}, torch {torch.__version__}"
    load = os.getloadavg()[0]
    # Beside another busy process small operations on two threads were measured to take five to eight times as long.
    print(f"{machine}; load average at the start {load:.1f}{' (not idle: do not quote)' if load > 0.5 else ''}\n")
    report = {
        "machine": machine,
        "load_average": load,
        "options": {name: getattr(options, name) for name in ("size", "slices", "plain_slices", "cube", "seconds")},
        "matmul": measure_matmul(options),
        "networks": measure_networks(options),
        "files": measure_files(options),
        "training": measure_training(options),
    }
    (options.folder / "throughput.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
