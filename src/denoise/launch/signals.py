"""SIGINT and SIGTERM as a request to save and stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from denoise.launch.world import World


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
