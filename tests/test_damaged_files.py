"""Drawn by hypothesis: damaged files and configs are read or refused by name; regions equal numpy's slices."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from denoise.config import load_config
from denoise.config.reading import render
from denoise.errors import ConfigError, VolumeError
from denoise.tiles import Region
from denoise.volumes import create_sink, open_volume

SHAPE = (4, 21, 19)
VALUES = (np.arange(np.prod(SHAPE)) % 251).reshape(SHAPE).astype(np.uint16)


def _sink(path: Path) -> None:
    with create_sink(path, shape=SHAPE, dtype=np.uint16, voxel_size_um=(1.0, 1.0, 1.0)) as sink:
        sink.write(0, VALUES.astype(np.float32))


def _folder(path: Path) -> None:
    path.mkdir()
    for k, image in enumerate(VALUES):
        tifffile.imwrite(path / f"s_{k:03d}.tif", image, compression="zlib", rowsperstrip=4)


def _hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("exchange/data", data=VALUES, chunks=(2, 8, 8), compression="gzip", shuffle=True)


FORMATS: dict[str, Callable[[Path], Any]] = {
    "ours.tif": _sink,
    "ours.h5": _sink,
    "ours.zarr": _sink,
    "ours": _sink,
    "strips": _folder,
    "tiles.tif": lambda p: tifffile.imwrite(p, VALUES, photometric="minisblack", tile=(16, 16), compression="zstd"),
    "big.tif": lambda p: tifffile.imwrite(p, VALUES, photometric="minisblack", bigtiff=True, byteorder=">"),
    "chunks.h5": _hdf5,
    "v2.zarr": lambda p: zarr.create_array(p, data=VALUES, chunks=(2, 8, 8), zarr_format=2),
    "shards.zarr": lambda p: zarr.create_array(p, data=VALUES, chunks=(1, 7, 8), shards=(2, 21, 24), zarr_format=3),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same values in every format. Read only."""
    folder = tmp_path_factory.mktemp("formats")
    for name, write in FORMATS.items():
        write(folder / name)
    return folder


@st.composite
def regions(draw: Callable[..., Any]) -> Region:
    ranges = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in SHAPE]
    (z, z_stop), (y, y_stop), (x, x_stop) = ranges
    return Region((z, y, x), (z_stop - z, y_stop - y, x_stop - x))


@pytest.mark.parametrize("name", FORMATS)
def test_regions_equal_numpys_slices_in_every_format(stored: Path, name: str) -> None:
    volume = open_volume(stored / name)
    assert volume.shape == SHAPE

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(regions())
    def holds(region: Region) -> None:
        np.testing.assert_array_equal(volume.read_stored(region), VALUES[region.slices])
        np.testing.assert_array_equal(volume.read(region), VALUES[region.slices].astype(np.float32))

    holds()


changes = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["flip", "set", "cut", "drop", "repeat"]), st.integers(0, 2**32 - 1)),
    min_size=1,
    max_size=4,
)


def changed(data: bytes, steps: list[tuple[float, str, int]]) -> bytes:
    """Bytes after some damage."""
    buffer = bytearray(data)
    for share, kind, number in steps:
        at = int(share * max(len(buffer) - 1, 0))
        if kind == "flip" and buffer:
            buffer[at] ^= 1 << number % 8
        elif kind == "set":
            buffer[at : at + 4] = number.to_bytes(4, "little")
        elif kind == "cut":
            del buffer[at:]
        elif kind == "drop":
            del buffer[at : at + 1 + number % 9]
        else:
            buffer[at:at] = buffer[at : at + 1 + number % 40]
    return bytes(buffer)


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("big.tif", "ours")])
@pytest.mark.filterwarnings("ignore")
def test_damaged_volumes_are_read_or_refused_by_name(stored: Path, tmp_path: Path, name: str) -> None:
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.integers(0, 30), changes)
    def holds(which: int, steps: list[tuple[float, str, int]]) -> None:
        copy = tmp_path / name
        if (stored / name).is_dir():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(stored / name, copy)
            files = sorted(p for p in copy.rglob("*") if p.is_file())
            victim = files[which % len(files)]
        else:
            shutil.copy(stored / name, copy)
            victim = copy
        victim.write_bytes(changed(victim.read_bytes(), steps))
        try:
            volume = open_volume(copy)
            z, y, x = (min(n, 30) for n in volume.shape)
            volume.read(Region((0, 0, 0), (z, y, x)))
        except VolumeError as error:
            refusal = str(error)
        else:
            return
        assert str(copy) in refusal
        assert len(refusal) < 1000

    holds()


CONFIG = (
    "dataset:\n  folder: .\n  splits: [even, odd]\n  full: whole\n"
    "train: {mode: 2.5d, patch_size: 64, learning_rate: 1e-3}\n"
    "infer: {overlap: 0.5, window: hann}\nmetadata: {energy: 25.0}\n"
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(0, len(CONFIG)), st.integers(0, 12), st.text(max_size=12) | st.sampled_from(["- ", "&a ", "{", "1e999"])
)
def test_a_changed_config_comes_back_the_same_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, length: int, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn.yaml"
    path.write_text(CONFIG[:at] + text + CONFIG[at + length :], encoding="utf-8", errors="replace")
    try:
        config = load_config(path)
    except ConfigError as error:
        refusal = str(error)
    else:
        path.write_text(render(config), encoding="utf-8")
        assert load_config(path) == config
        return
    assert refusal.startswith(str(path))
