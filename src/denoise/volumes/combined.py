"""Several volumes as one: a weighted sum that is computed as it is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise.tiles import Region, Triple
from denoise.volumes.volume import Float32Array, Volume, VoxelSize


@dataclass(frozen=True)
class CombinedVolume:
    """A weighted sum of volumes of one shape; what else there is to know is that of the first."""

    volumes: tuple[Volume, ...]
    weights: tuple[float, ...]

    @property
    def name(self) -> str:
        """All their names."""
        return " + ".join(v.name for v in self.volumes)

    @property
    def shape(self) -> Triple:
        """(Z, Y, X) of each."""
        return self.volumes[0].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """A sum of floats."""
        return np.dtype(np.float32)

    @property
    def voxel_size_um(self) -> VoxelSize | None:
        """That of the first."""
        return self.volumes[0].voxel_size_um

    @property
    def slice_numbers(self) -> range:
        """Those of the first."""
        return self.volumes[0].slice_numbers

    @property
    def chunk_zyx(self) -> Triple:
        """Boxes of this size are whole chunks of every volume."""
        return chunks_of(self.volumes)

    def read(self, region: Region) -> Float32Array:
        """The sum, float32."""
        total = self.volumes[0].read(region)
        total *= np.float32(self.weights[0])
        for volume, weight in zip(self.volumes[1:], self.weights[1:], strict=True):
            more = volume.read(region)
            more *= np.float32(weight)
            total += more
        return total

    def read_stored(self, region: Region) -> NDArray[Any]:
        """The same as ``read``."""
        return self.read(region)


def mean_of(volumes: Sequence[Volume]) -> CombinedVolume:
    """The mean of several volumes: K - 1 splits as one input (X:1)."""
    return CombinedVolume(tuple(volumes), (1 / len(volumes),) * len(volumes))


def chunks_of(volumes: Sequence[Volume]) -> Triple:
    """The smallest box that is whole chunks of each of several volumes."""
    z, y, x = (math.lcm(*sizes) for sizes in zip(*(volume.chunk_zyx for volume in volumes), strict=True))
    return z, y, x
