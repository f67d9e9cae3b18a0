"""Dividing the training part: every place in exactly one slab, and every slab read with all that its blocks read."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from denoise.errors import VolumeError
from denoise.patches.holdout import HoldOut
from denoise.patches.sampler import CubeSampler, SliceSampler
from denoise.patches.slabs import FEWEST_RESIDENT, Division, divide
from denoise.tiles import Triple, Window, reflect_indices

SLICES = Window((5, 8, 8), (1, 8, 8), (1, 8, 8), (2, 0, 0), "uniform")
EVEN = Window((4, 8, 8), (1, 8, 8), (1, 8, 8), (2, 0, 0), "uniform")
CUBES = Window((8, 8, 8), (8, 8, 8), (8, 8, 8), (0, 0, 0), "uniform")


def sampler_of(window: Window, shape: Triple, z_stride: int = 1, train: range | None = None):
    kind = CubeSampler if window is CUBES else SliceSampler
    return kind(HoldOut.of(shape, window, 0.1, train), window, 0, z_stride=z_stride)


@pytest.mark.parametrize("most", [(1000, 1000, 1000), (5, 1000, 1000), (3, 4, 1000), (2, 5, 7), (1, 1, 1)], ids=str)
@pytest.mark.parametrize(
    ("window", "shape", "z_stride", "train"),
    [
        (SLICES, (40, 20, 24), 1, None),
        (SLICES, (40, 20, 24), 3, range(4, 31)),
        (EVEN, (30, 12, 9), 1, None),
        (SLICES, (2, 40, 12), 1, None),  # the held-out part is rows
        (SLICES, (20, 6, 24), 1, None),  # fewer rows than a patch
        (CUBES, (40, 18, 12), 1, None),
        (CUBES, (20, 5, 12), 2, None),
        (CUBES, (3, 30, 12), 1, None),  # shallower than a cube
    ],
    ids=str,
)
def test_every_place_of_a_block_is_in_exactly_one_slab_which_holds_what_the_block_reads(
    most: Triple, window: Window, shape: Triple, z_stride: int, train: range | None
) -> None:
    sampler = sampler_of(window, shape, z_stride, train)
    slabs = Division(most, 1).slabs(sampler)
    found: Counter[tuple[object, ...]] = Counter()
    for slab in slabs:
        read: list[set[int]] = []
        for axis, starts in enumerate(slab.starts_zyx):
            assert len(starts) <= most[axis]
            before = window.before_zyx[0] if axis == 0 else 0
            low, size = slab.source.box.start_zyx[axis], slab.source.box.shape_zyx[axis]
            read.append(
                {int(i) for s in starts for i in reflect_indices(s - before, window.read_zyx[axis], low, low + size)}
            )
        starts, stops = slab.region.start_zyx, slab.region.stop_zyx
        assert [(min(each), max(each) + 1) for each in read] == list(zip(starts, stops, strict=True))
        found.update((slab.source, *place) for place in product(*slab.starts_zyx))
        assert slab.places == len(list(product(*slab.starts_zyx)))
    assert set(found.values()) == {1}
    whole = {
        (source, z, y, x)
        for source in sampler.holdout.sources
        for z in source.z_starts[::z_stride]
        for y, x in product(
            *(
                range(low, low + max(size - read, 0) + 1)
                for low, size, read in zip(
                    source.box.start_zyx[1:], source.box.shape_zyx[1:], window.read_zyx[1:], strict=True
                )
            )
        )
    }
    assert set(found) == whole


def test_slabs_of_a_source_are_of_about_one_size() -> None:
    slabs = Division((7, 5, 1000), 1).slabs(sampler_of(SLICES, (61, 30, 24)))
    for axis in range(2):
        by_source = {}
        for slab in slabs:
            by_source.setdefault(slab.source, set()).add(len(slab.starts_zyx[axis]))
        assert all(max(lengths) - min(lengths) <= 1 for lengths in by_source.values())


@pytest.mark.parametrize("budget", [10**5, 3 * 10**5, 10**6, 10**8])
@pytest.mark.parametrize("window", [SLICES, CUBES], ids=["slices", "cubes"])
def test_what_is_in_memory_keeps_to_the_budget_and_is_as_much_as_fits(window: Window, budget: int) -> None:
    sampler = sampler_of(window, (60, 40, 48))
    division = divide(sampler, 8, budget)
    slabs = division.slabs(sampler)
    assert division.bytes_of(slabs, 8) <= budget
    assert division.resident >= min(FEWEST_RESIDENT, len(slabs))
    if division.resident < len(slabs):
        one_more = Division(division.most_starts_zyx, division.resident + 1)
        assert one_more.bytes_of(slabs, 8) > budget or one_more.slots(slabs) == division.slots(slabs)
    else:
        assert division.slots(slabs) == len(slabs), "none has to be read again"


def test_slabs_are_of_whole_slices_where_these_are_small() -> None:
    sampler = sampler_of(SLICES, (500, 40, 48))
    division = divide(sampler, 8, 60 * 5 * 40 * 48 * 8, (1, 1, 48))
    assert all(slab.region.shape_zyx[1:] == (40, 48) for slab in division.slabs(sampler))
    assert max(slab.region.shape_zyx[0] for slab in division.slabs(sampler)) <= 20


def test_enormous_slices_are_cut_into_bands_of_rows() -> None:
    window = Window((5, 256, 256), (1, 256, 256), (1, 256, 256), (2, 0, 0), "uniform")
    sampler = sampler_of(window, (64, 16384, 16384))
    division = divide(sampler, 8, 4 * 10**9, (1, 1, 16384))
    slabs = division.slabs(sampler)
    assert division.bytes_of(slabs, 8) <= 4 * 10**9
    assert all(slab.region.shape_zyx[2] == 16384 and slab.region.shape_zyx[1] < 2000 for slab in slabs)
    assert sum(slab.voxels for slab in slabs) < 2.5 * 64 * 16384**2, "context is not read more than that"


def test_a_budget_that_not_even_single_patches_fit_in_is_refused_with_figures() -> None:
    sampler = sampler_of(CUBES, (60, 40, 48))
    with pytest.raises(VolumeError, match=r"memory for 0\.0 MB.*at least 0\.0 MB.*lower the patch size"):
        divide(sampler, 8, 4 * 8**3 * 8 - 1)
    assert divide(sampler, 8, 4 * 8**3 * 8).resident == FEWEST_RESIDENT
