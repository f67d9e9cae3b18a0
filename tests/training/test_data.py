from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from denoise.errors import VolumeError
from denoise.launch import World
from denoise.normalization import Normalization
from denoise.patches.holdout import HoldOut
from denoise.patches.sampler import BlockPlace, SliceSampler
from denoise.patches.slabs import Division
from denoise.patches.symmetry import CUBE, SQUARE
from denoise.patches.turns import SlabSampler
from denoise.tiles import Region, Triple, Window
from denoise.training.cache import CachedBlocks
from denoise.training.data import BlockSource, ResidentBlocks, open_blocks
from denoise.training.reading import common_dtype, sampled_normalization
from denoise.volumes.volume import SplitSet

SHAPE = (7, 9, 11)
KNOWN = Normalization(10.0, 4.0)
TYPES = ["uint8", "uint16", "int16", "float32", "float64", ">u2", ">f4"]
Splits = Callable[..., SplitSet]


def stored(dtype: str, count: int = 2, shape: Triple = SHAPE) -> list[NDArray[Any]]:
    """Values over the whole range of the type: uint16 beyond 32767, int16 below zero."""
    rng = np.random.default_rng(5)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return [rng.normal(100, 30, shape).astype(kind) for _ in range(count)]
    limits = np.iinfo(kind)
    return [rng.integers(limits.min, limits.max, shape, endpoint=True).astype(kind) for _ in range(count)]


def in_memory(splits: SplitSet, world: World, non_finite: str = "error") -> ResidentBlocks:
    return ResidentBlocks.read(splits, world, common_dtype(splits), non_finite, None)


def both(splits: SplitSet, world: World, non_finite: str = "error") -> tuple[BlockSource, BlockSource]:
    """All in memory, and slabs: which keep blocks that name no slab as they are read."""
    window = Window((3, 4, 4), (1, 4, 4), (1, 4, 4), (1, 0, 0))
    whole = SliceSampler(HoldOut.of(splits.shape, window, 0.1), window, 0)
    cached = SlabSampler(whole, Division((2, 1000, 1000), 2), whole.epoch_size)
    return in_memory(splits, world, non_finite), CachedBlocks.open(splits, cached.turns, world, non_finite, None)


def places() -> list[BlockPlace]:
    """Every symmetry; inside, over every face, past a corner further than the box is wide, and in a smaller box."""
    whole = Region((0, 0, 0), SHAPE)
    part = Region((2, 1, 3), (4, 6, 5))
    flat = [BlockPlace(Region((1, 2, 3), (3, 5, 5)), whole, symmetry) for symmetry in SQUARE]
    turned = [BlockPlace(Region((2, 3, 1), (4, 4, 4)), whole, symmetry) for symmetry in CUBE]
    cubes = [
        *(BlockPlace(Region(start, (4, 4, 4)), whole) for start in [(-3, 0, 0), (5, 7, 9), (-1, -2, -3), (0, 0, 0)]),
        *(BlockPlace(Region(start, (4, 4, 4)), part, CUBE[17]) for start in [(0, 0, 0), (4, 4, 6), (2, 1, 3)]),
        BlockPlace(Region((-4, -5, -6), (4, 4, 4)), Region((0, 0, 0), (2, 3, 1)), CUBE[40]),
    ]
    return [*flat, *turned, *cubes]


def expected_block(array: NDArray[Any], place: BlockPlace) -> NDArray[np.float32]:
    """By numpy's own reflection, far enough on every side."""
    box = array[place.box.slices].astype(np.float32)
    for axis, size in enumerate(box.shape):
        widths = [(0, 0)] * 3
        widths[axis] = (16, 16)
        box = np.pad(box, widths, mode="reflect" if size > 1 else "edge")
    start = [s - b + 16 for s, b in zip(place.region.start_zyx, place.box.start_zyx, strict=True)]
    cut = box[tuple(slice(s, s + n) for s, n in zip(start, place.region.shape_zyx, strict=True))]
    return place.symmetry.apply(cut)


