"""From a scan to the full reconstruction and its K splits, a slab of slices at a time.

In: a ``Scan``, and sinks that were opened by the caller. Out: slices of attenuation per voxel length, whose grey
values do not depend on the number of angles, so that splits and full reconstruction may share one normalisation.
Knows nothing of file formats.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from denoise.errors import ScanError
from denoise.memory import give_back_freed, large_arrays_given_back
from denoise.projections.angles import HalfCircle, SplitAngles
from denoise.projections.footprint import ROWS_TOGETHER, plan_rows
from denoise.projections.preprocess import Repairs, line_integrals, remove_stripes
from denoise.projections.scan import Scan
from denoise.tiles import Triple
from denoise.volumes.volume import Float32Array, VolumeSink

logger = logging.getLogger(__name__)

# Fewest angles per detector column from which a split has no visible streaks of its own (method, section 6).
_ANGLES_PER_COLUMN = 1.5


@dataclass(frozen=True)
class ReconstructionFacts:
    """What was reconstructed and how, for the record."""

    shape_zyx: Triple
    n_angles: int
    n_splits: int
    center: float
    stripes: bool
    counts_per_photon: float
    rows_per_slab: int
    repairs: Repairs


def angles_warning(scan: Scan, n_splits: int) -> str | None:
    """What to tell the user before reconstructing with too few angles or a missing wedge; None where all is well."""
    columns = scan.shape[2]
    dealt = SplitAngles.of(scan.angles_rad, n_splits)
    sentences = []
    fewest = dealt.fewest_directions
    needed = round(_ANGLES_PER_COLUMN * columns)
    if fewest < needed:
        sentences.append(
            f"each of {n_splits} splits has {fewest} angles for {columns} detector columns; below about {needed} a "
            "reconstruction has streaks of its own, which differ between the splits and limit what can be learned"
        )
    missing = 180.0 - float(np.rad2deg(dealt.half_circle.length))
    if missing > 1.0:
        sentences.append(
            f"the angles leave a wedge of about {missing:.0f} of 180 degrees unmeasured; edges along it are blurred "
            "in the splits and in the full reconstruction alike, and denoising cannot tell"
        )
    return "; ".join(sentences) or None


def reconstruct_rows(
    sinograms: Float32Array, angles_rad: NDArray[np.float64], center: float, half_circle: HalfCircle | None = None
) -> Float32Array:
    """Filtered back-projection with an unsmoothed ramp filter.

    Parameters
    ----------
    sinograms
        Line integrals, (angles, rows, columns).
    angles_rad
        (angles,), radians, in any order and over any range; weighted by ``HalfCircle.weights``.
    center
        Detector column of the rotation axis, counted from 0; it comes to lie at the slices' centre.
    half_circle
        Of the whole scan, where these are the projections of a split; None: these are all.

    Returns
    -------
    float32 array, (rows, columns, columns): attenuation per pixel; 0 outside the circle that touches the sides.
    """
    from denoise.projections.backprojection import back_project, filter_projections

    _, rows, columns = sinograms.shape
    angles = np.ascontiguousarray(angles_rad, dtype=np.float64)
    weights = (half_circle or HalfCircle.of(angles)).weights(angles)
    slices = np.empty((rows, columns, columns), dtype=np.float32)
    for start in range(0, rows, ROWS_TOGETHER):
        filtered = filter_projections(sinograms[:, start : start + ROWS_TOGETHER], weights)
        slices[start : start + ROWS_TOGETHER] = back_project(filtered, angles, float(center))
    return slices


def reconstruct_scan(
    scan: Scan,
    *,
    center: float,
    n_splits: int,
    stripes: bool,
    counts_per_photon: float = 0.0,
    full: VolumeSink,
    splits: Sequence[VolumeSink],
    rows_per_slab: int | None = None,
    max_memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ReconstructionFacts:
    """Reconstruct a scan from all of its angles, and from each of K parts of them (``SplitAngles.of``).

    Rows are read and corrected once. Stripe removal mixes the noise of the angles that it sees, so it works on each
    split by itself: the noise of the splits stays independent.

    Parameters
    ----------
    center
        Detector column of the rotation axis, from ``axis.find_center`` or from the user.
    n_splits
        K, the number of splits.
    stripes
        Whether to remove stripes, which cause rings.
    counts_per_photon
        From ``photon_transfer``, to correct the logarithm of low counts; 0: not corrected.
    full, splits
        Entered sinks of (rows, columns, columns) voxels; what they miss is written, in order. The caller closes them.
    rows_per_slab
        Memory grows with it; None lets memory decide. The result does not depend on it.
    max_memory
        Host memory that this process may take, in bytes; None: what is free.
    progress
        Called after each slab with the rows that are done, and all rows.

    Raises
    ------
    ScanError
        ``center`` lies outside the detector; too many splits; pixels that are not finite; unreadable file.
    DeviceError
        Not even one detector row at a time fits into ``max_memory``.
    """
    n_angles, rows, columns = scan.shape
    dealt = SplitAngles.of(scan.angles_rad, n_splits)
    if not 0 <= center <= columns - 1:
        raise ScanError(f"center {center:g} is not on the detector of {scan.path}; it has columns 0..{columns - 1}")
    assert len(splits) == n_splits, f"{len(splits)} sinks for {n_splits} splits"
    depth = min(rows_per_slab or plan_rows(scan, n_splits, stripes=stripes, max_memory=max_memory).rows, rows)
    outputs = [(full, np.arange(n_angles)), *zip(splits, dealt.indices, strict=True)]
    how = _How(dealt.half_circle, center, stripes, counts_per_photon)
    repairs = Repairs()
    # Otherwise what threads have freed stays in their heaps, more with every slab: 200 MB beyond a limit of 734.
    with large_arrays_given_back() if stripes else nullcontext():
        for start in range(0, rows, depth):
            stop = min(start + depth, rows)
            if any(_overlap(run, start, stop) for sink, _ in outputs for run in sink.missing):
                repairs += _reconstruct_slab(scan, start, stop, how, outputs)
                if stripes:
                    give_back_freed()
            if progress is not None:
                progress(stop, rows)
    if repairs.sentence:
        logger.warning("%s: %s", scan.path, repairs.sentence)
    shape = (rows, columns, columns)
    return ReconstructionFacts(shape, n_angles, n_splits, center, stripes, counts_per_photon, depth, repairs)


@dataclass(frozen=True)
class _How:
    """What is the same for all slabs."""

    circle: HalfCircle
    center: float
    stripes: bool
    counts_per_photon: float


def _reconstruct_slab(
    scan: Scan, start: int, stop: int, how: _How, outputs: Sequence[tuple[VolumeSink, NDArray[np.int64]]]
) -> Repairs:
    """Rows start..stop-1, into every output that misses some of them; nothing of them stays in memory."""
    values, repairs = line_integrals(scan.read_rows(start, stop), how.counts_per_photon)
    for sink, part in outputs:
        if runs := [run for run in (_overlap(run, start, stop) for run in sink.missing) if run]:
            sinograms = remove_stripes(values[part]) if how.stripes else values[part]
            slices = reconstruct_rows(sinograms, scan.angles_rad[part], how.center, how.circle)
            for run in runs:
                sink.write(run.start, slices[run.start - start : run.stop - start])
    return repairs


def _overlap(run: range, start: int, stop: int) -> range:
    return range(max(run.start, start), min(run.stop, stop))
