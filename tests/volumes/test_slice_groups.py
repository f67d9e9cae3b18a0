"""Groups of slices: whole ones only, each once, whatever the slabs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from denoise.volumes.slice_groups import SliceGroups


def _slices(start: int, stop: int) -> np.ndarray:
    return np.broadcast_to(np.arange(start, stop)[:, None, None], (stop - start, 2, 3)).astype("f4")


@settings(max_examples=100, deadline=None)
@given(
    depth=st.integers(1, 20),
    together=st.sampled_from([1, 2, 4, 8, 16]),
    cuts=st.sets(st.integers(1, 19)),
    seed=st.randoms(use_true_random=False),
)
def test_every_slice_goes_out_once_in_whole_aligned_groups(depth, together, cuts, seed):
    slabs = list(pairwise([0, *sorted(c for c in cuts if c < depth), depth]))
    seed.shuffle(slabs)
    groups = SliceGroups(depth, together)
    seen: list[int] = []
    for start, stop in slabs:
        for first, given_out in groups.add(start, _slices(start, stop)):
            end = first + len(given_out)
            assert first % together == 0
            assert end % together == 0 or end == depth
            np.testing.assert_array_equal(given_out, _slices(first, end))
            seen += range(first, end)
    assert sorted(seen) == list(range(depth))


def test_slabs_that_are_whole_groups_are_not_copied():
    slab = _slices(4, 12)
    ((first, given_out),) = SliceGroups(20, 4).add(4, slab)
    assert first == 4
    assert np.shares_memory(given_out, slab)


def test_what_is_collected_is_a_copy():
    groups, slab = SliceGroups(4, 4), _slices(0, 2)
    assert list(groups.add(0, slab)) == []
    slab[...] = -1
    ((_, whole),) = groups.add(2, _slices(2, 4))
    np.testing.assert_array_equal(whole, _slices(0, 4))


def test_an_incomplete_group_does_not_go_out():
    groups = SliceGroups(10, 4)
    assert list(groups.add(8, _slices(8, 9))) == []
    assert list(groups.add(5, _slices(5, 8))) == []
