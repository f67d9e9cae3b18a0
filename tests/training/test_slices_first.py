"""3D networks are trained on single slices of their blocks first."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from denoise.checkpoint import TrainState
from denoise.errors import Interrupted
from denoise.networks.spec import NetworkSpec
from denoise.run_folder import RunFolder
from denoise.training.job import TrainJob
from denoise.training.loop import TrainingRun

Train = Callable[..., Any]
Jobs = Callable[..., TrainJob]
Same = Callable[..., None]

DEEP = NetworkSpec("residual3d", {"width": 8, "levels": 2})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Number and depth of the blocks of every step."""
    shapes: list[tuple[int, int]] = []
    step = TrainingRun._step

    def remembered(self: TrainingRun, blocks: torch.Tensor, rate: float) -> torch.Tensor:
        shapes.append((blocks.shape[0], blocks.shape[2]))
        return step(self, blocks, rate)

    monkeypatch.setattr(TrainingRun, "_step", remembered)
    return shapes


def mixing_of(folder: Path) -> dict[str, torch.Tensor]:
    state = TrainState.load(RunFolder(folder).state)
    return {name: weights for name, weights in state.model.items() if ".mixing." in name}


@pytest.mark.parametrize(("first", "on_slices"), [(0, 0), (3, 3), (100, 4)], ids=["never", "steps", "half of the run"])
def test_steps_on_single_slices_come_first_and_are_at_most_half_of_a_run(
    train: Train, jobs: Jobs, tmp_path: Path, seen: list[tuple[int, int]], first: int, on_slices: int
) -> None:
    train(jobs(tmp_path, DEEP, max_epochs=4, patch_size=32, patches_per_epoch=4, batch_size=2, slices_first=first))
    depth = seen[-1][1]
    assert depth > 5
    assert seen == [(8, 5)] * on_slices + [(2, depth)] * (8 - on_slices)


@pytest.mark.parametrize(("n_slices", "edge"), [(5, 12), (1, 8)], ids=["as deep as wide when read", "cubes"])
def test_blocks_that_are_as_deep_as_wide_can_be_trained_on(
    train: Train, jobs: Jobs, tmp_path: Path, seen: list[tuple[int, int]], n_slices: int, edge: int
) -> None:
    network = NetworkSpec("residual3d", {"width": 8, "levels": 2, "n_slices": n_slices})
    train(jobs(tmp_path, network, max_epochs=4, patch_size=edge, patches_per_epoch=16, batch_size=2, slices_first=100))
    slices = [(8, n_slices)] * (16 if n_slices > 1 else 0)  # single slices of cubes that are turned would lie across
    assert seen == slices + [(2, 7 + n_slices)] * (32 - len(slices))


def test_what_mixes_slices_is_left_alone_by_steps_on_single_ones(
    train: Train, jobs: Jobs, tmp_path: Path, seen: list[tuple[int, int]]
) -> None:
    """Adam would take the first gradients after many zeros for huge ones."""
    settings = {"slices_first": 4, "max_epochs": 8, "patches_per_epoch": 4, "learning_rate": 1e-3}

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(jobs(tmp_path, DEEP, **settings), {4: stop})
    assert all(torch.equal(weights, torch.zeros_like(weights)) for weights in mixing_of(tmp_path).values())
    assert mixing_of(tmp_path)
    train(jobs(tmp_path, DEEP, resume=True, **settings))
    moved = [weights.abs().max() for name, weights in mixing_of(tmp_path).items() if name.endswith("weight")]
    # Four steps of Adam from fresh moments: none is longer than the rate.
    assert all(0 < largest <= 4 * 1.01e-3 for largest in moved)


@pytest.mark.parametrize("stop_after", [3, 4, 5])
def test_a_run_that_is_stopped_about_the_change_to_blocks_ends_as_if_it_had_not_been(
    train: Train, jobs: Jobs, tmp_path: Path, stop_after: int, assert_same_run: Same
) -> None:
    settings = {"slices_first": 4, "max_epochs": 4, "ema_decay": 0.8}

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    train(jobs(tmp_path / "whole", DEEP, **settings))
    with pytest.raises(Interrupted):
        train(jobs(tmp_path / "parts", DEEP, **settings), {stop_after: stop})
    train(jobs(tmp_path / "parts", DEEP, resume=True, **settings))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
