"""Places, reflection, and tile grids whose weights add up to one everywhere."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoise.tiles import Axis, Region, TileGrid, Window, even_tiles, reflect_indices, taper_weights

TAPERS = ["hann", "uniform"]


def _cubes(edge: int, stride: int, taper: str = "hann") -> Window:
    return Window((edge,) * 3, (edge,) * 3, (stride,) * 3, (0, 0, 0), taper)


@pytest.mark.parametrize("size", range(1, 8))
def test_reflection_is_numpys_for_every_small_size_and_however_far_outside(size):
    line = np.arange(size)
    for before in range(20):
        for after in range(20):
            expected = np.pad(line, (before, after), mode="reflect")
            found = reflect_indices(-before, before + size + after, 0, size)
            assert found.dtype == np.int64
            np.testing.assert_array_equal(found, expected)


@given(low=st.integers(-50, 50), size=st.integers(1, 9), start=st.integers(-40, 40), count=st.integers(0, 40))
def test_reflection_in_a_box_is_reflection_in_a_volume_moved_there(low, size, start, count):
    found = reflect_indices(low + start, count, low, low + size)
    np.testing.assert_array_equal(found, low + reflect_indices(start, count, 0, size))
    assert found.shape == (count,)
    assert ((low <= found) & (found < low + size)).all()


def test_what_lies_inside_is_never_moved():
    np.testing.assert_array_equal(reflect_indices(3, 4, 3, 7), [3, 4, 5, 6])


@pytest.mark.parametrize("high", [4, 5])
def test_there_is_nothing_to_reflect_in_an_empty_range(high):
    with pytest.raises(ValueError, match=f"low 5, high {high}"):
        reflect_indices(0, 3, 5, high)


def test_a_region_knows_its_end_and_indexes_an_array():
    region = Region((1, 0, 2), (2, 3, 4))
    assert region.stop_zyx == (3, 3, 6)
    assert np.zeros((5, 5, 9))[region.slices].shape == (2, 3, 4)
    assert Region.of_slices(3, 7, (9, 5, 6)) == Region((3, 0, 0), (4, 5, 6))


@pytest.mark.parametrize(
    ("start", "shape", "inside"),
    [
        ((0, 0, 0), (4, 5, 6), True),
        ((3, 4, 5), (1, 1, 1), True),
        ((-1, 0, 0), (2, 2, 2), False),
        ((0, 0, 1), (1, 1, 6), False),
        ((4, 0, 0), (1, 1, 1), False),
    ],
)
def test_a_region_is_inside_when_every_voxel_of_it_is(start, shape, inside):
    assert Region(start, shape).inside((4, 5, 6)) is inside


@pytest.mark.parametrize(
    ("read", "predict", "stride", "before"),
    [
        (5, 1, 0, 2),  # no step forward
        (5, 1, 2, 2),  # a step past what was predicted leaves a hole
        (5, 1, 1, -1),
        (5, 1, 1, 5),  # predicts what it does not read
        (4, 5, 1, 0),
    ],
)
@pytest.mark.parametrize("axis", range(3))
def test_an_impossible_window_is_refused_on_every_axis(axis, read, predict, stride, before):
    sizes = [(8, 8, 4, 0)] * 3
    sizes[axis] = (read, predict, stride, before)
    with pytest.raises(ValueError, match="impossible window"):
        Window(*zip(*sizes, strict=True))


@pytest.mark.parametrize(("n_slices", "before", "after"), [(1, 0, 0), (2, 1, 0), (4, 2, 1), (5, 2, 2)])
def test_a_window_of_slices_says_where_its_predicted_slice_is(n_slices, before, after):
    window = Window((n_slices, 8, 8), (1, 8, 8), (1, 4, 4), (before, 0, 0))
    assert window.after_zyx == (after, 0, 0)
    assert window.predicted == (slice(before, before + 1), slice(0, 8), slice(0, 8))


@pytest.mark.parametrize("name", TAPERS)
@pytest.mark.parametrize("size", [1, 2, 3, 8, 97, 2048])
def test_a_taper_is_positive_symmetric_and_largest_in_the_middle(name, size):
    taper = taper_weights(name, size)
    assert taper.shape == (size,)
    assert taper.dtype == np.float64
    assert (taper > 0).all()
    np.testing.assert_allclose(taper, taper[::-1], rtol=1e-9)
    assert (np.diff(taper[: (size + 1) // 2]) >= 0).all()


def test_an_unknown_taper_is_named():
    with pytest.raises(ValueError, match="'gauss'"):
        taper_weights("gauss", 8)


@st.composite
def _layouts(draw) -> tuple[int, int, int, str]:
    predict = draw(st.integers(1, 24))
    return draw(st.integers(1, 90)), predict, draw(st.integers(1, predict)), draw(st.sampled_from(TAPERS))


@settings(max_examples=400, deadline=None)
@given(_layouts())
def test_tiles_along_an_axis_cover_it_and_end_with_it(layout):
    length, predict, stride, taper = layout
    axis = Axis.covering(length, predict, stride, taper)
    assert axis.starts[0] == 0
    assert axis.starts[-1] == max(length - predict, 0)
    steps = np.diff(axis.starts)
    assert ((steps >= 1) & (steps <= stride)).all()
    assert axis.weights.shape == (len(axis.starts), predict)
    # As many tiles as are needed, none more.
    assert len(axis.starts) == max(0, -(-(length - predict) // stride)) + 1


@settings(max_examples=400, deadline=None)
@given(_layouts())
def test_weights_add_up_to_one_at_every_voxel_and_are_zero_outside(layout):
    length, predict, stride, taper = layout
    axis = Axis.covering(length, predict, stride, taper)
    total = np.zeros(length + predict)
    for start, row in zip(axis.starts, axis.weights, strict=True):
        total[start : start + predict] += row
    np.testing.assert_allclose(total[:length], 1.0, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(total[length:], 0.0)
    assert (axis.weights >= 0).all()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 15), st.integers(1, 15)),
    edge=st.integers(1, 8),
    overlap=st.floats(0, 0.95),
    taper=st.sampled_from(TAPERS),
    slices=st.booleans(),
)
def test_weights_of_a_grid_add_up_to_one_in_faces_and_corners_too(shape, edge, overlap, taper, slices):
    stride = max(1, round(edge * (1 - overlap)))
    depth = 1 if slices else edge
    window = Window(
        (5 if slices else edge, edge, edge),
        (depth, edge, edge),
        (1 if slices else stride, stride, stride),
        (2 if slices else 0, 0, 0),
        taper,
    )
    grid = TileGrid(shape, window)
    total = np.zeros([n + edge for n in shape])
    z_axis, y_axis, x_axis = grid.axes
    for k in grid.layers(0, shape[0]):
        for j, i in grid.in_layer():
            z, y, x = z_axis.starts[k], y_axis.starts[j], x_axis.starts[i]
            weight = np.einsum("z,y,x->zyx", z_axis.weights[k], y_axis.weights[j], x_axis.weights[i])
            total[z : z + depth, y : y + edge, x : x + edge] += weight
    inside = tuple(slice(0, n) for n in shape)
    np.testing.assert_allclose(total[inside], 1.0, rtol=0, atol=1e-12)
    assert total.sum() == pytest.approx(np.prod(shape), rel=1e-12)


@pytest.mark.parametrize("taper", TAPERS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 8, 2), (7, 7, 7), (8, 8, 8)])
def test_a_volume_no_larger_than_a_tile_has_one_tile_at_its_start(shape, taper):
    grid = TileGrid(shape, _cubes(8, 3, taper))
    assert [axis.starts for axis in grid.axes] == [(0,), (0,), (0,)]
    assert grid.tiles_per_layer == 1
    for axis, size in zip(grid.axes, shape, strict=True):
        np.testing.assert_allclose(axis.weights[0], (np.arange(8) < size).astype(float), rtol=0, atol=1e-12)


def test_a_layer_counts_for_a_slab_when_they_share_a_slice():
    grid = TileGrid((20, 8, 8), _cubes(8, 4))
    assert grid.axes[0].starts == (0, 4, 8, 12)
    assert grid.layers(0, 1) == [0]
    assert grid.layers(7, 8) == [0, 1]
    assert grid.layers(8, 9) == [1, 2]
    assert grid.layers(19, 20) == [3]
    assert grid.layers(0, 20) == [0, 1, 2, 3]


@settings(max_examples=100, deadline=None)
@given(_layouts(), st.data())
def test_layers_are_exactly_those_with_weight_in_the_slab(layout, data):
    length, predict, stride, taper = layout
    window = Window((predict, 1, 1), (predict, 1, 1), (stride, 1, 1), (0, 0, 0), taper)
    grid = TileGrid((length, 1, 1), window)
    start = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(start + 1, length))
    axis = grid.axes[0]
    touching = [
        i
        for i, (z, row) in enumerate(zip(axis.starts, axis.weights, strict=True))
        if any(row[s - z] > 0 for s in range(max(start, z), min(stop, z + predict)))
    ]
    assert grid.layers(start, stop) == touching


def test_redundancy_is_voxels_predicted_per_voxel():
    assert TileGrid((16, 16, 16), _cubes(8, 8)).redundancy == pytest.approx(1.0)
    assert TileGrid((16, 16, 16), _cubes(8, 4)).redundancy == pytest.approx(1.5**3)
    assert TileGrid((4, 8, 8), _cubes(8, 8)).redundancy == pytest.approx(2.0)
    assert TileGrid((16, 12, 16), _cubes(8, 4)).tiles_per_layer == 6


# Tiles that cover a volume evenly. -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "edge", "overlap", "multiple", "size", "stride"),
    [
        (512, 256, 32, 8, 272, 240),  # two of (512 + 32) / 2
        (256, 256, 32, 8, 256, 224),  # one
        (1000, 256, 32, 8, 280, 248),  # four of (1000 + 96) / 4 = 274; five of 225.6 are further from 256
        (48, 32, 8, 2, 28, 20),
        (300, 256, 32, 8, 304, 272),  # one that is a little too large; two would be of 168
        (61, 64, 0, 4, 64, 64),
        (30, 256, 128, 8, 32, 8),  # a volume smaller than the overlap
        (1, 64, 32, 4, 4, 4),
        (100, 8, 32, 8, 8, 8),  # a tile that cannot overlap without standing still
        (100, 4, 4, 1, 4, 1),
    ],
)
def test_even_tiles_are_of_the_size_nearest_to_the_one_wanted(length, edge, overlap, multiple, size, stride):
    assert even_tiles(length, edge, overlap, multiple) == (size, stride)


@st.composite
def _even_layouts(draw) -> tuple[int, int, int, int]:
    """Length, edge, overlap, multiple."""
    multiple = draw(st.sampled_from([1, 2, 4, 8, 16]))
    edge = multiple * draw(st.integers(1, 24))
    return draw(st.integers(1, 700)), edge, draw(st.integers(0, 2 * edge)), multiple


@settings(max_examples=500, deadline=None)
@given(_even_layouts(), st.sampled_from(TAPERS))
def test_even_tiles_cover_an_axis_with_starts_and_sizes_that_a_pooling_network_can_take(layout, taper):
    length, _, _, multiple = layout
    size, stride = even_tiles(*layout)
    assert size % multiple == stride % multiple == 0
    axis = Axis.covering(length, size, stride, taper, multiple)
    assert axis.starts[0] == 0
    assert all(start % multiple == 0 for start in axis.starts)
    assert length <= axis.starts[-1] + size < length + multiple, "the last ends with the volume"
    total = np.zeros(length + multiple)
    for start, row in zip(axis.starts, axis.weights, strict=True):
        total[start : start + size] += row
    np.testing.assert_allclose(total[:length], 1.0, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(total[length:], 0.0)


@settings(max_examples=500, deadline=None)
@given(_even_layouts())
def test_even_tiles_overlap_as_asked_and_predict_little_more_than_that_twice(layout):
    length, edge, overlap, multiple = layout
    size, stride = even_tiles(*layout)
    starts = Axis.covering(length, size, stride, "hann", multiple).starts
    # A tile must step forward; what it overlaps by is of the same grid.
    asked = -(-min(overlap, edge - multiple) // multiple) * multiple
    assert all(start + size - following >= asked for start, following in itertools.pairwise(starts))
    count = math.ceil(max((length - asked) / (edge - asked), 1))
    assert len(starts) <= count, "no more than tiles of the size that was wanted would be"
    assert len(starts) * size < length + (count - 1) * asked + count * multiple, "nothing but rounding is added"


@settings(max_examples=500, deadline=None)
@given(_even_layouts())
def test_even_tiles_are_about_as_large_as_asked(layout):
    """Memory was planned for that size."""
    length, edge, _, multiple = layout
    size, _ = even_tiles(*layout)
    assert size <= math.sqrt(2) * edge + multiple
    if length >= edge:
        assert size >= edge / 2


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 200), st.integers(1, 200)),
    steps=st.integers(1, 12),
    overlap=st.integers(0, 60),
    multiple=st.sampled_from([1, 2, 4, 8]),
    shrinks=st.booleans(),
    slices=st.sampled_from([0, 1, 2, 3, 4, 5]),
)
def test_a_window_that_is_spread_over_a_volume_covers_it_and_keeps_its_context(
    shape, steps, overlap, multiple, shrinks, slices
):
    """Cubes (no slices given), or slices from their neighbours, which stay as they are."""
    edge = steps * multiple
    if slices:
        window = Window((slices, edge, edge), (1, edge, edge), (1, edge, edge), (slices // 2, 0, 0), "uniform")
    else:
        window = _cubes(edge, edge, "uniform")
    axes = (1, 2) if slices else (0, 1, 2)
    spread = window.spread_over(
        shape,
        dict.fromkeys(axes, edge),
        overlaps=dict.fromkeys(axes, overlap),
        multiples=dict.fromkeys(axes, multiple),
        shrinks=shrinks,
    )
    assert (spread.before_zyx, spread.taper) == (window.before_zyx, "uniform")
    assert spread.multiple_zyx == tuple(multiple if axis in axes else 1 for axis in range(3))
    grid = TileGrid(shape, spread)
    for axis in range(3):
        read, predict, stride = spread.read_zyx[axis], spread.predict_zyx[axis], spread.stride_zyx[axis]
        starts = grid.axes[axis].starts
        if axis not in axes:
            assert (read, predict, stride) == (window.read_zyx[axis], 1, 1)
            assert starts == tuple(range(shape[axis])), "one layer per slice, none outside"
            continue
        assert read == predict
        assert predict % multiple == stride % multiple == 0
        past = starts[-1] + predict - shape[axis]
        assert 0 <= past < (multiple if shrinks or shape[axis] > edge else max(multiple, edge))
        if not shrinks and shape[axis] <= edge:
            assert predict == edge, "reflections fill a tile that does not shrink"
    for axis in grid.axes:
        assert (axis.weights.sum(axis=1) > 0).all(), "no tile is predicted for nothing"
    sums = [sum(row.sum() for row in axis.weights) for axis in grid.axes]
    np.testing.assert_allclose(sums, shape, rtol=1e-12)


def test_a_window_is_spread_along_each_axis_by_its_own_edge_and_overlap():
    edges, multiples = {0: 32, 1: 64, 2: 64}, dict.fromkeys(range(3), 4)
    spread = _cubes(64, 32).spread_over(
        (32, 61, 500), edges, overlaps=dict.fromkeys(range(3), 16), multiples=multiples, shrinks=True
    )
    # Ten tiles of (500 + 9 * 16) / 10 = 64.4, on the grid 68, are nearer to 64 as a ratio than eleven of 60.
    assert spread.predict_zyx == (32, 64, 68)
    assert spread.stride_zyx == (16, 48, 52)
    other = _cubes(64, 32).spread_over(
        (32, 61, 500), edges, overlaps={0: 8, 1: 12, 2: 4}, multiples=multiples, shrinks=True
    )
    # 500 + 7 * 4 voxels are eight tiles of 66, on the grid 68.
    assert other.predict_zyx == (32, 64, 68)
    assert other.stride_zyx == (24, 52, 64)


def test_a_layer_of_slices_is_not_laid_outside_of_the_volume_for_the_sake_of_a_pooling_grid():
    """The grid matters in the plane; along z the network sees channels."""
    window = Window((5, 16, 16), (1, 16, 16), (1, 8, 8), (2, 0, 0)).spread_over(
        (9, 16, 16), {1: 16, 2: 16}, overlaps={1: 0, 2: 0}, multiples={1: 8, 2: 8}, shrinks=True
    )
    grid = TileGrid((9, 16, 16), window)
    assert grid.axes[0].starts == tuple(range(9))
    assert grid.redundancy == 1.0
