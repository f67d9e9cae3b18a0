"""Tests of the splits before anything is trained on them: is what the method assumes of them true?

In go splits, out come findings. Some slices, spread over the volume, are read in turn; memory is a few slices. What the
tests measure is in ``splits``, what it means is said here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from denoise.memory import IMPORTED_BYTES, available_bytes, give_back_freed, large_arrays_given_back
from denoise.normalization import Moments, Normalization
from denoise.readable import gigabytes
from denoise.trust.artefacts import angles, counts, drift, field_of_view, rings, saturated
from denoise.trust.splits import SMALLEST, SplitFacts, measure, testing_bytes
from denoise.trust.verdict import Finding, Severity, Verdict
from denoise.volumes import SplitSet, Volume
from denoise.volumes.volume import Float32Array

_log = logging.getLogger(__name__)

#: Correlation of the noise of two splits in the finest quarter of frequencies.
DEPENDENT = 0.05
#: Voxels. A shift d takes 1 - cos(pi d) of the correlation at the Nyquist frequency: 5 % at a tenth.
SHIFT = 0.1
#: Ratio of noise powers.
UNEQUAL = 1.25
#: Ratio of contrasts, and difference of means in units of the contrast.
SCALE, OFFSET = 0.02, 0.02
#: From where on nothing can be learnt from one of the other: 1.5 times the contrast, or a shift by half of it.
_ANOTHER_SCALE = 0.5
#: Standard deviations of the noise: a tenth is a hundredth of its power.
NOT_THE_MEAN = 0.1
_STANDS_OUT = 5.0
#: Correlation where the object is smooth over that of all places: detail of the 24 good scans that were looked at
#: (foams, anatomy, fibres, 400 to 10,000 photons) had up to 0.42, shared noise 0.9 and more beside little detail.
_EVERYWHERE = 0.45
#: How much of one another two splits may repeat in all frequencies and still be two.
_SAME = 0.999


def check_splits(volumes: Sequence[Volume], z_range: range | None = None) -> Verdict:
    """All findings on some splits.

    Parameters
    ----------
    volumes
        K splits, proven to have one shape (``SplitSet``).
    z_range
        Indices of the slices that are looked at; None: all.

    Raises
    ------
    VolumeError
        A slice cannot be read.
    """
    if min(volumes[0].shape[1:]) < SMALLEST:
        return Verdict.of([_too_small()])
    facts = measure(volumes, z_range or range(volumes[0].shape[0]))
    return Verdict.of([_nothing()]) if facts is None else judge_splits(facts)


def bytes_of_warning(splits: SplitSet, max_memory: int | None) -> int:
    """Memory of the process while ``warn_of_splits`` looks at them; 0 where it does not."""
    needed = testing_bytes(splits)
    return 0 if 2 * needed > (max_memory or available_bytes()) else IMPORTED_BYTES + needed


def warn_of_splits(splits: SplitSet, z_range: range | None, max_memory: int | None) -> None:
    """Say before a night of training that the method does not hold for some splits, as a report would after it.

    Nothing but a word on the logger where the tests would take more than half of the memory.

    Parameters
    ----------
    z_range
        Indices of the slices to train on; None: all.
    max_memory
        That may be taken, bytes; None: what is free.

    Raises
    ------
    VolumeError
        A slice cannot be read.
    """
    if not bytes_of_warning(splits, max_memory):
        needed = gigabytes(testing_bytes(splits))
        _log.info("the splits are not tested first, which takes %s; `denoise check --data` does it", needed)
        return
    with large_arrays_given_back():  # what stayed in this process would come on top of what training may take
        verdict = check_splits(splits.volumes, z_range)
    give_back_freed()
    for finding in verdict.warnings:
        if finding.severity is Severity.INVALID:
            _log.warning("%s (`denoise check --data` has all tests of the splits)", finding.sentence)


def judge_splits(facts: SplitFacts) -> Verdict:
    """What the numbers mean."""
    return Verdict.of(
        [
            _finite(facts),
            _independent(facts),
            _registered(facts),
            _same_scale(facts),
            _equal_noise(facts),
            angles(facts),
            rings(facts),
            drift(facts),
            counts(facts),
            saturated(facts),
            field_of_view(facts),
        ]
    )


def judge_full(full: Float32Array, mean_of_splits: Float32Array, noise: float, mask: NDArray[np.bool_]) -> Finding:
    """Whether the full reconstruction is what the report takes it for.

    Parameters
    ----------
    full, mean_of_splits
        The same slices, (Z, Y, X).
    noise
        Standard deviation of the noise of the mean, grey values.
    mask
        (Y, X): the field of view. Voxels that are NaN or infinite do not count either.
    """
    difference = (full.astype(np.float64) - mean_of_splits)[:, mask]
    difference = difference[np.isfinite(difference)]
    if not difference.size:
        difference = np.array([np.inf])
    value = float(np.sqrt(np.mean(np.square(difference))) / max(noise, 1e-300))
    failed = value > NOT_THE_MEAN
    return Finding(
        "full_is_mean",
        "Is the full reconstruction the mean of the splits?",
        value,
        "standard deviations of its noise",
        NOT_THE_MEAN,
        "Reconstructed with the same settings from all projections it is, apart from rounding. The report judges "
        "what the model makes of the mean of the splits.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"The full reconstruction differs from the mean of the splits by {value:.2f} standard deviations of its noise "
        "(another filter or scale, other projections, or stripes that were removed from each by itself, as `prepare "
        "--remove-stripes` does): the report holds for the mean of the splits, not for it."
        if failed
        else "The full reconstruction is the mean of the splits.",
    )


def judge_scale(normalization: Normalization, found: Moments) -> Finding:
    """Whether the grey values are such as the model was trained on.

    Parameters
    ----------
    normalization
        Of the model.
    found
        Of a slice of a split.
    """
    std = float(np.sqrt(found.squared_deviation / max(found.count, 1)))
    failed = not normalization.resembles(found)
    return Finding(
        "trained_scale",
        "Has the model seen grey values like these?",
        abs(found.mean - normalization.mean) / normalization.std,
        "standard deviations from the mean that was trained on",
        None,
        "A model knows grey values like those of the scan that it was trained on: a mean within five of their standard "
        "deviations, and a standard deviation that differs by a factor of five at most.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"The splits have grey values {found.mean:.4g} +- {std:.4g}, the model was trained on {normalization.mean:.4g} "
        f"+- {normalization.std:.4g}: the result is unreliable; denoise a scan of the same scale, or train on this one."
        if failed
        else "The grey values are like those that the model was trained on.",
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


def _too_small() -> Finding:
    return Finding(
        "too_small",
        "Are the slices large enough to be tested?",
        None,
        "voxels",
        SMALLEST,
        "The tests look at frequencies and directions, which smaller slices do not have.",
        Severity.NOTE,
        f"Slices with fewer than {SMALLEST} rows or columns are not tested.",
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
        f"{100 * bad:.3g} % of the voxels are NaN or infinite: reconstruct without them. With dataset.non_finite: fill "
        "they are replaced by the mean, which teaches the network nothing there."
        if bad > 0
        else "All grey values that were looked at are finite.",
    )


def _independent(facts: SplitFacts) -> Finding:
    value, error = facts.fine_correlation, facts.fine_correlation_error
    certain = abs(value) > _STANDS_OUT * error
    why = (
        "Correlation of the splits in the finest quarter of frequencies, where an object has almost nothing and all "
        "that is left is noise. Independent noise has 0. What both splits share the method takes for signal and "
        "keeps: at 0.05, a twentieth of the noise power."
    )
    question = "Is the noise of the splits independent?"
    if min(facts.correlation, facts.fine_correlation) > _SAME:
        sentence = (
            "The splits are the same image: there is no noise to tell from signal. Reconstruct them from different "
        )
        sentence += "projections."
        severity = Severity.INVALID
    elif certain and value < -DEPENDENT:
        sentence = (
            f"The noise of the splits is opposed (correlation {value:.2f}): something was divided between them after "
            "they were made, or a filter mixed their projections; all estimates of error are wrong."
        )
        severity = Severity.INVALID
    elif certain and value > DEPENDENT and _noise_is_shared(facts):
        shared = value if facts.smooth_correlation is None else facts.smooth_correlation
        sentence = (
            f"The splits share noise (correlation {shared:.2f} at the finest frequencies, where the object is "
            "smoothest; against what they do not share it is no less at the very finest, as it would be of detail): "
            "projections that are in both, a filter over the angles, or interpolated projections. That part of the "
            "noise will stay in the result and count as signal."
        )
        severity = Severity.INVALID if shared > 10 * DEPENDENT else Severity.RESERVATION
    elif certain and value > DEPENDENT:
        sentence = (
            f"The splits agree even at the finest frequencies (correlation {value:.2f}), more at edges than where the "
            "object is smooth, or less towards the very finest: the object has detail down to single voxels"
        )
        smooth = facts.smooth_correlation or 0.0
        doubtful = smooth > max(DEPENDENT, _STANDS_OUT * facts.smooth_correlation_error)
        sentence += f", or up to {smooth:.2f} of the noise is shared." if doubtful else "."
        severity = Severity.NOTE
    else:
        sentence = "The noise of the splits is independent."
        severity = Severity.FINE
    return Finding("noise_independent", question, value, "correlation", DEPENDENT, why, severity, sentence)


def _noise_is_shared(facts: SplitFacts) -> bool:
    """Noise is shared everywhere, and as much at the very finest frequencies; detail is at edges, and falls."""
    smooth, error = facts.smooth_correlation, facts.smooth_correlation_error
    if smooth is None:
        return facts.is_flat
    everywhere = smooth > max(DEPENDENT, _STANDS_OUT * error) and smooth > _EVERYWHERE * facts.fine_correlation
    return everywhere and facts.is_flat


def _registered(facts: SplitFacts) -> Finding:
    value = facts.shift if facts.shift_is_seen else None
    failed = value is not None and value > max(SHIFT, _STANDS_OUT * facts.shift_error)
    grave = failed and facts.shift > 10 * SHIFT
    well = "The splits lie on top of each other."
    if value is None:
        well = "The splits have too little in common for a shift to be seen."
    return Finding(
        "registered",
        "Do the splits show the object in the same place?",
        value,
        "voxels",
        SHIFT,
        "Shift in the plane between the first two splits that differ most, from the phase of their cross-spectrum. A "
        "tenth of a voxel blurs the finest detail by 5 %; the network learns to blur by as much as the splits are "
        "apart.",
        Severity.INVALID if grave else Severity.RESERVATION if failed else Severity.FINE,
        f"The splits are shifted by {facts.shift:.2f} voxels against each other: reconstruct them with one rotation "
        "centre and one geometry; detail of that size will be lost."
        if failed
        else well,
    )


def _same_scale(facts: SplitFacts) -> Finding:
    scale, offset = abs(facts.contrast_ratio - 1), abs(facts.offset)
    value = max(scale, offset)
    scaled = scale > SCALE and scale > _STANDS_OUT * facts.scale_error
    moved = offset > OFFSET and offset > _STANDS_OUT * facts.offset_error
    failed = scaled or moved
    grave = (scaled and scale > _ANOTHER_SCALE) or (moved and offset > _ANOTHER_SCALE)
    sentence = f"Grey values of the splits differ by {100 * value:.1f} % of the contrast"
    if grave:
        sentence = "The splits have grey values of different scales"
    return Finding(
        "same_scale",
        "Have the splits the same grey values?",
        value,
        "of the contrast",
        SCALE,
        "The larger of: the ratio of their contrasts minus 1, the difference of their means over the contrast. The "
        "network is trained to turn one split into the other and would learn the change.",
        Severity.INVALID if grave else Severity.RESERVATION if failed else Severity.FINE,
        f"{sentence}: reconstruct them with the same scale (and with weights for their own number of angles)."
        if failed
        else "The splits have the same grey values.",
    )


def _equal_noise(facts: SplitFacts) -> Finding:
    value = facts.noise_ratio
    failed = value > max(UNEQUAL, 1 + _STANDS_OUT * facts.noise_ratio_error)
    return Finding(
        "equal_noise",
        "Are the splits equally noisy?",
        value,
        "times",
        UNEQUAL,
        "Noise power of the noisiest split over that of the least noisy one, without what the splits share. The error "
        "of the result is estimated with a sample of noise made from their difference, which is exact for equal noise; "
        "the mean of unequal splits is also not the best image.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"One split has {value:.2f} times the noise power of another: were they made from different numbers of angles "
        "or exposures? Estimates of the error are less certain."
        if failed
        else "The splits are equally noisy.",
    )
