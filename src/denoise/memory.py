"""How much memory this process may still take: the machine's, or what a batch system allows it; and when it ran out."""

from __future__ import annotations

import errno
from pathlib import Path

import psutil

_ROOT = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self/cgroup")


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


def total_bytes() -> int:
    """What the machine has."""
    return int(psutil.virtual_memory().total)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the host or on an accelerator.

    numpy raises a MemoryError; torch an OutOfMemoryError of its own on GPUs and a RuntimeError on the CPU; threads that
    cannot have a stack a RuntimeError; the operating system ENOMEM.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = ("can't allocate memory", "not enough memory", "can't start new thread", "bad_alloc", "bad allocation")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


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
