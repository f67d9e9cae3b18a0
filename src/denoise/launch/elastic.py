"""Starting the processes of this machine, together with other machines, and again after one of them was lost.

torch's elastic launcher starts a group of processes and ends it when one of them fails. Attempts are counted here, not
there: every machine ends an attempt, all exchange why, and go on together or not at all. That keeps a user's mistake
from being repeated, and the ranks where ``--node-rank`` has put them.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from denoise.cluster import Spread
from denoise.errors import Interrupted
from denoise.launch.meeting import MACHINES, PATIENCE_SECONDS, Guard, Meeting, own_address
from denoise.launch.verdict import Verdict, first_failure, root_cause
from denoise.launch.watch import Watch
from denoise.launch.worker import Start, run_started, use_interface
from denoise.launch.world import World

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

Job = TypeVar("Job")
_log = logging.getLogger(__name__)

# Workers finish their step and save when the launcher passes a signal on; schedulers usually grant 30 s in all.
_SHUTDOWN_SECONDS = 25
#: After an attempt has ended here, a machine that has been silent for so long has no part in why: it is gone.
_SILENT_SECONDS = 10.0
_HINT = "; start again with --resume to go on from the last saved state"


def launch_here(
    function: Callable[[World, Job], None],
    job: Job,
    devices: Sequence[torch.device],
    spread: Spread,
    guard: Guard,
    name: str,
) -> None:
    """Run the function in one process per device of this machine, and of the others that were started likewise.

    Raises
    ------
    ClusterError
        The other machines are not there, or were told something else.
    WorkerError
        A process failed; carries the message of the first that did, on whichever machine.
    Interrupted
        SIGINT or SIGTERM ended the run after the processes had saved.
    """
    # Without this the launcher gives every process one thread, also where there are many cores for each.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // len(devices))))
    address, port = spread.meeting_point if spread.rendezvous else ("localhost", 0)
    meeting = Meeting.open(address, port, spread.node_rank or 0, spread.nodes or 1, MACHINES)
    said = {"output": name, "max_restarts": spread.max_restarts, "address": own_address(address)}
    use_interface([each["address"] for each in meeting.roll_call(said)], meeting.rank)
    launcher = _Launcher(meeting)
    try:
        with meeting.guarded(guard):
            for attempt in range(spread.max_restarts + 1):
                verdict = launcher.attempt(function, job, list(devices), attempt)
                if verdict is None:
                    return
                if not verdict.is_loss or attempt == spread.max_restarts:
                    raise verdict.error(hint=_HINT)
                _log.warning("restart %d of %d: %s", attempt + 1, spread.max_restarts, verdict.summary)
    finally:
        launcher.close()


class _Launcher:
    """The processes of this machine."""

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting
        # SIGTERM is how a thread ends torch's launcher: it passes it on, and kills what does not end in time.
        self._watch = Watch(meeting, lambda sentence: os.kill(os.getpid(), signal.SIGTERM))
        self._watch.start()

    def close(self) -> None:
        """No longer watch the other machines."""
        self._watch.close()

    def attempt(
        self, function: Callable[[World, Job], None], job: Job, devices: list[torch.device], attempt: int
    ) -> Verdict | None:
        """Start the processes and wait for their end; why it was too early, or None."""
        from torch.distributed.elastic.multiprocessing import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import elastic_launch

        _silence_torch()
        with tempfile.TemporaryDirectory(prefix="denoise-") as reports:
            previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                with self._watch.judging(attempt):
                    start = Start(reports, attempt)
                    config = self._config(len(devices), attempt, Path(reports, "torch"))
                    elastic_launch(config, run_started)(function, job, devices, start)
                return None
            except ChildFailedError as error:
                rank, failure = error.get_first_failure()
                if failure.exitcode in (128 + signal.SIGINT, 128 + signal.SIGTERM):
                    raise _saved_after(failure.exitcode - 128) from error
                mine = first_failure(Path(reports), rank, failure.exitcode, self._here)
            except SignalException as error:
                if self._watch.loss is None:
                    raise _saved_after(int(error.sigval)) from error
                mine = Verdict(self._watch.loss, True, True, 1, time.time())
            finally:
                for number, handler in previous.items():  # the launcher leaves its own behind
                    signal.signal(number, handler)
        return self._agreed(attempt, mine) if self._meeting.size > 1 else mine

    @property
    def _here(self) -> str:
        return f" on {socket.gethostname()}" if self._meeting.size > 1 else ""

    def _config(self, processes: int, attempt: int, folder: Path) -> LaunchConfig:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.launcher.api import LaunchConfig

        return LaunchConfig(
            min_nodes=self._meeting.size,
            max_nodes=self._meeting.size,
            nproc_per_node=processes,
            run_id=f"attempt{attempt}",
            rdzv_backend="static",  # the other one, c10d, gives ranks in the order of the machines' names
            rdzv_endpoint=f"{self._meeting.address}:{self._meeting.port}",
            rdzv_configs={"rank": self._meeting.rank, "timeout": int(PATIENCE_SECONDS)},
            max_restarts=0,
            monitor_interval=0.2,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(str(folder)),  # else it leaves a folder behind for every attempt
            signals_to_handle="SIGTERM,SIGINT",
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )

    def _agreed(self, attempt: int, mine: Verdict) -> Verdict:
        """The same verdict on all machines: each tells its own, and waits for those that are still alive."""
        self._watch.tell_failure(mine.sentence)
        found = {self._meeting.rank: mine}
        enough = threading.Event()
        exchange = threading.Thread(target=self._exchange, args=(attempt, mine, found, enough), daemon=True)
        exchange.start()  # a thread: the store does not answer where its machine has no power any more
        missing: list[int] = []
        while len(found) < self._meeting.size and not missing:
            time.sleep(0.1)
            # The store may have ended before the watch has noticed: no answer is no reason to go on without.
            missing = [
                rank
                for rank in range(self._meeting.size)
                if rank not in found and self._watch.silence_of(rank) > _SILENT_SECONDS
            ]
        if missing:
            enough.set()
        exchange.join(1.0 if missing else _SILENT_SECONDS)
        cause = root_cause(list(found.values()))
        if not missing:
            return cause
        if cause.is_consequence:
            cause = Verdict(
                self._watch.describe_silence(max(missing, key=self._watch.silence_of)), True, True, 1, cause.time
            )
        # There is nobody left to go on with.
        return replace(cause, sentence=str(cause.error(hint=_HINT)), is_loss=False)

    def _exchange(self, attempt: int, mine: Verdict, found: dict[int, Verdict], enough: threading.Event) -> None:
        store = self._meeting.store
        with suppress(dist.DistError):  # the first machine is gone, which the watch tells too
            store.set(f"verdict/{attempt}/{self._meeting.rank}", mine.to_json())
            while len(found) < self._meeting.size and not enough.is_set():
                for rank in range(self._meeting.size):
                    key = f"verdict/{attempt}/{rank}"
                    if rank not in found and store.check([key]):
                        found[rank] = Verdict.from_json(store.get(key).decode())
                time.sleep(0.1)
            if self._meeting.rank:
                store.add(f"heard/{attempt}", 1)
            elif not enough.is_set():
                self._meeting.wait_for_readers(f"heard/{attempt}")


def _cores() -> int:
    """How many cores this process may use: in a batch job, not all that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _silence_torch() -> None:
    """Keep torch's launcher from printing what we report in our own words; each of its modules sets its own level."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing.spawn")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _saved_after(signal_number: int) -> Interrupted:
    name = signal.Signals(signal_number).name
    return Interrupted(signal_number, f"the processes ended after {name}; --resume continues from the last saved state")
