"""How many detector counts one photon gives, from how much the flats fluctuate: what the logarithm of few counts needs.

In: a ``Scan``. Out: one number for all of its pixels, the same whichever rows are used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from denoise.projections.scan import Scan
from denoise.volumes.volume import Float32Array

#: Looked at: so many detector rows in the middle of the detector, so many frames of each kind.
_ROWS, _FRAMES = 16, 32
#: Pixels of a row that are taken together: what the beam does as a whole goes with their mean.
_BLOCK = 32
#: Blocks with less light than this share of the brightest are in a shadow, and say nothing.
_LIT = 0.25


def counts_per_photon(scan: Scan) -> float:
    """The variance of a pixel's counts over their mean, less what the detector reads without light.

    The photon transfer method (Janesick 2007, Photon Transfer, SPIE Press, doi 10.1117/3.725073, chapter 5): for
    Poisson photons, each of which gives g counts, the variance is g times the mean. Differences of successive flats
    are taken, in blocks of 32 pixels less what is proportional to the beam there, so that its flicker counts for
    nothing; of all blocks and differences the median, so that a structure that moves through some of them counts for
    little. Where light spreads over neighbouring pixels this is less than the counts of a photon in all of them; it is
    what a single pixel's noise asks for.

    Returns
    -------
    Counts, at least 0, rounded to four digits. 0 where it cannot be told: a single flat, or flats without noise.

    Raises
    ------
    ScanError
        The file has become unreadable.
    """
    white, dark = scan.read_beam(_ROWS, _FRAMES)
    if len(white) < 2:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite makes its block so
        beam = _blocks(white - dark.mean(axis=0)).mean(axis=0)
        light = beam.mean(axis=2)
        variances, read = _variances(white, beam), _variances(dark, np.ones_like(beam))
    known = np.isfinite(light) & np.isfinite(variances).all(axis=0)
    lit = known & (light > max(0.0, _LIT * float(light[known].max(initial=0.0))))
    if not lit.any():
        return 0.0
    without_light = float(np.median(read[np.isfinite(read)])) if np.isfinite(read).any() else 0.0
    found = float(np.median((variances[:, lit] - without_light) / light[lit]))
    return float(f"{max(0.0, found):.4g}")


def _blocks(frames: Float32Array) -> NDArray[np.float64]:
    """(frames, rows, columns) as (frames, rows, blocks, pixels of a block); columns that fill no block are left out."""
    count, rows, columns = frames.shape
    width = min(_BLOCK, columns)
    used = columns // width * width
    return frames[:, :, :used].astype(np.float64).reshape(count, rows, used // width, width)


def _variances(frames: Float32Array, shape: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a pixel's counts, (differences of successive frames, rows, blocks), such that their median is unbiased.

    What is proportional to ``shape``, (rows, blocks, pixels), is left out.
    """
    differences = np.diff(_blocks(frames), axis=0)
    share = (differences * shape).sum(axis=3) / np.maximum((shape**2).sum(axis=2), np.finfo(float).tiny)
    rest = differences - share[..., None] * shape
    freedom = shape.shape[2] - 1
    variance = 0.5 * (rest**2).sum(axis=3) / freedom
    # The median of chi-squared over its mean; Wilson, Hilferty 1931, PNAS 17:684, doi 10.1073/pnas.17.12.684.
    return np.asarray(variance / (1 - 2 / (9 * freedom)) ** 3)
