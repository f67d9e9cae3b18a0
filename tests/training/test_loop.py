from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from denoise.checkpoint import Checkpoint, TrainState
from denoise.errors import Interrupted
from denoise.launch import World
from denoise.networks.spec import NetworkSpec
from denoise.patches.sampler import FEWEST_PATCHES
from denoise.run_folder import RunFolder
from denoise.tiles import Triple
from denoise.training import course, loop, opening
from denoise.training.job import TrainJob
from denoise.training.loop import TrainingRun
from denoise.training.schedule import Schedule
from denoise.training.validation import Validator

Train = Callable[..., Any]
Jobs = Callable[..., TrainJob]
Splits = Callable[..., Any]
History = Callable[[Path], list[dict[str, Any]]]
Same = Callable[..., None]

FLAT = NetworkSpec("residual2d", {"n_slices": 3, "width": 16, "levels": 2})
DEEP = NetworkSpec("residual3d", {"width": 8, "levels": 2})


# Learning


@pytest.mark.parametrize(("network", "epochs"), [(FLAT, 10), (DEEP, 12)], ids=["2.5d", "3d"])
def test_the_loss_falls_on_a_noise2noise_problem(
    train: Train, jobs: Jobs, tmp_path: Path, network: NetworkSpec, epochs: int, history_of: History
) -> None:
    train(jobs(tmp_path, network, max_epochs=epochs, learning_rate=3e-3, loss="l2", lcl_weight=0.0))
    history = history_of(tmp_path)
    assert history[-1]["train_loss"] < 0.85 * history[0]["train_loss"]
    assert history[-1]["val_l2"] < 0.9 * history[0]["val_l2"]


