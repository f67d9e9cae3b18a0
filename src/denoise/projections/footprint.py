"""How many detector rows are reconstructed at a time, and what memory that takes: known before anything is read."""

from __future__ import annotations

import os
from dataclasses import dataclass

from denoise.errors import DeviceError
from denoise.memory import available_bytes, process_bytes
from denoise.projections.scan import Scan
from denoise.volumes.slice_pool import waiting_bytes

#: Rows that are back-projected together: their sum over one image line stays in the cache.
ROWS_TOGETHER = 16
# Reading whole rows is faster in larger slabs, up to about here.
_MOST_ROWS = 64
# Where no limit is given, of the free memory.
_SHARE = 4
# What compiling the back-projection takes besides, and what loading algotom does (measured).
_COMPILED_BYTES, _ALGOTOM_BYTES = 120_000_000, 65_000_000
# Voxels of projections that are in the ramp filter at once, padded to twice their width; three copies of them exist.
FILTERED_TOGETHER = 2**22
# Copies of one row's sinogram while stripes are removed from it (measured).
_STRIPE_COPIES = 30
# What removing stripes has left in the process after some slabs (measured).
_STRIPES_LEAVE = 45_000_000


@dataclass(frozen=True)
class RowPlan:
    """So many detector rows at a time, and what the process will take, in bytes.

    A limit is kept to also where all outputs wait for a slow disk; what is predicted is that one of them does.
    """

    rows: int
    n_bytes: int


def plan_rows(scan: Scan, n_splits: int, *, stripes: bool, max_memory: int | None) -> RowPlan:
    """As many rows as pay, or as fit.

    Parameters
    ----------
    max_memory
        What this process may take, in bytes; None: a quarter of what is free.

    Raises
    ------
    DeviceError
        Not even one row at a time fits; says how much would.
    """
    waiting = waiting_bytes(4 * scan.shape[2] ** 2)
    besides = process_bytes() + _COMPILED_BYTES + _ALGOTOM_BYTES + (n_splits + 1) * waiting
    if stripes:
        besides += _STRIPES_LEAVE
    allowed = available_bytes() // _SHARE if max_memory is None else max_memory - besides
    rows = min(_MOST_ROWS, scan.shape[1])
    while rows > 1 and _slab_bytes(scan, rows, stripes) > allowed:
        rows -= 1
    needed = besides + _slab_bytes(scan, rows, stripes)
    if max_memory is not None and needed > max_memory:
        raise DeviceError(
            f"reconstructing {scan.path} one detector row at a time needs about {needed / 1024**3:.2f}G of memory, and "
            f"{max_memory / 1024**3:.2f}G are allowed; allow more with --max-memory"
        )
    return RowPlan(rows, needed - n_splits * waiting)


def _slab_bytes(scan: Scan, rows: int, stripes: bool) -> int:
    """What some rows take on their way, at the worst moment."""
    angles, _, columns = scan.shape
    sinograms, slices = 4 * angles * rows * columns, 4 * rows * columns * columns
    together = min(rows, ROWS_TOGETHER)
    # Counts as they are stored and as they are used; counts, line integrals, and which of them had to be repaired.
    read = 4 * scan.detector_shape[0] * rows * columns + sinograms if scan.left_out else 0
    corrected = max(read, 5 * sinograms // 2)
    filtered = 3 * 4 * min(FILTERED_TOGETHER, 2 * angles * together * columns)
    projected = 2 * sinograms + slices + (sinograms + slices) * together // rows + filtered
    cleaned = 3 * sinograms + min(os.cpu_count() or 1, rows) * _STRIPE_COPIES * sinograms // rows
    return max(corrected, projected, cleaned if stripes else 0)
