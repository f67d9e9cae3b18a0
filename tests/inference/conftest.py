"""Networks that do something known, and volumes that remember what was read of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from denoise.inference.engine import Denoiser, denoise_slices
from denoise.networks.catalogue import build_network
from denoise.networks.residual import mixing_weights
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.tiles import Region, Triple, Window
from denoise.volumes.volume import ArrayVolume, Volume


class PredictedPart(nn.Module):
    """Returns the part of its input that the window predicts, changed by a function of the values."""

    def __init__(self, window: Window, change: Callable[[Tensor], Tensor] = lambda block: block) -> None:
        super().__init__()
        self.window = window
        self.change = change
        self.batches: list[int] = []

    def forward(self, block: Tensor) -> Tensor:
        self.batches.append(len(block))
        return self.change(block[(slice(None), *self.window.predicted)])


@dataclass
class RecordingVolume:
    """An array volume that remembers every region that was read."""

    array: NDArray[np.float32]
    name: str = "recorded"
    regions: list[Region] = field(default_factory=list)
    voxel_size_um: None = None
    chunk_zyx: Triple = (1, 1, 1)

    @property
    def shape(self) -> Triple:
        z, y, x = self.array.shape
        return z, y, x

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def slice_numbers(self) -> range:
        return range(self.shape[0])

    def read(self, region: Region) -> NDArray[np.float32]:
        assert region.inside(self.shape)
        self.regions.append(region)
        return self.array[region.slices].copy()

    def read_stored(self, region: Region) -> NDArray[np.float32]:
        return self.read(region)

    def times_read(self) -> list[int]:
        """How often each slice was read."""
        times = [0] * self.shape[0]
        for region in self.regions:
            for z in range(region.start_zyx[0], region.stop_zyx[0]):
                times[z] += 1
        return times


@dataclass
class Run:
    """What an engine run wrote and reported."""

    writes: list[tuple[int, int]]
    progress: list[int]
    result: NDArray[np.float32]


def run(
    inputs: NDArray[Any] | Sequence[Volume],
    window: Window,
    network: nn.Module,
    z_range: range | None = None,
    normalization: Normalization = Normalization(0.0, 1.0),  # noqa: B008
    budget: int | None = None,
    **options: Any,
) -> Run:
    """Run the engine on the CPU; slices that were never written stay NaN."""
    volumes: Sequence[Volume] = [ArrayVolume(inputs)] if isinstance(inputs, np.ndarray) else inputs
    shape = volumes[0].shape
    z_range = range(shape[0]) if z_range is None else z_range
    done = Run([], [], np.full((len(z_range), *shape[1:]), np.nan, dtype=np.float32))

    def write(start: int, slab: NDArray[np.float32]) -> None:
        assert slab.dtype == np.float32
        done.writes.append((start, len(slab)))
        done.result[start : start + len(slab)] = slab

    denoiser = Denoiser(network, normalization, window, torch.device("cpu"), **options).prepared()
    denoise_slices(volumes, denoiser, z_range, write, done.progress.append, budget=budget)
    return done


def random_network(name: str, seed: int = 3, **options: int) -> nn.Module:
    """A residual network that corrects: what is zero at the start of training is random too."""
    torch.manual_seed(seed)
    network = build_network(NetworkSpec(name, options))
    leave = network.get_submodule("leave")
    assert isinstance(leave, nn.Conv2d)
    for weights in (leave.weight, *mixing_weights(network)):
        nn.init.normal_(weights, std=0.05)
    return network.eval()


@pytest.fixture
def engine() -> Callable[..., Run]:
    return run


@pytest.fixture
def predicted_part() -> type[PredictedPart]:
    return PredictedPart


@pytest.fixture
def recording_volume() -> type[RecordingVolume]:
    return RecordingVolume


@pytest.fixture
def corrector() -> Callable[..., nn.Module]:
    return random_network
