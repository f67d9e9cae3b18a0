"""Validation data is never training data: checked voxel by voxel, for every shape that could go wrong."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoise.errors import VolumeError
from denoise.modes import MODES
from denoise.networks.spec import NetworkSpec
from denoise.patches.holdout import HoldOut
from denoise.patches.sampler import BlockPlace, CubeSampler, SliceSampler, scored_part, validation_places
from denoise.tiles import Region, Window, reflect_indices


def _slices(n_slices: int, edge: int) -> Window:
    return MODES["2.5d"].window(NetworkSpec("residual2d", {"n_slices": n_slices}), edge, 0.0, "uniform")


def _cubes(edge: int) -> Window:
    return MODES["3d"].window(NetworkSpec("unet3d", {}), edge, 0.0, "uniform")


def _flat_blocks(n_slices: int, edge: int) -> Window:
    return MODES["3d"].window(NetworkSpec("residual3d", {"n_slices": n_slices}), edge, 0.0, "uniform")


def _read(place: BlockPlace) -> list[np.ndarray]:
    """The coordinates that a block really reads, after reflection, on each axis."""
    return [
        np.unique(reflect_indices(start, count, low, low + size))
        for start, count, low, size in zip(
            place.region.start_zyx, place.region.shape_zyx, place.box.start_zyx, place.box.shape_zyx, strict=True
        )
    ]


def _mask(shape, coordinates) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[np.ix_(*coordinates)] = True
    return mask


def _held_out(holdout: HoldOut, shape) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[holdout.held_out.slices] = True
    return mask


def _all_training_places(holdout: HoldOut, window: Window) -> list[BlockPlace]:
    """Every block that any sampler could draw: all starts in z, the extreme crops in y and x."""
    places = []
    for source in holdout.sources:
        extremes = [
            {low, low + max(size - read, 0)}
            for low, size, read in zip(
                source.box.start_zyx[1:], source.box.shape_zyx[1:], window.read_zyx[1:], strict=True
            )
        ]
        places += [
            BlockPlace(Region((z - window.before_zyx[0], y, x), window.read_zyx), source.box)
            for z, y, x in product(source.z_starts, *extremes)
        ]
    return places


def _targets(place: BlockPlace, window: Window) -> range:
    start = place.region.start_zyx[0] + window.before_zyx[0]
    return range(start, start + window.predict_zyx[0])


WINDOWS = {
    "1 slice": _slices(1, 6),
    "2 slices": _slices(2, 6),
    "3 slices": _slices(3, 6),
    "4 slices": _slices(4, 6),
    "5 slices": _slices(5, 6),
    "8 slices": _slices(8, 6),
    "9 slices": _slices(9, 6),
    "cubes of 4": _cubes(4),
    "cubes of 8": _cubes(8),
    "cubes of 16": _cubes(16),
    "flat blocks of 8": _flat_blocks(4, 8),
    "flat blocks of 16": _flat_blocks(5, 16),
}
SHAPES = [(z, y, x) for z in (1, 2, 3, 6, 7, 13, 48) for y, x in ((8, 3), (9, 20), (13, 12))]


@pytest.mark.parametrize("window", WINDOWS.values(), ids=list(WINDOWS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fraction", [0.05, 0.25])
def test_no_training_block_reads_a_held_out_voxel(shape, window, fraction):
    holdout = HoldOut.of(shape, window, fraction)
    held_out = _held_out(holdout, shape)
    assert held_out.any()
    places = _all_training_places(holdout, window)
    assert places
    for place in places:
        assert not held_out[np.ix_(*_read(place))].any()


@pytest.mark.parametrize("fraction", [0.05, 0.25])
@pytest.mark.parametrize("n_slices", [1, 2, 3, 4, 5, 6, 8, 9])
def test_no_training_target_lies_in_what_validation_blocks_read(n_slices, fraction):
    window, bands = _slices(n_slices, 6), 0
    for depth in range(1, 49):
        shape = (depth, 12, 12)
        holdout = HoldOut.of(shape, window, fraction)
        if holdout.held_out.shape_zyx[1] < shape[1]:
            continue  # a band of rows: its validation blocks do read training rows, as context
        bands += 1
        seen = {int(z) for place in validation_places(holdout, window, shape, 10**6) for z in _read(place)[0]}
        targets = {z for place in _all_training_places(holdout, window) for z in _targets(place, window)}
        assert targets
        assert not targets & seen, f"volume of {depth} slices"
    assert bands > 20


@pytest.mark.parametrize("n_slices", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("depth", [26, 31, 48])
def test_all_slices_but_the_band_and_its_gap_are_trained_on(depth, n_slices):
    window = _slices(n_slices, 6)
    holdout = HoldOut.of((depth, 12, 12), window, 0.1)
    first, last = holdout.held_out.start_zyx[0], holdout.held_out.stop_zyx[0] - 1
    gap = window.before_zyx[0]  # the deeper side of the context, also where n_slices is even
    expected = [z for z in range(depth) if z < first - gap or z > last + gap]
    assert sorted(z for source in holdout.sources for z in source.z_starts) == expected


@pytest.mark.parametrize("n_slices", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("train_z", [None, range(5, 37), range(0, 20), range(30, 48)])
def test_neighbours_are_true_slices_wherever_the_volume_has_them(n_slices, train_z):
    shape, window = (48, 12, 12), _slices(n_slices, 6)
    for place in _all_training_places(HoldOut.of(shape, window, 0.1, train_z), window):
        start, count = place.region.start_zyx[0], window.read_zyx[0]
        low, high = place.box.start_zyx[0], place.box.stop_zyx[0]
        np.testing.assert_array_equal(
            reflect_indices(start, count, low, high), reflect_indices(start, count, 0, shape[0])
        )


@pytest.mark.parametrize("window", WINDOWS.values(), ids=list(WINDOWS))
@pytest.mark.parametrize(
    "train_z", [range(48), range(20), range(7, 30), range(30, 48), range(10, 13), range(5, 6), range(47, 48)], ids=str
)
def test_only_the_slices_that_the_user_chose_are_targets_and_held_out(window, train_z):
    shape = (48, 13, 20)
    holdout = HoldOut.of(shape, window, 0.1, train_z)
    held_out = _held_out(holdout, shape)
    assert held_out.any()
    assert set(np.nonzero(held_out)[0]) <= set(train_z)
    context = range(train_z[0] - window.before_zyx[0], train_z[-1] + window.after_zyx[0] + 1)
    places = _all_training_places(holdout, window)
    assert places
    for place in places:
        coordinates = _read(place)
        assert not held_out[np.ix_(*coordinates)].any()
        if window.predict_zyx[0] <= len(train_z):  # a cube deeper than the range cannot but leave it
            assert set(coordinates[0]) <= set(context)
        if window.predict_zyx[0] == 1:
            assert set(_targets(place, window)) <= set(train_z)


@pytest.mark.parametrize(
    ("shape", "fraction", "slices"),
    [((48, 9, 9), 0.1, 5), ((48, 9, 9), 0.001, 1), ((100, 9, 9), 0.2, 20), ((20, 9, 9), 0.05, 1)],
)
def test_the_band_is_whole_slices_as_large_as_was_asked_for(shape, fraction, slices):
    held_out = HoldOut.of(shape, _slices(5, 8), fraction).held_out
    assert held_out.shape_zyx == (slices, *shape[1:])


@pytest.mark.parametrize("window", [_slices(5, 8), _cubes(8)])
def test_a_deep_volume_is_trained_on_both_sides_of_the_band(window):
    holdout = HoldOut.of((64, 16, 16), window, 0.1)
    below, above = holdout.sources
    assert below.box.stop_zyx[0] == holdout.held_out.start_zyx[0]
    assert above.box.start_zyx[0] == holdout.held_out.stop_zyx[0]


@pytest.mark.parametrize("window", [_slices(5, 8), _cubes(8)])
def test_a_single_slice_is_scored_on_a_band_of_rows_and_trained_on_the_others(window):
    holdout = HoldOut.of((1, 20, 30), window, 0.1)
    assert holdout.held_out == Region((0, 8, 0), (1, 3, 30))
    assert [source.box for source in holdout.sources] == [
        Region((0, 0, 0), (1, 8, 30)),
        Region((0, 11, 0), (1, 9, 30)),
    ]


@pytest.mark.parametrize("window", [_slices(5, 32), _cubes(32)])
def test_a_small_single_slice_keeps_its_rows_together(window):
    holdout = HoldOut.of((1, 20, 30), window, 0.1)
    assert holdout.held_out == Region((0, 17, 0), (1, 3, 30))
    assert [source.box for source in holdout.sources] == [Region((0, 0, 0), (1, 17, 30))]


@pytest.mark.parametrize("shape", [(1, 1, 9), (1, 7, 9), (1, 8, 2), (2, 4, 4)])
@pytest.mark.parametrize("window", [_slices(5, 4), _cubes(4)])
def test_a_slice_too_small_to_be_divided_is_an_error_that_says_its_size(shape, window):
    if window.predict_zyx[0] > 1 and shape[0] > 1:
        shape = (1, *shape[1:])
    with pytest.raises(VolumeError, match=rf"slices of {shape[1]} x {shape[2]} voxels are too (small|few)"):
        HoldOut.of(shape, window, 0.1)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(8, 24), st.integers(3, 24)),
    window=st.sampled_from(list(WINDOWS.values())),
    fraction=st.floats(0.01, 0.4),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_whatever_is_drawn_stays_off_the_held_out_part_and_in_its_box(shape, window, fraction, seed, data):
    low = data.draw(st.integers(0, shape[0] - 1))
    train_z = data.draw(st.none() | st.integers(low + 1, shape[0]).map(lambda high: range(low, high)))
    holdout = HoldOut.of(shape, window, fraction, train_z)
    held_out = _held_out(holdout, shape)
    boxes = [source.box for source in holdout.sources]
    for sampler in (SliceSampler, CubeSampler):
        for place in sampler(holdout, window, seed).places(3, range(6)):
            coordinates = _read(place)
            assert not held_out[np.ix_(*coordinates)].any()
            assert place.box in boxes
            assert place.region.shape_zyx == window.read_zyx
            for axis in (1, 2):
                inside = place.box.start_zyx[axis] <= place.region.start_zyx[axis]
                assert inside
                if window.read_zyx[axis] <= place.box.shape_zyx[axis]:
                    assert place.region.stop_zyx[axis] <= place.box.stop_zyx[axis]


@pytest.mark.parametrize("edge", [4, 8])
def test_cubes_stay_whole_in_their_box_where_it_is_deep_enough(edge):
    holdout = HoldOut.of((40, 24, 24), _cubes(edge), 0.1)
    for place in CubeSampler(holdout, _cubes(edge), 0).places(0, range(300)):
        for axis in range(3):
            assert place.region.start_zyx[axis] >= place.box.start_zyx[axis]
            assert place.region.stop_zyx[axis] <= place.box.stop_zyx[axis]


@pytest.mark.parametrize("window", WINDOWS.values(), ids=list(WINDOWS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("train_z", [None, "middle"])
def test_validation_blocks_cover_the_held_out_part_and_are_scored_on_nothing_else(shape, window, train_z):
    chosen = range(shape[0] // 4, shape[0] - shape[0] // 4) if train_z else None
    holdout = HoldOut.of(shape, window, 0.2, chosen)
    held_out = _held_out(holdout, shape)
    scored = np.zeros(shape, bool)
    low, high = 0, shape[0]
    if chosen:
        low, high = max(0, chosen[0] - window.before_zyx[0]), min(high, chosen[-1] + 1 + window.after_zyx[0])
    for place in validation_places(holdout, window, shape, 10**6):
        assert place.box == Region.of_slices(low, high, shape)
        part = scored_part(place, holdout, window)
        start = [s + b for s, b in zip(place.region.start_zyx, window.before_zyx, strict=True)]
        for piece, size in zip(part, window.predict_zyx, strict=True):
            assert 0 <= piece.start < piece.stop <= size
        region = tuple(slice(s + piece.start, s + piece.stop) for s, piece in zip(start, part, strict=True))
        assert all(piece.stop <= size for piece, size in zip(region, shape, strict=True))
        assert held_out[region].all()
        scored[region] = True
    np.testing.assert_array_equal(scored, held_out)


@pytest.mark.parametrize(("at_most", "expected"), [(1, 1), (2, 2), (7, 7), (10**6, 5 * 4 * 4)])
def test_validation_blocks_are_thinned_evenly_and_are_always_the_same(at_most, expected):
    shape, window = (48, 32, 32), _slices(5, 8)
    holdout = HoldOut.of(shape, window, 0.1)
    places = validation_places(holdout, window, shape, at_most)
    assert len(places) == len({place.region for place in places}) == expected
    assert places == validation_places(holdout, window, shape, at_most)
    if at_most > 1:
        centres = [place.region.start_zyx[0] + 2 for place in places]
        assert (centres[0], centres[-1]) == (holdout.held_out.start_zyx[0], holdout.held_out.stop_zyx[0] - 1)
