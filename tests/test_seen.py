"""Where a model can be judged, by what it was trained on."""

from __future__ import annotations

import numpy as np
import pytest

from denoise.errors import VolumeError
from denoise.seen import AllSeen, Seen
from denoise.tiles import Region
from denoise.volumes import ArrayVolume, SplitSet

OBJECT = np.random.default_rng(3).normal(size=(24, 16, 20)).astype(np.float32)


def splits(first: int = 0, stop: int = 24, *, noise: int = 1, of: int = 0) -> SplitSet:
    """Two noisy copies of some slices of an object."""
    rng = np.random.default_rng(noise)
    values = np.roll(OBJECT, of, axis=1) + rng.normal(0, 0.2, (2, *OBJECT.shape)).astype(np.float32)
    return SplitSet(tuple(ArrayVolume(split[first:stop], first_slice=first) for split in values))


def trained(first: int, stop: int, held_out: range, *, of: int = 0) -> Seen:
    """On slices first..stop-1, all there was."""
    data = splits(first, stop, of=of)
    region = Region.of_slices(held_out.start - first, held_out.stop - first, data.shape)
    return Seen.of(data, range(stop - first), region)


def where(region: Region) -> tuple[int, int]:
    """Of whole slices, first and stop."""
    assert region.shape_zyx[1:] == (16, 20)
    return region.start_zyx[0], region.stop_zyx[0]


def unseen(splits: SplitSet, *runs: Seen, is_all: bool = True) -> tuple[Region, str]:
    """By a model that was trained in these runs, one from the other."""
    seen = AllSeen((), is_all)
    for run in runs:
        seen = seen.then(run)
    return seen.unseen(splits)


def test_of_the_same_slices_those_that_were_held_out() -> None:
    region, why = unseen(splits(), trained(0, 24, range(10, 13)))
    assert where(region) == (10, 13)
    assert why == "held out in training"


def test_slices_are_known_by_their_numbers_not_by_their_places() -> None:
    seen = trained(8, 20, range(13, 15))
    assert where(unseen(splits(), seen)[0]) == (13, 15)
    assert where(unseen(splits(12, 24), seen)[0]) == (1, 3)
    assert where(unseen(splits(14, 24), seen)[0]) == (0, 1)


def test_the_same_grey_values_are_known_again_when_they_are_numbered_anew() -> None:
    original = splits(8, 20)
    copy = SplitSet(tuple(ArrayVolume(volume.read(Region((0, 0, 0), volume.shape))) for volume in original.volumes))
    region, why = unseen(copy, trained(8, 20, range(13, 15)))
    assert where(region) == (5, 7)
    assert "the same grey values as slices 8..19" in why


def test_of_a_reconstruction_without_them_what_lies_outside_the_slices_that_were_seen() -> None:
    seen = trained(8, 20, range(9, 11))
    region, why = unseen(splits(12, 24), seen)
    assert where(region) == (8, 12)
    assert "not among" in why
    assert where(unseen(splits(12, 21), seen)[0]) == (8, 9)
    with pytest.raises(VolumeError, match=r"trained on all slices .*12\.\.19, .*slices 9\.\.10"):
        unseen(splits(12, 20), seen)
    region, why = unseen(splits(20, 24), seen)
    assert where(region) == (0, 4)
    assert "8..19: none of these, if they are numbered alike" in why


def test_where_no_slice_is_remembered_the_numbers_decide_and_what_is_not_known_is_said() -> None:
    shape = (200, 16, 20)
    long = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    data = SplitSet(tuple(ArrayVolume(values) for values in long))
    seen = Seen.of(data, range(200), Region.of_slices(95, 105, shape))

    def part(first: int, stop: int) -> SplitSet:
        assert not [n for n in seen.contents.numbers if first <= n < stop]
        return SplitSet(tuple(ArrayVolume(values[first:stop], first_slice=first) for values in long))

    region, why = unseen(part(97, 102), seen)
    assert where(region) == (0, 5)
    assert "if this is the scan" in why
    region, why = unseen(part(1, 6), seen)
    assert where(region) == (0, 5)
    assert "it may have seen them" in why


def test_other_grey_values_of_the_same_object_are_no_other_scan() -> None:
    region, why = unseen(splits(noise=2), trained(0, 24, range(10, 13)))
    assert where(region) == (10, 13)
    assert "looks like this object" in why


def test_of_another_object_all() -> None:
    region, why = unseen(splits(of=7), trained(0, 24, range(10, 13)))
    assert where(region) == (0, 24)
    assert "looks like another scan" in why


def test_rows_that_were_held_out_of_every_slice() -> None:
    data = splits(0, 4)
    seen = Seen.of(data, range(4), Region((0, 6, 0), (4, 5, 20)))
    assert unseen(splits(2, 4), seen)[0] == Region((0, 6, 0), (2, 5, 20))


def test_what_all_runs_of_a_model_have_not_seen() -> None:
    data, last = splits(), trained(0, 24, range(10, 13))
    assert where(unseen(data, trained(0, 24, range(0, 12)), last)[0]) == (10, 12)
    assert where(unseen(data, trained(0, 24, range(3), of=7), last)[0]) == (10, 13)
    assert unseen(data, last, last) == unseen(data, last)
    with pytest.raises(VolumeError, match="trained on all slices"):
        unseen(data, trained(0, 24, range(3)), last)


def test_a_run_on_other_slices_of_the_scan_takes_nothing_from_what_the_last_one_held_out() -> None:
    region, _ = unseen(splits(), trained(0, 10, range(4, 6)), trained(12, 24, range(17, 19)))
    assert where(region) == (17, 19)
    region, _ = unseen(splits(), trained(0, 18, range(4, 6)), trained(12, 24, range(17, 20)))
    assert where(region) == (18, 20)


def test_a_model_that_was_trained_before_on_what_it_does_not_say_says_that() -> None:
    last = trained(0, 24, range(10, 13))
    region, why = unseen(splits(), last, is_all=False)
    assert where(region) == (10, 13)
    assert why == "held out in training; on what it was trained before that is not known"


def test_the_same_data_are_remembered_once() -> None:
    one, other = trained(0, 24, range(10, 13)), trained(0, 24, range(3), of=7)
    seen = AllSeen((), is_all=True).then(one).then(other).then(one)
    assert [run.held_out for run in seen.runs] == [range(3), range(10, 13)]
    again = AllSeen.of_plain(seen.as_plain())
    assert (again.is_all, [run.key for run in again.runs]) == (True, [other.key, one.key])
    assert AllSeen.of_plain({}) == AllSeen((), is_all=False)


def test_what_was_seen_is_stored_as_plain_values() -> None:
    seen = trained(8, 20, range(13, 15))
    again = Seen.of_plain(seen.as_plain())
    assert (again.slices, again.held_out, again.rows) == (range(8, 20), range(13, 15), range(16))
    assert unseen(splits(), again) == unseen(splits(), seen)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slices", [0, 0, 1]),
        ("slices", [0, 4, 0]),
        ("slices", [0, 4]),
        ("slices", [0, 2**62, 1]),
        ("slices", [10**9, 10**9 + 24, 1]),
        ("held_out", [30, 32, 1]),
        ("held_out", [0, 2**64, 1]),
        ("held_out", None),
        ("rows", [0, 17, 1]),
        ("rows", [0, 8, 2]),
        ("contents", []),
    ],
)
def test_damage_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"no |empty|rows"):
        Seen.of_plain({**trained(0, 24, range(10, 13)).as_plain(), name: value})
