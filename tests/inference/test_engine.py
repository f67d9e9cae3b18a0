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
from denoise.inference.versions import turned
from denoise.modes import MODES
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.tiles import TileGrid, Triple, Window
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
    spec = NetworkSpec("residual2d", {"n_slices": n_slices}) if n_slices else NetworkSpec("unet3d", {})
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
    radius = 6  # levels = 1; see denoise.networks.residual.receptive_radius; along z it is less
    network = corrector(name, levels=1, width=4, n_slices=n_slices or 1)

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


# Seams of the tiles that are really used


@pytest.mark.parametrize(
    ("name", "options", "radius", "edge", "overlap", "shape"),
    [
        ("residual2d", {"n_slices": 3, "levels": 1}, 6, 24, 14, (4, 64, 40)),
        ("residual2d", {"n_slices": 2, "levels": 2}, 15, 48, 32, (3, 112, 80)),
        ("residual3d", {"n_slices": 1, "levels": 1}, 6, 24, 14, (20, 64, 40)),
        ("residual3d", {"n_slices": 1, "levels": 2}, 15, 48, 32, (24, 112, 80)),
    ],
    ids=str,
)
@pytest.mark.parametrize("taper", ["hann", "uniform"])
def test_a_voxel_far_enough_from_the_edges_of_its_tiles_is_as_if_there_were_one_tile(
    engine: Callable[..., Any],
    corrector: Callable[..., nn.Module],
    taper: str,
    name: str,
    options: dict[str, int],
    radius: int,
    edge: int,
    overlap: int,
    shape: Triple,
) -> None:
    """Nearer to an edge than the receptive radius a tile does not know all; the volume's own faces are no such edge."""
    network = corrector(name, width=4, **options)
    flat = name == "residual2d"
    multiple = 2 ** (options["levels"] - 1)
    plain = window_of("2.5d" if flat else "3d", options["n_slices"] if flat else 0, taper=taper)
    axes = (1, 2) if flat else (0, 1, 2)
    tiles, whole = (
        plain.spread_over(
            shape,
            dict.fromkeys(axes, size),
            overlaps=dict.fromkeys(axes, overlap),
            multiples=dict.fromkeys(axes, multiple),
            shrinks=True,
        )
        for size in (edge, max(shape))
    )
    data = volume(shape)
    one, several = (engine(data, window, network).result for window in (whole, tiles))
    assert TileGrid(shape, whole).tiles_per_layer == 1
    grid = TileGrid(shape, tiles)
    assert grid.tiles_per_layer >= 4
    # A separable question: along each axis, is the voxel far from all inner edges of the tiles that predict it?
    far: list[np.ndarray[Any, np.dtype[np.bool_]]] = []
    for axis, length, size in zip(grid.axes, shape, tiles.predict_zyx, strict=True):
        inside = np.ones(length, dtype=bool)
        if size > 1:  # slices see their true neighbours in every tile
            for start in axis.starts:
                if start > 0:
                    inside[start : start + radius] = False
                if start + size < length:
                    inside[start + size - radius : start + size] = False
        far.append(inside)
    exact = far[0][:, None, None] & far[1][:, None] & far[2]
    assert 0.05 < exact.mean() < 1
    np.testing.assert_allclose(several[exact], one[exact], rtol=0, atol=3e-6)
    assert np.abs(several - one).max() > 1e-4, "the test's premise: elsewhere edges can be seen"
    if taper == "hann":
        # What is wrong near an edge has little weight there.
        hard = engine(
            data,
            plain.spread_over(
                shape,
                dict.fromkeys(axes, edge),
                overlaps=dict.fromkeys(axes, 0),
                multiples=dict.fromkeys(axes, multiple),
                shrinks=True,
            ),
            network,
        ).result
        assert np.square(several - one).mean() < 0.1 * np.square(hard - one).mean()


# Averages over symmetries


def turned_by_hand(turns: int) -> list[tuple[Callable[..., Any], Callable[..., Any]]]:
    """Every symmetry of the square and what undoes it, for images (..., Y, X), in numpy's words."""
    axes = (-2, -1)
    mirrors = [(), (-1,), (-2,), axes]
    pairs: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
        (lambda a, m=m: np.flip(a, m), lambda a, m=m: np.flip(a, m)) for m in mirrors
    ]
    pairs += [
        (lambda a, m=m: np.flip(np.swapaxes(a, *axes), m), lambda a, m=m: np.swapaxes(np.flip(a, m), *axes))
        for m in mirrors
    ]
    return pairs[:turns]


