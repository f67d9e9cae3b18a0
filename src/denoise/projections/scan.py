"""A raw scan in a DXchange HDF5 file: checked once when it is opened, then read a few detector rows at a time.

In: ``exchange/data`` (angles, rows, columns), ``exchange/data_white``, ``exchange/data_dark`` and ``exchange/theta``.
Out: a ``Scan``, which holds no open file, and ``RawRows``, counts as the detector gave them. Nothing is corrected
here; that is the job of ``preprocess``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from denoise.errors import ScanError
from denoise.files import whole_file
from denoise.projections.dxchange import DATASETS, angles_of, numeric_dataset, opened, sample_name_of, voxel_size_of
from denoise.volumes.hdf5_trial import require_harmless
from denoise.volumes.limits import require_volume_shape
from denoise.volumes.volume import Float32Array

if TYPE_CHECKING:
    import h5py


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
    angles_rad
        Of the projections that are used.
    left_out
        The projections of the file that are not, ascending.
    """

    path: Path
    detector_shape: tuple[int, int, int]
    rows: range
    angles_rad: NDArray[np.float64] = field(repr=False, compare=False)
    sample_name: str
    voxel_size_um: float | None
    left_out: tuple[int, ...] = ()

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
        require_harmless(f"{__name__}:read_facts", path, error=ScanError)
        return read_facts(path)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(angles, rows, columns) of what is used."""
        return len(self.angles_rad), len(self.rows), self.detector_shape[2]

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

    def without(self, numbers: tuple[int, ...]) -> Scan:
        """The scan as if some projections, ascending, counted from 0 among those that are used, had not been taken."""
        angles = np.delete(self.angles_rad, numbers)
        angles.setflags(write=False)
        left_out = sorted({*self.left_out, *map(int, self._used[list(numbers)])})
        return replace(self, angles_rad=angles, left_out=tuple(left_out))

    def read_rows(self, start: int, stop: int) -> RawRows:
        """Read rows start..stop-1 of those that are used, counted from 0, of every such projection, flat and dark.

        Raises
        ------
        ScanError
            The rows do not exist; a pixel is NaN or infinite (its angle, row and column are named); the file has
            become unreadable or changed since it was opened.
        """
        rows = self.shape[1]
        if not 0 <= start < stop <= rows:
            raise ScanError(f"rows {start}..{stop - 1} of {self.path} do not exist; it has rows 0..{rows - 1}")
        start, stop = start + self.rows[0], stop + self.rows[0]
        with opened(self.path) as file:
            data, white, dark = (self._read(file, name, start, stop) for name in DATASETS[:3])
            for values, name in zip((data, white, dark), DATASETS, strict=False):
                _require_finite(values, name, start, self.path)
            whole_counts = np.issubdtype(file["exchange/data"].dtype, np.integer)
        if self.left_out:
            data = data[self._used]
        return RawRows(data, white, dark, bool(whole_counts), str(self.path), start)

    def read_beam(self, rows: int, frames: int) -> tuple[Float32Array, Float32Array]:
        """The first flats and darks, of rows in the middle of the detector (whichever rows are used).

        Returns
        -------
        Flats and darks, float32, (frames or fewer, rows or fewer, columns), as they are: not all need be finite.

        Raises
        ------
        ScanError
            The file has become unreadable.
        """
        middle = self._middle(rows)
        with opened(self.path) as file:
            white, dark = (self._read(file, name, middle.start, middle.stop, slice(frames)) for name in DATASETS[1:3])
        return white, dark

    def read_frames(self, numbers: NDArray[np.int64], rows: int) -> Float32Array:
        """Some projections, of the same rows as ``read_beam``, as they are; what is stored together is read once.

        Returns
        -------
        float32, the shape of ``numbers`` and after it (rows or fewer, columns).

        Raises
        ------
        ScanError
            The file has become unreadable or changed since it was opened.
        """
        middle = self._middle(rows)
        wanted, places = np.unique(self._used[numbers], return_inverse=True)
        first, end = int(wanted[0]), int(wanted[-1]) + 1
        # h5py takes a list number by number.
        chosen = slice(first, end) if end - first == len(wanted) else wanted.tolist()
        with opened(self.path) as file:
            frames = self._read(file, DATASETS[0], middle.start, middle.stop, chosen)
        return frames[places.reshape(numbers.shape)]

    @property
    def _used(self) -> NDArray[np.int64]:
        """(projections that are used,): their numbers in the file."""
        return np.delete(np.arange(self.detector_shape[0]), self.left_out)

    def _middle(self, rows: int) -> range:
        there = self.detector_shape[1]
        start = max(0, (there - rows) // 2)
        return range(start, min(there, start + rows))

    def _read(
        self, file: h5py.File, name: str, start: int, stop: int, frames: slice | list[int] = slice(None)
    ) -> Float32Array:
        """Detector rows start..stop-1 of some frames, (frames, rows, columns)."""
        dataset = numeric_dataset(file, name, self.path)
        if name == "exchange/data" and tuple(dataset.shape) != self.detector_shape:
            raise ScanError(
                f"exchange/data in {self.path} now has shape {dataset.shape}, it had {self.detector_shape} "
                "when the scan was opened; wait until the file is finished"
            )
        try:
            chosen = dataset[start:stop] if dataset.ndim == 2 else dataset[frames, start:stop]
            values = np.asarray(chosen, dtype=np.float32)
        except (OSError, RuntimeError) as error:
            raise ScanError(
                f"{name} in {self.path} cannot be read, rows {start}..{stop - 1}: {error}; copy the file again"
            ) from error
        return values.reshape(-1, stop - start, self.detector_shape[2])


def read_facts(path: str | Path) -> Scan:
    """``Scan.open`` without a trial: what the trial tries."""
    path = Path(path)
    with opened(path) as file:
        data, white, dark, theta = (numeric_dataset(file, name, path) for name in DATASETS)
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
        return Scan(
            path=path,
            detector_shape=(angles, rows, columns),
            rows=range(rows),
            angles_rad=angles_of(theta, angles, path),
            sample_name=sample_name_of(file) or path.stem,
            voxel_size_um=voxel_size_of(file),
        )


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
