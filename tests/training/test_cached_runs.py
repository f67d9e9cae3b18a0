"""Whole runs on splits that do not all fit in memory: resumed, shared by two processes, and planned."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from denoise.checkpoint import TrainState
from denoise.errors import DeviceError, Interrupted, VolumeError, WorkerError
from denoise.launch import World, launch
from denoise.modes import mode_of
from denoise.networks.catalogue import build_network
from denoise.networks.spec import NetworkSpec
from denoise.run_folder import RunFolder
from denoise.training.cache import CachedBlocks
from denoise.training.data import ResidentBlocks
from denoise.training.footprint import Footprint
from denoise.training.job import TrainJob
from denoise.training.loop import TrainingRun, run_worker

Train = Callable[..., Any]
Jobs = Callable[..., TrainJob]
Splits = Callable[..., Any]
Same = Callable[..., None]

FLAT = NetworkSpec("residual2d", {"n_slices": 3, "width": 16, "levels": 2})
DEEP = NetworkSpec("residual3d", {"width": 8, "levels": 2})
SHAPE = (40, 32, 32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes so little memory free that training data get this share of what the splits would take."""

    def leave(share: float) -> None:
        free = share * 2 * 4 * np.prod(SHAPE) / 0.6
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=int(free)))

    return leave


@pytest.fixture
def large_splits(splits_of: Splits, noise: Callable[..., list[NDArray[np.float32]]]) -> Any:
    return splits_of(noise(SHAPE))


def stop_now() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


#: 3D blocks, and those that are scored, are a larger part of this little volume.
SHARES = {FLAT.name: 0.9, DEEP.name: 0.8}


