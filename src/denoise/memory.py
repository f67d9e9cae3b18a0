"""How much memory this process may still take (the machine's, or what a batch system allows), and what processes take.

Figures are in bytes, per node. And whether an error says that it ran out.
"""

from __future__ import annotations

import ctypes
import errno
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from denoise.errors import DeviceError

#: Of the free memory, what training data may take; the rest is for the network and the page cache.
_HOST_SHARE = 0.6

#: Resident memory of a training process without data, rounded up. Measured with torch 2.13 on Linux, on the CPU, on
#: splits of 3 MB: a process of `denoise train` took 438 MB at most (2.5D) and 421 MB (3D), of which some 30 MB are its
#: steps; of two processes each 421 MB, and the launcher with its helper 275 MB. Testing the splits first leaves 15 MB
#: more, and the first picture of a run 10. The figures for other devices are guesses: there the libraries are larger.
_PROCESS_BYTES = {"cpu": 465_000_000, "mps": 1_000_000_000, "cuda": 3_000_000_000}
#: Of one that has imported everything and read nothing; and what testing the splits has left there (CPU).
IMPORTED_BYTES, _LEFT_BYTES = 275_000_000, 25_000_000
_LAUNCHER_BYTES = 300_000_000
#: Of a denoising process without slabs, batches and weights (of ours: 1 MB). Measured likewise, on 64 slices of 512^2:
#: 380 MB (2.5D) and 527 MB (3D), of which slabs and slices being written were 70 and 151 MB, a batch 13 and 79.
_DENOISING_BYTES = {"cpu": 297_000_000, "mps": 1_000_000_000, "cuda": 3_000_000_000}

#: Names that mallopt knows its settings by.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1

_ROOT = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self/cgroup")


def process_bytes() -> int:
    """What this process holds in memory now, in bytes (resident set)."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """The most that this process held in memory so far."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, this does not count what its parent held before it began
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii"))
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back_freed() -> None:
    """Return what this process has freed to the machine, where the C library keeps it for itself (glibc)."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


@contextmanager
def large_arrays_given_back() -> Iterator[None]:
    """Meanwhile, arrays of 1 MB and more go back to the machine as soon as they are freed, whichever thread had them.

    The C library (glibc) does so at first, and gives up where such arrays come and go. Taking them anew costs time: for
    work that takes much longer than that.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        # As they are in the end where nobody sets them (mallopt(3)).
        mallopt(_MMAP_THRESHOLD, 2**25)
        mallopt(_TRIM_THRESHOLD, 2**26)


def available_bytes(process: Path = _PROCESS, root: Path = _ROOT) -> int:
    """Free memory in bytes, by the tightest limit that holds.

    A job's share of a node is a control group, which the machine's own figure ignores: whoever takes more is killed.

    Parameters
    ----------
    process, root
        Where Linux tells of control groups (version 2, and version 1's memory controller); elsewhere they are missing.
    """
    limits = [int(psutil.virtual_memory().available)]
    if process.is_file():
        for line in process.read_text(encoding="utf-8").splitlines():
            number, controllers, group = line.split(":", 2)
            if number == "0":
                limits += _left_in(root, group, "memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                limits += _left_in(root / "memory", group, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return max(0, min(limits))


def processes_bytes(device_type: str, processes: int, each: int) -> int:
    """What the processes of a training run take on a node, without training data.

    Parameters
    ----------
    device_type
        "cpu", "cuda" or "mps".
    processes
        On this node; several have a launcher beside them.
    each
        What every one of them takes for its steps, besides what any such process takes.
    """
    return processes * (_PROCESS_BYTES[device_type] + each) + (_LAUNCHER_BYTES if processes > 1 else 0)


def first_step_bytes(device_type: str) -> int:
    """What libraries take of that with the first step, and not while the splits are read."""
    return _PROCESS_BYTES["cpu"] - IMPORTED_BYTES - _LEFT_BYTES if device_type == "cpu" else 0


def denoising_bytes(device_type: str, processes: int) -> int:
    """What the processes of ``denoise volume`` take on a node, without slabs and batches; several have a launcher."""
    return processes * _DENOISING_BYTES[device_type] + (_LAUNCHER_BYTES if processes > 1 else 0)


def share_of(max_memory: int, processes: int) -> int:
    """What each of a node's processes may take of what they may take together with the launcher of several."""
    return (max_memory - (_LAUNCHER_BYTES if processes > 1 else 0)) // processes


def data_budget(max_memory: int | None, taken: int) -> int:
    """What training data may take.

    Parameters
    ----------
    max_memory
        What all processes of this node may take together; None: so much that the machine stays usable.
    taken
        What they take besides data.

    Raises
    ------
    DeviceError
        The processes alone need more than they may take.
    """
    if max_memory is None:
        return int(_HOST_SHARE * available_bytes())
    if max_memory <= taken:
        raise DeviceError(
            f"training may take {max_memory / 1e9:.2f} GB of memory, but needs {taken / 1e9:.2f} GB besides its data; "
            "allow more, or lower train.batch_size, the patch size or the number of processes"
        )
    return max_memory - taken


def total_bytes() -> int:
    """What the machine has."""
    return int(psutil.virtual_memory().total)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the host or on an accelerator.

    numpy raises a MemoryError; torch an OutOfMemoryError of its own on GPUs, and a RuntimeError on the CPU, on Apple's
    GPUs, and where page-locked memory, a GPU's context or its libraries' workspaces find no room; threads that cannot
    have a stack a RuntimeError; the operating system ENOMEM.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = (
        "can't allocate memory",
        "not enough memory",
        "out of memory",
        "ALLOC_FAILED",
        "Invalid buffer size",
        "can't start new thread",
        "bad_alloc",
        "bad allocation",
        "could not create a memory",
    )
    # oneDNN, where there is no room for a layer's code; "a primitive descriptor" is what it does not know how to do.
    no_code = str(error).endswith("could not create a primitive")
    return isinstance(error, RuntimeError) and (no_code or any(words in str(error) for words in said))


def _left_in(root: Path, group: str, limit_name: str, usage_name: str) -> list[int]:
    """What is left in a group and in every group above it that has a limit."""
    left = []
    folder = root / group.lstrip("/")
    for place in (folder, *folder.parents):
        limit, usage = place / limit_name, place / usage_name
        if limit.is_file() and usage.is_file():
            allowed = limit.read_text(encoding="utf-8").strip()
            if allowed.isdigit():
                left.append(int(allowed) - int(usage.read_text(encoding="utf-8")))
        if place == root:
            break
    return left
