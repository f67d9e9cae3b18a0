"""The levels of a pyramid as they should be, in one line of numpy each."""

from __future__ import annotations

import numpy as np


def block_means(volume: np.ndarray, factors: tuple[int, int, int]) -> np.ndarray:
    """Means over blocks; those at the end of an odd size are means of what there is."""
    means = volume.astype("f8")
    for axis, f in enumerate(factors):
        edges = np.arange(0, volume.shape[axis], f)
        counts = np.diff([*edges, volume.shape[axis]])
        means = np.add.reduceat(means, edges, axis) / counts.reshape([-1 if a == axis else 1 for a in range(3)])
    return means
