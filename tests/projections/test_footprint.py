"""How many rows are reconstructed at a time: what is predicted of memory against what arrays take."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from denoise.errors import DeviceError
from denoise.projections import footprint
from denoise.projections.footprint import RowPlan, plan_rows
from denoise.projections.reconstruct import reconstruct_scan
from denoise.projections.scan import Scan, write_scan
from denoise.volumes.sink import WholeAlready

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What other parts of the process take, in these tests.
OTHERS = 10**8


class Discarding(WholeAlready):
    """A sink that misses all of 40 slices, whatever is written."""

    @property
    def missing(self) -> list[range]:
        return [range(40)]

    def write(self, z_start: int, slab: NDArray[np.float32]) -> None:
        pass


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """300 angles, 40 rows of 96 columns, of nothing but noise."""
    rng = np.random.default_rng(0)
    data, white = (rng.integers(900, 1100, (count, 40, 96)).astype(np.uint16) for count in (300, 5))
    path = tmp_path / "scan.h5"
    write_scan(path, data, white, np.zeros((5, 40, 96), np.uint16), np.linspace(0, 180, 300, endpoint=False), "noise")
    return Scan.open(path)


@pytest.fixture(autouse=True)
def no_other_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "process_bytes", lambda: OTHERS)
    monkeypatch.setattr(footprint, "_COMPILED_BYTES", 0)
    monkeypatch.setattr(footprint, "_ALGOTOM_BYTES", 0)
    monkeypatch.setattr(footprint, "_STRIPES_LEAVE", 0)
    monkeypatch.setattr(footprint, "waiting_bytes", lambda image_bytes: 0)


def peak_of_arrays(scan: Scan, rows: int, stripes: bool) -> int:
    sinks = [Discarding(name) for name in ("full", "split0", "split1")]

    def run(scan: Scan) -> None:
        reconstruct_scan(
            scan, center=47.5, n_splits=2, stripes=stripes, full=sinks[0], splits=sinks[1:], rows_per_slab=rows
        )

    run(scan)  # what is loaded and compiled at the first time does not count
    tracemalloc.start()
    try:
        run(scan)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("left_out", [0, 20, 200])
def test_projections_that_are_left_out_are_read_all_the_same(
    scan: Scan, left_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "_MOST_ROWS", 40)
    used = scan.without(tuple(range(50, 50 + left_out)))
    planned = plan_rows(used, 2, stripes=False, max_memory=10**12).n_bytes - OTHERS
    assert 0.7 * planned < peak_of_arrays(used, 40, False) < 1.1 * planned


@pytest.mark.parametrize("rows", [4, 17, 40])
@pytest.mark.parametrize("stripes", [False, True])
def test_what_is_predicted_is_what_arrays_take(
    scan: Scan, rows: int, stripes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "_MOST_ROWS", rows)
    plan = plan_rows(scan, 2, stripes=stripes, max_memory=10**12)
    assert plan.rows == rows
    measured = peak_of_arrays(scan, rows, stripes)
    assert 0.7 * (plan.n_bytes - OTHERS) < measured < 1.1 * (plan.n_bytes - OTHERS)


def test_as_many_rows_as_fit_are_taken_and_never_more(scan: Scan) -> None:
    allowed = [OTHERS + n * 10**6 for n in (2, 3, 5, 8, 20, 10**4)]
    plans = [plan_rows(scan, 2, stripes=False, max_memory=n) for n in allowed]
    assert [plan.n_bytes <= n for plan, n in zip(plans, allowed, strict=True)] == [True] * 6
    rows = [plan.rows for plan in plans]
    assert rows == sorted(rows)
    assert rows[0] < rows[-1] == 40


def test_where_not_even_one_row_fits_it_says_what_would(scan: Scan) -> None:
    needed = plan_rows(scan, 2, stripes=False, max_memory=OTHERS + 2 * 10**6).n_bytes
    with pytest.raises(DeviceError, match=r"one detector row at a time needs about 0\.09G .* 0\.05G are allowed"):
        plan_rows(scan, 2, stripes=False, max_memory=needed // 2)


def test_without_a_limit_a_quarter_of_what_is_free_is_taken(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(plan_rows(scan, 2, stripes=False, max_memory=None), RowPlan)
    for free in (4 * 5 * 10**6, 4 * 12 * 10**6):
        monkeypatch.setattr(footprint, "available_bytes", lambda free=free: free)
        plan = plan_rows(scan, 2, stripes=False, max_memory=None)
        assert plan.n_bytes - OTHERS <= free // 4
        assert plan.rows < 40
