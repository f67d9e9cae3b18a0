"""Tests of the splits for what the measurement itself does: few angles, rings, drift, low counts, clipping, truncation.

Most of it is common to all splits, counts as signal, and stays.
"""

from __future__ import annotations

import math

import numpy as np

from denoise.trust.splits import SplitFacts
from denoise.trust.verdict import Finding, Severity

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
#: Of the contrast, between neighbouring slices.
JUMPS = 0.02
_STANDS_OUT = 5.0


def angles(facts: SplitFacts) -> Finding:
    """Gaps between the projections of a split."""
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
        "with 1.5 angles for each column of the image, which is what filtered back-projection needs, 0.22 with 1 and "
        "0.75 with a half, where gaps open between the projections (Crowther, DeRosier & Klug 1970, doi "
        "10.1098/rspa.1970.0119).",
        Severity.RESERVATION if failed else Severity.FINE,
        f"Each split seems to have {about} angles for each column of the image, fewer than 1.1: streaks differ "
        "between the splits and are removed like noise, and with them fine detail far from the rotation axis. Measure "
        "more angles; of more than two splits use fewer."
        if failed
        else "Directions are covered evenly; streaks do not limit the detail.",
    )


def rings(facts: SplitFacts) -> Finding:
    """Rings that count as signal."""
    value = facts.rings
    failed = value > RINGS and facts.rings_certainty > _STANDS_OUT
    return Finding(
        "rings",
        "Are there rings that all splits share?",
        value,
        "standard deviations of the noise",
        RINGS,
        "Strength of concentric rings around the middle of the slices that appear in different splits and in "
        "different quarters alike, over the noise of the full reconstruction. Above 0.15 they show once the noise is "
        "gone.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"Rings common to the splits, {value:.2f} times as strong as the noise, count as signal: they will stay, "
        "clearer than before. If they are the detector's, `denoise prepare --remove-stripes` removes them from the "
        "projections; if the object is round about the rotation axis (tubes, windings), they are the object, which "
        "that would damage."
        if failed
        else "There are no rings that would stay.",
    )


def drift(facts: SplitFacts) -> Finding:
    """Brightness from slice to slice."""
    value = facts.slice_jumps
    failed = value > JUMPS
    return Finding(
        "drift",
        "Does the brightness drift from slice to slice?",
        value,
        "of the contrast",
        JUMPS,
        "Typical step of the mean grey value between neighbouring slices, common to all splits, over the contrast, "
        "beyond what noise makes. It is taken for the object and kept, as is any slow drift during the scan (beam, "
        "sample motion).",
        Severity.NOTE if failed else Severity.FINE,
        f"Neighbouring slices differ in brightness by {100 * value:.1f} % of the contrast in all splits: if that is "
        "not the object, it will stay."
        if failed
        else "Brightness does not jump from slice to slice.",
    )


def counts(facts: SplitFacts) -> Finding:
    """Signal against noise."""
    value = facts.signal_to_noise
    failed = value < FAINT
    return Finding(
        "counts",
        "Is there enough signal?",
        value,
        "times the noise power",
        FAINT,
        "Power of what the splits share over the noise power of one. Below 0.05 a split is nine tenths noise at "
        "nearly all sizes. Where rays have fewer than ten photons, their logarithm is also biased, by 1 / (2 "
        "photons), in all splits alike: that is kept, unless it was corrected as `denoise prepare` does.",
        Severity.RESERVATION if failed else Severity.FINE,
        f"The splits have very little signal ({value:.3f} times the noise power): expect coarse structures only, and "
        "grey values that may be biased where little light came through."
        if failed
        else f"The object's power is {value:.2f} times the noise power of one split.",
        is_minimum=True,
    )


def saturated(facts: SplitFacts) -> Finding:
    """Clipped voxels and empty slices."""
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
        "it. Clipped noise is not independent of the object any more, and no longer averages out.",
        Severity.RESERVATION if clipped or empty else Severity.FINE,
        sentence,
    )


def field_of_view(facts: SplitFacts) -> Finding:
    """Whether the object is cut off at the rim."""
    value = facts.rim_contrast
    failed = not math.isnan(value) and value > TRUNCATED
    return Finding(
        "field_of_view",
        "Does the object fit the field of view?",
        value,
        "of the contrast",
        TRUNCATED,
        "Contrast common to the splits within the outermost voxels of the field of view, over that of the whole. An "
        "object that reaches over the rim is reconstructed with a bright rim and shifted grey values, in all splits "
        "alike.",
        Severity.NOTE if failed else Severity.FINE,
        "The object reaches the rim of the field of view: grey values near it are not reliable, before and after."
        if failed
        else "The object fits the field of view.",
    )
