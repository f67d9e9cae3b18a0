from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from denoise.checkpoint import CRITERIA, Checkpoint, RunFolder, TrainState
from denoise.errors import CheckpointError, DenoiseError, DeviceError, Interrupted, VolumeError
from denoise.launch import World
from denoise.networks.spec import NetworkSpec
from denoise.tiles import Triple
from denoise.training import data
from denoise.training.job import TrainJob
from denoise.training.loop import TrainingRun
from denoise.training.observers import read_history

Train = Callable[..., Any]
Jobs = Callable[..., TrainJob]
Splits = Callable[..., Any]

FLAT = NetworkSpec("residual2d", {"n_slices": 3, "width": 16, "levels": 2})
DEEP = NetworkSpec("residual3d", {"width": 8, "levels": 2})
#: What two equal runs need not share.
_CLOCK = ("seconds", "blocks_per_second")


def history_of(folder: Path) -> list[dict[str, Any]]:
    """Every line, without what the clock says."""
    lines = read_history(RunFolder(folder).history)
    return [{name: value for name, value in line.items() if name not in _CLOCK} for line in lines]


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """The same bits, all the way down."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_same(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert one == other, where


def assert_same_run(one: Path, other: Path, *, history: bool = True) -> None:
    """The same final state, the same best models and the same scores on the way."""
    states = [TrainState.load(RunFolder(folder).state) for folder in (one, other)]
    for state in states:
        del state.progress["seconds"]
    for name in ("model", "ema", "optimizer", "progress", "generator", "normalization", "fingerprint"):
        assert_same(getattr(states[0], name), getattr(states[1], name), name)
    for criterion in CRITERIA:
        files = [RunFolder(folder).model(criterion) for folder in (one, other)]
        assert files[0].exists() == files[1].exists(), criterion
        if files[0].exists():
            models = [Checkpoint.load(file) for file in files]
            for name in ("weights", "epoch", "step", "scores", "normalization"):
                assert_same(getattr(models[0], name), getattr(models[1], name), f"{criterion}.{name}")
    if history:
        for a, b in zip(history_of(one), history_of(other), strict=True):
            # Summed in two parts by the run that was interrupted.
            assert a.pop("train_loss") == pytest.approx(b.pop("train_loss"), rel=1e-12)
            assert_same(a, b)


def stop_now() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# Learning


@pytest.mark.parametrize(("network", "epochs"), [(FLAT, 10), (DEEP, 6)], ids=["2.5d", "3d"])
def test_the_loss_falls_on_a_noise2noise_problem(
    train: Train, jobs: Jobs, tmp_path: Path, network: NetworkSpec, epochs: int
) -> None:
    train(jobs(tmp_path, network, max_epochs=epochs, learning_rate=3e-3, loss="l2", lcl_weight=0.0))
    history = history_of(tmp_path)
    assert history[-1]["train_loss"] < 0.85 * history[0]["train_loss"]
    assert history[-1]["val_l2"] < 0.9 * history[0]["val_l2"]


@pytest.mark.parametrize("network", [FLAT, DEEP], ids=["2.5d", "3d"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    train: Train, jobs: Jobs, tmp_path: Path, network: NetworkSpec
) -> None:
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        train(jobs(tmp_path / name, network, seed=seed, max_epochs=1))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    states = [TrainState.load(RunFolder(tmp_path / name).state).model for name in ("a", "c")]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_callers_random_numbers_do_not_change_a_run(train: Train, jobs: Jobs, tmp_path: Path) -> None:
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
    watcher = train(jobs(tmp_path, splits=splits, strategy=strategy, loss=loss, max_epochs=3, learning_rate=3e-3))
    assert watcher.records[-1].train_loss < watcher.records[0].train_loss


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
    train: Train, jobs: Jobs, splits_of: Splits, noise: Splits, tmp_path: Path, dtype: type[np.generic]
) -> None:
    offset, gain = (35000, 4000) if dtype is np.uint16 else (100, 20)
    arrays = [np.clip(np.round(a * gain + offset), 1, np.iinfo(dtype).max).astype(dtype) for a in noise()]
    for name, kind in [("integers", dtype), ("floats", np.float32)]:
        train(jobs(tmp_path / name, splits=splits_of([a.astype(kind) for a in arrays]), max_epochs=1))
    assert_same_run(tmp_path / "integers", tmp_path / "floats")


def test_training_slices_may_be_limited_and_the_others_are_neighbours_only(
    train: Train, jobs: Jobs, splits_of: Splits, noise: Splits, tmp_path: Path
) -> None:
    """Voxels far from the chosen slices may be anything: they change the normalisation, nothing else."""
    arrays = noise((30, 32, 32))
    watcher = train(jobs(tmp_path / "a", splits=splits_of(arrays), train_slices=range(3, 12)))
    assert watcher.plan.validation_blocks == 4
    run = TrainingRun(World(0, 1, torch.device("cpu")), jobs(tmp_path / "b", train_slices=range(3, 12)))
    read = [place.region for place in run.sampler.places(0, range(50))]
    assert min(region.start_zyx[0] for region in read) >= 2
    assert max(region.stop_zyx[0] for region in read) <= 13
    run.close()


# Settings


def test_the_contrast_loss_and_the_sharpness_checkpoints_come_after_the_warm_up_only(
    train: Train, jobs: Jobs, tmp_path: Path
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
    train: Train, jobs: Jobs, tmp_path: Path, ema_decay: float | None
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
        assert checkpoint.scores == {name: line[f"val_{name}"] for name in ("l1", "l2", "lcl", "edge")}
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
    scores, _ = run.validator.scores(checkpoint.build(), run.source, torch.float32)
    run.close()
    assert checkpoint.normalization == run.source.normalization
    assert vars(scores) == pytest.approx(dict(checkpoint.scores), rel=1e-5)


def test_the_averaged_weights_are_scored_and_stored_where_they_are_wanted(
    train: Train, jobs: Jobs, tmp_path: Path
) -> None:
    train(jobs(tmp_path, max_epochs=1, ema_decay=0.9, learning_rate=0.01))
    state = TrainState.load(RunFolder(tmp_path).state)
    stored = Checkpoint.load(RunFolder(tmp_path).model("val")).weights
    assert state.ema is not None
    for name, weight in stored.items():
        assert torch.equal(weight, state.ema[f"module.{name}"])
    assert any(not torch.equal(weight, state.model[name]) for name, weight in stored.items())


def test_the_rate_follows_its_schedule(train: Train, jobs: Jobs, tmp_path: Path) -> None:
    train(jobs(tmp_path, max_epochs=4, learning_rate=0.01, schedule="cosine"))
    rates = [line["learning_rate"] for line in history_of(tmp_path)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_patience_ends_a_run_that_no_longer_improves(
    train: Train, jobs: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="denoise"):
        train(jobs(tmp_path, max_epochs=50, learning_rate=1e-12, patience=3))
    history = history_of(tmp_path)
    best = min(history, key=lambda line: float(line["val_l1"]))["epoch"]
    assert len(history) < 50
    assert history[-1]["epoch"] == best + 3
    assert "no better held-out score for 3 epochs" in caplog.text


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_scores_come_at_their_interval_and_after_the_last_epoch(
    train: Train, jobs: Jobs, tmp_path: Path, every: int, epochs: list[int]
) -> None:
    train(jobs(tmp_path, max_epochs=5, validate_every=every, patches_per_epoch=4))
    assert [line["epoch"] for line in history_of(tmp_path)] == epochs


def test_an_epoch_visits_every_slice_whatever_the_batch_size(train: Train, jobs: Jobs, tmp_path: Path) -> None:
    watcher = train(jobs(tmp_path, max_epochs=1, patches_per_epoch=None, batch_size=3))
    # 12 slices of which one is held out with a gap of one slice on either side.
    assert watcher.plan.steps_per_epoch == 3
    assert [step for step, _, _ in watcher.steps] == [1, 2, 3]
    assert watcher.closed == 1


def test_the_training_loss_is_the_mean_over_all_steps_since_the_last_score(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


# Resuming


@pytest.mark.parametrize("stop_after", [3, 4, 7], ids=lambda n: f"step {n}")
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
    train: Train, jobs: Jobs, tmp_path: Path, network: NetworkSpec, settings: dict[str, Any], stop_after: int
) -> None:
    """In mid-epoch and at its last step, bit for bit."""
    settings = {"max_epochs": 4, "warmup_steps": 3, "learning_rate": 0.01, **settings}
    train(jobs(tmp_path / "whole", network, **settings))
    with pytest.raises(Interrupted, match=r"--resume") as stopped:
        train(jobs(tmp_path / "parts", network, **settings), {stop_after: stop_now})
    assert stopped.value.exit_code == 143
    assert TrainState.load(RunFolder(tmp_path / "parts").state).progress["step"] == stop_after
    watcher = train(jobs(tmp_path / "parts", network, resume=True, **settings))
    assert watcher.steps[0][0] == stop_after + 1
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_more_epochs_continue_a_run_that_was_done(train: Train, jobs: Jobs, tmp_path: Path) -> None:
    train(jobs(tmp_path / "whole", max_epochs=4))
    train(jobs(tmp_path / "parts", max_epochs=2))
    train(jobs(tmp_path / "parts", max_epochs=4, resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resuming_a_run_that_is_done_changes_nothing(train: Train, jobs: Jobs, tmp_path: Path) -> None:
    train(jobs(tmp_path / "a"))
    train(jobs(tmp_path / "b"))
    watcher = train(jobs(tmp_path / "b", resume=True))
    assert watcher.steps == []
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_run_that_was_killed_repeats_what_was_not_saved(train: Train, jobs: Jobs, tmp_path: Path) -> None:
    """The state lags behind the history and the best model, as after a power failure."""
    train(jobs(tmp_path / "whole", max_epochs=4))
    train(jobs(tmp_path / "parts", max_epochs=2))
    earlier = RunFolder(tmp_path / "parts").state.read_bytes()
    train(jobs(tmp_path / "parts", max_epochs=3, resume=True))
    RunFolder(tmp_path / "parts").state.write_bytes(earlier)
    with RunFolder(tmp_path / "parts").history.open("a", encoding="utf-8") as history:
        history.write('{"epoch": 4, "st')
    train(jobs(tmp_path / "parts", max_epochs=4, resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_state_is_saved_now_and_then(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        ({"ema_decay": 0.9}, r"ema_decay = None, the config now has 0\.9"),
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


def test_resuming_with_other_splits_is_refused(
    train: Train, jobs: Jobs, splits_of: Splits, noise: Splits, tmp_path: Path
) -> None:
    train(jobs(tmp_path, max_epochs=1))
    with pytest.raises(CheckpointError, match=r"shape = \[12, 32, 32\], the config now has \[13, 32, 32\]"):
        train(jobs(tmp_path, splits=splits_of(noise((13, 32, 32))), resume=True))


def test_resuming_without_a_state_says_so(train: Train, jobs: Jobs, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"resume_state\.pth"):
        train(jobs(tmp_path, resume=True))


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


# Starting from a model


def test_a_run_that_starts_from_a_model_starts_at_its_score(train: Train, jobs: Jobs, tmp_path: Path) -> None:
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


# What goes wrong


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


def test_memory_that_is_too_small_is_a_device_error(
    train: Train, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: TrainingRun, blocks: torch.Tensor, rate: float) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingRun, "_step", full)
    with pytest.raises(DeviceError, match=r"4 blocks of 16 voxels.*train\.batch_size"):
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


# Where the data is


@pytest.mark.parametrize("network", [FLAT, DEEP], ids=["2.5d", "3d"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_splits_that_do_not_fit_into_memory_train_to_the_same_bits(
    train: Train,
    jobs: Jobs,
    splits_of: Splits,
    noise: Callable[..., list[NDArray[np.float32]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: NetworkSpec,
    dtype: type[np.generic],
) -> None:
    arrays = [(a * 1000 + 33000).astype(dtype) for a in noise((20, 24, 24))]
    train(jobs(tmp_path / "resident", network, splits_of(arrays)))
    monkeypatch.setattr(data.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(data.ResidentBlocks, "read", None)
    train(jobs(tmp_path / "streamed", network, splits_of(arrays)))
    assert_same_run(tmp_path / "resident", tmp_path / "streamed")


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
