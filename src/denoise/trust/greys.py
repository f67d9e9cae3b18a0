"""Grey values before and after: are they shifted, and what grey value has each material?

Voxels are sorted by the grey value of the *result*, and what the *other* splits have there, which do not share its
noise, is averaged. A result with the least squared error equals that average, whatever its grey value.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from denoise.trust.errors import ErrorSums
from denoise.trust.evidence import Evidence

Float64Array = NDArray[np.float64]

HISTOGRAM_BINS = 128
_CLASSES = 20
#: A peak of the histogram is a material when it stands out by this share of the highest one.
_PROMINENCE = 0.02
_SMOOTHED_BINS = 1.5


@dataclass(frozen=True)
class Histograms:
    """Voxels of the field of view per grey value. ``edges`` has one more element than the two counts."""

    edges: Float64Array
    before: NDArray[np.int64]
    after: NDArray[np.int64]


@dataclass(frozen=True)
class Material:
    """A peak of the delivered image's histogram, between the valleys beside it. Grey values.

    ``grey_before`` is the mean of splits that the result has not seen, in the voxels that the result counts to this
    material; ``width_before`` is the standard deviation of the full reconstruction there.
    """

    share: float
    grey_before: float
    grey_after: float
    width_before: float
    width_after: float


@dataclass(frozen=True)
class GreyShift:
    """Grey values of the result against those of splits that it has not seen.

    Attributes
    ----------
    grey, unseen
        (classes,): mean of the result, and of the other splits, in classes of the result's grey value with equal
        numbers of voxels.
    largest, largest_error
        Of the differences ``grey - unseen`` the one that stands out most, and its standard error.
    mean, mean_error
        Mean of the delivered image minus that of the full reconstruction, and its standard error.
    """

    grey: Float64Array
    unseen: Float64Array
    largest: float
    largest_error: float
    mean: float
    mean_error: float


def grey_shift(evidence: Evidence, errors: ErrorSums) -> GreyShift:
    """By how much grey values differ from what they should be."""
    columns = []
    for output, other in zip(evidence.outputs, evidence.others, strict=True):
        value = output[:, evidence.mask].astype(np.float64).ravel()
        unseen = other[:, evidence.mask].astype(np.float64).ravel()
        edges = np.quantile(value, np.arange(1, _CLASSES) / _CLASSES)
        place = np.searchsorted(edges, value)
        count = np.maximum(np.bincount(place, minlength=_CLASSES), 1)
        sums = [np.bincount(place, weights=w, minlength=_CLASSES) for w in (value, unseen, np.square(value - unseen))]
        columns.append((*(s / count for s in sums), count))
    grey, unseen, square, count = (np.mean([c[i] for c in columns], axis=0) for i in range(4))
    # The mean square holds the noise of the other split, and neighbours may share some of it: three voxels count as
    # one.
    error = np.sqrt(3 * square / np.maximum(count, 1))
    difference = grey - unseen
    worst = int(np.argmax(np.abs(difference) / np.maximum(error, 1e-300)))
    voxels = errors.voxels.sum()
    per_block = errors.shift / np.maximum(errors.voxels, 1)
    mean = float(errors.shift.sum() / voxels)
    mean_error = float(np.std(per_block) / np.sqrt(len(per_block)))
    return GreyShift(grey, unseen, float(difference[worst]), float(error[worst]), mean, mean_error)


def histograms(evidence: Evidence, low: float, high: float) -> Histograms:
    """Of the full reconstruction and of the delivered image, over a range that is wide enough for both."""
    full = evidence.full[:, evidence.mask]
    after = evidence.delivered[:, evidence.mask]
    lowest, highest = np.percentile(full, (0.05, 99.95))
    edges = np.linspace(min(lowest, low), max(highest, high), HISTOGRAM_BINS + 1)
    return Histograms(edges, np.histogram(full, edges)[0], np.histogram(after, edges)[0])


def materials(evidence: Evidence) -> tuple[Material, ...]:
    """Peaks of the delivered image's histogram, from dark to bright."""
    after = evidence.delivered[:, evidence.mask]
    low, high = np.percentile(after, (0.05, 99.95))
    if not high > low:
        return ()
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    # Padded with zeros, so that a peak at an end of the range is one.
    counts = np.pad(gaussian_filter1d(np.histogram(after, edges)[0].astype(float), _SMOOTHED_BINS), 1)
    peaks = find_peaks(counts, prominence=_PROMINENCE * counts.max())[0]
    valleys = [int(a + np.argmin(counts[a:b])) - 1 for a, b in pairwise(peaks)]
    bounds = [-np.inf, *(float(edges[v] + edges[v + 1]) / 2 for v in valleys), np.inf]
    return tuple(_material(evidence, a, b) for a, b in pairwise(bounds))


def _material(evidence: Evidence, low: float, high: float) -> Material:
    def inside(stack: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.asarray((stack >= low) & (stack < high) & evidence.mask)

    delivered = inside(evidence.delivered)
    unseen = [other[inside(f)] for f, other in zip(evidence.outputs, evidence.others, strict=True)]
    after, before = evidence.delivered[delivered], evidence.full[delivered]
    return Material(
        share=float(delivered.sum() / (evidence.mask.sum() * len(evidence.delivered))),
        grey_before=float(np.concatenate(unseen).mean(dtype=np.float64)),
        grey_after=float(after.mean(dtype=np.float64)),
        width_before=float(before.std(dtype=np.float64)),
        width_after=float(after.std(dtype=np.float64)),
    )
