"""A few threads that write slices, each to a file of its own, while the caller makes the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

_THREADS = 4
# Slices waiting to be written: enough to keep the threads busy, few enough that memory stays that of a slab.
_WAITING = 16
#: What those may take; one slice may always wait, however large it is.
_WAITING_BYTES = 2**26


def waiting_bytes(image_bytes: int) -> int:
    """What a pool may hold of slices of this size."""
    return max(image_bytes, min(_WAITING * image_bytes, _WAITING_BYTES))


class SlicePool:
    """Calls ``write(z, image)`` for slices, (Y, X), at most a few behind."""

    def __init__(self, write: Callable[[int, NDArray[Any]], None]) -> None:
        self._write = write
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="slice-writer")
        self._pending: deque[Future[None]] = deque()

    def store(self, z_start: int, slab: NDArray[Any]) -> None:
        """Hand over copies of slices z_start, z_start + 1, ...; raises the first error of an earlier one."""
        most = max(1, min(_WAITING, _WAITING_BYTES // max(slab[0].nbytes, 1))) if len(slab) else 1
        for k, image in enumerate(slab):
            while len(self._pending) >= most:
                self._wait_for_first()
            self._pending.append(self._threads.submit(self._write, z_start + k, image.copy()))

    def wait(self) -> None:
        """Until all are written; raises the first error, to everyone who asks."""
        while self._pending:
            self._wait_for_first()

    def _wait_for_first(self) -> None:
        # It stays where it failed, or a signal came meanwhile: whoever waits next must not take it for written.
        self._pending[0].result()
        self._pending.popleft()

    def close(self) -> None:
        """Drop what waits, and stop."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
