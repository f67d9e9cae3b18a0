"""The symmetries of a square and of a cube, as what they are: permutations of axes with signs.

An element says, for every axis of the result, which axis of the source it walks along and in which direction. Applying
one to index vectors instead of voxels makes augmentation free (see ``sampler.BlockOffsets``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from denoise.tiles import Triple

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Symmetry:
    """Axis i of the result runs along source axis ``source_axis[i]``, backwards where ``reverse[i]``."""

    source_axis: Triple
    reverse: tuple[bool, bool, bool]

    def apply(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """The transformed view of a block (..., Z, Y, X); axes that are exchanged must have equal lengths."""
        lead = block.ndim - 3
        turned = block.transpose(*range(lead), *(lead + axis for axis in self.source_axis))
        return np.flip(turned, axis=tuple(lead + i for i, r in enumerate(self.reverse) if r))

    def turn(self, blocks: Tensor) -> Tensor:
        """The same for a tensor (..., Z, Y, X)."""
        lead = blocks.ndim - 3
        turned = blocks.permute(*range(lead), *(lead + axis for axis in self.source_axis))
        return turned.flip([lead + i for i, reverse in enumerate(self.reverse) if reverse])

    @property
    def inverse(self) -> Symmetry:
        """What undoes it."""
        source_axis, reverse = [0, 0, 0], [False, False, False]
        for axis, (source, backwards) in enumerate(zip(self.source_axis, self.reverse, strict=True)):
            source_axis[source], reverse[source] = axis, backwards
        return Symmetry((source_axis[0], source_axis[1], source_axis[2]), (reverse[0], reverse[1], reverse[2]))

    @property
    def determinant(self) -> int:
        """+1 for a rotation, -1 where a mirror is involved."""
        matrix = np.zeros((3, 3))
        for row, (axis, reverse) in enumerate(zip(self.source_axis, self.reverse, strict=True)):
            matrix[row, axis] = -1 if reverse else 1
        return round(float(np.linalg.det(matrix)))


IDENTITY = Symmetry((0, 1, 2), (False, False, False))

#: The 8 symmetries of the square, in the plane of a slice; z stays as it is. The first 4 only mirror.
SQUARE = tuple(
    Symmetry((0, *axes), (False, *reverse))  # type: ignore[arg-type]
    for axes in permutations((1, 2))
    for reverse in product((False, True), repeat=2)
)

#: The 24 rotations of the cube and their mirror images, 48 in all.
CUBE = tuple(
    Symmetry(axes, reverse)  # type: ignore[arg-type]
    for axes in permutations((0, 1, 2))
    for reverse in product((False, True), repeat=3)
)

#: Those of the cube that leave slices in their plane: the square's, and mirrored along z.
PRISM = tuple(symmetry for symmetry in CUBE if symmetry.source_axis[0] == 0)
