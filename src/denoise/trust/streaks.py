"""Streaks that differ between splits with few angles: how strong they are, and what they do to the estimates of error.

Let t be the noise-free reconstruction from all angles and x_0 = t + d + n_0, x_1 = t - d + n_1 the splits, with streaks
d and noise n_k. Whatever takes the difference of the splits for noise counts the streaks with it. With y = t + n the
mean of the splits, p = (x_0 - x_1) / 2 = d + m the probe, and J the derivative of the network, m is independent of y
and of t, so that

    E p^2 = E m^2 + D        E p.Jp = E m.Jm + k D        D = E d^2, k D = E d.Jd

The squared error of f(y), (f(y) - y)^2 - p^2 + 2 p.Jp, comes out too small by (1 - 2 k) D, and so do that of one view,
whose input has streaks that are opposed in its target, and that of the mean of both outputs; that of y comes out too
large by D. For k the share of p that the network lets through is taken: streaks are as fine as the noise.

**D from the result.** The streaks are linear in the object: d = A t, where A scans and reconstructs (``projections.
streaks``), and A is symmetric but for rounding to voxels. For a result f = t + e,

    D = E d.Af - E At.Ae

The first is E p.Af less E m.Af. That is not 0: the noise of each split lies on its own directions, f keeps traces of
it, and A finds them again. As E n m' = E m n', it is E n.A J m, and E y.A J p = E n.A J m + k D. The second term comes
from detail that f has lost, most where noise is strong: it is the sum over Fourier rings of E t.e = E f.t - E t^2,
which the splits tell without truth, as they tell the correlation, each times what A makes of a power of 1 there,
measured on white noise. Its chance error
is the scatter over slices. The streaks hide (1 - k) D of it as well, spread over the rings like those of the result, so
that D is the solution of a linear equation. Interpolation weakens A by a factor c, about 1.1, which is put in.

**Does A fit the scan?** Wrong angles give an E d.Af of 0 or less. The regression coefficient of d on the simulated
streaks, b = E d.Af / E A f(x_0).A f(x_1), is 1 or more; the outputs of both views have independent noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from denoise.projections.streaks import streaks_of_splits
from denoise.resolution import Rings
from denoise.trust.evidence import Evidence
from denoise.trust.spectra import RingSums, ring_starts
from denoise.trust.verdict import Finding, Severity
from denoise.volumes.volume import Float32Array

Float64Array = NDArray[np.float64]

#: From so many angles of a split for each column its streaks are no concern (3e-5 of a foam's variance, measured).
ENOUGH_ANGLES = 1.5
#: By how much streaks simulated from a noise-free foam or anatomy are too weak: 1.1 with 0.4 angles of a split for each
#: column, 1.2 with 0.75. With 1.1 the power is 0.7 to 1.3 of the true one (docs/report.md), with 1.2 up to twice that.
_INTERPOLATION = 1.1
#: Simulated streaks that the splits show by less than this share are those of another scan.
_FITS = 0.3
#: How far D may be wrong: of the part that comes from lost detail, and of all of it; the larger counts.
_LOST_DETAIL_KNOWN, _POWER_KNOWN = 0.5, 0.35
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
        D: by how much the squared error of the mean of the splits comes out too large.
    uncertainty
        Of it, about two standard deviations.
    passed
        k: the share that the network lets through.
    coefficient, coefficient_error
        Regression b of the streaks in the splits on the simulated ones, and its standard error.
    """

    power: float
    uncertainty: float
    passed: float
    coefficient: float
    coefficient_error: float

    @property
    def fits(self) -> bool:
        """Whether simulated and real streaks agree, or are too weak to tell."""
        return self.coefficient + 2 * self.coefficient_error > _FITS

    @property
    def is_validated(self) -> bool:
        """Whether the simulated streaks are certainly in the splits."""
        return self.coefficient - 2 * self.coefficient_error > 0