@pytest.mark.parametrize("network", [FLAT, DEEP], ids=["2.5d", "3d"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    train: Train, jobs: Jobs, tmp_path: Path, network: NetworkSpec, assert_same_run: Same
) -> None:
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        train(jobs(tmp_path / name, network, seed=seed, max_epochs=1))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    states = [TrainState.load(RunFolder(tmp_path / name).state).model for name in ("a", "c")]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_callers_random_numbers_do_not_change_a_run(
    train: Train, jobs: Jobs, tmp_path: Path, assert_same_run: Same
) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    train(jobs(tmp_path / "a"))
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    train(jobs(tmp_path / "b"))
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("loss", ["l1", "huber"])
@pytest.mark.parametrize("strategy", ["X:1", "1:X"])
def test_three_splits_train(
    train: Train, jobs: Jobs, splits_of: Splits, noise: Splits, tmp_path: Path, strategy: str, loss: str
) -> None:
    splits = splits_of(noise((12, 32, 32), 3))
    watcher = train(jobs(tmp_path, splits=splits, strategy=strategy, loss=loss, max_epochs=8, learning_rate=1e-3))
    assert watcher.records[-1].scores.mse < 0.9 * watcher.records[0].scores.mse


@pytest.mark.parametrize(
    ("shape", "network"),
    [
        ((1, 32, 32), FLAT),  # one slice: rows are held out
        ((1, 12, 10), FLAT),  # ... and it is smaller than the patch
        ((2, 24, 24), FLAT),
        ((12, 16, 16), FLAT),  # exactly the patch
        ((12, 9, 11), FLAT),  # smaller than the patch
        ((10, 20, 17), NetworkSpec("residual2d", {"n_slices": 4, "width": 16, "levels": 2})),
        ((3, 20, 17), NetworkSpec("residual2d", {"n_slices": 2, "width": 16, "levels": 2})),
        ((4, 20, 17), NetworkSpec("residual2d", {"n_slices": 9, "width": 16, "levels": 2})),
        ((1, 24, 24), DEEP),
        ((5, 30, 9), DEEP),
        ((8, 8, 8), DEEP),  # exactly one cube
        ((20, 6, 30), DEEP),
    ],
    ids=str,
)
def test_small_and_odd_volumes_train(
    train: Train, jobs: Jobs, splits_of: Splits, noise: Splits, tmp_path: Path, shape: Triple, network: NetworkSpec
) -> None:
    watcher = train(jobs(tmp_path, network, splits_of(noise(shape)), max_epochs=1))
    assert len(watcher.records) == 1
    assert Checkpoint.load(RunFolder(tmp_path).model("val")).patch_size == (8 if network is DEEP else 16)


@pytest.mark.parametrize(
    "network",
    [NetworkSpec("unet2d", {"n_slices": 2}), NetworkSpec("unet3d", {"n_blocks": 2, "start_filters": 2})],
    ids=lambda n: n.name,
)
def test_the_published_networks_train(train: Train, jobs: Jobs, tmp_path: Path, network: NetworkSpec) -> None:
    watcher = train(jobs(tmp_path, network, max_epochs=1, patches_per_epoch=4))
    assert watcher.records[0].scores.l1 > 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_integer_volumes_train_as_their_float_twins_do(
    train: Train,
    jobs: Jobs,
    splits_of: Splits,
    noise: Splits,
    tmp_path: Path,
    dtype: type[np.generic],
    assert_same_run: Same,
) -> None:
    offset, gain = (35000, 4000) if dtype is np.uint16 else (100, 20)
    arrays = [np.clip(np.round(a * gain + offset), 1, np.iinfo(dtype).max).astype(dtype) for a in noise()]
    for name, kind in [("integers", dtype), ("floats", np.float32)]:
        train(jobs(tmp_path / name, splits=splits_of([a.astype(kind) for a in arrays]), max_epochs=1))
    assert_same_run(tmp_path / "integers", tmp_path / "floats")


def test_training_slices_may_be_limited_and_of_the_others_only_neighbours_are_read(
    train: Train, jobs: Jobs, splits_of: Splits, noise: Splits, tmp_path: Path, history_of: History
) -> None:
    """What lies farther away may be anything, NaN too: the run is that on a volume without it."""
    arrays = noise((30, 32, 32))
    spoilt = [array.copy() for array in arrays]
    for array in spoilt:
        array[:9] = array[20:] = np.nan
    watcher = train(jobs(tmp_path / "all", splits=splits_of(spoilt), train_slices=range(10, 19)))
    train(jobs(tmp_path / "part", splits=splits_of([a[9:20] for a in arrays]), train_slices=range(1, 10)))
    assert watcher.plan.validation_blocks == 4
    assert history_of(tmp_path / "all") == history_of(tmp_path / "part")
    run = TrainingRun(World(0, 1, torch.device("cpu")), jobs(tmp_path / "b", train_slices=range(3, 12)))
    assert run.part.splits.volumes[0].slice_numbers == range(2, 12)
    run.close()


# Settings


def test_the_contrast_loss_and_the_sharpness_checkpoints_come_after_the_warm_up_only(
    train: Train, jobs: Jobs, tmp_path: Path, history_of: History
) -> None:
    """Four epochs of two steps; the warm-up ends with the second epoch."""
    warm = {"max_epochs": 4, "lcl_weight": 5.0}
    train(jobs(tmp_path / "short", warmup_steps=4, **warm))
    train(jobs(tmp_path / "long", warmup_steps=100, **warm))
    short, long = history_of(tmp_path / "short"), history_of(tmp_path / "long")
    for a, b in zip(short[:2], long[:2], strict=True):
        assert a["train_loss"] == b["train_loss"]
        assert a["val_l1"] == b["val_l1"]
    assert short[2]["train_loss"] > long[2]["train_loss"] + 0.5
    assert [("lcl" in line["improved"], "edge" in line["improved"]) for line in short[:2]] == [
        (False, False),
        (True, True),
    ]
    assert RunFolder(tmp_path / "short").model("lcl").exists()
    assert RunFolder(tmp_path / "short").model("edge").exists()
    assert not RunFolder(tmp_path / "long").model("lcl").exists()
    assert not RunFolder(tmp_path / "long").model("edge").exists()


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_each_checkpoint_is_the_model_of_the_best_epoch_by_its_own_score(
    train: Train, jobs: Jobs, tmp_path: Path, ema_decay: float | None, history_of: History
) -> None:
    train(jobs(tmp_path, max_epochs=6, learning_rate=0.02, warmup_steps=5, ema_decay=ema_decay))
    history = history_of(tmp_path)
    sharp = [line for line in history if line["step"] >= 5]
    expected = {
        "val": min(history, key=lambda line: float(line["val_l1"])),
        "lcl": min(sharp, key=lambda line: float(line["val_lcl"])),
        "edge": max(sharp, key=lambda line: float(line["val_edge"])),
    }
    for criterion, line in expected.items():
        checkpoint = Checkpoint.load(RunFolder(tmp_path).model(criterion))
        assert checkpoint.criterion == criterion
        assert (checkpoint.epoch, checkpoint.step) == (line["epoch"], line["step"])
        assert checkpoint.scores == {name: line[f"val_{name}"] for name in ("l1", "l2", "mse", "lcl", "edge")}
    improved = [line["epoch"] for line in history if "val" in line["improved"]]
    best = np.minimum.accumulate([line["val_l1"] for line in history])
    assert improved == [1, *(i + 2 for i in range(len(best) - 1) if best[i + 1] < best[i])]


def test_a_stored_model_gives_the_score_that_it_was_stored_with(
    train: Train, jobs: Jobs, tmp_path: Path, cpu: World
) -> None:
    job = jobs(tmp_path, max_epochs=3, learning_rate=0.01, ema_decay=0.6)
    train(job)
    checkpoint = Checkpoint.load(RunFolder(tmp_path).model("val"))
    run = TrainingRun(cpu, jobs(tmp_path / "again"))
    scores, _ = run.validator.scores(checkpoint.build(), run.data.source, torch.float32)
    run.close()
    assert checkpoint.normalization == run.data.source.normalization
    assert vars(scores) == pytest.approx(dict(checkpoint.scores), rel=1e-5)


def test_the_averaged_weights_are_scored_and_stored_where_they_are_wanted(
    train: Train, jobs: Jobs, tmp_path: Path
) -> None:
    train(jobs(tmp_path, max_epochs=1, ema_decay=0.9, learning_rate=0.01))
    state = TrainState.load(RunFolder(tmp_path).state)
    stored = Checkpoint.load(RunFolder(tmp_path).model("val")).weights
    assert state.ema is not None
    for name, weight in stored.items():
        assert torch.equal(weight, state.ema[name])
    assert any(not torch.equal(weight, state.model[name]) for name, weight in stored.items())


def test_the_rate_follows_its_schedule(train: Train, jobs: Jobs, tmp_path: Path, history_of: History) -> None:
    train(jobs(tmp_path, max_epochs=4, learning_rate=0.01, schedule="cosine"))
    rates = [line["learning_rate"] for line in history_of(tmp_path)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_patience_ends_a_run_that_no_longer_improves(
    train: Train, jobs: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture, history_of: History
) -> None:
    with caplog.at_level(logging.INFO, logger="denoise"):
        train(jobs(tmp_path, max_epochs=50, learning_rate=1e-12, patience=3))
    history = history_of(tmp_path)
    best = min(history, key=lambda line: float(line["val_l1"]))["epoch"]
    assert len(history) < 50
    assert history[-1]["epoch"] == best + 3
    assert f"the held-out score had all but stopped improving at step {history[-1]['step']}" in caplog.text


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_scores_come_at_their_interval_and_after_the_last_epoch(
    train: Train, jobs: Jobs, tmp_path: Path, every: int, epochs: list[int], history_of: History
) -> None:
    train(jobs(tmp_path, max_epochs=5, validate_every=every, patches_per_epoch=4))
    assert [line["epoch"] for line in history_of(tmp_path)] == epochs


def test_an_epoch_visits_every_slice_whatever_the_batch_size(train: Train, jobs: Jobs, tmp_path: Path) -> None:
    watcher = train(jobs(tmp_path, max_epochs=1, patches_per_epoch=None, batch_size=100))
    # 12 slices of which one is held out with a gap of one slice on either side: few, and visited again and again.
    assert watcher.plan.steps_per_epoch == -(-FEWEST_PATCHES // 100)
    assert [step for step, _, _ in watcher.steps] == list(range(1, watcher.plan.steps_per_epoch + 1))
    assert watcher.closed == 1


def test_the_training_loss_is_the_mean_over_all_steps_since_the_last_score(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history_of: History
) -> None:
    losses: list[float] = []
    step = TrainingRun._step

    def remembered(self: TrainingRun, blocks: torch.Tensor, rate: float) -> torch.Tensor:
        loss = step(self, blocks, rate)
        losses.append(float(loss))
        return loss

    monkeypatch.setattr(TrainingRun, "_step", remembered)
    train(jobs(tmp_path, max_epochs=4, validate_every=2))
    assert [line["train_loss"] for line in history_of(tmp_path)] == pytest.approx(
        [np.mean(losses[:4]), np.mean(losses[4:])], rel=1e-6
    )


# Starting from a model


def test_a_run_that_starts_from_a_model_starts_at_its_score(
    train: Train, jobs: Jobs, tmp_path: Path, history_of: History, assert_same: Same
) -> None:
    settings = {"learning_rate": 3e-3, "loss": "l2", "lcl_weight": 0.0}
    train(jobs(tmp_path / "first", max_epochs=12, **settings))
    first = history_of(tmp_path / "first")
    weights = Checkpoint.load(RunFolder(tmp_path / "first").model("val")).weights
    copies = {name: weight.clone() for name, weight in weights.items()}
    train(jobs(tmp_path / "second", initial=weights, max_epochs=1, **{**settings, "learning_rate": 1e-5}))
    (second,) = history_of(tmp_path / "second")
    assert second["val_l2"] == pytest.approx(min(line["val_l2"] for line in first), rel=0.03)
    assert second["val_l2"] < 0.9 * first[0]["val_l2"]
    assert_same(weights, copies)


# Minutes


class Stopwatch:
    """The time of a run as the test has it: a second per step, five to read the splits, and so many per score."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, score_seconds: Callable[[int], float] = lambda count: 2
    ) -> None:
        self.now = 1000.0
        self.rates: list[float] = []
        self.scores = 0
        step, scores, open_blocks = TrainingRun._step, Validator.scores, opening.open_blocks

        def slow_reading(*arguments: Any) -> Any:
            self.now += 5
            return open_blocks(*arguments)

        def slow_step(run: TrainingRun, blocks: torch.Tensor, rate: float) -> torch.Tensor:
            self.now += 1
            self.rates.append(rate)
            return step(run, blocks, rate)

        def slow_scores(validator: Validator, *arguments: Any) -> Any:
            self.scores += 1
            self.now += score_seconds(self.scores)
            return scores(validator, *arguments)

        monkeypatch.setattr(opening, "open_blocks", slow_reading)
        monkeypatch.setattr(TrainingRun, "_step", slow_step)
        monkeypatch.setattr(Validator, "scores", slow_scores)
        for module in (loop, course):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))


#: Ten steps an epoch, and far more epochs than a minute has room for.
A_MINUTE: dict[str, Any] = {"max_epochs": 10_000, "max_minutes": 1.0, "patches_per_epoch": 10, "batch_size": 1}


@pytest.mark.parametrize("schedule", ["hold", "cosine", "constant"])
def test_a_run_ends_with_its_minutes_in_mid_epoch_and_is_scored_once_more(
    train: Train,
    jobs: Jobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    history_of: History,
    caplog: pytest.LogCaptureFixture,
    schedule: str,
) -> None:
    watch = Stopwatch(monkeypatch)
    job = jobs(tmp_path, schedule=schedule, learning_rate=1e-3, **A_MINUTE)
    with caplog.at_level(logging.INFO, logger="denoise"):
        watcher = train(job)
    # 5 s of reading, five scores of 2 s, and the rest are steps.
    assert watch.now - 1000 == 60
    assert watcher.steps[-1][0] == len(watch.rates) == 45
    assert "after 45 steps: its minute is used" in caplog.text
    last = history_of(tmp_path)[-1]
    assert (last["step"], last["epoch"], last["done"]) == (45, 5, 1.0)
    assert TrainState.load(RunFolder(tmp_path).state).progress["step"] == 45
    assert RunFolder(tmp_path).model("val").exists()
    if schedule == "constant":
        assert set(watch.rates) == {1e-3}
    else:
        assert last["learning_rate"] == 0.0
        assert watch.rates[-1] < 0.1e-3, "it fell over the minutes, not over the epochs"
        assert watch.rates[-10:] == sorted(watch.rates[-10:], reverse=True)


def test_a_run_whose_minutes_are_used_is_resumed_to_no_further_step_but_goes_on_with_more_minutes(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history_of: History
) -> None:
    watch = Stopwatch(monkeypatch)
    train(jobs(tmp_path, **A_MINUTE))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*best*")}
    watch.now += 10_000
    again = train(jobs(tmp_path, resume=True, **A_MINUTE))
    assert again.steps == []
    assert again.records == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*best*")} == before
    assert len(history_of(tmp_path)) == 5
    longer = train(jobs(tmp_path, resume=True, **{**A_MINUTE, "max_minutes": 1.5}))
    assert longer.steps[0][0] == 46
    assert len(longer.steps) == pytest.approx(30 - 10 - 6, abs=2), "half a minute, of which ten seconds are reading"
    steps = [line["step"] for line in history_of(tmp_path)]
    assert steps[4:6] == [45, 50], "the epoch that was left in its middle is finished first"


def test_a_run_that_is_over_stays_over_when_the_last_score_took_less_time_than_those_before(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody wants a few more steps, at a rate that rises again, for the sake of one second."""
    watch = Stopwatch(monkeypatch, lambda count: 2 if count < 5 else 1)
    watcher = train(jobs(tmp_path, schedule="cosine", **A_MINUTE))
    assert len(watcher.steps) == 45
    assert watcher.records[-1].done == 1.0
    assert watch.rates == sorted(watch.rates, reverse=True)
    assert train(jobs(tmp_path, resume=True, schedule="cosine", **A_MINUTE)).steps == []


@pytest.mark.parametrize("schedule", ["hold", "cosine"])
def test_minutes_are_those_of_the_clock_on_the_wall(
    train: Train, jobs: Jobs, tmp_path: Path, history_of: History, schedule: str
) -> None:
    limits = {"max_epochs": 10**6, "max_minutes": 0.03, "schedule": schedule}
    begun = time.monotonic()
    train(jobs(tmp_path, **limits))
    assert 1.0 < time.monotonic() - begun < 20
    last = history_of(tmp_path)[-1]
    assert last["learning_rate"] < 0.05e-3
    assert last["step"] < 10**5
    assert RunFolder(tmp_path).model("val").exists()
    assert train(jobs(tmp_path, resume=True, **limits)).steps == []


@pytest.mark.parametrize("averaged", [None, 0.5])
def test_a_model_of_an_epoch_that_was_not_finished_says_what_the_history_says(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, averaged: float | None
) -> None:
    Stopwatch(monkeypatch)
    better = iter(range(100, 0, -1))
    scores = Validator.scores

    def ever_better(validator: Validator, *arguments: Any) -> Any:
        found, preview = scores(validator, *arguments)
        return replace(found, l1=float(next(better))), preview

    monkeypatch.setattr(Validator, "scores", ever_better)
    watcher = train(jobs(tmp_path, ema_decay=averaged, **A_MINUTE))
    best = Checkpoint.load(RunFolder(tmp_path).model("val"))
    assert (best.epoch, best.step) == (watcher.records[-1].epoch, watcher.records[-1].step) == (5, 45)


# Scores that no longer improve


@pytest.fixture
def flat_after_36_steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The held-out error falls by a fifth per four steps until then; a list of the rates of all steps."""
    scored, step = course.Course.scored, TrainingRun._step
    rates: list[float] = []

    def scripted(self: course.Course, error: float, seconds: float) -> None:
        scored(self, 0.8 ** min(self._progress.step / 4, 9), seconds)

    def remembered(self: TrainingRun, blocks: torch.Tensor, rate: float) -> torch.Tensor:
        rates.append(rate)
        return step(self, blocks, rate)

    monkeypatch.setattr(course, "_FEWEST_STEPS", 0)
    monkeypatch.setattr(course.Course, "scored", scripted)
    monkeypatch.setattr(TrainingRun, "_step", remembered)
    return rates


#: Four steps an epoch. Of 56 steps the last third, from step 37 on, gains nothing.
PLATEAU: dict[str, Any] = {"patches_per_epoch": 4, "batch_size": 1, "learning_rate": 1e-3}


def test_a_held_rate_falls_once_the_score_is_flat_and_then_the_run_ends(
    train: Train,
    jobs: Jobs,
    tmp_path: Path,
    flat_after_36_steps: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    rates = flat_after_36_steps
    with caplog.at_level(logging.INFO, logger="denoise"):
        watcher = train(jobs(tmp_path, max_epochs=10_000, schedule="hold", **PLATEAU))
    assert "stopped improving at step 56" in caplog.text
    # 56 steps are three fifths of 93.3.
    assert len(rates) == 94
    assert rates == [
        pytest.approx(Schedule("hold", 1e-3).rate(n, n / 94)) if n >= 56 else rate for n, rate in enumerate(rates)
    ]
    assert rates[56:] == sorted(rates[56:], reverse=True)
    assert rates[55] == max(rates) == 1e-3
    assert rates[-1] < 0.05e-3
    last = watcher.records[-1]
    assert (last.step, last.epoch, last.done, last.learning_rate) == (94, 24, 1.0, 0.0)
    assert RunFolder(tmp_path).state.exists()
    assert train(jobs(tmp_path, max_epochs=10_000, schedule="hold", resume=True, **PLATEAU)).steps == []


def test_a_constant_rate_ends_where_the_score_is_flat_and_a_cosine_goes_on(
    train: Train, jobs: Jobs, tmp_path: Path, flat_after_36_steps: list[float]
) -> None:
    assert train(jobs(tmp_path / "a", max_epochs=30, schedule="constant", **PLATEAU)).steps[-1][0] == 56
    assert train(jobs(tmp_path / "b", max_epochs=30, schedule="cosine", **PLATEAU)).steps[-1][0] == 120


@pytest.mark.parametrize("schedule", ["hold", "constant"])
def test_without_patience_all_epochs_are_trained_however_flat_the_score(
    train: Train, jobs: Jobs, tmp_path: Path, flat_after_36_steps: list[float], schedule: str
) -> None:
    watcher = train(jobs(tmp_path, max_epochs=30, schedule=schedule, patience=0, **PLATEAU))
    assert watcher.steps[-1][0] == 120


@pytest.mark.parametrize("stop_after", [50, 56, 70, 94])
def test_a_run_that_was_stopped_before_or_while_its_rate_fell_ends_as_if_it_had_not_been(
    train: Train,
    jobs: Jobs,
    tmp_path: Path,
    flat_after_36_steps: list[float],
    stop_after: int,
    assert_same_run: Same,
) -> None:
    settings = {"max_epochs": 10_000, "schedule": "hold", **PLATEAU}
    train(jobs(tmp_path / "whole", **settings))
    with pytest.raises(Interrupted):
        train(jobs(tmp_path / "parts", **settings), {stop_after: lambda: signal.raise_signal(signal.SIGTERM)})
    train(jobs(tmp_path / "parts", resume=True, **settings))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
