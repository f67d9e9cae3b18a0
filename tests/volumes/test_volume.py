"""Volumes in memory, reflected reads, and what makes a set of splits."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from denoise.errors import VolumeError
from denoise.tiles import Region
from denoise.volumes import ArrayVolume, SplitSet, describe_numbers, mean_of, open_volume, read_reflected
from denoise.volumes.volume import require_stored_type, stored_numbers


def _volume(shape=(4, 5, 6), dtype="f4", **facts) -> ArrayVolume:
    return ArrayVolume(np.arange(np.prod(shape)).reshape(shape).astype(dtype), **facts)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", ">i2", "<f4", ">f4", "<f8", ">f8"])
def test_an_array_is_read_as_float32_or_as_stored_in_native_order(dtype):
    volume = _volume(dtype=dtype)
    region = Region((1, 0, 2), (2, 5, 3))
    expected = volume.array[1:3, :, 2:5]
    read, stored = volume.read(region), volume.read_stored(region)
    assert read.dtype == np.dtype("f4")
    assert stored.dtype == volume.dtype
    assert stored.dtype.isnative
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_array_equal(stored, expected)


def test_what_was_read_may_be_changed_without_changing_the_volume():
    volume = _volume()
    volume.read(Region((0, 0, 0), (4, 5, 6)))[...] = -1
    assert volume.array.min() == 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4)), r"shape \(3, 4\)"),
        (np.zeros((0, 3, 4)), "none empty"),
        (np.zeros((2, 3, 4), complex), "complex128"),
        (np.zeros((2, 3, 4), bool), "bool"),
    ],
)
def test_an_array_that_is_no_volume_is_refused(array, message):
    with pytest.raises(VolumeError, match=message):
        ArrayVolume(array)


@pytest.mark.parametrize("start", [(-1, 0, 0), (0, 0, 4), (3, 0, 0)])
def test_a_plain_read_outside_the_volume_is_a_bug_and_never_wraps_around(start):
    with pytest.raises(AssertionError, match="reaches outside"):
        _volume().read(Region(start, (2, 5, 3)))


@pytest.mark.parametrize("shape", [(4, 5, 6), (2, 3, 2), (7, 2, 9)])
def test_a_reflected_read_equals_numpy_padding(shape):
    volume = _volume(shape)
    for pad in (1, 3, 11):
        expected = np.pad(volume.array, pad, mode="reflect")
        region = Region((-pad, -pad, -pad), tuple(n + 2 * pad for n in shape))
        np.testing.assert_array_equal(read_reflected(volume, region), expected)


def test_a_single_slice_is_repeated_by_a_reflected_read():
    volume = _volume((1, 3, 3))
    np.testing.assert_array_equal(
        read_reflected(volume, Region((-2, 0, 0), (5, 3, 3))), np.repeat(volume.array, 5, axis=0)
    )


@settings(max_examples=60, deadline=None)
@given(
    starts=st.tuples(*[st.integers(-9, 9)] * 3),
    sizes=st.tuples(*[st.integers(1, 9)] * 3),
    shape=st.tuples(*[st.integers(2, 6)] * 3),
)
def test_any_reflected_region_is_a_part_of_the_padded_volume(starts, sizes, shape):
    volume = _volume(shape)
    padded = np.pad(volume.array, 18, mode="reflect")
    z, y, x = (slice(a + 18, a + 18 + n) for a, n in zip(starts, sizes, strict=True))
    np.testing.assert_array_equal(read_reflected(volume, Region(starts, sizes)), padded[z, y, x])


def test_a_mean_volume_is_the_mean_and_keeps_the_facts_of_the_first():
    one, two = _volume(dtype="u2", voxel_size_um=(1.0, 1.0, 1.0), first_slice=7), _volume(dtype="f4")
    mean = mean_of((one, two, two))
    region = Region((1, 1, 1), (2, 3, 4))
    np.testing.assert_allclose(mean.read(region), one.array[region.slices])
    np.testing.assert_array_equal(mean.read(region), mean.read_stored(region))
    assert (mean.shape, mean.voxel_size_um, mean.slice_numbers) == ((4, 5, 6), (1.0, 1.0, 1.0), range(7, 11))
    assert mean.dtype == np.float32
    assert mean.name == "array + array + array"


def test_splits_that_belong_together_are_accepted():
    splits = SplitSet.of([_volume(voxel_size_um=(1.0, 1.0, 1.0)), _volume(voxel_size_um=(1.0, 1.0, 1.0001)), _volume()])
    assert len(splits) == 3
    assert splits.shape == (4, 5, 6)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (_volume((4, 5, 7)), r"split 1 has shape \(4, 5, 7\) but split 0 has \(4, 5, 6\)"),
        (_volume(first_slice=3), r"split 1 has slices 3\.\.6 but split 0 has 0\.\.3"),
        (_volume(voxel_size_um=(2.0, 2.0, 2.0)), r"voxel size \(2.0, 2.0, 2.0\) um but split 0 has \(1.0, 1.0, 1.0\)"),
    ],
)
def test_splits_that_differ_are_refused_with_both_facts(other, message):
    with pytest.raises(VolumeError, match=message):
        SplitSet.of([_volume(voxel_size_um=(1.0, 1.0, 1.0)), other])


def test_one_split_is_not_enough():
    with pytest.raises(VolumeError, match="at least two sub-reconstructions, found 1"):
        SplitSet.of([_volume()])


@pytest.mark.parametrize(
    ("numbers", "text"), [(range(10, 74), "10..73"), (range(3, 4), "3"), (range(10, 71, 2), "10..70 in steps of 2")]
)
def test_slice_numbers_are_described_as_a_user_would(numbers, text):
    assert describe_numbers(numbers) == text


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8", ">f4"])
def test_the_five_stored_types_are_taken_in_any_byte_order(dtype):
    assert require_stored_type(np.dtype(dtype), "x").isnative


@pytest.mark.parametrize("dtype", ["i1", "u4", "i8", "f2", "c8", "?", "S4", None])
def test_other_types_are_refused_by_name(dtype):
    found = None if dtype is None else np.dtype(dtype)
    with pytest.raises(VolumeError, match=f"file.x holds values of type {found or 'unknown'}; expected one of uint8"):
        require_stored_type(found, "file.x")


@pytest.mark.parametrize(
    ("first", "step", "expected"),
    [
        (10, 2, range(10, 16, 2)),
        (np.int64(3), np.int64(1), range(3, 6)),
        (-1, 1, range(3)),
        (5, 0, range(3)),
        (None, 1, range(3)),
        ("7", 1, range(3)),
        (1.5, 1, range(3)),
    ],
)
def test_stored_slice_numbers_that_make_no_sense_are_ignored(first, step, expected):
    assert stored_numbers(first, step, 3) == expected


def test_volumes_in_memory_survive_pickling():
    volume = mean_of((_volume(), replace(_volume(), first_slice=0)))
    copy = pickle.loads(pickle.dumps(volume))
    region = Region((0, 0, 0), (4, 5, 6))
    np.testing.assert_array_equal(copy.read(region), volume.read(region))


def test_layers_of_a_mean_are_whole_layers_of_every_volume(tmp_path):
    array = _volume((24, 5, 6)).array
    volumes = [ArrayVolume(array)]
    for depth in (4, 6):
        zarr.create_array(str(tmp_path / f"{depth}.zarr"), data=array, chunks=(depth, 5, 6))
        volumes.append(open_volume(tmp_path / f"{depth}.zarr"))
    assert [volume.chunk_zyx[0] for volume in volumes] == [1, 4, 6]
    assert mean_of(volumes).chunk_zyx[0] == 12
