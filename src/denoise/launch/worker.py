"""What every process of a world runs: set up, do the job, leave in good order."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from denoise.cluster import Place
from denoise.errors import DenoiseError, DeviceError, Interrupted, WorkerError
from denoise.launch.devices import device_of
from denoise.launch.meeting import PROCESSES, Guard, Meeting, interface_between, own_address
from denoise.launch.verdict import follows_from_a_loss, write_report
from denoise.launch.watch import Watch
from denoise.launch.world import World
from denoise.streams import lasting_streams

Job = TypeVar("Job")

#: Reading the splits takes minutes, longer on one machine than on another; the others wait in an exchange meanwhile.
#: It is not what finds lost partners: launchers and ``Watch`` do.
_EXCHANGE_TIMEOUT = timedelta(minutes=30)
#: All are interrupted at the same step; one that was so alone does not wait long for the others.
_FAREWELL_SECONDS = 5.0


@runtime_checkable
class Restartable(Protocol):
    """A job that can be begun anew after a process was lost."""

    def restarted(self) -> Any:
        """The job that continues this one from what it has saved."""
        ...


@dataclass(frozen=True)
class Start:
    """What a launcher tells the processes that it starts."""

    reports: str
    """Folder in which a process that fails leaves its report."""
    attempt: int
    """0, and 1 more after every restart."""


def run_started(function: Callable[[World, Job], None], job: Job, devices: list[torch.device], start: Start) -> None:
    """Run in a process that our launcher has started."""
    with lasting_streams():
        _run_started(function, job, devices, start)


def _run_started(function: Callable[[World, Job], None], job: Job, devices: list[torch.device], start: Start) -> None:
    # A fresh interpreter: this is where its logging is set up. Only the chief tells of its progress.
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s")
    if start.attempt and isinstance(job, Restartable):
        job = job.restarted()
    store: Store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        None,
        False,
        _EXCHANGE_TIMEOUT,
        wait_for_workers=False,
    )
    # The launcher's store outlives an attempt; what the last one has left in it must not be met.
    store = PrefixStore(f"attempt{start.attempt}", store)
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    device = devices[local_rank % len(devices)]
    try:
        _with_group(store, rank, int(os.environ["WORLD_SIZE"]), local_rank, local_size, device, function, job)
    except Interrupted as interruption:
        # Not a return value: for that a worker waits until the launcher has read it, which one that was itself
        # interrupted never does.
        raise SystemExit(interruption.exit_code) from interruption
    except Exception as error:
        # Written before this process leaves the group: a rank that fails because this one left reports later.
        write_report(Path(start.reports), rank, local_rank, error)
        if follows_from_a_loss(error):
            time.sleep(2.0)  # let the launcher see the death of the peer, which is the cause, first
        raise


def run_joined(
    place: Place,
    function: Callable[[World, Job], None],
    job: Job,
    devices: list[torch.device],
    guard: Guard,
    name: str,
) -> None:
    """Run in a process that somebody else has started, together with its partners.

    Raises
    ------
    ClusterError
        The partners are not there, or do something else.
    WorkerError
        A partner was lost.
    DenoiseError, Interrupted
        As the function raises them.
    """
    device = device_of(place, devices)
    meeting = Meeting.open(
        place.address, place.port, place.rank, place.size, PROCESSES, port_is_open=place.port_is_open
    )
    everybody = meeting.roll_call({"output": name, "address": own_address(place.address), "device": _identity(device)})
    _require_own_devices(everybody)
    use_interface([each["address"] for each in everybody], place.rank)
    watch = Watch(meeting, _leave)
    store = PrefixStore("group", meeting.store)
    watch.start()
    try:
        with meeting.guarded(guard):
            try:
                with watch.judging():
                    _with_group(
                        store, place.rank, place.size, place.local_rank, place.local_size, device, function, job
                    )
            except Exception as error:
                if place.size == 1 or isinstance(error, Interrupted):
                    raise
                raise _told(error, watch, meeting) from error
            if meeting.rank:
                with suppress(dist.DistError):  # the first one has waited long enough
                    meeting.store.add("left", 1)
            else:
                meeting.wait_for_readers("left")
    finally:
        watch.close()


def _told(error: Exception, watch: Watch, meeting: Meeting) -> Exception:
    """Exchange reasons with the partners; the error to end with."""
    if not follows_from_a_loss(error) or isinstance(error, DenoiseError):
        sentence = str(error) if isinstance(error, DenoiseError) else f"{type(error).__name__}: {error}"
        watch.tell_failure(f"process {meeting.rank} on {meeting.hosts[meeting.rank]} failed: {sentence}")
        time.sleep(5.0)  # the first one's end is the end of the store, and any one's makes others fail
        return error
    time.sleep(5.0)  # the cause may not be known yet
    cause = watch.failure_of_others()
    quietest = max((rank for rank in range(meeting.size) if rank != meeting.rank), key=watch.silence_of)
    if cause is None and watch.silence_of(quietest) > 4.0:
        cause = watch.describe_silence(quietest)
    return WorkerError(f"{cause}; {_ADVICE}") if cause else error


_ADVICE = "start again with --resume to go on from the last saved state"


def _leave(sentence: str) -> None:
    """End this process, whose work is stuck in an exchange with one that is no longer there."""
    sys.stderr.write(f"error: {sentence}; {_ADVICE}\n")
    sys.stderr.flush()
    os._exit(1)


def _with_group(
    store: Store,
    rank: int,
    size: int,
    local_rank: int,
    local_size: int,
    device: torch.device,
    function: Callable[[World, Job], None],
    job: Job,
) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_EXCHANGE_TIMEOUT)
    world = World(rank, size, device, local_rank, local_size)
    try:
        function(world, job)
        _leave_together(store, size, _EXCHANGE_TIMEOUT.total_seconds())
    except Interrupted:
        _leave_together(store, size, _FAREWELL_SECONDS)
        dist.destroy_process_group()
        raise
    except Exception:
        # With peers the group is left as it is: with nccl, ending it waits for ranks which wait for this one.
        if size == 1:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _leave_together(store: Store, size: int, patience: float) -> None:
    """Wait until all are done: one that closes its connections early may take what it has sent last with it."""
    store.add("done", 1)
    deadline = time.monotonic() + patience
    while store.add("done", 0) < size and time.monotonic() < deadline:
        time.sleep(0.02)


def _identity(device: torch.device) -> str | None:
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def _require_own_devices(everybody: list[dict[str, Any]]) -> None:
    seen: dict[tuple[str, str], int] = {}
    for rank, each in enumerate(everybody):
        if each["device"] is None:
            continue
        other = seen.setdefault((each["host"], each["device"]), rank)
        if other != rank:
            raise DeviceError(
                f"processes {other} and {rank} on {each['host']} were given the same GPU; start one process for each "
                "GPU (with srun: --ntasks-per-node equal to --gpus-per-node, or --gpus-per-task=1)"
            )


def use_interface(addresses: list[str], rank: int) -> None:
    """Tell gloo by which network interface the other machines are reached, unless the user has."""
    found = interface_between(addresses, rank)
    if found is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found)
