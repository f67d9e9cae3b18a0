"""Do prepare, train and volume keep to ``--max-memory``, and does ``check`` predict what they take?

    python benchmarks/limits.py --folder scratch [--size 512 --slices 64]
    python benchmarks/limits.py --folder scratch --steps
    python benchmarks/limits.py --folder scratch --reading
    python benchmarks/limits.py --folder scratch --tiles

A simulated scan is prepared, trained on and denoised under several limits; with ``--steps``, networks, patches and
batches are trained for a few steps instead, on small splits of noise; with ``--reading``, the network's defaults on
few, large slices; with ``--tiles``, untrained networks denoise noise. Measured is the resident memory of the whole
process tree, summed twenty times a second (pages that processes share count once for each: the sum is never too
small), or the most that its first process held, where that is more.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from denoise.checkpoint import Checkpoint
from denoise.networks.catalogue import build_network
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.projections.phantom import simulate_foam_scan
from denoise.volumes import create_sink

_CONFIG = "dataset: {folder: rec, splits: [foam_split0, foam_split1], full: foam_full, sample: foam}\n"
#: What is trained for its steps alone: network, patch size, batch size, precision.
_STEPS = (
    ("residual2d", 64, 4, "bf16"),
    ("residual2d", 64, 32, "bf16"),
    ("residual2d", 128, 16, "bf16"),
    ("residual2d", 64, 32, "float32"),
    ("unet2d", 256, 2, "bf16"),
    ("unet2d", 128, 8, "bf16"),
    ("unet2d", 128, 2, "float32"),
    ("residual3d", 64, 1, "bf16"),
    ("residual3d", 48, 2, "bf16"),
    ("residual3d", 48, 8, "bf16"),
    ("residual3d", 48, 16, "bf16"),
    ("residual3d", 48, 8, "float32"),
    ("residual3d", 96, 2, "bf16"),
    ("residual3d", 96, 8, "bf16"),
    ("unet3d", 32, 1, "bf16"),
    ("unet3d", 32, 4, "bf16"),
    ("unet3d", 32, 1, "float32"),
    ("unet3d", 48, 1, "bf16"),
)
_STEPS_SHAPE = (64, 96, 96)
#: What denoises, with tiles of which edge: network, its options, tile, precision.
_TILES: tuple[tuple[str, dict[str, int], int, str], ...] = (
    ("residual2d", {}, 256, "bf16"),
    ("residual2d", {}, 256, "float32"),
    ("residual2d", {"width": 64}, 256, "bf16"),
    ("unet2d", {}, 256, "bf16"),
    ("unet2d", {}, 256, "float32"),
    ("unet2d", {}, 512, "bf16"),
    ("residual3d", {}, 128, "bf16"),
    ("residual3d", {}, 128, "float32"),
    ("residual3d", {"width": 32}, 128, "bf16"),
    ("unet3d", {}, 64, "bf16"),
    ("unet3d", {}, 96, "bf16"),
    ("unet3d", {}, 64, "float32"),
)
_TILES_SHAPE = (48, 512, 512)
#: Format and shape of splits.
_READING = (("", 24, 1024, 1024), ("", 12, 2048, 2048), (".zarr", 12, 2048, 2048), ("", 12, 4096, 4096))


def measured(arguments: list[str]) -> tuple[int, float, str]:
    """Peak memory of the tree in bytes, seconds, and what the command said last."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "denoise", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    root, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        tree = 0
        for each in [root, *(root.children(recursive=True) if root.is_running() else [])]:
            try:
                tree += each.memory_info().rss
            except psutil.Error:  # it has ended meanwhile
                continue
        peak = max(peak, tree, highest(process.pid))
        time.sleep(0.05)
    said = process.communicate()[0].strip().splitlines()
    return peak, time.monotonic() - begun, said[-1] if process.returncode else ""


