"""A raw scan in a DXchange HDF5 file: checked once when it is opened, then read a few detector rows at a time.

In: ``exchange/data`` (angles, rows, columns), ``exchange/data_white``, ``exchange/data_dark`` and ``exchange/theta``.
Out: a ``Scan``, which holds no open file, and ``RawRows``, counts as the detector gave them. Nothing is corrected
here; that is the job of ``preprocess``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from denoise.errors import DAMAGE, ScanError, damage_reason
from denoise.files import whole_file
from denoise.volumes.limits import require_small_pieces, require_volume_shape
from denoise.volumes.volume import Float32Array

if TYPE_CHECKING:
    import h5py

_DATASETS = ("exchange/data", "exchange/data_white", "exchange/data_dark", "exchange/theta")
_INSTRUMENT = "measurement/instrument"

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


@dataclass(frozen=True)
class RawRows:
    """Detector counts of a run of rows, float32, all finite.

    Attributes
    ----------
    data
        (angles, rows, columns).
    white, dark
        (frames, rows, columns): the beam without the sample, and the detector without the beam.
    whole_counts
        Whether the file holds integers, so that 1 is the smallest step between two values.
    source, first_row
        Where they come from, for messages.
    """

    data: Float32Array
    white: Float32Array
    dark: Float32Array
    whole_counts: bool = False
    source: str = "the scan"
    first_row: int = 0


@dataclass(frozen=True)
class Scan:
    """What a scan is, without its pixels; ``read_rows`` opens the file anew each time. Picklable.

    Attributes
    ----------
    detector_shape
        (angles, rows, columns) in the file.
    rows
        The detector rows that are used.
    """

    path: Path
    detector_shape: tuple[int, int, int]
    rows: range
    angles_rad: NDArray[np.float64] = field(repr=False, compare=False)
    sample_name: str
    voxel_size_um: float | None

    @classmethod
    def open(cls, path: str | Path) -> Scan:
        """Check a DXchange file and take down its facts.

        Parameters
        ----------
        path
            The HDF5 file.

        Raises
        ------
        ScanError
            The file is missing or no HDF5 file; a dataset is missing, lies in another file, is not numeric, or does
            not fit the others; theta is not finite, in an unknown unit, or spans less than 30 degrees.
        """
        path = Path(path)
        with _opened(path) as file:
            data, white, dark, theta = (_dataset(file, name, path) for name in _DATASETS)
            if len(data.shape or ()) != 3 or 0 in data.shape or data.shape[2] < 2:
                raise ScanError(
                    f"exchange/data in {path} has shape {data.shape}; expected (angles, rows, columns), "
                    "none of them 0 and at least 2 columns"
                )
            angles, rows, columns = (int(n) for n in data.shape)
            require_volume_shape((rows, angles, columns), f"exchange/data in {path}, taken row by row,", ScanError)
            for frames in (white, dark):
                if len(frames.shape or ()) not in (2, 3) or 0 in frames.shape or frames.shape[-2:] != (rows, columns):
                    raise ScanError(
                        f"{frames.name.lstrip('/')} in {path} has shape {frames.shape}, but exchange/data has shape "
                        f"{data.shape}; expected (frames, {rows}, {columns}), from the same region of the detector"
                    )
                require_volume_shape(
                    (rows, frames.size // (rows * columns), columns), f"{frames.name} in {path}", ScanError
                )
            return cls(
                path=path,
                detector_shape=(angles, rows, columns),
                rows=range(rows),
                angles_rad=_angles(theta, angles, path),
                sample_name=_sample_name(file) or path.stem,
                voxel_size_um=_voxel_size(file),
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(angles, rows, columns) of what is used."""
        angles, _, columns = self.detector_shape
        return angles, len(self.rows), columns

    @property
    def is_whole(self) -> bool:
        """Whether all rows are used."""
        return len(self.rows) == self.detector_shape[1]

    def only_rows(self, start: int | None, stop: int | None) -> Scan:
        """Detector rows ``start`` to ``stop - 1`` as a scan of its own; None: from the first, to the last.

        Raises
        ------
        ScanError
            The scan has no such rows.
        """
        there = self.detector_shape[1]
        first, end = start or 0, there if stop is None else stop
        if not 0 <= first < end <= there:
            raise ScanError(
                f"there are no detector rows from {first} up to {end} (the first that is left out) in {self.path}; it "
                f"has rows 0..{there - 1}"
            )
        return replace(self, rows=range(first, end))

    def read_rows(self, start: int, stop: int) -> RawRows:
        """Read rows start..stop-1 of those that are used, counted from 0, of every projection, flat and dark.

        Raises
        ------
        ScanError
            The rows do not exist; a pixel is NaN or infinite (its angle, row and column are named); the file has
            become unreadable or changed since it was opened.
        """
        _, rows, columns = self.shape
        if not 0 <= start < stop <= rows:
            raise ScanError(f"rows {start}..{stop - 1} of {self.path} do not exist; it has rows 0..{rows - 1}")
        start, stop = start + self.rows[0], stop + self.rows[0]
        arrays: list[Float32Array] = []
        with _opened(self.path) as file:
            for name in _DATASETS[:3]:
                dataset = _dataset(file, name, self.path)
                if name == "exchange/data" and tuple(dataset.shape) != self.detector_shape:
                    raise ScanError(
                        f"exchange/data in {self.path} now has shape {dataset.shape}, it had {self.detector_shape} "
                        "when the scan was opened; wait until the file is finished"
                    )
                try:
                    values = np.asarray(dataset[..., start:stop, :], dtype=np.float32)
                except (OSError, RuntimeError) as error:
                    raise ScanError(
                        f"{name} in {self.path} cannot be read, rows {start}..{stop - 1}: {error}; copy the file again"
                    ) from error
                values = values.reshape(-1, stop - start, columns)
                _require_finite(values, name, start, self.path)
                arrays.append(values)
            whole_counts = np.issubdtype(file["exchange/data"].dtype, np.integer)
        data, white, dark = arrays
        return RawRows(data, white, dark, bool(whole_counts), str(self.path), start)


