"""OME-Zarr images that we write: valid for others, levels in their places, groups that survive deaths."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import yaozarrs
import zarr
from block_means import block_means
from ome_zarr_models.v05.image import Image

from denoise.errors import OutputError
from denoise.tiles import Region
from denoise.volumes import create_sink, open_volume, pyramid

SHAPE = (21, 18, 11)


def _random(shape=SHAPE, dtype="f4") -> np.ndarray:
    return (np.random.default_rng(0).normal(size=shape) * 50 + 100).clip(0, 250).astype("f4").astype(dtype)


def _make_small(monkeypatch, together: int) -> None:
    """Levels, chunks and shards as large volumes have them."""
    facts = {
        "_MOST_TOGETHER": together,
        "_ENOUGH_VOXELS": 60,
        "_SMALLEST_HALVED": 4,
        "_CHUNK_YX": 8,
        "_CHUNK_Z": 2,
        "_SHARD_VOXELS": 2**10,
        "_LATE_SHARD_VOXELS": 2**7,
    }
    for name, value in facts.items():
        monkeypatch.setattr(pyramid, name, value)


@pytest.fixture(params=[1, 4])
def together(request, monkeypatch) -> int:
    _make_small(monkeypatch, request.param)
    return request.param


def _write(path: Path, array: np.ndarray, **how) -> None:
    with create_sink(path, shape=array.shape, dtype=array.dtype, **how) as sink:
        for z in range(0, len(array), 5):
            sink.write(z, array[z : z + 5].astype("f4"))


def _levels(path: Path) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Factor (from the scales) and voxels of every level."""
    ome = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    levels = []
    for dataset in ome["multiscales"][0]["datasets"]:
        scale = dataset["coordinateTransformations"][0]["scale"]
        levels.append((tuple(map(int, scale)), zarr.open_array(path / dataset["path"], mode="r")[...]))
    return levels


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(SHAPE, "f4"), (SHAPE, "u1"), ((6, 7, 9), "f8"), ((2, 33, 5), "i2"), ((1, 1, 70), "f4")],
    ids=str,
)
def test_every_level_holds_the_means_of_blocks(tmp_path, together, shape, dtype):
    array = _random(shape, dtype)
    _write(tmp_path / "out.zarr", array)
    levels = _levels(tmp_path / "out.zarr")
    assert levels[-1][1].size <= 60
    assert len(levels) > 1
    for factors, stored in levels:
        assert stored.dtype == array.dtype
        expected = block_means(array, factors)
        if array.dtype.kind == "f":
            np.testing.assert_allclose(stored, expected, rtol=1e-5)
        else:  # levels made at the end are means of rounded ones
            assert np.abs(stored - expected).max() <= 1.0
            assert abs((stored - expected).mean()) < 0.25
    np.testing.assert_array_equal(levels[0][1], array)


def test_levels_keep_their_place_in_space(tmp_path, together):
    """A ramp along x has, at every voxel of every level, the value of the place where the metadata puts it."""
    array = np.broadcast_to(np.arange(16.0), (8, 16, 16)).astype("f4")
    _write(tmp_path / "out.zarr", array, voxel_size_um=(3.0, 2.0, 0.5))
    ome = json.loads((tmp_path / "out.zarr/zarr.json").read_text())["attributes"]["ome"]
    for dataset in ome["multiscales"][0]["datasets"]:
        scale, translation = dataset["coordinateTransformations"]
        level = zarr.open_array(tmp_path / "out.zarr" / dataset["path"], mode="r")[...]
        places = np.arange(level.shape[2]) * scale["scale"][2] + translation["translation"][2]
        np.testing.assert_allclose(level[0, 0], places / 0.5)
        assert [n * s for n, s in zip(level.shape, scale["scale"], strict=True)] == [8 * 3.0, 16 * 2.0, 16 * 0.5]


@pytest.mark.parametrize("compression", ["none", "gzip", "blosc"])
@pytest.mark.parametrize("voxel_size", [None, (2.0, 0.65, 0.65)])
def test_two_validators_find_nothing_to_complain_of(tmp_path, monkeypatch, voxel_size, compression):
    _make_small(monkeypatch, 4)
    _write(tmp_path / "out.zarr", _random(), voxel_size_um=voxel_size, compression=compression)
    group = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    (multiscale,) = Image.from_zarr(group).ome_attributes.multiscales
    assert [axis.name for axis in multiscale.axes] == ["z", "y", "x"]
    assert {axis.unit for axis in multiscale.axes} == ({"micrometer"} if voxel_size else {None})
    assert tuple(multiscale.datasets[0].coordinateTransformations[0].scale) == (voxel_size or (1.0, 1.0, 1.0))
    assert group["0"].metadata.dimension_names == ("z", "y", "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yaozarrs.validate_zarr_store(str(tmp_path / "out.zarr"))


def _write_groups(sink, runs: list[tuple[int, int]]) -> None:
    for start, stop in runs:
        sink.write(start, _random()[start:stop])
    sink.flush()


def test_processes_that_keep_to_groups_make_the_same_store_as_one(tmp_path):
    """Without the small levels: another process would not know of them. SHAPE is 16 slices and 5."""
    with create_sink(tmp_path / "out.zarr", shape=SHAPE) as sink:
        assert sink.slices_together == 16
        worker = get_context("spawn").Process(target=_write_groups, args=(sink, [(16, 21)]))
        worker.start()
        _write_groups(sink, [(9, 16), (0, 9)])
        worker.join()
        assert worker.exitcode == 0
    np.testing.assert_array_equal(_levels(tmp_path / "out.zarr")[0][1], _random())


def _share_a_group(path: Path) -> None:
    with create_sink(path, shape=SHAPE) as sink:
        copy = pickle.loads(pickle.dumps(sink))
        _write_groups(copy, [(9, 21)])
        _write_groups(sink, [(0, 9)])


def test_a_group_shared_by_two_processes_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match="were never written, the first is slice 9"):
        _share_a_group(tmp_path / "out.zarr")


