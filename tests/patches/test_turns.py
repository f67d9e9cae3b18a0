"""Which slabs are in memory when: every place of the volume equally often, the same for whoever asks."""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from denoise.patches.holdout import HoldOut
from denoise.patches.sampler import CubeSampler, SliceSampler
from denoise.patches.slabs import Division
from denoise.patches.symmetry import CUBE, IDENTITY, SQUARE
from denoise.patches.turns import COVERAGE, SlabPlace, SlabSampler
from denoise.tiles import Triple, Window, reflect_indices

SHAPE = (44, 22, 25)
SLICES = Window((5, 8, 8), (1, 8, 8), (1, 8, 8), (2, 0, 0), "uniform")
CUBES = Window((8, 8, 8), (8, 8, 8), (8, 8, 8), (0, 0, 0), "uniform")
both = pytest.mark.parametrize("window", [SLICES, CUBES], ids=["slices", "cubes"])


def whole_sampler(window: Window, shape: Triple = SHAPE, seed: int = 0, **options):
    kind = CubeSampler if window is CUBES else SliceSampler
    return kind(HoldOut.of(shape, window, 0.1), window, seed, **options)


#: Bands of rows of a few slices, and two remainders.
BANDS = Division((5, 6, 1000), 3)


def slab_sampler(window: Window, division: Division = BANDS, **options) -> SlabSampler:
    whole = whole_sampler(window, **options)
    return SlabSampler(whole, division, whole.epoch_size)


