"""Removes noise from X-ray CT reconstructions with a network trained on the scan itself (Noise2Inverse).

>>> import denoise
>>> checkpoint = denoise.train([split0, split1], "model", network="residual")
>>> result = denoise.denoise_volume(full, checkpoint)

Everything heavy (torch, h5py, zarr) is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from denoise.api import denoise_into, denoise_volume, load_checkpoint, train
    from denoise.checkpoint import Checkpoint
    from denoise.cluster import Spread
    from denoise.errors import DenoiseError
    from denoise.launch import Compute
    from denoise.tiles import Region
    from denoise.volumes import ArrayVolume, Volume, VolumeSink, create_sink, open_volume

__all__ = [
    "ArrayVolume",
    "Checkpoint",
    "Compute",
    "DenoiseError",
    "Region",
    "Spread",
    "Volume",
    "VolumeSink",
    "create_sink",
    "denoise_into",
    "denoise_volume",
    "load_checkpoint",
    "open_volume",
    "train",
]

_HOMES = {
    "denoise.api": ("denoise_into", "denoise_volume", "load_checkpoint", "train"),
    "denoise.checkpoint": ("Checkpoint",),
    "denoise.cluster": ("Spread",),
    "denoise.errors": ("DenoiseError",),
    "denoise.launch": ("Compute",),
    "denoise.tiles": ("Region",),
    "denoise.volumes": ("ArrayVolume", "Volume", "VolumeSink", "create_sink", "open_volume"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'denoise' has no attribute {name!r}")
