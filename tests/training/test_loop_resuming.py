from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from denoise.checkpoint import Checkpoint, TrainState
from denoise.config.recipes import Adam
from denoise.errors import CheckpointError, Interrupted
from denoise.networks.spec import NetworkSpec
from denoise.run_folder import RunFolder
from denoise.seen import NOTHING, AllSeen
from denoise.training.job import TrainJob
from denoise.training.state import SEEN
from denoise.volumes.contents import Contents

Train = Callable[..., Any]
Jobs = Callable[..., TrainJob]
Splits = Callable[..., Any]
History = Callable[[Path], list[dict[str, Any]]]
Same = Callable[..., None]

FLAT = NetworkSpec("residual2d", {"n_slices": 3, "width": 16, "levels": 2})
DEEP = NetworkSpec("residual3d", {"width": 8, "levels": 2})


def stop_now() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stop_after", [3, 4, 7, 8], ids=lambda n: f"step {n}")
@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (FLAT, {}),
        (FLAT, {"ema_decay": 0.8, "schedule": "cosine", "validate_every": 2}),
        (DEEP, {"ema_decay": 0.8, "schedule": "cosine"}),
    ],
    ids=["2.5d", "2.5d averaged cosine", "3d averaged cosine"],
)
def test_a_run_that_a_signal_stopped_ends_as_if_it_had_not(
    train: Train,
    jobs: Jobs,
    tmp_path: Path,
    network: NetworkSpec,
    settings: dict[str, Any],
    stop_after: int,
    assert_same_run: Same,
) -> None:
    """In mid-epoch, at the last step of an epoch and at the very last before the final score, bit for bit."""
    settings = {"max_epochs": 4, "warmup_steps": 3, "learning_rate": 0.01, **settings}
    train(jobs(tmp_path / "whole", network, **settings))
    with pytest.raises(Interrupted, match=r"--resume") as stopped:
        train(jobs(tmp_path / "parts", network, **settings), {stop_after: stop_now})
    assert stopped.value.exit_code == 143
    assert TrainState.load(RunFolder(tmp_path / "parts").state).progress["step"] == stop_after
    watcher = train(jobs(tmp_path / "parts", network, resume=True, **settings))
    assert [step for step, _, _ in watcher.steps] == list(range(stop_after + 1, 9))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_more_epochs_continue_a_run_that_was_done(
    train: Train, jobs: Jobs, tmp_path: Path, assert_same_run: Same
) -> None:
    train(jobs(tmp_path / "whole", max_epochs=4))
    train(jobs(tmp_path / "parts", max_epochs=2))
    train(jobs(tmp_path / "parts", max_epochs=4, resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts", planned_alike=False)


def test_resuming_a_run_that_is_done_changes_nothing(
    train: Train, jobs: Jobs, tmp_path: Path, assert_same_run: Same
) -> None:
    train(jobs(tmp_path / "a"))
    train(jobs(tmp_path / "b"))
    watcher = train(jobs(tmp_path / "b", resume=True))
    assert watcher.steps == []
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_run_that_was_killed_repeats_what_was_not_saved(
    train: Train, jobs: Jobs, tmp_path: Path, assert_same_run: Same
) -> None:
    """The state lags behind the history and the best model, as after a power failure."""
    train(jobs(tmp_path / "whole", max_epochs=4))
    train(jobs(tmp_path / "parts", max_epochs=2))
    earlier = RunFolder(tmp_path / "parts").state.read_bytes()
    train(jobs(tmp_path / "parts", max_epochs=3, resume=True))
    RunFolder(tmp_path / "parts").state.write_bytes(earlier)
    with RunFolder(tmp_path / "parts").history.open("a", encoding="utf-8") as history:
        history.write('{"epoch": 4, "st')
    train(jobs(tmp_path / "parts", max_epochs=4, resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts", planned_alike=False)


def test_the_state_is_saved_now_and_then(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_run: Same
) -> None:
    """A process that is killed without a word loses minutes, not days."""
    seen: list[int] = []

    def look() -> None:
        state = RunFolder(tmp_path / "parts").state
        seen.append(TrainState.load(state).progress["step"] if state.exists() else 0)

    train(jobs(tmp_path / "whole", max_epochs=3))
    train(jobs(tmp_path / "parts", max_epochs=3, save_every_minutes=1e-9), dict.fromkeys(range(1, 7), look))
    assert seen == [0, 1, 2, 3, 4, 5]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 5}, r"seed = 0, the config now has 5"),
        ({"loss": "l2"}, r"loss = 'l1', the config now has 'l2'"),
        ({"batch_size": 8}, r"batch_size = 4, the config now has 8"),
        ({"patch_size": 8}, r"patch size = 16, the config now has 8"),
        ({"ema_decay": 0.9}, r"ema_decay = 0\.0, the config now has 0\.9"),
        ({"network": NetworkSpec("residual2d", {"n_slices": 5, "width": 16, "levels": 2})}, r"network\.n_slices = 3"),
        ({"network": NetworkSpec("unet2d", {"n_slices": 3})}, r"network = 'residual2d'"),
        ({"train_slices": range(1, 9)}, r"training slices = None, the config now has \[1, 9\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_changed_setting_is_refused_by_name_and_nothing_is_touched(
    train: Train, jobs: Jobs, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    train(jobs(tmp_path, max_epochs=1, patches_per_epoch=4))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=message):
        train(jobs(tmp_path, **{"resume": True, "max_epochs": 2, "patches_per_epoch": 4, **changes}))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network": NetworkSpec("residual2d", {**FLAT.options, "rectified_sums": 1})},
            r"network\.rectified_sums = 0, and this version of denoise trains with 1; finish the run with the version",
        ),
        ({"adam": Adam(beta2=0.9)}, r"saved without adam\.beta2, and this version of denoise trains with 0\.9"),
    ],
    ids=["network", "optimiser"],
)
def test_what_another_version_does_otherwise_is_not_asked_to_be_set_back(
    train: Train, jobs: Jobs, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    train(jobs(tmp_path, max_epochs=1, patches_per_epoch=4))
    with pytest.raises(CheckpointError, match=message) as refused:
        train(jobs(tmp_path, **{"resume": True, "max_epochs": 2, "patches_per_epoch": 4, **changes}))
    assert "set it back" not in str(refused.value)


def test_resuming_with_other_splits_is_refused(
    train: Train, jobs: Jobs, splits_of: Splits, noise: Splits, tmp_path: Path
) -> None:
    train(jobs(tmp_path, max_epochs=1))
    with pytest.raises(CheckpointError, match=r"shape = \[12, 32, 32\], the config now has \[13, 32, 32\]"):
        train(jobs(tmp_path, splits=splits_of(noise((13, 32, 32))), resume=True))


def test_a_run_goes_on_whose_version_read_more_of_the_neighbours(
    train: Train, jobs: Jobs, splits_of: Splits, noise: Splits, tmp_path: Path
) -> None:
    """What it saw is known by the slices that were looked at then, and is kept; other grey values are refused."""
    arrays = noise((16, 32, 32))
    splits, chosen = splits_of(arrays), {"train_slices": range(6, 10), "network": DEEP}
    train(jobs(tmp_path / "parts", splits=splits, max_epochs=1, **chosen))
    path = RunFolder(tmp_path / "parts").state
    state = TrainState.load(path)
    (now,) = AllSeen.of_plain(state.fingerprint[SEEN]).runs
    assert len(now.slices) < 16
    then = NOTHING.then(replace(now, slices=range(16), contents=Contents.of(splits.volumes, range(16))))
    replace(state, fingerprint={**state.fingerprint, SEEN: then.as_plain()}).save(path)

    other = splits_of([array + (np.arange(16) == 0)[:, None, None].astype(np.float32) for array in arrays])
    with pytest.raises(CheckpointError, match="reconstructed anew"):
        train(jobs(tmp_path / "parts", splits=other, max_epochs=2, resume=True, **chosen))
    watcher = train(jobs(tmp_path / "parts", splits=splits, max_epochs=2, resume=True, **chosen))
    assert [step for step, _, _ in watcher.steps] == [3, 4]
    assert AllSeen.of_plain(TrainState.load(path).fingerprint[SEEN]).runs[0].slices == range(16)


def test_resuming_without_a_state_begins(train: Train, jobs: Jobs, tmp_path: Path, assert_same_run: Same) -> None:
    train(jobs(tmp_path / "whole"))
    train(jobs(tmp_path / "resumed", resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.8, "validate_every": 2}], ids=["", "averaged"])
