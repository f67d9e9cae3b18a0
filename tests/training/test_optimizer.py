from __future__ import annotations

import pytest
import torch

from denoise.config.recipes import PLAIN_ADAM, Adam
from denoise.networks.residual import ResidualUNet
from denoise.training.optimizer import make_optimizer, set_rate


def rates_of(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    rate = {id(weights): group["lr"] for group in optimizer.param_groups for weights in group["params"]}
    return {name: rate[id(weights)] for name, weights in network.named_parameters()}


def test_weights_with_more_inputs_have_a_lower_rate() -> None:
    network = ResidualUNet(n_slices=5, width=16, levels=3)
    optimizer = make_optimizer(network, Adam(0.98, 144), 0.006, torch.device("cpu"))
    set_rate(optimizer, 0.004)
    rates = rates_of(network, optimizer)
    assert rates["enter.weight"] == 0.004  # 5 x 9
    assert rates["down_blocks.0.first.weight"] == 0.004  # 16 x 9
    assert rates["down_blocks.1.first.weight"] == 0.002  # 32 x 9
    assert rates["middle.0.second.weight"] == 0.001  # 64 x 9
    assert rates["middle.0.second.bias"] == 0.004
    assert rates["shrink.1.weight"] == pytest.approx(0.004)  # 32 x 4
    assert len(rates) == len(list(network.parameters()))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.98)}


def test_the_published_recipe_has_one_rate_for_all() -> None:
    network = ResidualUNet()
    optimizer = make_optimizer(network, PLAIN_ADAM, 0.001, torch.device("cpu"))
    assert set(rates_of(network, optimizer).values()) == {0.001}


def test_a_first_step_changes_wide_layers_no_more_than_narrow_ones() -> None:
    """Adam's first step is the rate in every weight: what comes out changes by rate times inputs, at most."""
    for width, change in ((16, 1.44), (64, 1.44)):
        layer = torch.nn.Conv2d(width, 1, 3, bias=False)
        torch.nn.init.zeros_(layer.weight)
        optimizer = make_optimizer(layer, Adam(0.98, 144), 0.01, torch.device("cpu"))
        layer(torch.ones(1, width, 3, 3)).sum().backward()
        optimizer.step()
        assert layer(torch.ones(1, width, 3, 3)).abs().item() == pytest.approx(change, rel=1e-4)
