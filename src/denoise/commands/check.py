"""``denoise check``: reads the config and every header, and says what would run. Trains nothing, writes nothing.

With ``--data`` it also reads some slices of the splits and tests them (``denoise.trust.before``).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from denoise.api import Compute
from denoise.checkpoint import CRITERIA, RunFolder
from denoise.commands.display import say, say_verdict
from denoise.commands.inputs import open_inference_inputs, open_splits
from denoise.commands.train import require_own_folder
from denoise.config import RunConfig
from denoise.errors import OutputError
from denoise.inference.engine import slab_bytes
from denoise.launch import describe_device
from denoise.memory import available_bytes
from denoise.modes import MODES, default_tile, inference_window
from denoise.networks.catalogue import build_network, find_network
from denoise.networks.spec import NetworkSpec
from denoise.patches.holdout import HoldOut
from denoise.tiles import TileGrid
from denoise.training.data import fits_in_memory, resident_bytes
from denoise.trust.before import check_splits
from denoise.volumes import SplitSet, Volume, require_same_grid, slice_range
from denoise.volumes.volume import describe_numbers


def check(config: RunConfig, compute: Compute, *, data: bool = False) -> None:
    """Print what training and denoising would do with this config.

    Parameters
    ----------
    data
        Read some slices of the splits too, and say whether the method's assumptions hold.

    Raises
    ------
    DenoiseError
        The first thing that would stop a run, as the run would say it.
    """
    devices = compute.devices()
    lines = [("device", ", ".join(describe_device(d) for d in devices))]
    splits = open_splits(config) if config.given_splits else None
    if splits is not None:
        lines += [(f"split {k}", _describe(volume)) for k, volume in enumerate(splits.volumes)]
    grid = None
    if config.infer.input == "splits" or config.full_path is not None:
        grid = open_inference_inputs(config, config.train.strategy).grid
        if config.infer.input == "full":
            lines.append(("full", _describe(grid)))
            if splits is not None:
                require_same_grid(splits.volumes[0], grid, "split 0", "the full reconstruction")
    network = NetworkSpec(config.network_name, config.network_options)
    with torch.device("meta"):
        weights = sum(p.numel() for p in build_network(network).parameters())
    lines.append(
        ("mode", f"{config.mode}; {network.name}: {find_network(network.name).description}; {weights:,} weights")
    )
    if splits is not None:
        lines += _training(config, splits, network)
    if grid is not None:
        lines += _inference(config, grid, network)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        say(f"{name:<{width}}  {text}")
    if data:
        say("")
        say_verdict(check_splits(open_splits(config).volumes))


def _training(config: RunConfig, splits: SplitSet, network: NetworkSpec) -> list[tuple[str, str]]:
    mode = MODES[config.mode]
    window = mode.window(network, config.patch, 0.0, "uniform")
    first, last = config.dataset.train_start_slice, config.dataset.train_end_slice
    chosen = None if first is None and last is None else slice_range(splits.volumes[0], first, last)
    holdout = HoldOut.of(splits.shape, window, config.train.validation_fraction, chosen)
    sampler = mode.sampler(
        holdout, window, config.train.seed, config.train.augment, config.train.z_stride, config.patches_per_epoch
    )
    steps = -(-sampler.epoch_size // config.batch_size)
    needed, free = resident_bytes(splits), available_bytes()
    where = "in memory" if fits_in_memory(splits) else "read patch by patch, as they do not fit in memory"
    held = holdout.held_out
    axis = 0 if held.shape_zyx[0] < splits.shape[0] else 1
    low, high = held.start_zyx[axis], held.stop_zyx[axis] - 1
    numbers = splits.volumes[0].slice_numbers
    part = f"slices {numbers[low]}..{numbers[high]}" if axis == 0 else f"rows {low}..{high}, counted from 0"
    run = RunFolder(config.output_dir)
    models = [CRITERIA[c] for c in CRITERIA if run.model(c).exists()]
    state = f"holds {', '.join(models)}" if models else "no model yet"
    require_own_folder(run)
    return [
        ("patches", f"{' x '.join(map(str, window.read_zyx))} voxels, {sampler.epoch_size} an epoch"),
        (
            "steps",
            f"{steps} an epoch of {config.batch_size} patches, at most {steps * config.train.max_epochs:,} in all",
        ),
        ("held out", part),
        ("training data", f"{_gigabytes(needed)}, {where} ({_gigabytes(free)} free)"),
        ("models", f"{run.path} ({state})"),
    ]


def _inference(config: RunConfig, grid: Volume, network: NetworkSpec) -> list[tuple[str, str]]:
    edge = config.infer.tile_size or default_tile(network, config.patch)
    window = inference_window(network, edge, config.infer.overlap, config.infer.window, grid.shape)
    tiles = TileGrid(grid.shape, window)
    layers = len(tiles.axes[0].starts)
    inputs = 1 if config.infer.input == "full" else len(config.given_splits)
    memory, free = slab_bytes(tiles, inputs), available_bytes()
    needed = int(np.prod(grid.shape, dtype=np.int64)) * 4
    folder: Path = config.dataset.folder
    room = shutil.disk_usage(folder).free
    if needed > room:
        raise OutputError(
            f"the denoised volume needs {_gigabytes(needed)} in {folder} but {_gigabytes(room)} are free; free some "
            "space, or choose another place with --output"
        )
    return [
        (
            "tiles",
            f"{layers * tiles.tiles_per_layer:,} of {' x '.join(map(str, window.read_zyx))} voxels, each voxel is "
            f"predicted {tiles.redundancy:.2f} times",
        ),
        ("memory", f"about {_gigabytes(memory)} for slabs, besides the network ({_gigabytes(free)} free)"),
        ("disk", f"{_gigabytes(needed)} as float32 ({_gigabytes(room)} free in {folder})"),
    ]


def _describe(volume: Volume) -> str:
    size = volume.voxel_size_um
    voxel = "voxel size unknown" if size is None else f"voxels of {' x '.join(f'{s:g}' for s in size)} um"
    return (
        f"{volume.name}: {' x '.join(map(str, volume.shape))} {volume.dtype.name}, {voxel}, "
        f"slices {describe_numbers(volume.slice_numbers)}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
