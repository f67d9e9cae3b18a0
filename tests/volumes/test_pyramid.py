"""The levels of a pyramid: their sizes, their cutting into shards, and the means, against plain block means."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from block_means import block_means

from denoise.volumes import pyramid


@pytest.mark.parametrize(
    ("shape", "itemsize", "together"),
    [
        ((2000, 2048, 2048), 4, 16),
        ((2000, 2048, 2048), 1, 16),
        ((2000, 2048, 2048), 8, 8),
        ((4096, 4096, 4096), 4, 4),
        ((20000, 16384, 16384), 4, 1),
        ((6, 100, 100), 4, 8),
        ((1, 100, 100), 4, 1),
    ],
)
def test_as_many_slices_are_stored_together_as_memory_allows(shape, itemsize, together):
    assert pyramid.slices_together(shape, itemsize) == together
    assert pyramid.plan(shape, itemsize)[0].shards[0] == together


@pytest.mark.parametrize(
    ("shape", "factors", "inline"),
    [
        ((6, 7, 9), [(1, 1, 1)], [True]),
        ((512, 512, 512), [(1,) * 3, (2,) * 3], [True, True]),
        ((2048, 2048, 2048), [(1,) * 3, (2,) * 3, (4,) * 3, (8,) * 3], [True] * 4),
        ((5, 4096, 4096), [(1,) * 3, (1, 2, 2), (1, 4, 4)], [True] * 3),
        ((4096, 4096, 4096), [(1,) * 3, (2,) * 3, (4,) * 3, (8,) * 3, (16,) * 3], [True] * 3 + [False] * 2),
        (
            (20000, 16384, 16384),
            [(1,) * 3, (1, 2, 2), (1, 4, 4), *((2**k,) * 3 for k in range(3, 7)), (128, 128, 128)],
            [True] * 3 + [False] * 5,
        ),
    ],
)
def test_axes_are_halved_until_the_last_level_is_small(shape, factors, inline):
    levels = pyramid.plan(shape, 4)
    assert [level.factors for level in levels] == factors
    assert [level.inline for level in levels] == inline
    assert levels[-1].voxels <= 256**3
    for level in levels:
        assert level.shape == tuple(-(-n // f) for n, f in zip(shape, level.factors, strict=True))


@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 7, 9), (3, 600, 129), (700, 2050, 1030), (900, 12000, 9000)])
@pytest.mark.parametrize("itemsize", [1, 4, 8])
def test_shards_are_whole_chunks_and_groups_are_whole_shards(shape, itemsize):
    levels = pyramid.plan(shape, itemsize)
    for level in levels:
        assert all(s % c == 0 for s, c in zip(level.shards, level.chunks, strict=True))
        assert np.prod(level.shards) * itemsize <= 2**27
        if level.inline:
            assert level.shards[0] * level.factors[0] == levels[0].shards[0]


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 5, 9), (5, 13, 1), (1, 3, 2)])
def test_a_level_made_in_steps_is_the_mean_of_its_blocks(shape, dtype):
    volume = (np.random.default_rng(0).normal(size=shape) * 60).astype(dtype)
    steps = [(1, 1, 1), (1, 2, 2), (2, 4, 4), (8, 8, 8)]
    values = volume
    for finer, factors in pairwise(steps):
        values = pyramid.coarser(values, (0, 0, 0), shape, finer, factors)
        np.testing.assert_allclose(values, block_means(volume, factors), rtol=2e-6, atol=2e-6)
    assert values.dtype == ("f4" if dtype == "f4" else "f8")


def test_the_end_of_a_volume_alone_gives_its_own_part_of_a_level():
    volume = np.random.default_rng(0).normal(size=(11, 6, 7))
    half = pyramid.coarser(volume, (0, 0, 0), volume.shape, (1, 1, 1), (2, 2, 2))
    end = pyramid.coarser(half[4:], (4, 0, 0), volume.shape, (2, 2, 2), (4, 4, 4))
    np.testing.assert_allclose(end, block_means(volume, (4, 4, 4))[2:])


def test_whole_numbers_are_rounded_to_the_nearest_and_halves_to_even():
    volume = np.array([0, 1, 1, 2, 254, 255, 255, 255], "u1").reshape(1, 1, 8)
    means = pyramid.coarser(volume, (0, 0, 0), volume.shape, (1, 1, 1), (1, 1, 2))
    assert pyramid.stored_as(means, volume.dtype).ravel().tolist() == [0, 2, 254, 255]


def test_the_parts_of_a_level_cover_it_and_what_they_are_made_of_covers_the_finer_one():
    levels = pyramid.plan((300, 9000, 8999), 4)
    finer, level = pyramid.late(levels)[0]
    for taken, regions in (
        (level, pyramid.shard_regions(level)),
        (finer, [pyramid.source_region(part, level, finer) for part in pyramid.shard_regions(level)]),
    ):
        assert sum(np.prod(region.shape_zyx) for region in regions) == taken.voxels
        assert all(region.inside(taken.shape) for region in regions)
        assert len({region.start_zyx for region in regions}) == len(regions)
