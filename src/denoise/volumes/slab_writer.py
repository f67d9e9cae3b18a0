"""How a format stores a volume that comes slab by slab: what it is told of it, and what it has to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from denoise.tiles import Triple
from denoise.volumes.volume import VoxelSize


@dataclass(frozen=True)
class VolumeHeader:
    """All that an output says of itself besides its voxels."""

    shape: Triple
    dtype: np.dtype[Any]
    voxel_size_um: VoxelSize | None
    slice_numbers: range
    description: str = ""
    compression: str = "none"

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

    @property
    def slices_together(self) -> int:
        """Of so many slices ``store`` only gets whole groups, which begin at multiples of this number."""
        ...

    @property
    def disk_bytes(self) -> int:
        """Room on the disk without which there is no point in beginning."""
        ...

    def create(self) -> None:
        """Make the partial file or folder, in a form that ``attach`` can go on with."""
        ...

    def attach(self) -> None:
        """Go on with what ``create`` made, in this process or another."""
        ...

    def store(self, z_start: int, slab: NDArray[Any]) -> None:
        """Store whole slices, in the stored type; may go on after the call (on a copy). Again is no harm."""
        ...

    def sync(self, runs: list[tuple[int, int]]) -> None:
        """Wait until these slices, (start, stop), which this process stored, would survive the machine's death."""
        ...

    def finish(self) -> None:
        """All slices are stored and synced: make the rest of the format."""
        ...

    def abandon(self) -> None:
        """Close whatever is open, in an unknown state."""
        ...
