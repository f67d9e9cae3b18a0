"""HDF5 files are opened in a process of their own first, where they can do no harm.

Where the *global heap* of a file is damaged (zeros from a broken disk are enough), libhdf5 2.0 goes round in circles
for ever, holds Python's interpreter lock meanwhile, and not even Ctrl-C ends it. Text of variable length and the layout
of virtual datasets lie there, in other people's scans above all. So what is read of a file when it is opened is read
once by a child that the operating system ends after some seconds of processor time. Files without such a heap need no
child.
"""

from __future__ import annotations

import logging
import mmap
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from denoise.errors import DenoiseError
from denoise.memory import peak_bytes

_log = logging.getLogger(__name__)

#: Of processor time; what is asked for takes some milliseconds, of files with thousands of datasets a second.
SECONDS = 20
#: Resident in the child at most; it takes 50 MB. The damaged length of a text can ask for 4 GB.
_BYTES = 2**30
_TOO_LARGE = 3
#: Every collection of a global heap begins so.
_HEAP = b"GCOL"
#: Files to this size are searched for it, which takes less than the child does.
_SEARCHED_BYTES = 16 * 2**20
_CHILD = "import sys; from denoise.volumes.hdf5_trial import in_child; in_child(*sys.argv[1:])"
#: Signals that mean the command, not the file.
_STOPPED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_passed: set[tuple[str, ...]] = set()


def require_harmless(opening: str, path: Path, *arguments: str, error: type[DenoiseError]) -> None:
    """Open a file in a child process; it must come to an end.

    Parameters
    ----------
    opening
        What is tried: a function as "module:name", called with the path and the arguments. What it says of the file, it
        will say again where it counts: only whether it ends is asked here.
    error
        What to raise.

    Raises
    ------
    DenoiseError
        Of the type ``error``: the child needed more than 20 s of processor time or 1 GB of memory, or died.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        return  # within a program that is no Python to start
    try:
        found = path.stat()
        key = opening, str(path), *arguments, str(found.st_size), str(found.st_mtime_ns)
        if key in _passed or not _may_have_heap(path, found.st_size):
            return
    except OSError:
        return  # it is not there, or may not be read: opening it says so
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD, str(SECONDS), opening, str(path), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as reason:  # no Python where it was, no more processes: no reason not to read the file
        _log.debug("no trial of %s: %s", path, reason)
        return
    if child.returncode == _TOO_LARGE or (child.returncode < 0 and -child.returncode not in _STOPPED_BY):
        raise error(
            f"{path} seems damaged: the HDF5 library {_in_words(child.returncode)} when it looks for what the file "
            "holds; copy the file again, or what is whole of it with h5copy"
        )
    if child.returncode:
        _log.debug("no trial of %s: %s", path, child.stderr.decode("utf-8", "replace"))
    else:
        _passed.add(key)


def in_child(seconds: str, opening: str, *arguments: str) -> None:
    """What the child does, within so many seconds of processor time."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) if most < 0 else min(int(seconds), most), most))
    module, name = opening.split(":")
    with suppress(DenoiseError):
        getattr(import_module(module), name)(*arguments)
    if peak_bytes() > _BYTES:
        sys.exit(_TOO_LARGE)


def _may_have_heap(path: Path, size: int) -> bool:
    if not 0 < size <= _SEARCHED_BYTES:
        return size > 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_HEAP) >= 0


def _in_words(code: int) -> str:
    if code == _TOO_LARGE:
        return f"takes more than {_BYTES >> 30} GB of memory"
    if -code == signal.SIGKILL:
        return "is ended by the system, for lack of memory as a rule,"
    return f"does not come to an end within {SECONDS} s" if -code == signal.SIGXCPU else "crashes"
