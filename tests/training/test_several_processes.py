from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from denoise.checkpoint import Checkpoint, RunFolder, TrainState
from denoise.launch import launch
from denoise.training.job import TrainJob
from denoise.training.loop import run_worker
from denoise.training.observers import read_history


def test_two_processes_with_half_the_batch_each_do_what_one_does(
    jobs: Callable[..., TrainJob], train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"warmup_steps": 2, "lcl_weight": 0.1, "learning_rate": 3e-3, "ema_decay": 0.5}
    # Set here so that what `launch` sets for its workers does not outlive the test.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    train(jobs(tmp_path / "one", **settings))
    launch(run_worker, jobs(tmp_path / "two", **settings), [torch.device("cpu")] * 2)

    states = [TrainState.load(RunFolder(tmp_path / name).state) for name in ("one", "two")]
    models = [Checkpoint.load(RunFolder(tmp_path / name).model("val")) for name in ("one", "two")]
    assert states[0].normalization == states[1].normalization, "to the last bit"
    assert states[0].progress["step"] == states[1].progress["step"] == 4
    for one, two in [(states[0].model, states[1].model), (models[0].weights, models[1].weights)]:
        for name, weight in one.items():
            difference = float((weight - two[name]).norm() / weight.norm().clamp(min=1e-3))
            assert difference < 1e-4, f"{name} differs by {difference:.1e}"
    one, two = (read_history(RunFolder(tmp_path / name).history) for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a["improved"] == b["improved"]
        for name in ("train_loss", "val_l1", "val_l2", "val_lcl", "val_edge", "learning_rate"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name
