"""How much memory this process takes, and may still take: the machine's, or what a batch system allows it."""

from __future__ import annotations

from pathlib import Path

import psutil

_ROOT = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self/cgroup")


def process_bytes() -> int:
    """What this process holds in memory now, in bytes (resident set)."""
    return int(psutil.Process().memory_info().rss)


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
