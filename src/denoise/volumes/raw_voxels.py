"""Voxels at a known place in a file whose headers are complete: written in any order, by any process, and again.

HDF5 and TIFF files of uncompressed voxels are made whole first, with all of their room taken from the disk, and filled
afterwards without the formats' libraries: a death in mid-write cannot harm their structure.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise.volumes.slab_writer import VolumeHeader


@dataclass
class RawVoxels:
    """Slices (Y, X) one after the other, from ``offset`` bytes into a file."""

    path: Path
    header: VolumeHeader
    offset: int
    _descriptor: int = field(default=-1, init=False)

    def open(self) -> None:
        """Open the file."""
        self._descriptor = os.open(self.path, os.O_RDWR)

    def store(self, z_start: int, slab: NDArray[Any]) -> None:
        """Write whole slices in the stored type."""
        little = np.ascontiguousarray(slab, dtype=self.header.dtype.newbyteorder("<"))
        left = little.data.cast("B")
        at = self.offset + z_start * (little.nbytes // len(little))
        while len(left):
            written = os.pwrite(self._descriptor, left, at)
            if written == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left, at = left[written:], at + written

    def sync(self) -> None:
        """Wait for the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def take_room(path: Path) -> None:
    """Take the blocks of a file with holes from the disk, so that a full one is noticed now."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
