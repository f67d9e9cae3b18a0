"""What of a scan a model has seen: travels with the model, and tells where it can be judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from denoise.errors import VolumeError
from denoise.tiles import Region
from denoise.volumes.contents import Contents
from denoise.volumes.volume import SplitSet, describe_numbers

#: That a model was trained in, one from the other: a report looks at what each has seen.
_MOST_RUNS = 256
#: Where no slice is there that the model remembers.
_IN_DOUBT = "held out in training, if this is the scan that the model was trained on"
_MAY_BE_SEEN = "whether they are of the scan that the model was trained on cannot be told: it may have seen them"
#: Slices, as of a header that is believed.
_LONGEST = 2**20


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

    def among(self, splits: SplitSet) -> tuple[range | None, str]:
        """The numbers that the slices of some splits have in this run, and how that is known; None: they are others."""
        volumes, numbers = splits.volumes, splits.volumes[0].slice_numbers
        if splits.shape[1:] != (self.contents.rows, self.contents.columns):
            size = f"{self.contents.rows} x {self.contents.columns}"
            return None, (
                f"the model was trained on slices of {size} voxels, taken for those of another scan: if they are this "
                "one, cropped or binned, these slices were seen"
            )
        if self.contents.are_those_of(volumes):
            return numbers, "held out in training"
        first, step = self.slices.start, self.slices.step
        if self.contents.are_those_of(volumes, first, step):
            again = range(first, first + splits.shape[0] * step, step)
            return again, f"held out in training, of the same grey values as slices {describe_numbers(again)}"
        alike = self.contents.show_one_object(volumes)
        if alike is False:
            return None, (
                "the model was trained on what looks like another scan: then no slice of this one was seen, unless one "
                "of the two was turned, mirrored or reconstructed about a centre that was far off"
            )
        if not any(number in self.slices for number in numbers):
            known = "the model was trained on slices"
            return None, f"{known} {describe_numbers(self.slices)}: none of these, if they are numbered alike"
        if alike:
            return numbers, (
                "held out in training, if slices have the numbers that they had then: these are other grey values of "
                "what looks like this object"
            )
        return numbers, _IN_DOUBT

    def rows_unseen(self, number: int, rows: int) -> range:
        """Of a slice of the scan that was trained on."""
        if number in self.held_out:
            return self.rows
        return range(0) if number in self.slices else range(rows)

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
        if held_out[0] not in slices or held_out[-1] not in slices or not all(n in slices for n in found.numbers):
            raise ValueError("no slices that were read")
        return cls(slices, held_out, rows, found)


@dataclass(frozen=True)
class AllSeen:
    """What a model was trained on in all its runs.

    Attributes
    ----------
    runs
        The last one last.
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
        """The part of some splits that the model has not seen, in one piece, and how that is known.

        Held-out slices of the last run where there are any; otherwise the largest part.

        Raises
        ------
        VolumeError
            The model was trained on all of their slices.
        """
        depth, height, width = splits.shape
        found = [run.among(splits) for run in self.runs]
        known = [(run, numbers) for run, (numbers, _) in zip(self.runs, found, strict=True) if numbers is not None]
        why = found[-1][1]
        pieces: list[tuple[range, range]] = []
        for z in range(depth):
            rows = range(height)
            for run, numbers in known:
                more = run.rows_unseen(numbers[z], height)
                rows = range(max(rows.start, more.start), min(rows.stop, more.stop))
            if not rows:
                continue
            if pieces and pieces[-1][0].stop == z and pieces[-1][1] == rows:
                pieces[-1] = (range(pieces[-1][0].start, z + 1), rows)
            else:
                pieces.append((range(z, z + 1), rows))
        if not pieces and all(why == _IN_DOUBT for numbers, why in found if numbers is not None):
            return Region((0, 0, 0), splits.shape), _MAY_BE_SEEN
        if not pieces:
            there = describe_numbers(splits.volumes[0].slice_numbers)
            raise VolumeError(
                f"the model was trained on all slices of {splits.volumes[0].name}, {there}, and "
                "nothing there can be judged; reconstruct what was held out too (slices "
                f"{describe_numbers(self.runs[-1].held_out)})"
            )
        last = found[-1][0]
        held = [p for p in pieces if last is not None and any(last[z] in self.runs[-1].held_out for z in p[0])]
        slices, left = max(held or pieces, key=lambda piece: len(piece[0]) * len(piece[1]))
        if not held and last is not None:
            why = "not among the slices that were trained on"
        region = Region((slices.start, left.start, 0), (len(slices), len(left), width))
        return region, why if self.is_all else f"{why}; on what it was trained before that is not known"

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


def _triple(numbers: range) -> list[int]:
    return [numbers.start, numbers.stop, numbers.step]


def _range(stored: object) -> range:
    if not isinstance(stored, list) or len(stored) != 3 or not all(type(n) is int and 0 <= n < 2**63 for n in stored):
        raise ValueError("no range of numbers")
    start, stop, step = stored
    if step < 1 or not 0 < (stop - start) <= step * _LONGEST:
        raise ValueError("an empty or endless range")
    return range(start, stop, step)