def highest(pid: int) -> int:
    """The most that a process held in memory so far, in bytes; 0 where it has ended, or the system does not tell."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    except OSError:
        return 0
    return 0 if found is None else 1024 * int(found[1])


def predicted(asked: list[str], line: str) -> str:
    """What ``check`` or ``prepare --dry-run`` says of memory, in MB; nothing where it refuses."""
    command = [sys.executable, "-m", "denoise", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(rf"^{line}\s+about ([\d.]+) (MB|GB)", done.stdout, re.MULTILINE)
    return "" if found is None else f"{float(found[1]) * (1000 if found[2] == 'GB' else 1):.0f}"


def trained(folder: Path, name: str, splits: list[str], settings: str) -> str:
    """Train for a moment; what was predicted and measured, as columns."""
    config = folder / "train.yaml"
    config.write_text(f"dataset: {{folder: ., splits: [{', '.join(splits)}], sample: noise}}\ntrain: {{{settings}}}\n")
    run = folder / f"run_{name}"
    peak, seconds, failed = measured(["train", "--config", str(config), "--output-dir", str(run)])
    said = predicted(["check", "--config", str(config)], "host memory")
    return f"{said} | " + (failed or f"{peak / 1e6:.0f} | {peak / 1e6 / float(said):.2f} | {seconds:.0f}")


def noise(folder: Path, name: str, shape: tuple[int, int, int], seed: int = 0) -> str:
    """A volume of noise, made if it is not there; its name."""
    if not (folder / name).exists():
        generator = np.random.default_rng(seed)
        with create_sink(folder / name, shape=shape) as sink:
            for z in range(0, shape[0], 16):
                part = min(16, shape[0] - z), *shape[1:]
                sink.write(z, generator.standard_normal(part, dtype=np.float32))
    return name


def measure_steps(folder: Path) -> None:
    """What training takes, by network, patch and batch: two epochs of three steps, those of the first on slices."""
    splits = [noise(folder, f"noise{k}", _STEPS_SHAPE, k) for k in range(2)]
    print("| network | patch | batch | arithmetic | predicted, MB | measured, MB | ratio | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for network, patch, batch, precision in _STEPS:
        suffix = "_3d" if network.endswith("3d") else ""
        settings = (
            f"mode: {'3d' if suffix else '2.5d'}, network: {network}, patch_size{suffix}: {patch}, "
            f"batch_size: {batch}, patches_per_epoch{suffix}: {3 * batch}, max_epochs: 2, validate_every: 2, "
            f"precision: {precision}"
        )
        row = trained(folder, f"{network}_{patch}_{batch}_{precision}", splits, settings)
        print(f"| {network} | {patch} | {batch} | {precision} | {row} |", flush=True)


def measure_reading(folder: Path) -> None:
    """What training takes where it is most while the splits are read."""
    print("| splits | predicted, MB | measured, MB | ratio | seconds |\n| --- | --- | --- | --- | --- |")
    for suffix, *shape in _READING:
        name = "x".join(map(str, shape))
        splits = [noise(folder, f"read{k}_{name}{suffix}", tuple(shape), k) for k in range(2)]
        row = trained(folder, f"read_{name}{suffix}", splits, "patches_per_epoch: 12, max_epochs: 1")
        print(f"| {' x '.join(map(str, shape))}, {suffix or 'TIFF'} | {row} |", flush=True)


def measure_tiles(folder: Path) -> None:
    """What denoising takes, by network and tile."""
    noise(folder, "noise_full", _TILES_SHAPE)
    print("| network | tile | arithmetic | predicted, MB | measured, MB | ratio | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for network, options, tile, precision in _TILES:
        spec = NetworkSpec(network, options)
        model, config = folder / f"{network}.pth", folder / "tiles.yaml"
        weights = build_network(spec).state_dict()
        Checkpoint(spec, weights, normalization=Normalization(0.0, 1.0), patch_size=tile).save(model)
        names = "".join(f", {name}: {value}" for name, value in options.items())
        config.write_text(
            "dataset: {folder: ., full: noise_full, sample: noise}\n"
            f"train: {{mode: {'3d' if network.endswith('3d') else '2.5d'}, network: {network}{names}}}\n"
            f"infer: {{tile_size: {tile}, precision: {precision}}}\n"
        )
        given = ["--config", str(config), "--model", str(model), "--output", str(folder / "tiles"), "--overwrite"]
        peak, seconds, failed = measured(["volume", *given])
        said = predicted(["check", "--config", str(config)], "memory")
        ratio = failed or f"{peak / 1e6:.0f} | {peak / 1e6 / float(said):.2f}"
        print(f"| {network}{names} | {tile} | {precision} | {said} | {ratio} | {seconds:.0f} |", flush=True)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=64)
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--reading", action="store_true")
    parser.add_argument("--tiles", action="store_true")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.steps:
        measure_steps(folder)
    elif options.reading:
        measure_reading(folder)
    elif options.tiles:
        measure_tiles(folder)
    else:
        measure_limits(folder, options.size, options.slices)


def measure_limits(folder: Path, size: int, slices: int) -> None:
    """What every command takes, with and without a limit."""
    scan, config, full = folder / "scan.h5", folder / "config.yaml", folder / "full.yaml"
    if not scan.exists():
        simulate_foam_scan(scan, size=size, slices=slices, angles=3 * size // 2)
    full.write_text("dataset: {folder: rec, full: foam_full, sample: foam}\n")
    print("| command | --max-memory, MB | predicted, MB | measured, MB | seconds |\n| --- | --- | --- | --- | --- |")

    def row(name: str, limit: str | None, run: list[str], asked: list[str], line: str = "memory") -> None:
        allowed = [] if limit is None else ["--max-memory", limit]
        peak, seconds, failed = measured([*run, *allowed])
        shown = "" if limit is None else f"{int(limit[:-1]) * 1.048576:.0f}"
        said = predicted([*asked, *allowed], line) if asked else ""
        print(f"| {name} | {shown} | {said} | {failed or f'{peak / 1e6:.0f}'} | {seconds:.1f} |", flush=True)

    for more, limits in (([], (None, "700M", "450M", "380M")), (["--remove-stripes"], (None, "700M"))):
        for limit in limits:
            run = ["prepare", str(scan), "--out", str(folder / "rec"), "--center", str((size - 1) / 2)]
            run += ["--overwrite", *more]
            row(" ".join(["prepare", *more]), limit, run, [*run, "--dry-run"])
    for mode in ("2.5d", "3d"):
        config.write_text(_CONFIG + f"train: {{mode: {mode}}}\n")
        asked = ["check", "--config", str(config)]
        for limit in (None, "620M", "560M", "400M"):
            run = ["train", *asked[1:], "--output-dir", str(folder / f"run_{mode}_{limit}"), "--max-minutes", "0.3"]
            row(f"train {mode}", limit, run, asked, "host memory")
        model = ["--model", str(folder / f"run_{mode}_None"), "--output", str(folder / f"out_{mode}"), "--overwrite"]
        asked = ["check", "--config", str(full), "--mode", mode]
        for limit in (None, "500M", "450M", "400M", "350M"):
            row(f"volume {mode}", limit, ["volume", "--config", str(full), *model], asked)
        row(f"volume {mode} --confidence", "900M", ["volume", "--config", str(config), *model, "--confidence"], [])
    two = ["--processes", "2"]
    row("volume 3d, 2 processes", None, ["volume", "--config", str(full), *model, *two], [*asked, *two])


if __name__ == "__main__":
    main()
