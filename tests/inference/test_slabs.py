"""What is held at once: less where less memory is allowed, with the same result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import nn

from denoise.errors import DeviceError
from denoise.inference.slabs import SlabPlan, plan_slabs
from denoise.tiles import TileGrid, Triple, Window

SLICES = Window((5, 8, 8), (1, 8, 8), (1, 4, 4), (2, 0, 0), "hann")
CUBES = Window((6, 8, 8), (6, 8, 8), (4, 5, 5), (0, 0, 0), "hann")
SHAPE = (19, 41, 14)


def least(shape: Triple, window: Window, inputs: int = 1) -> int:
    return SlabPlan(TileGrid(shape, window), inputs, 1, 1).n_bytes


@pytest.mark.parametrize("window", [SLICES, CUBES], ids=["2.5d", "3d"])
@pytest.mark.parametrize("extra", [0.0, 0.2, 0.6, 3.0])
def test_the_result_does_not_depend_on_the_memory_that_is_allowed(
    engine: Callable[..., Any], predicted_part: type[nn.Module], window: Window, extra: float
) -> None:
    data = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    budget = int(least(SHAPE, window) * (1 + extra))
    for z_range in (range(SHAPE[0]), range(7, 13)):
        done = engine(data, window, predicted_part(window), z_range, budget=budget)
        np.testing.assert_allclose(done.result, data[z_range.start : z_range.stop], rtol=0, atol=2e-6)
        assert done.progress[-1] == len(z_range)


@pytest.mark.parametrize("budget", [None, 10**12])
def test_with_memory_enough_whole_slabs_are_held(budget: int | None) -> None:
    plan = plan_slabs(TileGrid((64, 512, 512), SLICES), 1, budget)
    assert (plan.layers, plan.rows) == (8, len(plan.grid.axes[1].starts))


def test_a_plan_keeps_to_its_budget_and_grows_with_it() -> None:
    window = Window((5, 256, 256), (1, 256, 256), (1, 248, 248), (2, 0, 0), "hann")
    grid = TileGrid((20000, 16384, 16384), window)
    held = []
    for gigabytes in (5, 8, 16, 32, 64, 256):
        plan = plan_slabs(grid, 1, gigabytes * 10**9)
        assert plan.n_bytes <= gigabytes * 10**9
        held.append(plan.n_bytes)
    assert held == sorted(held)


def test_strips_are_all_that_is_read_at_once(
    engine: Callable[..., Any], predicted_part: type[nn.Module], recording_volume: type[Any]
) -> None:
    volume = recording_volume(np.zeros(SHAPE, np.float32))
    engine([volume], SLICES, predicted_part(SLICES), budget=least(SHAPE, SLICES))
    assert {region.shape_zyx[1] for region in volume.regions} == {8}
    assert max(region.shape_zyx[0] for region in volume.regions) == 5


def test_where_no_slab_fits_it_says_how_much_would() -> None:
    grid = TileGrid((100, 4096, 4096), SLICES)
    needed = least(grid.shape_zyx, SLICES)
    with pytest.raises(DeviceError, match=rf"4096 x 4096 voxels need at least {needed / 1e6:,.0f} MB .* --max-memory"):
        plan_slabs(grid, 1, needed - 1)


def test_pieces_cover_every_tile_once() -> None:
    plan = SlabPlan(TileGrid(SHAPE, CUBES), 1, 2, 3)
    layers = list(range(len(plan.grid.axes[0].starts)))
    tiles = [(z, y) for run, rows in plan.pieces(layers) for z in run for y in rows]
    assert sorted(tiles) == [(z, y) for z in layers for y in range(len(plan.grid.axes[1].starts))]
