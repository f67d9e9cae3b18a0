from __future__ import annotations

import weakref
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from denoise.errors import VolumeError
from denoise.inference.reader import SlabReader, layer_bytes
from denoise.normalization import Normalization
from denoise.tiles import Region, TileGrid, Triple, Window
from denoise.volumes import open_volume
from denoise.volumes.volume import ArrayVolume, Volume

PLAIN = Normalization(0.0, 1.0)


def slices(n_slices: int, edge: int = 4, stride: int = 4) -> Window:
    return Window((n_slices, edge, edge), (1, edge, edge), (1, stride, stride), (n_slices // 2, 0, 0))


def cubes(edge: int, stride: int) -> Window:
    return Window((edge,) * 3, (edge,) * 3, (stride,) * 3, (0, 0, 0))


def with_halo(edge: int, halo: int) -> Window:
    return Window((edge + 2 * halo,) * 3, (edge,) * 3, (edge,) * 3, (halo,) * 3)


def padded(data: np.ndarray[Any, Any], grid: TileGrid) -> tuple[np.ndarray[Any, Any], Triple]:
    """The volume with everything that any tile reads around it, and how many voxels were put before it."""
    window = grid.window
    widths = []
    for axis, size in enumerate(grid.shape_zyx):
        before = window.before_zyx[axis]
        last = grid.axes[axis].starts[-1] - before + window.read_zyx[axis]
        widths.append((before, max(0, last - size)))
    result = data
    for axis, width in enumerate(widths):
        one = [(0, 0)] * 3
        one[axis] = width
        result = np.pad(result, one, mode="reflect" if data.shape[axis] > 1 else "edge")
    return result, window.before_zyx


@pytest.mark.parametrize("at_once", [1, 2, 8])
@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 3, 9), (3, 1, 5), (9, 8, 8), (14, 5, 11)], ids=str)
@pytest.mark.parametrize(
    "window", [slices(1), slices(2), slices(3), slices(6), cubes(4, 4), cubes(4, 1), with_halo(4, 3)], ids=str
)
def test_a_slab_holds_what_its_tiles_read_reflected_at_the_faces(window: Window, shape: Triple, at_once: int) -> None:
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    grid = TileGrid(shape, window)
    around, before = padded(data, grid)
    reader = SlabReader([ArrayVolume(data)], grid, PLAIN, fill_non_finite=False)
    layers = range(len(grid.axes[0].starts))
    for first in range(0, len(layers), at_once):
        last = min(first + at_once, len(layers)) - 1
        slab = reader.read((first, last))
        low = grid.axes[0].starts[first] - window.before_zyx[0] + before[0]
        depth = grid.axes[0].starts[last] - grid.axes[0].starts[first] + window.read_zyx[0]
        height, width = (grid.axes[a].starts[-1] + window.read_zyx[a] for a in (1, 2))
        np.testing.assert_array_equal(slab[0], around[low : low + depth, :height, :width])


