"""Slabs for the engine: read once, ahead of the network, with reflections where tiles reach past the volume."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from denoise.errors import VolumeError
from denoise.normalization import Normalization
from denoise.tiles import Region, TileGrid, reflect_indices
from denoise.volumes.volume import Float32Array, Volume

_log = logging.getLogger(__name__)

#: What a volume returns is copied into the slab: so many slices exist twice for a moment, not all of them.
_SLICES_PER_READ = 16


class SlabReader:
    """Reads what a run of tile layers needs; slices that the next run needs again are kept, not read twice.

    Not safe for several threads at once; the engine calls it from one.
    """

    def __init__(
        self, inputs: Sequence[Volume], grid: TileGrid, normalization: Normalization, *, fill_non_finite: bool
    ) -> None:
        self._inputs = inputs
        self._grid = grid
        self._normalization = normalization
        self._fill = fill_non_finite
        self._kept_from = 0
        self._kept_rows = range(0)
        self._kept: Float32Array = np.empty((len(inputs), 0, *grid.shape_zyx[1:]), dtype=np.float32)
        self.filled = 0
        """How many NaN or Inf voxels were replaced by the mean so far."""

    def read(self, layers: tuple[int, int], rows: tuple[int, int] | None = None) -> Float32Array:
        """Normalised float32 (inputs, Z, Y, X): everything that tiles read, in that order.

        Element (_, 0, 0, 0) is the first voxel of the block of the first tile.

        Parameters
        ----------
        layers
            The first and the last layer of tiles.
        rows
            The first and the last row of tiles in them; None for all.

        Raises
        ------
        VolumeError
            NaN or Inf voxels, unless they are to be filled; names volume and slice.
        """
        indices = []
        window = self._grid.window
        for axis, (first, last) in enumerate((layers, rows or (0, -1), (0, -1))):
            starts = self._grid.axes[axis].starts
            low = starts[first] - window.before_zyx[axis]
            count = starts[last] - starts[first] + window.read_zyx[axis]
            indices.append(reflect_indices(low, count, 0, self._grid.shape_zyx[axis]))
        z, y, x = indices
        low, top = int(z.min()), int(y.min())
        high, bottom = int(z.max()) + 1, int(y.max()) + 1
        self._advance(range(low, high), range(top, bottom))
        # Without reflections the kept slices are what was asked for: no copy of a slab.
        slab = self._kept if len(z) == high - low and z[0] == low else self._kept[:, z - low]
        for axis, index in ((2, y - top), (3, x)):
            if len(index) != slab.shape[axis] or index[0] != 0 or index[-1] != slab.shape[axis] - 1:
                slab = slab.take(index, axis=axis)
        return slab

    def _advance(self, z: range, y: range) -> None:
        """Hold exactly these slices and rows of every input, normalised."""
        shape = (len(self._inputs), len(z), len(y), self._grid.shape_zyx[2])
        end = self._kept_from + self._kept.shape[1]
        first_new = z.start
        if self._kept_rows == y and self._kept_from <= z.start < end:
            first_new = min(end, z.stop)
            slab = np.empty(shape, dtype=np.float32)
            slab[:, : first_new - z.start] = self._kept[:, z.start - self._kept_from : first_new - self._kept_from]
        else:
            self._kept = np.empty((0, 0, 0, 0), dtype=np.float32)  # freed before as much is taken again
            slab = np.empty(shape, dtype=np.float32)
        for row, volume in zip(slab, self._inputs, strict=True):
            for start in range(first_new, z.stop, _SLICES_PER_READ):
                stop = min(start + _SLICES_PER_READ, z.stop)
                new = row[start - z.start : stop - z.start]
                new[:] = volume.read(Region((start, y.start, 0), (stop - start, len(y), shape[3])))
                self._check(new, volume, start)
                new -= np.float32(self._normalization.mean)
                new /= np.float32(self._normalization.std)
        self._kept, self._kept_from, self._kept_rows = slab, z.start, y

    def _check(self, slices: Float32Array, volume: Volume, first: int) -> None:
        for i, image in enumerate(slices):
            bad = ~np.isfinite(image)
            count = int(np.count_nonzero(bad))
            if count and not self._fill:
                raise VolumeError(
                    f"{volume.name} holds {count} NaN or Inf voxels in slice {volume.slice_numbers[first + i]}; "
                    "reconstruct again without them, or set dataset.non_finite: fill to replace them by the mean"
                )
            if count:
                image[bad] = self._normalization.mean
                self.filled += count
