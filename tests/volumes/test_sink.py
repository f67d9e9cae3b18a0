"""Every output format: round trips, whole results only, nothing of the user's lost."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
import subprocess
import sys
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from denoise.errors import OutputError
from denoise.tiles import Region
from denoise.volumes import create_sink, open_volume

FORMATS = ["out.tif", "out.h5", "out.zarr", "out"]
SHAPE = (6, 7, 9)


def _numbered(shape=SHAPE, dtype="f4") -> np.ndarray:
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


def _whole(volume) -> np.ndarray:
    return volume.read_stored(Region((0, 0, 0), volume.shape))


def _write(path: Path, array: np.ndarray, **how) -> None:
    with create_sink(path, shape=array.shape, **how) as sink:
        sink.write(0, array)


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("voxel_size", [None, (2.0, 0.65, 0.7)])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8"])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_back_with_all_that_it_says(tmp_path, name, dtype, voxel_size):
    numbers = range(10, 22, 2)
    _write(
        tmp_path / "new" / name,
        _numbered(),
        dtype=dtype,
        voxel_size_um=voxel_size,
        slice_numbers=numbers,
        description="denoised <with> 5 µm\n& care",
    )
    volume = open_volume(tmp_path / "new" / name)
    assert volume.dtype == np.dtype(dtype)
    assert volume.slice_numbers == numbers
    np.testing.assert_array_equal(_whole(volume), _numbered())
    if voxel_size is None:
        assert volume.voxel_size_um is None
    else:
        assert volume.voxel_size_um == pytest.approx(voxel_size, rel=1e-6)
    assert _names(tmp_path / "new") == [name]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (3, 600, 2)])
def test_odd_shapes_come_back(tmp_path, name, shape):
    _write(tmp_path / name, _numbered(shape))
    volume = open_volume(tmp_path / name)
    assert volume.slice_numbers == range(shape[0])
    np.testing.assert_array_equal(_whole(volume), _numbered(shape))


@pytest.mark.parametrize("name", FORMATS)
def test_slabs_may_come_in_any_order_and_be_reused_by_the_caller(tmp_path, name):
    buffer = np.empty((2, 7, 9), "f4")
    with create_sink(tmp_path / name, shape=SHAPE) as sink:
        for z in (4, 0, 2):
            buffer[...] = _numbered()[z : z + 2]
            sink.write(z, buffer)
            buffer[...] = -1
    np.testing.assert_array_equal(_whole(open_volume(tmp_path / name)), _numbered())


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(5)), cuts=st.sets(st.integers(1, 4)))
def test_any_cutting_into_slabs_gives_the_same_zarr_store(tmp_path_factory, order, cuts):
    path = tmp_path_factory.mktemp("any") / "out.zarr"
    array = _numbered((5, 3, 4))
    edges = [0, *sorted(cuts), 5]
    slabs = list(pairwise(edges))
    with create_sink(path, shape=array.shape) as sink:
        for a, b in sorted(slabs, key=lambda slab: order[slab[0]]):
            sink.write(a, array[a:b])
    np.testing.assert_array_equal(_whole(open_volume(path)), array)


def test_a_tiff_file_of_several_slabs_is_contiguous_and_ome(tmp_path):
    with create_sink(tmp_path / "out.tif", shape=SHAPE, voxel_size_um=(2.0, 0.65, 0.7)) as sink:
        for z in range(0, 6, 2):
            sink.write(z, _numbered()[z : z + 2])
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert tif.is_ome
        (series,) = tif.series
        assert series.axes == "ZYX"
        assert series.dataoffset is not None
        np.testing.assert_array_equal(series.asarray(), _numbered())
        pixels = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
        assert [pixels[f"PhysicalSize{a}"] for a in "ZYX"] == [2.0, 0.65, 0.7]


def test_a_tiff_file_over_4_gb_is_a_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr("denoise.volumes.tiff_file._LARGEST_CLASSIC", 1000)
    _write(tmp_path / "out.tif", _numbered())
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert tif.is_bigtiff
    np.testing.assert_array_equal(_whole(open_volume(tmp_path / "out.tif")), _numbered())


def test_headers_of_many_small_slices_count_too(tmp_path, monkeypatch):
    monkeypatch.setattr("denoise.volumes.tiff_file._LARGEST_CLASSIC", 1100)
    with create_sink(tmp_path / "out.tif", shape=(250, 1, 1)) as sink:
        sink.write(0, np.ones((250, 1, 1), np.float32))
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert tif.is_bigtiff


def test_slices_of_a_folder_are_named_by_their_numbers_and_imagej_finds_the_voxel_size(tmp_path):
    _write(tmp_path / "run_0.65um", _numbered(), voxel_size_um=(2.0, 0.65, 0.7), slice_numbers=range(99998, 100004))
    names = _names(tmp_path / "run_0.65um")
    assert names[0] == "run_0.65um_099998.tif"
    assert names[-1] == "run_0.65um_100003.tif"
    with tifffile.TiffFile(tmp_path / "run_0.65um" / names[0]) as tif:
        assert tif.imagej_metadata["unit"] == "um"
        assert tif.imagej_metadata["spacing"] == 2.0
        x, units = tif.pages.first.tags["XResolution"].value
        assert units / x == pytest.approx(0.7)
    _write(tmp_path / "short", _numbered((1, 2, 2)), slice_numbers=range(10, 11))
    assert _names(tmp_path / "short") == ["short_00010.tif"]


def test_the_dataset_of_an_hdf5_output_may_be_named(tmp_path):
    _write(Path(f"{tmp_path}/out.h5::/denoised/volume"), _numbered(), voxel_size_um=(1.0, 2.0, 3.0))
    with h5py.File(tmp_path / "out.h5") as file:
        dataset = file["denoised/volume"]
        assert dataset.attrs["element_size_um"].tolist() == [1.0, 2.0, 3.0]
        assert dataset.chunks is None
    np.testing.assert_array_equal(_whole(open_volume(f"{tmp_path}/out.h5::/denoised/volume")), _numbered())


@pytest.mark.parametrize("name", FORMATS)
def test_integer_outputs_are_clipped_and_counted_once(tmp_path, name, caplog):
    array = _numbered()
    array[2:4, 0, 0] = 1000.0
    with caplog.at_level(logging.WARNING, "denoise"), create_sink(tmp_path / name, shape=SHAPE, dtype="u1") as sink:
        for z in range(0, 6, 2):
            sink.write(z, array[z : z + 2])
    np.testing.assert_array_equal(_whole(open_volume(tmp_path / name)), np.clip(array, 0, 255))
    (record,) = caplog.records
    assert "2 of 378 voxels were outside the range of uint8" in record.getMessage()


@pytest.mark.parametrize("name", FORMATS)
def test_nan_for_an_integer_output_names_the_slices_and_leaves_nothing(tmp_path, name):
    array = _numbered()
    array[3, 1, 1] = np.nan
    with (
        pytest.raises(OutputError, match=r"slices 12\.\.13: 1 of 126 voxels are NaN"),
        create_sink(tmp_path / name, shape=SHAPE, dtype="u2", slice_numbers=range(10, 16)) as sink,
    ):
        sink.write(2, array[2:4])
    assert _names(tmp_path) == []


def _write_some_and_burst(sink) -> None:
    sink.write(0, np.zeros((3, 7, 9), "f4"))
    raise RuntimeError("the network burst")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_an_exception_discards_the_partial_result_and_keeps_the_earlier_one(tmp_path, name, overwrite):
    if overwrite:
        _write(tmp_path / name, _numbered())
    before = _names(tmp_path)
    with (
        pytest.raises(RuntimeError, match="the network burst"),
        create_sink(tmp_path / name, shape=SHAPE, overwrite=overwrite) as sink,
    ):
        _write_some_and_burst(sink)
    assert _names(tmp_path) == before
    if overwrite:
        np.testing.assert_array_equal(_whole(open_volume(tmp_path / name)), _numbered())


@pytest.mark.parametrize("name", FORMATS)
def test_a_slice_that_was_never_written_is_a_bug_and_nothing_is_published(tmp_path, name):
    with (
        pytest.raises(AssertionError, match=r"2 of 6 slices of .* were never written, the first is slice 4"),
        create_sink(tmp_path / name, shape=SHAPE) as sink,
    ):
        sink.write(0, _numbered()[:4])
    assert _names(tmp_path) == []


def _write_slice_1_twice(sink) -> None:
    sink.write(0, _numbered()[:2])
    sink.write(1, _numbered()[:2])


@pytest.mark.parametrize("name", FORMATS)
def test_slabs_that_do_not_fit_or_come_twice_are_bugs(tmp_path, name):
    with pytest.raises(AssertionError, match="does not fit"), create_sink(tmp_path / name, shape=SHAPE) as sink:
        sink.write(5, _numbered()[:2])
    with pytest.raises(AssertionError, match="written twice"), create_sink(tmp_path / name, shape=SHAPE) as sink:
        _write_slice_1_twice(sink)


_KILLED = """
import os, signal, sys
import numpy as np
from denoise.volumes import create_sink
with create_sink(sys.argv[1], shape=(6, 7, 9), overwrite=True) as sink:
    sink.write(0, np.zeros((5, 7, 9), "f4"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", FORMATS)
def test_a_kill_leaves_the_earlier_result_and_the_next_run_tidies_up(tmp_path, name):
    _write(tmp_path / name, _numbered())
    killed = subprocess.run([sys.executable, "-c", _KILLED, tmp_path / name], check=False)
    assert killed.returncode == -9
    np.testing.assert_array_equal(_whole(open_volume(tmp_path / name)), _numbered())
    assert len(_names(tmp_path)) == 2
    _write(tmp_path / name, _numbered() + 1, overwrite=True)
    assert _names(tmp_path) == [name]
    np.testing.assert_array_equal(_whole(open_volume(tmp_path / name)), _numbered() + 1)


def test_a_kill_leaves_nothing_under_a_new_name(tmp_path):
    subprocess.run([sys.executable, "-c", _KILLED, tmp_path / "out"], check=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["out.raw", "out.png", "out.npy", "out.zarr::/0", "out.h5::/a/../b", "out.h5::/", ".."]
)
def test_names_that_mean_no_format_are_refused(tmp_path, name):
    with pytest.raises(OutputError, match="names no"):
        create_sink(f"{tmp_path}/new/{name}", shape=SHAPE)


@pytest.mark.parametrize("dtype", ["u4", "c8", "f2", "i1"])
def test_types_that_we_do_not_write_are_refused(tmp_path, dtype):
    with pytest.raises(OutputError, match="choose one of uint8, uint16"):
        create_sink(tmp_path / "out", shape=SHAPE, dtype=dtype)


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**10, 0, 3_000_000_000))
    with pytest.raises(OutputError, match=r"needs 4 GB, but .* has only 3 GB free"):
        create_sink(tmp_path / "new" / "out", shape=(1000, 1000, 1000))
    assert _names(tmp_path) == []


