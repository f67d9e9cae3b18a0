"""Watching over partners: a machine that dies without a word leaves the others waiting in an exchange.

Every participant of a meeting writes a beat now and then and reads those of the others. One that has said that it
failed, or has not been heard of for a minute, ends this one's work. Threads, because the work itself may be stuck.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from denoise.launch.meeting import Meeting

_BEAT_SECONDS = 2.0
#: A machine that swaps, or a network that finds another way, is silent for seconds; a minute is no pause any more.
LONGEST_SILENCE_SECONDS = 60.0
#: Time for the work to notice itself that a partner is gone: it then has the better message.
_GRACE_SECONDS = 15.0
_CLOSING_SECONDS = 2.0


class Watch:
    """Beats of all participants of a meeting.

    Parameters
    ----------
    on_loss
        Called once, in a thread, with a sentence, when a partner is lost.
    """

    def __init__(self, meeting: Meeting, on_loss: Callable[[str], None]) -> None:
        self._meeting, self._on_loss = meeting, on_loss
        # A connection of its own: the other one may be waiting for an answer.
        self._store = meeting.store.clone()  # type: ignore[attr-defined]
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock, self._writing = threading.Lock(), threading.Lock()
        now = time.monotonic()
        self._beats: list[tuple[str, float]] = [("", now)] * meeting.size
        self._round = now  # when all beats were last read
        self._failed: dict[int, tuple[str, float]] = {}  # what it said, and when that was read
        self._attempt = 0
        self._own_failure: str | None = None
        self._count = 0
        self.loss: str | None = None
        self._beat()  # before anybody looks

    def start(self) -> None:
        """Begin to beat; everybody must be there already. Nothing is done where there are no partners."""
        if self._meeting.size > 1:
            self._run(self._keep_beating)

    @contextmanager
    def judging(self, attempt: int = 0) -> Iterator[None]:
        """While the block runs, a lost partner is a reason to end.

        Parameters
        ----------
        attempt
            Failures that the others tell of an earlier attempt do not count.
        """
        self.loss, self._own_failure, self._attempt = None, None, attempt
        stopping = threading.Event()
        if self._meeting.size > 1:
            self._run(self._keep_judging, stopping)
        try:
            yield
        finally:
            stopping.set()

    def close(self) -> None:
        """End, also the threads: torch aborts a process that ends while one of them returns from its store.

        One that waits for a store which does not answer any more is left: it never returns.
        """
        self._closing.set()
        for thread in self._threads:
            thread.join(_CLOSING_SECONDS)

    def tell_failure(self, sentence: str) -> None:
        """Let the others know why this participant ends, if they can be reached; waits for no answer."""
        self._own_failure = sentence
        # The store may not answer any more, and an earlier question to it be waiting still.
        self._run(self._tell)

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True, name=f"denoise{work.__name__}")
        self._threads.append(thread)
        thread.start()

    def _tell(self) -> None:
        with self._writing, suppress(dist.DistError):
            content = {"failed": self._own_failure, "attempt": self._attempt}
            self._store.set(self._key(self._meeting.rank), json.dumps(content))

    def failure_of_others(self) -> str | None:
        """What the first of the others said that failed."""
        with self._lock:
            return min(self._failed.values(), key=lambda failed: failed[1])[0] if self._failed else None

    def silence_of(self, rank: int) -> float:
        """Seconds since a partner was last heard of. Where the store does not answer, its host is the silent one."""
        with self._lock:
            heard, last = self._beats[rank][1], self._round
        return time.monotonic() - last if rank == 0 else max(0.0, last - heard)

    def describe_silence(self, rank: int) -> str:
        """For people."""
        silence = self.silence_of(rank)
        since = "its connection broke" if math.isinf(silence) else f"nothing was heard of it for {silence:.0f} s"
        return (
            f"{self._meeting.party.name} {rank} on {self._meeting.hosts[rank]} was lost ({since}): it was killed, "
            "crashed, or the network failed"
        )

    def _key(self, rank: int) -> str:
        return f"beat/{rank}"

    def _beat(self) -> None:
        with self._writing:
            self._count += 1
            if self._own_failure is None:
                self._store.set(self._key(self._meeting.rank), json.dumps({"beat": self._count}))

    def _keep_beating(self) -> None:
        keys = [self._key(rank) for rank in range(self._meeting.size)]
        while not self._closing.wait(_BEAT_SECONDS):
            try:
                self._beat()
                found = self._store.multi_get(keys)
            except dist.DistError:
                with self._lock:
                    self._round = -math.inf
                return
            now = time.monotonic()
            with self._lock:
                self._round = now
                for rank, value in enumerate(value.decode() for value in found):
                    if value != self._beats[rank][0]:
                        self._beats[rank] = (value, now)
                        content: dict[str, Any] = json.loads(value)
                        if content.get("attempt", -1) >= self._attempt and rank != self._meeting.rank:
                            self._failed[rank] = (content["failed"], now)
                        else:
                            self._failed.pop(rank, None)

    def _keep_judging(self, stopping: threading.Event) -> None:
        while not stopping.wait(0.5):
            sentence = self._judge(stopping)
            if sentence and not stopping.is_set():
                self.loss = sentence
                self._on_loss(sentence)
                return

    def _judge(self, stopping: threading.Event) -> str | None:
        with self._lock:
            failed = sorted(self._failed.values(), key=lambda each: each[1])
        if failed and time.monotonic() - failed[0][1] > _GRACE_SECONDS:
            return failed[0][0]
        for rank in range(self._meeting.size):
            silence = self.silence_of(rank)
            if silence > LONGEST_SILENCE_SECONDS:
                # A broken connection needs no minute, but the work may notice it by itself.
                if math.isinf(silence) and stopping.wait(_GRACE_SECONDS):
                    return None
                return self.describe_silence(rank)
        return None
