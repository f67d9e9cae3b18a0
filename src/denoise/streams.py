"""Standard output and error that outlast what they are connected to: a full log disk, a closed pipe, a lost terminal.

A run of hours must not die, nor be reported as failed, because a line about it could not be written. What cannot be
written is lost (or comes later, where room appears again); files of results do not go through here.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

_log = logging.getLogger(__name__)


class LastingStream:
    """A text stream whose ``write`` and ``flush`` never fail; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        """The first refusal of the operating system."""

    def write(self, text: str) -> int:
        """Write what can be written; characters that the encoding lacks are escaped."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self.write(text.encode(self._stream.encoding, "backslashreplace").decode(self._stream.encoding))
        except OSError as error:
            self.failure = self.failure or error
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        try:
            self._stream.flush()
        except OSError as error:
            self.failure = self.failure or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let stdout and stderr of this process be lasting ones inside the block, and its end not fail because of them."""
    before = sys.stdout, sys.stderr
    out, err = LastingStream(before[0]), LastingStream(before[1])
    # They have all that the type of these asks for.
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    finally:
        out.flush()
        if out.failure is not None and out.failure.errno != errno.EPIPE:  # who closes a pipe has read enough
            _log.warning("what was printed could not be written (%s); results are complete", out.failure.strerror)
        err.flush()
        for stream, raw in zip((out, err), before, strict=True):
            if stream.failure is not None:
                _forget(raw)
        sys.stdout, sys.stderr = before


def _forget(stream: TextIO) -> None:
    """Let what is still buffered go nowhere: Python flushes once more at its end, and exits with 120 if that fails."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)
