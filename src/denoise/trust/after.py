"""Tests of a result on held-out slices: is detail invented or removed, are grey values shifted, are there seams?

In goes an ``Evidence`` (and the history of the training); out come findings. Thresholds were set on simulated scans
with
known truth, between what good models show and what damaged ones do: docs/report.md has the tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from denoise.readable import counted
from denoise.training.observers import best_of
from denoise.trust.greys import GreyShift
from denoise.trust.scores import Scores
from denoise.trust.seams import Seams
from denoise.trust.spectra import CERTAINTY, RingSums
from denoise.trust.support import BandSupport
from denoise.trust.verdict import Finding, Severity

#: Of the squared error, what a factor per band would save: 2 % is 0.09 dB. Good models: up to 1.4 %.
AVOIDABLE = 0.02
#: Standard deviations by which contrast in one place has no support. Good models: up to 10.2; specks of half of the
#: contrast: 14 and more, at 100 photons 7 to 15.
INVENTED_PLACE = 11.0
#: Standard deviations by which less than half of what a linear filter keeps is kept in one place.
REMOVED_PLACE = 13.0
#: Octaves finer than this are too noisy to be judged place by place, cycles per voxel.
_FINEST_PLACE = 1 / 4
#: Of the range of grey values.
MEAN_SHIFT = 0.01
CLASS_SHIFT = 0.065
#: Standard errors that a shift must stand out by.
_STANDS_OUT = 5.0
SEAM_RATIO = 1.1
#: dB that the last third of a run at its full learning rate may still gain.
CONVERGED = 0.5
#: dB: so much that the image is not what the method can do.
FAR_FROM_CONVERGED = 2.0
OVERFITTED = 0.5
_FEWEST_SCORES = 4


def judge(
    scores: Scores,
    rings: RingSums,
    bands: Sequence[BandSupport],
    greys: GreyShift,
    seams: Seams | None,
    history: Sequence[dict[str, Any]],
) -> tuple[Finding, ...]:
    """Every test's finding."""
    findings = [
        _gain(scores),
        _anything(rings),
        _unsupported(bands),
        _invented_place(bands),
        _suppressed(bands),
        _removed_place(bands),
        _mean_shift(greys, scores.data_range),
        _class_shift(greys, scores.data_range),
    ]
    if seams is not None:
        findings.append(_seams(seams))
    if history and math.isfinite(scores.gain.value):  # else differences of its errors say nothing either
        findings += [_converged(history), _overfitted(history)]
    return tuple(findings)


def _gain(scores: Scores) -> Finding:
    gain = scores.gain
    untold = not math.isfinite(gain.value)
    worse = gain.high < 0
    unsure = not gain.low > 0
    if untold:
        sentence = (
            "The error of the result cannot be told: it comes out as less than nothing. Either very few voxels are "
            "held out, or what differs between the splits is not independent noise, as with too few angles for each, "
            "whose streaks are opposed in the splits; then none of these numbers is valid."
        )
    elif scores.error_is_bound and not worse:
        hidden = "as streaks of unknown strength hide a part of its error."
        sentence = (
            f"The result is at most {gain.high:.1f} dB closer to the truth than the noisy reconstruction; by how much "
            f"less is not known, {hidden}"
            if math.isfinite(gain.high)
            else f"How much closer the result is to the truth than the noisy reconstruction is not known, {hidden}"
        )
    elif worse:
        sentence = f"The result is further from the truth than the noisy reconstruction, by {-gain.value:.1f} dB."
    elif unsure:
        sentence = "The held-out part is too small or too noisy to tell whether the result is better than what went in."
    else:
        sentence = (
            f"The result is {gain.value:.1f} dB closer to the truth than the noisy reconstruction "
            f"({gain.ends(' dB')}), as if it had been exposed {scores.equivalent_dose.value:.1f} times as long."
        )
    return Finding(
        "gain",
        "Is the result closer to the truth than the noisy reconstruction?",
        gain.value,
        "dB",
        0.0,
        "The lower end of the 95 % interval must lie above 0 dB, or noise was exchanged for something worse.",
        Severity.INVALID if worse or untold else Severity.RESERVATION if unsure else Severity.FINE,
        sentence,
        is_minimum=True,
    )


def _anything(rings: RingSums) -> Finding:
    signal = float(rings.signal.sum())
    chance = float(np.sqrt(np.square(rings.deviation).sum()))
    value = signal / max(chance, 1e-300)
    failed = value < CERTAINTY
    return Finding(
        "anything",
        "Do the held-out slices show anything?",
        value,
        "standard deviations of chance",
        CERTAINTY,
        "What the splits have in common, over what independent noise has in common by chance. Where nothing is there, "
        "a result can only be as flat as it is, and gain and PSNR say nothing of an object.",
        Severity.RESERVATION if failed else Severity.FINE,
        "The held-out slices show nothing that stands out from the noise: the numbers here say nothing of an object. "
        "Hold out slices that show it (dataset.train_start_slice and train_end_slice, train.validation_fraction)."
        if failed
        else "The held-out slices show an object.",
        is_minimum=True,
    )


