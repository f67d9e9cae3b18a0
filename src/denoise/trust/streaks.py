"""Streaks that differ between splits with few angles: how strong they are, and what they do to the estimates of error.

Let t be the noise-free reconstruction from all angles and x_0 = t + d + n_0, x_1 = t - d + n_1 the splits, with streaks
d and noise n_k. Whatever takes the difference of the splits for noise counts the streaks with it. With y = t + n the
mean of the splits, p = (x_0 - x_1) / 2 = d + m the probe, and J the derivative of the network,

    E p^2 = E m^2 + D        E p.Jp = E m.Jm + k D        D = E d^2, k D = E d.Jd

The squared error of f(y), (f(y) - y)^2 - p^2 + 2 p.Jp, comes out too small by (1 - 2 k) D, and so do that of one view,
whose input has streaks that are opposed in its target, and that of the mean of both outputs; that of y comes out too
large by D. k is taken as the share of p that the network lets through, as if streaks were as fine as the noise. m is no
independent sample: the noise of each split lies on its own directions, so that n and m are correlated. Only over
distances at which these directions part, a third of the angles of a split in voxels, and there networks see little.

**D from lost detail.** The streaks are linear in the object: d = A t, where A scans and reconstructs (``projections.
streaks``), and A is symmetric but for interpolation. With g the mean of the outputs f(x_k), and e = g - t,

    D = E d.Ag - E At.Ae        F = E (x_0.A f(x_1) - x_1.A f(x_0)) / 2 = E d.Ag - k D

F needs independent splits and nothing else: no output meets its own noise. (E p.Ag would, as g keeps traces of what
lies on the directions of a split, and A finds them.) The rest comes from detail that g has lost: the sum over Fourier
rings of E t.e = E g.t - E t^2, which the splits tell without truth, each times what A makes of a power of 1 there,
measured on white noise. That is an approximation: A^2 is no function of the ring, and the images are tapered. In E t.e
the streaks hide (1 - k) D, spread over the rings like those of the result. With L the sum as it is measured, G the mean
of A's powers over the streaks, and c by how much simulated streaks are too weak,

    (1 - k) (1 - c^2 G) D = c F + c^2 L

If c^2 is wrong by a sixth, D is wrong by c^2 G / (1 - c^2 G) sixths: by a half where c^2 G is 3/4. Beyond, which is
below about 0.4 angles of the scan for each column, D cannot be told. L is uncertain where noise is strong.

**D from the regression.** A g explains streaks of the power F^2 / S, S = E A f(x_0).A f(x_1): a lower bound (Cauchy and
Schwarz), whatever constant factors A and f weaken it by, but for k D and what f answers to streaks. It is less
uncertain: it leaves lost detail out. Networks gave 1/1.8 to 1/1.1 of D.

**The rule.** The geometric mean of the first (the bound, if that is more) and 1.5 times the second is taken, F^2 less
its chance error: where no streaks are found in the splits, none are corrected. It is uncertain by the distance to both,
and by chance. Where more than a tenth of the noise passes, k D is no longer small against F; chance is, and the first
is taken alone. docs/report.md compares this with other rules.

**Does A fit the scan?** Wrong angles give an E d.Ag of 0 or less. The regression coefficient of d on the simulated
streaks, b = E d.Ag / S, is 1 or more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from denoise.projections.angles import SplitAngles
from denoise.projections.streaks import streaks_of_splits
from denoise.resolution import Rings
from denoise.trust.evidence import Evidence
from denoise.trust.spectra import RingSums, ring_starts
from denoise.trust.verdict import Finding, Severity
from denoise.volumes.volume import Float32Array

Float64Array = NDArray[np.float64]

#: From so many angles of a split for each column its streaks are no concern (3e-5 of a foam's variance, measured).
ENOUGH_ANGLES = 1.5
#: c, by how much streaks simulated from a noise-free object are too weak: 1.1 with 0.4 angles of a split for each
#: column, 1.2 with 0.5, 1.2 to 1.5 with 0.75. It is not made to follow that: L is too large by about as much.
_INTERPOLATION = 1.1
#: Simulated streaks that the splits show by less than this share are those of another scan.
_FITS = 0.3
#: Networks that let more noise through are judged by lost detail alone (none was between 0.06 and 0.3 when it was set).
_LITTLE_NOISE = 0.1
#: D divided by that of the regression: 1.1 to 1.8 in eight cases at 1600 photons.
_NOT_EXPLAINED = 1.5
#: How far D may be wrong where it comes from lost detail alone.
_ALONE_KNOWN = 0.5
#: D is told where it is at least this share of what is measured of it, noise passed and streaks fed back.
_LEAST_LEFT = 0.25
_MOST_SLICES, _MOST_SAMPLES = 16, 2_000_000_000
_BLOCK = 16
#: Rings end at the Nyquist frequency: a circle in the square of all modes.
_OF_ALL_MODES = np.pi / 4


@dataclass(frozen=True)
class StreakFacts:
    """Streaks of the splits; powers are means over the field of view, squared grey values.

    Attributes
    ----------
    power
        D: by how much the squared error of the mean of the splits comes out too large; 0 where it cannot be told.
    uncertainty
        Of it, about two standard deviations.
    passed
        k: the share that the network lets through.
    coefficient, coefficient_error
        Regression b of the streaks in the splits on the simulated ones, and its standard error.
    left
        The smaller of 1 - k and 1 - c^2 G, by which D is divided.
    """

    power: float
    uncertainty: float
    passed: float
    coefficient: float
    coefficient_error: float
    left: float

    @property
    def fits(self) -> bool:
        """Whether simulated and real streaks agree, or are too weak to tell."""
        return self.coefficient + 2 * self.coefficient_error > _FITS

    @property
    def is_validated(self) -> bool:
        """Whether the simulated streaks are certainly in the splits."""
        return self.coefficient - 2 * self.coefficient_error > 0

    @property
    def can_be_told(self) -> bool:
        """Whether the power is known well enough to correct for it; if not, errors are lower bounds."""
        return self.fits and self.left >= _LEAST_LEFT


def measure_streaks(evidence: Evidence, rings: RingSums, angles: SplitAngles, *, seed: int = 0) -> StreakFacts:
    """Simulate the streaks of some held-out slices, compare them with the splits, add those of lost detail.

    Parameters
    ----------
    evidence
        Of two splits, and whole, square slices with the rotation axis in the middle.
    rings
        Its sums.
    angles
        Of the whole scan, and which of the two splits each belongs to.
    """
    mask = evidence.mask
    assert len(evidence.splits) == 2, f"streaks of {len(evidence.splits)} splits"
    most = max(1, min(_MOST_SLICES, _MOST_SAMPLES // (angles.angles_rad.size * mask.size)))
    chosen = np.unique(np.linspace(0, evidence.shape[0] - 1, min(most, evidence.shape[0])).round().astype(int))

    first, second, probe = (stack[chosen] for stack in (*evidence.splits, evidence.probe))
    outputs = tuple(output[chosen] for output in evidence.outputs)
    answer = 0.5 * (outputs[0] - outputs[1])
    noise = np.random.default_rng(seed).standard_normal(answer[:2].shape).astype(np.float32)
    # In one call: the simulation goes over the rays once for many slices.
    stacks = (*outputs, noise)
    ends = np.cumsum([len(stack) for stack in stacks])[:-1]
    one, other, of_noise = np.split(streaks_of_splits(np.where(mask, np.concatenate(stacks), 0), angles)[0], ends)
    gain = _power(of_noise, mask) / _power(noise, mask)
    shape = _power(0.5 * (one + other), mask)
    passed = _share(probe, answer, mask)
    found, error = _mean_and_error(0.5 * (first * other - second * one), mask)
    square, square_error = _mean_and_error(one * other, mask)
    lost, lost_error = _mean_of_slices(_INTERPOLATION**2 * (_lost(rings) * gain).sum(1))
    fed_back = _INTERPOLATION**2 * float((gain * shape).sum() / shape.sum())
    left = min(1 - passed, 1 - fed_back)
    power = uncertainty = 0.0
    if left >= _LEAST_LEFT:
        kept = (1 - passed) * (1 - fed_back)
        of_lost = (_INTERPOLATION * found + lost) / kept
        power, doubtful = max(of_lost, 0.0), _ALONE_KNOWN * abs(of_lost)
        if passed < _LITTLE_NOISE:
            certain = square > 2 * square_error and found > error
            explained = (found**2 - error**2) / square if certain else 0.0
            power = float(np.sqrt(max(of_lost, explained) * _NOT_EXPLAINED * explained))
            doubtful = max(abs(of_lost - power), abs(power - explained))
        uncertainty = doubtful + 2 * float(np.hypot(_INTERPOLATION * error, lost_error)) / kept
    square = max(square, 0.01 * _mean(np.square(0.5 * (one + other)), mask), 1e-300)
    return StreakFacts(
        power=power,
        uncertainty=uncertainty,
        passed=passed if evidence.response is None else _share(probe, evidence.response[chosen], mask),
        coefficient=(found + passed * power / _INTERPOLATION) / square,
        coefficient_error=error / square,
        left=left,
    )


_ASKED = "Do streaks of the splits disturb the estimated error?"
_TIMES = "times the object's own streaks"


def not_simulated(reason: str) -> Finding:
    """What streaks do to the estimates of error where they are there, and cannot be simulated for this reason."""
    return Finding(
        "streaks", _ASKED, None, _TIMES, None,
        "Streaks that differ between the splits hide a part of the error. They can be computed from the result and the "
        "angles of the scan, which `denoise prepare` writes beside its splits, for two splits and whole held-out "
        "slices.",
        Severity.RESERVATION,
        "Splits with so few angles have streaks of their own, which hide a part of the error, and cannot be computed, "
        f"as {reason}: gain and PSNR are upper bounds.",
    )  # fmt: skip


def judge_streaks(facts: StreakFacts) -> Finding:
    """What streaks that were simulated do to the estimates of error."""
    why = (
        "Streaks were computed from the result, as this scan would make them, and looked for in the difference of the "
        "splits: how strong they are there is 1 to 6 as a rule, or 0 or less if the angles, their order, or the "
        "rotation axis are not those of the splits."
    )
    if not facts.fits:
        sentence = (
            f"The streaks in the splits are {facts.coefficient:.2f} ± {2 * facts.coefficient_error:.2f} times those "
            "that the angles beside the splits would make: they are not the angles that these splits were made from. "
            "Nothing was corrected; gain and PSNR are upper bounds."
        )
    elif not facts.can_be_told:
        sentence = (
            "With so few angles the streaks of the splits cannot be told from the detail that the result has lost. "
            "Nothing was corrected; gain and PSNR are upper bounds."
        )
    elif facts.power == 0:
        sentence = (
            "The splits show no streaks that stand out from chance, and nothing was corrected; those that may be there "
            "widen the intervals of gain, equivalent dose and PSNR."
        )
    else:
        sentence = (
            "Gain, equivalent dose and PSNR are corrected for the streaks of the splits"
            + (
                f", which the splits show {facts.coefficient:.2f} times as strong as computed"
                if facts.is_validated
                else ", which are too weak in the splits to be checked there"
            )
            + "; correlation, resolution and the tests of detail are not."
        )
    return Finding(
        "streaks", _ASKED, facts.coefficient, _TIMES, 1.0, why,
        Severity.NOTE if facts.can_be_told else Severity.RESERVATION, sentence,
    )  # fmt: skip


def _lost(rings: RingSums) -> Float64Array:
    """(slices, rings): -E t.e, the truth times what the outputs lack of it: mean over voxels of each ring's part."""
    per_mode = (rings.signal - rings.view_signal) / rings.weight
    return np.asarray(per_mode * rings.modes / rings.modes.sum() * _OF_ALL_MODES)


