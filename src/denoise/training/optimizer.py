"""The optimiser: Adam, with a rate for each weight tensor where the recipe asks for it."""

from __future__ import annotations

import torch
from torch import nn

from denoise.config.recipes import Adam

_SCALE = "scale"


def make_optimizer(network: nn.Module, adam: Adam, rate: float, device: torch.device) -> torch.optim.Adam:
    """Adam for all weights of a network, grouped by the share of the learning rate that they have."""
    groups: dict[float, list[nn.Parameter]] = {}
    for weights in network.parameters():
        groups.setdefault(_share_of_rate(weights, adam.full_rate_fan_in), []).append(weights)
    optimizer = torch.optim.Adam(
        [{"params": weights, _SCALE: share} for share, weights in groups.items()],
        lr=rate,
        betas=(0.9, adam.beta2),
        # Fused, a step takes a third of the time; Apple's GPUs are left with the ordinary one.
        fused=device.type != "mps",
    )
    set_rate(optimizer, rate)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate from now on: of each group its share."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_SCALE]


def _share_of_rate(weights: nn.Parameter, full_rate_fan_in: int | None) -> float:
    if full_rate_fan_in is None or weights.ndim < 2:
        return 1.0
    return min(1.0, full_rate_fan_in / weights[0].numel())
