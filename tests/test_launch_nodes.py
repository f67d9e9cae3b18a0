"""Several machines, which are network namespaces of this one: other addresses, no way but the network between them.

Each start of a process takes seconds, so that one run checks several things.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray

from denoise.checkpoint import TrainState
from denoise.run_folder import RunFolder

if TYPE_CHECKING:
    from tiny_dataset import Dataset, Outcome, Tools

pytest_plugins = ("tiny_dataset",)
pytestmark = pytest.mark.slow

#: Of a network that nobody uses (RFC 2544).
ADDRESSES = ("198.18.0.1", "198.18.0.2")
LONGEST = 240


@dataclass(frozen=True)
class Machine:
    """A network namespace; empty name: this machine."""

    name: str = ""

    def start(self, log: Path, *arguments: object, verb: str = "train", **variables: object) -> subprocess.Popen[bytes]:
        """``denoise`` there, in a session of its own."""
        within = ["ip", "netns", "exec", self.name] if self.name else []
        command = [*within, sys.executable, "-m", "denoise", verb, "--device", "cpu", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "SLURM_STEP_ID", "GLOO_SOCKET_IFNAME"):
            environment.pop(name, None)
        with log.open("wb") as file:
            return subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**environment, **{name: str(value) for name, value in variables.items()}},
            )


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Machine]]:
    """Two namespaces that are joined by a pair of virtual Ethernet devices."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the command ip")
    names = [f"denoise-{os.getpid()}-{side}" for side in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")
    except subprocess.CalledProcessError as error:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield [Machine(name) for name in names]
    for name in names:
        ip("netns", "delete", name)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Whatever is in here at the end of a test is killed."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """The power cable of a machine."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def ends(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    return [process.wait(timeout=LONGEST) for process in processes]


def wait_for_state(run: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LONGEST
    while not RunFolder(run).state.exists():
        assert process.poll() is None, "ended early"
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def reference(untrained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes on one machine; read only."""
    folder = tmp_path_factory.mktemp("reference")
    shutil.copytree(untrained_folder, folder / "scan")
    config = folder / "scan" / "foam.yaml"
    process = Machine().start(folder / "log", "--config", config, "--processes", 2, "--output-dir", folder / "run")
    assert process.wait(timeout=LONGEST) == 0, (folder / "log").read_text()
    return folder / "run"


def assert_same(one: Path, other: Path) -> None:
    first, second = (TrainState.load(RunFolder(path).state) for path in (one, other))
    assert first.progress["step"] == second.progress["step"]
    assert first.progress["best"] == second.progress["best"]
    for name, weights in first.model.items():
        assert torch.equal(weights, second.model[name]), name
    names = sorted(path.name for path in one.iterdir())
    assert sorted(path.name for path in other.iterdir()) == names


def test_two_machines_stopped_by_a_signal_to_one_of_them_and_resumed_do_what_one_does_alone(
    machines: list[Machine], dataset: Dataset, reference: Path, started: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    logs = [tmp_path / f"log{rank}" for rank in range(2)]
    # Saved at once, so that the test sees where to stop it; --resume from the beginning on, as in a job that requeues.
    config = dataset.configured("max_epochs: 2", "max_epochs: 2, save_every_minutes: 0.000001")

    def start() -> list[subprocess.Popen[bytes]]:
        common = (
            "--config",
            config,
            "--processes",
            1,
            "--nodes",
            2,
            "--rendezvous",
            f"{ADDRESSES[0]}:29500",
            "--resume",
        )
        started[:] = [machines[rank].start(logs[rank], *common, "--node-rank", rank) for rank in range(2)]
        return started

    first = start()
    wait_for_state(dataset.run, first[0])
    first[1].send_signal(signal.SIGTERM)
    assert ends(first) == [143, 143], [log.read_text() for log in logs]
    assert "the training starts from the beginning" in logs[0].read_text()
    assert ends(start()) == [0, 0], [log.read_text() for log in logs]
    assert_same(reference, dataset.run)
    told = [log.read_text() for log in logs]
    assert "training ended after" in told[0]
    assert str(RunFolder(dataset.run).model("val")) in told[0]
    assert "training ended after" not in told[1]
    assert str(RunFolder(dataset.run).model("val")) not in told[1]
    assert all("[W" not in text and "Traceback" not in text for text in told), told


def test_when_a_machine_dies_the_other_says_so_and_the_run_can_be_resumed_without_it(
    machines: list[Machine],
    dataset: Dataset,
    denoise: Callable[..., Outcome],
    started: list[subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    config = dataset.configured("max_epochs: 2", "max_epochs: 100000, save_every_minutes: 0.01")
    common = ("--config", config, "--processes", 1, "--nodes", 2, "--rendezvous", f"{ADDRESSES[0]}:29501")
    logs = [tmp_path / f"log{rank}" for rank in range(2)]
    started += [
        machines[rank].start(logs[rank], *common, "--max-restarts", 1, "--node-rank", rank) for rank in range(2)
    ]
    wait_for_state(dataset.run, started[0])
    refused = denoise("train", "--config", config, "--resume", "--device", "cpu")
    assert f"the training in {dataset.run} is in use by process {started[0].pid} on" in refused.error
    kill(started[1])
    assert started[0].wait(timeout=LONGEST) == 1, logs[0].read_text()
    last = logs[0].read_text().splitlines()[-1]
    assert last.startswith("error: machine 1 on ")
    assert "was lost (nothing was heard of it for" in last
    assert "--resume" in last
    assert "restart 1" not in logs[0].read_text(), "there is nobody to restart with"
    resumed = denoise("train", "--config", config, "--resume", "--device", "cpu", "--max-minutes", 0.02)
    assert resumed.code == 0, resumed.err


def test_two_tasks_of_srun_join_and_do_what_two_processes_do(
    dataset: Dataset, reference: Path, started: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    step = {
        "SLURM_JOB_ID": os.getpid(),
        "SLURM_STEP_ID": 0,
        "SLURM_STEP_NUM_TASKS": 2,
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NODEID": 0,
    }
    logs = [tmp_path / f"log{rank}" for rank in range(2)]
    started += [
        Machine().start(log, "--config", dataset.config, **step, SLURM_PROCID=rank, SLURM_LOCALID=rank)
        for rank, log in enumerate(logs)
    ]
    assert ends(started) == [0, 0], [log.read_text() for log in logs]
    assert_same(reference, dataset.run)
    told = [log.read_text() for log in logs]
    assert "training ended after" in told[0]
    assert told[1] == ""


SHAPE = (60, 64, 64)


@pytest.fixture
def large(finished: Dataset, tools: Tools) -> Dataset:
    """A volume that takes seconds: every tile goes through the network eight times."""
    tools.write(finished.folder / "large", tools.images(SHAPE)[-1])
    text = finished.config.read_text()
    assert text.count("full: whole") == text.count("infer: {") == 1
    finished.config.write_text(text.replace("full: whole", "full: large").replace("infer: {", "infer: {tta: 8, "))
    return finished


def alone(data: Dataset, denoise: Callable[..., Outcome], tools: Tools) -> NDArray[np.float32]:
    """What one process makes of it."""
    outcome = denoise("volume", "--config", data.config, "--device", "cpu", "--output", data.folder / "alone")
    assert outcome.code == 0, outcome.err
    return tools.read(data.folder / "alone")


def wait_for_slices(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Until some slices of an output are in its hidden folder."""
    deadline = time.monotonic() + LONGEST
    while len(list(folder.glob(".*/**/*.tif"))) < 4:
        assert process.poll() is None, "ended early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def both_denoise(
    machines: list[Machine], logs: list[Path], dataset: Dataset, output: Path, port: int, *options: object
) -> list[subprocess.Popen[bytes]]:
    """``denoise volume`` into one output, a process on each machine."""
    common = ("--config", dataset.config, "--output", output, "--processes", 1, "--nodes", 2, *options)
    meeting = ("--rendezvous", f"{ADDRESSES[0]}:{port}")
    return [
        machines[rank].start(logs[rank], *common, *meeting, "--node-rank", rank, verb="volume") for rank in range(2)
    ]


def test_two_machines_write_one_volume_and_one_that_dies_is_made_up_for(
    machines: list[Machine],
    large: Dataset,
    denoise: Callable[..., Outcome],
    tools: Tools,
    started: list[subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    expected = alone(large, denoise, tools)
    logs = [tmp_path / f"log{rank}" for rank in range(2)]
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "result"

    def start() -> list[subprocess.Popen[bytes]]:
        started[:] = both_denoise(machines, logs, large, output, 29502, "--resume")
        return started

    first = start()
    wait_for_slices(tmp_path / "out", first[0])
    kill(first[1])
    assert first[0].wait(timeout=LONGEST) == 1, logs[0].read_text()
    assert "was lost" in logs[0].read_text().splitlines()[-1]
    assert not output.exists()
    assert ends(start()) == [0, 0], [log.read_text() for log in logs]
    np.testing.assert_array_equal(tools.read(output), expected)
    assert str(output) in logs[0].read_text().splitlines()
    assert str(output) not in logs[1].read_text().splitlines()
    assert list((tmp_path / "out").iterdir()) == [output]


def test_two_machines_give_the_volume_that_one_process_gives(
    machines: list[Machine],
    large: Dataset,
    denoise: Callable[..., Outcome],
    tools: Tools,
    started: list[subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    logs = [tmp_path / f"log{rank}" for rank in range(2)]
    output = tmp_path / "result.zarr"
    started += both_denoise(machines, logs, large, output, 29503)
    expected = alone(large, denoise, tools)
    assert ends(started) == [0, 0], [log.read_text() for log in logs]
    np.testing.assert_array_equal(tools.read(output), expected)


def test_a_process_that_is_killed_while_it_denoises_is_started_again(
    large: Dataset,
    denoise: Callable[..., Outcome],
    tools: Tools,
    started: list[subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    expected = alone(large, denoise, tools)
    log = tmp_path / "log"
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "result"
    common = ("--config", large.config, "--output", output, "--processes", 2, "--max-restarts", 1)
    started.append(Machine().start(log, *common, verb="volume"))
    wait_for_slices(tmp_path / "out", started[0])
    workers = [p for p in psutil.Process(started[0].pid).children(recursive=True) if "spawn_main" in str(p.cmdline())]
    assert len(workers) == 2
    workers[1].kill()
    assert ends(started) == [0], log.read_text()
    told = log.read_text()
    assert told.count("restart 1 of 1: process ") == 1
    assert "was killed by SIGKILL" in told
    np.testing.assert_array_equal(tools.read(output), expected)
