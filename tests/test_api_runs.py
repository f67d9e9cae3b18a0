from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from denoise.api import load_checkpoint, train
from denoise.checkpoint import TrainState
from denoise.cluster import Spread
from denoise.errors import CheckpointError, ConfigError, DeviceError, Interrupted, OutputError
from denoise.launch import Compute
from denoise.run_folder import RunFolder
from denoise.training import observers
from denoise.training.job import Plan, Record
from denoise.training.validation import Preview

if TYPE_CHECKING:
    from gpus import Gpus

pytest_plugins = ("gpus",)

CPU = Compute(device="cpu")
TINY: dict[str, Any] = {
    "network": "residual",
    "n_slices": 3,
    "levels": 2,
    "patch_size": 16,
    "patch_size_3d": 8,
    "batch_size": 4,
    "patches_per_epoch": 8,
    "patches_per_epoch_3d": 8,
    "max_epochs": 2,
    "validate_every": 1,
    "precision": "float32",
    "compute": CPU,
}

Images = NDArray[np.float32]


def truth_of(shape: tuple[int, int, int] = (12, 32, 32)) -> Images:
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return (1000 + 200 * (np.abs(y) + 0.5 * np.abs(z) < 0.6) + 150 * ((x - 0.2) ** 2 + y**2 < 0.3)).astype(np.float32)


def splits_of(truth: Images, count: int = 2, noise: float = 120.0) -> list[Images]:
    rng = np.random.default_rng(7)
    return [(truth + rng.normal(0, noise, truth.shape)).astype(np.float32) for _ in range(count)]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures: they cost more than these runs."""
    monkeypatch.setattr(observers, "draw_preview", lambda *_: None)
    monkeypatch.setattr(observers, "draw_curves", lambda *_: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small finished run that tests only look at."""
    folder = tmp_path_factory.mktemp("api") / "model"
    train(splits_of(truth_of()), folder, **{**TINY, "max_epochs": 12, "learning_rate": 3e-3, "loss": "l2"})
    before = contents(folder)
    yield folder
    assert contents(folder) == before, "a test changed the run that it was given"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 17}, "patch_size"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"colour": "red"}, "colour"),
        ({"network": "residual3d"}, "mode"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(splits_of(truth_of()), tmp_path / "model", **{**TINY, **changes})
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="tpu"):
        train(splits_of(truth_of()), tmp_path / "model", **{**TINY, "compute": Compute(device="tpu")})
    assert list(tmp_path.iterdir()) == []


# Runs that exist


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("visible", "batch", "compute", "taken"),
    [
        (8, 4, Compute(), 4),
        (2, 4, Compute(), 2),
        (4, 1, Compute(device="cuda"), 1),
        (4, 2, Compute(gpus=(0, 1, 3)), 3),
        (4, 4, Compute(spread=Spread(nodes=2, node_rank=0, rendezvous="a:1")), 2),
        (4, 1, Compute(spread=Spread(nodes=2, node_rank=0, rendezvous="a:1")), 1),
        (0, 1, Compute(processes=3), 3),
    ],
    ids=["more GPUs than blocks", "fewer", "one block", "those that were named", "two nodes", "too few", "CPU"],
)
def test_a_run_takes_no_more_gpus_than_it_has_blocks_for_unless_they_were_named(
    gpus: Gpus, visible: int, batch: int, compute: Compute, taken: int
) -> None:
    gpus(visible)
    assert len(compute.training_devices(batch)) == taken
    assert len(compute.devices()) == (3 if compute.gpus or compute.processes else visible)


