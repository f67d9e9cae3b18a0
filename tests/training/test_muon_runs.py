"""Runs that are trained with Muon, through the loop: resumed, begun without it, shared by two processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from denoise.checkpoint import TrainState
from denoise.config.recipes import RECIPES, Muon
from denoise.errors import CheckpointError
from denoise.launch import launch
from denoise.run_folder import RunFolder
from denoise.training.job import TrainJob
from denoise.training.loop import run_worker
from denoise.training.optimizer import Optimizers

MUON = Muon(2.5)
Jobs = Callable[..., TrainJob]
Train = Callable[..., Any]


def state_of(folder: Path) -> TrainState:
    return TrainState.load(RunFolder(folder).state)


def test_the_recipes_of_this_package_use_it_and_the_published_ones_do_not() -> None:
    assert {name for name, recipe in RECIPES.items() if recipe.muon} == {"residual2d", "residual3d"}


def test_a_resumed_run_is_the_same_to_the_last_bit(
    train: Train, jobs: Jobs, tmp_path: Path, assert_same_run: Callable[..., None]
) -> None:
    train(jobs(tmp_path / "whole", max_epochs=2, muon=MUON))
    train(jobs(tmp_path / "parts", max_epochs=1, muon=MUON))
    train(jobs(tmp_path / "parts", max_epochs=2, muon=MUON, resume=True))
    assert Optimizers.had_muon(state_of(tmp_path / "parts").optimizer)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", planned_alike=False)


def test_a_run_that_was_begun_without_it_goes_on_without_it(
    train: Train, jobs: Jobs, tmp_path: Path, assert_same_run: Callable[..., None]
) -> None:
    """As a run of an earlier version does; also when it is resumed once more."""
    train(jobs(tmp_path / "whole", max_epochs=3))
    train(jobs(tmp_path / "parts", max_epochs=1))
    for epochs in (2, 3):
        train(jobs(tmp_path / "parts", max_epochs=epochs, muon=MUON, resume=True))
        assert not Optimizers.had_muon(state_of(tmp_path / "parts").optimizer)
    for folder in ("whole", "parts"):  # what the settings of the last command were is not what the run is about
        path = RunFolder(tmp_path / folder).state
        state = TrainState.load(path)
        replace(state, fingerprint={k: v for k, v in state.fingerprint.items() if not k.startswith("muon.")}).save(path)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", planned_alike=False)


def test_another_muon_is_not_taken_for_the_one_that_began_the_run(train: Train, jobs: Jobs, tmp_path: Path) -> None:
    train(jobs(tmp_path, max_epochs=1, muon=MUON))
    with pytest.raises(CheckpointError, match=r"muon\.rate = 2\.5, and this version of denoise trains with 1\.25"):
        train(jobs(tmp_path, max_epochs=2, muon=Muon(1.25), resume=True))


def test_two_processes_make_the_steps_of_one(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    for folder, count in (("one", 1), ("two", 2)):
        launch(
            run_worker,
            jobs(tmp_path / folder, max_epochs=1, batch_size=4, loss="l2", gradient_clip=None, muon=MUON),
            [torch.device("cpu")] * count,
        )
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    assert one.progress["step"] == two.progress["step"] > 0
    for name, weights in one.model.items():
        if weights.ndim >= 2:  # those that Muon steps; it makes more of rounding than Adam does
            difference = float((weights - two.model[name]).norm() / weights.norm())
            assert difference < 1e-3, name
