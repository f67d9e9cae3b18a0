"""What a machine can do to a run, on request: small and read-only disks, small files, permissions, no memory.

A plugin: test modules name it in ``pytest_plugins``. What the system does not permit is skipped.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_PRIVATE, _READ_ONLY, _REMOUNT, _DETACH = 0x44000, 1, 32, 2  # MS_REC | MS_PRIVATE, MS_RDONLY, ..., MNT_DETACH
_OVERRIDES = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: root's freedom from permissions

_IN_LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path
import torch
from denoise.cli import main
torch.set_num_threads(1)
n_bytes, *commands = json.loads(sys.argv[1])
for last, command in zip((False, True), commands, strict=True):
    if last:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + n_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as ended:
        if last or ended.code:
            raise
"""

Disk: TypeAlias = Callable[[int], Path]


def _libc() -> ctypes.CDLL:
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    return ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """``disk(n_bytes)``: a file system of that size, seen by this thread and its children only."""
    libc = _libc()
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    here = Path.cwd()
    if libc.unshare(_NEW_MOUNTS):
        os.close(before)
        pytest.skip("private mounts are not permitted here")
    libc.mount(b"none", b"/", None, _PRIVATE, None)
    mounted: list[Path] = []

    def mount(n_bytes: int) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        if libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, f"size={n_bytes}".encode()):
            pytest.skip("mounting is not permitted here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        libc.umount2(str(place).encode(), _DETACH)
    libc.setns(before, _NEW_MOUNTS)
    os.chdir(here)
    os.close(before)


@pytest.fixture
def read_only_disk(disk: Disk) -> Path:
    """A file system that cannot be written."""
    place = disk(2**20)
    assert _libc().mount(b"none", str(place).encode(), None, _REMOUNT | _READ_ONLY, None) == 0
    return place


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@pytest.fixture
def permissions_hold() -> Iterator[None]:
    """Permissions of files bind this thread, also where it is root's."""
    libc = _libc()
    header, before, sets = _Header(0x20080522, 0), (_Sets * 2)(), (_Sets * 2)()
    libc.capget(ctypes.byref(header), before)
    libc.capget(ctypes.byref(header), sets)
    sets[0].effective &= ~_OVERRIDES
    assert libc.capset(ctypes.byref(header), sets) == 0
    yield
    libc.capset(ctypes.byref(header), before)


@pytest.fixture
def denoise_in_little_memory() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``denoise_in_little_memory(n_bytes, before, command)``: with so much more address space than another took before.

    In a process of its own: where memory was short once, oneDNN makes no kernel any more in that thread.
    """
    if sys.platform != "linux":
        pytest.skip("needs Linux")

    def run(n_bytes: int, *commands: Sequence[object]) -> subprocess.CompletedProcess[str]:
        said = json.dumps([n_bytes, *([str(part) for part in command] for command in commands)])
        return subprocess.run(
            [sys.executable, "-c", _IN_LITTLE_MEMORY, said], capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture
def small_files() -> Callable[[int], AbstractContextManager[None]]:
    """``with small_files(n_bytes)``: no file that this process writes may be larger, as batch systems can say."""

    @contextmanager
    def limited(n_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