def test_processes_that_a_scheduler_has_started_keep_all_gpus_in_view(
    gpus: Gpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes the one of its number; how many blocks a step needs for that is said when they have met."""
    gpus(8)
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}
    for name, value in {**torchrun, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert len(Compute().training_devices(4)) == 8
    assert len(Compute(spread=Spread(nodes=1)).training_devices(4)) == 4


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(run: Path) -> None:
    before = contents(run)
    with pytest.raises(OutputError, match=r"holds a training run already.*--resume"):
        train(splits_of(truth_of()), run, **TINY)
    assert contents(run) == before


@pytest.mark.usefixtures("quiet")
def test_a_folder_of_the_user_keeps_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    train(splits_of(truth_of()), tmp_path, **{**TINY, "max_epochs": 1})
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.usefixtures("quiet")
def test_resuming_where_nothing_has_begun_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        train(splits_of(truth_of()), tmp_path / "model", resume=True, **{**TINY, "max_epochs": 1})
    assert f"nothing to resume in {tmp_path / 'model'} yet" in caplog.text


@pytest.mark.usefixtures("quiet")
def test_a_run_goes_on_with_the_batch_that_it_was_begun_with_on_whatever_device(tmp_path: Path) -> None:
    """A GPU takes larger batches by itself: a run that began on one must not be refused on a CPU, nor change."""
    splits, as_on_a_gpu = splits_of(truth_of()), {**TINY, "batch_size": 2, "max_epochs": 1}
    train(splits, tmp_path / "model", **as_on_a_gpu)
    unsaid = {**TINY, "batch_size": None, "max_epochs": 2}
    train(splits, tmp_path / "model", resume=True, **unsaid)
    assert TrainState.load(RunFolder(tmp_path / "model").state).progress["step"] == 8
    with pytest.raises(CheckpointError, match="saved with batch_size = 2, the config now has 4"):
        train(splits, tmp_path / "model", resume=True, **{**TINY, "max_epochs": 3})


@pytest.mark.usefixtures("quiet")
def test_a_stopped_run_resumes_to_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = splits_of(truth_of())
    whole = train(splits, tmp_path / "whole", **TINY)
    stepped = observers.History.stepped

    def stop(self: observers.History, step: int, epoch: int, done: float, loss: float | None) -> None:
        stepped(self, step, epoch, done, loss)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(observers.History, "stepped", stop)
        with pytest.raises(Interrupted) as stopped:
            train(splits, tmp_path / "parts", **TINY)
    assert stopped.value.exit_code == 143
    parts = train(splits, tmp_path / "parts", resume=True, **TINY)
    assert parts.scores == whole.scores
    assert all(torch.equal(weight, parts.weights[name]) for name, weight in whole.weights.items())


@pytest.mark.usefixtures("quiet")
def test_observers_of_the_callers_are_told_of_steps_and_scores(tmp_path: Path) -> None:
    class Listener:
        def __init__(self) -> None:
            self.told: list[str] = []

        def started(self, plan: Plan) -> None:
            self.told.append(f"at most {plan.most_steps} steps")

        def stepped(self, step: int, epoch: int, done: float, loss: float | None) -> None:
            self.told.append(f"step {step} of epoch {epoch}")

        def validated(self, record: Record, preview: Preview | None) -> None:
            self.told.append(f"{record.done:.0%} done")

        def close(self) -> None:
            self.told.append("closed")

    listener = Listener()
    train(splits_of(truth_of()), tmp_path / "model", observers=[listener], **TINY)
    assert listener.told == [
        "at most 4 steps",
        "step 1 of epoch 0",
        "step 2 of epoch 0",
        "50% done",
        "step 3 of epoch 1",
        "step 4 of epoch 1",
        "100% done",
        "closed",
    ]


# Starting from a model


@pytest.mark.usefixtures("quiet")
def test_finetuning_starts_from_the_model_and_never_changes_it(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    settings = {**TINY, "max_epochs": 1, "learning_rate": 1e-6, "loss": "l2"}
    fresh = train(splits_of(truth_of()), tmp_path / "fresh", **settings)
    for source in (run, run / "best_val_model.pth"):
        tuned = train(splits_of(truth_of()), tmp_path / f"tuned_{source.name}", finetune=source, **settings)
        assert tuned.scores["l2"] == pytest.approx(load_checkpoint(run).scores["l2"], rel=0.01)
        assert tuned.scores["l2"] < 0.9 * fresh.scores["l2"]
    assert contents(run) == before


@pytest.mark.usefixtures("quiet")
def test_finetuning_a_model_of_an_earlier_version_keeps_its_network(run: Path, tmp_path: Path) -> None:
    model = load_checkpoint(run)
    older = replace(model, network=replace(model.network, options={**model.network.options, "rectified_sums": 1}))
    older.save(tmp_path / "older.pth")
    settings = {**TINY, "max_epochs": 1, "learning_rate": 1e-9}
    tuned = train(splits_of(truth_of()), tmp_path / "tuned", finetune=tmp_path / "older.pth", **settings)
    assert tuned.network.options["rectified_sums"] == 1
    block = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(tuned.build()(block), older.build()(block), rtol=1e-3, atol=1e-3)
    resumed = train(splits_of(truth_of()), tmp_path / "tuned", resume=True, **{**settings, "max_epochs": 2})
    assert resumed.network == tuned.network


def test_finetuning_another_network_is_refused_with_both_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"residual2d \(n_slices 3, .*residual2d \(n_slices 5, "):
        train(splits_of(truth_of()), tmp_path / "model", finetune=run, **{**TINY, "n_slices": 5})
    with pytest.raises(CheckpointError, match=r"residual2d .* asks for .*residual3d"):
        train(splits_of(truth_of()), tmp_path / "model", finetune=run, mode="3d", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_finetuning_into_the_folder_of_the_model_is_refused(run: Path) -> None:
    with pytest.raises(OutputError, match="holds a training run already"):
        train(splits_of(truth_of()), run, finetune=run, **TINY)
