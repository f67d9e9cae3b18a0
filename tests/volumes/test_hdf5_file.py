"""HDF5 datasets: finding them, refusing whatever leads out of the file, partial reads."""

from __future__ import annotations

import pickle

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoise.errors import VolumeError
from denoise.tiles import Region
from denoise.volumes import SplitSet, open_volume


def _numbered(shape=(4, 5, 6), dtype="f4") -> np.ndarray:
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


def _whole(volume) -> np.ndarray:
    return volume.read_stored(Region((0, 0, 0), volume.shape))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8"])
def test_every_type_and_byte_order_is_read(tmp_path, dtype, order):
    array = _numbered(dtype=dtype)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("exchange/data", data=array.astype(order + dtype))
    volume = open_volume(f"{tmp_path}/v.h5::/exchange/data")
    assert volume.dtype == np.dtype(dtype)
    assert _whole(volume).dtype.isnative
    np.testing.assert_array_equal(_whole(volume), array)
    read = volume.read(Region((1, 2, 3), (3, 2, 2)))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, array[1:4, 2:4, 3:5])


@pytest.mark.parametrize(
    "how", [{"chunks": (2, 3, 4)}, {"compression": "gzip"}, dict(hdf5plugin.Bitshuffle()), dict(hdf5plugin.Blosc())]
)
def test_chunked_and_compressed_datasets_are_read(tmp_path, how):
    with h5py.File(tmp_path / "v.hdf5", "w") as file:
        file.create_dataset("v", data=_numbered(), **how)
    np.testing.assert_array_equal(_whole(open_volume(tmp_path / "v.hdf5")), _numbered())