def drawn(sampler: SlabSampler, count: int, first: int = 0) -> list[SlabPlace]:
    """So many blocks one after the other, epoch by epoch."""
    size = sampler.epoch_size
    return [sampler.places(g // size, [g % size])[0] for g in range(first, first + count)]  # type: ignore[misc]


@both
class TestBlocksAreAPureFunctionOfSeedEpochAndIndex:
    def test_asking_again_in_other_batches_and_orders_gives_the_same_blocks(self, window: Window) -> None:
        size = slab_sampler(window).epoch_size
        later = slab_sampler(window).places(7, range(size))
        sampler = slab_sampler(window)
        assert [sampler.places(7, [i])[0] for i in reversed(range(size))][::-1] == later
        assert sampler.places(0, range(size)) != later

    def test_the_shares_of_several_ranks_are_the_blocks_of_one(self, window: Window) -> None:
        ranks = [slab_sampler(window) for _ in range(3)]
        assert [ranks[i % 3].places(2, [i])[0] for i in range(12)] == slab_sampler(window).places(2, range(12))

    def test_another_seed_gives_other_blocks(self, window: Window) -> None:
        assert slab_sampler(window, seed=1).places(0, range(16)) != slab_sampler(window).places(0, range(16))


@both
def test_blocks_are_cut_from_slabs_that_are_in_memory_in_the_order_of_their_turns(window: Window) -> None:
    sampler = slab_sampler(window)
    turns = sampler.turns
    last = turns.first
    for place in drawn(sampler, 3 * turns.blocks_per_round):
        assert last <= place.turn
        last = place.turn
        assert place.loaded in turns.residents(place.turn)
        slab = turns.slab(place.loaded)
        for axis in range(3):
            start, count = place.region.start_zyx[axis], place.region.shape_zyx[axis]
            low, size = place.box.start_zyx[axis], place.box.shape_zyx[axis]
            read = reflect_indices(start, count, low, low + size)
            assert slab.region.start_zyx[axis] <= read.min()
            assert read.max() < slab.region.stop_zyx[axis]
    assert last > turns.first + 2 * len(turns.slabs)


@pytest.mark.parametrize("resident", [1, 3, 6])
def test_every_slab_is_loaded_once_a_round_and_never_while_it_is_still_there(resident: int) -> None:
    turns = slab_sampler(SLICES, Division((5, 1000, 1000), resident)).turns
    count = len(turns.slabs)
    order = [turns.index(loaded) for loaded in range(40 * count)]
    for start in range(0, len(order), count):
        assert sorted(order[start : start + count]) == list(range(count))
    for loaded in range(len(order) - resident):
        assert len(set(order[loaded : loaded + resident])) == resident
    assert order[:count] != order[count : 2 * count]


def test_the_number_of_blocks_while_all_slabs_are_read_once_follows_from_sizes_alone() -> None:
    sampler = slab_sampler(SLICES)
    turns = sampler.turns
    read = sum(slab.voxels for slab in turns.slabs)
    assert turns.blocks_per_round == round(COVERAGE * read / 64)
    rounds = 30
    places = drawn(sampler, rounds * turns.blocks_per_round)
    assert places[-1].turn - turns.first == pytest.approx(rounds * len(turns.slabs), abs=2 * len(turns.slabs) / 3)


def test_slabs_that_all_fit_stay_for_ever() -> None:
    sampler = slab_sampler(SLICES, Division((16, 1000, 1000), 4))
    assert sampler.turns.all_stay
    assert {place.turn for place in drawn(sampler, 5000)} == {sampler.turns.first}
    assert {place.loaded for place in drawn(sampler, 100)} == set(range(len(sampler.turns.slabs)))


# Evenness


def visits(places: list[SlabPlace], window: Window, axis: int) -> NDArray[np.int64]:
    """How many blocks predict each coordinate along an axis."""
    seen = np.zeros(SHAPE[axis] + window.predict_zyx[axis], dtype=np.int64)
    for place in places:
        start = place.region.start_zyx[axis] + window.before_zyx[axis]
        seen[start : start + window.predict_zyx[axis]] += 1
    return seen


def starts_of(places: list[SlabPlace], axis: int) -> Counter[int]:
    return Counter(place.region.start_zyx[axis] for place in places)


def standard_chi_square(found: Counter[int], expected: dict[int, float]) -> float:
    """Of places drawn by chance it has mean 0 and deviation 1; less of those drawn more evenly."""
    assert set(found) <= set(expected)
    freedom = len(expected) - 1
    return (sum((found[k] - e) ** 2 / e for k, e in expected.items()) - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "division",
    [Division((5, 1000, 1000), 3), Division((1000, 4, 1000), 2), Division((4, 5, 6), 3), Division((5, 6, 1000), 9)],
    ids=str,
)
@both
def test_over_several_rounds_every_place_is_drawn_equally_often(window: Window, division: Division) -> None:
    """Slabs differ in size here: 20 and 16 slices beside the held-out ones, and remainders along every axis."""
    sampler = slab_sampler(window, division)
    turns = sampler.turns
    rounds = max(20, 5000 // turns.blocks_per_round)
    # Whole rounds, not from the beginning: the first slabs are there for fewer turns.
    first = 3 * turns.blocks_per_round
    places = drawn(sampler, rounds * turns.blocks_per_round, first)
    sources = sampler._whole.holdout.sources
    for axis in range(3):
        expected: Counter[int] = Counter()
        for source in sources:
            low, size = source.box.start_zyx[axis], source.box.shape_zyx[axis]
            along = range(low, low + size - window.read_zyx[axis] + 1) if axis else source.z_starts
            others = [source.box.shape_zyx[a] - window.read_zyx[a] + 1 for a in (1, 2) if a != axis]
            others += [len(source.z_starts)] if axis else []
            for start in along:
                expected[start - (window.before_zyx[0] if axis == 0 else 0)] += int(np.prod(others))
        total = sum(expected.values())
        even = {start: len(places) * n / total for start, n in expected.items()}
        assert standard_chi_square(starts_of(places, axis), even) < 4


@both
def test_borders_of_slabs_are_trained_on_like_the_rest_and_faces_of_the_volume_like_without_slabs(
    window: Window,
) -> None:
    sampler = slab_sampler(window, Division((6, 5, 1000), 3))
    count = 40 * sampler.turns.blocks_per_round
    whole = sampler._whole
    size = whole.epoch_size
    without = [place for e in range(-(-count // size)) for place in whole.places(e, range(size))][:count]
    for axis in range(3):
        one, other = (visits(places, window, axis) for places in (drawn(sampler, count), without))
        assert ((one == 0) == (other == 0)).all()
        seen = other > 0
        # Neighbouring coordinates share blocks: the deviation is that of a few hundred blocks.
        deviation = np.sqrt(1 / one[seen] + 1 / other[seen])
        assert (np.abs(one[seen] / other[seen] - 1) < 5 * deviation).all()


def test_striding_and_augmentation_mean_what_they_mean_without_slabs() -> None:
    strided = slab_sampler(SLICES, z_stride=3)
    centres = {place.region.start_zyx[0] + 2 for place in drawn(strided, 3 * strided.turns.blocks_per_round)}
    assert centres == {z for source in strided._whole.holdout.sources for z in source.z_starts[::3]}
    assert {place.symmetry for place in drawn(slab_sampler(SLICES, augment=False), 50)} == {IDENTITY}
    for window, group in ((SLICES, SQUARE), (CUBES, CUBE)):
        symmetries = Counter(place.symmetry for place in drawn(slab_sampler(window), 100 * len(group)))
        assert set(symmetries) == set(group)
        assert max(abs(n - 100) for n in symmetries.values()) < 50


def test_threads_that_ask_at_the_same_time_see_one_order() -> None:
    """Whoever draws, cuts and reads goes on to a new round at about the same time."""
    expected = slab_sampler(SLICES).turns
    expected.index(400)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            turns = slab_sampler(SLICES).turns
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(turns.index, [400] * 8))
            assert turns._order == expected._order
    finally:
        sys.setswitchinterval(interval)


def test_an_epoch_is_as_long_as_without_slabs() -> None:
    assert slab_sampler(SLICES).epoch_size == whole_sampler(SLICES).epoch_size
    assert slab_sampler(CUBES, patches_per_epoch=7).epoch_size == 7


def test_a_turn_goes_through_all_its_slices_before_any_comes_again() -> None:
    sampler = slab_sampler(SLICES, Division((16, 1000, 1000), 4))
    slices = len({z for slab in sampler.turns.slabs for z in slab.starts_zyx[0]})
    for lap in range(3):
        centres = [place.region.start_zyx[0] for place in drawn(sampler, slices, lap * slices)]
        assert len(set(centres)) == slices
        assert centres != sorted(centres)


def test_a_run_of_a_million_turns_is_placed_at_once() -> None:
    """Resuming far into a run goes through the order of all rounds before."""
    sampler = slab_sampler(SLICES)
    far = 2000 * sampler.turns.blocks_per_round
    (place,) = drawn(sampler, 1, far)
    assert place.turn == pytest.approx(2000 * len(sampler.turns.slabs), rel=0.01)
