"""A running average of the weights: the model that is scored and stored while the learning rate is still high."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class AveragedWeights:
    """An exponential moving average, over fewer steps at the start of a run.

    torch's ``AveragedModel`` asks the device for its counter after every step, and with a decay of 0.995 its average
    would be far behind for hundreds of steps. Here the decay of step n (from 1) is at most (1 + n) / (10 + n).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(network).requires_grad_(requires_grad=False)
        self._decay = decay
        # Collected once, not by going through all modules at every step.
        self._averaged: list[Tensor] = [*self.model.parameters()]
        self._current: list[Tensor] = [*network.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the network's weights after a step into the average."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._current, 1 - decay)
