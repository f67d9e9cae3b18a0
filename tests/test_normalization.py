"""Mean and standard deviation of real data: integers, large offsets, NaN, masked corners."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from denoise.errors import VolumeError
from denoise.normalization import Moments, Normalization


def _std(moments: Moments) -> float:
    return math.sqrt(moments.squared_deviation / moments.count)


def test_values_go_there_and_back(rng):
    normalization = Normalization(-3.5, 0.25)
    block = rng.normal(-3.5, 0.25, (2, 3, 4)).astype(np.float32)
    normal = normalization.apply(block)
    assert normal.dtype == np.float32
    assert abs(normal.mean()) < 1
    np.testing.assert_allclose(normalization.invert(normal), block, rtol=1e-6)


@pytest.mark.parametrize(
    ("mean", "std"),
    [(0.0, 0.0), (0.0, -1.0), (math.nan, 1.0), (0.0, math.nan), (math.inf, 1.0), (0.0, math.inf)],
)
def test_a_normalisation_that_cannot_be_inverted_is_refused_with_its_values(mean, std):
    with pytest.raises(VolumeError, match=f"mean {mean} and standard deviation {std}"):
        Normalization(mean, std)


@pytest.mark.parametrize("dtype", ["u2", "<u2", ">u2", "i4", "f4", ">f4", "f8"])
def test_a_mean_of_30000_with_a_deviation_of_5_is_exact(dtype):
    values = np.tile(np.array([29995, 30005], dtype), (40, 50, 60))
    moments = Moments.of(values)
    assert moments == Moments(240_000, 30000.0, 25.0 * 240_000, 0)
    assert moments.normalization() == Normalization(30000.0, 5.0)


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("u1", 0, 255), ("i1", -128, 127), ("u2", 0, 65535), ("i2", -32768, 32767)]
)
def test_the_ends_of_an_integer_type_do_not_overflow(dtype, low, high):
    moments = Moments.of(np.tile(np.array([low, high], dtype), 1000))
    assert moments.mean == (low + high) / 2
    assert _std(moments) == (high - low) / 2


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5, -1e6])
def test_float32_with_a_large_offset_keeps_its_deviation(rng, offset):
    stored = (offset + rng.normal(0, 2, (64, 512, 16))).astype(np.float32)
    expected = stored.astype(np.float64)
    moments = Moments.of(stored)
    assert moments.mean == pytest.approx(expected.mean(), rel=1e-12, abs=1e-12)
    assert _std(moments) == pytest.approx(expected.std(), rel=1e-9)


def test_small_values_are_as_exact_as_large_ones(rng):
    values = rng.normal(3e-7, 1e-8, 10_000)
    assert _std(Moments.of(values)) == pytest.approx(values.std(), rel=1e-9)


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda a: a[::2, ::-1, 1:], lambda a: a.transpose(2, 0, 1)])
def test_the_order_in_memory_does_not_matter(rng, layout):
    values = layout(rng.normal(5, 2, (8, 9, 10)))
    moments = Moments.of(values)
    assert (moments.mean, _std(moments)) == (pytest.approx(values.mean()), pytest.approx(values.std()))


@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [-np.inf], [np.nan, np.inf, -np.inf, np.nan]])
def test_nan_and_inf_are_counted_and_left_out(bad):
    moments = Moments.of(np.array([1.0, 2.0, *bad, 3.0], np.float32))
    assert moments.non_finite == len(bad)
    assert (moments.count, moments.mean) == (3, 2.0)
    assert moments.squared_deviation == pytest.approx(2.0)


@pytest.mark.parametrize("values", [np.full((3, 3), np.nan), np.empty((0, 4)), np.empty(0, np.uint8)])
def test_where_no_value_is_finite_there_is_no_normalisation(values):
    moments = Moments.of(values)
    assert (moments.count, moments.non_finite) == (0, values.size)
    with pytest.raises(VolumeError, match="no finite value"):
        moments.normalization()


@pytest.mark.parametrize("value", [0, 7, 0.1, -1e5, 3e38])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_constant_volume_is_an_error_that_names_the_value(value, dtype):
    moments = Moments.of(np.full((32, 33, 34), value, dtype))
    with pytest.raises(VolumeError, match="same value"):
        moments.normalization()


def test_the_smallest_step_that_float32_knows_is_not_taken_for_constant():
    value = np.float32(1000)
    moments = Moments.of(np.array([value, np.nextafter(value, np.float32(2000))] * 500))
    assert moments.normalization().std == pytest.approx(np.spacing(value) / 2, rel=1e-6)


_values = arrays.arrays(
    np.float64, st.integers(0, 30), elements=st.one_of(st.floats(-1e6, 1e6), st.sampled_from([np.nan, np.inf]))
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_values, min_size=1, max_size=5))
def test_merging_parts_equals_measuring_the_whole(parts):
    whole = Moments.of(np.concatenate(parts))
    merged = reduce(Moments.merged, (Moments.of(part) for part in parts), Moments())
    assert (merged.count, merged.non_finite) == (whole.count, whole.non_finite)
    assert merged.mean == pytest.approx(whole.mean, rel=1e-9, abs=1e-9)
    assert merged.squared_deviation == pytest.approx(whole.squared_deviation, rel=1e-9, abs=1e-5)


def test_merging_keeps_a_small_deviation_beside_a_large_mean(rng):
    values = (30000 + 5 * rng.standard_normal((100, 64, 64))).round().astype(np.uint16)
    merged = reduce(Moments.merged, (Moments.of(image) for image in values))
    assert merged.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-14)
    assert _std(merged) == pytest.approx(values.std(dtype=np.float64), rel=1e-10)


def test_merging_nothing_changes_nothing():
    moments = Moments.of(np.array([1.0, 5.0, np.nan]))
    assert Moments().merged(moments) == moments
    assert moments.merged(Moments()) == moments
    assert Moments(non_finite=2).merged(Moments(non_finite=3)) == Moments(non_finite=5)


def _disc(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((y - (height - 1) / 2) / (height / 2)) ** 2 + ((x - (width - 1) / 2) / (width / 2)) ** 2 <= 1


@pytest.mark.parametrize("dtype", ["u2", "f4"])
@pytest.mark.parametrize("shape", [(64, 64), (63, 65), (40, 100)])
def test_zeros_outside_the_field_of_view_do_not_count(rng, shape, dtype):
    inside = _disc(*shape)
    image = np.where(inside, rng.normal(1000, 10, shape), 0).astype(dtype)
    moments = Moments.of_slice(image)
    assert moments.count == inside.sum()
    assert moments.mean == pytest.approx(image[inside].mean(dtype=np.float64))
    assert _std(moments) == pytest.approx(image[inside].std(dtype=np.float64), rel=1e-9)


def test_zeros_inside_and_values_outside_the_field_of_view_do_count():
    image = np.ones((32, 32), np.float32)
    image[16, 16] = 0
    image[0, 0] = 5
    assert Moments.of_slice(image) == Moments.of(image)


def test_nan_outside_the_field_of_view_is_counted_too():
    image = np.ones((32, 32), np.float32)
    image[0, :2] = np.nan, 0
    moments = Moments.of_slice(image)
    assert (moments.count, moments.non_finite) == (32 * 32 - 2, 1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 1)])
def test_tiny_slices_keep_their_centre(shape):
    moments = Moments.of_slice(np.full(shape, 3.0))
    assert (moments.count, moments.mean) == (math.prod(shape), 3.0)


def test_moments_of_a_slice_can_be_taken_band_by_band():
    """Of a slice masked outside the circle, in bands of unequal height."""
    rng = np.random.default_rng(4)
    y, x = np.meshgrid(np.linspace(-1, 1, 50), np.linspace(-1, 1, 40), indexing="ij")
    image = np.where(x**2 + y**2 > 1.02, 0.0, rng.normal(50, 3, (50, 40)))
    whole = Moments.of_slice(image)
    assert 0 < whole.count < image.size
    together = Moments()
    for rows in (range(0, 7), range(7, 30), range(30, 50)):
        together = together.merged(Moments.of_rows(image[rows.start : rows.stop], rows, 50))
    assert together.count == whole.count
    assert together.mean == pytest.approx(whole.mean, rel=1e-12)
    assert together.squared_deviation == pytest.approx(whole.squared_deviation, rel=1e-10)
