"""Volumes in one TIFF file: dialects, types, damage, partial reads."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tifffile

from denoise.errors import VolumeError
from denoise.tiles import Region
from denoise.volumes import open_volume


def _numbered(shape=(5, 6, 7), dtype="f4") -> np.ndarray:
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


def _whole(volume) -> np.ndarray:
    return volume.read_stored(Region((0, 0, 0), volume.shape))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8"])
def test_every_type_and_byte_order_is_read(tmp_path, dtype, order):
    array = _numbered(dtype=dtype)
    tifffile.imwrite(tmp_path / "v.tif", array, byteorder=order, photometric="minisblack")
    volume = open_volume(tmp_path / "v.tif")
    assert volume.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(_whole(volume), array)
    read = volume.read(Region((1, 2, 3), (3, 2, 4)))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, array[1:4, 2:4, 3:7])


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"bigtiff": True},
        {"metadata": None},
        {"imagej": True},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"imagej": True, "metadata": {"axes": "TYX"}},
        {"ome": True, "metadata": {"axes": "ZYX"}},
        {"ome": True, "bigtiff": True, "compression": "zlib", "metadata": {"axes": "ZYX"}},
        {"compression": "zlib", "predictor": True},
        {"tile": (16, 16), "compression": "lzw"},
        {"truncate": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_every_dialect_is_read(tmp_path, how, depth):
    array = _numbered((depth, 40, 30))
    tifffile.imwrite(tmp_path / "V.TIFF", array, photometric="minisblack", **how)
    volume = open_volume(tmp_path / "V.TIFF")
    assert volume.shape == array.shape
    assert volume.slice_numbers == range(depth)
    np.testing.assert_array_equal(_whole(volume), array)
    region = Region((depth - 1, 17, 3), (1, 20, 20))
    np.testing.assert_array_equal(volume.read(region), array[region.slices])


def test_pages_that_were_appended_one_by_one_are_read(tmp_path):
    array = _numbered((12, 6, 7), "u2")
    for image in array:
        tifffile.imwrite(tmp_path / "v.tif", image, append=True, compression="zlib")
    np.testing.assert_array_equal(_whole(open_volume(tmp_path / "v.tif")), array)


def _imagej_stack_with_one_header(path, array, cut: int = 0) -> None:
    """As ImageJ writes stacks over 4 GB: one page, all the images behind it."""
    first = f"ImageJ=1.53t\nimages={len(array)}\nslices={len(array)}\nunit=um\nspacing=2.0\n"
    big = array.astype(array.dtype.newbyteorder(">"))
    tifffile.imwrite(path, big[0], byteorder=">", description=first, metadata=None, resolution=(2, 2), resolutionunit=1)
    with path.open("ab") as file:
        file.write(big[1:].tobytes()[: -cut or None])


def test_an_imagej_stack_with_one_header_is_read_in_part(tmp_path):
    array = _numbered((6, 5, 4), "u2")
    _imagej_stack_with_one_header(tmp_path / "v.tif", array)
    volume = open_volume(tmp_path / "v.tif")
    assert volume.shape == (6, 5, 4)
    assert volume.voxel_size_um == pytest.approx((2.0, 0.5, 0.5))
    np.testing.assert_array_equal(_whole(volume), array)
    np.testing.assert_array_equal(volume.read(Region((3, 1, 2), (2, 3, 2))), array[3:5, 1:4, 2:4])


def test_an_imagej_stack_with_one_header_that_was_cut_is_refused(tmp_path):
    _imagej_stack_with_one_header(tmp_path / "v.tif", _numbered((6, 5, 4), "u2"), cut=3)
    with pytest.raises(VolumeError, match="says that it holds 6 images but has 1 pages"):
        open_volume(tmp_path / "v.tif")


def test_a_flat_image_is_a_volume_of_one_slice(tmp_path):
    tifffile.imwrite(tmp_path / "v.tif", _numbered()[0])
    volume = open_volume(tmp_path / "v.tif")
    assert volume.shape == (1, 6, 7)
    np.testing.assert_array_equal(_whole(volume), _numbered()[:1])


@pytest.mark.parametrize(
    "how", [{}, {"metadata": None}, {"compression": "zlib"}, {"imagej": True}, {"ome": True}], ids=str
)
@pytest.mark.parametrize("part", [0.2, 0.5, 0.8, 0.97])
def test_a_file_that_was_cut_short_is_named_and_never_a_shorter_volume(tmp_path, how, part, rng):
    path = tmp_path / "v.tif"
    array = rng.normal(size=(5, 16, 17)).astype("f4")
    tifffile.imwrite(path, array, photometric="minisblack", **how)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    if part > 0.95 and how.get("ome"):
        # Only the description, which comes last, was hit: all the voxels are there.
        np.testing.assert_array_equal(_whole(open_volume(path)), array)
        return
    with pytest.raises(VolumeError, match=r"v\.tif.*(cut short|damaged)"):
        _whole(open_volume(path))


@pytest.mark.parametrize(
    ("array", "how", "message"),
    [
        (np.zeros((5, 6, 3), "u1"), {"photometric": "rgb"}, r"image of shape \(5, 6, 3\)"),
        (np.zeros((4, 5, 6, 3), "u1"), {"photometric": "rgb"}, r"image of shape \(5, 6, 3\)"),
        (np.zeros((2, 3, 5, 6), "f4"), {}, "more than three axes"),
        (np.zeros((2, 3, 5, 6), "f4"), {"imagej": True, "metadata": {"axes": "ZCYX"}}, "more than three axes"),
        (np.zeros((2, 3, 5, 6), "f4"), {"ome": True, "metadata": {"axes": "TZYX"}}, "more than three axes"),
        (np.zeros((4, 5, 6), "c8"), {}, "type complex64"),
        (np.zeros((4, 5, 6), "i4"), {}, "type int32"),
        (np.zeros((4, 5, 6), "?"), {}, "type bool"),
    ],
)
def test_what_is_no_grey_volume_is_refused(tmp_path, array, how, message):
    tifffile.imwrite(tmp_path / "v.tif", array, **({"photometric": "minisblack"} | how))
    with pytest.raises(VolumeError, match=message):
        open_volume(tmp_path / "v.tif")


def test_a_thumbnail_behind_the_volume_is_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "v.tif") as tiff:
        tiff.write(_numbered(), metadata=None)
        tiff.write(np.zeros((3, 3), "f4"), metadata=None)
    with pytest.raises(VolumeError, match=r"the first is \(6, 7\) of float32, the last \(3, 3\)"):
        open_volume(tmp_path / "v.tif")


def test_an_odd_page_in_the_middle_is_named_with_its_slice(tmp_path):
    with tifffile.TiffWriter(tmp_path / "v.tif") as tiff:
        for k in range(5):
            tiff.write(np.zeros((6, 8 if k == 3 else 7), "f4"), metadata=None)
    volume = open_volume(tmp_path / "v.tif")
    with pytest.raises(VolumeError, match=r"v\.tif \(slice 3\) has shape \(6, 8\)"):
        _whole(volume)


def test_ome_metadata_that_points_to_other_files_is_not_followed(tmp_path):
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYZCT" Type="float" SizeX="7" SizeY="6" SizeZ="2" SizeC="1" SizeT="1">'
        '<TiffData FirstZ="1"><UUID FileName="../secret.tif">urn:uuid:0</UUID></TiffData></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "v.tif", _numbered()[0], description=xml, metadata=None)
    with pytest.raises(VolumeError, match=r"says that it holds 2 images.*other files, which are not followed"):
        open_volume(tmp_path / "v.tif")


def test_a_chain_of_pages_that_bites_its_tail_ends(tmp_path):
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, _numbered()[0], metadata=None)
    content = bytearray(path.read_bytes())
    n_tags = int.from_bytes(content[8:10], "little")
    content[10 + 12 * n_tags : 14 + 12 * n_tags] = (8).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(VolumeError, match="damaged or cut short: after 1 pages"):
        open_volume(path)


@pytest.mark.parametrize("content", [b"", b"II*\0", b"II*\0\x08\0\0\0", b"x" * 500])
def test_rubbish_is_named(tmp_path, content):
    (tmp_path / "v.tif").write_bytes(content)
    with pytest.raises(VolumeError, match=r"v\.tif is (not a TIFF, )?damaged or cut short"):
        open_volume(tmp_path / "v.tif")


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.6, "PhysicalSizeZ": 0.7}, (0.7, 0.6, 0.5)),
        ({"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.6}, (0.6, 0.6, 0.5)),
        (
            {f"PhysicalSize{a}": 650 for a in "XYZ"} | {f"PhysicalSize{a}Unit": "nm" for a in "XYZ"},
            (0.65, 0.65, 0.65),
        ),
        ({"PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel", "PhysicalSizeY": 1, "PhysicalSizeYUnit": "pixel"}, None),
        ({}, None),
    ],
)
def test_the_voxel_size_of_ome_is_read(tmp_path, sizes, expected):
    tifffile.imwrite(tmp_path / "v.tif", _numbered(), ome=True, metadata={"axes": "ZYX"} | sizes)
    found = open_volume(tmp_path / "v.tif").voxel_size_um
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_file_survives_pickling(tmp_path):
    tifffile.imwrite(tmp_path / "v.tif", _numbered(), compression="zlib")
    np.testing.assert_array_equal(_whole(pickle.loads(pickle.dumps(open_volume(tmp_path / "v.tif")))), _numbered())


def test_a_file_that_vanished_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "v.tif", _numbered())
    volume = open_volume(tmp_path / "v.tif")
    (tmp_path / "v.tif").unlink()
    with pytest.raises(VolumeError, match=r"v\.tif .*does not exist"):
        _whole(volume)
