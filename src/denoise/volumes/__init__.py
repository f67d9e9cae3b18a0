"""Volumes on disk: open one of any format, create one of any format, read it region by region."""

from __future__ import annotations

from denoise.volumes.combined import mean_of
from denoise.volumes.opening import create_sink, is_whole, open_volume, stored_description
from denoise.volumes.volume import (
    ArrayVolume,
    SplitSet,
    Volume,
    VolumeSink,
    VoxelSize,
    describe_numbers,
    read_reflected,
    require_same_grid,
    slice_range,
)

__all__ = [
    "ArrayVolume",
    "SplitSet",
    "Volume",
    "VolumeSink",
    "VoxelSize",
    "create_sink",
    "describe_numbers",
    "is_whole",
    "mean_of",
    "open_volume",
    "read_reflected",
    "require_same_grid",
    "slice_range",
    "stored_description",
]