def test_a_run_that_is_killed_after_its_first_model_has_a_state_and_ends_as_if_it_had_not_been(
    train: Train,
    jobs: Jobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    assert_same_run: Same,
) -> None:
    def save_and_die(self: Checkpoint, path: Path) -> None:
        save(self, path)
        raise KeyboardInterrupt

    save = Checkpoint.save
    train(jobs(tmp_path / "whole", max_epochs=3, **settings))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(jobs(tmp_path / "parts", max_epochs=3, **settings))
    assert RunFolder(tmp_path / "parts").holds_models
    train(jobs(tmp_path / "parts", max_epochs=3, resume=True, **settings))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_score_that_is_made_again_after_a_kill_stands_in_the_history_once(
    train: Train, jobs: Jobs, tmp_path: Path, history_of: History
) -> None:
    """The state is saved before the first score, and not again for some minutes."""

    def die() -> None:
        raise KeyboardInterrupt

    settings = {"max_epochs": 4, "patches_per_epoch": 8, "validate_every": 1}
    train(jobs(tmp_path / "whole", **settings))
    with pytest.raises(KeyboardInterrupt):
        train(jobs(tmp_path / "parts", **settings), {5: die})
    assert [line["step"] for line in history_of(tmp_path / "parts")] == [2, 4]
    train(jobs(tmp_path / "parts", resume=True, **settings))
    assert [line["step"] for line in history_of(tmp_path / "parts")] == [2, 4, 6, 8]
    assert history_of(tmp_path / "parts") == history_of(tmp_path / "whole")


def test_a_state_whose_weights_do_not_fit_is_refused(train: Train, jobs: Jobs, tmp_path: Path) -> None:
    train(jobs(tmp_path, max_epochs=1))
    path = RunFolder(tmp_path).state
    content = torch.load(path, weights_only=True)
    content["model"]["leave.weight"] = torch.zeros(1)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        train(jobs(tmp_path, max_epochs=2, resume=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_run_signals_mean_what_they_meant_before(
    train: Train, jobs: Jobs, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    train(jobs(tmp_path / "a", max_epochs=1))
    with pytest.raises(Interrupted) as stopped:
        train(jobs(tmp_path / "b", max_epochs=2), {1: lambda: os.kill(os.getpid(), number)})
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
