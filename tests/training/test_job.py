from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from denoise.networks.spec import NetworkSpec
from denoise.training.job import Plan, Record, TrainJob
from denoise.training.validation import Scores

Jobs = Callable[..., TrainJob]


@pytest.mark.parametrize(
    "changes",
    [
        {"network": NetworkSpec("residual2d", {"n_slices": 5, "width": 16, "levels": 2})},
        {"network": NetworkSpec("unet2d", {"n_slices": 3})},
        {"patch_size": 24},
        {"batch_size": 5},
        {"patches_per_epoch": 9},
        {"train_slices": range(2, 9)},
        {"seed": 1},
        {"loss": "l2"},
        {"strategy": "1:X"},
        {"huber_delta": 2.0},
        {"lcl_weight": 0.5},
        {"warmup_steps": 3},
        {"z_stride": 2},
        {"augment": False},
        {"ema_decay": 0.9},
        {"validation_fraction": 0.2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_the_result_changes_the_fingerprint(jobs: Jobs, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert jobs(tmp_path).fingerprint() != jobs(tmp_path, **changes).fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"max_epochs": 99},
        {"max_minutes": 3.0},
        {"patience": 4},
        {"schedule": "hold"},
        {"learning_rate": 0.5},
        {"save_every_minutes": 1.0},
        {"show_progress": True},
        {"resume": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_may_change_between_two_sessions_does_not(jobs: Jobs, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert jobs(tmp_path).fingerprint() == jobs(tmp_path, **changes).fingerprint()


def test_the_number_and_shape_of_the_splits_count(
    jobs: Jobs, tmp_path: Path, splits_of: Callable[..., Any], noise: Callable[..., Any]
) -> None:
    prints = [
        jobs(tmp_path, splits=splits_of(noise(shape, count))).fingerprint()
        for shape, count in [((12, 32, 32), 2), ((12, 32, 32), 3), ((13, 32, 32), 2)]
    ]
    assert prints[0] != prints[1]
    assert prints[0] != prints[2]


def test_a_fingerprint_survives_the_file_that_it_is_stored_in(jobs: Jobs, tmp_path: Path) -> None:
    """A tuple that came back as a list would make every resumption a change."""
    fingerprint = dict(jobs(tmp_path, train_slices=range(2, 9)).fingerprint())
    torch.save(fingerprint, tmp_path / "state.pth")
    assert torch.load(tmp_path / "state.pth", weights_only=True) == fingerprint
    assert json.loads(json.dumps(fingerprint)) == fingerprint


def test_a_job_can_be_sent_to_another_process(jobs: Jobs, tmp_path: Path) -> None:
    job = jobs(tmp_path, initial={"weight": torch.ones(2)})
    copy = pickle.loads(pickle.dumps(job))
    assert copy.fingerprint() == job.fingerprint()
    assert copy.splits.shape == job.splits.shape


def test_a_record_becomes_one_flat_line_of_json() -> None:
    record = Record(3, 12, 1.5, 0.25, 1e-3, 0.5, Scores(0.1, 0.2, 0.15, 0.3, 4.0), 8.0, ("val", "edge"))
    plain = json.loads(json.dumps(record.as_plain()))
    assert (plain["epoch"], plain["done"]) == (3, 0.25)
    assert [plain[f"val_{name}"] for name in ("l1", "l2", "mse", "lcl", "edge")] == [0.1, 0.2, 0.15, 0.3, 4.0]
    assert plain["improved"] == ["val", "edge"]
    assert not any(isinstance(value, dict) for value in plain.values())


def test_a_plan_counts_the_steps_of_all_epochs() -> None:
    assert Plan(7, 5, 3, None, 4, 2, 1, "CPU", "float32", 1, 10).most_steps == 35
