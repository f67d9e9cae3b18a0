"""How each network is best trained, where the user does not say: what `null` means in the section `train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

ScheduleName = Literal["constant", "cosine", "hold"]
LossName = Literal["l1", "l2", "huber"]


@dataclass(frozen=True)
class Recipe:
    """Settings that belong to a network; the measurements behind them are in docs/network-study.md."""

    patch_size: int
    batch_size: int
    learning_rate: float
    schedule: ScheduleName
    loss: LossName = "l1"
    lcl_weight: float = 0.01
    ema_decay: float = 0.0
    slices_first: int = 0


#: The published networks as they are published (docs/about.md, "Networks"); ours as the study found them.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "unet2d": Recipe(256, 32, 1e-3, "constant", "l1", 0.01),
        "unet3d": Recipe(96, 4, 1e-3, "constant", "l1", 0.01),
        "residual2d": Recipe(64, 4, 8e-3, "hold", "l2", 0.0, ema_decay=0.995),
        "residual3d": Recipe(48, 2, 8e-3, "hold", "l2", 0.0, ema_decay=0.995, slices_first=2500),
    }
)
