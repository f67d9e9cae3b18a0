from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoise.errors import ConfigError
from denoise.networks.catalogue import NETWORKS, build_network, find_network
from denoise.networks.spec import NetworkSpec


def count_macs(network: nn.Module, block: Tensor) -> int:
    """Multiply-accumulates of all convolutions in one forward pass."""
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            total += inputs[0].numel() * module.out_channels * math.prod(module.kernel_size)
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            # Of all outputs: a network may take the slices of a block for a batch.
            total += output.numel() * module.in_channels * math.prod(module.kernel_size)

    for module in network.modules():
        module.register_forward_hook(add)
    network(block)
    return total


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "macs_per_voxel"),
    [
        ("unet2d", (1, 5, 64, 32), 2_375_809, 297_072),
        ("unet3d", (1, 16, 32, 16), 17_151_513, 652_876),
        ("residual2d", (1, 5, 32, 64), 207_809, 29_792),
        ("residual3d", (1, 36, 32, 8), 240_289, 34_400),
    ],
)
def test_default_networks_have_the_known_size_and_cost(
    name: str, shape: tuple[int, ...], parameters: int, macs_per_voxel: int
) -> None:
    with torch.device("meta"):
        network, block = build_network(NetworkSpec(name, {})), torch.zeros(shape)
    voxels = math.prod(shape[2:]) * (shape[1] - NETWORKS[name].n_slices({}) + 1)
    assert count_macs(network, block) == pytest.approx(macs_per_voxel * voxels, abs=0.5 * voxels)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unet2d", {"n_slices": 4}),
        ("unet3d", {"n_blocks": 2, "start_filters": 4}),
        ("residual2d", {"n_slices": 3, "width": 8, "levels": 4}),
        ("residual3d", {"width": 4, "levels": 2}),
        ("residual3d", {"n_slices": 4, "width": 4, "levels": 1}),
    ],
)
def test_every_network_keeps_the_contract_at_its_divisor(name: str, options: dict[str, int]) -> None:
    kind = NETWORKS[name]
    side = kind.divisor(options)
    network = build_network(NetworkSpec(name, options))
    if kind.dimensions == 2:
        assert network(torch.randn(2, options["n_slices"], side, 3 * side)).shape == (2, 1, side, 3 * side)
    else:
        read = side + kind.n_slices(options) - 1
        assert network(torch.randn(2, read, 2 * side, side)).shape == (2, side, 2 * side, side)


@pytest.mark.parametrize(
    ("name", "options", "divisor", "radius"),
    [
        ("unet2d", {}, 8, None),
        ("unet3d", {}, 16, None),
        ("unet3d", {"n_blocks": 3}, 8, None),
        ("residual2d", {}, 4, 33),
        ("residual2d", {"levels": 1}, 1, 6),
        ("residual3d", {"levels": 2}, 2, 15),
    ],
)
def test_divisor_and_radius_follow_the_options(
    name: str, options: dict[str, int], divisor: int, radius: int | None
) -> None:
    kind = NETWORKS[name]
    assert kind.divisor(options) == divisor
    assert kind.receptive_radius(options) == radius
    assert kind.content_dependent == (radius is None)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet4d", {}, "'unet4d'; there are unet2d, unet3d, residual2d, residual3d"),
        ("unet2d", {"width": 16}, "no option 'width'; its options are n_slices"),
        ("unet2d", {"n_slices": 0}, "from 1 to 99 for network option n_slices, found 0"),
        ("unet2d", {"n_slices": 10**12}, "found 1000000000000"),
        ("unet3d", {"n_blocks": 8}, "from 1 to 7 for network option n_blocks, found 8"),
        ("unet3d", {"start_filters": 513}, "from 1 to 512"),
        ("residual2d", {"levels": 7}, "from 1 to 6"),
        ("residual3d", {"width": -1}, "from 1 to 512"),
        ("residual3d", {"width": 16.0}, "found 16.0"),
        ("residual3d", {"levels": True}, "found True"),
        ("unet3d", {"n_blocks": 7, "start_filters": 512}, "weights; at most 268,435,456 are allowed"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name_and_rule(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_network(NetworkSpec(name, options))


def test_the_same_seed_gives_the_same_weights() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(7)
        weights.append(build_network(NetworkSpec("residual2d", {})).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_defaults_are_themselves_within_the_limits() -> None:
    for name in NETWORKS:
        kind = find_network(name)
        assert kind.complete(kind.defaults) == kind.defaults
