"""Tests of the splits before anything is trained on them: is what the method assumes of them true?

In go splits, out come findings. Some slices, spread over the volume, are read in turn; memory is a few slices. What the
tests measure is in ``splits``, what it means is said here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from denoise.trust.splits import SplitFacts, measure
from denoise.trust.verdict import Finding, Severity, Verdict
from denoise.volumes import Volume
from denoise.volumes.volume import Float32Array

#: Correlation of the noise of two splits in the finest quarter of frequencies.
DEPENDENT = 0.05
#: Voxels. A shift d takes 1 - cos(pi d) of the correlation at the Nyquist frequency: 5 % at a tenth.
SHIFT = 0.1
#: Ratio of noise powers.
UNEQUAL = 1.25
#: Ratio of contrasts, and difference of means in units of the contrast.
SCALE, OFFSET = 0.02, 0.02
#: How much the noise power varies with direction beyond chance, where few angles leave gaps between them.
SPOKES = 0.18
#: Measured on reconstructed noise, 128 and 300 voxels wide: scatter, and angles of a split over columns.
_SCATTER, _ANGLES = (0.09, 0.22, 0.43, 0.75, 1.2), (1.5, 1.0, 0.75, 0.5, 0.3)
#: Standard deviation of rings, in that of the noise of the full reconstruction.
RINGS = 0.15
#: Signal over noise power of one split, all frequencies.
FAINT = 0.05
#: Shares of the voxels.
SATURATED, EMPTY = 0.001, 0.5
#: Contrast in the outermost ring of the field of view, over that of the whole.
TRUNCATED = 0.5
#: Standard deviations of the noise: a tenth is a hundredth of its power.
NOT_THE_MEAN = 0.1
_STANDS_OUT = 5.0
#: How much of one another two splits may repeat in all frequencies and still be two.
_SAME = 0.999


def check_splits(volumes: Sequence[Volume]) -> Verdict:
    """All findings on some splits.

    Parameters
    ----------
    volumes
        K splits, proven to have one shape (``SplitSet``).

    Raises
    ------
    VolumeError
        A slice cannot be read.
    """
    facts = measure(volumes)
    return Verdict.of([_nothing()]) if facts is None else judge_splits(facts)


def judge_splits(facts: SplitFacts) -> Verdict:
    """What the numbers mean."""
    return Verdict.of(
        [
            _finite(facts),
            _independent(facts),
            _registered(facts),
            _same_scale(facts),
            _equal_noise(facts),
            _angles(facts),
            _rings(facts),
            _drift(facts),
            _counts(facts),
            _saturated(facts),
            _field_of_view(facts),
        ]
    )


def judge_full(full: Float32Array, mean_of_splits: Float32Array, noise: float) -> Finding:
    """Whether the full reconstruction is what the report takes it for.

    Parameters
    ----------
    full, mean_of_splits
        The same slices, (Z, Y, X).
    noise
        Standard deviation of the noise of the mean, grey values.
    """
    difference = full.astype(np.float64) - mean_of_splits
    value = float(np.sqrt(np.mean(np.square(difference))) / max(noise, 1e-300))
    failed = value > NOT_THE_MEAN
    return Finding(
        "full_is_mean",
        "Is the full reconstruction the mean of the splits?",
        value,
        "standard deviations of its noise",
        NOT_THE_MEAN,
        "Reconstructed with the same settings from all projections it is, apart from rounding. The report judges "
        "what the "
        "model makes of the mean of the splits.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"The full reconstruction differs from the mean of the splits by {value:.2f} standard deviations of its "
        "noise (another "
        "filter, another scale, or other projections): the report holds for the mean of the splits, not for it."
        if failed
        else "The full reconstruction is the mean of the splits.",
    )


def _nothing() -> Finding:
    return Finding(
        "empty",
        "Is there anything in the splits?",
        0.0,
        "voxels",
        None,
        "Slices whose voxels are all the same, or not finite, hold nothing to train on.",
        Severity.INVALID,
        "The slices that were looked at are empty or constant; check the files.",
    )


def _finite(facts: SplitFacts) -> Finding:
    bad = facts.non_finite
    return Finding(
        "finite",
        "Are all grey values numbers?",
        bad,
        "share of the voxels",
        0.0,
        "Training stops at NaN and infinite voxels unless dataset.non_finite is fill.",
        Severity.RESERVATION if bad > 0 else Severity.FINE,
        f"{100 * bad:.3g} % of the voxels are NaN or infinite; reconstruct without them, or set dataset.non_finite: "
        "fill."
        if bad > 0
        else "All grey values that were looked at are finite.",
    )


def _independent(facts: SplitFacts) -> Finding:
    value, error = facts.fine_correlation, facts.fine_correlation_error
    certain = abs(value) > _STANDS_OUT * error
    why = (
        "Correlation of the splits in the finest quarter of frequencies, where an object has almost nothing and all "
        "that "
        "is left is noise. Independent noise has 0. What both splits share the method takes for signal and keeps: at "
        "0.05, a twentieth of the noise power."
    )
    question = "Is the noise of the splits independent?"
    if facts.correlation > _SAME:
        sentence = (
            "The splits are the same image: there is no noise to tell from signal. Reconstruct them from different "
        )
        sentence += "projections."
        severity = Severity.INVALID
    elif certain and value < -DEPENDENT:
        sentence = (
            f"The noise of the splits is opposed (correlation {value:.2f}): something was divided between them after "
            "they "
            "were made, or a filter mixed their projections; all estimates of error are wrong."
        )
        severity = Severity.INVALID
    elif certain and value > DEPENDENT and facts.is_flat:
        sentence = (
            f"The splits share noise (correlation {value:.2f} at the finest frequencies, and no less at the very "
            "finest, as "
            "detail would have): projections that are in both, a filter over the angles, or interpolated projections. "
            "That part of the noise will stay in the result and count as signal."
        )
        severity = Severity.INVALID if value > 10 * DEPENDENT else Severity.RESERVATION
    elif certain and value > DEPENDENT:
        sentence = (
            f"The splits agree even at the finest frequencies (correlation {value:.2f}, falling towards the finest): "
            "the "
            "object has detail down to single voxels, or the noise is shared. In a smooth part of the object the "
            "difference "
            "of the splits should look like noise."
        )
        severity = Severity.NOTE
    else:
        sentence = "The noise of the splits is independent."
        severity = Severity.FINE
    return Finding("noise_independent", question, value, "correlation", DEPENDENT, why, severity, sentence)


def _registered(facts: SplitFacts) -> Finding:
    value = facts.shift
    failed = value > SHIFT and value > _STANDS_OUT * facts.shift_error
    grave = failed and value > 10 * SHIFT
    return Finding(
        "registered",
        "Do the splits show the object in the same place?",
        value,
        "voxels",
        SHIFT,
        "Shift in the plane between the first two splits that differ most, from the phase of their cross-spectrum. A "
        "tenth "
        "of a voxel blurs the finest detail by 5 %; the network learns to blur by as much as the splits are apart.",
        Severity.INVALID if grave else Severity.RESERVATION if failed else Severity.FINE,
        f"The splits are shifted by {value:.2f} voxels against each other: reconstruct them with one rotation centre "
        "and "
        "one geometry; detail of that size will be lost."
        if failed
        else "The splits lie on top of each other.",
    )


def _same_scale(facts: SplitFacts) -> Finding:
    value = max(abs(facts.contrast_ratio - 1), abs(facts.offset))
    failed = value > max(SCALE, OFFSET) and value > _STANDS_OUT * facts.scale_error
    return Finding(
        "same_scale",
        "Have the splits the same grey values?",
        value,
        "of the contrast",
        SCALE,
        "The larger of: the ratio of their contrasts minus 1, the difference of their means over the contrast. The "
        "network "
        "is trained to turn one split into the other and would learn the change.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"Grey values of the splits differ by {100 * value:.1f} % of the contrast: reconstruct them with the same "
        "scale "
        "(and with weights for their own number of angles)."
        if failed
        else "The splits have the same grey values.",
    )


def _equal_noise(facts: SplitFacts) -> Finding:
    value = facts.noise_ratio
    failed = value > UNEQUAL
    return Finding(
        "equal_noise",
        "Are the splits equally noisy?",
        value,
        "times",
        UNEQUAL,
        "Noise power of the noisiest split over that of the least noisy one. The error of the result is estimated "
        "with a "
        "sample of noise made from their difference, which is exact for equal noise; the mean of unequal splits is "
        "also not the "
        "best image.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"One split has {value:.2f} times the noise power of another: were they made from different numbers of "
        "angles or "
        "exposures? Estimates of the error are less certain."
        if failed
        else "The splits are equally noisy.",
    )


def _angles(facts: SplitFacts) -> Finding:
    value = facts.spokes
    failed = value > SPOKES
    about = f"about {np.interp(value, _SCATTER, _ANGLES):.1f}" if value < _SCATTER[-1] else f"less than {_ANGLES[-1]}"
    return Finding(
        "enough_angles",
        "Has each split enough angles?",
        value,
        "relative scatter",
        SPOKES,
        "How unevenly the noise of a split is spread over directions at its finest frequencies, beyond chance: 0.1 "
        "with 1.5 "
        "angles for each column of the image, which is what filtered back-projection needs, 0.22 with 1 and 0.75 "
        "with a "
        "half, where gaps open between the projections (Crowther, DeRosier & Klug 1970, doi 10.1098/rspa.1970.0119).",
        Severity.RESERVATION if failed else Severity.FINE,
        f"Each split seems to have {about} angles for each column of the image, fewer than 1.1: "
        "streaks differ "
        "between the splits and are removed like noise, and with them fine detail far from the rotation axis; the "
        "estimated error is too small by what the streaks hide. Use fewer splits, or measure more angles."
        if failed
        else "Directions are covered evenly; streaks do not limit the detail.",
    )


def _rings(facts: SplitFacts) -> Finding:
    value = facts.rings
    failed = value > RINGS and facts.rings_certainty > _STANDS_OUT
    return Finding(
        "rings",
        "Are there rings that all splits share?",
        value,
        "standard deviations of the noise",
        RINGS,
        "Strength of concentric rings around the middle of the slices that appear in different splits and in different "
        "quarters alike, over the noise of the full reconstruction. Above 0.15 they show once the noise is gone.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"Rings common to the splits, {value:.2f} times as strong as the noise, count as signal: they will stay, "
        "clearer "
        "than before. `denoise prepare --remove-stripes` removes them from the projections."
        if failed
        else "There are no rings that would stay.",
    )


def _drift(facts: SplitFacts) -> Finding:
    value = facts.slice_jumps
    failed = value > OFFSET
    return Finding(
        "drift",
        "Does the brightness drift from slice to slice?",
        value,
        "of the contrast",
        OFFSET,
        "Typical step of the mean grey value between neighbouring slices, common to all splits, over the contrast, "
        "beyond "
        "what noise makes. It is taken for the object and kept, as is any slow drift during the scan (beam, sample "
        "motion).",
        Severity.NOTE if failed else Severity.FINE,
        f"Neighbouring slices differ in brightness by {100 * value:.1f} % of the contrast in all splits: if that is "
        "not the "
        "object, it will stay."
        if failed
        else "Brightness does not jump from slice to slice.",
    )


def _counts(facts: SplitFacts) -> Finding:
    value = facts.signal_to_noise
    failed = value < FAINT
    return Finding(
        "counts",
        "Is there enough signal?",
        value,
        "times the noise power",
        FAINT,
        "Power of what the splits share over the noise power of one. Below 0.05 a split is nine tenths noise at "
        "nearly all "
        "sizes. Where rays have fewer than ten counts, the logarithm of the counts is also biased, by 1 / (2 "
        "counts), in all "
        "splits alike: that is kept.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"The splits have very little signal ({value:.3f} times the noise power): expect coarse structures only, and "
        "grey "
        "values that are biased where little light came through."
        if failed
        else f"The object's power is {value:.2f} times the noise power of one split.",
    )


def _saturated(facts: SplitFacts) -> Finding:
    value = max(facts.clipped, 0.0)
    clipped, empty = value > SATURATED, facts.constant > EMPTY
    if clipped:
        sentence = (
            f"{100 * value:.2f} % of the voxels have exactly the largest or smallest grey value: they are clipped; "
            "reconstruct to float32, or with a wider window of grey values."
        )
    elif empty:
        sentence = f"{100 * facts.constant:.0f} % of the slices that were looked at are constant; leave them out."
    else:
        sentence = "Nothing is clipped, and no slice is empty."
    return Finding(
        "saturated",
        "Are voxels clipped, or slices empty?",
        value,
        "share of the voxels",
        SATURATED,
        "Voxels of the field of view that equal the extreme values of their slices more often than chance would have "
        "it. "
        "Clipped noise is not independent of the object any more, and no longer averages out.",
        Severity.RESERVATION if clipped or empty else Severity.FINE,
        sentence,
    )


def _field_of_view(facts: SplitFacts) -> Finding:
    value = facts.rim_contrast
    failed = not math.isnan(value) and value > TRUNCATED
    return Finding(
        "field_of_view",
        "Does the object fit the field of view?",
        value,
        "of the contrast",
        TRUNCATED,
        "Contrast common to the splits within the outermost voxels of the field of view, over that of the whole. An "
        "object "
        "that reaches over the rim is reconstructed with a bright rim and shifted grey values, in all splits alike.",
        Severity.NOTE if failed else Severity.FINE,
        "The object reaches the rim of the field of view: grey values near it are not reliable, before and after."
        if failed
        else "The object fits the field of view.",
    )
