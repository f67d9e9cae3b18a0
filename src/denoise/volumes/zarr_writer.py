"""Writing an OME-Zarr 0.5 image: sharded arrays, a pyramid, and the metadata by which viewers place its levels.

The levels are planned in pyramid.py. Groups of slices that are stored together are whole shards, so that no two
processes ever write into one file. The OME metadata is a few lines of JSON, written here by hand.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, GzipCodec
from zarr.storage import LocalStore

from denoise import files
from denoise.volumes import pyramid
from denoise.volumes.compression import BLOSC, GZIP, GZIP_LEVEL, ZSTD_LEVEL, least_bytes
from denoise.volumes.pyramid import Level
from denoise.volumes.slab_writer import VolumeHeader
from denoise.volumes.volume import VoxelSize
from denoise.volumes.zarr_store import OUR_ATTRIBUTES


@dataclass
class ZarrWriter:
    """Writes groups of slices, in any order, into an OME-Zarr 0.5 image."""

    partial: Path
    header: VolumeHeader
    title: str
    _levels: list[Level] = field(init=False)
    _arrays: list[Any] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._levels = pyramid.plan(self.header.shape, self.header.dtype.itemsize)

    @property
    def allows_parallel_slabs(self) -> bool:
        """No two groups share a shard."""
        return True

    @property
    def slices_together(self) -> int:
        """The depth of the shards."""
        return self._levels[0].shards[0]

    @property
    def disk_bytes(self) -> int:
        """All levels, or what compression may leave of them."""
        voxels = sum(level.voxels for level in self._levels)
        return least_bytes(voxels * self.header.dtype.itemsize, self.header.compression)

    def create(self) -> None:
        """Write the metadata of the group and of the arrays."""
        header = self.header
        attributes = {"ome": ome_metadata(header.voxel_size_um, self.title, self._levels)}
        attributes[OUR_ATTRIBUTES] = {
            "first_slice_number": header.slice_numbers[0],
            "slice_number_step": header.slice_numbers.step,
            "description": header.description,
        }
        group = zarr.create_group(LocalStore(self.partial), zarr_format=3, attributes=attributes)
        for number, level in enumerate(self._levels):
            group.create_array(
                str(number),
                shape=level.shape,
                chunks=level.chunks,
                shards=level.shards,
                dtype=header.dtype,
                compressors=_compressors(header.compression, math.prod(level.chunks) * header.dtype.itemsize),
                fill_value=0,
                dimension_names=("z", "y", "x"),
            )

    def attach(self) -> None:
        """Open the arrays; chunks of zeros are written too."""
        store = LocalStore(self.partial)
        arrays = [zarr.open_array(store, path=str(number), mode="r+") for number in range(len(self._levels))]
        self._arrays = [array.with_config({"write_empty_chunks": True}) for array in arrays]

    def store(self, z_start: int, slab: NDArray[Any]) -> None:
        """Write whole groups, and what they give of the smaller levels."""
        for z in range(0, len(slab), self.slices_together):
            self._store_group(z_start + z, slab[z : z + self.slices_together])

    def _store_group(self, z_start: int, group: NDArray[Any]) -> None:
        # zarr reads a shard before it writes it, and one that a death cut short would stop it.
        for folder in self._shard_folders(z_start):
            shutil.rmtree(folder, ignore_errors=True)
        self._arrays[0][z_start : z_start + len(group)] = group
        values, start, finer = group, (z_start, 0, 0), self._levels[0].factors
        for level, array in zip(self._levels[1:], self._arrays[1:], strict=True):
            if not level.inline:
                break
            values = pyramid.coarser(values, start, self.header.shape, finer, level.factors)
            start, finer = (z_start // level.factors[0], 0, 0), level.factors
            array[start[0] : start[0] + len(values)] = pyramid.stored_as(values, self.header.dtype)

    def _shard_folders(self, z_start: int) -> list[Path]:
        """Where the shards of a group of slices lie."""
        inline = [number for number, level in enumerate(self._levels) if level.inline]
        return [self.partial / str(number) / "c" / str(z_start // self.slices_together) for number in inline]

    def sync(self, runs: list[tuple[int, int]]) -> None:
        """Wait for the disk."""
        for start, stop in runs:
            for z in range(start, stop, self.slices_together):
                for folder in self._shard_folders(z):
                    for path in (*folder.rglob("*"), folder, folder.parent):
                        files.sync(path)

    def finish(self) -> None:
        """Make the levels that need more than one group."""
        self.attach()
        numbers = {level: number for number, level in enumerate(self._levels)}
        for finer, level in pyramid.late(self._levels):
            source, target = self._arrays[numbers[finer]], self._arrays[numbers[level]]
            shutil.rmtree(self.partial / str(numbers[level]) / "c", ignore_errors=True)
            for part in pyramid.shard_regions(level):
                read = pyramid.source_region(part, level, finer)
                values = np.asarray(source[read.slices])
                means = pyramid.coarser(values, read.start_zyx, self.header.shape, finer.factors, level.factors)
                target[part.slices] = pyramid.stored_as(means, self.header.dtype)
        self._arrays = []

    def abandon(self) -> None:
        """Nothing is open."""
        self._arrays = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": []}


def ome_metadata(voxel_size_um: VoxelSize | None, title: str, levels: list[Level]) -> dict[str, Any]:
    """The ``ome`` attribute of an OME-Zarr 0.5 image; scale 1 without a unit where no voxel size is known.

    The origin is the centre of the volume's first voxel. Where a voxel of a level is the mean of f voxels of the
    volume, the first one's centre lies (f - 1) / 2 of their size behind it: that is the level's translation.
    """
    unit = {} if voxel_size_um is None else {"unit": "micrometer"}
    size = voxel_size_um or (1.0, 1.0, 1.0)
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": title,
                "type": "mean",
                "axes": [{"name": axis, "type": "space", **unit} for axis in "zyx"],
                "datasets": [
                    {
                        "path": str(number),
                        "coordinateTransformations": [
                            {"type": "scale", "scale": [s * f for s, f in zip(size, level.factors, strict=True)]},
                            {
                                "type": "translation",
                                "translation": [s * (f - 1) / 2 for s, f in zip(size, level.factors, strict=True)],
                            },
                        ],
                    }
                    for number, level in enumerate(levels)
                ],
            }
        ],
    }


def _compressors(compression: str, chunk_bytes: int) -> Any:
    if compression == BLOSC:
        return BloscCodec(cname="zstd", clevel=ZSTD_LEVEL, shuffle="shuffle", blocksize=chunk_bytes)
    return GzipCodec(level=GZIP_LEVEL) if compression == GZIP else None
