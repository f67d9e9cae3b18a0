"""What the header of a file may claim: sizes are checked before anything of their size is read or allocated.

A header of a few bytes can speak of a volume larger than any memory, or of one chunk that has to be decoded whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from denoise.errors import DenoiseError, VolumeError
from denoise.memory import total_bytes
from denoise.tiles import Triple

#: Detectors have a few thousand rows and columns. Beyond this a header is wrong, or made to fill the memory.
_LONGEST_AXIS = 2**20
#: One piece of a file is decoded whole, several at once; a slice of 16384 x 16384 float32 values is one gigabyte.
_LARGEST_PIECE = 2**31


def require_volume_shape(shape: Sequence[Any], what: str, kind: type[DenoiseError] = VolumeError) -> Triple:
    """The shape, if a volume can have it and the memory holds one of its slices.

    Parameters
    ----------
    what
        Names the file, or the place in it, in an error.
    kind
        Of the error.

    Raises
    ------
    VolumeError
        Not three axes; an empty one, or one of more than 2^20 voxels; a slice larger than the machine's memory.
    """
    if len(shape) != 3 or not all(isinstance(n, int | np.integer) and n > 0 for n in shape):
        raise kind(f"{what} has shape {tuple(shape)}; expected three axes (Z, Y, X), none empty")
    z, y, x = (int(n) for n in shape)
    if max(z, y, x) > _LONGEST_AXIS:
        raise kind(
            f"{what} has shape {(z, y, x)}; expected at most {_LONGEST_AXIS} voxels along an axis: its header is wrong"
        )
    # Not what is free: a batch job's figure counts the cache of the files that it has read as taken.
    needed, total = 4 * y * x, total_bytes()
    if needed > total:
        raise kind(
            f"{what} has slices of {y} x {x} voxels, {needed / 1e9:.3g} GB each, but this machine has "
            f"{total / 1e9:.3g} GB of memory; use a machine with more memory, unless the header is damaged"
        )
    return z, y, x


def axes_before(shape: Sequence[Any]) -> int:
    """How many axes stand before the last three, as one channel and one time do, if each has a length of 1; else 0."""
    before = len(shape) - 3
    return before if before > 0 and all(n == 1 for n in shape[:before]) else 0


def require_small_pieces(
    shape: Sequence[int], dtype: np.dtype[Any], what: str, kind: type[DenoiseError] = VolumeError
) -> None:
    """Check the size of the pieces (chunks, strips, tiles) in which a file stores its values.

    Raises
    ------
    VolumeError
        A piece has more than two gigabytes: reading one voxel would take that much memory.
    """
    size = math.prod(int(n) for n in shape) * dtype.itemsize
    if size > _LARGEST_PIECE:
        raise kind(
            f"{what} is stored in pieces of shape {tuple(shape)}, {size / 1e9:.3g} GB each; expected at most "
            f"{_LARGEST_PIECE / 1e9:.3g} GB: store it again in smaller chunks, strips or tiles"
        )
