from __future__ import annotations

import pytest
import torch
from torch import nn

from denoise.networks.residual import ResidualUNet
from denoise.networks.symmetric import SymmetricWeights
from denoise.training.muon import Muon, orthogonalised


def singular_values(matrices: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(matrices)


@pytest.mark.parametrize("shape", [(3, 16, 144), (2, 64, 576), (4, 32, 32), (2, 64, 16), (1, 1, 9)])
def test_all_singular_values_become_nearly_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    weak = values < 3e-3 * matrices.flatten(1).norm(dim=1)[:, None]
    found = orthogonalised(matrices)
    reached = singular_values(found)
    assert reached.max() < 1.25
    assert float(reached.min()) > 0.6 or bool(weak.any())
    # The directions stay: what is left of U^T X V beside the diagonal is nothing.
    turned = left.mT @ found @ right.mT
    diagonal = turned.diagonal(dim1=1, dim2=2)
    assert (turned - torch.diag_embed(diagonal)).abs().max() < 1e-3
    assert bool((diagonal > 0).all())


def test_the_products_of_rows_by_rows_say_the_same_as_rounds_of_the_whole_matrix() -> None:
    matrix = torch.randn(32, 288, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = matrix / matrix.norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    found = orthogonalised(matrix.float()[None])[0]
    assert (found - x).abs().max() < 1e-4


def test_no_gradient_no_step_and_zeros_stay_finite() -> None:
    weights = [nn.Parameter(torch.ones(4, 3, 3, 3)) for _ in range(2)]
    optimizer = Muon(weights, rate=0.1, momentum=0.95, decay=0.0)
    weights[0].grad = torch.zeros_like(weights[0])
    optimizer.step()
    assert torch.equal(weights[0], torch.ones(4, 3, 3, 3))
    assert torch.equal(weights[1], torch.ones(4, 3, 3, 3))
    assert weights[1] not in optimizer.state


def test_a_step_has_the_length_of_the_rate_however_small_the_gradient() -> None:
    for scale in (1e-6, 1e3):
        weights = nn.Parameter(torch.zeros(16, 16, 3, 3))
        optimizer = Muon([weights], rate=0.01, momentum=0.95, decay=0.0)
        weights.grad = scale * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        lengths = singular_values(weights.detach().flatten(1))
        assert 0.006 < lengths.min() <= lengths.max() < 0.0125


@pytest.mark.parametrize("options", [{"width": 64}, {"n_slices": 3, "width": 32}, {"levels": 1}, {"mixes": True}])
def test_networks_of_all_sizes_are_stepped(options: dict[str, int]) -> None:
    """Wide ones have more outputs than inputs in their first layer."""
    torch.manual_seed(0)
    network = ResidualUNet(**options).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = [w for w in network.parameters() if w.ndim > 1]
    optimizer = Muon(weights, rate=0.01, momentum=0.95, decay=0.0)
    before = [w.detach().clone() for w in weights]
    for w in weights:
        w.grad = torch.randn_like(w)
    optimizer.step()
    for w, was in zip(weights, before, strict=True):
        lengths = singular_values((w.detach() - was).flatten(1))
        assert 0.003 < lengths.min() <= lengths.max() < 0.0125


def test_weights_shrink_by_rate_times_decay() -> None:
    weights = nn.Parameter(torch.ones(4, 4, 3, 3))
    optimizer = Muon([weights], rate=0.1, momentum=0.95, decay=0.2)
    weights.grad = torch.zeros_like(weights)
    optimizer.step()
    assert torch.allclose(weights, torch.full_like(weights, 0.98))


def test_weights_that_treat_directions_alike_go_on_doing_so() -> None:
    """Exchanged channels and turned windows are rotations of rows and columns, which commute with the step."""
    torch.manual_seed(0)
    network = ResidualUNet(width=16, levels=2)
    symmetric = SymmetricWeights(network)
    symmetric.impose()
    optimizer = Muon([w for w in network.parameters() if w.ndim > 1], rate=0.01, momentum=0.95, decay=0.1)
    before = [w.detach().clone() for w in network.parameters()]
    for seed in range(20):
        blocks = torch.randn(1, 5, 16, 16, generator=torch.Generator().manual_seed(seed))
        (network(blocks) - blocks[:, 2:3] ** 2).square().mean().backward()
        symmetric.project_gradients()
        optimizer.step()
        network.zero_grad()
    assert symmetric.hold
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    blocks = torch.randn(1, 5, 16, 16)
    with torch.no_grad():
        turned = network(blocks.rot90(1, (2, 3)))
        assert torch.allclose(network(blocks).rot90(1, (2, 3)), turned, atol=1e-4)
