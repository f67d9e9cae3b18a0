"""What already stands under the final name: replaced only when asked, and only if it looks like a result of ours."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

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


@pytest.mark.parametrize("name", FORMATS)
def test_what_exists_is_not_replaced_unless_asked(tmp_path, name):
    _write(tmp_path / name, _numbered())
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        create_sink(tmp_path / name, shape=SHAPE)
    _write(tmp_path / name, _numbered((2, 3, 4)), overwrite=True)
    np.testing.assert_array_equal(_whole(open_volume(tmp_path / name)), _numbered((2, 3, 4)))
    assert _names(tmp_path) == [name]


def _file_instead(path: Path) -> None:
    path.write_text("mine")


def _folder_instead(path: Path) -> None:
    path.mkdir()
    (path / "mine.txt").write_text("mine")


def _with_a_note(path: Path) -> None:
    _write(path, _numbered())
    (path / "notes.txt").write_text("mine")


def _with_a_subfolder(path: Path) -> None:
    _write(path, _numbered())
    (path / "a.tif").mkdir()


def _with_labels(path: Path) -> None:
    _write(path, _numbered())
    (path / "labels").mkdir()


def _with_other_data(path: Path) -> None:
    _write(path, _numbered())
    with h5py.File(path, "a") as file:
        file["raw/projections"] = np.zeros(3)


def _with_a_link(path: Path) -> None:
    _write(path, _numbered())
    with h5py.File(path, "a") as file:
        file["raw"] = h5py.ExternalLink("raw.h5", "/")


@pytest.mark.parametrize(
    ("name", "user", "message"),
    [
        ("out", _file_instead, "is a file, expected a folder"),
        ("out.zarr", _file_instead, "is a file, expected a folder"),
        ("out.tif", _folder_instead, "is a folder, expected a file"),
        ("out.h5", _folder_instead, "is a folder, expected a file"),
        ("out", _folder_instead, "holds mine.txt"),
        ("out.zarr", _folder_instead, "holds mine.txt"),
        ("out.zarr", lambda p: p.mkdir(), "is no Zarr store"),
        ("out", _with_a_note, "holds notes.txt"),
        ("out", _with_a_subfolder, r"holds a\.tif"),
        ("out.zarr", _with_a_note, "holds notes.txt"),
        ("out.zarr", _with_labels, "holds labels"),
        ("out.h5", _file_instead, "no HDF5 file"),
        ("out.h5", _with_other_data, "holds /raw besides /exchange/data"),
        ("out.h5", _with_a_link, "holds /raw besides"),
    ],
)
def test_what_does_not_look_like_a_result_is_never_replaced(tmp_path, name, user, message):
    user(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=message):
        create_sink(tmp_path / name, shape=SHAPE, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
