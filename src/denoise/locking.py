"""One run at a time on one output: a lock that the kernel holds, and drops when the process ends in whatever way.

The lock file names who holds it, for people. It is removed on a clean exit; one that a killed process left behind
blocks nobody.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from denoise.errors import OutputError
from denoise.files import explained

_log = logging.getLogger(__name__)

#: What file systems say that have no locks: NFS without its lock service, Lustre mounted without ``flock``.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def only_run(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` for as long as the block runs.

    Parameters
    ----------
    path
        The lock file; made, with its folder, where it is missing.
    what
        What is in use while the lock is held, for the message: "the training in runs/first".

    Raises
    ------
    OutputError
        Another process holds the lock (named with host, process id and start), or the file cannot be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path, what)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # while it is locked: nobody can have taken it meanwhile
            os.close(descriptor)


def _locked(path: Path, what: str) -> int | None:
    """A descriptor of the lock file, locked; None where the file system has no locks."""
    while True:
        # Not inherited by processes that are started from here: the lock ends with this one.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_still(path, descriptor):  # its holder removed it between our two calls
                os.close(descriptor)
                continue
            os.ftruncate(descriptor, 0)
            with _although_the_disk_is_full():
                os.pwrite(descriptor, _about_this_process(), 0)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise OutputError(
                f"{what} is in use by {holder}; wait for its end or stop it, or choose another output"
            ) from error
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LOCKS:
                raise
            path.unlink(missing_ok=True)
            _log.warning(
                "the file system of %s has no file locks (%s): take care that no second run works on %s",
                path.parent,
                error.strerror,
                what,
            )
            return None
        return descriptor


@contextmanager
def _although_the_disk_is_full() -> Iterator[None]:
    """The lock holds without the note of who holds it; who writes the result says better what the disk lacks."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _about_this_process() -> bytes:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}).encode()


def _holder(descriptor: int) -> str:
    """Who holds the lock, as far as the file says: it may have been read before its holder wrote it."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(found['pid'])} on {found['host']!s:.255}, since {found['since']!s:.40}"
    except (ValueError, KeyError, TypeError):
        return "another process"
