"""The last layer of a network, which decides how finely grey values are resolved."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def in_float32(layer: nn.Module, features: Tensor) -> Tensor:
    """Run a layer in float32 also under autocast: bf16 has 8 bits for a grey value, and one 1x1 layer is no work."""
    if features.is_meta:  # shapes only; there is no autocast to switch off
        return layer(features)  # type: ignore[no-any-return]
    with torch.autocast(features.device.type, enabled=False):
        return layer(features.float())  # type: ignore[no-any-return]
