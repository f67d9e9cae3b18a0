"""A dataset in an HDF5 file (DXchange, NXtomo, our own): reading and writing.

A file speaks for itself only: external links, external storage and virtual datasets, by which an HDF5 file from
somebody else would make us read other files, are refused. The file is opened for each read, so that volumes may be
pickled, forked and used from several threads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers the compression filters that detectors use
import numpy as np
from numpy.typing import NDArray

from denoise.errors import DAMAGE, OutputError, VolumeError, damage_reason
from denoise.tiles import Region, Triple
from denoise.volumes.hdf5_trial import require_harmless
from denoise.volumes.limits import axes_before, require_small_pieces, require_volume_shape
from denoise.volumes.raw_voxels import RawVoxels, take_room
from denoise.volumes.slab_writer import VolumeHeader
from denoise.volumes.units import rounded
from denoise.volumes.volume import (
    Float32Array,
    VoxelSize,
    chunk_shape,
    require_inside,
    require_stored_type,
    stored_numbers,
)

_MOST_LINKS = 32
_MOST_CANDIDATES = 20
_VOXEL_SIZE, _FIRST, _STEP = "element_size_um", "first_slice_number", "slice_number_step"
_DESCRIPTION = "description"


@dataclass(frozen=True)
class Hdf5Volume:
    """A three-axis dataset as a Volume; ``dataset`` is its place in the file with links inside the file resolved."""

    path: Path
    dataset: str
    shape: Triple
    dtype: np.dtype[Any]
    voxel_size_um: VoxelSize | None
    slice_numbers: range
    chunk_zyx: Triple
    axes_before: int = 0
    """Of length 1: one channel, one time."""

    @classmethod
    def open(cls, path: Path, dataset: str = "") -> Hdf5Volume:
        """Find the dataset and read its description.

        Parameters
        ----------
        dataset
            Its place in the file; may be empty if the file has a single numeric dataset with three axes.

        Raises
        ------
        VolumeError
            No HDF5 file; no such dataset, or not exactly one candidate (they are listed); a link to another file;
            not three axes; a type that volumes cannot have.
        """
        require_harmless(f"{__name__}:read_facts", path, dataset, error=VolumeError)
        return read_facts(path, dataset)

    @property
    def name(self) -> str:
        """``file.h5::/dataset``."""
        return f"{self.path}::{self.dataset}"

    def description(self) -> str:
        """The attribute of the dataset."""
        with _opened(self.path) as file:
            attributes = _dataset(file, self.dataset, self.name).attrs
            # Text of varying length lies in a heap of the file, see `_attribute`; ours does not.
            fixed = _DESCRIPTION in attributes and attributes.get_id(_DESCRIPTION).dtype.kind == "S"
            return bytes(attributes[_DESCRIPTION]).decode("utf-8", "replace") if fixed else ""

    def read(self, region: Region) -> Float32Array:
        """Values of a region as float32."""
        return self.read_stored(region).astype(np.float32, copy=False)

    def read_stored(self, region: Region) -> NDArray[Any]:
        """Values of a region in the stored type."""
        require_inside(self, region)
        with _opened(self.path) as file:
            found = _dataset(file, self.dataset, self.name)
            before = (1,) * self.axes_before
            if found.shape != (*before, *self.shape):
                raise VolumeError(f"{self.name} has changed its shape from {self.shape} to {found.shape}; start again")
            values: NDArray[Any] = found[(*(slice(0, 1) for _ in before), *region.slices)]
            return values.reshape(region.shape_zyx).astype(self.dtype, copy=False)


def read_facts(path: str | Path, dataset: str) -> Hdf5Volume:
    """``Hdf5Volume.open`` without a trial: what the trial tries."""
    path = Path(path)
    with _opened(path) as file:
        place = _resolve(file, dataset) if dataset.strip("/") else _only_candidate(file, path)
        what = f"{path}::{place}"
        found = _dataset(file, place, what)
        before = axes_before(found.shape or ())
        shape = require_volume_shape((found.shape or ())[before:], what)
        attributes = found.attrs
        numbers = stored_numbers(_attribute(attributes, _FIRST), _attribute(attributes, _STEP), shape[0])
        dtype = require_stored_type(found.dtype, what)
        require_small_pieces(found.chunks or (), dtype, what)
        chunks = chunk_shape(found.chunks and found.chunks[before:], shape)
        return Hdf5Volume(path, place, shape, dtype, _voxel_size(attributes), numbers, chunks, before)


@dataclass
class Hdf5Writer:
    """Writes slabs, in any order, into one contiguous dataset."""

    partial: Path
    header: VolumeHeader
    dataset: str
    _voxels: RawVoxels | None = field(default=None, init=False)

    @property
    def allows_parallel_slabs(self) -> bool:
        """Each slice has its place."""
        return True

    @property
    def slices_together(self) -> int:
        """Each by itself."""
        return 1

    @property
    def disk_bytes(self) -> int:
        """The voxels."""
        return self.header.n_bytes

    def create(self) -> None:
        """Make the file with the whole room for the dataset, and its attributes.

        All blocks are taken from the disk now: where it fills up while HDF5 writes, HDF5 loses chunks of its cache
        without an error that reaches us, and crashes at exit.
        """
        header = self.header
        room = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        room.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        with system_errors(), h5py.File(self.partial, "w") as file:
            made = file.create_dataset(
                self.dataset, header.shape, header.dtype.newbyteorder("<"), fill_time="never", dcpl=room
            )
            describe_dataset(made, header)
        take_room(self.partial)

    def attach(self) -> None:
        """Find the voxels."""
        with h5py.File(self.partial, "r") as file:
            offset = file[self.dataset].id.get_offset()
        self._voxels = RawVoxels(self.partial, self.header, offset)
        self._voxels.open()

    def store(self, z_start: int, slab: NDArray[Any]) -> None:
        """Write the slices."""
        assert self._voxels is not None
        self._voxels.store(z_start, slab)

    def sync(self, runs: list[tuple[int, int]]) -> None:
        """Wait for the disk."""
        assert self._voxels is not None
        self._voxels.sync()

    def finish(self) -> None:
        """Close the file."""
        self.abandon()

    def abandon(self) -> None:
        """Close the file."""
        if self._voxels is not None:
            self._voxels.close()
            self._voxels = None


def describe_dataset(dataset: Any, header: VolumeHeader) -> None:
    """Write slice numbers, voxel size and description as attributes."""
    dataset.attrs[_FIRST] = header.slice_numbers[0]
    dataset.attrs[_STEP] = header.slice_numbers.step
    if header.voxel_size_um is not None:
        dataset.attrs[_VOXEL_SIZE] = header.voxel_size_um
    if header.description:
        dataset.attrs[_DESCRIPTION] = np.bytes_(header.description.encode("utf-8"))


@contextmanager
def system_errors() -> Iterator[None]:
    """HDF5 hides the operating system's error number in the text of a RuntimeError or an OSError without one."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None or getattr(error, "errno", None):
            raise
        raise OSError(int(number[1]), str(error)) from error


