"""How much better a result is than what it was made from: PSNR, gain, equivalent dose and resolution, with intervals.

In go the sums of an ``Evidence`` over blocks and over Fourier rings; out come numbers, each with the 95 % interval that
resampling those sums gives (Efron 1979, Ann. Stat. 7:1, doi 10.1214/aos/1176344552).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from denoise.errors import VolumeError
from denoise.resolution import first_below
from denoise.trust.errors import ErrorSums, bootstrap
from denoise.trust.evidence import Evidence
from denoise.trust.interval import Interval
from denoise.trust.spectra import RingSums
from denoise.trust.streaks import StreakFacts

#: Grey values between these percentiles of the delivered image are its range: single voxels do not decide.
RANGE_PERCENTILES = (0.1, 99.9)
#: Correlation with the truth at which detail counts as resolved.
RESOLVED = 0.5
_UNRESOLVED = Interval(math.nan, math.nan, math.nan)
#: Above 1 a correlation is impossible: by so many standard errors (so much each, of too few slices to tell), and so
#: much.
_BEYOND_CHANCE, _OF_FEW, _ROUNDED = 4.0, 0.05, 0.05
_FEWEST_SLICES = 4
#: An upper end by so much above the value, dB, stands for an error of less than a tenth of the estimate, which cannot
#: be told from none.
_FAR_ABOVE = 10.0


@dataclass(frozen=True)
class Scores:
    """The headline.

    Attributes
    ----------
    data_range
        Of grey values, in the volume's units; what PSNR relates errors to.
    psnr_before, psnr_after, gain
        dB. After is the delivered image.
    psnr_of_view
        dB: of the output for one view (one split of two), which needs no Gaussian noise. The delivered image is
        better, as it is made from all projections.
    equivalent_dose
        How many times as long the scan would have to be for the plain reconstruction to have the same squared error:
        10^(gain / 10), as that error falls as 1/dose.
    resolution_before, resolution_after
        Cycles per voxel where the correlation with the truth falls below 0.5; infinite: not before the Nyquist limit;
        NaN: not known, as the estimate of the correlation is above 1 before that by more than chance, where what
        differs between the splits is no independent noise.
    resolution_is_bound
        The splits cannot tell what lies beyond ``resolution_after``: it is at least that.
    error_is_bound
        Streaks of the splits are hidden in the estimates of error, and their strength is not known: the error is at
        least, and PSNR, gain and equivalent dose are at most, what is said; lower ends are -infinite (dose: 0).
    """

    data_range: float
    psnr_before: Interval
    psnr_after: Interval
    psnr_of_view: Interval
    gain: Interval
    equivalent_dose: Interval
    resolution_before: Interval
    resolution_after: Interval
    resolution_is_bound: bool
    error_is_bound: bool = False

    def as_bounds(self) -> Scores:
        """The same where streaks of unknown strength hide a part of the error."""
        return replace(
            self,
            psnr_after=replace(self.psnr_after, low=-math.inf),
            psnr_of_view=replace(self.psnr_of_view, low=-math.inf),
            gain=replace(self.gain, low=-math.inf),
            equivalent_dose=replace(self.equivalent_dose, low=0.0),
            error_is_bound=True,
        )

    def as_plain(self) -> dict[str, object]:
        """For JSON; a resolution that is not known is null."""
        plain = {
            name: value.as_plain() if isinstance(value := getattr(self, name), Interval) else value
            for name in self.__dataclass_fields__
        }
        return {**plain, "resolution_after": None} if math.isnan(self.resolution_after.value) else plain


def scores_of(evidence: Evidence, errors: ErrorSums, rings: RingSums, streaks: StreakFacts | None = None) -> Scores:
    """The headline of an evidence.

    Parameters
    ----------
    streaks
        What the errors are corrected for (``denoise.trust.streaks``); its uncertainty widens the intervals. None:
        nothing, as splits with enough angles have none.

    Raises
    ------
    VolumeError
        The result is the same everywhere.
    """
    low, high = np.percentile(evidence.delivered[:, evidence.mask], RANGE_PERCENTILES)
    data_range = float(high - low)
    if not data_range > 0:
        raise VolumeError(
            f"what the model makes of the held-out part is {low:.4g} nearly everywhere, and nothing can be judged; "
            "look at the slices, and train again if they are not as empty"
        )

    cases = [errors]
    if streaks is not None:
        cases = [_corrected(errors, streaks, sign) for sign in (0, -1, 1)]

    def psnr(column: str) -> Interval:
        return _of_cases(cases, lambda s: _decibels(data_range**2 * s.voxels.sum(), getattr(s, column).sum()))

    gain = _of_cases(cases, lambda s: _decibels(s.noisy.sum(), s.delivered.sum()))
    return Scores(
        data_range=data_range,
        psnr_before=psnr("noisy"),
        psnr_after=psnr("delivered"),
        psnr_of_view=psnr("view"),
        gain=gain,
        equivalent_dose=Interval(*(10 ** (v / 10) for v in (gain.value, gain.low, gain.high))),
        resolution_before=_resolution(rings, RingSums.correlation_before),
        resolution_after=_UNRESOLVED if _is_impossible(rings) else _resolution(rings, RingSums.correlation_after),
        resolution_is_bound=_is_bound(rings),
    )


def crossing(rings: RingSums, correlation: NDArray[np.float64]) -> float:
    """Cycles per voxel where a correlation falls below one half, or is not known any more; infinite: nowhere."""
    found = first_below(torch.from_numpy(rings.frequencies), torch.from_numpy(correlation), RESOLVED)
    return math.inf if found is None else found


def _resolution(rings: RingSums, curve: Callable[[RingSums], NDArray[np.float64]]) -> Interval:

    def statistic(slices: NDArray[np.int64]) -> float:
        return crossing(rings.of(slices), curve(rings.of(slices)))

    everything = np.arange(len(rings.noise))
    if len(everything) < _FEWEST_SLICES:
        return Interval(statistic(everything), math.nan, math.nan)
    low, high = bootstrap(statistic, len(everything), draws=100)
    return Interval(statistic(everything), low, high)


def _is_impossible(rings: RingSums) -> bool:
    """Whether the correlation with the truth comes out above 1, by more than chance, where it is resolved."""
    correlation, error = rings.correlation_after(), rings.error_after()
    limit = crossing(rings, correlation)
    with np.errstate(invalid="ignore"):
        beyond = correlation - np.maximum(_BEYOND_CHANCE * np.where(np.isnan(error), _OF_FEW, error), _ROUNDED) > 1
    return bool((beyond & (rings.frequencies < limit)).any())


def _is_bound(rings: RingSums) -> bool:
    correlation = rings.correlation_after()
    below = np.flatnonzero(~(correlation >= RESOLVED))
    return bool(len(below) and np.isnan(correlation[below[0]]))


def _corrected(errors: ErrorSums, streaks: StreakFacts, sign: int) -> ErrorSums:
    """Without the streaks, spread evenly over the voxels; with ``sign`` -1 or 1, weaker or stronger ones."""
    power = max(streaks.power + sign * streaks.uncertainty, 0.0) * errors.voxels
    hidden = (1 - 2 * streaks.passed) * power
    return replace(
        errors,
        delivered=errors.delivered + hidden,
        view=errors.view + hidden,
        noisy=errors.noisy - power,
    )


def _of_cases(cases: list[ErrorSums], statistic: Callable[[ErrorSums], float]) -> Interval:
    """The value of the first case in dB, with an interval that holds those of all, open where errors may be nothing."""
    found = [_over_blocks(errors, statistic) for errors in cases]
    value, low, high = found[0].value, min(i.low for i in found), max(i.high for i in found)
    return Interval(value, low, high if high <= value + _FAR_ABOVE else math.inf)


def _over_blocks(errors: ErrorSums, statistic: Callable[[ErrorSums], float]) -> Interval:
    low, high = bootstrap(lambda blocks: statistic(errors.of(blocks)), len(errors.voxels))
    return Interval(statistic(errors), low, high)


def _decibels(power: float, error: float) -> float:
    """10 log10 of a ratio; infinite for an error that is estimated to be nothing, -infinite for a power that is."""
    return math.inf if error <= 0 else 10 * math.log10(power / error) if power > 0 else -math.inf
