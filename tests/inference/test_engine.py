from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoise.inference.engine import Denoiser, denoise_slices
from denoise.modes import MODES
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.tiles import Triple, Window
from denoise.volumes.volume import ArrayVolume

# (name, mode, n_slices): every depth of context that behaves differently.
CONTEXTS = [
    ("one slice", "2.5d", 1),
    ("two slices", "2.5d", 2),
    ("four slices", "2.5d", 4),
    ("five slices", "2.5d", 5),
    ("cubes", "3d", 0),
]
SHAPES: list[Triple] = [
    (1, 16, 16),  # one slice, exactly one tile
    (1, 5, 3),  # one slice, smaller than a tile both ways
    (2, 16, 9),  # fewer slices than most contexts
    (8, 8, 8),  # one cube
    (9, 17, 8),  # one voxel more than tiles
    (11, 33, 4),  # exactly the last row, narrower than a tile
    (23, 13, 21),  # several slabs, nothing divides anything
]


def window_of(mode: str, n_slices: int, overlap: float = 0.5, taper: str = "hann", edge: int = 8) -> Window:
    spec = NetworkSpec("residual2d", {"n_slices": n_slices}) if n_slices else NetworkSpec("residual3d", {})
    return MODES[mode].window(spec, edge, overlap, taper)


