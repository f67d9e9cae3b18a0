"""`infer.tta`: the mean over mirrored and turned versions, as few of them as differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from denoise.checkpoint import Checkpoint
from denoise.config import InferSection
from denoise.inference.engine import Denoiser, denoise_slices
from denoise.inference.models import make_denoiser
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


def test_versions_that_an_equivariant_network_gives_the_same_for_are_not_computed(image: Float32Array) -> None:
    model = checkpoint(symmetric=True)
    assert denoiser(model, 8).turns == 1
    assert denoiser(checkpoint(symmetric=False), 8).turns == 8
    all_of_them = [s.inverse.apply(denoised(model, s.apply(image), 1)) for s in SQUARE]
    np.testing.assert_allclose(denoised(model, image, 8), np.mean(all_of_them, axis=0), rtol=1e-4, atol=1e-4)