def test_axes_of_length_one_before_the_volume_are_no_hindrance(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("entry/data", data=_numbered()[None], chunks=(1, 2, 5, 6))
    volume = open_volume(tmp_path / "v.h5")
    assert (volume.shape, volume.chunk_zyx) == ((4, 5, 6), (2, 5, 6))
    np.testing.assert_array_equal(volume.read(Region((1, 2, 3), (3, 2, 2))), _numbered()[1:4, 2:4, 3:5])


def test_a_volume_comes_before_one_with_an_axis_of_length_one(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["a/one_of_many"], file["b/volume"] = _numbered()[None], _numbered()
    assert open_volume(tmp_path / "v.h5").name.endswith("::/b/volume")


def test_candidates_are_not_buried_under_numbers(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        for k in range(40):
            file[f"defaults/setting_{k}"] = float(k)
        file["exchange/one"] = file["exchange/other"] = _numbered()
    with pytest.raises(VolumeError, match=r"/exchange/one.*/exchange/other") as refused:
        open_volume(tmp_path / "v.h5")
    assert "setting" not in str(refused.value)


def test_where_no_dataset_will_do_all_are_told(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["exchange/data"] = np.zeros((2, 4, 5, 6), np.float32)
    with pytest.raises(VolumeError, match=r"0 datasets with three axes.*/exchange/data \(2, 4, 5, 6\) float32"):
        open_volume(tmp_path / "v.h5")


@pytest.mark.parametrize("suffix", [".h5", ".H5", ".hdf5", ".hdf", ".nxs"])
def test_the_only_candidate_needs_no_name(tmp_path, suffix):
    with h5py.File(tmp_path / f"v{suffix}", "w") as file:
        file["entry/tomo/volume"] = _numbered()
        file["entry/angles"] = np.arange(5)
        file["entry/label"] = "tooth"
        file["link"] = h5py.SoftLink("/entry/tomo/volume")
    volume = open_volume(tmp_path / f"v{suffix}")
    assert volume.name == f"{tmp_path / f'v{suffix}'}::/entry/tomo/volume"


def test_several_candidates_are_listed_with_their_shapes(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["a"], file["b/c"], file["flat"] = _numbered(), _numbered((2, 3, 4), "u2"), np.zeros((3, 3))
    with pytest.raises(
        VolumeError, match=r"2 datasets with three axes.*/a \(4, 5, 6\) float32, /b/c \(2, 3, 4\) uint16"
    ):
        open_volume(tmp_path / "v.h5")


def test_a_file_without_a_candidate_says_so(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["flat"] = np.zeros((3, 3))
    with pytest.raises(VolumeError, match="0 datasets with three axes"):
        open_volume(tmp_path / "v.h5")


@pytest.mark.parametrize("place", ["/nope", "/data/nope", "/../data", "/data/../data", "/./data/.", "group"])
def test_a_name_that_leads_nowhere_is_answered_with_what_is_there(tmp_path, place):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["data"] = _numbered()
        file.create_group("group")
    with pytest.raises(VolumeError, match=r"/data \(4, 5, 6\) float32"):
        open_volume(f"{tmp_path}/v.h5::{place}")


@pytest.mark.parametrize("place", ["/soft", "/folder/relative", "/alias/data", "entry/data", "//entry//data/"])
def test_links_inside_the_file_are_followed_to_one_name(tmp_path, place):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["entry/data"] = _numbered()
        file["soft"] = h5py.SoftLink("/entry/data")
        file["folder/inner/data"] = h5py.SoftLink("/soft")
        file["folder/relative"] = h5py.SoftLink("inner/data")
        file["alias"] = h5py.SoftLink("entry")
    volume = open_volume(f"{tmp_path}/v.h5::{place}")
    assert volume.name.endswith("v.h5::/entry/data")
    np.testing.assert_array_equal(_whole(volume), _numbered())
    with pytest.raises(VolumeError, match="are the same volume"):
        SplitSet.of([volume, open_volume(f"{tmp_path}/v.h5")])


def test_links_that_go_round_in_circles_end(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
    with pytest.raises(VolumeError, match="round in circles"):
        open_volume(f"{tmp_path}/v.h5::/a")


@pytest.fixture
def reaching_out(tmp_path):
    """A file that tries, in every way that HDF5 knows, to have another file read."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = _numbered()
    _numbered().tofile(tmp_path / "secret.raw")
    layout = h5py.VirtualLayout((4, 5, 6), "f4")
    layout[...] = h5py.VirtualSource(tmp_path / "secret.h5", "data", (4, 5, 6))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["external"] = h5py.ExternalLink("secret.h5", "/data")
        file["whole"] = h5py.ExternalLink("secret.h5", "/")
        file["soft"] = h5py.SoftLink("/whole/data")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", (4, 5, 6), "f4", external=[(str(tmp_path / "secret.raw"), 0, 480)])
    return tmp_path / "v.h5"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("external", r"v\.h5::/external is a link into another file, secret\.h5"),
        ("whole/data", r"v\.h5::/whole is a link into another file"),
        ("soft", r"v\.h5::/whole is a link into another file"),
        ("virtual", "virtual dataset, assembled from others"),
        ("raw", "dataset stored in other files"),
    ],
)
def test_a_file_cannot_pull_in_other_files(reaching_out, place, message):
    with pytest.raises(VolumeError, match=message):
        open_volume(f"{reaching_out}::/{place}")


def test_a_dataset_that_becomes_a_link_after_opening_is_refused(tmp_path):
    for name in ("v.h5", "secret.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["data"] = _numbered()
    volume = open_volume(tmp_path / "v.h5")
    with h5py.File(tmp_path / "v.h5", "a") as file:
        del file["data"]
        file["data"] = h5py.ExternalLink("secret.h5", "/data")
    with pytest.raises(VolumeError, match="link into another file"):
        _whole(volume)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((3, 3)), r"shape \(3, 3\); expected three axes"),
        (np.zeros((2, 3, 3, 3)), r"shape \(2, 3, 3, 3\)"),
        (np.zeros((0, 3, 3)), "none empty"),
        (np.zeros((2, 3, 3), complex), "type complex128"),
        (np.zeros((2, 3, 3), "u4"), "type uint32"),
        (np.zeros((2, 3, 3), bool), "type bool"),
    ],
)
def test_what_is_no_grey_volume_is_refused(tmp_path, data, message):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["data"] = data
    with pytest.raises(VolumeError, match=message):
        open_volume(f"{tmp_path}/v.h5::/data")


@pytest.mark.parametrize(
    ("size", "expected"),
    [([2.0, 1.0, 0.5], (2.0, 1.0, 0.5)), ([1.0, 1.0], None), ([0.0, 1.0, 1.0], None), ("one", None), (np.nan, None)],
)
def test_the_voxel_size_attribute_is_read_where_it_makes_sense(tmp_path, size, expected):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["data"] = _numbered()
        file["data"].attrs["element_size_um"] = size
    assert open_volume(tmp_path / "v.h5").voxel_size_um == expected


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_rubbish_is_named(tmp_path, content):
    (tmp_path / "v.h5").write_bytes(content)
    with pytest.raises(VolumeError, match=r"v\.h5 cannot be read as HDF5"):
        open_volume(tmp_path / "v.h5")


def test_a_file_that_was_cut_short_is_named(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["data"] = _numbered((40, 50, 60))
    content = (tmp_path / "v.h5").read_bytes()
    (tmp_path / "v.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(VolumeError, match=r"v\.h5 cannot be read as HDF5, it may be damaged or cut short"):
        _whole(open_volume(tmp_path / "v.h5"))


def test_a_file_that_vanished_or_changed_is_named(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["data"] = _numbered()
    volume = open_volume(tmp_path / "v.h5")
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["data"] = _numbered((9, 5, 6))
    with pytest.raises(VolumeError, match=r"has changed its shape from \(4, 5, 6\) to \(9, 5, 6\)"):
        _whole(volume)
    (tmp_path / "v.h5").unlink()
    with pytest.raises(VolumeError, match=r"v\.h5 does not exist"):
        _whole(volume)


def test_a_volume_survives_pickling(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["data"] = _numbered()
    np.testing.assert_array_equal(_whole(pickle.loads(pickle.dumps(open_volume(tmp_path / "v.h5")))), _numbered())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("hdf5") / "v.h5"
    array = np.random.default_rng(1).normal(size=(7, 23, 31)).astype("f4")
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=array, chunks=(2, 8, 8), compression="gzip")
    return array, open_volume(path)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_region_equals_the_whole_array_sliced(dataset, data):
    array, volume = dataset
    start = tuple(data.draw(st.integers(0, n - 1)) for n in array.shape)
    shape = tuple(data.draw(st.integers(1, n - a)) for n, a in zip(array.shape, start, strict=True))
    region = Region(start, shape)
    np.testing.assert_array_equal(volume.read(region), array[region.slices])