@pytest.mark.parametrize("turns", [1, 4, 8])
@pytest.mark.parametrize("shape", [(5, 16, 16), (4, 16, 24)], ids=["square", "oblong"])
@pytest.mark.parametrize(("name", "n_slices"), [("residual2d", 3), ("residual2d", 4), ("residual3d", 0)])
def test_the_turned_versions_of_a_tile_are_predicted_turned_back_and_averaged(
    engine: Callable[..., Any], corrector: Callable[..., nn.Module], name: str, n_slices: int, shape: Triple, turns: int
) -> None:
    network = corrector(name, levels=2, width=4, n_slices=n_slices or 1)
    data = volume(shape)
    depth, height, width = shape
    if n_slices:
        window = Window((n_slices, height, width), (1, height, width), (1, 8, 8), (n_slices // 2, 0, 0))
        padded = np.pad(data, ((n_slices // 2, n_slices - 1 - n_slices // 2), (0, 0), (0, 0)), mode="reflect")
        blocks = np.stack([padded[z : z + n_slices] for z in range(depth)])
    else:
        # One cube of more slices than there are: read as reflections.
        window = Window((8, height, width), (8, height, width), (8, 8, 8), (0, 0, 0))
        blocks = np.pad(data, ((0, 8 - depth), (0, 0), (0, 0)), mode="reflect")[None]
    by_hand = []
    with torch.inference_mode():
        for turn, back in turned_by_hand(turns):
            by_hand.append(back(network(torch.from_numpy(turn(blocks).copy())).numpy()))
    expected = np.mean(by_hand, axis=0)
    expected = expected[:, 0] if n_slices else expected[0, :depth]
    done = engine(data, window, network, versions=turned(turns))
    np.testing.assert_allclose(done.result, expected, rtol=0, atol=2e-6)
    if turns > 1:
        difference = np.abs(by_hand[0] - by_hand[1]).max()
        assert difference > 0.01, "the test's premise: this network does not turn with its input"


def test_two_versions_are_the_tile_and_one_mirror_image(
    engine: Callable[..., Any], corrector: Callable[..., nn.Module]
) -> None:
    network = corrector("residual2d", levels=1, width=4, n_slices=1)
    data = volume((2, 16, 16))
    window = Window((1, 16, 16), (1, 16, 16), (1, 16, 16), (0, 0, 0))
    plain = engine(data, window, network).result
    mirrored = [np.flip(engine(np.flip(data, m).copy(), window, network).result, m) for m in (1, 2)]
    found = engine(data, window, network, versions=turned(2)).result
    assert min(np.abs(found - (plain + other) / 2).max() for other in mirrored) < 1e-6


@pytest.mark.parametrize("turns", [2, 4, 8])
@pytest.mark.parametrize(("mode", "n_slices"), [("2.5d", 4), ("3d", 0)])
def test_an_identity_network_stays_one_however_its_tiles_are_turned(
    engine: Callable[..., Any], predicted_part: type[nn.Module], mode: str, n_slices: int, turns: int
) -> None:
    """To a few roundings of a sum of eight."""
    data = volume((5, 8, 8))
    window = window_of(mode, n_slices)
    network = predicted_part(window)
    done = engine(data, window, network, versions=turned(turns), batch_size=1)
    np.testing.assert_allclose(done.result, data, rtol=0, atol=5e-7)
    assert len(network.batches) == turns * (5 if n_slices else 1)

    class CentreSlice(nn.Module):
        """Of tiles of any shape: turned, they exchange their height and width."""

        def forward(self, block: Tensor) -> Tensor:
            return block[:, n_slices // 2 : n_slices // 2 + 1] if n_slices else block

    several = volume((9, 21, 13))
    edges = {1: 8, 2: 12} if n_slices else {0: 4, 1: 8, 2: 12}
    oblong = window.spread_over(several.shape, edges, overlaps=dict.fromkeys(edges, 4), multiples={}, shrinks=True)
    assert oblong.read_zyx[1] != oblong.read_zyx[2]
    done = engine(several, oblong, CentreSlice(), versions=turned(turns))
    np.testing.assert_allclose(done.result, several, rtol=0, atol=1e-6)


def test_a_network_that_turns_with_its_input_gains_nothing_from_turning_it(
    engine: Callable[..., Any], predicted_part: type[nn.Module]
) -> None:
    window = window_of("2.5d", 3)
    data = volume((3, 20, 17))
    results = [
        engine(data, window, predicted_part(window, torch.sin), versions=turned(turns)).result for turns in (1, 8)
    ]
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-6)
