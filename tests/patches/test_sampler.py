"""Which blocks are drawn: the same ones whoever asks, every slice once an epoch, and gathered as they are read."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoise.patches.holdout import HoldOut, Source
from denoise.patches.sampler import (
    FEWEST_PATCHES,
    BlockPlace,
    CubeSampler,
    SliceSampler,
    block_offsets,
    single_slices,
    sliced,
)
from denoise.patches.symmetry import CUBE, IDENTITY, PRISM, SQUARE
from denoise.tiles import Region, Window
from denoise.volumes import ArrayVolume, read_reflected

SHAPE = (30, 20, 24)
SLICES = Window((5, 8, 8), (1, 8, 8), (1, 8, 8), (2, 0, 0), "uniform")
CUBES = Window((8, 8, 8), (8, 8, 8), (8, 8, 8), (0, 0, 0), "uniform")


def _sampler(window: Window, shape=SHAPE, seed: int = 0, **options) -> SliceSampler | CubeSampler:
    kind = SliceSampler if window.predict_zyx[0] == 1 else CubeSampler
    return kind(HoldOut.of(shape, window, 0.1), window, seed, **options)


def _centres(sampler: SliceSampler, epoch: int, count: int | None = None) -> list[int]:
    places = sampler.places(epoch, range(count or sampler.epoch_size))
    return [place.region.start_zyx[0] + sampler.window.before_zyx[0] for place in places]


def _trained_slices(sampler: SliceSampler) -> list[int]:
    return [z for source in sampler.holdout.sources for z in source.z_starts]


@pytest.mark.parametrize("window", [SLICES, CUBES], ids=["slices", "cubes"])
class TestBlocksAreAPureFunctionOfSeedEpochAndIndex:
    def test_asking_again_or_in_other_batches_gives_the_same_blocks(self, window):
        whole = _sampler(window).places(3, range(24))
        sampler = _sampler(window)
        one_by_one = [sampler.places(3, [i])[0] for i in range(24)]
        backwards = sampler.places(3, range(23, -1, -1))[::-1]
        in_batches = [place for i in range(0, 24, 5) for place in sampler.places(3, range(i, min(i + 5, 24)))]
        assert whole == one_by_one == backwards == in_batches

    def test_the_shares_of_several_ranks_are_the_blocks_of_one(self, window):
        ranks = [_sampler(window) for _ in range(3)]
        shared = [ranks[i % 3].places(0, [i])[0] for i in range(12)]
        assert shared == _sampler(window).places(0, range(12))

    def test_numpys_and_torchs_global_generators_are_neither_used_nor_disturbed(self, window):
        np.random.seed(1)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        first = _sampler(window).places(0, range(8))
        np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
        np.random.seed(2)  # noqa: NPY002
        assert _sampler(window).places(0, range(8)) == first

    @pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1), (2**40, 0)])
    def test_another_seed_or_epoch_gives_other_blocks(self, window, seed, epoch):
        blocks = _sampler(window, seed=seed).places(epoch, range(16))
        assert blocks != _sampler(window).places(0, range(16))

    def test_an_index_past_the_epoch_draws_new_crops(self, window):
        sampler = _sampler(window)
        size = sampler.epoch_size
        assert sampler.places(0, range(size, 2 * size)) != sampler.places(0, range(size))


@pytest.mark.parametrize("augment", [True, False])
def test_crops_reach_every_place_up_to_the_last_row_and_column(augment):
    places = _sampler(SLICES, augment=augment).places(0, range(4000))
    assert {place.region.start_zyx[1] for place in places} == set(range(20 - 8 + 1))
    assert {place.region.start_zyx[2] for place in places} == set(range(24 - 8 + 1))


@pytest.mark.parametrize(("window", "group"), [(SLICES, SQUARE), (CUBES, CUBE)], ids=["slices", "cubes"])
def test_all_symmetries_are_drawn_about_equally_often_and_none_without_augmentation(window, group):
    drawn = Counter(place.symmetry for place in _sampler(window).places(0, range(4800)))
    assert set(drawn) == set(group)
    expected = 4800 / len(group)
    assert max(abs(n - expected) for n in drawn.values()) < 5 * np.sqrt(expected)
    plain = _sampler(window, augment=False).places(0, range(50))
    assert {place.symmetry for place in plain} == {IDENTITY}


def test_blocks_that_only_look_like_cubes_are_turned_within_their_slices():
    """A flat block is read with the neighbours of its slices, which may make it as deep as it is wide."""
    window = Window((12, 12, 12), (8, 12, 12), (8, 12, 12), (2, 0, 0), "uniform")
    drawn = {place.symmetry for place in _sampler(window, (40, 20, 24)).places(0, range(2000))}
    assert drawn == set(PRISM)


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_centre_slice_is_visited_once_an_epoch_in_random_order(epoch):
    sampler = _sampler(SLICES, (300, 20, 24))
    centres = _centres(sampler, epoch)
    assert sorted(centres) == _trained_slices(sampler)
    assert centres != sorted(centres)
    assert centres != _centres(sampler, epoch + 1)


def test_further_rounds_of_an_epoch_visit_every_slice_once_more():
    sampler = _sampler(SLICES, (300, 20, 24))
    visits = Counter(_centres(sampler, 0, 3 * sampler.epoch_size))
    assert set(visits.values()) == {3}


@pytest.mark.parametrize("shape", [SHAPE, (1, 40, 24), (2, 40, 24)], ids=str)
def test_where_slices_are_few_an_epoch_visits_each_about_equally_often_and_elsewhere(shape):
    """An epoch of a handful of patches is not worth scoring after."""
    sampler = _sampler(SLICES, shape)
    slices = len(_trained_slices(sampler))
    assert slices < sampler.epoch_size == FEWEST_PATCHES
    visits = Counter(place.region.start_zyx[0] for place in sampler.places(0, range(FEWEST_PATCHES)))
    assert min(visits.values()) >= FEWEST_PATCHES // slices
    places = {(place.region, place.symmetry) for place in sampler.places(0, range(FEWEST_PATCHES))}
    assert len(places) > 0.9 * FEWEST_PATCHES, "few are seen twice"


@pytest.mark.parametrize("stride", [2, 3, 10, 1000])
def test_striding_over_z_picks_centres_and_keeps_the_true_neighbours(stride):
    sampler = _sampler(SLICES, z_stride=stride)
    expected = [z for source in sampler.holdout.sources for z in source.z_starts[::stride]]
    assert sorted(_centres(sampler, 0, len(expected))) == expected
    assert set(_centres(sampler, 0)) == set(expected)
    volume = ArrayVolume(np.broadcast_to(np.arange(30.0)[:, None, None], SHAPE))
    for place in sampler.places(0, range(sampler.epoch_size)):
        centre = place.region.start_zyx[0] + 2
        # Beyond the first and last slice the neighbours are mirrored.
        neighbours = [29 - abs(29 - abs(z)) for z in range(centre - 2, centre + 3)]
        np.testing.assert_array_equal(read_reflected(volume, place.region, place.box)[:, 0, 0], neighbours)


@pytest.mark.parametrize("patches", [1, 7, 100])
@pytest.mark.parametrize("window", [SLICES, CUBES], ids=["slices", "cubes"])
def test_the_length_of_an_epoch_can_be_told(window, patches):
    sampler = _sampler(window, patches_per_epoch=patches)
    assert sampler.epoch_size == patches
    assert len(sampler.places(0, range(patches))) == patches


def test_a_short_epoch_visits_other_slices_each_time():
    sampler = _sampler(SLICES, patches_per_epoch=4)
    seen = {z for epoch in range(60) for z in _centres(sampler, epoch)}
    assert seen == set(_trained_slices(sampler))
    assert all(len(set(_centres(sampler, epoch))) == 4 for epoch in range(5))


@pytest.mark.parametrize(("shape", "at_least"), [((64, 32, 32), 100), ((8, 8, 8), 1), ((1, 9, 9), 1)])
def test_an_epoch_of_cubes_fills_the_training_part_once(shape, at_least):
    sampler = _sampler(CUBES, shape)
    voxels = sum(np.prod(source.box.shape_zyx) for source in sampler.holdout.sources)
    assert sampler.epoch_size == max(1, round(voxels / 8**3))
    assert sampler.epoch_size >= at_least


def test_cubes_start_at_every_z_that_leaves_them_in_their_box():
    sampler = _sampler(CUBES)
    drawn = {place.region.start_zyx[0] for place in sampler.places(0, range(3000))}
    assert drawn == set(_trained_slices(sampler))


@pytest.mark.parametrize("shape", [(30, 3, 24), (30, 8, 8), (3, 9, 7), (1, 8, 3)])
@pytest.mark.parametrize("window", [SLICES, CUBES], ids=["slices", "cubes"])
def test_images_as_small_as_a_patch_or_smaller_start_at_their_first_voxel(window, shape):
    sampler = _sampler(window, shape)
    for place in sampler.places(0, range(20)):
        for axis in (1, 2):
            if place.box.shape_zyx[axis] <= 8:
                assert place.region.start_zyx[axis] == place.box.start_zyx[axis]
        assert read_reflected(ArrayVolume(np.zeros(shape)), place.region, place.box).shape == window.read_zyx


def _gathered(places: list[BlockPlace], array: np.ndarray) -> np.ndarray:
    first, second, third = block_offsets(places, array.shape)
    offsets = first[:, :, None, None] + second[:, None, :, None] + third[:, None, None, :]
    return array.reshape(-1)[offsets]


@pytest.mark.parametrize(
    "box",
    [Region((0, 0, 0), (9, 10, 11)), Region((2, 3, 1), (6, 5, 9)), Region((4, 0, 2), (1, 2, 3))],
    ids=["whole", "part", "tiny"],
)
@pytest.mark.parametrize("start", [(0, 0, 0), (3, 4, 5), (-2, -1, -3), (7, 8, 9)], ids=str)
def test_one_gather_equals_reading_reflecting_and_turning_for_every_symmetry(start, box, rng):
    array = rng.random((9, 10, 11), dtype=np.float32)
    places = [BlockPlace(Region(start, (4, 4, 4)), box, symmetry) for symmetry in CUBE]
    gathered = _gathered(places, array)
    block = read_reflected(ArrayVolume(array), places[0].region, box)
    for turned, symmetry in zip(gathered, CUBE, strict=True):
        np.testing.assert_array_equal(turned, symmetry.apply(block))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(8, 14), st.integers(3, 14)),
    window=st.sampled_from([SLICES, CUBES]),
    seed=st.integers(0, 10**6),
)
def test_a_batch_of_drawn_blocks_is_gathered_as_it_is_read(shape, window, seed):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    places = _sampler(window, shape, seed).places(1, range(5))
    expected = [p.symmetry.apply(read_reflected(ArrayVolume(array), p.region, p.box)) for p in places]
    gathered = _gathered(places, array)
    assert gathered.shape == (5, *window.read_zyx)
    np.testing.assert_array_equal(gathered, np.stack(expected))


def test_offsets_of_a_volume_of_many_gigavoxels_do_not_overflow():
    shape = (4000, 4000, 4000)
    box = Region((0, 0, 0), shape)
    offsets = block_offsets([BlockPlace(Region((3996, 3996, 3996), (4, 4, 4)), box)], shape)
    assert all(vector.dtype == np.int64 for vector in offsets)
    assert sum(int(vector[0, -1]) for vector in offsets) == 4000**3 - 1


def test_sources_that_are_not_there_are_never_drawn_from():
    source = Source(Region((5, 0, 0), (3, 20, 24)), range(5, 8))
    sampler = SliceSampler(HoldOut((source,), Region((0, 0, 0), (1, 20, 24))), SLICES, 0)
    assert sorted(_centres(sampler, 0, 3)) == [5, 6, 7]
    assert set(_centres(sampler, 0)) == {5, 6, 7}


@pytest.mark.parametrize(("depth", "count"), [(12, 4), (8, 4), (2, 4), (1, 1)])
@pytest.mark.parametrize("n_slices", [4, 5])
def test_single_slices_of_a_block_are_slices_that_the_block_predicts_read_with_their_neighbours(depth, count, n_slices):
    window = Window((depth + n_slices - 1, 8, 8), (depth, 8, 8), (depth, 8, 8), (n_slices // 2, 0, 0))
    block = _sampler(window, (40, 24, 24)).places(0, range(1))[0]
    parts = sliced(block, window, count)
    single = single_slices(window)
    assert single.predict_zyx == (1, 8, 8)
    assert len(parts) == count
    predicted = [part.region.start_zyx[0] + single.before_zyx[0] for part in parts]
    first = block.region.start_zyx[0] + window.before_zyx[0]
    assert all(first <= z < first + depth for z in predicted)
    assert len(set(predicted)) == min(count, depth), "spread over the block"
    for part in parts:
        assert part.region.shape_zyx == single.read_zyx == (n_slices, 8, 8)
        assert part.region.start_zyx[1:] == block.region.start_zyx[1:]
        assert (part.box, part.symmetry) == (block.box, block.symmetry)


def test_flat_blocks_are_never_turned_out_of_the_plane_of_their_slices():
    window = Window((8, 16, 16), (8, 16, 16), (8, 16, 16), (0, 0, 0))
    sampler = _sampler(window, (40, 32, 32))
    assert len(set(sampler.symmetries)) == 16
    assert {symmetry.source_axis[0] for symmetry in sampler.symmetries} == {0}
    assert {symmetry.reverse[0] for symmetry in sampler.symmetries} == {False, True}
    assert len(set(_sampler(CUBES).symmetries)) == 48
