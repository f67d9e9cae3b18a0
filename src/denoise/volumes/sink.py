"""The life of an output volume: checked, written under a partial name, and published only when it is whole.

``WholeVolumeSink`` is the one VolumeSink of all file formats. What differs between formats, how a slab is stored,
is a ``SlabWriter``; tiff_stack.py, tiff_file.py, hdf5_file.py and zarr_store.py have one each.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from denoise import files
from denoise.errors import OutputError
from denoise.tiles import Triple
from denoise.volumes.integer_output import GreyValueEncoder
from denoise.volumes.volume import VoxelSize

_log = logging.getLogger(__name__)

# 512 x 512 float32 values are 1 MiB: a slab writes few chunks, a patch reads little that it does not need. One slice
# deep, so that slabs of any depth never share a chunk and may be written in any order and from several processes.
CHUNK_YX = 512


@dataclass(frozen=True)
class VolumeHeader:
    """All that an output says of itself besides its voxels."""

    shape: Triple
    dtype: np.dtype[Any]
    voxel_size_um: VoxelSize | None
    slice_numbers: range
    description: str = ""

    @property
    def chunk_shape(self) -> Triple:
        """Chunks of the chunked formats, (1, Y, X)."""
        return 1, min(self.shape[1], CHUNK_YX), min(self.shape[2], CHUNK_YX)

    @property
    def n_bytes(self) -> int:
        """Size of the voxels, uncompressed."""
        z, y, x = self.shape
        return z * y * x * self.dtype.itemsize


class SlabWriter(Protocol):
    """How one format stores slabs under the partial name."""

    @property
    def allows_parallel_slabs(self) -> bool:
        """Whether copies of this writer in other processes may store disjoint slabs."""
        ...

    def create(self) -> None:
        """Make the partial file or folder."""
        ...

    def store(self, z_start: int, slab: NDArray[Any], *, wait: bool) -> None:
        """Store whole slices, in the stored type. Unless ``wait``, this may go on after the call (on a copy)."""
        ...

    def holds(self, z: int) -> bool:
        """Whether a slice is there that another process stored."""
        ...

    def finish(self) -> None:
        """Wait for what is under way, and close."""
        ...

    def abandon(self) -> None:
        """Close whatever is open, in an unknown state; the partial result is removed by the caller."""
        ...


@dataclass
class WholeVolumeSink:
    """A VolumeSink: leaving its ``with`` block normally publishes the result, leaving it by an exception removes it.

    It may be pickled inside the block where ``allows_parallel_slabs``; copies in other processes can only ``write``,
    and the process that entered the block publishes after they are done. Clipped voxels of a copy are logged by the
    copy, slab by slab.
    """

    final: Path
    partial: Path
    header: VolumeHeader
    writer: SlabWriter
    overwrite: bool = False
    _owner: int = field(default_factory=os.getpid)
    _encoder: GreyValueEncoder = field(init=False)
    _written: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self._encoder = GreyValueEncoder(self.header.dtype)
        self._written = np.zeros(self.header.shape[0], dtype=bool)

    @property
    def path(self) -> str:
        """The final name."""
        return str(self.final)

    @property
    def allows_parallel_slabs(self) -> bool:
        """Whether several processes may write disjoint slabs, each through its own copy of this sink."""
        return self.writer.allows_parallel_slabs

    def write(self, z_start: int, slab: NDArray[np.float32]) -> None:
        """Store slices z_start, z_start + 1, ... counted from 0 in this output.

        Parameters
        ----------
        slab
            (n, Y, X); the caller may reuse it at once.

        Raises
        ------
        OutputError
            NaN for an integer output; disk full and other refusals of the operating system.
        """
        n_slices, *image_shape = slab.shape
        z_stop = z_start + n_slices
        fits = tuple(image_shape) == self.header.shape[1:] and 0 <= z_start <= z_stop <= self.header.shape[0]
        assert fits, f"slab of shape {slab.shape} at slice {z_start} does not fit {self.header.shape}"
        assert not self._written[z_start:z_stop].any(), f"slices {z_start}..{z_stop - 1} were written twice"
        if n_slices == 0:
            return
        is_copy = os.getpid() != self._owner
        assert self.allows_parallel_slabs or not is_copy, f"{self.final} can only be written by one process"
        numbers = self.header.slice_numbers[z_start:z_stop]
        stored = self._encoder.encode(slab, f"{self.final}, slices {numbers[0]}..{numbers[-1]}")
        with files.explained(self.final):
            self.writer.store(z_start, stored, wait=is_copy)
        self._written[z_start:z_stop] = True
        if is_copy:
            self._encoder.report(self.path)
            self._encoder = GreyValueEncoder(self.header.dtype)

    def __getstate__(self) -> dict[str, object]:
        # No process has the number 0: a copy is a copy also on another host where the numbers happen to agree.
        return self.__dict__ | {"_owner": 0}

    def __enter__(self) -> Self:
        self._owner = os.getpid()
        with files.explained(self.final):
            self.final.parent.mkdir(parents=True, exist_ok=True)
            files.remove_leftovers(self.final)
            files.discard(self.partial)
            try:
                self.writer.create()
            except BaseException:
                self._discard()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            with files.explained(self.final):
                self.writer.finish()
                missing = [int(z) for z in np.flatnonzero(~self._written) if not self.writer.holds(int(z))]
                if missing:
                    raise AssertionError(
                        f"{len(missing)} of {self.header.shape[0]} slices of {self.final} were never written, "
                        f"the first is slice {missing[0]}"
                    )
                files.publish(self.partial, self.final, overwrite=self.overwrite)
        except BaseException:
            self._discard()
            raise
        self._encoder.report(self.path)

    def _discard(self) -> None:
        try:
            self.writer.abandon()
        except (OSError, RuntimeError) as error:  # closing flushes, which fails again where the disk is full
            _log.debug("closing %s: %s", self.partial, error)
        finally:
            files.discard(self.partial)


def require_space(final: Path, n_bytes: int) -> None:
    """Refuse an output that cannot fit, before the hours of computing it.

    Raises
    ------
    OutputError
        The disk has less than ``n_bytes`` free.
    """
    folder = final.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OutputError(
            f"{final} needs {n_bytes / 1e9:.3g} GB, but {folder} has only {free / 1e9:.3g} GB free; "
            "free some space, choose another --output, or a smaller output type"
        )
