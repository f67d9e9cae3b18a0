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


def test_of_the_same_slices_those_that_were_held_out() -> None:
    region, why = trained(0, 24, range(10, 13)).unseen(splits())
    assert where(region) == (10, 13)
    assert why == "held out in training"


def test_slices_are_known_by_their_numbers_not_by_their_places() -> None:
    seen = trained(8, 20, range(13, 15))
    assert where(seen.unseen(splits())[0]) == (13, 15)
    assert where(seen.unseen(splits(12, 24))[0]) == (1, 3)
    assert where(seen.unseen(splits(14, 24))[0]) == (0, 1)


def test_of_a_reconstruction_without_them_what_lies_outside_the_slices_that_were_seen() -> None:
    seen = trained(8, 20, range(9, 11))
    region, why = seen.unseen(splits(12, 24))
    assert where(region) == (8, 12)
    assert "not among" in why
    assert where(seen.unseen(splits(12, 21))[0]) == (8, 9)
    with pytest.raises(VolumeError, match=r"trained on all slices .*12\.\.19, .*slices 9\.\.10"):
        seen.unseen(splits(12, 20))
    region, why = seen.unseen(splits(20, 24))
    assert where(region) == (0, 4)
    assert "8..19: none of these" in why


def test_other_grey_values_of_the_same_object_are_no_other_scan() -> None:
    region, why = trained(0, 24, range(10, 13)).unseen(splits(noise=2))
    assert where(region) == (10, 13)
    assert "looks like this object" in why


def test_of_another_object_all() -> None:
    region, why = trained(0, 24, range(10, 13)).unseen(splits(of=7))
    assert where(region) == (0, 24)
    assert "another scan" in why


def test_rows_that_were_held_out_of_every_slice() -> None:
    data = splits(0, 4)
    seen = Seen.of(data, range(4), Region((0, 6, 0), (4, 5, 20)))
    region, _ = seen.unseen(splits(2, 4))
    assert region == Region((0, 6, 0), (2, 5, 20))


def test_what_all_runs_of_a_model_have_not_seen() -> None:
    data, last = splits(), trained(0, 24, range(10, 13))

    def unseen(earlier: Seen, *, is_all: bool = True) -> tuple[Region, str]:
        return AllSeen((), is_all).then(earlier).then(last).unseen(data)

    assert unseen(trained(0, 24, range(0, 12)))[0] == Region.of_slices(10, 12, data.shape)
    assert where(unseen(trained(0, 24, range(3), of=7))[0]) == (10, 13)
    assert unseen(last) == last.unseen(data)
    with pytest.raises(VolumeError, match="without --finetune"):
        unseen(trained(0, 24, range(3)))


def test_a_model_that_began_from_one_that_does_not_say_what_it_has_seen_says_that() -> None:
    last = trained(0, 24, range(10, 13))
    region, why = AllSeen().then(last).unseen(splits())
    assert where(region) == (10, 13)
    assert why == "held out in training; on what the model that it began from was trained is not known"
    assert AllSeen((), is_all=True).then(last).unseen(splits())[1] == "held out in training"


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
    assert again.unseen(splits()) == seen.unseen(splits())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slices", [0, 0, 1]),
        ("slices", [0, 4, 0]),
        ("slices", [0, 4]),
        ("held_out", [0, 2**64, 1]),
        ("held_out", None),
        ("rows", [0, 17, 1]),
        ("rows", [0, 8, 2]),
        ("contents", []),
    ],
)
def test_damage_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"no|empty|rows"):
        Seen.of_plain({**trained(0, 24, range(10, 13)).as_plain(), name: value})
