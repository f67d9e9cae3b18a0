"""A running average of weights that is not left behind at the start of a run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from denoise.training.averaging import AveragedWeights


def test_the_average_is_near_the_weights_after_few_steps_and_slow_after_many() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    averaged = AveragedWeights(network, 0.995)
    nn.init.ones_(network.weight)
    for step in range(1, 31):
        averaged.update(step)
    # A decay of 0.995 from the first step on would have come to 1 - 0.995^30 = 0.14.
    assert float(averaged.model.weight) > 0.95
    before = float(averaged.model.weight)
    nn.init.zeros_(network.weight)
    averaged.update(10**6)
    assert float(averaged.model.weight) == pytest.approx(0.995 * before, rel=1e-5)


def test_the_average_needs_no_gradients_and_leaves_the_network_alone() -> None:
    network = nn.Linear(2, 2)
    kept = network.weight.detach().clone()
    averaged = AveragedWeights(network, 0.5)
    averaged.update(1)
    assert not any(parameter.requires_grad for parameter in averaged.model.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(network.weight, kept)
    assert averaged.model.weight.data_ptr() != network.weight.data_ptr()
