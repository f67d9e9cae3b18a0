"""A folder with one TIFF file per slice, as most reconstruction software writes it.

Opening lists the folder and reads the header of the first slice; every other slice is checked when it is read.
Slices are ordered naturally (2 before 10) and known by a number in their file names: the one in which these differ, or
the last one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from denoise import files
from denoise.errors import VolumeError
from denoise.tiles import Region, Triple
from denoise.volumes.compression import least_bytes
from denoise.volumes.limits import require_volume_shape
from denoise.volumes.slab_writer import VolumeHeader
from denoise.volumes.slice_pool import SlicePool
from denoise.volumes.tiff_metadata import slice_tags, voxel_size_um
from denoise.volumes.tiff_page import (
    Rectangle,
    image_format,
    in_threads,
    opened,
    page_offsets,
    read_rectangle,
    require_whole,
)
from denoise.volumes.volume import Float32Array, VoxelSize, require_inside

TIFF_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class TiffStackVolume:
    """A folder of TIFF slices as a Volume."""

    folder: Path
    file_names: tuple[str, ...]
    slice_numbers: range
    image_shape: tuple[int, int]
    dtype: np.dtype[Any]
    voxel_size_um: VoxelSize | None

    @classmethod
    def open(cls, folder: Path) -> TiffStackVolume:
        """List the slices and read the header of the first.

        Raises
        ------
        VolumeError
            No TIFF files; numbers that are missing, doubled or absent in some names; an unreadable first slice.
        """
        names = _tiff_names(folder)
        numbers = _numbers(folder, names)
        what = f"{folder / names[0]} (slice {numbers[0]})"
        with opened(folder / names[0], what) as tif:
            _require_single_page(tif, what)
            shape, dtype = image_format(tif.pages.first, what)
            require_volume_shape((len(names), *shape), what)
            return cls(folder, names, numbers, shape, dtype, voxel_size_um(tif))

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def shape(self) -> Triple:
        """(Z, Y, X)."""
        return (len(self.file_names), *self.image_shape)

    @property
    def chunk_zyx(self) -> Triple:
        """Every slice is its own file, and stored row by row."""
        return (1, 1, self.shape[2])

    def description(self) -> str:
        """Of the first slice."""
        with opened(self.folder / self.file_names[0], str(self.folder)) as tif:
            return str(tif.pages.first.description)

    def require_alike(self) -> None:
        """Look at the headers and lengths of all slices, which reading does slice by slice.

        Raises
        ------
        VolumeError
            One is missing, unreadable, cut short, or of another shape or type than the first; names it.
        """

        def look(z: int) -> None:
            with self._page(z) as (page, what):
                require_whole(page, what)

        in_threads(look, list(range(len(self.file_names))))

    def read(self, region: Region) -> Float32Array:
        """Values of a region as float32; slices are read in a few threads."""
        return self._read(region, np.dtype(np.float32))

    def read_stored(self, region: Region) -> NDArray[Any]:
        """Values of a region in the stored type."""
        return self._read(region, self.dtype)

    def _read(self, region: Region, dtype: np.dtype[Any]) -> NDArray[Any]:
        require_inside(self, region)
        z, y, x = region.slices
        rectangle = Rectangle(y.start, y.stop, x.start, x.stop)
        out = np.empty(region.shape_zyx, dtype)
        in_threads(lambda k: self._read_slice(z.start + k, rectangle, out[k]), list(range(len(out))))
        return out

    def _read_slice(self, z: int, rectangle: Rectangle, out: NDArray[Any]) -> None:
        with self._page(z) as (page, what):
            read_rectangle(page, rectangle, out, what)

    @contextmanager
    def _page(self, z: int) -> Iterator[tuple[tifffile.TiffPage, str]]:
        """The image of a slice, if it is like that of the first, and what to call it in a message."""
        path = self.folder / self.file_names[z]
        what = f"{path} (slice {self.slice_numbers[z]})"
        with opened(path, what) as tif:
            _require_single_page(tif, what)
            page = tif.pages.first
            shape, dtype = image_format(page, what)
            if shape != self.image_shape or dtype != self.dtype:
                raise VolumeError(
                    f"{what} has shape {shape} and type {dtype}, but the first slice, {self.file_names[0]}, has "
                    f"{self.image_shape} and {self.dtype}; keep the slices of one volume only in {self.folder}"
                )
            yield page, what


@dataclass
class TiffStackWriter:
    """Writes slices as files ``<stem>_00010.tif`` into a folder, through a small pool of threads."""

    partial: Path
    header: VolumeHeader
    stem: str
    _pool: SlicePool | None = field(default=None, init=False)

    @property
    def allows_parallel_slabs(self) -> bool:
        """Every slice is its own file."""
        return True

    @property
    def slices_together(self) -> int:
        """Each by itself."""
        return 1

    @property
    def disk_bytes(self) -> int:
        """The voxels, or what compression may leave of them."""
        return least_bytes(self.header.n_bytes, self.header.compression)

    def create(self) -> None:
        """Make the folder."""
        self.partial.mkdir()

    def attach(self) -> None:
        """Make the pool."""
        self._pool = SlicePool(self._write_slice)

    def store(self, z_start: int, slab: NDArray[Any]) -> None:
        """Hand copies of the slices to the pool."""
        assert self._pool is not None
        self._pool.store(z_start, slab)

    def sync(self, runs: list[tuple[int, int]]) -> None:
        """Wait for the pool (its first error is raised), and for the disk."""
        assert self._pool is not None
        self._pool.wait()
        for start, stop in runs:
            for z in range(start, stop):
                files.sync(self._slice_path(z))
        files.sync(self.partial)

    def finish(self) -> None:
        """Stop the pool."""
        self.abandon()

    def abandon(self) -> None:
        """Drop what waits and stop the pool."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None}

    def _write_slice(self, z: int, image: NDArray[Any]) -> None:
        path = self._slice_path(z)
        try:
            tifffile.imwrite(path, image, **slice_tags(self.header))
        except OSError as error:
            if error.errno is None:  # of numpy, which tells how much was written and not why no more
                _ask_again(path)
            raise

    def _slice_path(self, z: int) -> Path:
        numbers = self.header.slice_numbers
        width = max(5, len(str(numbers[-1])))
        return self.partial / f"{self.stem}_{numbers[z]:0{width}d}.tif"


