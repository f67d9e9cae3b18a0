"""How far each voxel of the result may be from the truth: from the disagreement of the model's outputs, calibrated.

The outputs for views with independent noise differ where noise gets through, and differ most where the model is least
sure: at edges and in fine detail. How large the error is for a given disagreement is measured on the held-out slices,
where squared errors are known without bias on average (``denoise.trust.errors``). Systematic errors, which all outputs
share, come in through this calibration, not through the disagreement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from denoise.errors import VolumeError
from denoise.trust.errors import error_maps
from denoise.trust.evidence import Evidence
from denoise.volumes.volume import Float32Array

Float64Array = NDArray[np.float64]

#: Standard deviation of the average in the plane, voxels: two outputs alone say little of one voxel. Not along z:
#: any range of slices gives the same.
_SMOOTHED = 2.0
#: Classes of disagreement, as shares of the voxels below; the rarest ones have the largest errors.
_CLASSES = (*np.arange(0.05, 0.95, 0.05).tolist(), 0.95, 0.97, 0.98, 0.99, 0.995)
#: Of the mean squared error, what no voxel's may be below: a class's estimate can be zero by chance.
_FLOOR = 0.01
#: How far the squared error of a class is from being proportional to its squared disagreement, as a share (standard
#: deviation). Of four of the benchmark's scans, with two or four splits, tenths of the voxels had 0.56 to 1.8 times it.
_UNLIKE = 0.5


#: What voxels say of how far a class may be off counts as much as so many slices.
_AS_SLICES = 4


@dataclass(frozen=True)
class Confidence:
    """The error to be expected for a disagreement, both in grey values; ascending, linear between the knots."""

    disagreement: tuple[float, ...]
    error: tuple[float, ...]

    def uncertainty(self, outputs: Sequence[Float32Array]) -> Float32Array:
        """One standard deviation of the error of each voxel.

        Parameters
        ----------
        outputs
            f(view) of the same slices for every view (all splits, for K = 2), float32 (Z, Y, X), in grey values.

        Returns
        -------
        float32 (Z, Y, X), grey values.
        """
        result = np.empty_like(outputs[0])
        for z in range(len(result)):  # one after the other: what is compared takes several times a slice
            found = disagreement_of([output[z : z + 1] for output in outputs])
            result[z] = np.interp(found[0], self.disagreement, self.error)
        return result


def disagreement_of(outputs: Sequence[Float32Array]) -> Float32Array:
    """Standard deviation of the outputs of several views, root mean square of its neighbourhood in the plane.

    Parameters
    ----------
    outputs
        Two or more, float32 (Z, Y, X).
    """
    mean = np.mean(outputs, axis=0, dtype=np.float32)
    variance = sum((np.square(output - mean) for output in outputs), np.zeros_like(mean)) / (len(outputs) - 1)
    for image in variance:
        gaussian_filter(image, _SMOOTHED, output=image)
    return np.asarray(np.sqrt(np.maximum(variance, 0)), np.float32)


def calibrated(parts: Iterable[Evidence]) -> Confidence:
    """Find which error belongs to which disagreement, on held-out slices.

    Voxels are sorted into classes of disagreement, and the unbiased squared error is averaged over each. How well that
    is known follows from how much slices differ; where it is not, the class gets what it would have if squared errors
    were proportional to squared disagreements (the mean of the two, weighted by how far each may be off). Then classes
    are joined until the error rises with the disagreement (pool adjacent violators: Ayer et al. 1955, Ann. Math. Stat.
    26:641, doi 10.1214/aoms/1177728423).

    Parameters
    ----------
    parts
        Runs of held-out slices, one after the other; of each, two numbers a voxel are kept. The result does not depend
        on how the slices are divided.

    Raises
    ------
    VolumeError
        The outputs are all the same, or their error cannot be told from zero.
    """
    said: list[Float32Array] = []
    wrong: list[Float32Array] = []
    for part in parts:
        for one in part.slices():
            found = disagreement_of([np.asarray(output, np.float32) for output in one.outputs])
            said.append(found[0][one.mask])
            wrong.append(error_maps(one).delivered[0][one.mask].astype(np.float32))
    edges = np.quantile(np.concatenate(said), _CLASSES)
    count = len(_CLASSES) + 1
    sums = np.zeros((len(said), 5, count))
    for of_slice, values, errors in zip(sums, said, wrong, strict=True):
        place = np.searchsorted(edges, values)
        of_voxels = (None, values, np.square(values), errors, np.square(errors, dtype=np.float64))
        for row, weights in zip(of_slice, of_voxels, strict=True):
            row += np.bincount(place, weights=weights, minlength=count)
    sums = sums[:, :, sums[:, 0].sum(axis=0) > 0]
    voxels, disagreement, squared, error, _ = sums.sum(axis=0)
    mean = float(error.sum() / voxels.sum())
    if not mean > 0 or disagreement.max() == 0:
        raise VolumeError(
            f"the mean squared error of the held-out slices is estimated as {mean:.3g}: too few voxels are held out "
            "to calibrate the uncertainty of single voxels; train again with a larger train.validation_fraction, or "
            "leave out --confidence"
        )
    pooled = _rising(_steadied(sums, mean * voxels.sum() / squared.sum()), voxels)
    return Confidence(
        tuple(float(v) for v in disagreement / voxels),
        tuple(float(v) for v in np.sqrt(np.maximum(pooled, _FLOOR * mean))),
    )


def _steadied(sums: Float64Array, ratio: float) -> Float64Array:
    """Mean squared errors of classes, nearer to ``ratio`` times their squared disagreement the less they are known.

    Parameters
    ----------
    sums
        Voxels, disagreements, their squares, squared errors, the squares of these: (slices, 5, classes).
    """
    voxels, _, squared, error, fourth = sums.sum(axis=0)
    mean, expected = error / voxels, ratio * squared / voxels
    by_slices = np.square(sums[:, 3] - mean * sums[:, 0]).sum(axis=0) / np.square(voxels)
    # A few slices may agree by chance; then it counts more what their voxels would do if all were independent.
    by_voxels = np.maximum(fourth / voxels - np.square(mean), 0) / voxels
    by_chance = (len(sums) * by_slices + _AS_SLICES * by_voxels) / (len(sums) + _AS_SLICES)
    trust = np.square(_UNLIKE * expected)
    total = trust + by_chance
    steadied: Float64Array = np.divide(mean * trust + expected * by_chance, total, out=mean.copy(), where=total > 0)
    return steadied


def _rising(values: Float64Array, weights: Float64Array) -> Float64Array:
    """The nearest sequence that does not fall, in the weighted least-squares sense."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        mean, total, length = float(value), float(weight), 1
        while blocks and blocks[-1][0] > mean:
            earlier, more, longer = blocks.pop()
            mean = (mean * total + earlier * more) / (total + more)
            total, length = total + more, length + longer
        blocks.append((mean, total, length))
    return np.concatenate([np.full(length, mean) for mean, _, length in blocks])
