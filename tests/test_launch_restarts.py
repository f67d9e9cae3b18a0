"""Processes that are lost and started again, and the mistakes that are not repeated."""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from denoise.cluster import Spread
from denoise.errors import ClusterError, ConfigError, OutputError, WorkerError
from denoise.launch import World, launch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launch changes in the environment is put back; and no outer launcher is seen."""
    for name in ("PYTHONNOUSERSITE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


@dataclass(frozen=True)
class Fragile:
    """Fails in its first attempts, each time in another way."""

    folder: Path
    failures: tuple[str, ...]
    is_restarted: bool = False

    def restarted(self) -> Fragile:
        return replace(self, is_restarted=True)


def _work(world: World, job: Fragile) -> None:
    world.barrier()
    attempt = len(list(job.folder.glob(f"attempt*_{world.rank}")))
    assert job.is_restarted == (attempt > 0)
    (job.folder / f"attempt{attempt}_{world.rank}").touch()
    world.barrier()
    if attempt < len(job.failures):
        match job.failures[attempt]:
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "bug":
                raise ZeroDivisionError("a bug")
            case "exit":
                os._exit(3)
            case "mistake":
                raise ConfigError("train.patch_size is 7")
    world.barrier()
    (job.folder / f"done_{world.rank}").touch()


def test_lost_processes_are_started_again_each_time_with_one_line_that_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="denoise"):
        launch(_work, Fragile(tmp_path, ("killed", "bug")), [CPU], spread=Spread(max_restarts=2))
    assert sorted(path.name for path in tmp_path.glob("done*")) == ["done_0"]
    first, second = (record.getMessage() for record in caplog.records if record.name == "denoise.launch.elastic")
    assert first.startswith("restart 1 of 2: process 0 was killed by SIGKILL")
    assert second == "restart 2 of 2: process 0 failed: ZeroDivisionError: a bug"


def test_a_mistake_ends_the_run_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"^train.patch_size is 7$") as caught:
        launch(_work, Fragile(tmp_path, ("exit", "mistake")), [CPU], spread=Spread(max_restarts=5))
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempt0_0", "attempt1_0"]
    assert time.monotonic() - started < 120


def test_restarts_are_refused_where_another_launcher_holds_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"TORCHELASTIC_RUN_ID": "x", "RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    for name, value in there.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ClusterError, match=r"--max-restarts has no effect .*torchrun"):
        launch(_work, None, [CPU], spread=Spread(max_restarts=1))


def test_what_the_guard_refuses_starts_no_process(tmp_path: Path) -> None:
    def refuse() -> None:
        raise OutputError("in use")

    for devices in ([CPU], [CPU, CPU]):
        with pytest.raises(OutputError, match="in use"):
            launch(_work, Fragile(tmp_path, ()), devices, guard=refuse)
    assert list(tmp_path.iterdir()) == []
