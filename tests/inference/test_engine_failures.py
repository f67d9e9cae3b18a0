from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoise.errors import CheckpointError, DeviceError, VolumeError
from denoise.inference.engine import Denoiser, denoise_slices
from denoise.modes import MODES
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.tiles import Triple, Window
from denoise.volumes.volume import ArrayVolume


def window_of(mode: str, n_slices: int, overlap: float = 0.5, taper: str = "hann", edge: int = 8) -> Window:
    spec = NetworkSpec("residual2d", {"n_slices": n_slices}) if n_slices else NetworkSpec("residual3d", {})
    return MODES[mode].window(spec, edge, overlap, taper)


def volume(shape: Triple, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Standard deviation 1, bounded, so that 1e-6 is a few roundings of the largest value."""
    edge = math.sqrt(3)
    return np.random.default_rng(seed).uniform(-edge, edge, shape).astype(np.float32)


class SmallMemory(nn.Module):
    """Runs out of memory above so many blocks."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most = most
        self.error = error
        self.batches: list[int] = []

    def forward(self, block: Tensor) -> Tensor:
        self.batches.append(len(block))
        if len(block) > self.most:
            raise self.error
        return block[:, 1:2]


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["accelerator", "host"])
@pytest.mark.parametrize("most", [1, 2, 5])
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    engine: Callable[..., Any], most: int, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    data = volume((9, 20, 20))
    network = SmallMemory(most, error)
    with caplog.at_level(logging.WARNING):
        done = engine(data, window_of("2.5d", 3), network, batch_size=9)
    np.testing.assert_allclose(done.result, data, rtol=0, atol=1e-6)
    failed = [n for n in network.batches if n > most]
    assert failed == [9, 4, 2][: len(failed)], "each size is tried once, not again for every batch"
    assert "memory ran out" in caplog.text


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["accelerator", "host"])
def test_out_of_memory_with_one_tile_is_a_device_error(engine: Callable[..., Any], error: Exception) -> None:
    with pytest.raises(DeviceError, match=r"single tile of \(3, 8, 8\).*infer\.tile_size"):
        engine(volume((3, 9, 9)), window_of("2.5d", 3), SmallMemory(0, error), batch_size=4)


def test_another_error_of_the_network_is_not_taken_for_lack_of_memory(engine: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        engine(volume((3, 9, 9)), window_of("2.5d", 3), SmallMemory(0, RuntimeError("a bug")), batch_size=4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("mode", "n_slices"), [("2.5d", 3), ("3d", 0)])
def test_nan_and_inf_in_the_input_are_refused_with_the_number_of_the_slice(
    predicted_part: type[nn.Module], mode: str, n_slices: int, bad: float
) -> None:
    window = window_of(mode, n_slices)
    data = volume((12, 8, 8))
    data[7, 2, 3] = data[7, 4, 4] = bad
    denoiser = Denoiser(predicted_part(window), Normalization(0.0, 1.0), window, torch.device("cpu"))
    with pytest.raises(VolumeError, match=r"scan_a holds 2 NaN or Inf voxels in slice 107"):
        denoise_slices([ArrayVolume(data, "scan_a", None, 100)], denoiser, range(12), lambda start, slab: None)


@pytest.mark.parametrize(("mode", "n_slices"), [("2.5d", 3), ("3d", 0)])
def test_nan_and_inf_are_filled_with_the_mean_counted_once_and_reported(
    engine: Callable[..., Any],
    predicted_part: type[nn.Module],
    mode: str,
    n_slices: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    window = window_of(mode, n_slices)
    data = volume((30, 8, 8))
    data[7, 2, 3:5], data[8, 0, 0], data[29, 7, 7] = np.nan, np.inf, -np.inf
    with caplog.at_level(logging.WARNING):
        done = engine(
            data, window, predicted_part(window), normalization=Normalization(0.25, 1.0), fill_non_finite=True
        )
    expected = np.where(np.isfinite(data), data, np.float32(0.25))
    np.testing.assert_allclose(done.result, expected, rtol=0, atol=1e-6)
    assert "4 NaN or Inf voxels" in caplog.text


def test_filling_leaves_the_volume_of_the_caller_alone(
    engine: Callable[..., Any], predicted_part: type[nn.Module]
) -> None:
    data = volume((3, 8, 8))
    data[1, 1, 1] = np.nan
    before = data.copy()
    window = window_of("2.5d", 1)
    engine(data, window, predicted_part(window), fill_non_finite=True)
    np.testing.assert_array_equal(data, before)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_predicts_nan_is_refused_and_none_of_it_written(
    predicted_part: type[nn.Module], value: float
) -> None:
    """The message gives the number that the user knows the slice by."""
    window = window_of("2.5d", 1)
    written: list[int] = []
    network = predicted_part(window, lambda block: torch.where(block > 11.5, torch.tensor(value), block))
    data = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None], (24, 8, 8)).copy()
    denoiser = Denoiser(network, Normalization(0.0, 1.0), window, torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"NaN or Inf in slices 108 to 115.*precision"):
        denoise_slices(
            [ArrayVolume(data, "scan_a", None, 100)], denoiser, range(24), lambda start, slab: written.append(start)
        )
    assert 8 not in written


@pytest.mark.parametrize("depth", [6, 200])
def test_an_error_of_the_sink_ends_the_run_soon(predicted_part: type[nn.Module], depth: int) -> None:
    window = window_of("2.5d", 1)
    starts: list[int] = []

    def write(start: int, slab: np.ndarray[Any, Any]) -> None:
        starts.append(start)
        raise OSError("disk full")

    denoiser = Denoiser(predicted_part(window), Normalization(0.0, 1.0), window, torch.device("cpu"))
    with pytest.raises(OSError, match="disk full"):
        denoise_slices([ArrayVolume(volume((depth, 8, 8)))], denoiser, range(depth), write)
    assert len(starts) <= 5


def test_an_error_while_reading_ahead_reaches_the_caller(
    engine: Callable[..., Any], predicted_part: type[nn.Module], recording_volume: type[Any]
) -> None:
    class Damaged(recording_volume):  # type: ignore[misc]
        def read(self, region: Any) -> Any:
            if region.stop_zyx[0] > 20:
                raise VolumeError("slice_0020.tif is cut short")
            return super().read(region)

    window = window_of("2.5d", 3)
    with pytest.raises(VolumeError, match="cut short"):
        engine([Damaged(volume((40, 8, 8)))], window, predicted_part(window))
