"""Equivariant weights: what is turned going in comes out turned, before, during and after training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from denoise.networks.residual import ResidualUNet
from denoise.networks.symmetric import SymmetricWeights
from denoise.networks.unet2d import UNet2d
from denoise.patches.symmetry import SQUARE

OPTIONS = [
    {"n_slices": 5, "width": 16, "levels": 3},
    {"n_slices": 16, "width": 24, "levels": 2},
    {"n_slices": 1, "width": 40, "levels": 1},
    {"n_slices": 3, "width": 16, "levels": 2, "mixes": True},
]


def random_network(**options: int) -> ResidualUNet:
    """In float64; no weight is zero."""
    torch.manual_seed(1)
    network = ResidualUNet(**options).double()
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    return network


def symmetric(network: ResidualUNet) -> SymmetricWeights:
    weights = SymmetricWeights.of(network)
    assert weights is not None
    weights.impose()
    return weights


def block_for(network: ResidualUNet, depth: int = 1) -> Tensor:
    return torch.randn(2, network.n_slices + depth - 1, 16, 16, dtype=torch.float64)


def farthest(network: ResidualUNet, block: Tensor) -> float:
    """From equivariance, over what the network does to the block."""
    with torch.no_grad():
        plain = network(block)
        scale = float((plain - block[:, network.n_slices // 2 :][:, : plain.shape[1]]).std())
        return max(float((network(s.turn(block)) - s.turn(plain)).abs().max()) / scale for s in SQUARE)


@pytest.mark.parametrize("options", OPTIONS)
def test_what_goes_in_turned_or_mirrored_comes_out_so(options: dict[str, int]) -> None:
    network = random_network(**options)
    block = block_for(network, depth=3)
    assert farthest(network, block) > 0.1
    symmetric(network)
    assert farthest(network, block) < 1e-9


@pytest.mark.parametrize("options", OPTIONS)
def test_random_weights_keep_their_size(options: dict[str, int]) -> None:
    network = random_network(**options)
    before = [float(w.detach().norm()) for w in network.parameters() if w.ndim > 1 and w.numel() > 2000]
    symmetric(network)
    after = [float(w.detach().norm()) for w in network.parameters() if w.ndim > 1 and w.numel() > 2000]
    assert after == pytest.approx(before, rel=0.25)


def test_the_weights_of_half_of_the_channels_have_a_direction() -> None:
    """A network of isotropic kernels would be equivariant too, and could see no edge."""
    network = random_network(width=16)
    symmetric(network)
    kernels = network.middle[0].first.weight
    turned = (kernels - kernels.rot90(1, (2, 3))).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert turned.sum() >= 32


@pytest.mark.parametrize("options", OPTIONS)
def test_projected_gradients_are_the_mean_over_all_eight_versions_of_what_is_learnt_from(
    options: dict[str, int],
) -> None:
    network = random_network(**options)
    weights = symmetric(network)
    block, target = block_for(network, 3), torch.randn(2, 3, 16, 16, dtype=torch.float64)

    def gradients(*versions: int) -> list[Tensor]:
        network.zero_grad()
        for number in versions:
            turned, wanted = SQUARE[number].turn(block), SQUARE[number].turn(target)
            ((network(turned) - wanted) ** 2).mean().div(len(versions)).backward()
        return [w.grad.clone() for w in network.parameters() if w.grad is not None]

    mean = gradients(*range(8))
    gradients(3)
    weights.project_gradients()
    for weight, expected in zip(network.parameters(), mean, strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS)
def test_steps_stay_within_the_symmetric_weights(options: dict[str, int]) -> None:
    network = random_network(**options).float()
    weights = symmetric(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, fused=True)
    for _ in range(20):
        block = block_for(network).float()
        optimizer.zero_grad()
        (network(block) ** 2).mean().backward()
        weights.project_gradients()
        optimizer.step()
    assert weights.hold
    assert farthest(network.double(), block_for(network)) < 1e-3


def test_weights_without_a_gradient_are_left_without_one() -> None:
    network = random_network(n_slices=3, width=16, levels=2, mixes=True)
    weights = symmetric(network)
    network(block_for(network)).sum().backward()
    for name, weight in network.named_parameters():
        if "mixing" in name:
            weight.grad = None
    weights.project_gradients()
    assert all((w.grad is None) == ("mixing" in name) for name, w in network.named_parameters())


def test_it_is_told_whether_weights_are_symmetric() -> None:
    network = random_network(width=16)
    weights = SymmetricWeights.of(network)
    assert weights is not None
    assert not weights.hold
    weights.impose()
    assert weights.hold
    with torch.no_grad():
        network.middle[1].first.weight.add_(0.1 * torch.randn_like(network.middle[1].first.weight))
    assert not weights.hold


def test_other_networks_and_narrow_ones_have_none() -> None:
    assert SymmetricWeights.of(UNet2d(3)) is None
    assert SymmetricWeights.of(ResidualUNet(width=8)) is None