def _unsupported(bands: Sequence[BandSupport]) -> Finding:
    total = sum(b.error for b in bands)
    found = [b for b in bands if b.deviations > _STANDS_OUT and b.support < 1]
    share = sum(b.avoidable for b in found) / total if total > 0 else math.nan
    failed = not share <= AVOIDABLE
    worst = max(found, key=lambda b: b.avoidable, default=None)
    if failed and worst is not None:
        sentence = (
            f"Among structures of {_size(worst)}, {100 * (1 - max(worst.support, 0)):.0f} % of the contrast in the "
            "result is not found in the split that it was not made from: it is noise that was left, or detail that "
            "was invented or exaggerated; do not interpret such structures."
        )
    elif failed:
        sentence = "The error of the result is too small, or the held-out part too noisy, to test its detail."
    else:
        sentence = "What the result shows is found in the split that it was not made from, at every size."
    return Finding(
        "unsupported_detail",
        "Is there detail in the result that the other split does not support?",
        share,
        "share of the squared error",
        AVOIDABLE,
        "How much lower the squared error would be if each octave of size were weakened to what the other split "
        "supports. The best possible result has 0, good models stay below 0.015, and 0.02 is 0.09 dB.",
        (Severity.RESERVATION if found else Severity.NOTE) if failed else Severity.FINE,
        sentence,
    )


def _invented_place(bands: Sequence[BandSupport]) -> Finding:
    judged = [b for b in bands if b.low < _FINEST_PLACE]
    worst = max(judged, key=lambda b: b.invented.value)
    place = worst.invented
    failed = place.value > INVENTED_PLACE
    return Finding(
        "invented_structure",
        "Is there a structure in the result that the other split does not show?",
        place.value,
        "standard deviations",
        INVENTED_PLACE,
        "The worst place: by how much its contrast exceeds what the other split has there, where that is at least "
        "four mean squared errors of structures of its size. Among a million places chance reaches five; good "
        "models, whose error differs from place to place, up to twelve at low dose.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"The result shows a structure of {_size(worst)} at slice {place.z}, row {place.y}, column {place.x} "
        "that the other split does not show: look there before believing structures of that size."
        if failed
        else "No single structure in the held-out slices contradicts the other split.",
    )


def _suppressed(bands: Sequence[BandSupport]) -> Finding:
    total = sum(b.error for b in bands)
    found = [b for b in bands if -b.deviations > _STANDS_OUT and b.support > 1]
    share = sum(b.avoidable for b in found) / total if total > 0 else math.nan
    failed = bool(found) and not share <= AVOIDABLE
    worst = max(found, key=lambda b: b.avoidable, default=None)
    sentence = "What was taken away holds no detail that could have been kept, at any size."
    if failed and worst is not None:
        sentence = (
            f"Structures of {_size(worst)} are too weak in the result: the split that it was not made from has "
            f"{100 * (worst.support - 1):.0f} % more of their contrast; detail was smoothed away that could have been "
            "kept."
        )
    return Finding(
        "suppressed_detail",
        "Was detail removed together with the noise?",
        share,
        "share of the squared error",
        AVOIDABLE,
        "How much lower the squared error would be if each octave of size were amplified to what the other split "
        "supports. What a good model loses is buried in noise and cannot be regained so: it has less than 0.015.",
        Severity.RESERVATION if failed else Severity.FINE,
        sentence,
    )


def _removed_place(bands: Sequence[BandSupport]) -> Finding:
    judged = [b for b in bands if b.low < _FINEST_PLACE]
    worst = max(judged, key=lambda b: b.removed.value)
    place = worst.removed
    failed = place.value > REMOVED_PLACE
    return Finding(
        "removed_structure",
        "Is there a structure in the splits that the result does not show?",
        place.value,
        "standard deviations",
        REMOVED_PLACE,
        "The worst place: by how much less than half of the contrast is kept that a plain linear filter would keep, "
        "where the object stands out from the noise of what the model was given. Good models have up to 8 somewhere.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"A structure of {_size(worst)} at slice {place.z}, row {place.y}, column {place.x} is in the "
        "splits, clearly above their noise, and most of it is missing in the result."
        if failed
        else "No structure that stands out from the noise in the held-out slices is missing.",
    )