def test_a_disk_that_fills_up_while_a_thread_writes_is_explained(tmp_path, monkeypatch):
    def full(*_args, **_how):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(OutputError, match="the disk is full"), create_sink(tmp_path / "out", shape=SHAPE) as sink:
        sink.write(0, _numbered())
    assert _names(tmp_path) == []


def test_creating_a_sink_writes_nothing(tmp_path):
    for name in FORMATS:
        create_sink(tmp_path / "new" / name, shape=SHAPE)
    assert _names(tmp_path) == []


_DEEP = (20, 7, 9)


def _write_part(sink, start: int, stop: int) -> None:
    sink.write(start, _numbered(_DEEP)[start:stop])
    sink.flush()


@pytest.mark.parametrize(
    ("name", "compression"), [*((name, None) for name in FORMATS), ("out.h5", "gzip"), ("out", "gzip")]
)
def test_disjoint_slabs_may_be_written_by_several_processes(tmp_path, name, compression):
    """Which begin and end with whole groups of slices; of 16 at most."""
    with create_sink(tmp_path / name, shape=_DEEP, compression=compression) as sink:
        assert sink.allows_parallel_slabs
        assert 16 % sink.slices_together == 0
        worker = get_context("spawn").Process(target=_write_part, args=(sink, 16, 20))
        worker.start()
        _write_part(sink, 0, 16)
        worker.join()
        assert worker.exitcode == 0
    np.testing.assert_array_equal(_whole(open_volume(tmp_path / name)), _numbered(_DEEP))


@pytest.mark.parametrize("name", FORMATS)
def test_volumes_of_every_format_survive_pickling(tmp_path, name):
    _write(tmp_path / name, _numbered(), voxel_size_um=(1.0, 2.0, 3.0), slice_numbers=range(3, 9))
    volume = open_volume(tmp_path / name)
    copy = pickle.loads(pickle.dumps(volume))
    assert copy == volume
    np.testing.assert_array_equal(_whole(copy), _numbered())


@pytest.mark.parametrize("name", FORMATS)
def test_a_name_that_is_no_utf_8_is_a_name(tmp_path, name):
    path = tmp_path / os.fsdecode(b"M\xfcnchen-" + name.encode())
    with create_sink(path, shape=SHAPE) as sink:
        sink.write(0, _numbered())
    assert open_volume(path).shape == SHAPE