def _ask_again(path: Path) -> None:
    """Write on at the end of a file that took no more, for the number of the system's error."""
    with path.open("ab") as file:
        file.write(bytes(2**20))


def first_foreign_entry(folder: Path) -> Path | None:
    """Something in a folder, hidden or not, that is not a TIFF file; None where there is nothing else."""
    entries = sorted(folder.iterdir())
    return next((p for p in entries if p.suffix.lower() not in TIFF_SUFFIXES or not p.is_file()), None)


def _tiff_names(folder: Path) -> tuple[str, ...]:
    try:
        names = [
            p.name
            for p in folder.iterdir()
            if p.suffix.lower() in TIFF_SUFFIXES and not p.name.startswith(".") and not p.is_dir()
        ]
    except OSError as error:
        raise VolumeError(f"{folder} cannot be listed: {error.strerror or error}") from error
    if not names:
        raise VolumeError(
            f"{folder} holds no .tif or .tiff file; expected a folder with one TIFF file per slice, or a Zarr store"
        )
    return tuple(sorted(names, key=_natural_key))


def _natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Orders runs of digits by value, everything else without regard to case; the name itself settles ties."""
    parts = re.split("([0-9]+)", name)
    return [(1, int(p), "") if p.isascii() and p.isdigit() else (0, 0, p.lower()) for p in parts], name


def _numbers(folder: Path, names: tuple[str, ...]) -> range:
    """The slice numbers, from the names; names without any number are counted from 0."""
    parts = [re.split("([0-9]+)", Path(name).stem) for name in names]
    if all(len(of_name) == 1 for of_name in parts):
        return range(len(names))
    for name, of_name in zip(names, parts, strict=True):
        if len(of_name) == 1:
            raise VolumeError(f"{folder / name} has no slice number in its name, the others have; move it elsewhere")
    numbers = _counting(parts)
    by_number: dict[int, str] = {}
    for number, name in zip(numbers, names, strict=True):
        if number in by_number:
            raise VolumeError(
                f"two files in {folder} are slice {number}: {by_number[number]} and {name}; keep the slices of one "
                "volume only, under names that differ in their slice number alone"
            )
        by_number[number] = name
    steps = [b - a for a, b in pairwise(numbers)]
    step = min(steps, default=1)
    if step < 1:
        k = steps.index(step)
        raise VolumeError(
            f"slice numbers in {folder} go backwards, from {names[k]} to {names[k + 1]}; "
            "give the slices of one volume the same name but for the number"
        )
    for k, gap in enumerate(steps):
        if gap != step:
            raise VolumeError(
                f"slice {numbers[k] + step} is missing in {folder}, between {names[k]} and {names[k + 1]}; "
                "put it there, or move the slices on one side of the gap elsewhere"
            )
    return range(numbers[0], numbers[0] + len(numbers) * step, step)


def _counting(parts: Sequence[Sequence[str]]) -> list[int]:
    """The number of each name that counts: the only one in which names differ (`rec_0010_0.65um`), or the last.

    Parameters
    ----------
    parts
        Of each name text, number, text, number, ...
    """
    if len({tuple(of_name[::2]) for of_name in parts}) == 1:
        columns = list(zip(*(map(int, of_name[1::2]) for of_name in parts), strict=True))
        differing = [column for column in columns if len(set(column)) > 1]
        if len(differing) == 1:
            return list(differing[0])
    return [int(of_name[-2]) for of_name in parts]


def _require_single_page(tif: tifffile.TiffFile, what: str) -> None:
    n_pages = len(page_offsets(tif, what))
    if n_pages != 1:
        raise VolumeError(
            f"{what} holds {n_pages} images; in a folder expected one slice per file. If it is a volume of its own, "
            "give the path of the file, not of the folder"
        )
