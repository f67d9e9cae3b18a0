"""A volume in one multi-page TIFF file: classic or BigTIFF, plain, OME, or an ImageJ stack of any size.

Opening follows the chain of page headers and reads the first and the last; pixels are read when they are asked for.
ImageJ stores stacks over 4 GB as one header followed by all images; those have a single page that stands for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from denoise.errors import VolumeError
from denoise.tiles import Region, Triple
from denoise.volumes.limits import require_volume_shape
from denoise.volumes.raw_voxels import RawVoxels, take_room
from denoise.volumes.slab_writer import VolumeHeader
from denoise.volumes.tiff_metadata import slice_numbers, stack_tags, stacked_axes, voxel_size_um
from denoise.volumes.tiff_page import (
    Rectangle,
    image_format,
    in_threads,
    opened,
    page_at,
    page_offsets,
    read_rectangle,
    stored_type,
)
from denoise.volumes.volume import Float32Array, VoxelSize, require_inside

# Below this, offsets fit the 32 bits of classic TIFF, which every program opens; page headers need the margin.
_LARGEST_CLASSIC = 2**32 - 2**25
#: Of a page, rounded up.
_HEADER_BYTES = 256


@dataclass(frozen=True)
class TiffFileVolume:
    """One TIFF file as a Volume. ``offsets`` are the pages' headers; one for all if the images follow each other."""

    path: Path
    offsets: tuple[int, ...]
    shape: Triple
    dtype: np.dtype[Any]
    voxel_size_um: VoxelSize | None
    slice_numbers: range

    @classmethod
    def open(cls, path: Path) -> TiffFileVolume:
        """Read the headers.

        Raises
        ------
        VolumeError
            Not a TIFF, damaged, cut short; colour; images of several shapes; more than three axes.
        """
        what = str(path)
        with opened(path, what) as tif:
            offsets = page_offsets(tif, what)
            first = page_at(tif, offsets[0], 0)
            shape, dtype = image_format(first, what)
            last = image_format(page_at(tif, offsets[-1], len(offsets) - 1), f"{what}, page {len(offsets) - 1}")
            if last != (shape, dtype):
                raise VolumeError(
                    f"{what} holds images of several kinds: the first is {shape} of {dtype}, the last {last[0]} of "
                    f"{last[1]}; expected one volume: save it without thumbnails or smaller copies"
                )
            axes = stacked_axes(first, tif)
            if sum(size > 1 for size in axes) > 1:
                raise VolumeError(
                    f"{what} has more than three axes, (time, channel, z, ...) of sizes {axes} beside y and x; "
                    "expected (Z, Y, X): save the one channel and time that are wanted"
                )
            said = math.prod(axes)
            depth = max(said, len(offsets))
            if said > len(offsets):
                _require_following_images(first, len(offsets), depth, what)
                offsets = offsets[:1]
            whole = require_volume_shape((depth, *shape), what)
            return cls(path, offsets, whole, dtype, voxel_size_um(tif), slice_numbers(first, depth))

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def chunk_zyx(self) -> Triple:
        """Images are stored one by one, and row by row."""
        return (1, 1, self.shape[2])

    def description(self) -> str:
        """Of the first page."""
        with opened(self.path, str(self.path)) as tif:
            return str(tif.pages.first.description)

    def read(self, region: Region) -> Float32Array:
        """Values of a region as float32."""
        return self._read(region, np.dtype(np.float32))

    def read_stored(self, region: Region) -> NDArray[Any]:
        """Values of a region in the stored type."""
        return self._read(region, self.dtype)

    def _read(self, region: Region, dtype: np.dtype[Any]) -> NDArray[Any]:
        require_inside(self, region)
        out = np.empty(region.shape_zyx, dtype)
        if out.size == 0:
            return out
        if len(self.offsets) == 1:
            self._read_following(region, out)
            return out
        # A few runs of pages, one opened file each: opening per page would cost more than reading small regions.
        runs = [run for run in np.array_split(np.arange(len(out)), 8) if run.size]
        in_threads(lambda run: self._read_pages(region, run.tolist(), out), runs)
        return out

    def _read_pages(self, region: Region, run: list[int], out: NDArray[Any]) -> None:
        z, y, x = region.slices
        rectangle = Rectangle(y.start, y.stop, x.start, x.stop)
        with opened(self.path, f"{self.path} (slices {z.start + run[0]}..{z.start + run[-1]})") as tif:
            for k in run:
                what = f"{self.path} (slice {self.slice_numbers[z.start + k]})"
                page = page_at(tif, self.offsets[z.start + k], z.start + k)
                if image_format(page, what) != (self.shape[1:], self.dtype):
                    raise VolumeError(
                        f"{what} has shape {page.shape} and type {page.dtype}, but the first slice has "
                        f"{self.shape[1:]} and {self.dtype}; save the file with slices of one kind"
                    )
                read_rectangle(page, rectangle, out[k], what)

    def _read_following(self, region: Region, out: NDArray[Any]) -> None:
        z, y, x = region.slices
        _, height, width = self.shape
        with opened(self.path, self.name) as tif:
            page = page_at(tif, self.offsets[0], 0)
            if self.shape[0] == 1:
                read_rectangle(page, Rectangle(y.start, y.stop, x.start, x.stop), out[0], self.name)
                return
            _require_following_images(page, 1, self.shape[0], self.name)
            dtype = stored_type(page)
            for k in range(len(out)):
                row = (z.start + k) * height + y.start
                rows = tif.filehandle.read_array(
                    dtype, (y.stop - y.start) * width, page.dataoffsets[0] + row * width * dtype.itemsize
                )
                out[k] = rows.reshape(-1, width)[:, x]


@dataclass
class TiffFileWriter:
    """Writes slabs, in any order, into one OME-TIFF file; BigTIFF where it would not fit 4 GB."""

    partial: Path
    header: VolumeHeader
    title: str
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
        """Make the file with all its headers, and room for the voxels."""
        header = self.header
        big = header.n_bytes + header.shape[0] * _HEADER_BYTES > _LARGEST_CLASSIC
        with tifffile.TiffWriter(self.partial, bigtiff=big, byteorder="<") as tif:
            tif.write(None, shape=header.shape, dtype=header.dtype, **stack_tags(header, self.title))
        take_room(self.partial)

    def attach(self) -> None:
        """Find the voxels."""
        with tifffile.TiffFile(self.partial) as tif:
            offset = tif.pages.first.dataoffsets[0]
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


def _require_following_images(page: tifffile.TiffPage, n_pages: int, n_images: int, what: str) -> None:
    """Check that a file of fewer pages than images has them all, one after the other, behind the first header."""
    size = page.parent.filehandle.size
    if n_pages == 1 and page.is_final and page.dataoffsets[0] + n_images * page.nbytes <= size:
        return
    raise VolumeError(
        f"{what} says that it holds {n_images} images but has {n_pages} pages in {size} bytes; it is cut short, or "
        "the rest is in other files, which are not followed: write or copy it again as one file"
    )
