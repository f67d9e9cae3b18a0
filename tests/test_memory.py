from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from denoise.errors import DeviceError
from denoise.memory import available_bytes, data_budget, processes_bytes


def group(root: Path, name: str, limit: str, usage: int) -> None:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{usage}\n")


@pytest.fixture
def process(tmp_path: Path) -> Path:
    path = tmp_path / "cgroup"
    path.write_text("0::/jobs/step0\n")
    return path


def test_without_control_groups_it_is_what_the_machine_has_free(tmp_path: Path) -> None:
    free = available_bytes(tmp_path / "missing", tmp_path)
    assert abs(free - psutil.virtual_memory().available) < 2e9


def test_the_limit_of_the_job_counts_less_what_it_uses(tmp_path: Path, process: Path) -> None:
    group(tmp_path / "fs", "jobs/step0", "5000000", 2000000)
    assert available_bytes(process, tmp_path / "fs") == 3000000


def test_a_tighter_limit_further_up_wins_and_unlimited_groups_do_not_count(tmp_path: Path, process: Path) -> None:
    group(tmp_path / "fs", "jobs/step0", "max", 10)
    group(tmp_path / "fs", "jobs", "4000000", 3500000)
    assert available_bytes(process, tmp_path / "fs") == 500000


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path, process: Path) -> None:
    group(tmp_path / "fs", "jobs/step0", "1000", 2000)
    assert available_bytes(process, tmp_path / "fs") == 0


def test_the_older_hierarchy_is_read_too(tmp_path: Path) -> None:
    process = tmp_path / "cgroup"
    process.write_text("5:cpu,memory:/job\n3:freezer:/job\n")
    folder = tmp_path / "fs" / "memory" / "job"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("7000\n")
    (folder / "memory.usage_in_bytes").write_text("3000\n")
    assert available_bytes(process, tmp_path / "fs") == 4000


def test_data_may_take_what_is_given_less_what_the_processes_take() -> None:
    assert data_budget(8_000_000_000, 1_500_000_000) == 6_500_000_000
    with pytest.raises(DeviceError, match=r"may take 1\.00 GB of memory, but needs 1\.50 GB besides"):
        data_budget(1_000_000_000, 1_500_000_000)


def test_without_a_limit_data_leave_some_of_what_is_free() -> None:
    free = psutil.virtual_memory().available
    assert 0.3 * free < data_budget(None, 0) < 0.9 * free


def test_several_processes_have_a_launcher_beside_them() -> None:
    one, two, three = (processes_bytes("cpu", count, 10**6) for count in (1, 2, 3))
    assert two > 2 * one
    assert three - two == one
    assert processes_bytes("cpu", 4, 2 * 10**6) - processes_bytes("cpu", 4, 10**6) == 4 * 10**6


_FREED_BY_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from denoise.memory import large_arrays_given_back, process_bytes

def work(k):
    for n in range(1, 30):  # grows, so that the threshold of the C library does
        np.ones(n * 100_000)

before = process_bytes()
with large_arrays_given_back(), ThreadPoolExecutor(4) as pool:
    list(pool.map(work, range(8)))
print(process_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of the C library of Linux")
def test_what_threads_have_freed_is_not_kept_for_them() -> None:
    done = subprocess.run([sys.executable, "-c", _FREED_BY_THREADS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8_000_000
