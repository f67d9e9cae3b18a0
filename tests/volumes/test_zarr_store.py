"""Reading Zarr arrays and OME-Zarr images: both formats, axes, units, hostile metadata, only the chunks that count."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from denoise.errors import VolumeError
from denoise.tiles import Region
from denoise.volumes import open_volume


def _numbered(shape=(4, 5, 6), dtype="f4") -> np.ndarray:
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


def _whole(volume) -> np.ndarray:
    return volume.read_stored(Region((0, 0, 0), volume.shape))


def _array(path: Path, array: np.ndarray, version: int = 3, **how) -> None:
    made = zarr.create_array(str(path), shape=array.shape, dtype=array.dtype, zarr_format=version, **how)
    made[...] = array


def _image(path: Path, version: str, multiscale: dict, arrays: dict[str, np.ndarray]) -> Path:
    new = version == "0.5"
    attributes = {"ome": {"version": version, "multiscales": [multiscale]}} if new else {"multiscales": [multiscale]}
    zarr.create_group(str(path), zarr_format=3 if new else 2, attributes=attributes)
    for name, array in arrays.items():
        _array(path / name, array, 3 if new else 2)
    return path


def _multiscale(axes: str = "zyx", unit: str | None = "micrometer", scale=(2.0, 1.0, 0.5), path: str = "0") -> dict:
    facts = {} if unit is None else {"unit": unit}
    return {
        "axes": [{"name": a, "type": "space", **facts} for a in axes],
        "datasets": [{"path": path, "coordinateTransformations": [{"type": "scale", "scale": list(scale)}]}],
    }


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["<u1", "<u2", ">u2", ">i2", "<f4", ">f4", "<f8", ">f8"])
def test_every_type_byte_order_and_format_is_read(tmp_path, dtype, version):
    stored = dtype if version == 2 else np.dtype(dtype).newbyteorder("=")
    how = {} if version == 2 or dtype == "<u1" else {"serializer": zarr.codecs.BytesCodec(endian="big")}
    _array(tmp_path / "v.zarr", _numbered(dtype=stored), version, chunks=(2, 3, 4), **how)
    volume = open_volume(tmp_path / "v.zarr")
    assert volume.dtype == np.dtype(dtype).newbyteorder("=")
    assert _whole(volume).dtype.isnative
    np.testing.assert_array_equal(_whole(volume), _numbered())
    read = volume.read(Region((1, 2, 3), (3, 2, 2)))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, _numbered()[1:4, 2:4, 3:5])
    assert volume.voxel_size_um is None


def test_sharded_arrays_are_read(tmp_path):
    _array(tmp_path / "v.zarr", _numbered((8, 8, 8)), chunks=(2, 4, 4), shards=(4, 8, 8))
    volume = open_volume(tmp_path / "v.zarr")
    assert volume.chunk_zyx[0] == 2
    np.testing.assert_array_equal(_whole(volume), _numbered((8, 8, 8)))


def test_a_region_is_read_from_its_own_chunks_only(tmp_path, monkeypatch):
    _array(tmp_path / "v.zarr", _numbered((8, 8, 8)), chunks=(2, 4, 4), shards=(4, 8, 8), compressors=None)
    reads: list[tuple[str, int]] = []
    get = LocalStore.get

    async def counted(self, key, prototype, byte_range=None):
        value = await get(self, key, prototype, byte_range)
        if value is not None and "json" not in key:
            reads.append((key, len(value)))
        return value

    volume = open_volume(tmp_path / "v.zarr")
    monkeypatch.setattr(LocalStore, "get", counted)
    read = volume.read(Region((2, 4, 1), (2, 3, 2)))
    np.testing.assert_array_equal(read, _numbered((8, 8, 8))[2:4, 4:7, 1:3])
    # The index of one shard, an offset and a length for each of 8 chunks and a checksum, and one chunk.
    assert sorted(reads) == [("c/0/0/0", 2 * 4 * 4 * 4), ("c/0/0/0", 8 * 16 + 4)]


def test_an_array_of_20_terabytes_is_opened_and_read_in_part(tmp_path):
    shape = (20000, 16384, 16384)
    zarr.create_array(str(tmp_path / "v.zarr"), shape=shape, dtype="f4", chunks=(16, 128, 128), shards=(16, 1024, 1024))
    volume = open_volume(tmp_path / "v.zarr")
    assert volume.shape == shape
    tracemalloc.start()
    assert not volume.read(Region((19990, 16000, 3), (8, 300, 300))).any()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**26


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("micrometer", (2.0, 1.0, 0.5)),
        ("nanometer", (0.002, 0.001, None)),
        ("millimeter", (2000.0, 1000.0, 500.0)),
        (None, None),
        ("parsec", None),
    ],
)
def test_the_finest_level_of_an_ome_image_is_read_with_its_voxel_size(tmp_path, version, unit, expected):
    levels = {"full": _numbered(), "half": _numbered((2, 3, 3))}
    multiscale = _multiscale(unit=unit, path="full")
    multiscale["datasets"].append({"path": "half", "coordinateTransformations": []})
    volume = open_volume(_image(tmp_path / "v.zarr", version, multiscale, levels))
    assert volume.name.endswith("v.zarr::full")
    # 0.5 nm is below what any voxel could measure, and one axis alone is of no use.
    assert volume.voxel_size_um == (None if expected is None or None in expected else pytest.approx(expected))
    np.testing.assert_array_equal(_whole(volume), _numbered())


def test_a_scale_of_the_whole_image_multiplies_that_of_the_level(tmp_path):
    multiscale = _multiscale() | {"coordinateTransformations": [{"type": "scale", "scale": [10.0, 10.0, 10.0]}]}
    volume = open_volume(_image(tmp_path / "v.zarr", "0.5", multiscale, {"0": _numbered()}))
    assert volume.voxel_size_um == (20.0, 10.0, 5.0)


def test_an_array_inside_of_a_store_may_be_named(tmp_path):
    zarr.create_group(str(tmp_path / "v.zarr"))
    _array(tmp_path / "v.zarr/one", _numbered())
    assert open_volume(tmp_path / "v.zarr").name.endswith("v.zarr::one")
    _array(tmp_path / "v.zarr/two", _numbered((2, 3, 4), "u2"))
    np.testing.assert_array_equal(_whole(open_volume(f"{tmp_path}/v.zarr::/two")), _numbered((2, 3, 4)))
    with pytest.raises(VolumeError, match=r"2 arrays of three axes.*one \(4, 5, 6\) float32, two \(2, 3, 4\) uint16"):
        open_volume(tmp_path / "v.zarr")


def test_a_store_needs_no_suffix(tmp_path):
    _array(tmp_path / "store", _numbered())
    assert open_volume(tmp_path / "store").shape == (4, 5, 6)


@pytest.mark.parametrize("inner", ["../other.zarr", "a/../../other.zarr", "nope"])
def test_a_place_outside_of_the_store_is_refused(tmp_path, inner):
    _array(tmp_path / "other.zarr", _numbered())
    zarr.create_group(str(tmp_path / "v.zarr"))
    with pytest.raises(VolumeError, match=r"without \. or \.\.|is no Zarr array or group"):
        open_volume(f"{tmp_path}/v.zarr::{inner}")


@pytest.mark.parametrize("path", ["../other.zarr", "/etc", "..\\other.zarr"])
def test_metadata_cannot_lead_out_of_the_store(tmp_path, path):
    _array(tmp_path / "other.zarr", _numbered())
    _image(tmp_path / "v.zarr", "0.5", _multiscale(path=path), {"0": _numbered()})
    with pytest.raises(VolumeError, match="points to"):
        open_volume(tmp_path / "v.zarr")


@pytest.mark.parametrize(
    "spoil",
    [{"compressor": {"id": "pickle"}}, {"filters": [{"id": "delta", "dtype": "<f4"}, {"id": "pickle"}]}],
    ids=str,
)
def test_a_store_that_would_be_unpickled_is_refused(tmp_path, spoil):
    _array(tmp_path / "v.zarr", _numbered(), 2)
    metadata = tmp_path / "v.zarr/.zarray"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | spoil))
    # zarr knows no numeric type with an object codec; should that ever change, this is where it shows.
    with pytest.raises(VolumeError, match="pickle"):
        open_volume(tmp_path / "v.zarr")


@pytest.mark.parametrize(
    ("axes", "shape"), [("xyz", (4, 5, 6)), ("zyxc", (4, 5, 6, 1)), ("tczxy", (1, 1, 4, 5, 6)), ("yx", (5, 6))]
)
def test_axes_other_than_z_y_x_are_refused_by_name(tmp_path, axes, shape):
    _image(tmp_path / "v.zarr", "0.5", _multiscale(axes, scale=[1.0] * len(axes)), {"0": _numbered(shape)})
    with pytest.raises(VolumeError, match=f"has the axes {', '.join(axes)}; expected z, y, x"):
        open_volume(tmp_path / "v.zarr")


@pytest.mark.parametrize(("axes", "before"), [("czyx", (1,)), ("tczyx", (1, 1))])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_one_channel_and_one_time_are_no_hindrance(tmp_path, axes, before, version):
    values = _numbered((4, 5, 6))
    scale = [1.0] * len(before) + [3.0, 2.0, 2.0]
    _image(tmp_path / "v.zarr", version, _multiscale(axes, scale=scale), {"0": values.reshape(*before, 4, 5, 6)})
    volume = open_volume(tmp_path / "v.zarr")
    assert volume.shape == (4, 5, 6)
    assert volume.voxel_size_um == (3.0, 2.0, 2.0)
    np.testing.assert_array_equal(volume.read(Region((1, 0, 2), (2, 5, 3))), values[1:3, :, 2:5])


def test_what_is_broken_deeper_in_a_group_is_no_hindrance(tmp_path):
    group = zarr.open_group(tmp_path / "v.zarr", mode="w")
    group.create_array("vol", data=_numbered((4, 5, 6)))
    group.create_group("inner").create_array("bad", data=_numbered((4, 5, 6)))
    (tmp_path / "v.zarr/inner/bad/zarr.json").write_text('{"zarr_format": 3, "node_type": "arr')
    assert open_volume(tmp_path / "v.zarr").shape == (4, 5, 6)
    group.create_array("other", data=_numbered((4, 5, 6)))
    with pytest.raises(
        VolumeError, match=r"2 arrays of three axes.*other \(4, 5, 6\) float32, vol \(4, 5, 6\) float32"
    ):
        open_volume(tmp_path / "v.zarr")


def test_arrays_deeper_in_a_group_are_told(tmp_path):
    group = zarr.open_group(tmp_path / "v.zarr", mode="w")
    group.create_group("inner").create_array("vol", data=_numbered((4, 5, 6)))
    with pytest.raises(VolumeError, match=r"0 arrays of three axes.*inner/vol \(4, 5, 6\) float32"):
        open_volume(tmp_path / "v.zarr")
    assert open_volume(f"{tmp_path}/v.zarr::inner/vol").shape == (4, 5, 6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 3)), r"shape \(3, 3\)"),
        (np.zeros((1, 2, 3, 3, 3)), r"shape \(1, 2, 3, 3, 3\)"),
        (np.zeros((2, 3, 3), complex), "type complex128"),
        (np.zeros((2, 3, 3), "u4"), "type uint32"),
    ],
)
def test_what_is_no_grey_volume_is_refused(tmp_path, array, message):
    _array(tmp_path / "v.zarr", array)
    with pytest.raises(VolumeError, match=message):
        open_volume(tmp_path / "v.zarr")


def test_damage_is_named(tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(VolumeError, match=r"empty\.zarr is no Zarr array or group"):
        open_volume(tmp_path / "empty.zarr")
    _array(tmp_path / "v.zarr", _numbered(), chunks=(2, 5, 6))
    volume = open_volume(tmp_path / "v.zarr")
    (tmp_path / "v.zarr/c/1/0/0").write_bytes(b"rubbish")
    with pytest.raises(VolumeError, match=r"v\.zarr cannot be read as Zarr"):
        volume.read(Region((2, 0, 0), (1, 5, 6)))
    np.testing.assert_array_equal(volume.read(Region((0, 0, 0), (2, 5, 6))), _numbered()[:2])
    (tmp_path / "v.zarr/zarr.json").write_text("{")
    with pytest.raises(VolumeError, match=r"v\.zarr cannot be read as Zarr"):
        open_volume(tmp_path / "v.zarr")


def test_a_volume_survives_pickling(tmp_path):
    _image(tmp_path / "v.zarr", "0.4", _multiscale(), {"0": _numbered()})
    copy = pickle.loads(pickle.dumps(open_volume(tmp_path / "v.zarr")))
    np.testing.assert_array_equal(_whole(copy), _numbered())
    assert copy.voxel_size_um == (2.0, 1.0, 0.5)
