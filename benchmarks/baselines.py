"""Classical denoisers for comparison, each with the strength that suits the truth best: an advantage no user has.

Total variation and non-local means are scikit-image's, BM3D is the package `bm3d` (not free for commercial use, and
never a dependency: it takes part where it is installed).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

Float32Array = NDArray[np.float32]
Denoise = Callable[[Float32Array, float], Float32Array]
"""Takes a stack scaled to noise of standard deviation 1, and a strength."""


def _total_variation(stack: Float32Array, strength: float) -> Float32Array:
    return np.asarray(denoise_tv_chambolle(stack, weight=strength, max_num_iter=100), np.float32)


def _non_local_means(stack: Float32Array, strength: float) -> Float32Array:
    slices = [
        denoise_nl_means(image, patch_size=5, patch_distance=7, h=strength, sigma=1.0, fast_mode=True)
        for image in stack
    ]
    return np.asarray(slices, np.float32)


def _bm3d(stack: Float32Array, strength: float) -> Float32Array:
    import bm3d

    return np.asarray([bm3d.bm3d(image, strength) for image in stack], np.float32)


CLASSICAL: Mapping[str, tuple[Denoise, tuple[float, ...]]] = {
    "tv": (_total_variation, (0.5, 1.0, 2.0, 3.0, 4.0)),
    "nlm": (_non_local_means, (0.5, 0.8, 1.2)),
    **({"bm3d": (_bm3d, (0.8, 1.2, 1.8))} if importlib.util.find_spec("bm3d") else {}),
}
