"""How each network is best trained, where the user does not say: what `null` means in the section `train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

ScheduleName = Literal["constant", "cosine", "hold"]


@dataclass(frozen=True)
class Recipe:
    """Settings that belong to a network; the measurements behind them are in docs/network-study.md."""

    patch_size: int
    batch_size: int
    learning_rate: float
    schedule: ScheduleName


#: The published networks as they are published (docs/about.md, "Networks"); ours as the study found them.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "unet2d": Recipe(patch_size=256, batch_size=32, learning_rate=1e-3, schedule="constant"),
        "unet3d": Recipe(patch_size=96, batch_size=4, learning_rate=1e-3, schedule="constant"),
        "residual2d": Recipe(patch_size=64, batch_size=4, learning_rate=4e-3, schedule="hold"),
        "residual3d": Recipe(patch_size=32, batch_size=2, learning_rate=4e-3, schedule="hold"),
    }
)