def _interrupted(path: Path, runs: list[tuple[int, int]], **how) -> None:
    with create_sink(path, shape=SHAPE, resumable=True, **how) as sink:
        _write_groups(sink, runs)
        raise RuntimeError("the network burst")


def test_what_is_missing_of_an_interrupted_image_are_whole_groups(tmp_path, monkeypatch):
    _make_small(monkeypatch, 4)
    with pytest.raises(RuntimeError, match="burst"):
        _interrupted(tmp_path / "out.zarr", [(3, 9), (13, 16), (20, 21)])
    with create_sink(tmp_path / "out.zarr", shape=SHAPE, resumable=True, resume=True) as sink:
        assert sink.missing == [range(0, 4), range(8, 20)]
        _write_groups(sink, [(8, 20), (0, 4)])
    for factors, stored in _levels(tmp_path / "out.zarr"):
        np.testing.assert_allclose(stored, block_means(_random(), factors), rtol=1e-5)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize("harm", [_cut_short, lambda path: path.with_suffix(".0123.partial").write_bytes(b"rest")])
def test_what_a_death_leaves_of_a_shard_neither_stops_the_next_run_nor_stays(
    tmp_path, monkeypatch, harm: Callable[[Path], None]
):
    _make_small(monkeypatch, 4)
    with pytest.raises(RuntimeError, match="burst"):
        _interrupted(tmp_path / "out.zarr", [(0, 21)])
    unfinished = tmp_path / ".out.zarr.unfinished"
    for journal in unfinished.glob("done-*"):
        journal.write_text("0 8\n12 21\n")
    for level in ("0", "1"):
        harm(unfinished / "result.zarr" / level / "c/2/0/0")
    # A level of the end, half made.
    last = max(unfinished.glob("result.zarr/[0-9]"))
    (last / "c/0/0").mkdir(parents=True)
    (last / "c/0/0/0").write_bytes(b"half of a shard, and a bit more")
    harm(last / "c/0/0/0")
    with create_sink(tmp_path / "out.zarr", shape=SHAPE, resumable=True, resume=True) as sink:
        assert sink.missing == [range(8, 12)]
        _write_groups(sink, [(8, 12)])
    assert list((tmp_path / "out.zarr").rglob("*.partial")) == []
    for factors, stored in _levels(tmp_path / "out.zarr"):
        np.testing.assert_allclose(stored, block_means(_random(), factors), rtol=1e-5)


def test_another_compression_does_not_continue(tmp_path):
    with pytest.raises(RuntimeError, match="burst"):
        _interrupted(tmp_path / "out.zarr", [(0, 16)], compression="gzip")
    with pytest.raises(OutputError, match=r"begun with compression = 'gzip', this run has 'blosc'"):
        create_sink(tmp_path / "out.zarr", shape=SHAPE, resumable=True, resume=True)


def test_an_image_with_levels_and_one_without_replace_each_other_and_foreign_arrays_stay(tmp_path, monkeypatch):
    old = tmp_path / "out.zarr"
    group = zarr.create_group(str(old), attributes={"ome": {"version": "0.5"}})
    group.create_array("0", shape=(4, 5, 6), chunks=(1, 5, 6), dtype="f4")[...] = 1
    _make_small(monkeypatch, 4)
    _write(old, _random(), overwrite=True)
    _write(old, _random((5, 4, 3)), overwrite=True)
    np.testing.assert_array_equal(open_volume(old).read(Region((0, 0, 0), (5, 4, 3))), _random((5, 4, 3)))
    zarr.open_group(str(old)).create_group("labels")
    with pytest.raises(OutputError, match="holds labels, which is not part of a Zarr array"):
        _write(old, _random(), overwrite=True)


def test_an_image_of_20_terabytes_is_created_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**14, 0, 10**14))
    made: list[Path] = []

    def look() -> None:
        with create_sink(tmp_path / "out.zarr", shape=(20000, 16384, 16384)) as sink:
            assert sink.slices_together == 1
            made.extend(path for path in tmp_path.rglob("*") if path.is_file())
            assert sum(path.stat().st_size for path in made) < 2**16

    with pytest.raises(AssertionError, match="20000 of 20000 slices"):
        look()
    assert len([path for path in made if path.name == "zarr.json"]) == 9
