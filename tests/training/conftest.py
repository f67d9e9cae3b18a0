"""Tiny Noise2Noise problems and runs on them, all on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from denoise.checkpoint import Checkpoint, TrainState
from denoise.config.train_section import TrainSection
from denoise.launch import World
from denoise.networks.spec import NetworkSpec
from denoise.run_folder import CRITERIA, RunFolder
from denoise.tiles import Triple
from denoise.training.job import Observer, Plan, Record, TrainJob
from denoise.training.loop import run_worker
from denoise.training.objective import Objective
from denoise.training.observers import read_history
from denoise.training.schedule import Schedule
from denoise.training.validation import Preview
from denoise.volumes.volume import ArrayVolume, SplitSet

CPU = World(0, 1, torch.device("cpu"))

FLAT = NetworkSpec("residual2d", {"n_slices": 3, "width": 16, "levels": 2})
DEEP = NetworkSpec("residual3d", {"width": 8, "levels": 2})


def noisy_splits(shape: Triple = (12, 32, 32), count: int = 2, seed: int = 0) -> list[NDArray[np.float32]]:
    """A box and a ball, and independent noise of the same strength in every split."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape), indexing="ij")
    truth = 2.0 * (np.abs(y) + 0.5 * np.abs(z) < 0.6) + 1.5 * ((x - 0.2) ** 2 + y**2 < 0.3)
    return [(truth + rng.normal(0, 1, shape)).astype(np.float32) for _ in range(count)]


def split_set(arrays: list[NDArray[Any]], first_slice: int = 0) -> SplitSet:
    return SplitSet.of([ArrayVolume(a, f"recon_{k}", None, first_slice) for k, a in enumerate(arrays)])


def make_job(folder: Path, network: NetworkSpec = FLAT, splits: SplitSet | None = None, **changes: Any) -> TrainJob:
    """A run of two epochs in a second or less; ``changes`` are fields of the job or of its settings."""
    deep = network.name.endswith("3d")
    job = {
        "patch_size": 8 if deep else 16,
        "batch_size": 4,
        "patches_per_epoch": 8,
        "show_progress": False,
        "schedule": Schedule(changes.pop("schedule", "constant"), changes.pop("learning_rate", 1e-3)),
        "objective": Objective(**{f.name: changes.pop(f.name, f.default) for f in fields(Objective)}),
        **{name: changes.pop(name) for name in list(changes) if name in TrainJob.__dataclass_fields__},
    }
    settings = TrainSection(**{"precision": "float32", "max_epochs": 2, "validate_every": 1, **changes})
    folder.mkdir(exist_ok=True)
    return TrainJob(
        splits=splits or split_set(noisy_splits()), network=network, settings=settings, folder=folder, **job
    )


class Watcher:
    """An observer that keeps what it was told, and may do something after a step or a validation."""

    def __init__(self, after_step: dict[int, Callable[[], None]] | None = None) -> None:
        self.after_step = after_step or {}
        self.plan: Plan | None = None
        self.steps: list[tuple[int, int, float | None]] = []
        self.records: list[Record] = []
        self.previews: list[Preview | None] = []
        self.closed = 0
        self.on_validation: Callable[[Record], None] = lambda record: None

    def started(self, plan: Plan) -> None:
        self.plan = plan

    def stepped(self, step: int, epoch: int, done: float, loss: float | None) -> None:
        self.steps.append((step, epoch, loss))
        self.after_step.get(step, lambda: None)()

    def validated(self, record: Record, preview: Preview | None) -> None:
        self.records.append(record)
        self.previews.append(preview)
        self.on_validation(record)

    def close(self) -> None:
        self.closed += 1


#: What two equal runs need not share.
_CLOCK = ("seconds", "blocks_per_second")


def comparable_history(folder: Path, *, leave_out: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Every line, without what the clock says."""
    lines = read_history(RunFolder(folder).history)
    return [{name: value for name, value in line.items() if name not in (*_CLOCK, *leave_out)} for line in lines]


def require_same(one: Any, other: Any, where: str = "") -> None:
    """The same bits, all the way down."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            require_same(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            require_same(a, b, f"{where}[{i}]")
    else:
        assert one == other, where


def require_same_run(one: Path, other: Path, *, planned_alike: bool = True) -> None:
    """The same final state, the same best models and the same scores on the way.

    Of runs that were planned for another number of epochs, "done" does not mean the same on the way.
    """
    states = [TrainState.load(RunFolder(folder).state) for folder in (one, other)]
    for state in states:
        for clock in ("seconds", "elapsed", "validation_seconds"):
            del state.progress[clock]
    for name in ("model", "ema", "optimizer", "progress", "generator", "normalization", "fingerprint"):
        require_same(getattr(states[0], name), getattr(states[1], name), name)
    for criterion in CRITERIA:
        files = [RunFolder(folder).model(criterion) for folder in (one, other)]
        assert files[0].exists() == files[1].exists(), criterion
        if files[0].exists():
            models = [Checkpoint.load(file) for file in files]
            for name in ("weights", "epoch", "step", "scores", "normalization"):
                require_same(getattr(models[0], name), getattr(models[1], name), f"{criterion}.{name}")
    leave_out = () if planned_alike else ("done",)
    lines = (comparable_history(folder, leave_out=leave_out) for folder in (one, other))
    for a, b in zip(*lines, strict=True):
        # Summed in two parts by the run that was interrupted.
        assert a.pop("train_loss") == pytest.approx(b.pop("train_loss"), rel=1e-12)
        require_same(a, b)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watcher]:
    """Runs a job with the history and a watcher looking on, without pictures: they cost more than the training."""
    from denoise.training import observers

    monkeypatch.setattr(observers, "Pictures", lambda folder: Watcher())

    def run(job: TrainJob, after_step: dict[int, Callable[[], None]] | None = None) -> Watcher:
        watcher = Watcher(after_step)

        def all_of_them(job: TrainJob, folder: Any) -> list[Observer]:
            return [*observers.observers_of(job, folder), watcher]

        with monkeypatch.context() as patch:
            patch.setattr("denoise.training.loop.observers_of", all_of_them)
            run_worker(CPU, job)
        return watcher

    return run


@pytest.fixture
def jobs() -> Callable[..., TrainJob]:
    return make_job


@pytest.fixture
def splits_of() -> Callable[..., SplitSet]:
    return split_set


@pytest.fixture
def noise() -> Callable[..., list[NDArray[np.float32]]]:
    return noisy_splits


@pytest.fixture
def cpu() -> World:
    return CPU


@pytest.fixture
def history_of() -> Callable[[Path], list[dict[str, Any]]]:
    return comparable_history


@pytest.fixture
def assert_same() -> Callable[..., None]:
    return require_same


@pytest.fixture
def assert_same_run() -> Callable[..., None]:
    return require_same_run
