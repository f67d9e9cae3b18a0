"""From float32 slabs to the type that is stored: rounding, clipping, and counting what was clipped."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise.errors import OutputError

_log = logging.getLogger(__name__)


@dataclass
class GreyValueEncoder:
    """Turns slabs into ``dtype``; floats are cast, integers rounded to the nearest and clipped to the type's range.

    ``clipped`` counts the voxels that were outside the range so far, ``seen`` all of them.
    """

    dtype: np.dtype[Any]
    clipped: int = 0
    seen: int = 0

    def encode(self, slab: NDArray[np.floating[Any]], where: str) -> NDArray[Any]:
        """The slab in the stored type; the same array where nothing has to change.

        Parameters
        ----------
        where
            Names the output and the slices in an error.

        Raises
        ------
        OutputError
            The stored type is an integer, and the slab has NaN, which no integer can hold.
        """
        if self.dtype.kind == "f":
            return slab.astype(self.dtype, copy=False)
        not_numbers = int(np.count_nonzero(np.isnan(slab)))
        if not_numbers:
            raise OutputError(
                f"{where}: {not_numbers} of {slab.size} voxels are NaN, which {self.dtype} cannot hold; "
                "write float32 instead, or replace the NaN in the input"
            )
        limits = np.iinfo(self.dtype)
        rounded = np.rint(slab)
        self.clipped += int(np.count_nonzero((rounded < limits.min) | (rounded > limits.max)))
        self.seen += slab.size
        np.clip(rounded, limits.min, limits.max, out=rounded)
        encoded: NDArray[Any] = rounded.astype(self.dtype)
        return encoded

    def report(self, path: str) -> None:
        """Log, once, how many voxels were clipped; nothing where none was."""
        if self.clipped:
            limits = np.iinfo(self.dtype)
            _log.warning(
                "%s: %d of %d voxels were outside the range of %s (%d..%d) and were clipped to it; "
                "write float32 to keep them",
                path,
                self.clipped,
                self.seen,
                self.dtype,
                limits.min,
                limits.max,
            )