def volume(shape: Triple, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Standard deviation 1, bounded, so that 1e-6 is a few roundings of the largest value."""
    edge = math.sqrt(3)
    return np.random.default_rng(seed).uniform(-edge, edge, shape).astype(np.float32)


@pytest.mark.parametrize("taper", ["hann", "uniform"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("mode", "n_slices"), [c[1:] for c in CONTEXTS], ids=[c[0] for c in CONTEXTS])
def test_an_identity_network_returns_its_input_faces_edges_and_corners_included(
    engine: Callable[..., Any],
    predicted_part: type[nn.Module],
    mode: str,
    n_slices: int,
    shape: Triple,
    overlap: float,
    taper: str,
) -> None:
    window = window_of(mode, n_slices, overlap, taper)
    data = volume(shape)
    depth = shape[0]
    ranges = {(0, depth), (0, 1), (depth - 1, depth), (depth // 2, depth // 2 + 1), (depth // 3, max(1, depth - 1))}
    # Up to 125 cubes of this overlap share a voxel: their sum in float32 is no finer than this.
    tolerance = 3e-6 if mode == "3d" and overlap > 0.5 else 1e-6
    for start, stop in sorted(ranges):
        done = engine(data, window, predicted_part(window), range(start, stop))
        np.testing.assert_allclose(done.result, data[start:stop], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("mean", "std"), [(30000.0, 5.0), (-0.004, 1e-3), (0.0, 1.0)])
@pytest.mark.parametrize(("mode", "n_slices"), [("2.5d", 4), ("3d", 0)])
def test_a_constant_volume_comes_back_constant(
    engine: Callable[..., Any], predicted_part: type[nn.Module], mode: str, n_slices: int, mean: float, std: float
) -> None:
    window = window_of(mode, n_slices)
    data = np.full((11, 17, 6), mean + 2 * std, dtype=np.float32)
    done = engine(data, window, predicted_part(window), normalization=Normalization(mean, std))
    np.testing.assert_allclose(done.result, data, rtol=2e-7, atol=1e-6 * std)


@pytest.mark.parametrize(("mean", "std"), [(30000.0, 5.0), (0.0004, 2e-4)])
def test_grey_values_come_back_in_the_units_of_the_input(
    engine: Callable[..., Any], predicted_part: type[nn.Module], mean: float, std: float
) -> None:
    window = window_of("2.5d", 3)
    data = (mean + std * volume((5, 20, 11))).astype(np.float32)
    done = engine(data, window, predicted_part(window), normalization=Normalization(mean, std))
    # A value of 30000 has a spacing of 0.002 in float32: to the nearest neighbours is all that can be asked.
    np.testing.assert_allclose(done.result, data, rtol=3e-7, atol=1e-6 * std)


@pytest.mark.parametrize(
    ("name", "n_slices"), [("residual2d", 2), ("residual2d", 4), ("residual2d", 5), ("residual3d", 0)]
)
def test_a_z_range_equals_the_same_slices_of_a_full_run(
    engine: Callable[..., Any], corrector: Callable[..., nn.Module], name: str, n_slices: int
) -> None:
    options = {"n_slices": n_slices} if n_slices else {}
    network = corrector(name, levels=2, width=4, **options)
    window = window_of("2.5d" if n_slices else "3d", n_slices)
    data = volume((21, 13, 16))
    full = engine(data, window, network).result
    assert np.abs(full - data).max() > 0.1, "the network must change something, or this test shows nothing"
    for start, stop in [(0, 1), (20, 21), (7, 8), (8, 9), (0, 9), (5, 18), (13, 21)]:
        done = engine(data, window, network, range(start, stop))
        np.testing.assert_allclose(done.result, full[start:stop], rtol=0, atol=2e-6, err_msg=f"{start}..{stop}")


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
@pytest.mark.parametrize("n_slices", [1, 2, 3, 4, 5, 9])
def test_neighbouring_slices_reach_the_network_in_order_and_reflected_at_the_faces(
    engine: Callable[..., Any], depth: int, n_slices: int
) -> None:
    weights = torch.arange(1.0, n_slices + 1)

    class WeighsSlices(nn.Module):
        def forward(self, block: Tensor) -> Tensor:
            return (block * weights[:, None, None]).sum(dim=1, keepdim=True)

    data = np.broadcast_to(np.arange(10, 10 + depth, dtype=np.float32)[:, None, None] ** 2, (depth, 8, 8)).copy()
    before = n_slices // 2
    padded = np.pad(data[:, 0, 0], (before, n_slices - 1 - before), mode="reflect" if depth > 1 else "edge")
    expected = np.array([padded[z : z + n_slices] @ weights.numpy() for z in range(depth)])
    window = window_of("2.5d", n_slices)
    for z_range in [range(depth), *(range(z, z + 1) for z in range(depth))]:
        result = engine(data, window, WeighsSlices(), z_range).result
        np.testing.assert_allclose(result[:, 3, 3], expected[z_range.start : z_range.stop], rtol=1e-5)


@pytest.mark.parametrize(("name", "n_slices"), [("residual2d", 3), ("residual3d", 0)])
def test_a_network_without_spatial_statistics_leaves_no_seams_once_tiles_have_a_halo(
    engine: Callable[..., Any], corrector: Callable[..., nn.Module], name: str, n_slices: int
) -> None:
    """Tiles that read their receptive radius around what they predict give one answer, whatever the tiling."""
    flat = n_slices > 0
    radius = 6 if flat else 4  # levels = 1; see denoise.networks.residual.receptive_radius
    network = corrector(name, levels=1, width=4, **({"n_slices": n_slices} if flat else {}))

    class Cropped(nn.Module):
        def forward(self, block: Tensor) -> Tensor:
            around = (slice(None), slice(None) if flat else slice(radius, -radius))
            return network(block)[(*around, slice(radius, -radius), slice(radius, -radius))]

    def tiling(edge: int, stride: int) -> Window:
        if flat:
            read, predict, before = (n_slices, edge + 2 * radius), (1, edge), (n_slices // 2, radius)
        else:
            read, predict, before = (edge + 2 * radius,) * 2, (edge,) * 2, (radius,) * 2
        steps = (1 if flat else stride, stride, stride)
        return Window((*read, read[1]), (*predict, predict[1]), steps, (*before, before[1]), "uniform")

    data = volume((7, 24, 19))
    one = engine(data, tiling(8, 8), Cropped()).result
    assert np.abs(one - data).max() > 0.1
    for edge, stride in [(12, 7), (24, 24)]:
        np.testing.assert_allclose(engine(data, tiling(edge, stride), Cropped()).result, one, rtol=0, atol=3e-6)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
@pytest.mark.parametrize(("mode", "n_slices", "deepest"), [("2.5d", 5, 12), ("2.5d", 2, 9), ("3d", 0, 16)])
def test_each_slice_is_read_once_and_memory_does_not_grow_with_depth(
    engine: Callable[..., Any],
    predicted_part: type[nn.Module],
    recording_volume: type[Any],
    mode: str,
    n_slices: int,
    deepest: int,
    overlap: float,
) -> None:
    window = window_of(mode, n_slices, overlap)
    for depth in (40, 90):
        recorded = recording_volume(volume((depth, 9, 9)))
        engine([recorded], window, predicted_part(window))
        assert recorded.times_read() == [1] * depth
        assert max(region.shape_zyx[0] for region in recorded.regions) <= deepest


@pytest.mark.parametrize(("mode", "n_slices", "context"), [("2.5d", 5, 2), ("2.5d", 4, 2), ("3d", 0, 8)])
def test_a_z_range_reads_only_its_slices_and_their_context(
    engine: Callable[..., Any],
    predicted_part: type[nn.Module],
    recording_volume: type[Any],
    mode: str,
    n_slices: int,
    context: int,
) -> None:
    window = window_of(mode, n_slices)
    recorded = recording_volume(volume((60, 8, 8)))
    engine([recorded], window, predicted_part(window), range(30, 33))
    read = [z for z, times in enumerate(recorded.times_read()) if times]
    assert read[0] >= 30 - context
    assert read[-1] <= 32 + context


@pytest.mark.parametrize("overlap", [0.0, 0.5])
@pytest.mark.parametrize(("mode", "n_slices"), [("2.5d", 3), ("3d", 0)])
@pytest.mark.parametrize("z_range", [range(27), range(1), range(26, 27), range(9, 20)], ids=str)
def test_slices_are_written_once_each_in_ascending_order_from_one_thread(
    predicted_part: type[nn.Module], mode: str, n_slices: int, z_range: range, overlap: float
) -> None:
    window = window_of(mode, n_slices, overlap)
    starts: list[tuple[int, int]] = []
    threads: set[int] = set()
    reported: list[int] = []

    def write(start: int, slab: np.ndarray[Any, Any]) -> None:
        starts.append((start, len(slab)))
        threads.add(threading.get_ident())

    denoiser = Denoiser(predicted_part(window), Normalization(0.0, 1.0), window, torch.device("cpu"))
    denoise_slices([ArrayVolume(volume((27, 8, 8)))], denoiser, z_range, write, reported.append)
    written = [z for start, count in starts for z in range(start, start + count)]
    assert written == list(range(len(z_range)))
    assert len(threads) == 1
    assert reported == sorted(reported)
    assert reported[-1] == len(z_range)


def test_the_network_is_averaged_over_several_inputs(
    engine: Callable[..., Any], predicted_part: type[nn.Module]
) -> None:
    window = window_of("3d", 0)
    inputs = [volume((9, 10, 17), seed) for seed in range(3)]
    normalization = Normalization(0.2, 0.7)
    done = engine(
        [ArrayVolume(i) for i in inputs], window, predicted_part(window, torch.square), normalization=normalization
    )
    squares = [((i - 0.2) / 0.7) ** 2 for i in inputs]
    np.testing.assert_allclose(done.result, np.mean(squares, axis=0) * 0.7 + 0.2, rtol=0, atol=3e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 64, None])
def test_the_batch_size_changes_nothing_but_the_batches(
    engine: Callable[..., Any], predicted_part: type[nn.Module], batch_size: int | None
) -> None:
    window = window_of("2.5d", 3)
    network = predicted_part(window, torch.sin)
    data = volume((5, 20, 17))
    done = engine(data, window, network, batch_size=batch_size)
    np.testing.assert_allclose(done.result, np.sin(data), rtol=0, atol=2e-6)
    if batch_size is not None:
        assert max(network.batches) <= batch_size


def test_an_engine_run_ends_its_threads(engine: Callable[..., Any], predicted_part: type[nn.Module]) -> None:
    before = threading.active_count()
    window = window_of("2.5d", 3)
    engine(volume((20, 8, 8)), window, predicted_part(window))
    assert threading.active_count() == before


def test_the_network_runs_in_evaluation_mode_and_without_gradients(
    engine: Callable[..., Any], predicted_part: type[nn.Module]
) -> None:
    window = window_of("2.5d", 1)
    seen: list[bool] = []

    def change(block: Tensor) -> Tensor:
        seen.append(network.training or torch.is_grad_enabled())
        return block

    network = predicted_part(window, change)
    network.train()
    engine(volume((2, 8, 8)), window, network)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float64])
def test_every_stored_type_is_denoised_in_its_own_units(
    engine: Callable[..., Any], predicted_part: type[nn.Module], dtype: type[np.generic]
) -> None:
    limits = (0, 255) if dtype is np.float64 else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    data = np.random.default_rng(1).integers(*limits, (3, 9, 12), endpoint=True).astype(dtype)
    window = window_of("2.5d", 3)
    normalization = Normalization(float(data.mean()), float(data.std()))
    result = engine(data, window, predicted_part(window), normalization=normalization).result
    np.testing.assert_allclose(result, data, rtol=0, atol=1e-6 * float(data.std()))
