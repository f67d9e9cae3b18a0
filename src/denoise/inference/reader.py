"""Slabs for the engine: read once, ahead of the network, with reflections where tiles reach past the volume."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from denoise.errors import VolumeError
from denoise.normalization import Normalization
from denoise.tiles import Region, TileGrid, reflect_indices
from denoise.volumes.volume import Float32Array, Volume

_log = logging.getLogger(__name__)

#: What a volume returns is copied into the slab: so many slices exist twice for a moment, not all of them.
_SLICES_PER_READ = 16
#: Layers of a volume that are stored together are kept from one run to the next up to this size, or what the caller
#: allows; larger ones, of volumes whose whole depth is one chunk for example, are decoded again for every run.
LARGEST_LAYER_BYTES = 2**29
_NOTHING: Float32Array = np.empty((0, 0, 0), dtype=np.float32)


class SlabReader:
    """Reads what a run of tile layers needs; slices that the next run needs again are kept, not read twice.

    Not safe for several threads at once; the engine calls it from one.
    """

    def __init__(
        self,
        inputs: Sequence[Volume],
        grid: TileGrid,
        normalization: Normalization,
        *,
        fill_non_finite: bool,
        largest_layer: int = LARGEST_LAYER_BYTES,
    ) -> None:
        self._inputs = [_LayerReader(volume, largest_layer) for volume in inputs]
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
        for row, layers in zip(slab, self._inputs, strict=True):
            for start, stop in layers.pieces(first_new, z.stop):
                new = row[start - z.start : stop - z.start]
                new[:] = layers.read(start, stop, y)
                self._check(new, layers.volume, start)
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


def layer_bytes(volume: Volume, largest: int = LARGEST_LAYER_BYTES) -> int:
    """What a layer takes that the volume stores together; 0 where it stores single slices, or where it is too large."""
    _, height, width = volume.shape
    depth, stored = volume.chunk_zyx[0], volume.dtype
    size = (4 if stored == np.float32 else 4 + stored.itemsize) * depth * height * width
    return size if depth > 1 and size <= largest else 0


class _LayerReader:
    """Reads a volume front to back, and decodes what it stores together once.

    Where a run ends within such a layer, the rest of the layer is read as well and kept for the next.
    """

    def __init__(self, volume: Volume, largest: int) -> None:
        self.volume = volume
        self._depth = volume.chunk_zyx[0] if layer_bytes(volume, largest) else 1
        self._kept_from = 0
        self._kept_rows = range(0)
        self._kept = _NOTHING

    def pieces(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Slices start..stop-1 in a few reads; no layer is cut by two of them."""
        if start >= stop:
            return []
        step = max(_SLICES_PER_READ // self._depth, 1) * self._depth
        edges = [start, *range((start // step + 1) * step, stop, step), stop]
        return list(pairwise(edges))

    def read(self, start: int, stop: int, rows: range) -> Float32Array:
        """These rows of slices start..stop-1, one of the pieces."""
        depth, height, width = self.volume.shape
        reusable = self._kept_rows == rows and start >= self._kept_from
        kept = self._kept[start - self._kept_from :] if reusable else self._kept[:0]
        if len(kept) >= stop - start:
            return kept[: stop - start]
        if not len(kept):
            kept = self._kept = _NOTHING  # freed before the next layer is read; an empty part would hold on to it too
        first_new = start + len(kept)
        # A strip is followed by another: the rest of its layer would not be asked for next.
        end = min(-(-stop // self._depth) * self._depth, depth) if len(rows) == height else stop
        read = self.volume.read(Region((first_new, rows.start, 0), (end - first_new, len(rows), width)))
        self._kept = read[stop - first_new :] if end > stop else _NOTHING
        self._kept_from, self._kept_rows = stop, rows
        new = read[: stop - first_new]
        return np.concatenate([kept, new]) if len(kept) else new
