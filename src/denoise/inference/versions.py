"""Versions of a tile that a network sees differently, so that the mean of what it predicts for them is better.

`infer.tta`, test-time augmentation. A network without symmetries predicts something else for the mirrored and turned
tile. One that has them (``denoise.networks.symmetric``) does not, but it halves the resolution of what it sees, in
cells that start at every second, fourth, ... voxel of the tile: shifted by one voxel, a tile is cut into other cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional

from denoise.patches.symmetry import SQUARE, Symmetry

#: Shifts along y and x. Four of them, each with a remainder of its own along either axis, are as good as all 16 of a
#: network that halves twice (docs/network-study.md, "Shifted tiles"); the first two differ by one voxel diagonally.
_SHIFTS = ((0, 0), (3, 1), (1, 2), (2, 3))


class Version(Protocol):
    """A tile seen differently."""

    def prediction(self, network: nn.Module, blocks: Tensor) -> Tensor:
        """What the network predicts for this version of blocks (B, Z, Y, X), where the block itself has its voxels."""
        ...


@dataclass(frozen=True)
class Turned:
    """Mirrored, or turned by 90 degrees."""

    symmetry: Symmetry

    def prediction(self, network: nn.Module, blocks: Tensor) -> Tensor:
        """See ``Version``."""
        return self.symmetry.inverse.turn(network(self.symmetry.turn(blocks)))


@dataclass(frozen=True)
class Shifted:
    """Moved by less than a cell; around it is its reflection, so that it fills whole cells.

    Attributes
    ----------
    down, right
        Voxels, 0 or more and less than ``cell``.
    cell
        What tiles are a multiple of along y and x, voxels.
    """

    down: int
    right: int
    cell: int

    def prediction(self, network: nn.Module, blocks: Tensor) -> Tensor:
        """See ``Version``."""
        height, width = blocks.shape[-2:]
        left, right = self._around(self.right)
        above, below = self._around(self.down)
        moved = functional.pad(blocks, (left, right, above, below), mode="reflect")
        predicted: Tensor = network(moved)
        return predicted[..., above : above + height, left : left + width]

    def _around(self, shift: int) -> tuple[int, int]:
        return (shift, self.cell - shift) if shift else (0, 0)


def turned(count: int) -> Sequence[Version]:
    """The first so many of 8 (2: one mirror, 4: all mirrors, 8: and turns), without the tile as it is."""
    return tuple(Turned(symmetry) for symmetry in SQUARE[1:count])


def shifted(count: int, cell: int) -> Sequence[Version]:
    """So many that are cut into other cells, or as many as differ (4 at most), without the tile as it is."""
    differing = list(dict.fromkeys((y % cell, x % cell) for y, x in _SHIFTS))
    return tuple(Shifted(y, x, cell) for y, x in differing[1:count])


def versions_for(symmetric: bool, count: int, cell: int) -> Sequence[Version]:
    """Those of so many that differ to a network: to one that treats directions alike, turned ones do not."""
    return shifted(count, cell) if symmetric else turned(count)


def named(versions: Sequence[Version]) -> str:
    """How many are averaged, and which, for descriptions."""
    return f"{1 + len(versions)}{' shifted' if any(isinstance(one, Shifted) for one in versions) else ''}"
