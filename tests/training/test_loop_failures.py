from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from denoise.checkpoint import Checkpoint, TrainState
from denoise.errors import DenoiseError, DeviceError, VolumeError
from denoise.launch import World
from denoise.networks.residual import ResidualUNet
from denoise.networks.spec import NetworkSpec
from denoise.run_folder import CRITERIA, RunFolder
from denoise.training.job import TrainJob
from denoise.training.loop import TrainingRun
from denoise.training.observers import read_history

Train = Callable[..., Any]
Jobs = Callable[..., TrainJob]
Splits = Callable[..., Any]
History = Callable[[Path], list[dict[str, Any]]]
Same = Callable[..., None]

FLAT = NetworkSpec("residual2d", {"n_slices": 3, "width": 16, "levels": 2})
DEEP = NetworkSpec("residual3d", {"width": 8, "levels": 2})


@pytest.mark.parametrize("save_every_minutes", [5.0, 1e-9])
def test_a_run_that_diverges_says_so_and_keeps_its_best_model_and_its_last_good_state(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every_minutes: float
) -> None:
    step = TrainingRun._step

    def spoiled(self: TrainingRun, blocks: torch.Tensor, rate: float) -> torch.Tensor:
        if self.progress.step == 5:
            with torch.no_grad():
                next(self.network.parameters()).fill_(torch.nan)
        return step(self, blocks, rate)

    monkeypatch.setattr(TrainingRun, "_step", spoiled)
    with pytest.raises(DenoiseError, match=r"diverged.*learning_rate"):
        train(jobs(tmp_path, max_epochs=5, save_every_minutes=save_every_minutes))
    checkpoint = Checkpoint.load(RunFolder(tmp_path).model("val"))
    assert checkpoint.epoch <= 2
    weights = list(checkpoint.weights.values())
    if RunFolder(tmp_path).state.exists():
        weights += TrainState.load(RunFolder(tmp_path).state).model.values()
    assert all(bool(torch.isfinite(weight).all()) for weight in weights)


def test_observers_are_closed_when_a_run_fails(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    from denoise.training import observers

    monkeypatch.setattr(observers.History, "close", lambda self: closed.append("history"))

    def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        train(jobs(tmp_path), {1: fail})
    assert closed == ["history"]


def has_room_for(monkeypatch: pytest.MonkeyPatch, inputs: int) -> list[int]:
    """A device on which so many inputs can be trained on at once; says how many were tried."""
    tried: list[int] = []
    forward = ResidualUNet.forward

    def limited(self: ResidualUNet, blocks: torch.Tensor) -> torch.Tensor:
        if self.training:
            tried.append(len(blocks))
            if len(blocks) > inputs:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, blocks)

    monkeypatch.setattr(ResidualUNet, "forward", limited)
    return tried


def test_where_memory_is_too_small_for_a_batch_it_is_trained_on_in_parts_with_the_same_result(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Three blocks of two splits, and room for two inputs: one block at a time."""
    settings = {"batch_size": 3, "patches_per_epoch": 6, "lcl_weight": 0.5, "warmup_steps": 2, "loss": "l2"}
    train(jobs(tmp_path / "roomy", **settings))
    tried = has_room_for(monkeypatch, 2)
    train(jobs(tmp_path / "narrow", **settings))
    assert tried[tried.index(6) :] == [6, 4, *[2] * 12], "after what memory was planned by"
    assert [r.args[1:] for r in caplog.records if "memory ran out" in r.msg] == [(3, 2), (3, 3)]
    one, two = (TrainState.load(RunFolder(tmp_path / name).state) for name in ("roomy", "narrow"))
    for name, weights in one.model.items():
        torch.testing.assert_close(two.model[name], weights, rtol=1e-3, atol=2e-4)  # Adam makes much of rounding
    losses = [read_history(RunFolder(tmp_path / name).history)[-1]["train_loss"] for name in ("roomy", "narrow")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_memory_that_is_too_small_for_one_block_is_a_device_error(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_room_for(monkeypatch, 1)
    with pytest.raises(DeviceError, match=r"too small for one block of 16 voxels a side; lower the patch size"):
        train(jobs(tmp_path))


def test_other_faults_of_a_step_are_not_tried_again(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(self: ResidualUNet, blocks: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ResidualUNet, "forward", faulty)
    with pytest.raises(RuntimeError, match="a bug"):
        train(jobs(tmp_path))


def test_nan_in_a_split_is_refused_before_the_first_step_and_filled_on_request(
    train: Train, jobs: Jobs, splits_of: Splits, noise: Splits, tmp_path: Path
) -> None:
    arrays = noise()
    arrays[1][5, 3, 3] = np.nan
    splits = splits_of(arrays, 20)
    with pytest.raises(VolumeError, match=r"recon_1 holds 1 NaN or Inf voxels in slice 25"):
        train(jobs(tmp_path / "a", splits=splits))
    assert list((tmp_path / "a").iterdir()) == []
    watcher = train(jobs(tmp_path / "b", splits=splits, non_finite="fill", max_epochs=1))
    assert np.isfinite(watcher.records[0].train_loss)


def test_more_processes_than_blocks_in_a_batch_are_refused(jobs: Jobs, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"batch_size is 4, fewer than the 5 processes"):
        TrainingRun(World(0, 5, torch.device("cpu")), jobs(tmp_path))


# What a run leaves


def test_a_run_leaves_its_files_under_their_final_names_only(train: Train, jobs: Jobs, tmp_path: Path) -> None:
    train(jobs(tmp_path, warmup_steps=0))
    names = sorted(path.name for path in tmp_path.rglob("*"))
    assert names == [*sorted(CRITERIA.values()), "history.jsonl", "resume_state.pth"]
    assert all(json.loads(line) for line in RunFolder(tmp_path).history.read_text(encoding="utf-8").splitlines())


def test_the_best_model_can_be_used_while_training_goes_on(train: Train, jobs: Jobs, tmp_path: Path) -> None:
    read: list[int] = []

    def look() -> None:
        path = RunFolder(tmp_path).model("val")
        if path.exists():
            checkpoint = Checkpoint.load(path)
            with torch.inference_mode():
                assert torch.isfinite(checkpoint.build()(torch.zeros(1, 3, 16, 16))).all()
            read.append(checkpoint.epoch)

    train(jobs(tmp_path, max_epochs=4), dict.fromkeys(range(1, 9), look))
    assert len(read) == 6
    assert read == sorted(read)
