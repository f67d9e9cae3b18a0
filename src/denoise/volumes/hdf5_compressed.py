"""Writing a compressed dataset into an HDF5 file so that a death in the middle costs nothing.

The chunks of such a dataset have sizes that nobody knows beforehand, and an HDF5 file that is being written is lost
with its process. So each slice is compressed into a file of its own beside the result, by a few threads, and the HDF5
file is made of them at the end, without compressing again. For that moment the disk holds the compressed volume twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from denoise import files
from denoise.volumes.compression import BLOSC, GZIP_LEVEL, ZSTD_LEVEL, least_bytes
from denoise.volumes.hdf5_file import describe_dataset, system_errors
from denoise.volumes.slab_writer import VolumeHeader
from denoise.volumes.slice_pool import SlicePool

# 1 MiB of float32: that is what HDF5 keeps of a dataset in its cache by default.
_CHUNK_YX = 512
_LENGTH = np.dtype("<u8")


@dataclass
class CompressedHdf5Writer:
    """Writes slabs, in any order, into a dataset with chunks of one slice."""

    partial: Path
    header: VolumeHeader
    dataset: str
    _pool: SlicePool | None = field(default=None, init=False)

    @property
    def allows_parallel_slabs(self) -> bool:
        """Every slice is its own file until the end."""
        return True

    @property
    def slices_together(self) -> int:
        """Each by itself."""
        return 1

    @property
    def disk_bytes(self) -> int:
        """Twice what compression may leave."""
        return 2 * least_bytes(self.header.n_bytes, self.header.compression)

    def create(self) -> None:
        """Make the folder of the slices."""
        self._folder.mkdir()

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
        files.sync(self._folder)

    def finish(self) -> None:
        """Make the HDF5 file of the slices, which stay: until it has its final name, it may have to be made again."""
        self.abandon()
        header = self.header
        with system_errors(), h5py.File(self.partial, "w") as file:
            made = file.create_dataset(
                self.dataset,
                header.shape,
                header.dtype.newbyteorder("<"),
                chunks=(1, *self._chunk_yx),
                **_filters(header.compression),
            )
            describe_dataset(made, header)
            for z in range(header.shape[0]):
                for (y, x), chunk in zip(self._corners(), self._read_slice(z), strict=True):
                    made.id.write_direct_chunk((z, y, x), chunk)

    def abandon(self) -> None:
        """Drop what waits and stop the pool."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None}

    @property
    def _folder(self) -> Path:
        return self.partial.with_name("slices")

    def _slice_path(self, z: int) -> Path:
        return self._folder / str(z)

    @property
    def _chunk_yx(self) -> tuple[int, int]:
        _, height, width = self.header.shape
        return min(height, _CHUNK_YX), min(width, _CHUNK_YX)

    def _corners(self) -> list[tuple[int, int]]:
        """The first voxel of each chunk of a slice."""
        _, height, width = self.header.shape
        rows, columns = self._chunk_yx
        return [(y, x) for y in range(0, height, rows) for x in range(0, width, columns)]

    def _write_slice(self, z: int, image: NDArray[Any]) -> None:
        """The lengths of the chunks, then the chunks."""
        rows, columns = self._chunk_yx
        chunks = []
        for y, x in self._corners():
            # Chunks at the edges are stored in full.
            chunk = np.zeros((rows, columns), self.header.dtype.newbyteorder("<"))
            part = image[y : y + rows, x : x + columns]
            chunk[: part.shape[0], : part.shape[1]] = part
            chunks.append(_encoded(chunk, self.header.compression))
        lengths = np.array([len(chunk) for chunk in chunks], _LENGTH)
        with self._slice_path(z).open("wb") as file:
            file.write(lengths.tobytes())
            file.writelines(chunks)

    def _read_slice(self, z: int) -> Iterator[bytes]:
        with self._slice_path(z).open("rb") as file:
            n_chunks = len(self._corners())
            for length in np.frombuffer(file.read(n_chunks * _LENGTH.itemsize), _LENGTH):
                yield file.read(int(length))


def _encoded(chunk: NDArray[Any], name: str) -> bytes:
    """A C-contiguous chunk as the filters of ``_filters`` store it."""
    if name == BLOSC:
        # One buffer of Blosc 1, which says of itself how it was made. An array, not its bytes, as the annotations would
        # have it: the size of a value is that of the array's type.
        values: Any = chunk
        packed = imagecodecs.blosc_encode(
            values, level=ZSTD_LEVEL, compressor="zstd", shuffle="shuffle", blocksize=chunk.nbytes, numthreads=1
        )
        return bytes(packed)
    shuffled = chunk.reshape(-1).view(np.uint8).reshape(-1, chunk.itemsize).T.tobytes()
    return bytes(imagecodecs.deflate_encode(shuffled, level=GZIP_LEVEL))


def _filters(name: str) -> dict[str, Any]:
    """What the dataset says of its chunks: how ``_encoded`` made them."""
    if name == BLOSC:
        return dict(hdf5plugin.Blosc(cname="zstd", clevel=ZSTD_LEVEL, shuffle=hdf5plugin.Blosc.SHUFFLE))
    return {"compression": "gzip", "compression_opts": GZIP_LEVEL, "shuffle": True}
