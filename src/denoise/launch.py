"""Where the work runs: devices, the world of processes, and starting that world.

``launch`` calls a function in one process, or starts one process per device through torch's elastic launcher (c10d
rendezvous on a free port, gloo on the CPU, nccl on CUDA). Under an existing ``torchrun`` the command joins that world.
A function that is launched takes (World, job) and is importable by name; a failing rank ends the run with its own
error.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from denoise import errors
from denoise.errors import DenoiseError, DeviceError, Interrupted, WorkerError
from denoise.files import write_text
from denoise.streams import lasting_streams

Job = TypeVar("Job")

# Workers finish their step and save when the launcher passes a signal on; schedulers usually grant 30 s in all.
_SHUTDOWN_SECONDS = 25


@dataclass(frozen=True)
class World:
    """One process among those that share a job. Size 1 needs no process group."""

    rank: int
    size: int
    device: torch.device
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, on every process (in place where there are several)."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, values: Sequence[float]) -> list[float]:
        """For each of these numbers the largest on any process. Costs one small exchange between the hosts' CPUs."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return [float(value) for value in found]

    def any(self, claim: bool) -> bool:
        """Whether the claim holds on at least one process."""
        return self.largest([float(claim)])[0] > 0

    def barrier(self) -> None:
        """Wait for every process."""
        self.any(False)

    def from_chief(self, value: Any) -> Any:
        """The chief's plain value, on every process."""
        return self._from(value, 0)

    def from_local_chief(self, value: Any) -> Any:
        """The plain value of the first process of this node."""
        return self._from(value, self.rank - self.local_rank)

    def _from(self, value: Any, source: int) -> Any:
        if self.size == 1:
            return value
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values[source]

    def share(self, total: int) -> range:
        """The part of ``total`` items that falls to this process: contiguous, nothing left out, sizes within one."""
        return range(self.rank * total // self.size, (self.rank + 1) * total // self.size)


def choose_devices(kind: str | None, gpus: Sequence[int] | None, processes: int | None) -> list[torch.device]:
    """The devices that a command runs on, one process each.

    Parameters
    ----------
    kind
        "cpu", "cuda", "mps" or None for the GPUs that are visible, else the CPU.
    gpus
        Indices of the GPUs that were asked for; None for all that are visible.
    processes
        Number of processes on a CPU; None for 1.

    Raises
    ------
    DeviceError
        A device was asked for that is not there.
    """
    if kind not in (None, "cpu", "cuda", "mps"):
        raise DeviceError(f"--device {kind} is unknown; expected cpu, cuda or mps")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("--device mps was asked for, but this machine has no Apple GPU; use --device cpu")
        return [torch.device("mps")]
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind is None and gpus is None and visible == 0):
        if kind == "cpu" and gpus:
            raise DeviceError(f"--gpus {','.join(map(str, gpus))} contradicts --device cpu; give one of the two")
        return [torch.device("cpu")] * (processes or 1)
    if visible == 0:
        asked = "--device cuda" if gpus is None else f"--gpus {','.join(map(str, gpus))}"
        raise DeviceError(
            f"{asked} was asked for, but torch {torch.__version__} sees no CUDA GPU here; check nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or use --device cpu"
        )
    if gpus is None:
        gpus = range(visible)
    missing = [g for g in gpus if not 0 <= g < visible]
    if missing or len(set(gpus)) != len(gpus) or not gpus:
        raise DeviceError(
            f"--gpus {','.join(map(str, gpus))}: this machine shows {visible} GPU(s), numbered 0 to {visible - 1}; "
            "name each at most once"
        )
    if processes is not None and processes != len(gpus):
        raise DeviceError(f"--processes {processes} with {len(gpus)} GPU(s): each GPU has one process; leave it out")
    return [torch.device("cuda", g) for g in gpus]


