from __future__ import annotations

import numpy as np
import pytest
import torch

from denoise.inference.blend import SlabAccumulator
from denoise.tiles import TileGrid, Triple, Window


def cube(edge: int, stride: int, taper: str = "hann") -> Window:
    return Window((edge,) * 3, (edge,) * 3, (stride,) * 3, (0, 0, 0), taper)


def blended(grid: TileGrid, truth: torch.Tensor, layers: list[int], at_once: int) -> list[tuple[int, torch.Tensor]]:
    """Add the tiles of a known volume (edge values repeated past its end), in runs of layers."""
    sums = SlabAccumulator(grid, layers, at_once, torch.device("cpu"))
    found = []
    for first in range(0, len(layers), at_once):
        run = layers[first : first + at_once]
        for layer in run:
            for row, column in grid.in_layer():
                starts = [axis.starts[i] for axis, i in zip(grid.axes, (layer, row, column), strict=True)]
                index = [
                    torch.arange(s, s + p).clamp(max=n - 1)
                    for s, p, n in zip(starts, grid.window.predict_zyx, truth.shape, strict=True)
                ]
                sums.add(truth[index[0]][:, index[1]][:, :, index[2]], layer, row, column)
        found.append(sums.finished(run[-1]))
    return found


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
@pytest.mark.parametrize("stride", [1, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 4, 4), (5, 9, 3), (13, 4, 7)], ids=str)
def test_slices_leave_once_in_order_and_complete(shape: Triple, stride: int, at_once: int) -> None:
    grid = TileGrid(shape, cube(4, stride))
    truth = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    runs = blended(grid, truth, grid.layers(0, shape[0]), at_once)
    assert [start for start, _ in runs] == list(np.cumsum([0, *(len(s) for _, s in runs[:-1])]))
    torch.testing.assert_close(torch.cat([slices for _, slices in runs]), truth, rtol=0, atol=1e-6)


def test_finished_slices_are_not_changed_by_later_tiles() -> None:
    grid = TileGrid((20, 4, 4), cube(4, 2))
    runs = blended(grid, torch.ones(20, 4, 4), grid.layers(0, 20), 2)
    for _, slices in runs:
        torch.testing.assert_close(slices, torch.ones_like(slices), rtol=0, atol=1e-6)


def test_the_share_weighs_every_prediction() -> None:
    grid = TileGrid((4, 4, 4), cube(4, 4))
    sums = SlabAccumulator(grid, [0], 1, torch.device("cpu"), share=0.25)
    for value in (1.0, 2.0, 3.0, 6.0):
        sums.add(torch.full((4, 4, 4), value), 0, 0, 0)
    _, slices = sums.finished(0)
    torch.testing.assert_close(slices, torch.full((4, 4, 4), 3.0))


def test_what_lies_past_the_volume_is_cut_off() -> None:
    grid = TileGrid((2, 3, 1), cube(4, 2))
    prediction = torch.full((4, 4, 4), torch.nan)
    prediction[:2, :3, :1] = 7
    sums = SlabAccumulator(grid, [0], 1, torch.device("cpu"))
    sums.add(prediction, 0, 0, 0)
    start, slices = sums.finished(0)
    assert start == 0
    torch.testing.assert_close(slices, torch.full((2, 3, 1), 7.0))


def test_half_precision_predictions_are_summed_in_float32() -> None:
    grid = TileGrid((4, 4, 4), cube(4, 1, "uniform"))
    sums = SlabAccumulator(grid, [0], 1, torch.device("cpu"))
    sums.add(torch.ones((4, 4, 4), dtype=torch.bfloat16), 0, 0, 0)
    _, slices = sums.finished(0)
    assert slices.dtype == torch.float32


def test_memory_is_one_run_of_layers_whatever_the_depth() -> None:
    def held(depth: int) -> int:
        grid = TileGrid((depth, 8, 8), cube(8, 4))
        sums = SlabAccumulator(grid, grid.layers(0, depth), 2, torch.device("cpu"))
        return max(t.numel() for t in vars(sums).values() if isinstance(t, torch.Tensor))

    assert held(1000) == held(40) <= (8 + 4) * 8 * 8
