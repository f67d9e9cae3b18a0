"""Compressed outputs and inputs: without loss, in every format that has them, and only what a region needs is read."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import tifffile
import zarr

from denoise.errors import OutputError
from denoise.tiles import Region
from denoise.volumes import create_sink, open_volume
from denoise.volumes.hdf5_compressed import CompressedHdf5Writer

OUTPUTS = [("out.h5", "gzip"), ("out.h5", "blosc"), ("out.zarr", "none"), ("out.zarr", "gzip"), ("out", "gzip")]
SHAPE = (6, 7, 9)


def _random(shape=SHAPE, dtype="f4") -> np.ndarray:
    return (np.random.default_rng(0).normal(size=shape) * 20 + 100).clip(0, 250).astype("f4").astype(dtype)


def _whole(volume) -> np.ndarray:
    return volume.read_stored(Region((0, 0, 0), volume.shape))


def _write(path: Path | str, array: np.ndarray, **how) -> None:
    with create_sink(path, shape=array.shape, dtype=array.dtype, **how) as sink:
        for z in reversed(range(0, len(array), 2)):
            sink.write(z, array[z : z + 2].astype("f4"))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(SHAPE, "u1"), (SHAPE, "u2"), (SHAPE, "i2"), (SHAPE, "f8"), ((1, 1, 1), "f4"), ((2, 1, 3), "f4")],
    ids=str,
)
@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
def test_compressed_outputs_come_back_as_they_were_with_all_that_they_say(tmp_path, name, compression, shape, dtype):
    numbers = range(10, 10 + 2 * shape[0], 2)
    facts = {"voxel_size_um": (2.0, 0.65, 0.7), "slice_numbers": numbers, "description": "5 µm"}
    _write(tmp_path / name, _random(shape, dtype), compression=compression, **facts)
    volume = open_volume(tmp_path / name)
    assert volume.dtype == np.dtype(dtype)
    assert volume.slice_numbers == numbers
    assert volume.voxel_size_um == pytest.approx((2.0, 0.65, 0.7), rel=1e-6)
    np.testing.assert_array_equal(_whole(volume), _random(shape, dtype))
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
def test_images_of_several_chunks_come_back(tmp_path, name, compression):
    array = _random((2, 600, 1030)).round()
    _write(tmp_path / name, array, compression=compression)
    np.testing.assert_array_equal(_whole(open_volume(tmp_path / name)), array)
    size = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    assert size < array.nbytes / 2 or compression == "none"


@pytest.mark.parametrize(("compression", "filters"), [("gzip", ["2", "1"]), ("blosc", ["32001"])])
def test_an_hdf5_output_says_how_it_is_compressed_and_other_tools_read_it(tmp_path, compression, filters):
    _write(f"{tmp_path}/out.h5::/a/b", _random((3, 700, 520)), compression=compression)
    with h5py.File(tmp_path / "out.h5") as file:
        dataset = file["a/b"]
        found = dataset.id.get_create_plist()
        assert [str(found.get_filter(i)[0]) for i in range(found.get_nfilters())] == filters
        assert dataset.chunks == (1, 512, 512)
        np.testing.assert_array_equal(dataset[1], _random((3, 700, 520))[1])


def test_compressed_slices_are_what_imagej_opens(tmp_path):
    _write(tmp_path / "out", _random(), compression="gzip", voxel_size_um=(1.0, 1.0, 1.0))
    with tifffile.TiffFile(tmp_path / "out/out_00003.tif") as tif:
        page = tif.pages.first
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert page.predictor == tifffile.PREDICTOR.NONE
        assert tif.is_imagej


def test_a_zarr_output_is_compressed_unless_it_is_asked_not_to_be(tmp_path):
    for compression, kind in ((None, "BloscCodec"), ("gzip", "GzipCodec"), ("none", "")):
        _write(tmp_path / "out.zarr", _random(), compression=compression, overwrite=True)
        compressors = zarr.open_array(tmp_path / "out.zarr/0", mode="r").compressors
        assert [type(c).__name__ for c in compressors] == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("name", "compression", "message"),
    [
        ("out.tif", "gzip", r"single TIFF file is not compressed.*choose a folder of slices"),
        ("out.tif", "blosc", r"no program reads TIFF compressed with Blosc; choose gzip"),
        ("out", "blosc", r"no program reads TIFF compressed with Blosc; choose gzip"),
        ("out.h5", "zip", r"cannot be compressed with 'zip'; choose one of none, gzip, blosc"),
    ],
)
def test_compressions_that_a_format_does_not_have_are_refused(tmp_path, name, compression, message):
    with pytest.raises(OutputError, match=message):
        create_sink(tmp_path / name, shape=SHAPE, compression=compression)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "compression", "gigabytes"), [("o.h5", "gzip", "4"), ("o", "gzip", "2"), ("o.zarr", "none", "4.5")]
)
def test_the_room_that_is_asked_for_is_what_the_format_takes_at_least(
    tmp_path, monkeypatch, name, compression, gigabytes
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**10, 0, 1_000_000_000))
    with pytest.raises(OutputError, match=rf"needs {gigabytes}\d* GB, but"):
        create_sink(tmp_path / name, shape=(1000, 1000, 1000), compression=compression)


@pytest.mark.parametrize("compression", ["gzip", "blosc"])
def test_a_disk_that_fills_up_while_the_hdf5_file_is_made_is_explained_and_costs_nothing(
    tmp_path, monkeypatch, compression
):
    how = {"shape": SHAPE, "compression": compression, "resumable": True, "resume": True}

    def write() -> None:
        with create_sink(tmp_path / "out.h5", **how) as sink:
            for run in sink.missing:
                sink.write(run.start, _random()[run.start : run.stop])

    def full(*_args, **_how):
        raise OSError("Unable to create dataset (file write failed: errno = 28, error message = 'No space left')")

    with monkeypatch.context() as patched:
        patched.setattr(h5py.File, "create_dataset", full)
        with pytest.raises(OutputError, match="the disk is full"):
            write()
    with create_sink(tmp_path / "out.h5", **how) as sink:
        assert sink.missing == []
    np.testing.assert_array_equal(_whole(open_volume(tmp_path / "out.h5")), _random())


def test_a_disk_that_fills_up_while_a_thread_writes_is_explained(tmp_path, monkeypatch):
    def full(*_args, **_how):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CompressedHdf5Writer, "_write_slice", full)
    sink = create_sink(tmp_path / "out.h5", shape=SHAPE, compression="gzip")
    with pytest.raises(OutputError, match="the disk is full"), sink:
        sink.write(0, _random())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "packbits"])
@pytest.mark.parametrize("where", ["folder", "file"])
def test_compressed_tiffs_are_read_whole_and_in_part(tmp_path, compression, where):
    array = _random((3, 70, 50), "u2")
    if where == "folder":
        for z, image in enumerate(array):
            tifffile.imwrite(tmp_path / f"{z}.tif", image, compression=compression, rowsperstrip=16)
    else:
        tifffile.imwrite(tmp_path / "v.tif", array, compression=compression, rowsperstrip=16, photometric="minisblack")
    volume = open_volume(tmp_path if where == "folder" else tmp_path / "v.tif")
    assert volume.chunk_zyx[0] == 1
    np.testing.assert_array_equal(_whole(volume), array)
    np.testing.assert_array_equal(volume.read(Region((1, 15, 7), (2, 20, 9))), array[1:3, 15:35, 7:16])


@pytest.mark.parametrize(
    "how", [{"compression": "gzip"}, {"compression": "lzf"}, dict(hdf5plugin.Blosc("zstd"))], ids=str
)
def test_a_region_of_compressed_hdf5_is_read_from_its_own_chunks_only(tmp_path, how):
    array = _random((8, 8, 8))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        dataset = file.create_dataset("v", data=array, chunks=(4, 4, 4), **how)
        for z in (0, 4):
            for y in (0, 4):
                for x in (0, 4):
                    if (z, y, x) != (4, 0, 4):
                        dataset.id.write_direct_chunk((z, y, x), b"rubbish")
    volume = open_volume(tmp_path / "v.h5")
    assert volume.chunk_zyx[0] == 4
    np.testing.assert_array_equal(volume.read(Region((5, 1, 4), (3, 3, 4))), array[5:, 1:4, 4:])
