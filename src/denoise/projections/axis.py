"""Where the rotation axis is, found in the projections, and doubts about where a user says it is."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from denoise.errors import ScanError
from denoise.projections.preprocess import line_integrals
from denoise.projections.scan import Scan
from denoise.volumes.volume import Float32Array

logger = logging.getLogger(__name__)

_GIVE_CENTER = "measure it with other software and give it with --center"
_PLACES, _ROWS_EACH = 5, 5
#: Columns. Found axes are right to a quarter of a column; edges that are a column off are doubled by two.
_DOUBT, _SPREAD = 1.5, 2.0


@dataclass(frozen=True)
class _Place:
    """Adjacent detector rows, averaged, and what the angles of half a turn show there."""

    rows: range
    sinogram: Float32Array

    @property
    def contrast(self) -> float:
        """Of its mean projection: without a sample there is none."""
        return float(self.sinogram.mean(axis=0).std())


def find_center(scan: Scan) -> float:
    """Find the detector column of the rotation axis, counted from 0, to a quarter of a column.

    Vo, Drakopoulos, Atwood, Reinhard 2014, Opt. Express 22:19078, doi 10.1364/OE.22.019078, as in algotom, on five
    places over the height, each the mean of up to five adjacent rows; the median of those that show the sample.

    Raises
    ------
    ScanError
        The angles do not cover a half circle; no place gives an axis within a quarter of the width from the middle.
    """
    n_angles, _, columns = scan.shape
    places = _places(scan)
    strongest = max(place.contrast for place in places)
    shown = [place for place in places if place.contrast >= 0.25 * strongest]
    found = [axis for axis in map(_axis, shown) if axis is not None]
    if not found:
        raise ScanError(
            f"the rotation axis of {scan.path} was not found between columns {columns // 4} and {columns * 3 // 4} of "
            f"{columns} ({n_angles} angles, {len(shown)} places tried); {_GIVE_CENTER}"
        )
    center = float(np.median(found))
    if np.ptp(found) > _SPREAD:
        logger.warning(
            "the rotation axis of %s is uncertain: columns %s at different heights, %.2f is taken; look for doubled "
            "edges in the slices, and if there are any, give --center",
            scan.path, ", ".join(f"{axis:.2f}" for axis in found), center,
        )  # fmt: skip
    return center


def center_doubt(scan: Scan, center: float) -> str | None:
    """What to tell a user whose rotation centre is not where the projections have it.

    Looks at one place only, where the sample shows most. None where centre and projections agree, and where they cannot
    tell: too few angles for it, or no axis found.

    Raises
    ------
    ScanError
        Pixels that are not finite; unreadable file.
    """
    try:
        half = _half_turn(scan)
    except ScanError:
        return None
    place = max(_places(scan, half), key=lambda place: place.contrast)
    found = _axis(place)
    if found is None or abs(found - center) <= _DOUBT:
        return None
    return (
        f"--center is {center:g}, but in detector rows {place.rows[0]}..{place.rows[-1]} of {scan.path} the rotation "
        f"axis seems to be at column {found:.2f}; a wrong centre doubles edges, in all splits alike, so that denoising "
        "keeps it: look at a few slices (--start-row, --end-row)"
    )


def _places(scan: Scan, half: NDArray[np.int64] | None = None) -> list[_Place]:
    half = _half_turn(scan) if half is None else half
    rows = scan.shape[1]
    depth = min(_ROWS_EACH, rows)
    starts = np.unique(np.linspace(0, rows - depth, _PLACES).astype(int)) if rows > depth else np.array([0])
    places = []
    for start in map(int, starts):
        values, _ = line_integrals(scan.read_rows(start, start + depth))
        places.append(_Place(scan.rows[start : start + depth], values.mean(axis=1)[half]))
    return places


def _half_turn(scan: Scan) -> NDArray[np.int64]:
    """Projections of half a turn, sorted by angle."""
    turn = np.mod(scan.angles_rad - scan.angles_rad.min() + 1e-9, 2 * np.pi)
    order = np.argsort(turn, kind="stable")
    half = order[turn[order] <= np.pi + 1e-6]
    gaps = np.rad2deg(np.diff(turn[half], append=np.pi))
    # The method compares each projection with its mirror image half a turn away: it needs them all.
    if half.size < 10 or gaps.max() > 10.0:
        raise ScanError(
            f"the angles of {scan.path} have {half.size} projections in the half turn from the lowest, with a gap of "
            f"{gaps.max() if half.size else 180.0:.1f} degrees; finding the axis needs 10 or more without a gap "
            f"over 10 degrees: {_GIVE_CENTER}"
        )
    return np.asarray(half, dtype=np.int64)


def _axis(place: _Place) -> float | None:
    """Search near the middle, then further out; None where the best place is at the end of both ranges."""
    from algotom.prep.calculation import find_center_vo

    columns = place.sinogram.shape[1]
    for reach in (columns // 16, columns // 4):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            axis = float(find_center_vo(place.sinogram, start=columns // 2 - reach, stop=columns // 2 + reach))
        if not any("out of the searching range" in str(warning.message) for warning in caught):
            return axis
    return None
