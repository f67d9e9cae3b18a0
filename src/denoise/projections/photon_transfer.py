"""How many counts one photon gives, from the fluctuations of flats and projections: for the logarithm of few counts.

In: a ``Scan``. Out: one number for all of its pixels, the same whichever rows are used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from denoise.projections.scan import Scan
from denoise.volumes.volume import Float32Array

Float64Array = NDArray[np.float64]

#: Looked at: so many detector rows in the middle of the detector, so many flats and darks; projections at so many
#: places of the scan, three at each.
_ROWS, _FRAMES, _PLACES = 16, 32, 8
#: Pixels of a row that are taken together: what the beam does as a whole goes with their mean.
_BLOCK = 32
#: Blocks with less light than this share of the bright ones are in a shadow, and say nothing.
_LIT = 0.25
#: Of all blocks of the projections: in the others the object moves, too.
_CALM = 0.25
#: Flats and projections are taken to differ from here on.
_DIFFER = 1.5
#: Photons in the beam from which on it does not matter: behind an object that lets a tenth through, 0.2 % of a line
#: integral.
_MANY = 1000.0


@dataclass(frozen=True)
class Photons:
    """What the flats and the projections tell of the counts of a photon, each 0 where it tells nothing.

    Attributes
    ----------
    in_flats, in_projections
        The variance of a pixel's counts over their mean, less what the detector reads without light.
    beam
        Mean counts of a pixel in the flats.
    """

    in_flats: float
    in_projections: float
    beam: float

    @property
    def counts_each(self) -> float:
        """What is taken: the smaller, as all that is wrong makes one of them too large.

        Flats of which several were averaged, or a single one, tell too little or nothing; then nothing is corrected
        that is not certain. What fluctuates by more than a photon in the beam has other reasons than photons.
        """
        found = min(self.in_flats, self.in_projections)
        return found if found <= self.beam else 0.0

    @property
    def doubt(self) -> str | None:
        """What to tell the user where the two do not agree, and it matters."""
        flats, projections = self.in_flats, self.in_projections
        if self.beam > _MANY * projections:
            return None
        if flats > _DIFFER * projections:
            return (
                f"the flats fluctuate as if a photon gave {flats:g} counts, the projections as if it gave "
                f"{projections:g}: projections that were averaged, or a beam that moved between flats; low counts are "
                "corrected with the smaller (another: --counts-per-photon)"
            )
        if projections and not flats:
            return (
                "the flats tell nothing of photons (a single one, or averages?), so that low counts are not corrected; "
                f"the projections fluctuate as if a photon gave {projections:g} counts at most (--counts-per-photon)"
            )
        return None


def photons_of(scan: Scan) -> Photons:
    """Counts of a photon by photon transfer (Janesick 2007, SPIE Press, doi 10.1117/3.725073, chapter 5).

    For Poisson photons, each of which gives g counts, the variance is g times the mean. Differences of successive flats
    are taken, in blocks of 32 pixels less what is proportional to the beam there, so that its flicker counts for
    nothing, and of all blocks and differences the median. In the projections, second differences of those that follow
    each other in angle, and the lower quartile of all blocks, as the object moves in many. Where light spreads over
    neighbouring pixels this is less than the counts of a photon in all of them; it is what a single pixel's noise
    asks for.

    Raises
    ------
    ScanError
        The file has become unreadable.
    """
    # What is not finite makes its block so, which is left out.
    with np.errstate(invalid="ignore", over="ignore"):
        return _photons_of(scan)


def _photons_of(scan: Scan) -> Photons:
    white, dark = scan.read_beam(_ROWS, _FRAMES)
    level = dark.mean(axis=0)
    read = _without_light(dark)
    beam = white - level
    flats = _over_mean(beam, 1, read, 0.5) if len(white) > 1 else 0.0
    projections = 0.0
    if len(scan.angles_rad) >= 3:
        order = np.argsort(np.mod(scan.angles_rad, 2 * np.pi), kind="stable")
        starts = np.unique(np.linspace(0, len(order) - 3, _PLACES).astype(int))
        triples = np.stack([order[start : start + 3] for start in starts])
        projections = _over_mean(scan.read_frames(triples, _ROWS) - level, 2, read, _CALM)
    return Photons(flats, projections, _median(beam))


def beam_of(scan: Scan) -> float:
    """Mean counts of a pixel in the flats, as ``Photons.beam``; reads no projection.

    Raises
    ------
    ScanError
        The file has become unreadable.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        white, dark = scan.read_beam(_ROWS, _FRAMES)
        return _median(white - dark.mean(axis=0))


def _median(values: Float32Array) -> float:
    """Of what is finite; 0 where nothing is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else 0.0


def _over_mean(frames: Float32Array, order: int, read: float, share: float) -> float:
    """A quantile over blocks of the variance of counts over their mean, rounded to four digits.

    Parameters
    ----------
    frames
        (..., frames, rows, columns), less the darks.
    order
        Of the differences between frames.
    """
    blocks = _blocks(frames)
    shape = blocks.mean(axis=-4, keepdims=True)
    variance = _variances(blocks, shape, order, share)
    light = np.broadcast_to(shape.mean(axis=-1), variance.shape)
    known = np.isfinite(light) & np.isfinite(variance)
    # Not the brightest of all: that may be one pixel which always says the most that it can.
    bright = float(np.quantile(light[known], 0.9)) if known.any() else 0.0
    lit = known & (light > max(0.0, _LIT * bright))
    if not lit.any():
        return 0.0
    return float(f"{max(0.0, float(np.quantile((variance[lit] - read) / light[lit], share))):.4g}")


def _without_light(dark: Float32Array) -> float:
    """The variance that the detector reads in the dark; 0 where it is not known."""
    if len(dark) < 2:
        return 0.0
    blocks = _blocks(dark)
    variances = _variances(blocks, np.ones_like(blocks[:1]), 1, 0.5)
    finite = variances[np.isfinite(variances)]
    return float(np.median(finite)) if finite.size else 0.0


def _blocks(frames: Float32Array) -> Float64Array:
    """(..., rows, columns) as (..., rows, blocks, pixels of a block); columns that fill no block are left out."""
    columns = frames.shape[-1]
    width = min(_BLOCK, columns)
    used = columns // width * width
    return frames[..., :used].astype(np.float64).reshape(*frames.shape[:-1], used // width, width)


def _variances(blocks: Float64Array, shape: Float64Array, order: int, share: float) -> Float64Array:
    """Of a pixel's counts, (..., differences of frames, rows, blocks), such that this quantile of them is unbiased.

    What is proportional to ``shape``, (..., 1, rows, blocks, pixels), is left out.
    """
    differences = np.diff(blocks, order, axis=-4)
    along = (differences * shape).sum(axis=-1) / np.maximum((shape**2).sum(axis=-1), np.finfo(float).tiny)
    rest = differences - along[..., None] * shape
    freedom = shape.shape[-1] - 1
    weights = {1: 2.0, 2: 6.0}[order]
    return np.asarray((rest**2).sum(axis=-1) / (weights * float(chi2.ppf(share, freedom))))
