"""A DXchange HDF5 file: what of it is a scan, found and checked, and nothing of it believed.

Links lead nowhere but into the same file; what only describes a scan may be damaged or missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from denoise.errors import DAMAGE, ScanError, damage_reason
from denoise.volumes.limits import require_small_pieces

if TYPE_CHECKING:
    import h5py

DATASETS = ("exchange/data", "exchange/data_white", "exchange/data_dark", "exchange/theta")
_REMEDIES = {
    "exchange/data_": "copy it from a scan with the same detector settings",
    "exchange/theta": "add the angles in degrees, for N of them over half a turn with h5py: "
    "file['exchange/theta'] = numpy.linspace(0, 180, N, endpoint=False)",
}
_INSTRUMENT = "measurement/instrument"
#: Nothing, 0 (not stated), 1, "1x1", [1, 1].
_UNBINNED = re.compile(r"|0(?:\.0)?|1(?:\.0)?(?:[x, ]+1(?:\.0)?)?")
#: Numbers of degrees that are called radians follow each other by so much at most; golden angles, which go on over many
#: turns, by more.
_DEGREE_STEP = 1.05

# Below this, filtered back-projection shows little but the missing wedge; in practice it means that theta is in
# radians and the file does not say so.
_SMALLEST_SPAN_DEG = 30.0

_MICROMETRES = {
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre"), 1.0),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre"), 1e3),
    **dict.fromkeys(("m", "meter", "meters", "metre"), 1e6),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre"), 1e-3),
}
_RADIANS = {
    **dict.fromkeys(("degree", "degrees", "deg", "°", ""), np.pi / 180),
    **dict.fromkeys(("radian", "radians", "rad"), 1.0),
}


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, for as long as the block runs.

    Raises
    ------
    ScanError
        It is missing, a folder, not permitted to be read, no HDF5 file, or damaged; whatever the block finds of that.
    """
    import h5py
    import hdf5plugin  # noqa: F401  (registers the compressions that detectors use)

    try:
        if path.is_dir():
            raise ScanError(
                f"{path} is a folder, expected a DXchange .h5 scan; reconstructions that exist are trained on directly "
                'from a config of five lines: README, "From reconstructions that you have"'
            )
        if not path.is_file():
            raise ScanError(f"there is no file {path}; give the path of a DXchange .h5 scan")
        file = h5py.File(path, "r")
    except PermissionError as error:
        raise ScanError(f"{path} cannot be read: no permission; ask its owner") from error
    except OSError as error:
        raise ScanError(f"{path} cannot be opened as HDF5: {damage_reason(error)}; expected a DXchange scan") from error
    try:
        with file:
            yield file
    except DAMAGE as error:
        raise ScanError(
            f"{path} cannot be read, it may be damaged or cut short: {damage_reason(error)}; copy the file again"
        ) from error


def numeric_dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Find a numeric dataset that lies in this very file: what others point to may be missing, or not the user's."""
    found = _inside(file, name, path)
    if not _is_dataset(found):
        what = "a group" if found is not None else "not there"
        raise ScanError(
            f"{name} in {path} is {what}; a DXchange scan has the datasets {', '.join(DATASETS)}"
            + next((f"; {remedy}" for part, remedy in _REMEDIES.items() if name.startswith(part)), "")
        )
    if found.is_virtual or found.external:
        raise ScanError(f"{name} in {path} is stored in other files; copy the scan into one file, with its pixels")
    if not (np.issubdtype(found.dtype, np.integer) or np.issubdtype(found.dtype, np.floating)):
        raise ScanError(f"{name} in {path} holds values of type {found.dtype}; expected integers or floats")
    require_small_pieces(found.chunks or (), found.dtype, f"{name} in {path}", ScanError)
    return found


def _inside(file: h5py.File, name: str, path: Path, links: int = 8) -> Any:
    """Give what stands under a name, or None; no link is followed into another file, nor more than a few in all."""
    import h5py

    place: Any = file
    for part in name.split("/"):
        if not isinstance(place, h5py.Group):
            return None
        link = place.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ScanError(f"{name} in {path} is a link into the file {link.filename}; copy the scan into one file")
        if isinstance(link, h5py.SoftLink):
            target = link.path if link.path.startswith("/") else f"{place.name.rstrip('/')}/{link.path}"
            place = _inside(file, target.strip("/"), path, links - 1) if links else None
        else:
            place = place.get(part)
    return place


def _is_dataset(found: Any) -> bool:
    import h5py

    return isinstance(found, h5py.Dataset)