def _mean_shift(greys: GreyShift, data_range: float) -> Finding:
    shift = greys.mean / data_range
    failed = abs(shift) > MEAN_SHIFT and abs(greys.mean) > _STANDS_OUT * greys.mean_error
    return Finding(
        "mean_shift",
        "Is the mean grey value the same as before?",
        shift,
        "of the range of grey values",
        MEAN_SHIFT,
        "Noise has no mean, so that taking it away must not change any. One percent of the range is less than most "
        "materials are told apart by; short runs have shifts of half that.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"Grey values were shifted by {100 * shift:+.2f} % of their range on average; measure densities in the noisy "
        "reconstruction."
        if failed
        else "The mean grey value is unchanged.",
    )


def _class_shift(greys: GreyShift, data_range: float) -> Finding:
    shift = greys.largest / data_range
    failed = abs(shift) > CLASS_SHIFT and abs(greys.largest) > _STANDS_OUT * greys.largest_error
    return Finding(
        "grey_values",
        "Is every grey value of the result what the other split has there on average?",
        shift,
        "of the range of grey values",
        CLASS_SHIFT,
        "Voxels are sorted by the grey value of the result into 20 equal classes, and the worst class is compared "
        "with the split that the result was not made from. The best possible result has 0 in each.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"Where the result has one of its grey values, the other split differs by {-100 * shift:+.1f} % of the range "
        "on average: contrast between materials is not to be measured in the result."
        if failed
        else "Grey values of all levels agree with the split that the result was not made from.",
    )


def _seams(seams: Seams) -> Finding:
    failed = seams.ratio > SEAM_RATIO and seams.deviations > _STANDS_OUT
    return Finding(
        "seams",
        "Do the tiles show?",
        seams.ratio,
        "times the step beside them",
        SEAM_RATIO,
        "The mean step of the grey value across tile borders over that beside them, where it differs from other "
        "lines by more than five standard deviations.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"Steps across tile borders are {100 * (seams.ratio - 1):.0f} % larger than beside them; raise infer.overlap."
        if failed
        else "Borders of tiles do not show.",
    )


def _converged(history: Sequence[dict[str, Any]]) -> Finding:
    peak = max(float(r["learning_rate"]) for r in history)
    held = [r for r in history if float(r["learning_rate"]) > 0.99 * peak]
    watched = held if len(held) >= _FEWEST_SCORES else list(history)
    last = int(watched[-1]["step"])
    before = [float(r["val_mse"]) for r in watched if int(r["step"]) <= 2 * last / 3]
    gained = _gained(before, [float(r["val_mse"]) for r in watched])
    few = len(history) < _FEWEST_SCORES or not before
    failed = few or gained > FAR_FROM_CONVERGED
    if few:
        sentence = f"The run was scored {counted(len(history), 'time')} only; train longer, it cannot have converged."
    elif failed:
        sentence = (
            f"The last third of the training still gained {gained:.1f} dB: training longer will give a better image."
        )
    else:
        sentence = "Training went on until it gained little."
    return Finding(
        "converged",
        "Was training long enough?",
        None if few else gained,
        "dB",
        FAR_FROM_CONVERGED,
        "What the last third of the steps at the full learning rate gained in held-out error against the truth. More "
        "than half a decibel is worth a longer run; at more than two the image is not what can be had.",
        Severity.RESERVATION if failed else Severity.NOTE if gained > CONVERGED else Severity.FINE,
        sentence,
    )


def _overfitted(history: Sequence[dict[str, Any]]) -> Finding:
    best = best_of(history)
    later = [float(r["val_mse"]) for r in history[best:]]
    # The mean of what came after the best score: single ones jump.
    rise = -_gained([later[0]], [sum(later[1:]) / len(later[1:])]) if len(later) > 2 else 0.0
    failed = rise > OVERFITTED
    return Finding(
        "overfitted",
        "Did the model learn the noise of its training slices?",
        rise,
        "dB",
        OVERFITTED,
        "How much the held-out error against the truth rose after the best score. The best model is the one in use.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"The held-out error rose again by {rise:.1f} dB after epoch {history[best]['epoch']}: the run was too long "
        "or has too little data; the model of that epoch is used, a shorter run may do as well."
        if failed
        else "The held-out error did not rise again.",
    )


def _gained(before: Sequence[float], after: Sequence[float]) -> float:
    """Decibels from the lowest of some errors to the lowest of others; 0 where one cannot be told from nothing."""
    if not before or not after or min(before) <= 0 or min(after) <= 0:
        return 0.0
    return 10 * math.log10(min(before) / min(after))


def _size(band: BandSupport) -> str:
    """Half waves, as people say of a structure how large it is."""
    return f"{0.5 / band.high:.0f} to {0.5 / band.low:.0f} voxels"