@pytest.mark.parametrize("n_slices", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_a_single_slice_is_read_with_its_true_neighbours(depth: int, n_slices: int) -> None:
    data = np.broadcast_to(np.arange(depth, dtype=np.float32)[:, None, None], (depth, 4, 4)).copy()
    grid = TileGrid(data.shape, slices(n_slices))
    before = n_slices // 2
    numbers = np.pad(data[:, 0, 0], (before, n_slices - 1 - before), mode="reflect" if depth > 1 else "edge")
    for z in range(depth):
        reader = SlabReader([ArrayVolume(data)], grid, PLAIN, fill_non_finite=False)
        np.testing.assert_array_equal(reader.read((z, z))[0, :, 0, 0], numbers[z : z + n_slices])


def test_values_are_normalised_and_the_inputs_stay_apart() -> None:
    inputs = [ArrayVolume(np.full((3, 4, 4), value, dtype=np.uint16)) for value in (100, 40000)]
    grid = TileGrid((3, 4, 4), slices(3))
    slab = SlabReader(inputs, grid, Normalization(100.0, 50.0), fill_non_finite=False).read((0, 2))
    assert slab.dtype == np.float32
    np.testing.assert_allclose(slab[0], 0.0)
    np.testing.assert_allclose(slab[1], 798.0)


def test_a_slab_that_was_handed_out_is_not_changed_by_the_next_read() -> None:
    data = np.random.default_rng(0).normal(size=(20, 4, 4)).astype(np.float32)
    reader = SlabReader([ArrayVolume(data)], TileGrid(data.shape, slices(3)), PLAIN, fill_non_finite=False)
    slab = reader.read((1, 4))
    before = slab.copy()
    reader.read((5, 9))
    np.testing.assert_array_equal(slab, before)


def test_the_second_input_is_checked_too_and_named() -> None:
    good, bad = np.zeros((3, 4, 4), np.float32), np.zeros((3, 4, 4), np.float32)
    bad[2, 0, 0] = np.nan
    inputs = [ArrayVolume(good, "recon_0", None, 10), ArrayVolume(bad, "recon_1", None, 10)]
    reader = SlabReader(inputs, TileGrid((3, 4, 4), slices(1)), PLAIN, fill_non_finite=False)
    with pytest.raises(VolumeError, match=r"recon_1 holds 1 NaN or Inf voxels in slice 12"):
        reader.read((0, 2))


@pytest.mark.parametrize("at_once", [1, 3, 8])
@pytest.mark.parametrize("chunk_depth", [1, 2, 5, 16, 40])
@pytest.mark.parametrize("window", [slices(1), slices(5), with_halo(4, 3)], ids=str)
def test_slices_that_are_stored_together_are_read_once(
    window: Window, chunk_depth: int, at_once: int, recording_volume
) -> None:
    data = np.random.default_rng(0).normal(size=(37, 5, 6)).astype(np.float32)
    grid = TileGrid(data.shape, window)
    recorded = recording_volume(data, chunk_zyx=(chunk_depth, 1, 1))
    reader = SlabReader([recorded], grid, PLAIN, fill_non_finite=False)
    plain = SlabReader([ArrayVolume(data)], grid, PLAIN, fill_non_finite=False)
    layers = len(grid.axes[0].starts)
    for first in range(0, layers, at_once):
        last = min(first + at_once, layers) - 1
        np.testing.assert_array_equal(reader.read((first, last)), plain.read((first, last)))
    assert recorded.times_read() == [1] * 37
    for region in recorded.regions:  # no stored layer is decoded for two of them
        assert region.start_zyx[0] % chunk_depth == 0
        assert region.stop_zyx[0] % chunk_depth == 0 or region.stop_zyx[0] == 37


def test_a_range_within_a_stored_layer_is_read_from_its_first_slice_on(recording_volume) -> None:
    recorded = recording_volume(np.zeros((40, 4, 4), np.float32), chunk_zyx=(16, 1, 1))
    reader = SlabReader([recorded], TileGrid((40, 4, 4), slices(3)), PLAIN, fill_non_finite=False)
    reader.read((20, 27))
    reader.read((28, 30))
    assert [(r.start_zyx[0], r.stop_zyx[0]) for r in recorded.regions] == [(19, 32)]


@pytest.mark.parametrize("chunk_depth", [16, 32])
def test_a_stored_layer_is_given_back_before_the_next_is_read(
    chunk_depth: int, recording_volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = recording_volume(np.zeros((64, 4, 4), np.float32), chunk_zyx=(chunk_depth, 1, 1))
    read, held, still_there = volume.read, [], []

    def watched(region: Region) -> NDArray[np.float32]:
        still_there.append(sum(array() is not None for array in held))
        values: NDArray[np.float32] = read(region)
        held.append(weakref.ref(values))
        return values

    monkeypatch.setattr(volume, "read", watched)
    reader = SlabReader([volume], TileGrid(volume.shape, slices(3)), PLAIN, fill_non_finite=False)
    for first in range(0, 64, 8):
        reader.read((first, first + 7))
    assert still_there == [0] * (64 // chunk_depth)


@pytest.mark.parametrize(("dtype", "each"), [(np.float32, 4), (np.uint16, 6)])
@pytest.mark.parametrize("fits", [True, False])
def test_layers_that_are_too_large_to_keep_are_read_as_they_are_needed(
    recording_volume, dtype: type, each: int, fits: bool
) -> None:
    recorded = recording_volume(np.zeros((100, 4, 4), dtype), chunk_zyx=(100, 1, 1))
    size = 100 * 4 * 4 * each
    reader = SlabReader(
        [recorded], TileGrid((100, 4, 4), slices(1)), PLAIN, fill_non_finite=False, largest_layer=size - (not fits)
    )
    reader.read((10, 12))
    assert [(r.start_zyx[0], r.stop_zyx[0]) for r in recorded.regions] == [(10, 100 if fits else 13)]
    assert layer_bytes(recorded, size - (not fits)) == (size if fits else 0)


def test_bad_voxels_that_no_tile_needs_do_not_stop_the_run(recording_volume) -> None:
    data = np.zeros((16, 4, 4), np.float32)
    data[9] = np.nan
    recorded = recording_volume(data, chunk_zyx=(16, 1, 1))
    reader = SlabReader([recorded], TileGrid(data.shape, slices(3)), PLAIN, fill_non_finite=False)
    reader.read((0, 7))
    with pytest.raises(VolumeError, match="16 NaN or Inf voxels in slice 9"):
        reader.read((8, 8))


@pytest.mark.parametrize("suffix", ["h5", "zarr"])
@pytest.mark.parametrize("window", [slices(5), with_halo(4, 3)], ids=str)
@pytest.mark.parametrize("kept", [True, False])
def test_every_chunk_of_a_file_is_decoded_once_where_a_layer_of_them_may_be_kept(
    tmp_path: Path, window: Window, suffix: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.random.default_rng(0).normal(size=(40, 20, 12)).astype(np.float32)
    path = tmp_path / f"volume.{suffix}"
    if suffix == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=data, chunks=(16, 8, 8), compression="gzip")
    else:
        zarr.create_array(path, shape=data.shape, chunks=(16, 8, 8), dtype=data.dtype)[:] = data
    volume = open_volume(path)
    grid = TileGrid(data.shape, window)
    read, decoded = type(volume).read, Counter[tuple[int, int]]()

    def counting(self: Volume, region: Region) -> NDArray[np.float32]:
        low, high = ([edge[axis] for axis in (0, 1)] for edge in (region.start_zyx, region.stop_zyx))
        decoded.update(product(range(low[0] // 16, -(-high[0] // 16)), range(low[1] // 8, -(-high[1] // 8))))
        return read(self, region)

    monkeypatch.setattr(type(volume), "read", counting)
    reader = SlabReader([volume], grid, PLAIN, fill_non_finite=False, largest_layer=4 * 16 * 20 * 12 - (not kept))
    plain = SlabReader([ArrayVolume(data)], grid, PLAIN, fill_non_finite=False)
    for layer in range(len(grid.axes[0].starts)):
        np.testing.assert_array_equal(reader.read((layer, layer)), plain.read((layer, layer)))
    assert len(decoded) == 3 * 3
    assert (set(decoded.values()) == {1}) == kept
