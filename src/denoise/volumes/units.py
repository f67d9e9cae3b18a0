"""Lengths as image files write them, in micrometres, and which voxel sizes are worth believing."""

from __future__ import annotations

import math
from typing import Final

_MICROMETRES: Final = {
    "angstrom": 1e-4,
    "å": 1e-4,
    "nanometer": 1e-3,
    "nm": 1e-3,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "micron": 1.0,
    "um": 1.0,
    "µm": 1.0,  # micro sign
    "μm": 1.0,  # Greek mu
    "\\u00b5m": 1.0,  # as ImageJ escapes it
    "millimeter": 1e3,
    "mm": 1e3,
    "centimeter": 1e4,
    "cm": 1e4,
    "meter": 1e6,
    "m": 1e6,
    "inch": 25400.0,
    "in": 25400.0,
}

# Nano-CT starts near 10 nm, medical CT ends near 1 mm; beyond that a tag was filled in by habit.
_SMALLEST_UM, _LARGEST_UM = 1e-3, 1e4


def in_micrometres(length: float, unit: str) -> float | None:
    """A length in micrometres, or None where the unit is unknown or the length no voxel could have.

    Parameters
    ----------
    length
        Any sign: some programs write a negative spacing for a flipped stack.
    unit
        As in OME-XML, OME-Zarr or ImageJ: ``nm``, ``micron``, ``millimeter``; case and plural do not matter.
    """
    name = unit.strip().lower()
    factor = _MICROMETRES.get(name) or _MICROMETRES.get(name.removesuffix("s"))
    if factor is None or not math.isfinite(length):
        return None
    size = rounded(abs(length) * factor)
    return size if _SMALLEST_UM <= size <= _LARGEST_UM else None


def rounded(size: float) -> float:
    """A size to 7 digits, as many as are ever measured: 0.65 stays that through metres, inches or single precision."""
    return float(f"{size:.7g}")
