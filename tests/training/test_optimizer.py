from __future__ import annotations

import copy

import pytest
import torch

from denoise.config.recipes import PLAIN_ADAM, Adam, Muon
from denoise.networks.residual import ResidualUNet
from denoise.training.optimizer import Optimizers

CPU = torch.device("cpu")


def rates_of(network: torch.nn.Module, optimizers: Optimizers) -> dict[str, float]:
    return {name: optimizers.rates[weights] for name, weights in network.named_parameters()}


def test_weights_with_more_inputs_have_a_lower_rate() -> None:
    network = ResidualUNet(n_slices=5, width=16, levels=3)
    optimizers = Optimizers(network, Adam(0.98, 144), None, 0.006, CPU)
    optimizers.set_rate(0.004)
    rates = rates_of(network, optimizers)
    assert rates["enter.weight"] == 0.004  # 5 x 9
    assert rates["down_blocks.0.first.weight"] == 0.004  # 16 x 9
    assert rates["down_blocks.1.first.weight"] == 0.002  # 32 x 9
    assert rates["middle.0.second.weight"] == 0.001  # 64 x 9
    assert rates["middle.0.second.bias"] == 0.004
    assert rates["shrink.1.weight"] == pytest.approx(0.004)  # 32 x 4
    assert len(rates) == len(list(network.parameters()))


def test_the_published_recipe_has_one_rate_for_all() -> None:
    network = ResidualUNet()
    assert set(rates_of(network, Optimizers(network, PLAIN_ADAM, None, 0.001, CPU)).values()) == {0.001}


def test_a_first_step_changes_wide_layers_no_more_than_narrow_ones() -> None:
    """Adam's first step is the rate in every weight: what comes out changes by rate times inputs, at most."""
    for width, change in ((16, 1.44), (64, 1.44)):
        layer = torch.nn.Conv2d(width, 1, 3, bias=False)
        torch.nn.init.zeros_(layer.weight)
        optimizers = Optimizers(layer, Adam(0.98, 144), None, 0.01, CPU)
        layer(torch.ones(1, width, 3, 3)).sum().backward()
        optimizers.step()
        assert layer(torch.ones(1, width, 3, 3)).abs().item() == pytest.approx(change, rel=1e-4)


def test_with_muon_adam_has_the_biases() -> None:
    network = ResidualUNet()
    optimizers = Optimizers(network, Adam(0.98, 144), Muon(2.5), 0.006, CPU)
    optimizers.set_rate(0.004)
    rates = rates_of(network, optimizers)
    assert {rate for name, rate in rates.items() if name.endswith("bias")} == {0.004}
    assert {rate for name, rate in rates.items() if name.endswith("weight")} == {0.01}


def test_what_was_stored_is_known_again() -> None:
    """Steps after a restoration are those of a run that went on."""

    def stepped(network: ResidualUNet, optimizers: Optimizers, count: int) -> None:
        for seed in range(count):
            blocks = torch.randn(1, 5, 16, 16, generator=torch.Generator().manual_seed(seed))
            (network(blocks) - blocks[:, 2:3] ** 2).square().mean().backward()
            optimizers.step()
            optimizers.forget_gradients()

    torch.manual_seed(0)
    whole = ResidualUNet()
    optimizers = Optimizers(whole, Adam(), Muon(2.5), 0.004, CPU)
    stepped(whole, optimizers, 2)
    again = copy.deepcopy(whole)
    restored = Optimizers(again, Adam(), Muon(2.5), 0.004, CPU)
    restored.restore(copy.deepcopy(optimizers.state()))
    assert Optimizers.had_muon(optimizers.state())
    stepped(whole, optimizers, 2)
    stepped(again, restored, 2)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
