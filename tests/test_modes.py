from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import denoise
from denoise.modes import DEEPEST_TILE, MODES, default_tile, inference_window, mode_of
from denoise.networks.catalogue import NETWORKS, find_network
from denoise.networks.spec import NetworkSpec
from denoise.patches.sampler import CubeSampler, SliceSampler
from denoise.tiles import TileGrid, Triple, Window


def flat(n_slices: int, edge: int = 64, overlap: float = 0.5, taper: str = "hann") -> Window:
    return MODES["2.5d"].window(NetworkSpec("residual2d", {"n_slices": n_slices}), edge, overlap, taper)


def deep(edge: int, overlap: float = 0.5, network: str = "unet3d") -> Window:
    return MODES["3d"].window(NetworkSpec(network, {}), edge, overlap, "hann")


@pytest.mark.parametrize(("n_slices", "before", "after"), [(1, 0, 0), (2, 1, 0), (3, 1, 1), (4, 2, 1), (5, 2, 2)])
def test_a_centre_slice_is_predicted_from_its_neighbours(n_slices: int, before: int, after: int) -> None:
    window = flat(n_slices)
    assert window.read_zyx == (n_slices, 64, 64)
    assert window.predict_zyx == (1, 64, 64)
    assert window.before_zyx == (before, 0, 0)
    assert window.after_zyx == (after, 0, 0)


def test_a_depth_that_the_spec_leaves_out_is_the_networks_default() -> None:
    window = MODES["2.5d"].window(NetworkSpec("unet2d", {}), 64, 0.5, "hann")
    assert window.read_zyx[0] == NETWORKS["unet2d"].defaults["n_slices"]


def test_the_predicted_slice_is_the_one_that_the_residual_network_corrects() -> None:
    """Both must mean the same slices, of an even number too."""
    import torch

    for name, n_slices in itertools.product(("residual2d", "residual3d"), (1, 2, 4, 5, 8)):
        spec = NetworkSpec(name, {"n_slices": n_slices, "levels": 1, "width": 2})
        window = mode_of(spec).window(spec, 8, 0.0, "uniform")
        block = torch.randn(1, *window.read_zyx)
        predicted = find_network(spec.name).build(spec.options)(block)  # starts as the identity
        torch.testing.assert_close(predicted, block[(slice(None), *window.predicted)])


def test_cubes_are_predicted_from_cubes() -> None:
    window = deep(32)
    assert window.read_zyx == window.predict_zyx == (32, 32, 32)
    assert window.stride_zyx == (16, 16, 16)
    assert window.before_zyx == window.after_zyx == (0, 0, 0)


def test_the_residual_network_reads_flat_blocks_and_the_neighbours_of_their_slices() -> None:
    window = deep(32, network="residual3d")
    assert window.read_zyx == (12, 32, 32)
    assert window.predict_zyx == (8, 32, 32)
    assert window.stride_zyx == (4, 16, 16)
    assert window.before_zyx == window.after_zyx == (2, 0, 0)
    assert deep(96, network="residual3d").predict_zyx == (16, 96, 96)
    assert deep(4, network="residual3d").predict_zyx == (4, 4, 4)


@pytest.mark.parametrize(
    ("edge", "overlap", "stride"),
    [(64, 0.0, 64), (64, 0.5, 32), (64, 0.25, 48), (10, 0.33, 7), (8, 0.99, 1), (1, 0.5, 1)],
)
def test_the_stride_is_what_the_overlap_leaves_and_at_least_one(edge: int, overlap: float, stride: int) -> None:
    assert flat(3, edge, overlap).stride_zyx == (1, stride, stride)
    assert deep(edge, overlap).stride_zyx == (stride, stride, stride)


@pytest.mark.parametrize("taper", ["hann", "uniform"])
def test_the_taper_reaches_the_window(taper: str) -> None:
    assert flat(3, taper=taper).taper == taper


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_network_has_its_mode_and_every_mode_its_sampler(name: str) -> None:
    kind = NETWORKS[name]
    mode = mode_of(NetworkSpec(name, kind.defaults))
    assert mode.network_dimensions == kind.dimensions
    assert mode.sampler is {2: SliceSampler, 3: CubeSampler}[kind.dimensions]
    assert MODES[mode.name] is mode
    window = mode.window(NetworkSpec(name, kind.defaults), 32, 0.5, "hann")
    assert window.read_zyx[1:] == (32, 32)


# Tiles at inference


LARGE: Triple = (70, 500, 360)
SMALL: Triple = (9, 50, 30)


