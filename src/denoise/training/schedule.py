"""How long a run lasts and how its learning rate falls: pure functions of where the run stands.

A run ends after its epochs, its minutes, or (for schedules that can) when the held-out score has stopped improving;
whichever comes first moves the end, and the learning rate follows the share of the way that is done. Nothing here
keeps state, so resuming needs none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: A high rate is reached in so many steps, or in this share of a shorter run: Adam's first steps would be too large.
_WARM_UP_STEPS = 50
_WARM_UP_SHARE = 0.1
#: A rate that is held is held for so many steps; after n times as many it is the root of n lower. A long run at the
#: full rate (0.008, residual2d) blew up after 6700 steps on one of the benchmark's cases and did not recover; at half
#: the rate it was better from 2000 steps on. See docs/network-study.md.
_STEPS_AT_PEAK = 1500
#: Of a run whose rate is held, the last part in which it falls to zero. See docs/network-study.md.
_FALLING_SHARE = 0.4
#: A run has stopped improving when its latest third made the error smaller by less than this, in dB.
_LEAST_GAIN_DB = 0.1
_WATCHED_SHARE = 1 / 3
#: Where decibels mean nothing: by less than this share of what the whole run gained. A tooth with streaks that are
#: opposed in its splits still gained a fifth when it was stopped without this.
_LEAST_SHARE = 0.05
#: Before so many scores a run is never called finished.
_FEWEST_SCORES = 12


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run.

    Attributes
    ----------
    name
        "constant"; "cosine", from the peak to zero (Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts);
        "hold", in 50 steps (or a tenth of the run) to the peak, after 1500 steps slowly lower (with the root of the
        steps), and in the last 40 % of the run linearly to zero.
    peak
        Highest learning rate.
    """

    name: str
    peak: float

    def rate(self, step: int, done: float) -> float:
        """Learning rate of a step (counted from 0) when this share (0 to 1) of the run is done."""
        left = 1.0 - min(max(done, 0.0), 1.0)
        match self.name:
            case "constant":
                return self.peak
            case "cosine":
                return self.peak * 0.5 * (1.0 - math.cos(math.pi * left))
            case "hold":
                rising = max((step + 1) / _WARM_UP_STEPS, done / _WARM_UP_SHARE)
                lasting = math.sqrt(_STEPS_AT_PEAK / max(step, _STEPS_AT_PEAK))
                return self.peak * lasting * min(1.0, rising, left / _FALLING_SHARE)
        raise AssertionError(self.name)

    @property
    def ends_when_flat(self) -> bool:
        """Whether a score that no longer improves says that the run is over: not while a cosine is still falling."""
        return self.name != "cosine"

    def end_after(self, flat_since: int) -> int:
        """The last step of a run that stopped improving at this step: a rate that was held has yet to fall."""
        if self.name == "hold":
            return math.ceil(flat_since / (1.0 - _FALLING_SHARE))
        return flat_since


def has_stopped_improving(curve: Sequence[tuple[int, float]]) -> bool:
    """Whether the last third of a run gained less than 0.1 dB: a pause that scales with the run.

    Errors that are not positive cannot be told from zero, or are off by streaks opposed in the splits: decibels mean
    nothing then, and the last third is compared with what the whole run gained.

    Parameters
    ----------
    curve
        (step, held-out mean squared error against the unknown truth) of every score so far, in order.
    """
    if len(curve) < _FEWEST_SCORES:
        return False
    now = curve[-1][0]
    earlier = [error for step, error in curve if step <= (1.0 - _WATCHED_SHARE) * now]
    if not earlier:
        return False
    before, best = min(earlier), min(error for _, error in curve)
    if best <= 0:
        return before - best <= _LEAST_SHARE * (curve[0][1] - best)
    return 10 * math.log10(before / best) < _LEAST_GAIN_DB