def write_scan(
    path: str | Path,
    data: NDArray[Any],
    white: NDArray[Any],
    dark: NDArray[Any],
    theta_deg: ArrayLike,
    sample_name: str,
) -> None:
    """Write a DXchange file that ``Scan.open`` reads; it appears under its name when it is whole.

    Parameters
    ----------
    data
        (angles, rows, columns), any real type, stored as it is.
    white, dark
        (frames, rows, columns).
    theta_deg
        (angles,), degrees.

    Raises
    ------
    OutputError
        The disk is full, or the folder cannot be written.
    """
    import h5py

    with whole_file(Path(path)) as partial, h5py.File(partial, "w") as file:
        file["implements"] = "exchange:measurement"
        for name, values in (("data", data), ("data_white", white), ("data_dark", dark)):
            file[f"exchange/{name}"] = values
            file[f"exchange/{name}"].attrs["units"] = "counts"
        file["exchange/theta"] = np.asarray(theta_deg, dtype=np.float64)
        file["exchange/theta"].attrs["units"] = "degrees"
        file["measurement/sample/name"] = sample_name


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    import h5py
    import hdf5plugin  # noqa: F401  (registers the compressions that detectors use)

    if not path.is_file():
        raise ScanError(f"there is no file {path}; give the path of a DXchange .h5 scan")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ScanError(f"{path} cannot be opened as HDF5: {damage_reason(error)}; expected a DXchange scan") from error
    try:
        with file:
            yield file
    except DAMAGE as error:
        raise ScanError(
            f"{path} cannot be read, it may be damaged or cut short: {damage_reason(error)}; copy the file again"
        ) from error


def _dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Find a numeric dataset that lies in this very file: what others point to may be missing, or not the user's."""
    found = _inside(file, name, path)
    if not _is_dataset(found):
        what = "a group" if found is not None else "not there"
        raise ScanError(
            f"{name} in {path} is {what}; a DXchange scan has the datasets {', '.join(_DATASETS)}"
            + ("; copy it from a scan with the same detector settings" if "data_" in name else "")
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


def _angles(theta: h5py.Dataset, n_angles: int, path: Path) -> NDArray[np.float64]:
    if theta.shape != (n_angles,):
        raise ScanError(
            f"exchange/theta in {path} has shape {theta.shape}, but exchange/data has {n_angles} projections; "
            f"expected ({n_angles},), one angle for each: remove the flats' angles or the lost projections"
        )
    values = np.asarray(theta[()], dtype=np.float64)
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
    angles.setflags(write=False)
    return angles


def _require_finite(values: Float32Array, name: str, first_row: int, path: Path) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        frame, row, column = (int(i) for i in np.argwhere(~finite)[0])
        count, last_row = values.size - np.count_nonzero(finite), first_row + values.shape[1] - 1
        raise ScanError(
            f"{name} in {path} is {values[frame, row, column]} at frame {frame}, row {first_row + row}, "
            f"column {column} ({count} such pixels in rows {first_row}..{last_row}); expected finite counts: "
            "record the scan again or replace these pixels"
        )


def _sample_name(file: h5py.File) -> str:
    """Give the sample's name with everything replaced that a file name may not hold; empty where there is none."""
    found = _metadata(file, "measurement/sample/name")
    name = re.sub(r"[^\w.+-]+", "_", _text(found)) if found is not None else ""
    return name.strip("._-")[:100]


def _voxel_size(file: h5py.File) -> float | None:
    """Give the pixel size at the sample in micrometres; None unless the file says it with a unit.

    DXchange keeps it as the objective's ``resolution``; some beamlines write ``actual_pixel_size``. The detector's
    own ``pixel_size`` counts only together with a magnification: alone it would be several times too large.
    """
    for system in ("detection_system", "detector", "detection_system/objective", "detector/objective"):
        for entry in ("resolution", "actual_pixel_size", "actual_pixel_size_x"):
            size = _micrometres(file, f"{_INSTRUMENT}/{system}/{entry}")
            if size is not None:
                return size
    for system in ("detection_system/objective", "detection_system", "detector", "objective"):
        magnification = _positive(_metadata(file, f"{_INSTRUMENT}/{system}/magnification"))
        for entry in ("pixel_size", "pixel_size_x"):
            size = _micrometres(file, f"{_INSTRUMENT}/detector/{entry}")
            if magnification and size:
                return size / magnification
    return None


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
