"""What of a scan a model has seen: travels with the model, and tells where it can be judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from denoise.errors import VolumeError
from denoise.tiles import Region
from denoise.volumes.contents import Contents
from denoise.volumes.volume import SplitSet, describe_numbers

#: That a model was trained in, one from the other: a report looks at what each has seen.
_MOST_RUNS = 256


@dataclass(frozen=True)
class Seen:
    """The slices that a model was trained on, by their numbers, and the part of them that was held out.

    Attributes
    ----------
    slices
        Whose voxels training read, those held out among them.
    held_out
        Slices that were held out; of each the rows ``rows``, counted from 0.
    contents
        Of the splits in ``slices``.
    """

    slices: range
    held_out: range
    rows: range
    contents: Contents

    @classmethod
    def of(cls, splits: SplitSet, read: range, held_out: Region) -> Seen:
        """What a run sees.

        Parameters
        ----------
        splits
            The training data.
        read
            Slices that training reads, counted from 0.
        held_out
            Whole slices, or whole rows of them.

        Raises
        ------
        VolumeError
            A slice cannot be read.
        """
        numbers = splits.volumes[0].slice_numbers
        z, y, _ = held_out.start_zyx
        z_stop, y_stop, _ = held_out.stop_zyx
        contents = Contents.of(splits.volumes, read)
        return cls(numbers[read.start : read.stop], numbers[z:z_stop], range(y, y_stop), contents)

    @property
    def key(self) -> tuple[str, range, range, range]:
        """The same for the same data, slices and division."""
        return self.contents.sha256, self.slices, self.held_out, self.rows

    def unseen(self, splits: SplitSet) -> tuple[Region, str]:
        """The part of some splits that the model has not seen, in one piece, and how that is known.

        Raises
        ------
        VolumeError
            The model was trained on all of their slices.
        """
        volumes, whole = splits.volumes, Region((0, 0, 0), splits.shape)
        numbers = volumes[0].slice_numbers
        alike = self.contents.show_one_object(volumes)
        if alike is False:
            return whole, "the model was trained on another scan: no slice of this one was seen"
        if splits.shape[1:] != (self.contents.rows, self.contents.columns):
            size = f"{self.contents.rows} x {self.contents.columns}"
            return whole, f"the model was trained on slices of {size} voxels, taken for those of another scan"
        if alike is None and not any(number in numbers for number in self.slices):
            return whole, f"the model was trained on slices {describe_numbers(self.slices)}: none of these"
        if alike is None:
            return whole, "no slice that the model remembers is here: taken for another scan, not seen by the model"
        held = [z for z, number in enumerate(numbers) if number in self.held_out]
        if held:
            z, stop = held[0], held[-1] + 1
            y, rows = self.rows[0], len(self.rows)
            why = "" if self.contents.are_those_of(volumes) else ", on other grey values of what looks like this object"
            region = replace(whole, start_zyx=(z, y, 0), shape_zyx=(stop - z, rows, splits.shape[2]))
            return region, f"held out in training{why}"
        unseen = max(_runs_outside(numbers, self.slices), key=len)
        if not unseen:
            raise VolumeError(
                f"the model was trained on all slices of {volumes[0].name}, {describe_numbers(numbers)}, and nothing "
                f"there can be judged; reconstruct what was held out too (slices {describe_numbers(self.held_out)})"
            )
        return Region.of_slices(unseen.start, unseen.stop, splits.shape), "not among the slices that were trained on"

    def as_plain(self) -> dict[str, Any]:
        """For an archive: plain values."""
        return {
            **{name: _triple(getattr(self, name)) for name in ("slices", "held_out", "rows")},
            "contents": self.contents.as_plain(),
        }

    @classmethod
    def of_plain(cls, stored: Mapping[str, Any]) -> Self:
        """As it was stored.

        Raises
        ------
        ValueError
            A value is missing or of another kind.
        """
        contents = stored.get("contents")
        if not isinstance(contents, dict):
            raise ValueError("no contents")
        slices, held_out, rows = (_range(stored.get(name)) for name in ("slices", "held_out", "rows"))
        found = Contents.of_plain(contents)
        if rows.step != 1 or rows.stop > found.rows:
            raise ValueError("rows that are none")
        return cls(slices, held_out, rows, found)


@dataclass(frozen=True)
class AllSeen:
    """What a model was trained on in all its runs.

    Attributes
    ----------
    runs
        The last one last. None: nothing is known.
    is_all
        Whether there was nothing before them that is not known.
    """

    runs: tuple[Seen, ...] = ()
    is_all: bool = False

    def then(self, now: Seen) -> AllSeen:
        """With one run more; of two on the same data and slices one is kept."""
        before = (run for run in self.runs if run.key != now.key)
        return AllSeen((*before, now), self.is_all)

    def unseen(self, splits: SplitSet) -> tuple[Region, str]:
        """As ``Seen.unseen``, by all runs.

        Raises
        ------
        VolumeError
            Nothing is left.
        """
        region, why = self.runs[-1].unseen(splits)
        for earlier in self.runs[:-1]:
            other, _ = earlier.unseen(splits)
            start = [max(a, b) for a, b in zip(region.start_zyx, other.start_zyx, strict=True)]
            stop = [min(a, b) for a, b in zip(region.stop_zyx, other.stop_zyx, strict=True)]
            if any(a >= b for a, b in zip(start, stop, strict=True)):
                raise VolumeError(
                    f"what the last training of the model held out of {splits.volumes[0].name}, an earlier one was "
                    "trained on, and nothing there can be judged; train on these slices without --finetune, or judge "
                    "another scan"
                )
            z, y, x = start
            region = Region((z, y, x), (stop[0] - z, stop[1] - y, stop[2] - x))
        return region, why if self.is_all else f"{why}; on what the model that it began from was trained is not known"

    def as_plain(self) -> dict[str, Any]:
        """For an archive: plain values."""
        return {"runs": [run.as_plain() for run in self.runs], "is_all": self.is_all}

    @classmethod
    def of_plain(cls, stored: Mapping[str, Any]) -> Self:
        """As it was stored; of nothing, that nothing is known.

        Raises
        ------
        ValueError
            A value is of another kind, or too many.
        """
        runs, is_all = stored.get("runs", []), stored.get("is_all", False)
        if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs) or type(is_all) is not bool:
            raise ValueError("no runs")
        if len(runs) > _MOST_RUNS:
            raise ValueError("too many runs")
        return cls(tuple(Seen.of_plain(run) for run in runs), is_all)


#: Of models that do not say; of a model before its first run.
UNKNOWN, NOTHING = AllSeen(), AllSeen((), is_all=True)


def _runs_outside(numbers: range, seen: range) -> list[range]:
    """Positions before and after the slices that were seen; empty ranges where there are none."""
    low = sum(number < seen[0] for number in numbers)
    high = sum(number <= seen[-1] for number in numbers)
    return [range(0, low), range(high, len(numbers))]


def _triple(numbers: range) -> list[int]:
    return [numbers.start, numbers.stop, numbers.step]


def _range(stored: object) -> range:
    if not isinstance(stored, list) or len(stored) != 3 or not all(type(n) is int and 0 <= n < 2**63 for n in stored):
        raise ValueError("no range of numbers")
    start, stop, step = stored
    if step < 1 or stop <= start:
        raise ValueError("an empty range")
    return range(start, stop, step)
