"""How what is missing is divided between processes."""

from __future__ import annotations

import pytest

from denoise.inference.run import shares


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("together", [1, 4, 16])
@pytest.mark.parametrize(
    "missing", [[], [(0, 37)], [(0, 16), (32, 37)], [(16, 32)], [(0, 4), (8, 12), (16, 20), (36, 37)]], ids=str
)
def test_every_missing_slice_has_one_owner_and_groups_are_not_cut(
    missing: list[tuple[int, int]], count: int, together: int
) -> None:
    runs = [range(a, b) for a, b in missing]
    parts = shares(runs, count, together)
    assert len(parts) == count
    assert [z for part in parts for run in part for z in run] == [z for run in runs for z in run]
    edges = {edge for part in parts for run in part for edge in (run.start, run.stop)}
    given = {edge for run in runs for edge in (run.start, run.stop)}
    assert all(edge % together == 0 for edge in edges - given)


def test_the_parts_are_of_nearly_equal_size() -> None:
    parts = shares([range(10), range(20, 150), range(151, 300)], 7)
    sizes = [sum(map(len, part)) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert max(map(len, parts)) <= 2
