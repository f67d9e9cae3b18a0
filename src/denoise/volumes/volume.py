"""What the rest of the package knows of a volume: two protocols, and the one place where reads are reflected.

A ``Volume`` is read lazily, region by region, as float32; a ``VolumeSink`` takes finished slabs in order of need and
gives the result its final name only when it is whole. Files of every format hide behind these two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from denoise.errors import VolumeError
from denoise.tiles import Region, Triple, reflect_indices

Float32Array: TypeAlias = NDArray[np.float32]
VoxelSize: TypeAlias = tuple[float, float, float]

STORED_TYPES: Final = ("uint8", "uint16", "int16", "float32", "float64")


@runtime_checkable
class Volume(Protocol):
    """A stack of slices, (Z, Y, X), that can be read in part. Picklable: it holds paths, not open handles."""

    @property
    def name(self) -> str:
        """What to call it in a message: its path."""
        ...

    @property
    def shape(self) -> Triple:
        """(Z, Y, X) in voxels."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the stored values (native byte order)."""
        ...

    @property
    def voxel_size_um(self) -> VoxelSize | None:
        """Voxel size (Z, Y, X) in micrometres, or None where the file does not say."""
        ...

    @property
    def slice_numbers(self) -> range:
        """The number that the user knows each slice by (from file names; otherwise 0, 1, 2, ...)."""
        ...

    @property
    def chunk_zyx(self) -> Triple:
        """Voxels that are stored, and decoded, together: boxes of this size that begin at multiples of it."""
        ...

    def read(self, region: Region) -> Float32Array:
        """Values of a region that lies inside the volume, float32, in the stored units.

        Raises
        ------
        VolumeError
            When a file is missing, cut short, unreadable or of another shape than the first; names the file.
        """
        ...

    def read_stored(self, region: Region) -> NDArray[Any]:
        """As ``read``, but in the stored type ``dtype``."""
        ...


class StoredVolume(Volume, Protocol):
    """A volume in files."""

    def description(self) -> str:
        """What the files say of it in words; ours say what it was made from, others anything or nothing."""
        ...


class VolumeSink(Protocol):
    """Takes slabs of float32 and becomes a file or folder under its final name when all of them were written.

    A context manager: leaving it normally finishes the result (fsync, rename); leaving it with an exception keeps what
    is done for another run to go on with, or removes it, and leaves whatever stood under the final name before.
    """

    @property
    def path(self) -> str:
        """The final name."""
        ...

    @property
    def allows_parallel_slabs(self) -> bool:
        """Whether several processes may write disjoint slabs."""
        ...

    @property
    def slices_together(self) -> int:
        """Slices are stored in groups of so many; what one process writes begins and ends with whole groups.

        Groups begin at multiples of this number, and the volume's end is the end of one.
        """
        ...

    @property
    def is_entered(self) -> bool:
        """Whether its ``with`` block has begun and has not ended."""
        ...

    @property
    def missing(self) -> list[range]:
        """The runs of slices, counted from 0 in this output, that are still to be written; whole groups."""
        ...

    def write(self, z_start: int, slab: Float32Array) -> None:
        """Store slices z_start.. (counted from 0 in this output). Integer outputs are rounded and clipped, counted."""
        ...

    def flush(self) -> None:
        """Make what was written last; a copy in another process ends with this."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def read_reflected(volume: Volume, region: Region, box: Region | None = None) -> Float32Array:
    """Read a region that may reach outside the volume; what is outside is mirrored at the edge voxels.

    Parameters
    ----------
    region
        Any start, also negative; any shape.
    box
        Mirror at the faces of this part of the volume instead, and read nothing outside it.

    Returns
    -------
    float32 array of ``region.shape_zyx``.
    """
    if box is None and region.inside(volume.shape):
        return volume.read(region)
    box = box or Region((0, 0, 0), volume.shape)
    indices = [
        reflect_indices(start, count, low, low + size)
        for start, count, low, size in zip(
            region.start_zyx, region.shape_zyx, box.start_zyx, box.shape_zyx, strict=True
        )
    ]
    low = [int(i.min()) for i in indices]
    count = [int(i.max()) - a + 1 for i, a in zip(indices, low, strict=True)]
    core = volume.read(Region((low[0], low[1], low[2]), (count[0], count[1], count[2])))
    z, y, x = (i - a for i, a in zip(indices, low, strict=True))
    return core[np.ix_(z, y, x)]


@dataclass(frozen=True)
class ArrayVolume:
    """An array in memory as a Volume: (Z, Y, X), any real type."""

    array: NDArray[Any]
    name: str = "array"
    voxel_size_um: VoxelSize | None = None
    first_slice: int = 0

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or 0 in self.array.shape:
            raise VolumeError(
                f"{self.name} has shape {self.array.shape}; a volume has three axes (Z, Y, X), none empty"
            )
        if not (np.issubdtype(self.array.dtype, np.integer) or np.issubdtype(self.array.dtype, np.floating)):
            raise VolumeError(f"{self.name} holds values of type {self.array.dtype}; expected integers or floats")

    @property
    def shape(self) -> Triple:
        """(Z, Y, X)."""
        z, y, x = self.array.shape
        return z, y, x

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the array, in native byte order."""
        return self.array.dtype.newbyteorder("=")

    @property
    def slice_numbers(self) -> range:
        """Counted from ``first_slice``."""
        return range(self.first_slice, self.first_slice + self.shape[0])

    @property
    def chunk_zyx(self) -> Triple:
        """Any voxel is there by itself."""
        return (1, 1, 1)

    def read_stored(self, region: Region) -> NDArray[Any]:
        """A copy of a region in the array's own type."""
        require_inside(self, region)
        return self.array[region.slices].astype(self.dtype)

    def read(self, region: Region) -> Float32Array:
        """A copy of a region as float32."""
        require_inside(self, region)
        return self.array[region.slices].astype(np.float32)


