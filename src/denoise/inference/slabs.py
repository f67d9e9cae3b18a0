"""How much of a volume the engine holds at once, and what that takes: chosen before anything is read.

A slab is a run of tile layers. Where whole slabs of enormous slices do not fit in the memory that is allowed, fewer
layers are held, and then only some rows of their tiles at a time: what is read shrinks to a strip of each slice, and
only the slices that are being put together stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from denoise.errors import DeviceError
from denoise.tiles import TileGrid

#: Slices predicted per slab where tiles are one slice deep: enough to read and write in runs, little to hold.
_SLICES_PER_SLAB = 8
#: Slabs waiting to be written; more would only hide a slow disk in memory.
WRITES_WAITING = 1


@dataclass(frozen=True)
class SlabPlan:
    """So many layers of tiles are held at once, and so many of their rows are read at once."""

    grid: TileGrid
    inputs: int
    layers: int
    rows: int

    @property
    def n_bytes(self) -> int:
        """Memory for slabs being read, used, put together and written; the network and its batch come on top."""
        window, (height, width) = self.grid.window, self.grid.shape_zyx[1:]
        depth = window.stride_zyx[0] * (self.layers - 1)
        read_rows = window.stride_zyx[1] * (self.rows - 1) + window.read_zyx[1]
        read = self.inputs * (depth + window.read_zyx[0]) * min(read_rows, height) * width
        predicted = (depth + window.predict_zyx[0]) * height * width
        return 4 * (2 * read + (2 + WRITES_WAITING) * predicted)

    def pieces(self, layers: Sequence[int]) -> Iterator[tuple[Sequence[int], range]]:
        """Layers and rows of tiles, in the order in which they are read."""
        count = len(self.grid.axes[1].starts)
        for first in range(0, len(layers), self.layers):
            for row in range(0, count, self.rows):
                yield layers[first : first + self.layers], range(row, min(row + self.rows, count))


def plan_slabs(grid: TileGrid, inputs: int, budget: int | None = None) -> SlabPlan:
    """The largest slabs that pay, or fewer layers and rows where ``budget`` bytes are not enough for those.

    Raises
    ------
    DeviceError
        Not even one row of tiles fits; says how much would.
    """
    layers = max(1, _SLICES_PER_SLAB // grid.window.stride_zyx[0])
    rows = len(grid.axes[1].starts)
    plan = SlabPlan(grid, inputs, layers, rows)
    while budget is not None and plan.n_bytes > budget:
        if rows > 1 and _rows_shrink_more(plan):
            rows = -(-rows // 2)
        elif layers > 1:
            layers = -(-layers // 2)
        elif rows > 1:
            rows = -(-rows // 2)
        else:
            raise DeviceError(
                f"slices of {grid.shape_zyx[1]} x {grid.shape_zyx[2]} voxels need at least {plan.n_bytes / 1e6:,.0f} MB"
                f" for slabs, and {budget / 1e6:,.0f} MB are left for them; allow more with --max-memory (a GPU "
                "allows 0.3 of what is free on it), or use a smaller infer.tile_size"
            )
        plan = SlabPlan(grid, inputs, layers, rows)
    return plan


def _rows_shrink_more(plan: SlabPlan) -> bool:
    """Whether reading strips saves more than holding fewer layers, which costs reading their neighbours again."""
    fewer_rows = SlabPlan(plan.grid, plan.inputs, plan.layers, -(-plan.rows // 2)).n_bytes
    fewer_layers = SlabPlan(plan.grid, plan.inputs, max(1, plan.layers // 2), plan.rows).n_bytes
    return fewer_rows < fewer_layers
