"""Shared by all tests: where the real data is, generators that are seeded, one thread per process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

# Read by torch when a test first imports it: two threads on a busy machine take ten times as long as one.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Also after a test that ran numba: its parallel loops raise the number of threads that torch takes."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _shared_data() -> Path:
    return Path(os.environ.get("DENOISE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real scan and the stored models; the test is skipped where it is missing."""
    folder = _shared_data()
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261123)
