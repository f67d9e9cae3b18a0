"""From raw projections to reconstructed splits, and simulated scans to try it on."""

from __future__ import annotations

import os
import sys


def _share_threads() -> None:
    """Let numba take no more threads than OMP_NUM_THREADS allows: it looks at a variable of its own only.

    Where its threads are OpenMP's, it would raise their number for torch too. Once numba is loaded it is too late.
    """
    if "numba" in sys.modules:
        return
    allowed = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if allowed.isdecimal() and int(allowed) > 0:
        os.environ.setdefault("NUMBA_NUM_THREADS", str(min(int(allowed), os.cpu_count() or 1)))


_share_threads()