def measure_streaks(evidence: Evidence, rings: RingSums, angles_rad: Float64Array, *, seed: int = 0) -> StreakFacts:
    """Simulate the streaks of some held-out slices, compare them with the splits, add those of lost detail.

    Parameters
    ----------
    evidence
        Of two splits, and whole, square slices with the rotation axis in the middle.
    rings
        Its sums.
    angles_rad
        (angles,) of the whole scan; split k was made from k, k + 2, ....

    Raises
    ------
    ScanError
        Fewer than two angles for a split.
    """
    mask = evidence.mask
    assert len(evidence.splits) == 2, f"streaks of {len(evidence.splits)} splits"
    most = max(1, min(_MOST_SLICES, _MOST_SAMPLES // (angles_rad.size * mask.size)))
    chosen = np.unique(np.linspace(0, evidence.shape[0] - 1, min(most, evidence.shape[0])).round().astype(int))

    result, full, probe = (stack[chosen] for stack in (evidence.delivered, evidence.full, evidence.probe))
    response = (0.5 * (evidence.outputs[0] - evidence.outputs[1]) if evidence.response is None else evidence.response)[
        chosen
    ]
    noise = np.random.default_rng(seed).standard_normal(result[:2].shape).astype(np.float32)
    # In one call: the simulation goes over the rays once for many slices.
    stacks = (result, response, noise, *(output[chosen] for output in evidence.outputs))
    ends = np.cumsum([len(stack) for stack in stacks])[:-1]
    all_streaks = streaks_of_splits(np.where(mask, np.concatenate(stacks), 0), angles_rad, 2)[0]
    simulated, of_response, of_noise, one, other = np.split(all_streaks, ends)
    gain = _power(of_noise, mask) / _power(noise, mask)
    shape = _power(simulated, mask)
    passed = float(np.clip(_mean(probe * response, mask) / _mean(np.square(probe), mask), 0, 1))
    found, error = _mean_and_error(probe * simulated - full * of_response, mask)
    lost, lost_error = _mean_of_slices(_INTERPOLATION**2 * (_lost(rings) * gain).sum(1))
    fed_back = passed + _INTERPOLATION**2 * (1 - passed) * float((gain * shape).sum() / shape.sum())
    kept = max(1 - fed_back, 0.25)
    unclipped = (_INTERPOLATION * found + lost) / kept
    power = max(unclipped, 0.0)
    chance = float(np.hypot(_INTERPOLATION * error, lost_error)) / kept
    doubtful = max(_LOST_DETAIL_KNOWN * abs(unclipped - _INTERPOLATION * found), _POWER_KNOWN * abs(unclipped))
    square = max(_mean(one * other, mask), 0.01 * _mean(np.square(simulated), mask), 1e-300)
    return StreakFacts(
        power=power,
        uncertainty=doubtful + 2 * chance,
        passed=passed,
        coefficient=(found + passed * power) / square,
        coefficient_error=error / square,
    )


def judge_streaks(facts: StreakFacts | None) -> Finding:
    """What streaks do to the estimates of error; None: they are there, and cannot be simulated."""
    asked = "Do streaks of the splits disturb the estimated error?"
    if facts is None:
        return Finding(
            "streaks", asked, None, "times the object's own streaks", None,
            "Streaks that differ between the splits hide a part of the error. They can be computed from the result and "
            "the angles of the scan, which `denoise prepare` writes beside its splits, for two "
            "splits and whole held-out slices.",
            Severity.RESERVATION,
            "Splits with so few angles have streaks of their own, which hide a part of the error; the angles are not "
            "known, only parts of slices were held out, or there are more than two splits, so that gain and PSNR are "
            "upper bounds.",
        )  # fmt: skip
    why = (
        "Streaks were computed from the result, as this scan would make them, and looked for in the difference of the "
        "splits: how strong they are there is 1 to 5 as a rule, or 0 or less if the angles, their order, or the "
        "rotation axis are not those of the splits."
    )
    if not facts.fits:
        sentence = (
            f"The streaks in the splits are {facts.coefficient:.2f} ± {2 * facts.coefficient_error:.2f} times those "
            "that the angles beside the splits would make: they are not the angles that these splits were made from. "
            "Nothing was corrected; gain and PSNR are upper bounds."
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
        "streaks", asked, facts.coefficient, "times the object's own streaks", 1.0, why,
        Severity.NOTE if facts.fits else Severity.RESERVATION, sentence,
    )  # fmt: skip


def _lost(rings: RingSums) -> Float64Array:
    """(slices, rings): -E t.e, the truth times what the result lacks of it: mean over voxels of each ring's part."""
    per_mode = (rings.signal - rings.delivered_signal) / rings.weight
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


def _mean(stack: Float32Array, mask: NDArray[np.bool_]) -> float:
    return float(stack[:, mask].mean(dtype=np.float64))


def _mean_and_error(stack: Float32Array, mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean over the field of view, and its standard error from blocks."""
    inside = np.where(mask, stack, 0).astype(np.float64)
    starts = [np.arange(0, n, _BLOCK) for n in mask.shape]
    sums = np.add.reduceat(np.add.reduceat(inside, starts[0], axis=1), starts[1], axis=2).ravel()
    voxels = len(stack) * int(mask.sum())
    return float(sums.sum()) / voxels, float(np.sqrt(np.square(sums - sums.mean()).sum())) / voxels
