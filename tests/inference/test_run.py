"""How what is missing is divided between processes."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from denoise.errors import DeviceError
from denoise.inference import run
from denoise.inference.engine import Denoiser
from denoise.inference.reader import layer_bytes
from denoise.inference.run import InferenceJob, besides_slabs, run_worker, shares
from denoise.inference.slabs import SlabPlan, plan_slabs
from denoise.launch import World
from denoise.normalization import Normalization
from denoise.tiles import TileGrid, Window
from denoise.volumes.sink import WholeAlready


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("together", [1, 4, 16])
@pytest.mark.parametrize(
    "missing", [[], [(0, 37)], [(0, 16), (32, 37)], [(16, 32)], [(0, 4), (8, 12), (16, 20), (36, 37)]], ids=str
)
def test_every_missing_slice_has_one_owner_and_groups_are_not_cut(
    missing: list[tuple[int, int]], count: int, together: int
) -> None:
    runs = [range(a, b) for a, b in missing]
    parts = shares(runs, count, together)
    assert len(parts) == count
    assert [z for part in parts for run in part for z in run] == [z for run in runs for z in run]
    edges = {edge for part in parts for run in part for edge in (run.start, run.stop)}
    given = {edge for run in runs for edge in (run.start, run.stop)}
    assert all(edge % together == 0 for edge in edges - given)


def test_the_parts_are_of_nearly_equal_size() -> None:
    parts = shares([range(10), range(20, 150), range(151, 300)], 7)
    sizes = [sum(map(len, part)) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert max(map(len, parts)) <= 2


def test_layers_get_what_the_fastest_slabs_leave_and_no_slab_is_made_smaller_for_them(
    recording_volume: type[Any], predicted_part: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "process_bytes", lambda: 0)
    window = Window((5, 32, 32), (1, 32, 32), (1, 24, 24), (2, 0, 0), "hann")
    volume = recording_volume(np.zeros((64, 80, 80), np.float32), chunk_zyx=(16, 1, 1))
    cpu = torch.device("cpu")
    denoiser = Denoiser(predicted_part(window), Normalization(0.0, 1.0), window, cpu)
    job = InferenceJob((volume, volume), denoiser, range(64), WholeAlready("nowhere"), lambda total: nullcontext())
    layer = 4 * 16 * 80 * 80
    fastest = plan_slabs(TileGrid(volume.shape, window), 2).n_bytes
    besides = besides_slabs(job.inputs, denoiser, job.sink, largest_layer=0)
    for extra, budget in ((2 * layer, fastest), (2 * layer - 2, fastest + 2 * layer - 2), (-1000, fastest - 1000)):
        told: dict[str, int] = {}
        monkeypatch.setattr(run, "denoise_slices", lambda *_, **named: told.update(named))  # noqa: B023
        monkeypatch.setattr(run, "fill_share", lambda world, sink, progress, fill: fill(range(64), print))
        run_worker(World(0, 1, cpu), replace(job, max_memory=besides + fastest + extra))
        assert told["budget"] == budget
        assert (layer_bytes(volume, told["largest_layer"]) == layer) == (extra == 2 * layer)
    least = besides + SlabPlan(TileGrid(volume.shape, window), 2, 1, 1).n_bytes
    run_worker(World(0, 1, cpu), replace(job, max_memory=least))
    with pytest.raises(DeviceError, match=r"is too little for slices of 80 x 80 voxels; allow at least \d") as error:
        run_worker(World(0, 1, cpu), replace(job, max_memory=least - 1))
    said = re.search(r"at least (\d+\.\d+) ([GM])B", str(error.value))
    assert said is not None
    assert least <= float(said[1]) * {"G": 1e9, "M": 1e6}[said[2]] <= least + 20e6
