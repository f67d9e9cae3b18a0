from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.networks.residual import ResidualUNet, receptive_radius


def scrambled(dimensions: Literal[2, 3], **options: int) -> ResidualUNet:
    """In float64, with a last convolution that is not zero."""
    torch.manual_seed(3)
    network = ResidualUNet(dimensions, **options).double()
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    return network


@pytest.mark.parametrize(("n_slices", "centre"), [(1, 0), (2, 1), (4, 2), (5, 2)])
def test_an_untrained_2d_network_returns_the_centre_slice(n_slices: int, centre: int) -> None:
    block = torch.randn(2, n_slices, 8, 12)
    assert torch.equal(ResidualUNet(2, n_slices)(block), block[:, centre : centre + 1])


def test_an_untrained_3d_network_returns_its_input() -> None:
    block = torch.randn(2, 4, 8, 12)
    assert torch.equal(ResidualUNet(3)(block), block)


@pytest.mark.parametrize(
    ("dimensions", "levels", "shape"),
    [(2, 3, (1, 5, 6, 8)), (2, 3, (1, 5, 8, 6)), (2, 4, (1, 5, 8, 12)), (3, 3, (1, 6, 8, 8)), (2, 2, (1, 4, 8, 8))],
)
def test_a_block_that_does_not_fit_is_refused_with_its_shape(
    dimensions: Literal[2, 3], levels: int, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=rf"\({shape[1]}, {shape[2]}, {shape[3]}\)"):
        ResidualUNet(dimensions, levels=levels)(torch.zeros(shape))


def test_one_level_takes_any_size() -> None:
    assert ResidualUNet(2, 3, levels=1)(torch.zeros(1, 3, 5, 7)).shape == (1, 1, 5, 7)


@pytest.mark.parametrize(("dimensions", "levels"), [(2, 1), (2, 2), (2, 3), (3, 1), (3, 2)])
def test_nothing_beyond_the_receptive_radius_matters_and_the_radius_is_reached(
    dimensions: Literal[2, 3], levels: int
) -> None:
    radius = receptive_radius(dimensions, levels)
    cell = 2 ** (levels - 1)
    side = 2 * math.ceil((radius + cell + 1) / cell) * cell
    network = scrambled(dimensions, n_slices=3, width=2, levels=levels)
    shape = (1, 3, side, side) if dimensions == 2 else (1, side, side, side)
    block = torch.randn(shape, dtype=torch.float64)
    furthest = 0
    for place in range(side // 2 - cell, side // 2):  # every alignment with the coarsest grid
        reached = reach_of_output(network, block, place)
        furthest = max(furthest, reached)
        assert reached <= radius
        changed = block.clone()
        changed[..., : place - radius] += 1
        changed[..., place + radius + 1 :] += 1
        assert torch.equal(network(changed)[..., place], network(block)[..., place])
    assert furthest == radius


def reach_of_output(network: ResidualUNet, block: Tensor, place: int) -> int:
    """The largest distance along x from which the outputs at x = place have a gradient."""
    block = block.clone().requires_grad_()
    network(block)[..., place].square().sum().backward()
    assert block.grad is not None
    touched = block.grad.abs().flatten(0, -2).sum(dim=0).nonzero().flatten()
    return int((touched - place).abs().max())


def test_tiles_that_overlap_by_the_radius_give_what_the_whole_slice_gives() -> None:
    network = scrambled(2, n_slices=3, width=4, levels=2)
    radius = receptive_radius(2, 2)
    block = torch.randn(1, 3, 16, 96, dtype=torch.float64)
    with torch.no_grad():
        whole, tile = network(block), network(block[..., 20:92])
    torch.testing.assert_close(
        tile[..., radius : 72 - radius], whole[..., 20 + radius : 92 - radius], rtol=0, atol=1e-12
    )


def noisy_discs(generator: torch.Generator, count: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Truth (count, 5, side, side) of discs that are alike in all slices, and two noisy versions of it."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    truth = torch.zeros(count, 5, side, side)
    for image in truth:
        for _ in range(8):
            cy, cx, radius, value = torch.rand(4, generator=generator).tolist()
            image[:, (y - cy * side) ** 2 + (x - cx * side) ** 2 < (3 + 9 * radius) ** 2] = 2 * value - 1
    one, other = (truth + torch.randn(truth.shape, generator=generator) for _ in range(2))
    return truth, one, other


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads on a core that something else uses wait for each other: 26 s were measured instead of 2."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_it_learns_to_remove_noise_from_noisy_pairs_alone() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    _, one, other = noisy_discs(generator, 32, 32)
    network = ResidualUNet(2).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / 80))
        chosen = torch.randint(32, (4,), generator=generator)
        inputs = torch.cat([one[chosen], other[chosen]]).contiguous(memory_format=torch.channels_last)
        targets = torch.cat([other[chosen], one[chosen]])[:, 2:3]
        with torch.autocast("cpu", torch.bfloat16):
            predictions = network(inputs)
        loss = F.mse_loss(predictions.float(), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    truth, noisy, _ = noisy_discs(generator, 8, 32)
    with torch.no_grad():
        error = (network(noisy) - truth[:, 2:3]).square().mean()
    gain = 10 * torch.log10((noisy[:, 2] - truth[:, 2]).square().mean() / error)
    assert gain > 8


@pytest.mark.parametrize("dimensions", [2, 3])
def test_activations_neither_vanish_nor_explode_at_the_start(dimensions: Literal[2, 3]) -> None:
    torch.manual_seed(0)
    network = ResidualUNet(dimensions, levels=4)
    torch.nn.init.normal_(network.leave.weight, std=(1 / network.leave.weight[0].numel()) ** 0.5)
    block = torch.randn(1, 5 if dimensions == 2 else 16, 32, 32)
    with torch.no_grad():
        correction = network(block) - (block[:, 2:3] if dimensions == 2 else block)
    assert 0.3 < correction.std() < 10