def describe_device(device: torch.device) -> str:
    """For people: the GPU's name, or the CPU with the number of threads."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (cuda:{device.index or 0})"
    return "Apple GPU (mps)" if device.type == "mps" else f"CPU, {_plural(torch.get_num_threads(), 'thread')}"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def launch(function: Callable[[World, Job], None], job: Job, devices: Sequence[torch.device]) -> None:
    """Run ``function(world, job)`` on every device and return when all are done.

    Raises
    ------
    WorkerError
        A process failed; carries the message of the first that did.
    Interrupted
        SIGINT or SIGTERM ended the run after the processes had saved.
    DenoiseError
        As raised by the function, where there is one process.
    """
    os.environ["PYTHONNOUSERSITE"] = "1"
    if "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ:
        _run_rank(function, job, devices)
    elif len(devices) == 1:
        function(World(0, 1, devices[0]), job)
    else:
        _launch_elastic(function, job, devices)


def _launch_elastic(function: Callable[[World, Job], None], job: Job, devices: Sequence[torch.device]) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = len(devices)
    # Without this the launcher gives every process one thread, also where there are many cores for each.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they print tracebacks that we report in our own words
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"denoise-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(),
        signals_to_handle="SIGTERM,SIGINT",
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    with tempfile.TemporaryDirectory(prefix="denoise-") as reports:
        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            elastic_launch(config, _run_rank)(function, job, list(devices), reports)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode in (128 + signal.SIGINT, 128 + signal.SIGTERM):
                raise _saved_after(failure.exitcode - 128) from error
            raise _first_failure(Path(reports), rank, failure.exitcode) from error
        except SignalException as error:
            raise _saved_after(int(error.sigval)) from error
        finally:
            for number, handler in previous.items():  # the launcher leaves its own behind
                signal.signal(number, handler)


def _saved_after(signal_number: int) -> Interrupted:
    name = signal.Signals(signal_number).name
    return Interrupted(signal_number, f"the processes ended after {name}; --resume continues from the last saved state")


def _run_rank(
    function: Callable[[World, Job], None], job: Job, devices: Sequence[torch.device], reports: str | None = None
) -> None:
    """What every process runs."""
    with lasting_streams():
        _run_rank_in_group(function, job, devices, reports)


def _run_rank_in_group(
    function: Callable[[World, Job], None], job: Job, devices: Sequence[torch.device], reports: str | None
) -> None:
    # A worker is a fresh interpreter: this is where its logging is set up. Only the chief tells of its progress.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    local_rank = int(os.environ["LOCAL_RANK"])
    device = devices[local_rank % len(devices)]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        function(World(dist.get_rank(), dist.get_world_size(), device, local_rank, local_size), job)
    except Interrupted as interruption:
        dist.destroy_process_group()
        if reports is None:
            raise
        # Not a return value: for that a worker waits until the launcher has read it, which one that was itself
        # interrupted never does.
        raise SystemExit(interruption.exit_code) from interruption
    except Exception as error:
        # Written before this process leaves the group: a rank that fails because this one left reports later.
        if reports is not None:
            _write_report(Path(reports), local_rank, error)
        if "onnection" in str(error):
            time.sleep(2.0)  # a peer was lost: let the launcher see its death, which is the cause, first
        # With peers the group is left as it is: with nccl, ending it waits for ranks which wait for this one.
        if dist.get_world_size() == 1:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _write_report(folder: Path, rank: int, error: Exception) -> None:
    report = {
        "time": time.time(),
        "rank": rank,
        "kind": type(error).__name__,
        "message": str(error),
        "trace": "".join(traceback.format_exception(error)),
    }
    write_text(folder / f"rank{rank}.json", json.dumps(report))


def _first_failure(folder: Path, rank: int, exit_code: int) -> WorkerError:
    """The error of the rank that failed first, in its own words."""
    if exit_code < 0:
        return WorkerError(
            f"training process {rank} was killed by {signal.Signals(-exit_code).name} (by the system when memory ran "
            "out, or by somebody); start again with --resume to go on from the last saved state",
        )
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("rank*.json")]
    if not reports:
        return WorkerError(
            f"training process {rank} ended with exit code {exit_code} and left no message; "
            "a script that trains on several devices must call denoise under `if __name__ == '__main__':`"
        )
    first = min(reports, key=lambda report: float(report["time"]))
    known = getattr(errors, first["kind"], None)
    if isinstance(known, type) and issubclass(known, DenoiseError):
        return WorkerError(first["message"], known.exit_code)
    return WorkerError(f"training process {first['rank']} failed:\n{first['trace']}".rstrip())


@dataclass
class StopRequest:
    """Set by SIGINT or SIGTERM; whoever works looks at it between two steps."""

    signal_number: int | None = field(default=None)

    @property
    def is_set(self) -> bool:
        """Whether a signal came."""
        return self.signal_number is not None


@contextmanager
def listening_for_signals(world: World) -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request to save and stop.

    A second SIGINT acts as it always does where there is one process. Where there are several it does not: each gets
    the terminal's signal and then the launcher's, and must not die of the second while it saves.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield request
        return
    previous: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if request.is_set and world.size == 1 and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        request.signal_number = number

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        previous[number] = signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