@pytest.mark.parametrize("stop_after", [3, 10, 32], ids=lambda n: f"step {n}")
@pytest.mark.parametrize("network", [FLAT, DEEP], ids=["2.5d", "3d"])
def test_a_run_that_a_signal_stopped_ends_as_if_it_had_not(
    train: Train,
    jobs: Jobs,
    tmp_path: Path,
    network: NetworkSpec,
    stop_after: int,
    small: Callable[[float], None],
    large_splits: Any,
    assert_same_run: Same,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Bit for bit, over several rounds of the cache; with less memory left the second time, or more."""
    settings = {"splits": large_splits, "max_epochs": 4, "patches_per_epoch": 30, "validate_every": 2, "ema_decay": 0.8}
    small(SHARES[network.name])
    train(jobs(tmp_path / "whole", network, **settings))
    with pytest.raises(Interrupted):
        train(jobs(tmp_path / "parts", network, **settings), {stop_after: stop_now})
    state = TrainState.load(RunFolder(tmp_path / "parts").state)
    assert state.progress["division"] is not None
    assert state.progress["division"][3] < 20
    small(SHARES[network.name] * 0.9 if stop_after == 3 else 10.0)
    watcher = train(jobs(tmp_path / "parts", network, resume=True, **settings))
    assert [step for step, _, _ in watcher.steps] == list(range(stop_after + 1, 33))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert not caplog.records or "less memory" not in caplog.text


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.4), (10.0, 0.6)], ids=["slabs to fewer", "all to slabs"])
def test_a_run_that_is_resumed_with_much_less_memory_goes_on_and_says_so(
    train: Train,
    jobs: Jobs,
    tmp_path: Path,
    small: Callable[[float], None],
    large_splits: Any,
    caplog: pytest.LogCaptureFixture,
    before: float,
    after: float,
) -> None:
    small(before)
    train(jobs(tmp_path, splits=large_splits, max_epochs=1))
    small(after)
    train(jobs(tmp_path, splits=large_splits, max_epochs=2, resume=True))
    assert "less memory" in caplog.text
    assert TrainState.load(RunFolder(tmp_path).state).progress["division"] is not None


def test_a_run_that_is_resumed_with_a_little_less_memory_keeps_all_of_its_data_there(
    train: Train, jobs: Jobs, tmp_path: Path, small: Callable[[float], None], large_splits: Any, assert_same_run: Same
) -> None:
    small(1.02)
    train(jobs(tmp_path / "whole", splits=large_splits, max_epochs=2))
    train(jobs(tmp_path / "parts", splits=large_splits, max_epochs=1))
    small(0.98)
    train(jobs(tmp_path / "parts", splits=large_splits, max_epochs=2, resume=True))
    assert TrainState.load(RunFolder(tmp_path / "parts").state).progress["division"] is None
    assert_same_run(tmp_path / "whole", tmp_path / "parts", planned_alike=False)


def test_training_from_slabs_learns(
    train: Train, jobs: Jobs, tmp_path: Path, small: Callable[[float], None], large_splits: Any
) -> None:
    small(0.9)
    settings = {"splits": large_splits, "max_epochs": 6, "patches_per_epoch": 60, "learning_rate": 5e-3, "loss": "l2"}
    watcher = train(jobs(tmp_path, **settings))
    scores = [record.scores.mse for record in watcher.records]
    assert scores[-1] < 0.8 * scores[0]


# Memory


def taken_by(job: TrainJob, processes: int = 1) -> int:
    """What the processes of a run take besides data, in bytes."""
    window = mode_of(job.network).window(job.network, job.patch_size, 0.0, "uniform")
    return Footprint(job.network, window, "cpu", processes, -(-job.batch_size // processes), 2, 4).bytes


def test_memory_that_is_given_is_what_processes_and_data_take_together(
    jobs: Jobs, tmp_path: Path, large_splits: Any, cpu: World
) -> None:
    job = jobs(tmp_path, splits=large_splits)
    everything = 2 * 4 * int(np.prod(SHAPE))
    for data_bytes, all_in_memory in ((everything, True), (everything - 1, False), (everything // 2, False)):
        run = TrainingRun(cpu, replace(job, max_memory=taken_by(job) + data_bytes))
        assert isinstance(run.data.source, ResidentBlocks) is all_in_memory
        if isinstance(run.data.source, CachedBlocks):
            assert run.data.source.slots.nbytes < data_bytes
        run.close()
    with pytest.raises(DeviceError, match=r"may take 0\.10 GB of memory, but needs 0\.4\d GB besides its data"):
        TrainingRun(cpu, replace(job, max_memory=10**8))
    with pytest.raises(VolumeError, match="lower the patch size"):
        TrainingRun(cpu, replace(job, max_memory=taken_by(job) + 1000))


def test_what_processes_take_grows_with_the_batch_and_their_number(jobs: Jobs, tmp_path: Path) -> None:
    job = jobs(tmp_path)
    assert taken_by(job) < taken_by(replace(job, batch_size=64)) < taken_by(replace(job, batch_size=640))
    assert taken_by(job, processes=2) > 1.9 * taken_by(job)
    ten_times = [taken_by(replace(job, batch_size=size)) for size in (100, 1000, 1900)]
    assert ten_times[2] - ten_times[1] == pytest.approx(ten_times[1] - ten_times[0], rel=0.01)


# Several processes


def run_both(world: World, jobs: list[TrainJob]) -> None:
    for job in jobs:
        run_worker(world, job)


def test_two_processes_that_share_slabs_do_what_one_does_and_end_together(
    jobs: Jobs,
    train: Train,
    tmp_path: Path,
    large_splits: Any,
    noise: Callable[..., list[NDArray[np.float32]]],
    splits_of: Splits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each reads its share of every slab, and cuts its share of every batch. Then one meets NaN: both end."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")

    def with_memory(job: TrainJob, share: float, processes: int) -> TrainJob:
        whole = 2 * 4 * int(np.prod(job.splits.shape))
        return replace(job, max_memory=taken_by(job, processes) + int(share * whole))

    def both(name: str, processes: int) -> list[TrainJob]:
        # For the loss, the clipping and the weights see test_several_processes.py.
        common = {"loss": "l2", "gradient_clip": None, "learning_rate": 3e-4, "patches_per_epoch": 30}
        return [
            with_memory(
                jobs(
                    tmp_path / f"{name}_{network.name}",
                    network,
                    splits=large_splits,
                    initial=all_weights_count(network),
                    **common,
                ),
                0.9,
                processes,
            )
            for network in (FLAT, DEEP)
        ]

    for job in both("one", 1):
        train(job)
    arrays = noise((300, 32, 32))  # of so many not all are looked at for the normalisation
    arrays[1][2, 3, 3] = np.nan
    bad = jobs(tmp_path / "bad", splits=splits_of(arrays, 1000), patches_per_epoch=10_000, max_epochs=100)
    with pytest.raises(WorkerError, match=r"recon_1 holds 1 NaN or Inf voxels in slice 1002") as failed:
        launch(run_all, [*both("two", 2), with_memory(bad, 0.3, 2)], [torch.device("cpu")] * 2)
    assert failed.value.exit_code == 2
    for network in (FLAT, DEEP):
        one, two = (TrainState.load(RunFolder(tmp_path / f"{name}_{network.name}").state) for name in ("one", "two"))
        assert one.progress["division"] == two.progress["division"] is not None
        assert one.normalization == two.normalization
        for name, tensor in one.model.items():  # rounding alone makes 2e-4 in a bias
            assert float((tensor - two.model[name]).norm() / tensor.norm().clamp(min=1e-3)) < 1e-3, name


def run_all(world: World, jobs: list[TrainJob]) -> None:
    for job in jobs:
        run_worker(world, job)


def all_weights_count(network: NetworkSpec) -> dict[str, torch.Tensor]:
    """Weights all of which have a gradient from the first step on."""
    torch.manual_seed(0)
    weights = build_network(network).state_dict()
    return {name: torch.randn_like(w) * 0.05 if name == "leave.weight" else w for name, w in weights.items()}