def _mean_of_slices(values: Float64Array) -> tuple[float, float]:
    """Mean of (slices,), and its standard error; of a single slice as large as the value."""
    mean = float(values.mean())
    return mean, float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else abs(mean)


def _power(stack: Float32Array, mask: NDArray[np.bool_]) -> Float64Array:
    """(rings,): power of any image; only ratios are used."""
    rings = Rings.of(*mask.shape)
    sums = np.zeros(len(rings.frequencies))
    for image in stack:
        spectrum = rings.transform(torch.from_numpy(np.where(mask, image, 0).astype(np.float64)))
        sums += rings.sums(spectrum, spectrum).numpy()
    return np.asarray(np.add.reduceat(sums, ring_starts(len(sums))))


def _share(probe: Float32Array, answer: Float32Array, mask: NDArray[np.bool_]) -> float:
    """How much of the probe is in the answer to it, 0 to 1."""
    return float(np.clip(_mean(probe * answer, mask) / max(_mean(np.square(probe), mask), 1e-300), 0, 1))


def _mean(stack: Float32Array, mask: NDArray[np.bool_]) -> float:
    return float(stack[:, mask].mean(dtype=np.float64))


def _mean_and_error(stack: Float32Array, mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean over the field of view, and its standard error from blocks."""
    inside = np.where(mask, stack, 0).astype(np.float64)
    starts = [np.arange(0, n, _BLOCK) for n in mask.shape]
    sums = np.add.reduceat(np.add.reduceat(inside, starts[0], axis=1), starts[1], axis=2).ravel()
    voxels = len(stack) * int(mask.sum())
    return float(sums.sum()) / voxels, float(np.sqrt(np.square(sums - sums.mean()).sum())) / voxels