def require_only_dataset(path: Path, dataset: str) -> None:
    """Refuse to replace an HDF5 file that holds anything but one dataset.

    Raises
    ------
    OutputError
        There are other datasets or links (the first is named), or it is no HDF5 file.
    """
    foreign: list[str] = []

    def visit(place: str, link: Any) -> None:
        inside = f"/{place}"
        kept = isinstance(link, h5py.HardLink) and (
            inside == dataset or (dataset.startswith(inside + "/") and isinstance(file[place], h5py.Group))
        )
        if not kept:
            foreign.append(inside)

    try:
        with h5py.File(path, "r") as file:
            file.visititems_links(visit)
    except OSError as error:
        raise OutputError(
            f"{path} exists and is no HDF5 file that can be read; it is not replaced: choose another place for the "
            "output"
        ) from error
    if foreign:
        raise OutputError(
            f"{path} holds {foreign[0]} besides {dataset}; a file with other things in it is never replaced: "
            "choose another place for the output"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise VolumeError(f"{path} does not exist (any more); put it back, or correct the path") from error
    except DAMAGE as error:
        raise VolumeError(
            f"{path} cannot be read as HDF5, it may be damaged or cut short: {damage_reason(error)}"
        ) from error


def _resolve(file: Any, dataset: str) -> str:
    """Follow the path link by link, within the file only; the place of the object itself."""
    parts = [p for p in dataset.split("/") if p]
    place = ""
    links = 0
    while parts:
        part = parts.pop(0)
        here = f"{place}/{part}"
        group = file[place or "/"]
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) and part != "." else None
        if link is None:
            available = _describe(_candidates(file))
            raise VolumeError(f"{file.filename} has no {here} (asked for {dataset}); datasets that it has: {available}")
        if isinstance(link, h5py.ExternalLink):
            raise VolumeError(
                f"{file.filename}::{here} is a link into another file, {link.filename}, which is not followed; "
                "name that file itself"
            )
        if isinstance(link, h5py.SoftLink):
            links += 1
            if links > _MOST_LINKS:
                raise VolumeError(f"{file.filename}::{dataset} is a link that leads round in circles; name the dataset")
            target = [p for p in link.path.split("/") if p and p != "."]
            parts = target + parts
            place = "" if link.path.startswith("/") else place
        else:
            place = here
    return place or "/"


