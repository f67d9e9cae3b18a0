"""Devices, the world of processes, and what becomes of it when one of them fails.

Starting processes takes seconds, so that one start checks several things.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from denoise.cluster import Spread
from denoise.errors import ConfigError, DeviceError, Interrupted, WorkerError
from denoise.launch import Compute, World, choose_devices, describe_device, launch, listening_for_signals

pytest_plugins = ("gpus",)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What a launch changes in the environment is put back; and no outer launcher is seen."""
    for name in ("PYTHONNOUSERSITE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("PYTHONNOUSERSITE")
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


# Which devices. ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "kind", "named", "processes", "expected"),
    [
        (0, None, None, None, ["cpu"]),
        (0, None, None, 3, ["cpu"] * 3),
        (0, "cpu", None, None, ["cpu"]),
        (2, "cpu", None, 2, ["cpu"] * 2),
        (1, None, None, None, ["cuda:0"]),
        (4, None, None, None, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        (2, "cuda", None, None, ["cuda:0", "cuda:1"]),
        (4, None, [2], None, ["cuda:2"]),
        (4, "cuda", [3, 1], None, ["cuda:3", "cuda:1"]),
        (4, "cuda", [3, 1], 2, ["cuda:3", "cuda:1"]),
    ],
)
def test_a_command_runs_on_the_devices_that_were_asked_for(gpus, visible, kind, named, processes, expected):
    gpus(visible)
    assert [str(device) for device in choose_devices(kind, named, processes)] == expected


@pytest.mark.parametrize(
    ("visible", "kind", "named", "processes", "message"),
    [
        (0, "cuda", None, None, "--device cuda was asked for, but torch .* sees no CUDA GPU"),
        (0, None, [0, 1], None, "--gpus 0,1 was asked for, but torch .* sees no CUDA GPU"),
        (0, "cuda", [0], None, "sees no CUDA GPU"),
        (2, None, [2], None, r"--gpus 2: this machine shows 2 GPU\(s\), numbered 0 to 1"),
        (2, None, [-1], None, "--gpus -1: this machine shows 2"),
        (2, None, [1, 1], None, "name each at most once"),
        (2, "cuda", [], None, "this machine shows 2"),
        (2, "cpu", [0], None, "--gpus 0 contradicts --device cpu"),
        (2, None, None, 4, r"--processes 4 with 2 GPU\(s\)"),
        (2, "tpu", None, None, "--device tpu is unknown; expected cpu, cuda or mps"),
        (0, "mps", None, None, "no Apple GPU"),
    ],
)
def test_a_device_that_is_not_there_is_named(gpus, visible, kind, named, processes, message):
    gpus(visible)
    with pytest.raises(DeviceError, match=message):
        choose_devices(kind, named, processes)


@pytest.mark.parametrize(("capability", "built"), [((7, 0), ("sm_75", "sm_90")), ((9, 0), ("sm_100", "compute_120"))])
def test_a_gpu_that_torch_was_not_built_for_is_refused_before_its_first_step(gpus, capability, built):
    gpus(2, capability, built)
    said = rf"GPU 1 \(Tesla V100\) has compute capability {capability[0]}.{capability[1]}, .* built for (7.5|10.0)"
    with pytest.raises(DeviceError, match=said):
        choose_devices(None, [1], None)


@pytest.mark.parametrize("built", [("sm_75", "sm_90"), ("compute_90",), ("gfx90a",), ()])
def test_a_gpu_that_torch_was_built_for_or_says_nothing_of_is_taken(gpus, built):
    gpus(1, (8, 6), built)
    assert choose_devices(None, None, None) == [torch.device("cuda", 0)]


TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a"}


@pytest.mark.parametrize(
    ("visible", "device", "expected"), [(2, None, "cuda:1"), (1, None, "cuda:0"), (0, None, "cpu"), (2, "cpu", "cpu")]
)
def test_a_process_that_torchrun_has_started_works_where_it_will_join(gpus, monkeypatch, visible, device, expected):
    gpus(visible)
    assert str(Compute(device).own_device()) in ("cuda:0", "cpu")
    for name, value in {**TORCHRUN, "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert str(Compute(device).own_device()) == expected
    assert str(Compute(device, spread=Spread(nodes=1)).own_device()) in ("cuda:0", "cpu")


def test_an_apple_gpu_is_used_when_it_was_asked_for(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_devices("mps", None, None) == [torch.device("mps")]
    assert choose_devices(None, None, None) == [CPU]


def test_people_are_told_which_device_it_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Fast GPU")
    assert describe_device(torch.device("cuda", 3)) == "Fast GPU (cuda:3)"
    for threads, words in ((1, "CPU, 1 thread"), (3, "CPU, 3 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert describe_device(CPU) == words
    assert "mps" in describe_device(torch.device("mps"))


# A world of one. ---------------------------------------------------------------------------------------------------


@given(total=st.integers(0, 200), size=st.integers(1, 20))
def test_shares_are_contiguous_nearly_equal_and_leave_nothing_out(total, size):
    shares = [World(rank, size, CPU).share(total) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_needs_no_group():
    world = World(0, 1, CPU)
    tensor = torch.tensor([1.0, 2.0])
    assert world.is_chief
    assert torch.equal(world.sum(tensor), torch.tensor([1.0, 2.0]))
    assert (world.any(True), world.any(False)) == (True, False)
    assert world.largest([0.25, -3.0]) == [0.25, -3.0]
    assert world.from_chief("plain") == world.from_local_chief("plain") == "plain"
    world.barrier()
    assert not dist.is_initialized()


def test_one_process_is_a_plain_call_and_raises_what_was_raised():
    seen: list[Any] = []
    launch(lambda world, job: seen.append((world, job)), {"job": 1}, [CPU])
    assert seen == [(World(0, 1, CPU), {"job": 1})]
    assert os.environ["PYTHONNOUSERSITE"] == "1"

    def fail(world: World, job: None) -> None:
        raise ConfigError("patch_size is 7")

    with pytest.raises(ConfigError, match="patch_size is 7"):
        launch(fail, None, [CPU])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def test_under_torchrun_the_command_joins_the_world_that_is_there(monkeypatch):
    there = {"TORCHELASTIC_RUN_ID": "x", "RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    for name, value in {**there, "MASTER_ADDR": "localhost", "MASTER_PORT": _free_port()}.items():
        monkeypatch.setenv(name, str(value))
    seen: list[tuple[World, bool]] = []

    def work(world: World, job: str) -> None:
        seen.append((world, dist.is_initialized()))
        raise ConfigError(job)

    with pytest.raises(ConfigError, match="its own words"):
        launch(work, "its own words", [CPU, CPU])
    assert seen == [(World(0, 1, CPU), True)]
    assert not dist.is_initialized()


# Signals. ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_request_and_the_old_handlers_come_back(number):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with listening_for_signals(World(0, 1, CPU)) as stop:
        assert not stop.is_set
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop.is_set
        assert stop.signal_number == number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interrupt_ends_a_lone_process_at_once_but_none_that_has_partners():
    def interrupt_twice(world: World) -> None:
        with listening_for_signals(world) as stop:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            assert stop.is_set

    before = signal.getsignal(signal.SIGINT)  # not Python's own where the tests were started in the background
    with pytest.raises(KeyboardInterrupt):
        interrupt_twice(World(0, 1, CPU))
    interrupt_twice(World(1, 2, CPU))
    assert signal.getsignal(signal.SIGINT) is before


# A world of two; the functions are here because a started process imports them by name. ------------------------------


def _talk(world: World, folder: str) -> None:
    total = world.sum(torch.tensor([world.rank + 1.0, 10.0]))
    found = {
        "sum": total.tolist(),
        "largest": world.largest([float(world.rank), -float(world.rank), 1e9 + world.rank]),
        "any": [world.any(world.rank == 1), world.any(False), world.any(True)],
        "chief": world.from_chief(f"said by {world.rank}"),
        "local chief": world.from_local_chief({"rank": world.rank}),
        "share": list(world.share(5)),
        "ranks": [world.rank, world.local_rank, world.local_size, world.is_chief],
        "device": str(world.device),
        "no user site": os.environ.get("PYTHONNOUSERSITE"),
        "threads": torch.get_num_threads(),
        "pid": os.getpid(),
    }
    world.barrier()
    (Path(folder) / f"{world.rank}.json").write_text(json.dumps(found))


def test_two_processes_sum_agree_and_share(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    launch(_talk, str(tmp_path), [CPU, CPU])
    assert not list(temporary.iterdir()), "nothing is left behind"
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for found in (first, second):
        assert found["sum"] == [3.0, 20.0]
        assert found["any"] == [True, False, True]
        assert found["largest"] == [1.0, 0.0, 1e9 + 1], "each of its own rank, and to the last digit"
        assert found["chief"] == "said by 0"
        assert found["local chief"] == {"rank": 0}
        assert found["device"] == "cpu"
        assert found["no user site"] == "1"
        assert found["threads"] == 1
    assert first["share"] + second["share"] == [0, 1, 2, 3, 4]
    assert [first["ranks"], second["ranks"]] == [[0, 0, 2, True], [1, 1, 2, False]]
    assert len({first["pid"], second["pid"], os.getpid()}) == 3
    assert not dist.is_initialized()


def _fail(world: World, kind: str) -> None:
    world.barrier()
    if world.rank == 1:
        if kind == "user":
            raise ConfigError("train.patch_size is 7; expected a multiple of 8")
        if kind == "bug":
            raise ZeroDivisionError("a bug of ours")
        os.kill(os.getpid(), signal.SIGKILL)
    world.barrier()  # the partner waits for the one that failed, and loses the connection


@pytest.mark.parametrize(
    ("kind", "exit_code", "message"),
    [
        ("user", 2, r"^train.patch_size is 7; expected a multiple of 8$"),
        ("bug", 1, r"(?s)^process 1 failed:\nTraceback .*in _fail.*ZeroDivisionError: a bug of ours$"),
        ("killed", 1, r"^process 1 was killed by SIGKILL .*--resume"),
    ],
)
def test_a_failing_process_ends_the_run_with_its_own_words(kind, exit_code, message):
    started = time.monotonic()
    with pytest.raises(WorkerError, match=message) as caught:
        launch(_fail, kind, [CPU, CPU])
    assert caught.value.exit_code == exit_code
    assert time.monotonic() - started < 60


def _save_when_told(world: World, folder: str) -> None:
    with listening_for_signals(world) as stop:
        (Path(folder) / f"started{world.rank}").touch()
        while not world.any(stop.is_set):
            time.sleep(0.05)
        time.sleep(0.5)  # saving takes longer than the launcher takes to look
        (Path(folder) / f"saved{world.rank}").touch()
        world.barrier()
        raise Interrupted(stop.signal_number or signal.SIGTERM, "saved")


_LAUNCHER = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from denoise.errors import Interrupted
from denoise.launch import launch
from test_launch import _save_when_told

if __name__ == "__main__":
    try:
        launch(_save_when_told, sys.argv[2], [torch.device("cpu")] * 2)
    except Interrupted as interrupted:
        print(interrupted)
        sys.exit(interrupted.exit_code)
"""


@pytest.mark.parametrize(
    ("number", "send"),
    [(signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg)],  # from a scheduler; from a terminal, to all processes
    ids=["to the launcher", "to all"],
)
def test_a_signal_ends_the_run_after_all_have_saved(tmp_path, number, send):
    script, folder = tmp_path / "launcher.py", tmp_path / "run"
    script.write_text(textwrap.dedent(_LAUNCHER))
    folder.mkdir()
    launcher = subprocess.Popen(
        [sys.executable, str(script), str(Path(__file__).parent), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(90, launcher.kill)
    watchdog.start()
    try:
        while launcher.poll() is None and len(list(folder.iterdir())) < 2:
            time.sleep(0.05)
        send(launcher.pid, number)
        output, errors = launcher.communicate()
    finally:
        watchdog.cancel()
        launcher.kill()
    assert launcher.returncode == 128 + number, errors
    assert sorted(p.name for p in folder.iterdir()) == ["saved0", "saved1", "started0", "started1"]
    assert output.startswith(f"the processes ended after {number.name}; --resume continues")
    assert "Traceback" not in errors
