"""The directions of a scan: how much of the half circle each projection stands for, and which split it goes to.

Parallel projections at a and a + pi hold the same rays, so a direction is an angle modulo pi.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from denoise.errors import ScanError

Float64Array = NDArray[np.float64]

#: Of the half circle; 0.06 arc seconds, finer than any rotation stage, which joins 0 with 180 after rounding.
_STEPS = 10_000_000
#: A few gaps that are so many times as wide as all others are wedges where nothing was measured.
_WEDGES, _WIDER = 4, 3.0
#: Directions that are nearer to each other than this share of the mean gap count once; and those that are dealt out
#: together, as jitter has parted them. Those of a golden angle are never nearer than 0.38.
_SAME, _TOGETHER = 0.1, 0.3
#: Projections are dealt out by direction where gaps in a split are else so many times as wide; where that would give a
#: split more of one half turn, or of one half of the scan, only if they would be wedges.
_UNEVEN, _WEDGED = 1.5, 4.0
#: By more than this and chance, as a share.
_UNBALANCED = 0.1
#: Projections of one direction that are dealt out with a view to all of them.
_FEW = 16
#: Relative: weights that differ by less are the same.
_ALIKE = 1e-3


@dataclass(frozen=True, eq=False)
class HalfCircle:
    """What a scan measured of the half circle, with the wedges that it did not measure cut out.

    Attributes
    ----------
    directions
        Distinct ones, in steps of 1e-7 of the half circle, ascending.
    positions
        Of each along what was measured, radians.
    length
        Of all that was measured, radians: pi, where no wedge is missing.
    """

    directions: NDArray[np.int64]
    positions: Float64Array
    length: float

    @classmethod
    def of(cls, angles_rad: Float64Array) -> Self:
        """Of all projections of a scan.

        Wedges are up to four gaps, less than half of all, that are more than three times as wide as the widest of the
        others. To give their whole width to the two projections at their edges would draw streaks along these, so each
        counts as an ordinary gap, the 0.9 quantile of the others.
        """
        distinct = np.unique(_directions(angles_rad))
        gaps = np.diff(distinct, append=distinct[0] + _STEPS) * (np.pi / _STEPS)  # after each of them
        order = np.argsort(gaps)[::-1]
        for count in range(min(_WEDGES, (len(gaps) - 1) // 2), 0, -1):
            if gaps[order[count - 1]] > _WIDER * gaps[order[count]]:
                gaps[order[:count]] = np.quantile(gaps[order[count:]], 0.9, method="lower")
                break
        positions = np.concatenate([[0.0], np.cumsum(gaps[:-1])])
        return cls(distinct, positions, float(gaps.sum()))

    def positions_of(self, angles_rad: Float64Array) -> Float64Array:
        """Where projections of the scan lie along what was measured, radians."""
        return np.asarray(self.positions[np.searchsorted(self.directions, _directions(angles_rad))])

    def weights(self, angles_rad: Float64Array) -> Float64Array:
        """How much each of some projections of the scan stands for, in radians.

        Half of the gaps to its two neighbours among them (on the circle, Voronoi); projections at the same angle
        share. The sum is ``length`` for whichever projections: grey values do not depend on how many there are, or on
        which split they are in.
        """
        positions, index, multiplicity = np.unique(
            self.positions_of(angles_rad), return_inverse=True, return_counts=True
        )
        gaps = np.diff(positions, append=positions[0] + self.length)
        weights = 0.5 * (gaps + np.roll(gaps, 1)) / multiplicity
        return np.asarray(weights[index], dtype=np.float64)

    def typical_gap(self, angles_rad: Float64Array) -> float:
        """The gap between neighbouring directions of some projections that a random direction lies in, on average.

        Radians, wedges aside.
        """
        positions = np.unique(self.positions_of(angles_rad))
        return float(np.square(np.diff(positions, append=positions[0] + self.length)).sum() / self.length)


@dataclass(frozen=True, eq=False)
class SplitAngles:
    """The angles of a scan, and which split each projection belongs to.

    Attributes
    ----------
    angles_rad
        (projections,), radians, in any order and over any range.
    split_of
        (projections,), from 0.
    """

    angles_rad: Float64Array
    split_of: NDArray[np.int64]

    @classmethod
    def in_turn(cls, angles_rad: Float64Array, count: int) -> Self:
        """Projections k, k + K, k + 2K, ... are split k of K.

        Raises
        ------
        ScanError
            A split would have fewer than two projections.
        """
        n_angles = len(angles_rad)
        if count < 1 or n_angles < 2 * count:
            raise ScanError(
                f"{n_angles} projections cannot be divided into {count} splits; expected 1 to {n_angles // 2}, of at "
                "least 2 projections each: choose another --splits, or measure more"
            )
        return cls(np.asarray(angles_rad, np.float64), np.arange(n_angles) % count)

    @classmethod
    def of(cls, angles_rad: Float64Array, count: int) -> Self:
        """In turn, unless that leaves wider gaps in a split than dealing the projections out by their directions does.

        So it is where every K-th projection has a direction that another one of the same split has (a full turn, or
        one scan after the other), and where angles do not ascend (golden ratio, interlaced). It is not where each split
        would then be one half turn, as of a full turn with an odd number of projections: a rotation axis that is half
        a voxel off would shift such splits by 1.2 voxels against each other.

        Raises
        ------
        ScanError
            A split would have fewer than two projections.
        """
        taken = cls.in_turn(angles_rad, count)
        dealt = cls(taken.angles_rad, _by_direction(taken.angles_rad, count))
        times = taken.typical_gap / dealt.typical_gap
        return dealt if times > (_UNEVEN if dealt.is_balanced else _WEDGED) else taken

    @property
    def count(self) -> int:
        """K."""
        return int(self.split_of.max()) + 1

    @property
    def indices(self) -> Sequence[NDArray[np.int64]]:
        """The projections of each split, in the order in which they were taken."""
        return [np.flatnonzero(self.split_of == k) for k in range(self.count)]

    @property
    def is_in_turn(self) -> bool:
        """Whether split k has every K-th projection from the k-th on."""
        return bool(np.array_equal(self.split_of, np.arange(len(self.split_of)) % self.count))

    @property
    def is_balanced(self) -> bool:
        """Whether all splits have as much of each half turn, and of the first and second half of the scan."""
        late = np.arange(len(self.angles_rad)) >= len(self.angles_rad) / 2
        return all(
            abs(float(half[chosen].mean() - half.mean())) <= _UNBALANCED + 1 / np.sqrt(len(chosen))
            for half in (_other_way(self.angles_rad), late)
            for chosen in self.indices
        )

    @property
    def is_weighted_as_before(self) -> bool:
        """Whether the weights of all projections, and of those of each split, are what they were until 2026-11-28."""
        circle = self.half_circle
        parts = [self.angles_rad, *(self.angles_rad[chosen] for chosen in self.indices)]
        return all(np.allclose(_former_weights(part), circle.weights(part), rtol=_ALIKE, atol=0) for part in parts)

    @property
    def half_circle(self) -> HalfCircle:
        """Of the whole scan."""
        return HalfCircle.of(self.angles_rad)

    @property
    def typical_gap(self) -> float:
        """Of the split where it is widest, radians, wedges of the scan aside."""
        circle = self.half_circle
        return max(circle.typical_gap(self.angles_rad[chosen]) for chosen in self.indices)

    @property
    def fewest_directions(self) -> int:
        """Of any split; directions that all but coincide count once."""
        return min(int(_groups(self.angles_rad[chosen], _SAME).max()) + 1 for chosen in self.indices)


def _directions(angles_rad: Float64Array) -> NDArray[np.int64]:
    """Modulo pi, in steps."""
    return np.asarray(np.rint(np.asarray(angles_rad) / np.pi * _STEPS).astype(np.int64) % _STEPS)


def _groups(angles_rad: Float64Array, nearer: float) -> NDArray[np.int64]:
    """(projections,): a number for each, ascending with the direction; the same for those of one direction.

    Parameters
    ----------
    nearer
        Than this share of the mean gap.
    """
    directions = _directions(angles_rad)
    order = np.argsort(directions, kind="stable")
    ascending = directions[order]
    same = nearer * _STEPS * HalfCircle.of(angles_rad).length / np.pi / len(np.unique(directions))
    numbers = np.concatenate([[0], np.cumsum(np.diff(ascending) > same)])
    if numbers[-1] > 0 and ascending[0] + _STEPS - ascending[-1] <= same:
        numbers[numbers == numbers[-1]] = 0  # just below 180 degrees is just above 0
    groups = np.empty(len(order), np.int64)
    groups[order] = numbers
    return groups


def _other_way(angles_rad: Float64Array) -> NDArray[np.bool_]:
    """Which projections see the sample from behind, as those a half turn before or after them do not."""
    return np.asarray(np.rint(np.asarray(angles_rad) / np.pi * _STEPS).astype(np.int64) % (2 * _STEPS) >= _STEPS)


def _by_direction(angles_rad: Float64Array, count: int) -> NDArray[np.int64]:
    """(projections,): the split of each, where projections are dealt out in the order of their directions.

    Of projections with one direction, as opposed ones of a full turn, each split gets one from the half turn of which
    it has less, and of these one of which it has less: the first, the second, ... that has that direction. So what
    drifts, and a rotation axis that is a little off, is the same in all, where ``is_balanced``.
    """
    groups = _groups(angles_rad, _TOGETHER)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    way = _other_way(angles_rad).astype(np.int64)
    dealt = np.empty(len(order), np.int64)
    # Of each split: how many it has of each half turn, and how many first, second, ... ones.
    ways = np.zeros((count, 2), np.int64)
    places = np.zeros((count, int(np.diff(starts, append=len(order)).max())), np.int64)
    for start, members in zip(starts, np.split(order, starts[1:]), strict=True):
        left = list(range(len(members)))
        due = [turn % count for turn in range(start, start + len(members))]
        while due:
            # Who has least of what is there comes first; of hundreds with one direction, who is next.
            asked = due if len(members) <= _FEW else due[:1]
            had = [ways[split, way[members[left]]] * len(order) + places[split, left] for split in asked]
            who, what = np.unravel_index(int(np.argmin(had)), (len(asked), len(left)))
            split, place = due.pop(int(who)), left.pop(int(what))
            ways[split, way[members[place]]] += 1
            places[split, place] += 1
            dealt[members[place]] = split
    return dealt


def _former_weights(angles_rad: Float64Array) -> Float64Array:
    """Every gap of more than three times the 0.9 quantile was a wedge, and each split was weighted by itself."""
    distinct, index, multiplicity = np.unique(_directions(angles_rad), return_inverse=True, return_counts=True)
    gaps = np.diff(distinct, append=distinct[0] + _STEPS) * (np.pi / _STEPS)
    ordinary = np.quantile(gaps, 0.9, method="lower")
    gaps = np.where(gaps > _WIDER * ordinary, ordinary, gaps)
    weights = 0.5 * (gaps + np.roll(gaps, 1)) / multiplicity
    return np.asarray(weights[index], dtype=np.float64)