def batches_of(source: BlockSource, wanted: list[BlockPlace]) -> list[torch.Tensor]:
    """One place at a time: blocks of different shapes do not share a batch."""
    return list(source.batches([place] for place in wanted))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_splits_in_memory_and_blocks_from_files_give_the_same_blocks_as_numpy(
    dtype: str, count: int, splits_of: Splits, cpu: World
) -> None:
    arrays = stored(dtype, count)
    resident, cached = both(splits_of(arrays), cpu)
    assert resident.normalization == cached.normalization
    wanted = places()
    mean, std = resident.normalization.mean, resident.normalization.std
    for place, one, other in zip(wanted, batches_of(resident, wanted), batches_of(cached, wanted), strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert one.shape == (1, count, *place.region.shape_zyx)
        assert torch.equal(one, other)
        for k, array in enumerate(arrays):
            np.testing.assert_allclose(one[0, k], (expected_block(array, place) - mean) / std, rtol=0, atol=1e-5)
    resident.close()
    cached.close()


def test_blocks_of_a_batch_keep_their_order_in_both_sources(splits_of: Splits, cpu: World) -> None:
    splits = splits_of(stored("float32"))
    whole = Region((0, 0, 0), SHAPE)
    requests = [[BlockPlace(Region((z, y, 0), (2, 3, 3)), whole) for y in range(4)] for z in range(5)]
    for source in both(splits, cpu):
        found = list(source.batches(iter(requests)))
        assert len(found) == 5
        for request, batch in zip(requests, found, strict=True):
            for place, block in zip(request, batch, strict=True):
                torch.testing.assert_close(block, batches_of(source, [place])[0][0], rtol=0, atol=0)
        assert list(source.batches(iter([]))) == []
        source.close()


def test_splits_of_different_types_are_kept_as_floats(splits_of: Splits, cpu: World) -> None:
    arrays = [stored("uint16")[0], stored("float32")[1]]
    resident, cached = both(splits_of(arrays), cpu)
    place = [BlockPlace(Region((0, 0, 0), SHAPE), Region((0, 0, 0), SHAPE))]
    (one,), (other,) = batches_of(resident, place), batches_of(cached, place)
    assert torch.equal(one, other)
    torch.testing.assert_close(
        resident.normalization.invert(one[0, 0]), torch.from_numpy(arrays[0].astype(np.float32)), rtol=1e-5, atol=0.1
    )
    cached.close()


@pytest.mark.parametrize("dtype", TYPES)
def test_the_normalisation_is_that_of_all_splits_together(dtype: str, splits_of: Splits, cpu: World) -> None:
    arrays = stored(dtype, 3)
    arrays[1] = (arrays[1] // 2 if arrays[1].dtype.kind != "f" else arrays[1] / 2).astype(arrays[1].dtype)
    for array in arrays:
        array[array == 0] = 1  # exact zeros in the corners count as masked
    together = np.concatenate(arrays).astype(np.float64)
    for source in both(splits_of(arrays), cpu):
        assert source.normalization.mean == pytest.approx(together.mean(), rel=1e-12)
        assert source.normalization.std == pytest.approx(together.std(), rel=1e-12)
        source.close()


def test_a_large_mean_does_not_drown_a_small_deviation(splits_of: Splits, cpu: World) -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.normal(30000, 5, SHAPE).astype(np.float32) for _ in range(2)]
    together = np.concatenate(arrays).astype(np.float64)
    for source in both(splits_of(arrays), cpu):
        assert source.normalization.std == pytest.approx(together.std(), rel=1e-9)
        source.close()


def test_slices_that_no_block_reads_may_hold_anything(splits_of: Splits, cpu: World) -> None:
    """They are read where they are stored together with others."""
    arrays = stored("float32")
    used = range(2, 5)
    together = np.concatenate([array[2:5] for array in arrays]).astype(np.float64)
    for array in arrays:
        array[:2], array[5:] = np.nan, 1e9
    splits = splits_of(arrays)
    normalizations = [
        ResidentBlocks.read(splits, cpu, common_dtype(splits), "error", None, used).normalization,
        sampled_normalization(splits, cpu, "error", used),
    ]
    for found in normalizations:
        assert found.mean == pytest.approx(together.mean(), rel=1e-12)
        assert found.std == pytest.approx(together.std(), rel=1e-12)


def test_a_normalisation_that_is_given_is_kept(splits_of: Splits, cpu: World) -> None:
    assert open_blocks(splits_of(stored("float32")), cpu, "error", KNOWN).normalization == KNOWN


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_with_the_name_of_the_split_and_the_slice(
    bad: float, splits_of: Splits, cpu: World
) -> None:
    arrays = stored("float32")
    arrays[1][4, 2, 2] = arrays[1][4, 0, 0] = bad
    with pytest.raises(VolumeError, match=r"recon_1 holds 2 NaN or Inf voxels in slice 104.*non_finite"):
        in_memory(splits_of(arrays, 100), cpu)


def test_nan_and_inf_are_filled_with_the_mean_of_the_others_and_counted(
    splits_of: Splits, cpu: World, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = stored("float32")
    arrays[0][0, 0, 0], arrays[0][3, 2, 2], arrays[1][6, 8, 10] = np.nan, np.inf, -np.inf
    originals = [array.copy() for array in arrays]
    finite = np.concatenate([array[np.isfinite(array)] for array in arrays]).astype(np.float64)
    whole = Region((0, 0, 0), SHAPE)
    with caplog.at_level(logging.WARNING):
        sources = both(splits_of(arrays), cpu, "fill")
    assert [record.getMessage().split()[0] for record in caplog.records] == ["3", "3"]
    blocks = []
    for source in sources:
        assert source.normalization.mean == pytest.approx(finite.mean(), rel=1e-12)
        assert source.normalization.std == pytest.approx(finite.std(), rel=1e-12)
        blocks += batches_of(source, [BlockPlace(whole, whole)])
        source.close()
    assert torch.equal(blocks[0], blocks[1])
    filled = blocks[0][0, 0, 3, 2, 2], blocks[0][0, 1, 6, 8, 10]
    assert [abs(float(value)) < 1e-6 for value in filled] == [True, True]
    for array, original in zip(arrays, originals, strict=True):
        np.testing.assert_array_equal(array, original)


@pytest.mark.parametrize("value", [0, 7])
def test_constant_volumes_are_refused(value: int, splits_of: Splits, cpu: World) -> None:
    with pytest.raises(VolumeError, match="same value"):
        open_blocks(splits_of([np.full(SHAPE, value, np.uint8)] * 2), cpu, "error", None)


@pytest.mark.parametrize("slabs", [False, True], ids=["in memory", "slabs"])
def test_one_split_that_shows_nothing_is_refused_by_name(slabs: bool, splits_of: Splits, cpu: World) -> None:
    """Together with one that shows something, it has a mean and a deviation, and a network would learn its value."""
    (good,) = stored("float32", 1)
    splits = splits_of([good, np.full(SHAPE, 7, np.float32)])
    window = Window((3, 4, 4), (1, 4, 4), (1, 4, 4), (1, 0, 0))
    whole = SliceSampler(HoldOut.of(SHAPE, window, 0.1), window, 0)
    cached = SlabSampler(whole, Division((2, 1000, 1000), 2), whole.epoch_size) if slabs else None
    with pytest.raises(VolumeError, match=rf"{splits.volumes[1].name} .* same value 7"):
        open_blocks(splits, cpu, "error", None, cached)


@pytest.mark.parametrize(("dtype", "bytes_each"), [("uint8", 1), ("int16", 2), ("uint16", 2), ("float64", 4)])
def test_splits_take_no_more_memory_than_their_type_needs(
    dtype: str, bytes_each: int, splits_of: Splits, cpu: World
) -> None:
    splits = splits_of(stored(dtype))
    resident = in_memory(splits, cpu)
    assert resident._data.nbytes == bytes_each * 2 * int(np.prod(SHAPE))
