"""``denoise volume --confidence`` within ``--max-memory``: how many slices are held at a time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from denoise.commands.confidence import Portion, UncertaintyJob, run_uncertainty
from denoise.errors import DeviceError
from denoise.inference.engine import Denoiser
from denoise.inference.run import FIRST_BATCH_BYTES
from denoise.inference.slabs import SlabPlan
from denoise.launch import World
from denoise.normalization import Normalization
from denoise.tiles import TileGrid, Window
from denoise.trust.confidence import Confidence
from denoise.volumes import ArrayVolume
from denoise.volumes.sink import WholeAlready

GRID = TileGrid((64, 256, 256), Window((5, 64, 64), (1, 64, 64), (1, 48, 48), (2, 0, 0), "hann"))
PLANE = 4 * 256 * 256
LEAST = SlabPlan(GRID, 1, 1, 1).n_bytes


@pytest.mark.parametrize("extra", [0, 1, 7, 40, 300, 5000])
def test_a_portion_keeps_to_what_is_allowed(extra: int) -> None:
    allowed = 10**6 + LEAST + (4 + extra) * PLANE
    portion = Portion.of(GRID, 4, allowed, besides=10**6)
    assert portion.slab_bytes is not None
    assert portion.slab_bytes >= LEAST
    assert 10**6 + portion.slab_bytes + 4 * portion.slices * PLANE <= allowed
    assert 1 <= portion.slices <= 64
    if extra >= 300:
        assert portion.slices > 30


def test_where_not_even_one_slice_fits_it_says_how_much_would() -> None:
    needed = 10**9 + LEAST + 4 * PLANE
    assert Portion.of(GRID, 4, needed, besides=10**9).slices == 1
    with pytest.raises(DeviceError, match=f"needs about {needed / 1e9:.2f} GB .* slices of 256 x 256 voxels"):
        Portion.of(GRID, 4, needed - 1, besides=10**9)


@contextmanager
def peak_of_arrays() -> Iterator[list[int]]:
    found: list[int] = []
    tracemalloc.start()
    try:
        yield found
        found.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


class Middle(nn.Module):
    """Returns the middle one of five slices."""

    def forward(self, block: Tensor) -> Tensor:
        return block[:, 2:3]


class Collecting(WholeAlready):
    """A sink that misses everything and keeps nothing but sums."""

    sums: ClassVar[dict[int, float]] = {}

    @property
    def missing(self) -> list[range]:
        return [range(GRID.shape_zyx[0])]

    def write(self, z_start: int, slab: NDArray[np.float32]) -> None:
        self.sums.update({z_start + i: float(image.sum()) for i, image in enumerate(slab)})


def test_the_pass_over_the_splits_keeps_to_the_memory_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denoise.inference.run.process_bytes", lambda: 0)
    rng = np.random.default_rng(0)
    views = tuple(ArrayVolume(rng.normal(size=GRID.shape_zyx).astype(np.float32)) for _ in range(2))
    cpu = torch.device("cpu")
    denoiser = Denoiser(Middle(), Normalization(0.0, 1.0), GRID.window, cpu)
    found = Confidence((0.0, 1.0, 2.0), (0.1, 1.0, 3.0))

    def run(max_memory: int | None) -> tuple[int, dict[int, float]]:
        sink = Collecting("nowhere")
        sink.sums.clear()
        job = UncertaintyJob(views, denoiser, found, range(64), sink, bar, max_memory)
        with peak_of_arrays() as peak:
            run_uncertainty(World(0, 1, cpu), job)
        return peak[0], dict(sink.sums)

    # A batch is no array, nor what its libraries take. Slabs, comparing and writing take some 40 slices in any case.
    batch = FIRST_BATCH_BYTES + denoiser.batch_bytes
    freely, whole = run(None)
    tightly, parts = run(batch + 60 * PLANE)
    assert tightly < 60 * PLANE < freely
    assert parts == pytest.approx(whole)
    assert len(parts) == 64


@contextmanager
def bar(total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None
