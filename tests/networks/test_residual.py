from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.config.recipes import RECIPES
from denoise.networks.residual import ResidualUNet, _Mixing, receptive_radius
from denoise.training.optimizer import Optimizers


def scrambled(mixes: bool = False, **options: int) -> ResidualUNet:
    """In float64, with a last convolution and mixing that are not zero."""
    torch.manual_seed(3)
    network = ResidualUNet(**options, mixes=mixes).double()
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    for name, weights in network.named_parameters():
        if name.endswith("mixing.weights.weight"):
            torch.nn.init.normal_(weights, std=0.1)
    return network


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize(("n_slices", "centre"), [(1, 0), (2, 1), (4, 2), (5, 2)])
def test_an_untrained_network_returns_the_slices_that_have_their_neighbours(
    n_slices: int, centre: int, mixes: bool
) -> None:
    for depth in (1, 3):
        block = torch.randn(2, depth + n_slices - 1, 8, 12)
        assert torch.equal(ResidualUNet(n_slices, mixes=mixes)(block), block[:, centre : centre + depth])


@pytest.mark.parametrize(
    ("levels", "shape"),
    [(3, (1, 5, 6, 8)), (3, (1, 5, 8, 6)), (4, (1, 5, 8, 12)), (2, (1, 4, 8, 8))],
)
def test_a_block_that_does_not_fit_is_refused_with_its_shape(levels: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"\({shape[1]}, {shape[2]}, {shape[3]}\)"):
        ResidualUNet(levels=levels)(torch.zeros(shape))


def test_one_level_takes_any_size() -> None:
    assert ResidualUNet(3, levels=1)(torch.zeros(1, 3, 5, 7)).shape == (1, 1, 5, 7)


def test_without_mixing_a_block_is_predicted_as_its_slices_are() -> None:
    network = scrambled(n_slices=3, width=4, levels=2)
    block = torch.randn(2, 7, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        slices = [network(block[:, z : z + 3]) for z in range(5)]
        torch.testing.assert_close(network(block), torch.cat(slices, dim=1), rtol=0, atol=1e-12)


def test_mixing_starts_as_nothing_so_that_the_3d_network_begins_as_the_2d_one() -> None:
    flat = scrambled(n_slices=3, width=4, levels=2)
    deep = ResidualUNet(3, 4, 2, mixes=True).double()
    missing = deep.load_state_dict(flat.state_dict(), strict=False).missing_keys
    assert missing
    assert all(".mixing." in name for name in missing)
    block = torch.randn(2, 7, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(deep(block), flat(block), rtol=0, atol=1e-12)


def test_mixing_reaches_one_slice_further_with_every_block_and_no_other_sample() -> None:
    """Two blocks at the only level, so two slices beyond those that are seen directly."""
    network = scrambled(True, n_slices=1, width=4, levels=1)
    block = torch.randn(2, 9, 6, 6, dtype=torch.float64)
    changed = block.clone()
    changed[0, 4] += 1
    with torch.no_grad():
        difference = (network(changed) - network(block)).abs().amax(dim=(2, 3))
    assert (difference[0] > 1e-9).tolist() == [False, False, True, True, True, True, True, False, False]
    assert torch.equal(difference[1], torch.zeros(9, dtype=torch.float64))


@pytest.mark.parametrize("rectified", [False, True])
def test_mixing_is_a_convolution_along_z(rectified: bool) -> None:
    mixing = _Mixing(4, rectified=rectified).double()
    torch.nn.init.normal_(mixing.weights.weight)
    stack = torch.randn(2, 4, 5, 6, 7, dtype=torch.float64)  # B, C, Z, Y, X
    change = F.conv3d(stack, mixing.weights.weight.unsqueeze(-1), mixing.weights.bias, padding=(1, 0, 0))
    summed = F.relu(stack + change) if rectified else stack + change
    expected = summed.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        found = mixing(stack.transpose(1, 2).flatten(0, 1), depth=5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_nothing_beyond_the_receptive_radius_matters_and_the_radius_is_reached(levels: int, mixes: bool) -> None:
    radius = receptive_radius(levels)
    cell = 2 ** (levels - 1)
    side = 2 * math.ceil((radius + cell + 1) / cell) * cell
    network = scrambled(mixes, n_slices=3, width=2, levels=levels)
    block = torch.randn((1, 5 if mixes else 3, side, side), dtype=torch.float64)
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
    network = scrambled(n_slices=3, width=4, levels=2)
    radius = receptive_radius(2)
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


def trained_on_noisy_pairs(network: ResidualUNet, steps: int, generator: torch.Generator) -> None:
    """With the rate and the optimisers of the recipe."""
    _, one, other = noisy_discs(generator, 32, 32)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe = RECIPES["residual2d"]
    optimizers = Optimizers(network, recipe.adam, recipe.muon, recipe.learning_rate, torch.device("cpu"))
    for step in range(steps):
        optimizers.set_rate(recipe.learning_rate * min(1, (step + 1) / 10, 2 * (1 - step / steps)))
        chosen = torch.randint(32, (4,), generator=generator)
        inputs = torch.cat([one[chosen], other[chosen]]).contiguous(memory_format=torch.channels_last)
        targets = torch.cat([other[chosen], one[chosen]])[:, 2:3]
        with torch.autocast("cpu", torch.bfloat16):
            predictions = network(inputs)
        loss = F.mse_loss(predictions.float(), targets)
        optimizers.forget_gradients()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step()


@pytest.mark.usefixtures("one_thread")
def test_it_learns_to_remove_noise_from_noisy_pairs_alone_and_no_feature_dies() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    network = ResidualUNet()
    trained_on_noisy_pairs(network, 80, generator)
    truth, noisy, _ = noisy_discs(generator, 8, 32)
    dead: list[bool] = []
    for block in [*network.down_blocks, *network.middle, *network.up_blocks]:
        block.first.register_forward_hook(lambda m, i, out: dead.extend((out <= 0).all(dim=(0, 2, 3)).tolist()))  # type: ignore[union-attr]
    with torch.no_grad():
        error = (network(noisy) - truth[:, 2:3]).square().mean()
    gain = 10 * torch.log10((noisy[:, 2] - truth[:, 2]).square().mean() / error)
    assert gain > 8
    assert len(dead) == 2 * 16 + 2 * 32 + 2 * 64
    assert not any(dead)


@pytest.mark.parametrize("mixes", [False, True])
def test_activations_neither_vanish_nor_explode_at_the_start(mixes: bool) -> None:
    torch.manual_seed(0)
    network = ResidualUNet(levels=4, mixes=mixes)
    torch.nn.init.normal_(network.leave.weight, std=(1 / network.leave.weight[0].numel()) ** 0.5)
    block = torch.randn(1, 12, 32, 32)
    with torch.no_grad():
        correction = network(block) - block[:, 2:-2]
    assert 0.3 < correction.std() < 10
