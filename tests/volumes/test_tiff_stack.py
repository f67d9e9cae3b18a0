"""Folders of TIFF slices: order, numbers, damage, partial reads."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from denoise.errors import VolumeError
from denoise.tiles import Region
from denoise.volumes import SplitSet, open_volume


def _write(folder: Path, array: np.ndarray, names: list[str] | None = None, **how) -> Path:
    folder.mkdir()
    for k, image in enumerate(array):
        tifffile.imwrite(folder / (names[k] if names else f"recon_{k:05d}.tif"), image, **how)
    return folder


def _whole(volume) -> np.ndarray:
    return volume.read_stored(Region((0, 0, 0), volume.shape))


def _numbered(shape=(4, 5, 6), dtype="f4") -> np.ndarray:
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8"])
def test_every_type_and_byte_order_is_read(tmp_path, dtype, order):
    array = _numbered(dtype=dtype)
    volume = open_volume(_write(tmp_path / "stack", array, byteorder=order))
    assert volume.shape == (4, 5, 6)
    assert volume.dtype == np.dtype(dtype)
    assert _whole(volume).dtype == np.dtype(dtype)
    np.testing.assert_array_equal(_whole(volume), array)
    read = volume.read(Region((1, 1, 2), (3, 3, 4)))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, array[1:4, 1:4, 2:6])


@pytest.mark.parametrize(
    "how",
    [
        {"compression": "zlib"},
        {"compression": "zlib", "rowsperstrip": 7, "predictor": True},
        {"compression": "lzw", "tile": (16, 32)},
        {"tile": (16, 16)},
        {"rowsperstrip": 7},
        {"compression": "zstd", "tile": (32, 16), "byteorder": ">"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_compressed_and_tiled_slices_are_read_by_region(tmp_path, how, dtype, rng):
    array = rng.integers(0, 1000, (2, 45, 70)).astype(dtype)
    volume = open_volume(_write(tmp_path / "stack", array, **how))
    for start, shape in [((0, 0, 0), (2, 45, 70)), ((1, 44, 69), (1, 1, 1)), ((0, 13, 15), (2, 21, 33))]:
        region = Region(start, shape)
        np.testing.assert_array_equal(volume.read_stored(region), array[region.slices])


def test_only_the_strips_that_a_region_touches_are_decoded(tmp_path):
    array = _numbered((1, 40, 30), "u2")
    folder = _write(tmp_path / "stack", array, compression="zlib", rowsperstrip=10)
    path = folder / "recon_00000.tif"
    with tifffile.TiffFile(path) as tif:
        offset, size = tif.pages.first.dataoffsets[3], tif.pages.first.databytecounts[3]
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = b"\xff" * size
    path.write_bytes(content)
    volume = open_volume(folder)
    np.testing.assert_array_equal(volume.read_stored(Region((0, 5, 0), (1, 25, 30))), array[:, 5:30])
    with pytest.raises(VolumeError, match=r"recon_00000\.tif \(slice 0\) is not a TIFF, damaged or cut short"):
        volume.read(Region((0, 5, 0), (1, 26, 30)))


def test_slices_are_ordered_naturally(tmp_path):
    names = [f"slice_{k}.tif" for k in range(12)]
    volume = open_volume(_write(tmp_path / "stack", _numbered((12, 2, 2)), names))
    assert volume.slice_numbers == range(12)
    np.testing.assert_array_equal(_whole(volume), _numbered((12, 2, 2)))


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["recon_00010.tif", "recon_00011.tif"], range(10, 12)),
        (["RECON_8.TIF", "recon_9.tiff", "Recon_10.Tiff"], range(8, 11)),
        (["r_2.tif", "r_4.tif", "r_6.tif"], range(2, 8, 2)),
        (["scan2_0.65um_7.tif"], range(7, 8)),
        (["10²0.tif", "10²1.tif", "³_2.tif"], range(3)),
        (["a.tif", "b.tif", "c.tif"], range(3)),
        (["0099.tif", "0100.tif"], range(99, 101)),
        (["rec_0009_0.65um.tif", "rec_0010_0.65um.tif"], range(9, 11)),
        (["r_0_v2.tif", "r_1_v2.tif"], range(2)),
        (["2024-05-01_8.tif", "2024-05-01_9.tif", "2024-05-01_10.tif"], range(8, 11)),
        (["t1_z5.tif", "t2_z6.tif"], range(5, 7)),
    ],
)
def test_slice_numbers_come_from_the_names(tmp_path, names, numbers):
    volume = open_volume(_write(tmp_path / "stack", _numbered((len(names), 2, 3)), names))
    assert volume.slice_numbers == numbers
    np.testing.assert_array_equal(_whole(volume), _numbered((len(names), 2, 3)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["r_0.tif", "r_1.tif", "r_3.tif", "r_4.tif"], r"slice 2 is missing in .*between r_1\.tif and r_3\.tif"),
        (["r_1.tif", "r_01.tif"], r"are slice 1: r_0?1\.tif and r_0?1\.tif"),
        (["a_1.tif", "b_1.tif"], r"are slice 1: a_1\.tif and b_1\.tif"),
        (["a_0_v2.tif", "b_1_v2.tif"], r"are slice 2: a_0_v2\.tif and b_1_v2\.tif"),
        (["t1_z5.tif", "t2_z5.tif", "t2_z6.tif"], r"are slice 5: t1_z5\.tif and t2_z5\.tif"),
        (["a_2.tif", "b_1.tif"], r"go backwards, from a_2\.tif to b_1\.tif"),
        (["mask.tif", "r_0.tif"], r"mask\.tif has no slice number"),
    ],
)
def test_numbers_that_make_no_sequence_are_refused_with_the_names(tmp_path, names, message):
    folder = _write(tmp_path / "stack", _numbered((len(names), 2, 2)), names)
    with pytest.raises(VolumeError, match=message):
        open_volume(folder)


def test_foreign_and_hidden_files_and_folders_are_ignored(tmp_path):
    folder = _write(tmp_path / "stack", _numbered())
    for name in ("notes.txt", ".recon_00007.tif", "._recon_00001.tif", "recon_00009.tif.txt"):
        (folder / name).write_text("not an image")
    (folder / "recon_00020.tif").mkdir()
    assert open_volume(folder).slice_numbers == range(4)


def test_a_symlinked_slice_is_a_slice(tmp_path):
    folder = _write(tmp_path / "stack", _numbered())
    (folder / "recon_00001.tif").rename(tmp_path / "elsewhere")
    (folder / "recon_00001.tif").symlink_to(tmp_path / "elsewhere")
    np.testing.assert_array_equal(_whole(open_volume(folder)), _numbered())


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(VolumeError, match=r"holds no \.tif or \.tiff file"):
        open_volume(tmp_path)


def test_a_single_voxel_is_a_volume(tmp_path):
    volume = open_volume(_write(tmp_path / "stack", np.full((1, 1, 1), 3.5, "f4")))
    assert volume.shape == (1, 1, 1)
    assert volume.read(Region((0, 0, 0), (1, 1, 1)))[0, 0, 0] == 3.5


def test_opening_reads_no_header_but_the_first_and_a_bad_slice_is_named_when_it_is_read(tmp_path):
    folder = _write(tmp_path / "stack", _numbered())
    (folder / "recon_00002.tif").write_bytes(b"no TIFF at all")
    volume = open_volume(folder)
    assert volume.read(Region((0, 0, 0), (2, 5, 6))).shape == (2, 5, 6)
    with pytest.raises(VolumeError, match=r"recon_00002\.tif \(slice 2\) is not a TIFF"):
        volume.read(Region((0, 0, 0), (4, 5, 6)))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut, r"recon_00003\.tif \(slice 3\) is cut short: expected pixels up to byte \d+, but the file has \d+"),
        (lambda p: p.write_bytes(b""), r"recon_00003\.tif \(slice 3\) is not a TIFF, damaged or cut short"),
        (lambda p: p.unlink(), r"recon_00003\.tif \(slice 3\) does not exist \(any more\)"),
        (
            lambda p: tifffile.imwrite(p, np.zeros((5, 7), "f4")),
            r"\(slice 3\) has shape \(5, 7\) and type float32, but",
        ),
        (lambda p: tifffile.imwrite(p, np.zeros((5, 6), "u2")), r"\(slice 3\) has shape \(5, 6\) and type uint16, but"),
        (lambda p: tifffile.imwrite(p, np.zeros((2, 5, 6), "f4"), metadata=None), r"\(slice 3\) holds 2 images"),
    ],
)
def test_a_later_slice_that_was_spoilt_is_named(tmp_path, spoil, message):
    folder = _write(tmp_path / "stack", _numbered())
    volume = open_volume(folder)
    spoil(folder / "recon_00003.tif")
    with pytest.raises(VolumeError, match=message):
        volume.read(Region((2, 0, 0), (2, 5, 6)))
    with pytest.raises(VolumeError, match=message):
        volume.require_alike()


@pytest.mark.parametrize("how", [{"compression": "zlib"}, {"tile": (16, 16)}, {"rowsperstrip": 7}], ids=str)
def test_a_slice_of_strips_or_tiles_that_is_cut_short_is_found_without_reading_it(tmp_path, how):
    folder = _write(tmp_path / "stack", _numbered((4, 50, 60)), **how)
    volume = open_volume(folder)
    volume.require_alike()
    _cut(folder / "recon_00003.tif")
    with pytest.raises(VolumeError, match=r"recon_00003\.tif \(slice 3\) is cut short: expected pixels up to byte \d+"):
        volume.require_alike()


@pytest.mark.parametrize(
    ("image", "how", "message"),
    [
        (np.zeros((5, 6, 3), "u1"), {"photometric": "rgb"}, r"image of shape \(5, 6, 3\)"),
        (np.zeros((5, 6), "c8"), {}, "type complex64"),
        (np.zeros((5, 6), "u4"), {}, "type uint32"),
        (np.zeros((5, 6), "f2"), {}, "type float16"),
    ],
)
def test_colour_and_other_types_are_refused(tmp_path, image, how, message):
    folder = _write(tmp_path / "stack", image[None], **how)
    with pytest.raises(VolumeError, match=message):
        open_volume(folder)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"resolution": (1e4 / 0.65, 1e4 / 0.65), "resolutionunit": "CENTIMETER"}, (0.65, 0.65, 0.65)),
        ({"resolution": (25400 / 2.0, 25400 / 3.0), "resolutionunit": "INCH"}, (3.0, 3.0, 2.0)),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"resolution": (28.35, 28.35), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (1, 1), "resolutionunit": "CENTIMETER"}, None),
        ({}, None),
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "um", "spacing": 1.5}}, (1.5, 0.25, 0.5)),
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "um"}}, (0.25, 0.25, 0.5)),
        ({"imagej": True, "resolution": (2000, 2000), "metadata": {"unit": "mm", "spacing": -1e-3}}, (1.0, 0.5, 0.5)),
        ({"imagej": True, "resolution": (1, 1), "metadata": {"unit": "pixel"}}, None),
    ],
)
def test_the_voxel_size_is_read_where_it_is_plausible(tmp_path, how, expected):
    volume = open_volume(_write(tmp_path / "stack", _numbered(), **how))
    assert volume.voxel_size_um == (None if expected is None else pytest.approx(expected, rel=1e-6))


def test_the_same_folder_twice_is_refused_whatever_it_is_called(tmp_path, monkeypatch):
    _write(tmp_path / "stack", _numbered())
    (tmp_path / "link").symlink_to("stack")
    monkeypatch.chdir(tmp_path)
    for other in ("stack", "./stack/", "link", tmp_path / "stack"):
        with pytest.raises(VolumeError, match="splits 0 and 1 are the same volume"):
            SplitSet.of([open_volume("stack"), open_volume(other)])


def test_a_stack_survives_pickling_and_a_change_of_folder(tmp_path, monkeypatch):
    _write(tmp_path / "stack", _numbered())
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(open_volume("stack"))
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(_whole(pickle.loads(content)), _numbered())


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    array = np.random.default_rng(1).normal(size=(7, 23, 31)).astype("f4")
    return array, open_volume(_write(tmp_path_factory.mktemp("stack") / "s", array, compression="zlib", rowsperstrip=5))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_region_equals_the_whole_array_sliced(stack, data):
    array, volume = stack
    start = tuple(data.draw(st.integers(0, n - 1)) for n in array.shape)
    shape = tuple(data.draw(st.integers(1, n - a)) for n, a in zip(array.shape, start, strict=True))
    region = Region(start, shape)
    np.testing.assert_array_equal(volume.read(region), array[region.slices])
