"""What training and denoising will cost here: measured for some seconds on noise, then carried over to the real size.

Each measurement runs in a process of its own, so that its peak memory is that of a command, and with the code that
the commands run, on blocks and tiles of their size. Only the volume is smaller.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from denoise.checkpoint import Checkpoint
from denoise.config import RunConfig
from denoise.inference.engine import denoise_slices
from denoise.inference.models import make_denoiser
from denoise.inference.slabs import plan_slabs
from denoise.launch import Compute
from denoise.memory import peak_bytes
from denoise.modes import MODES
from denoise.networks.catalogue import build_network
from denoise.networks.spec import NetworkSpec
from denoise.networks.symmetric import SymmetricWeights
from denoise.normalization import Normalization
from denoise.tiles import TileGrid, Triple, Window
from denoise.training.job import Plan, Record
from denoise.training.start import run_training
from denoise.training.validation import Preview
from denoise.volumes import ArrayVolume, SplitSet

Result = TypeVar("Result")

#: Steps of a calibration, and the minutes after which it ends with fewer.
_STEPS, _MINUTES = 40, 0.15
#: Steps that are not counted: the first ones compile, and fill caches.
_WARM_UP = 3


@dataclass(frozen=True)
class TrainingCost:
    """What a step takes, and a training process besides its data."""

    seconds_per_step: float
    bytes_besides_data: int


@dataclass(frozen=True)
class InferenceCost:
    """What predicting a voxel takes, and a denoising process besides its slabs."""

    seconds_per_predicted_voxel: float
    bytes_besides_slabs: int


def training_cost(config: RunConfig, compute: Compute) -> TrainingCost:
    """Train on noise, with the network, batch and patches of the config."""
    return _in_a_process(_train, config, compute)


def inference_cost(
    config: RunConfig, compute: Compute, window: Window, shape: Triple, symmetric: bool
) -> InferenceCost:
    """Denoise noise, with the network and tiles that a volume of this shape gets.

    Parameters
    ----------
    symmetric
        Whether the network treats all directions alike: it gets other versions of a tile to average.
    """
    return _in_a_process(_denoise, config, compute, window, shape, symmetric)


def _in_a_process(function: Callable[..., Result], *arguments: Any) -> Result:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@dataclass
class _Clock:
    """An observer that notes when steps were done.

    A GPU lags behind who asks it for steps, and has caught up where a loss was read of it.
    """

    steps: list[tuple[int, float]] = field(default_factory=list)
    """The number of each step, and when it was asked for; the first, 0, is the beginning."""
    read: list[tuple[int, float]] = field(default_factory=list)
    """Those of them whose loss was read: done by then."""

    def started(self, plan: Plan) -> None:
        """Note the time."""
        self.steps.append((0, time.monotonic()))

    def stepped(self, step: int, epoch: int, done: float, loss: float | None) -> None:
        """Note the time."""
        self.steps.append((step, time.monotonic()))
        if loss is not None:
            self.read.append(self.steps[-1])

    @property
    def seconds_per_step(self) -> float:
        """Without the first ones, if there are others; of a run too short for losses to be read, as they were asked.

        A network that takes longer for a single step than the calibration may take is known by that step.
        """
        counted = self.read if len(self.read) > 1 else self.steps[min(_WARM_UP + 1, len(self.steps) - 2) :]
        (first, begun), (last, ended) = counted[0], counted[-1]
        return (ended - begun) / (last - first)

    def validated(self, record: Record, preview: Preview | None) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def _train(config: RunConfig, compute: Compute) -> TrainingCost:
    network = NetworkSpec(config.network_name, config.network_options)
    depth, height, width = MODES[config.mode].window(network, config.patch, 0.0, "uniform").read_zyx
    shape = (max(2 * depth, 24), height, width)
    generator = np.random.default_rng(0)
    splits = [ArrayVolume(generator.normal(size=shape).astype(np.float32), f"noise {k}") for k in range(2)]
    clock = _Clock()
    first = compute.devices()[0]
    patches = _STEPS * config.batch_on(first.type)
    changes = {
        "max_epochs": 1,
        "max_minutes": _MINUTES,
        "patches_per_epoch": patches,
        "patches_per_epoch_3d": patches,
        "validate_every": None,
    }
    with tempfile.TemporaryDirectory(prefix="denoise-") as folder:
        train = config.train.model_copy(update={**changes, "output_dir": Path(folder) / "run"})
        dataset = config.dataset.model_copy(update={"train_start_slice": None, "train_end_slice": None})
        small = config.model_copy(update={"train": train, "dataset": dataset})
        alone = replace(compute, gpus=None if first.index is None else (first.index,), processes=None)
        run_training(small, SplitSet.of(splits), alone, show_progress=False, observers=(clock,))
    return TrainingCost(clock.seconds_per_step, peak_bytes() - 2 * len(splits) * splits[0].array.nbytes)


def _denoise(config: RunConfig, compute: Compute, window: Window, shape: Triple, symmetric: bool) -> InferenceCost:
    spec = NetworkSpec(config.network_name, config.network_options)
    network = build_network(spec)
    if symmetric and (weights := SymmetricWeights.of(network)):
        weights.impose()
    checkpoint = Checkpoint(spec, network.state_dict(), Normalization(0.0, 1.0), patch_size=config.patch)
    denoiser = make_denoiser(checkpoint, config.infer, compute.devices()[0])
    denoiser = replace(denoiser, window=window).prepared()
    depth, height, width = (
        min(size, max(2 * stride + edge, least))
        for size, stride, edge, least in zip(shape, window.stride_zyx, window.predict_zyx, (8, 0, 0), strict=True)
    )
    volume = ArrayVolume(np.random.default_rng(0).normal(size=(depth, height, width)).astype(np.float32))
    grid = TileGrid(volume.shape, window)
    seconds = []
    for _ in range(2):
        begun = time.monotonic()
        denoise_slices([volume], denoiser, range(depth), lambda start, slab: None)
        seconds.append(time.monotonic() - begun)
    predicted = grid.redundancy * volume.array.size
    besides = peak_bytes() - volume.array.nbytes - plan_slabs(grid, 1).n_bytes
    return InferenceCost(seconds[-1] / predicted, besides)
