"""What a machine can do to a run, on request: small and read-only disks, small files, permissions, no memory.

A plugin: test modules name it in ``pytest_plugins``. What the system does not permit is skipped.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_PRIVATE, _READ_ONLY, _REMOUNT, _DETACH = 0x44000, 1, 32, 2  # MS_REC | MS_PRIVATE, MS_RDONLY, ..., MNT_DETACH
_OVERRIDES = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: root's freedom from permissions

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
def little_memory() -> Callable[[int], AbstractContextManager[None]]:
    """``with little_memory(n_bytes)``: so much more address space than is in use, and no more."""

    @contextmanager
    def limited(n_bytes: int) -> Iterator[None]:
        if sys.platform != "linux":
            pytest.skip("needs Linux")
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + n_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    return limited


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