@pytest.mark.parametrize("shape", [LARGE, SMALL, (1, 8, 8)], ids=str)
@pytest.mark.parametrize("n_slices", [1, 2, 5])
@pytest.mark.parametrize("name", ["residual2d", "unet2d"])
def test_however_the_tiles_are_spread_a_network_gets_the_slices_that_it_reads(
    name: str, n_slices: int, shape: Triple
) -> None:
    window = inference_window(NetworkSpec(name, {"n_slices": n_slices}), 64, None, "hann", shape)
    assert window.read_zyx[0] == n_slices
    assert (window.predict_zyx[0], window.stride_zyx[0], window.before_zyx) == (1, 1, (n_slices // 2, 0, 0))


@pytest.mark.parametrize("overlap", [None, 0.25])
@pytest.mark.parametrize("shape", [LARGE, SMALL], ids=str)
@pytest.mark.parametrize("name", ["residual2d", "residual3d"])
def test_tiles_of_a_network_without_norm_layers_end_with_the_volume_and_lie_on_one_pooling_grid(
    name: str, shape: Triple, overlap: float | None
) -> None:
    spec = NetworkSpec(name, {"levels": 3})
    grid = TileGrid(shape, inference_window(spec, default_tile(spec, 64), overlap, "hann", shape))
    for axis in range(0 if name.endswith("3d") else 1, 3):
        starts, size = grid.axes[axis].starts, grid.window.predict_zyx[axis]
        pooled = 4 if axis else 1
        assert size % pooled == 0
        assert all(start % pooled == 0 for start in starts)
        assert 0 <= starts[-1] + size - shape[axis] < pooled
    assert grid.window.read_zyx[0] <= DEEPEST_TILE * 1.5 + 4, "a slab of it is held in memory"


@pytest.mark.parametrize("overlap", [0.1, 0.25, 0.5, 0.75])
def test_an_overlap_of_the_users_is_that_share_of_the_tile_along_each_axis(overlap: float) -> None:
    """Tiles are flatter than wide: along z the share of the width would be all of the depth."""
    spec = NetworkSpec("residual3d", {})
    window = inference_window(spec, 128, overlap, "hann", LARGE)
    for axis, multiple in enumerate((1, 4, 4)):
        size, stride = window.predict_zyx[axis], window.stride_zyx[axis]
        wanted = overlap * (DEEPEST_TILE if axis == 0 else 128)
        assert abs(size - stride - wanted) <= multiple


@pytest.mark.parametrize("name", ["unet2d", "unet3d"])
def test_tiles_of_a_network_with_norm_layers_keep_the_size_that_it_was_trained_at(name: str) -> None:
    spec = NetworkSpec(name, {})
    for shape in (LARGE, SMALL):
        edge = 64
        exact = inference_window(spec, edge, 0.25, "hann", shape)
        assert (exact.predict_zyx[1:], exact.stride_zyx[1:]) == ((edge, edge), (48, 48)), "the user's own overlap"
        about = inference_window(spec, edge, None, "hann", shape)
        assert all(edge / 1.5 <= size <= edge * 1.5 for size in about.predict_zyx[1:])
    assert inference_window(spec, 64, None, "hann", SMALL).predict_zyx[1:] == (64, 64), "and never shrink"


@pytest.mark.parametrize("name", list(NETWORKS))
def test_neighbouring_tiles_overlap_by_what_the_network_needs(name: str) -> None:
    shape = (300, 600, 700)
    spec = NetworkSpec(name, {})
    grid = TileGrid(shape, inference_window(spec, 192, None, "hann", shape))
    for axis in (1, 2):
        starts, size = grid.axes[axis].starts, grid.window.predict_zyx[axis]
        assert len(starts) > 1
        for one, following in itertools.pairwise(starts):
            assert one + size - following >= NETWORKS[name].overlap


@pytest.mark.parametrize("tile", [None, 32, 64])
@pytest.mark.parametrize("name", ["residual2d", "residual3d"])
def test_where_the_user_says_nothing_of_overlap_most_voxels_are_not_predicted_again_and_again(
    name: str, tile: int | None
) -> None:
    """Half a tile in each direction is what was the default for long: twice the work along each axis."""
    shape = (128, 512, 512)
    spec = NetworkSpec(name, {})
    grid = TileGrid(shape, inference_window(spec, tile or default_tile(spec, 64), None, "hann", shape))
    assert grid.redundancy <= 2 ** NETWORKS[name].dimensions


@pytest.mark.parametrize("room", ["training", "inference"])
def test_the_loop_and_the_engine_never_ask_which_mode_they_serve(room: str) -> None:
    """A mode is a sampler, a network and a window; whoever writes its name is about to fork."""
    assert denoise.__file__ is not None
    files = sorted((Path(denoise.__file__).parent / room).rglob("*.py"))
    assert files
    for path in files:
        text = path.read_text(encoding="utf-8").lower()
        assert [name for name in MODES if name in text] == [], f"{path} names a mode"
