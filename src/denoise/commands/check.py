"""``denoise check``: reads the config and every header, and says what would run. Trains nothing, writes nothing.

With ``--data`` it also reads some slices of the splits and tests them (``denoise.trust.before``); with ``--calibrate``
it trains and denoises noise for some seconds to say how long the real runs will take (``calibration``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from denoise.arithmetic import resolve_precision
from denoise.commands.calibration import inference_cost, training_cost
from denoise.commands.display import say, say_verdict
from denoise.commands.inputs import InferenceInputs, open_inference_inputs, open_splits
from denoise.commands.train import require_own_folder
from denoise.config import RunConfig
from denoise.errors import DeviceError, OutputError, VolumeError
from denoise.inference.engine import batch_bytes, weights_bytes
from denoise.inference.reader import layer_bytes
from denoise.inference.run import MemoryShares
from denoise.inference.versions import versions_for
from denoise.launch import Compute, describe_device
from denoise.memory import available_bytes, denoising_bytes, process_bytes, share_of
from denoise.modes import MODES, default_tile, inference_window
from denoise.networks.catalogue import build_network, find_network
from denoise.networks.spec import NetworkSpec
from denoise.networks.symmetric import SymmetricWeights
from denoise.patches.sampler import VolumeSampler
from denoise.readable import duration, gigabytes
from denoise.run_folder import CRITERIA, RunFolder
from denoise.tiles import TileGrid
from denoise.training.footprint import Footprint
from denoise.training.memory_plan import MemoryPlan, plan_memory
from denoise.training.part import TrainingPart, training_slices
from denoise.training.start import Shares
from denoise.trust.before import bytes_of_warning, check_splits
from denoise.trust.evidence import FEWEST
from denoise.trust.splits import testing_bytes
from denoise.volumes import SplitSet, Volume, require_same_grid
from denoise.volumes.slice_pool import waiting_bytes
from denoise.volumes.tiff_stack import TiffStackVolume
from denoise.volumes.volume import describe_numbers


@dataclass(frozen=True)
class _Part:
    """What is said of training, or of denoising; with what a measurement is carried over by."""

    lines: list[tuple[str, str]]
    costs: Callable[[], list[tuple[str, str]]]
    """Measures, for some seconds."""
    symmetric: bool
    """Whether a new model treats all directions alike."""


def check(config: RunConfig, compute: Compute, *, data: bool = False, calibrate: bool = False) -> None:
    """Print what training and denoising would do with this config.

    Parameters
    ----------
    data
        Read some slices of the splits too, and say whether the method's assumptions hold.
    calibrate
        Train and denoise noise for some seconds too, and say how long the real runs will take.

    Raises
    ------
    DenoiseError
        The first thing that would stop a run, as the run would say it.
    """
    devices = compute.devices()
    lines = [("device", ", ".join(describe_device(d) for d in devices))]
    splits = open_splits(config) if config.given_splits else None
    if splits is not None:
        _require_alike(splits.volumes)
        lines += [(f"split {k}", _describe(volume)) for k, volume in enumerate(splits.volumes)]
    inputs = None
    if config.infer.input == "splits" or config.full_path is not None:
        inputs = open_inference_inputs(config, config.train.strategy)
        if config.infer.input == "full":
            _require_alike([inputs.grid])
            lines.append(("full", _describe(inputs.grid)))
            if splits is not None:
                require_same_grid(splits.volumes[0], inputs.grid, "split 0", "the full reconstruction")
    network = NetworkSpec(config.network_name, config.network_options)
    with torch.device("meta"):
        built = build_network(network)
    weights = sum(p.numel() for p in built.parameters())
    symmetric = bool(config.train.symmetric) and SymmetricWeights.can_hold_in(built)
    lines.append(
        ("mode", f"{config.mode}; {network.name}: {find_network(network.name).description}; {weights:,} weights")
    )
    parts = []
    if splits is not None:
        parts.append(_training(config, compute, splits, network, SymmetricWeights.can_hold_in(built)))
        symmetric = parts[0].symmetric
    if inputs is not None:
        parts.append(_inference(config, compute, inputs, network, devices, weights, symmetric))
    if splits is not None and data:  # after what training needs, which is more most of the time
        _require_memory_for_tests(splits, config.max_memory)
    lines += [line for part in parts for line in part.lines]
    if calibrate:
        lines += [line for part in parts for line in part.costs()]
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        say(f"{name:<{width}}  {text}")
    if data:
        say("")
        splits = open_splits(config)
        verdict = check_splits(splits.volumes, training_slices(config, splits))
        say_verdict(verdict)
        if config.dataset.non_finite == "error" and any(f.name == "finite" and f.value for f in verdict.findings):
            raise VolumeError(
                "training stops at NaN and infinite voxels, which the splits have (see above); reconstruct without "
                "them, or set dataset.non_finite: fill"
            )


def _require_alike(volumes: Sequence[Volume]) -> None:
    """Refuse folders of slices in which one is not like the first, which a run would find after hours."""
    for volume in volumes:
        if isinstance(volume, TiffStackVolume):
            volume.require_alike()


def _require_memory_for_tests(splits: SplitSet, max_memory: int | None) -> None:
    needed = process_bytes() + testing_bytes(splits)
    if max_memory is not None and needed > max_memory:
        raise DeviceError(
            f"testing the splits takes about {gigabytes(needed)} of memory, and {gigabytes(max_memory)} are allowed; "
            "allow more with --max-memory, or leave --data out"
        )


def _training(
    config: RunConfig, compute: Compute, splits: SplitSet, network: NetworkSpec, can_be_symmetric: bool
) -> _Part:
    shares = Shares.of(config, compute)
    batch_size, devices = shares.batch_size, shares.devices
    mode = MODES[config.mode]
    window = mode.window(network, config.patch, 0.0, "uniform")
    part = TrainingPart.of(splits, window, config.train.validation_fraction, training_slices(config, splits))
    sampler = mode.sampler(
        part.holdout, window, config.train.seed, config.train.augment, config.train.z_stride, config.patches_per_epoch
    )
    steps = -(-sampler.epoch_size // batch_size)
    symmetric = can_be_symmetric and part.wants_symmetry(config.train)
    footprint = Footprint(
        network,
        window,
        device_type=devices[0].type,
        processes=len(devices),
        blocks_each=-(-batch_size // len(devices)),
        splits=len(splits),
        itemsize=resolve_precision(config.train.precision, devices[0]).itemsize,
        symmetric=symmetric,
    )
    memory = plan_memory(part.splits, sampler, footprint, config.max_memory)
    held = part.holdout.held_out
    axis = 1 if held.shape_zyx[1] < part.splits.shape[1] else 0
    low, high = held.start_zyx[axis], held.stop_zyx[axis] - 1
    numbers = part.splits.volumes[0].slice_numbers
    held_out = f"slices {numbers[low]}..{numbers[high]}" if axis == 0 else f"rows {low}..{high}, counted from 0"
    if min(held.shape_zyx[1:]) < FEWEST:
        held_out += f"; `denoise report` needs {FEWEST}: raise train.validation_fraction, or train on more slices"
    # Splits are tested before a run: a few enormous slices can take more than training on them.
    most = max(memory.data_bytes + footprint.bytes, bytes_of_warning(splits, config.max_memory))
    run = RunFolder(config.output_dir)
    models = [CRITERIA[c] for c in CRITERIA if run.model(c).exists()]
    state = f"holds {', '.join(models)}" if models else "no model yet"
    require_own_folder(config)

    def costs() -> list[tuple[str, str]]:
        train = config.train.model_copy(update={"symmetric": symmetric})
        cost = training_cost(config.model_copy(update={"train": train}), compute)
        each = cost.seconds_per_step / len(devices)
        longest = steps * config.train.max_epochs * each
        if config.train.max_minutes is not None:
            longest = min(longest, 60 * config.train.max_minutes)
        measured = memory.data_bytes + cost.bytes_besides_data
        return [
            (
                "training time",
                f"{1000 * each:.3g} ms a step, {duration(steps * each)} an epoch, at most {duration(longest)}; less "
                "where it stops improving",
            ),
            ("training memory", f"{gigabytes(measured)} measured, for one process"),
        ]

    lines = [
        ("patches", f"{' x '.join(map(str, window.read_zyx))} voxels, {sampler.epoch_size} an epoch"),
        (
            "steps",
            f"{steps} an epoch of {batch_size} patches, at most {steps * config.train.max_epochs:,} in all",
        ),
        ("held out", held_out),
        ("training data", f"{_kept(memory, sampler)} ({gigabytes(available_bytes())} free)"),
        ("host memory", f"about {gigabytes(most)} for training, data included{_too_much(most)}"),
        ("models", f"{run.path} ({state})"),
    ]
    return _Part(lines, costs, symmetric)


def _too_much(needed: int) -> str:
    free = available_bytes()
    return f": more than the {gigabytes(free)} that are free" if needed > free else ""


def _kept(memory: MemoryPlan, sampler: VolumeSampler) -> str:
    """What of the splits is in memory."""
    if memory.division is None:
        return f"{gigabytes(memory.data_bytes)}, in memory"
    slabs = memory.division.slabs(sampler)
    depth, rows, columns = (max(slab.region.shape_zyx[axis] for slab in slabs) for axis in range(3))
    return (
        f"{gigabytes(memory.data_bytes)}: {memory.division.slots(slabs)} of {len(slabs)} slabs of {depth} x {rows} x "
        f"{columns} voxels in memory, read again and again from the files, as they do not all fit"
    )


def _inference(
    config: RunConfig,
    compute: Compute,
    inputs: InferenceInputs,
    network: NetworkSpec,
    devices: list[torch.device],
    weights: int,
    symmetric: bool,
) -> _Part:
    grid, count = inputs.grid, len(devices)
    edge = config.infer.tile_size or default_tile(network, config.patch)
    window = inference_window(network, edge, config.infer.overlap, config.infer.window, grid.shape)
    tiles = TileGrid(grid.shape, window)
    layers = len(tiles.axes[0].starts)
    besides = waiting_bytes(4 * grid.shape[1] * grid.shape[2])
    if devices[0].type != "cuda":
        peak = find_network(network.name).forward_peak(network.options)
        dtype = resolve_precision(config.infer.precision, devices[0])
        besides += batch_bytes(window, dtype, peak, config.infer.batch_size)
        besides += weights_bytes(weights, dtype)
    allowed = None
    if config.max_memory is not None:
        allowed = share_of(config.max_memory, count) - denoising_bytes(devices[0].type, 1) - besides
    shares = MemoryShares.of(inputs.views, tiles, allowed, count)
    held = shares.n_bytes(inputs.views, tiles)
    memory, free = denoising_bytes(devices[0].type, count) + count * (held + besides), available_bytes()
    needed = int(np.prod(grid.shape, dtype=np.int64)) * 4
    folder: Path = config.dataset.folder
    room = shutil.disk_usage(folder).free
    if needed > room:
        raise OutputError(
            f"the denoised volume needs {gigabytes(needed)} in {folder} but {gigabytes(room)} are free; free some "
            "space, or choose another place with --output"
        )

    def costs() -> list[tuple[str, str]]:
        cost = inference_cost(config, compute, window, grid.shape, symmetric)
        predicted = tiles.redundancy * float(np.prod(grid.shape, dtype=np.float64)) * len(inputs.views)
        seconds = cost.seconds_per_predicted_voxel * predicted / count
        return [
            ("volume time", f"{duration(seconds)}, unless files are slower than the network"),
            ("volume memory", f"{gigabytes(held + cost.bytes_besides_slabs)} measured, for one process"),
        ]

    cell = find_network(network.name).divisor(network.options)
    versions = 1 + len(versions_for(symmetric, config.infer.tta, cell))
    lines = [
        (
            "tiles",
            f"{layers * tiles.tiles_per_layer:,} of {' x '.join(map(str, window.read_zyx))} voxels, each voxel is "
            f"predicted {tiles.redundancy:.2f} times" + (f", in {versions} versions" if versions > 1 else ""),
        ),
        ("memory", f"about {gigabytes(memory)} for denoising ({gigabytes(free)} free)"),
        ("disk", f"{gigabytes(needed)} as float32 ({gigabytes(room)} free in {folder})"),
    ]
    lines += [("stored layers", text) for text in dict.fromkeys(_layers(view, shares) for view in inputs.views) if text]
    return _Part(lines, costs, symmetric)


def _layers(volume: Volume, shares: MemoryShares) -> str:
    """What happens to slices that a volume stores together; nothing where it stores single ones."""
    depth = volume.chunk_zyx[0]
    if depth == 1:
        return ""
    kept = layer_bytes(volume, shares.layer)
    how = f"{gigabytes(kept)} of them kept" if kept else "decoded again for every slab, which takes much longer"
    return f"{depth} slices each, {how}"


def _describe(volume: Volume) -> str:
    size = volume.voxel_size_um
    voxel = "voxel size unknown" if size is None else f"voxels of {' x '.join(f'{s:g}' for s in size)} um"
    return (
        f"{volume.name}: {' x '.join(map(str, volume.shape))} {volume.dtype.name}, {voxel}, "
        f"slices {describe_numbers(volume.slice_numbers)}"
    )
