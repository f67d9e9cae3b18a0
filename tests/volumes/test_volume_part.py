"""Some slices of a volume as a volume of its own."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from denoise.tiles import Region
from denoise.volumes import SplitSet, open_volume
from denoise.volumes.part import VolumePart, part_of
from denoise.volumes.volume import ArrayVolume


def _numbers(depth: int = 30) -> np.ndarray:
    return np.arange(depth * 6 * 8, dtype=np.uint16).reshape(depth, 6, 8)


def test_a_part_holds_the_same_voxels_under_the_same_numbers() -> None:
    array = _numbers()
    part = VolumePart(ArrayVolume(array, "whole", (1.0, 2.0, 3.0), first_slice=100), 10, 17)
    assert part.shape == (7, 6, 8)
    assert part.slice_numbers == range(110, 117)
    assert (part.name, part.voxel_size_um, part.dtype) == ("whole", (1.0, 2.0, 3.0), np.dtype(np.uint16))
    region = Region((2, 1, 3), (4, 2, 5))
    np.testing.assert_array_equal(part.read_stored(region), array[12:16, 1:3, 3:8])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)).read(region), array[12:16, 1:3, 3:8])


@pytest.mark.parametrize("region", [Region((-1, 0, 0), (2, 6, 8)), Region((6, 0, 0), (2, 6, 8))])
def test_what_is_outside_the_part_cannot_be_read(region: Region) -> None:
    with pytest.raises(AssertionError, match="outside the part"):
        VolumePart(ArrayVolume(_numbers()), 10, 17).read(region)


def test_a_part_begins_with_a_whole_chunk(tmp_path: Path) -> None:
    paths = []
    for k in range(2):
        paths.append(tmp_path / f"split_{k}.h5")
        with h5py.File(paths[-1], "w") as file:
            file.create_dataset("volume", data=_numbers() + k, chunks=(4, 3, 4))
    splits = SplitSet.of([open_volume(path) for path in paths])
    part, first = part_of(splits, range(9, 14))
    assert first == 8
    assert part.volumes[0].slice_numbers == range(8, 14)
    assert part.volumes[0].chunk_zyx == (4, 3, 4)
    np.testing.assert_array_equal(part.volumes[1].read(Region((0, 0, 0), (6, 6, 8))), _numbers()[8:14] + 1)


@pytest.mark.parametrize("wanted", [range(30), range(-4, 40)])
def test_a_part_that_is_all_is_the_volume_itself(wanted: range) -> None:
    splits = SplitSet.of([ArrayVolume(_numbers(), "a"), ArrayVolume(_numbers(), "b")])
    assert part_of(splits, wanted) == (splits, 0)
