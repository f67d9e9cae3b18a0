"""`infer.tta`: the mean over mirrored and turned, or shifted, versions, as few of them as differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from denoise.checkpoint import Checkpoint
from denoise.config import InferSection
from denoise.inference.engine import Denoiser, denoise_slices
from denoise.inference.models import make_denoiser
from denoise.inference.versions import Shifted, shifted
from denoise.networks.catalogue import build_network
from denoise.networks.spec import NetworkSpec
from denoise.networks.symmetric import SymmetricWeights
from denoise.normalization import Normalization
from denoise.patches.symmetry import SQUARE
from denoise.tiles import Triple
from denoise.volumes.volume import ArrayVolume, Float32Array

SHAPE: Triple = (6, 32, 32)
SPEC = NetworkSpec("residual2d", {"n_slices": 3, "width": 16, "levels": 2})


def checkpoint(*, symmetric: bool) -> Checkpoint:
    torch.manual_seed(2)
    network = build_network(SPEC)
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(0.02 * torch.randn_like(weights))
    if symmetric:
        found = SymmetricWeights.of(network)
        assert found is not None
        found.impose()
    return Checkpoint(
        network=SPEC, weights=network.state_dict(), normalization=Normalization(0.0, 1.0), patch_size=32,
        strategy="X:1", criterion="val", epoch=1, step=1, scores={}, sample="noise",
    )  # fmt: skip


def denoiser(model: Checkpoint, versions: int) -> Denoiser:
    infer = InferSection(tta=versions, precision="float32")
    return make_denoiser(model, infer, torch.device("cpu"), shape=SHAPE)


def denoised(model: Checkpoint, image: Float32Array, versions: int) -> Float32Array:
    """By one tile that is the whole slice."""
    result = np.empty_like(image)

    def keep(start: int, slab: Float32Array) -> None:
        result[start : start + len(slab)] = slab

    denoise_slices([ArrayVolume(image, "noise")], denoiser(model, versions), range(len(image)), keep)
    return result


@pytest.fixture
def image() -> Float32Array:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize("versions", [1, 2, 4, 8])
def test_so_many_versions_are_averaged(image: Float32Array, versions: int) -> None:
    model = checkpoint(symmetric=False)
    turned = [s.inverse.apply(denoised(model, s.apply(image), 1)) for s in SQUARE[:versions]]
    np.testing.assert_allclose(denoised(model, image, versions), np.mean(turned, axis=0), rtol=1e-4, atol=1e-4)


def shifted_by_hand(model: Checkpoint, image: Float32Array, down: int, right: int, cell: int) -> Float32Array:
    """What the network gives for the slices moved within their reflections, moved back."""
    network = model.build().eval()
    slices = np.pad(image, ((1, 1), (0, 0), (0, 0)), mode="reflect")
    around = [(shift, cell - shift) if shift else (0, 0) for shift in (down, right)]
    moved = np.pad(slices, ((0, 0), *around), mode="reflect")
    with torch.inference_mode():
        predicted = torch.cat([network(torch.from_numpy(moved[None, z : z + 3]))[0] for z in range(len(image))]).numpy()
    found: Float32Array = predicted[:, down : down + image.shape[1], right : right + image.shape[2]]
    return found


@pytest.mark.parametrize("versions", [2, 4])
def test_an_equivariant_network_sees_shifted_tiles(image: Float32Array, versions: int) -> None:
    model = checkpoint(symmetric=True)
    by_hand = [shifted_by_hand(model, image, *shift, cell=2) for shift in ((0, 0), (1, 1), (1, 0), (0, 1))[:versions]]
    difference = np.abs(by_hand[1] - by_hand[0]).max()
    assert difference > 0.01, "the test's premise: shifts make a difference"
    np.testing.assert_allclose(denoised(model, image, versions), np.mean(by_hand, axis=0), rtol=1e-4, atol=1e-4)


def test_versions_that_an_equivariant_network_gives_the_same_for_are_not_computed(image: Float32Array) -> None:
    model = checkpoint(symmetric=True)
    np.testing.assert_array_equal(denoised(model, image, 8), denoised(model, image, 4))
    assert len(denoiser(model, 8).versions) == 3
    assert len(denoiser(checkpoint(symmetric=False), 8).versions) == 7
    alone = [s.inverse.apply(denoised(model, s.apply(image), 1)) for s in SQUARE]
    np.testing.assert_allclose(alone, np.broadcast_to(alone[0], (8, *SHAPE)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("cell", "count"), [(1, 1), (2, 4), (4, 4), (8, 4)])
def test_no_version_is_computed_twice(cell: int, count: int) -> None:
    versions = shifted(8, cell)
    assert 1 + len(versions) == count
    places = {(0, 0), *((v.down % cell, v.right % cell) for v in versions if isinstance(v, Shifted))}
    assert len(places) == count


@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 12), (16, 8)])
def test_a_shifted_tile_that_nothing_changes_comes_back(height: int, width: int) -> None:
    seen: list[tuple[int, ...]] = []

    class Centre(torch.nn.Module):
        def forward(self, block: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(block.shape))
            return block[:, 1:-1]

    blocks = torch.randn(2, 5, height, width)
    for version in shifted(4, 4):
        assert torch.equal(version.prediction(Centre(), blocks), blocks[:, 1:-1])
    assert all(y % 4 == 0 and x % 4 == 0 for *_, y, x in seen), "the network needs whole cells"
