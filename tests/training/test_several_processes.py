from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from denoise.checkpoint import Checkpoint, TrainState
from denoise.cluster import Spread
from denoise.errors import Interrupted
from denoise.launch import World, launch
from denoise.networks.catalogue import build_network
from denoise.run_folder import RunFolder
from denoise.training.job import Plan, Record, TrainJob
from denoise.training.loop import run_worker
from denoise.training.observers import read_history
from denoise.training.validation import Preview


def run_all(world: World, jobs: list[TrainJob]) -> None:
    """Several runs for the price of starting the processes once."""
    for job in jobs:
        run_worker(world, job)


def test_two_processes_that_share_a_batch_do_what_one_does(
    jobs: Callable[..., TrainJob], train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two blocks each of four; and one and two of three, whose gradients must not count alike."""
    # Set here so that what `launch` sets for its workers does not outlive the test.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")

    def both(name: str) -> list[TrainJob]:
        # L2, because the gradient of L1 is a sum of signs, which rounding flips; unclipped, because clipping hides a
        # gradient of the wrong length; from a network all of whose weights have a gradient from the first step on.
        common = {"loss": "l2", "lcl_weight": 0.1, "gradient_clip": None, "learning_rate": 3e-4, "initial": initial()}
        return [
            jobs(tmp_path / f"{name}_even", batch_size=4, warmup_steps=2, ema_decay=0.5, **common),
            jobs(
                tmp_path / f"{name}_uneven", batch_size=3, warmup_steps=0, patches_per_epoch=3, max_epochs=1, **common
            ),
        ]

    def initial() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        weights = build_network(jobs(tmp_path / "one_even").network).state_dict()
        return {name: torch.randn_like(w) * 0.05 if name == "leave.weight" else w for name, w in weights.items()}

    for job in both("one"):
        train(job)
    stopped, whole = (jobs(tmp_path / name, patches_per_epoch=24, max_epochs=1) for name in ("stopped", "whole"))
    train(whole)
    with pytest.raises(Interrupted):
        train(stopped, {4: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    timed = jobs(tmp_path / "timed", max_epochs=10**6, max_minutes=0.02, schedule="cosine")
    launch(run_all, [*both("two"), replace(stopped, resume=True), timed], [torch.device("cpu")] * 2)
    for name in ("even", "uneven"):
        assert_close(RunFolder(tmp_path / f"one_{name}"), RunFolder(tmp_path / f"two_{name}"))
    losses = [read_history(RunFolder(job.folder).history)[-1]["train_loss"] for job in (whole, stopped)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3), "no step counts twice where there are more processes now"
    # Two clocks that are never alike: were there two minds about the end, the processes would not be back here.
    assert read_history(RunFolder(timed.folder).history)[-1]["learning_rate"] < 0.05 * timed.schedule.peak
    assert RunFolder(timed.folder).model("val").exists()


@dataclass(frozen=True)
class DiesOnce:
    """An observer that kills its process after a step, the first time."""

    mark: Path
    step: int

    def started(self, plan: Plan) -> None:
        pass

    def stepped(self, step: int, epoch: int, done: float, loss: float | None) -> None:
        if step == self.step and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def validated(self, record: Record, preview: Preview | None) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_a_run_whose_process_was_killed_and_started_again_ends_as_if_nothing_had_happened(
    jobs: Callable[..., TrainJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    job = jobs(tmp_path / "killed", max_epochs=3, save_every_minutes=1e-9)
    dying = replace(job, observers=(DiesOnce(tmp_path / "mark", 5),))
    launch(run_worker, dying, [torch.device("cpu")] * 2, spread=Spread(max_restarts=1))
    assert (tmp_path / "mark").exists()
    launch(run_worker, jobs(tmp_path / "whole", max_epochs=3), [torch.device("cpu")] * 2)
    whole, killed = (TrainState.load(RunFolder(tmp_path / name).state) for name in ("whole", "killed"))
    assert whole.progress["step"] == killed.progress["step"] == 6
    assert whole.progress["best"] == killed.progress["best"]
    assert all(torch.equal(weights, killed.model[name]) for name, weights in whole.model.items())


def assert_close(alone: RunFolder, shared: RunFolder) -> None:
    one, two = (TrainState.load(folder.state) for folder in (alone, shared))
    assert one.normalization == two.normalization, "to the last bit"
    assert one.progress["step"] == two.progress["step"]
    require_close(one.model, two.model)
    require_close(*(Checkpoint.load(folder.model("val")).weights for folder in (alone, shared)))
    averages = [{str(i): s["exp_avg"] for i, s in state.optimizer["state"].items()} for state in (one, two)]
    require_close(*averages)
    for a, b in zip(read_history(alone.history), read_history(shared.history), strict=True):
        assert a["improved"] == b["improved"]
        for name in ("train_loss", "val_l1", "val_l2", "val_mse", "val_lcl", "val_edge", "learning_rate"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


def require_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    for name, tensor in one.items():
        difference = float((tensor - two[name]).norm() / tensor.norm().clamp(min=1e-3))
        assert difference < 1e-4, f"{name} differs by {difference:.1e}"
