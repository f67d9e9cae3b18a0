"""Slices that a format stores together: collected until a whole group is there.

A Zarr shard holds several slices and can only be written whole. Slabs come in any depth and order; what goes out are
whole groups, each of which begins at a multiple of the group's depth and ends there, or with the volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class _Group:
    slices: NDArray[Any]
    filled: NDArray[np.bool_]


@dataclass
class SliceGroups:
    """Groups of ``together`` slices of a volume that has ``depth``.

    A group that is begun takes memory of its full size until it is whole. Slabs in order leave one at most.
    """

    depth: int
    together: int
    _begun: dict[int, _Group] = field(default_factory=dict, init=False)

    def add(self, z_start: int, slab: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Take slices, (n, Y, X) from ``z_start``; give those that are whole groups now, with their first slice.

        What is given may be several groups in one, and part of ``slab`` itself.
        """
        z_stop = z_start + len(slab)
        z = z_start
        while z < z_stop:
            first = z - z % self.together
            end = min(first + self.together, self.depth)
            if z == first and end <= z_stop:
                # Whole groups need no collecting: the run of them goes through as it is.
                end = z_stop if z_stop == self.depth else z_stop - z_stop % self.together
                yield z, slab[z - z_start : end - z_start]
                z = end
                continue
            stop = min(end, z_stop)
            group = self._begun.get(first)
            if group is None:
                empty = np.empty((end - first, *slab.shape[1:]), dtype=slab.dtype)
                group = self._begun[first] = _Group(empty, np.zeros(end - first, dtype=bool))
            group.slices[z - first : stop - first] = slab[z - z_start : stop - z_start]
            group.filled[z - first : stop - first] = True
            if group.filled.all():
                del self._begun[first]
                yield first, group.slices
            z = stop

    def emptied(self) -> SliceGroups:
        """The same with nothing in it."""
        return SliceGroups(self.depth, self.together)