def angles_of(theta: h5py.Dataset, n_angles: int, path: Path) -> NDArray[np.float64]:
    """The angles in radians, (angles,), read only.

    Raises
    ------
    ScanError
        Another number of them; not finite; an unknown unit; a span of less than 30 degrees, or of 180 or 360 radians.
    """
    if theta.size != n_angles or max(theta.shape or (0,)) != n_angles:
        raise ScanError(
            f"exchange/theta in {path} has shape {theta.shape}, but exchange/data has {n_angles} projections; "
            f"expected ({n_angles},), one angle for each: remove the flats' angles or the lost projections"
        )
    values = np.asarray(theta[()], dtype=np.float64).reshape(-1)  # some write (angles, 1)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ScanError(
            f"exchange/theta in {path} is {values[bad[0]]} at projection {bad[0]} ({bad.size} such of {n_angles}); "
            "expected a finite angle for every projection"
        )
    unit = _text(theta.attrs.get("units", "")).strip().lower()
    if unit not in _RADIANS:
        raise ScanError(f"exchange/theta in {path} has the unit {unit!r}; expected 'degrees' or 'radians'")
    angles: NDArray[np.float64] = values * _RADIANS[unit]
    span = float(np.rad2deg(np.ptp(angles)))
    if span < _SMALLEST_SPAN_DEG:
        raise ScanError(
            f"exchange/theta in {path} spans {span:.4g} degrees (unit {unit or 'not given, degrees assumed'!s}); "
            f"expected at least {_SMALLEST_SPAN_DEG:g}: if the values are radians, set its attribute units to 'radians'"
        )
    if _RADIANS[unit] == 1.0 and _cover_degrees(values):
        raise ScanError(
            f"exchange/theta in {path} spans {span:.0f} degrees (unit {unit}), {span / 360:.1f} turns; expected a few "
            "turns at most: if the values are degrees, set its attribute units to 'degrees', if they are radians, take "
            "them modulo 2 pi"
        )
    angles.setflags(write=False)
    return angles


def _cover_degrees(values: NDArray[np.float64]) -> bool:
    """Whether they span 180 or 360, to a step, with both ends or without one: as numbers of radians do by no chance."""
    step, span = float(np.median(np.diff(np.unique(values)))), float(np.ptp(values))
    return step <= _DEGREE_STEP and any(-2 * step <= span - turn <= step for turn in (180, 360))


def sample_name_of(file: h5py.File) -> str:
    """Give the sample's name with everything replaced that a file name may not hold; empty where there is none."""
    found = _metadata(file, "measurement/sample/name")
    name = re.sub(r"[^\w.+-]+", "_", _text(found)) if found is not None else ""
    return name.strip("._-")[:100]


def voxel_size_of(file: h5py.File) -> float | None:
    """Give the pixel size at the sample in micrometres; None unless the file says it with a unit.

    DXchange keeps it as the objective's ``resolution``; some beamlines write ``actual_pixel_size``. The detector's
    own ``pixel_size`` counts only together with a magnification: alone it would be several times too large; and only
    where pixels are not binned, as some mean the size before and some that after.
    """
    for system in ("detection_system", "detector", "detection_system/objective", "detector/objective"):
        for entry in ("resolution", "actual_pixel_size", "actual_pixel_size_x"):
            size = _micrometres(file, f"{_INSTRUMENT}/{system}/{entry}")
            if size is not None:
                return size
    if any(_may_be_binned(file, f"{_INSTRUMENT}/detector/binning{axis}") for axis in ("_x", "_y", "")):
        return None
    for system in ("detection_system/objective", "detection_system", "detector", "objective"):
        magnification = _positive(_metadata(file, f"{_INSTRUMENT}/{system}/magnification"))
        for entry in ("pixel_size", "pixel_size_x"):
            size = _micrometres(file, f"{_INSTRUMENT}/detector/{entry}")
            if magnification and size:
                return size / magnification
    return None


def _may_be_binned(file: h5py.File, name: str) -> bool:
    """Whether there is anything but ones under a name: what is written in another way may be any binning."""
    try:
        found = _inside(file, name, Path(file.filename))
        if not _is_dataset(found):
            return found is not None
        if found.size > 2 or found.is_virtual or found.external:
            return True
        said = " ".join(_text(value) for value in np.asarray(found[()]).reshape(-1))
    except (ScanError, *DAMAGE):
        return True
    return _UNBINNED.fullmatch(said.strip().lower()) is None


def _micrometres(file: h5py.File, name: str) -> float | None:
    value = _positive(_metadata(file, name))
    if value is None:
        return None
    try:
        unit = _text(file[name].attrs.get("units", "")).strip().lower()
    except DAMAGE:
        return None
    return value * _MICROMETRES[unit] if unit in _MICROMETRES else None


def _metadata(file: h5py.File, name: str) -> Any:
    """Give a single value, or None: what only describes a scan never keeps it from being read."""
    try:
        found = _inside(file, name, Path(file.filename))
        if not _is_dataset(found) or found.size != 1 or found.is_virtual or found.external:
            return None
        return np.asarray(found[()]).reshape(-1)[0]
    except (ScanError, *DAMAGE):
        return None


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size else ""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
