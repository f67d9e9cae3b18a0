"""Some slices of a volume as a volume of its own: nothing else of it is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise.tiles import Region, Triple
from denoise.volumes.combined import chunks_of
from denoise.volumes.volume import Float32Array, SplitSet, Volume, VoxelSize


@dataclass(frozen=True)
class VolumePart:
    """Slices ``start`` to ``stop - 1`` of a volume, counted from 0 there; they keep their numbers."""

    whole: Volume
    start: int
    stop: int

    @property
    def name(self) -> str:
        """That of the whole."""
        return self.whole.name

    @property
    def shape(self) -> Triple:
        """(Z, Y, X) of the part."""
        return (self.stop - self.start, *self.whole.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the whole."""
        return self.whole.dtype

    @property
    def voxel_size_um(self) -> VoxelSize | None:
        """That of the whole."""
        return self.whole.voxel_size_um

    @property
    def slice_numbers(self) -> range:
        """As in the whole."""
        return self.whole.slice_numbers[self.start : self.stop]

    @property
    def chunk_zyx(self) -> Triple:
        """As in the whole: exact where the part begins with a whole chunk."""
        z, y, x = self.whole.chunk_zyx
        return min(z, self.shape[0]), y, x

    def read(self, region: Region) -> Float32Array:
        """Values of a region of the part, float32."""
        return self.whole.read(self._in_whole(region))

    def read_stored(self, region: Region) -> NDArray[Any]:
        """As ``read``, in the stored type."""
        return self.whole.read_stored(self._in_whole(region))

    def _in_whole(self, region: Region) -> Region:
        assert region.inside(self.shape), f"{region} reaches outside the part {self.start}..{self.stop - 1}"
        z, y, x = region.start_zyx
        return replace(region, start_zyx=(z + self.start, y, x))


def part_of(splits: SplitSet, wanted: range) -> tuple[SplitSet, int]:
    """The splits from a chunk's first slice at or before ``wanted`` to its last; and which slice is the first.

    Parameters
    ----------
    wanted
        Slices counted from 0, consecutive; those outside the splits are left out.
    """
    depth, layer = splits.shape[0], chunks_of(splits.volumes)[0]
    start = max(wanted[0], 0) // layer * layer
    stop = min(wanted[-1] + 1, depth)
    if (start, stop) == (0, depth):
        return splits, 0
    return SplitSet(tuple(VolumePart(volume, start, stop) for volume in splits.volumes)), start