def _dataset(file: Any, place: str, what: str) -> Any:
    """The dataset at a resolved place, if it keeps its values in this file."""
    # Resolved again at every read: the file may have been changed in between.
    if _resolve(file, place) != place:
        raise VolumeError(f"{what} has become a link since it was opened; start again")
    found = file[place]
    if not isinstance(found, h5py.Dataset):
        raise VolumeError(
            f"{what} is a group, expected a dataset; datasets in the file: {_describe(_candidates(file))}"
        )
    if found.is_virtual or found.external:
        kind = "virtual dataset, assembled from others" if found.is_virtual else "dataset stored in other files"
        raise VolumeError(
            f"{what} is a {kind}, which is not followed; copy it into one file, with `h5repack -l CONTI` for example"
        )
    return found


def _only_candidate(file: Any, path: Path) -> str:
    found = _candidates(file)
    if len(found) != 1:
        listed = found or {place: said for place, (said, _) in _datasets(file, lambda item: True).items()}
        raise VolumeError(
            f"{path} has {len(found)} datasets with three axes; expected one, or its name: "
            f"{path.name}::{next(iter(found), '/exchange/data')}. {'These are' if found else 'It has'}: "
            f"{_describe(listed)}"
        )
    return next(iter(found))


def _candidates(file: Any) -> dict[str, str]:
    """Numeric datasets with three axes, reached without any link, and their shapes in words."""
    numeric = _datasets(file, lambda item: item.dtype.kind in "iuf" and item.ndim >= 3)
    three = {place: said for place, (said, shape) in numeric.items() if len(shape) == 3}
    return three or {place: said for place, (said, shape) in numeric.items() if axes_before(shape) == len(shape) - 3}


def _datasets(file: Any, wanted: Callable[[Any], bool]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Shapes of some datasets, reached without any link, in words too; of types that numpy has."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}

    def visit(place: str, item: Any) -> None:
        try:
            if isinstance(item, h5py.Dataset) and item.shape is not None and wanted(item):
                found[f"/{place}"] = f"{item.shape} {item.dtype!s:.40}", item.shape
        except TypeError:  # a type of time, for example
            return

    file.visititems(visit)
    return found


def _describe(candidates: dict[str, str]) -> str:
    lines = [f"{place:.100} {shape}" for place, shape in candidates.items()]
    more = [f"and {len(lines) - _MOST_CANDIDATES} more"] if len(lines) > _MOST_CANDIDATES else []
    return ", ".join(lines[:_MOST_CANDIDATES] + more) or "none"


def _attribute(attributes: Any, name: str) -> Any:
    """One number or three, None where it is missing or something else: what only describes a volume may be damaged.

    Text and the like is not read: it lies in a heap of the file, in which HDF5 2.0 loses its way where that is damaged.
    """
    if name not in attributes:
        return None
    stored = attributes.get_id(name)
    if stored.dtype.kind not in "iuf" or math.prod(stored.shape or ()) > 3:
        return None
    return attributes[name]


def _voxel_size(attributes: Any) -> VoxelSize | None:
    """The attribute as (z, y, x), None where it is missing or makes no sense."""
    size = np.asarray(_attribute(attributes, _VOXEL_SIZE))
    if size.shape != (3,) or size.dtype.kind not in "iuf" or not np.all(np.isfinite(size)) or not np.all(size > 0):
        return None
    z, y, x = (rounded(float(n)) for n in size)
    return z, y, x