def chunk_shape(stored: Sequence[int] | None, shape: Triple) -> Triple:
    """The ``chunk_zyx`` of an array that is stored in such chunks, or row by row (None)."""
    if stored is None:
        return (1, 1, shape[2])
    z, y, x = (min(int(chunk), size) for chunk, size in zip(stored, shape, strict=True))
    return z, y, x


@dataclass(frozen=True)
class SplitSet:
    """K sub-reconstructions proven to have one shape, voxel size and slice numbering."""

    volumes: tuple[Volume, ...]

    @classmethod
    def of(cls, volumes: Sequence[Volume]) -> SplitSet:
        """Check that the volumes belong together.

        Raises
        ------
        VolumeError
            Fewer than two; the same one twice; shapes, voxel sizes or slice numbers that differ. Both facts are named.
        """
        if len(volumes) < 2:
            raise VolumeError(
                f"expected at least two sub-reconstructions, found {len(volumes)}; list two or more splits"
            )
        first = volumes[0]
        for k, other in enumerate(volumes):
            for j in range(k):
                if other.name == volumes[j].name and not isinstance(other, ArrayVolume):
                    raise VolumeError(
                        f"splits {j} and {k} are the same volume, {other.name}; noise can only be told from signal "
                        "between two different splits: correct one of the names"
                    )
            require_same_grid(first, other, "split 0", f"split {k}")
        return cls(tuple(volumes))

    @property
    def shape(self) -> Triple:
        """(Z, Y, X) of every split."""
        return self.volumes[0].shape

    def __len__(self) -> int:
        return len(self.volumes)


def require_inside(volume: Volume, region: Region) -> None:
    """Assert that a region lies in the volume: a negative start would otherwise silently mean "from the end"."""
    assert region.inside(volume.shape), f"{region} reaches outside {volume.name}, whose shape is {volume.shape}"


def require_stored_type(dtype: np.dtype[Any] | None, what: str) -> np.dtype[Any]:
    """The type in native byte order, if it is one that volumes may have.

    Raises
    ------
    VolumeError
        Complex, boolean, text, 32-bit integers, ...; names what was found.
    """
    if dtype is None or dtype.kind not in "uif" or dtype.newbyteorder("=").name not in STORED_TYPES:
        raise VolumeError(
            f"{what} holds values of type {dtype if dtype is not None else 'unknown'}; expected one of "
            f"{', '.join(STORED_TYPES)}: convert it first"
        )
    return dtype.newbyteorder("=")


def stored_numbers(first: object, step: object, count: int) -> range:
    """Slice numbers from what a file says of its first slice and step; 0, 1, 2, ... where that makes no sense."""
    whole = (int, np.integer)
    if isinstance(first, whole) and isinstance(step, whole) and first >= 0 and step >= 1:
        return range(int(first), int(first) + count * int(step), int(step))
    return range(count)


def require_same_grid(one: Volume, other: Volume, one_role: str, other_role: str) -> None:
    """Check that two volumes show the same voxels.

    Raises
    ------
    VolumeError
        Shapes, slice numbers or (where both say) voxel sizes differ.
    """
    where = f"({other_role}: {other.name}; {one_role}: {one.name})"
    again = "reconstruct both in the same way, `denoise prepare` does"
    if one.shape != other.shape:
        raise VolumeError(f"{other_role} has shape {other.shape} but {one_role} has {one.shape} {where}; {again}")
    if one.slice_numbers != other.slice_numbers:
        raise VolumeError(
            f"{other_role} has slices {describe_numbers(other.slice_numbers)} but {one_role} has "
            f"{describe_numbers(one.slice_numbers)} {where}; {again}"
        )
    if one.voxel_size_um and other.voxel_size_um and not np.allclose(one.voxel_size_um, other.voxel_size_um, rtol=1e-3):
        raise VolumeError(
            f"{other_role} has voxel size {other.voxel_size_um} um but {one_role} has {one.voxel_size_um} um "
            f"{where}; {again}"
        )


def describe_numbers(numbers: range) -> str:
    """Slice numbers as a user would say them: ``10..73``, ``10..70 in steps of 2``, or ``10`` alone."""
    if len(numbers) == 1:
        return str(numbers[0])
    text = f"{numbers[0]}..{numbers[-1]}"
    return text if numbers.step == 1 else f"{text} in steps of {numbers.step}"


def slice_range(volume: Volume, start: int | None, end: int | None) -> range:
    """Slices from number ``start`` up to, not including, number ``end``, as positions counted from 0.

    Parameters
    ----------
    start, end
        Slice numbers as the user knows them; None: from the first, to the last.

    Raises
    ------
    VolumeError
        A slice that does not exist; says which exist.
    """
    numbers = volume.slice_numbers
    after_last = numbers[-1] + numbers.step
    first = numbers[0] if start is None else start
    stop = after_last if end is None else end
    for name, number, allowed in (("start", first, numbers), ("end", stop, range(numbers[0], after_last + 1))):
        if number not in allowed:
            raise VolumeError(
                f"there is no {name} slice {number} in {volume.name}; its slices are {describe_numbers(numbers)}"
            )
    if stop <= first:
        raise VolumeError(
            f"slices {first} to {stop} are none: the end slice is the first that is left out and must be larger than "
            f"the start slice; {volume.name} has slices {describe_numbers(numbers)}"
        )
    return range(numbers.index(first), -((numbers[0] - stop) // numbers.step))
