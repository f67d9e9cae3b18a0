"""Overlap-add of tiles into slices, in memory for one tile depth only.

Because the tapers of a TileGrid add up to one at every voxel, a slice is finished as soon as no later layer of tiles
touches it: it leaves at once, and nothing is ever divided.
"""

from __future__ import annotations

import torch
from torch import Tensor

from denoise.tiles import TileGrid


class SlabAccumulator:
    """Sums weighted predictions of consecutive tile layers; gives up slices that are finished.

    Parameters
    ----------
    grid
        The tiles of the whole volume.
    layers
        Indices of the layers that will be added, ascending.
    layers_at_once
        How many layers are added between two calls of ``finished``.
    share
        Weight of one prediction: 1 / number of predictions averaged per tile.
    """

    def __init__(
        self, grid: TileGrid, layers: list[int], layers_at_once: int, device: torch.device, share: float = 1.0
    ) -> None:
        self._grid = grid
        self._layers = layers
        starts = [grid.axes[0].starts[i] for i in layers]
        depth = grid.window.predict_zyx[0]
        spans = (starts[min(i + layers_at_once, len(starts)) - 1] - starts[i] for i in range(len(starts)))
        self._base = starts[0]
        self._sum = torch.zeros((max(spans) + depth, *grid.shape_zyx[1:]), device=device)
        self._weights = [torch.from_numpy(axis.weights).float().to(device) for axis in grid.axes]
        self._weights[0] *= share

    def add(self, prediction: Tensor, layer: int, row: int, column: int) -> None:
        """Add one tile: ``prediction`` (Z, Y, X) of the tile's predicted part; what lies past the volume is cut off."""
        starts = [axis.starts[i] for axis, i in zip(self._grid.axes, (layer, row, column), strict=True)]
        kept = [
            min(size, limit - start)
            for size, limit, start in zip(prediction.shape, self._grid.shape_zyx, starts, strict=True)
        ]
        z, y, x = (weights[i, :n] for weights, i, n in zip(self._weights, (layer, row, column), kept, strict=True))
        part = prediction[: kept[0], : kept[1], : kept[2]].float()
        low = starts[0] - self._base
        target = self._sum[low : low + kept[0], starts[1] : starts[1] + kept[1], starts[2] : starts[2] + kept[2]]
        target.addcmul_(part * z[:, None, None], y[:, None] * x[None, :])

    def finished(self, last_layer: int) -> tuple[int, Tensor]:
        """Slices that no layer after ``last_layer`` touches: where they start, and a copy of them (Z, Y, X)."""
        start = self._base
        position = self._layers.index(last_layer)
        if position + 1 < len(self._layers):
            stop = self._grid.axes[0].starts[self._layers[position + 1]]
        else:
            depth = self._grid.window.predict_zyx[0]
            stop = min(self._grid.axes[0].starts[last_layer] + depth, self._grid.shape_zyx[0])
        count = stop - start
        done = self._sum[:count].clone()
        left = self._sum.shape[0] - count
        if left > 0:
            self._sum[:left] = self._sum[count:].clone()
        self._sum[max(left, 0) :] = 0
        self._base = stop
        return start, done
