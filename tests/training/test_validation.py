from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoise.launch import World
from denoise.modes import mode_of
from denoise.networks.spec import NetworkSpec
from denoise.patches.holdout import HoldOut
from denoise.quality import edge_score, edge_sums, laplacian_contrast_loss
from denoise.tiles import Triple, Window
from denoise.training.data import BlockSource, open_blocks
from denoise.training.validation import Scores, Validator, epochs_between_scores
from denoise.volumes.volume import SplitSet

FLAT = NetworkSpec("residual2d", {"n_slices": 3})
DEEP = NetworkSpec("residual3d", {})
Splits = Callable[..., SplitSet]


class PredictedPart(nn.Module):
    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def forward(self, block: Tensor) -> Tensor:
        return block[(slice(None), *self.window.predicted)]


@dataclass(frozen=True)
class OneOfSeveral(World):
    """A process that keeps its own sums instead of adding those of the others."""

    kept: list[Tensor] = field(default_factory=list)

    def sum(self, tensor: Tensor) -> Tensor:
        self.kept.append(tensor.clone())
        return tensor.fill_(1.0)


def window_of(network: NetworkSpec, patch: int) -> Window:
    return mode_of(network).window(network, patch, 0.0, "uniform")


def opened(splits: SplitSet, network: NetworkSpec, patch: int, world: World, **options: Any) -> tuple[Any, ...]:
    window = window_of(network, patch)
    holdout = HoldOut.of(splits.shape, window, 0.1)
    settings = {"strategy": "X:1", "batch_size": 3, **options}
    validator = Validator(holdout, window, splits.shape, world=world, **settings)
    return validator, open_blocks(splits, World(0, 1, torch.device("cpu")), "error", None), window, holdout


def score(validator: Validator, network: nn.Module, source: BlockSource) -> Scores:
    scores, _ = validator.scores(network, source, torch.float32)
    return scores


@pytest.mark.parametrize(
    ("network", "shape", "patch"),
    [
        (FLAT, (12, 32, 48), 16),  # whole tiles
        (FLAT, (20, 16, 16), 16),
        (FLAT, (1, 40, 16), 16),  # rows are held out: a band thinner than a tile
        (FLAT, (9, 10, 12), 16),  # smaller than a tile
        (DEEP, (40, 16, 16), 8),
        (DEEP, (6, 40, 8), 8),
    ],
    ids=str,
)
def test_an_identity_network_scores_the_noise_between_the_splits(
    network: NetworkSpec, shape: Triple, patch: int, splits_of: Splits, noise: Callable[..., Any], cpu: World
) -> None:
    splits = splits_of(noise(shape))
    validator, source, window, holdout = opened(splits, network, patch, cpu)
    found = score(validator, PredictedPart(window), source)
    one, other = (
        (v.array[holdout.held_out.slices] - source.normalization.mean) / source.normalization.std
        for v in splits.volumes
    )
    assert found.l1 == pytest.approx(np.abs(one - other).mean(), rel=1e-5)
    assert found.l2 == pytest.approx(np.square(one - other).mean(), rel=1e-5)


@pytest.mark.parametrize(("network", "shape", "patch"), [(FLAT, (12, 48, 32), 32), (DEEP, (41, 16, 16), 16)], ids=str)
def test_only_held_out_voxels_are_scored(
    network: NetworkSpec, shape: Triple, patch: int, splits_of: Splits, noise: Callable[..., Any], cpu: World
) -> None:
    window = window_of(network, patch)
    held_out = HoldOut.of(shape, window, 0.1).held_out.slices
    arrays = noise(shape)
    arrays[1][held_out] = arrays[0][held_out]
    validator, source, window, _ = opened(splits_of(arrays), network, patch, cpu)
    assert score(validator, PredictedPart(window), source).l1 == 0.0


def test_sharpness_is_that_of_the_predictions(splits_of: Splits, noise: Callable[..., Any], cpu: World) -> None:
    splits = splits_of(noise((12, 16, 16)))
    validator, source, window, holdout = opened(splits, FLAT, 16, cpu)
    z = holdout.held_out.start_zyx[0]
    images = torch.stack([torch.from_numpy(v.array[z : z + 1]) for v in splits.volumes])  # type: ignore[attr-defined]
    images = source.normalization.apply(images)
    found = score(validator, PredictedPart(window), source)
    assert found.lcl == pytest.approx(float(laplacian_contrast_loss(images)), rel=1e-4)
    assert found.edge == pytest.approx(edge_score(edge_sums(images)), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_scores_do_not_depend_on_the_batch_size(
    batch_size: int, splits_of: Splits, noise: Callable[..., Any], cpu: World
) -> None:
    splits = splits_of(noise((20, 40, 33)))
    reference, source, window, _ = opened(splits, FLAT, 16, cpu, batch_size=5)
    validator, _, _, _ = opened(splits, FLAT, 16, cpu, batch_size=batch_size)
    network = PredictedPart(window)
    one, other = (score(v, network, source) for v in (reference, validator))
    assert [*vars(one).values()] == pytest.approx([*vars(other).values()], rel=1e-5)


@pytest.mark.parametrize("size", [2, 3, 40])
def test_every_process_scores_its_share_and_nothing_is_left_out(
    size: int, splits_of: Splits, noise: Callable[..., Any], cpu: World
) -> None:
    splits = splits_of(noise((20, 40, 33)))

    def sums(world: OneOfSeveral) -> tuple[list[Tensor], object]:
        validator, source, window, _ = opened(splits, FLAT, 16, world)
        _, preview = validator.scores(PredictedPart(window), source, torch.float32)
        return world.kept, preview

    alone, preview = sums(OneOfSeveral(0, 1, cpu.device))
    assert preview is not None
    assert sum(t.numel() for t in alone) == 10, "|d|, d^2, noise, voxels, LCL, images and four sums of edges"
    shares = [sums(OneOfSeveral(rank, size, cpu.device)) for rank in range(size)]
    for i, whole in enumerate(alone):
        torch.testing.assert_close(sum(kept[i] for kept, _ in shares), whole, rtol=1e-6, atol=1e-6)
    assert all(preview is None for _, preview in shares[1:]), "only the chief draws"


@pytest.mark.parametrize("strategy", ["X:1", "1:X"])
def test_three_splits_are_scored_in_all_choices(
    strategy: str, splits_of: Splits, noise: Callable[..., Any], cpu: World
) -> None:
    splits = splits_of(noise((12, 16, 16), 3))
    validator, source, window, holdout = opened(splits, FLAT, 16, cpu, strategy=strategy)
    parts = np.stack([v.array[holdout.held_out.slices] for v in splits.volumes])  # type: ignore[attr-defined]
    others = (parts.sum(axis=0) - parts) / 2
    expected = np.abs(others - parts).mean() / source.normalization.std
    assert score(validator, PredictedPart(window), source).l1 == pytest.approx(expected, rel=1e-5)


class MeanOfSlices(nn.Module):
    """A denoiser whose error can be computed by hand: it blurs along z, and adds what was not there."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, block: Tensor) -> Tensor:
        return block.mean(dim=1, keepdim=True) + self.offset


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("strategy", ["X:1", "1:X"])
@pytest.mark.parametrize("strengths", [(0.6, 0.6), (0.5, 0.9), (0.9, 0.9, 0.9), (0.3, 0.6, 0.9)])
def test_the_mean_squared_error_is_that_against_the_truth_which_nobody_knows(
    strengths: tuple[float, ...], strategy: str, offset: float, splits_of: Splits, cpu: World
) -> None:
    rng = np.random.default_rng(8)
    shape = (30, 96, 96)
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    truth = np.sin(y / 9) * np.cos(x / 5) + 0.5 * np.sin(z)
    arrays = [(truth + rng.normal(0, strength, shape)).astype(np.float32) for strength in strengths]
    validator, source, _, holdout = opened(splits_of(arrays), FLAT, 32, cpu, strategy=strategy)
    inputs = arrays if strategy == "1:X" else [(sum(arrays) - array) / (len(arrays) - 1) for array in arrays]
    mean, std = source.normalization.mean, source.normalization.std
    low, high = holdout.held_out.start_zyx[0], holdout.held_out.stop_zyx[0]
    errors = [
        ((image[low - 1 : high - 1] + image[low:high] + image[low + 1 : high + 1]) / 3 - truth[low:high]) / std + offset
        for image in inputs
    ]
    found = score(validator, MeanOfSlices(offset), source)
    expected = float(np.mean(np.square(errors)))
    assert mean == pytest.approx(truth.mean(), abs=0.01), "the premise: one normalisation for all"
    # About 28,000 voxels for each choice; the squared noise of one has a standard deviation of about 1.
    assert found.mse == pytest.approx(expected, abs=0.03)
    assert found.l2 > expected + 0.08, "the test's premise: the noise of the targets is much of what is seen"


@pytest.mark.parametrize(("network", "shape", "patch"), [(FLAT, (12, 32, 32), 16), (DEEP, (40, 16, 16), 8)], ids=str)
def test_the_preview_shows_one_slice_before_and_after(
    network: NetworkSpec, shape: Triple, patch: int, splits_of: Splits, noise: Callable[..., Any], cpu: World
) -> None:
    validator, source, window, _ = opened(splits_of(noise(shape)), network, patch, cpu)
    _, preview = validator.scores(PredictedPart(window), source, torch.float32)
    assert preview is not None
    assert preview.noisy.shape == preview.predicted.shape == preview.other.shape == (patch, patch)
    assert torch.equal(preview.noisy, preview.predicted), "an identity network shows the slice that it was given"
    assert not torch.equal(preview.noisy, preview.other)


def test_the_preview_is_of_the_middle_of_a_slice_where_the_object_is(
    splits_of: Splits, noise: Callable[..., Any], cpu: World
) -> None:
    splits = noise((10, 160, 160))
    for split in splits:
        split[:, 64:96, 64:96] += 100
    validator, source, window, _ = opened(splits_of(splits), FLAT, 16, cpu)
    _, preview = validator.scores(PredictedPart(window), source, torch.float32)
    assert preview is not None
    assert preview.noisy.max() > 3


def test_the_number_of_blocks_is_limited_however_large_the_slices(
    splits_of: Splits, noise: Callable[..., Any], cpu: World
) -> None:
    validator, source, window, _ = opened(splits_of(noise((10, 160, 160))), FLAT, 16, cpu)
    assert validator.block_count == 32
    assert math.isfinite(score(validator, PredictedPart(window), source).l1)


@pytest.mark.parametrize("rows", [8, 16, 24])
def test_a_single_small_slice_can_be_scored(
    rows: int, splits_of: Splits, noise: Callable[..., Any], cpu: World
) -> None:
    """Sharpness needs images of three rows at least: a tenth of the rows would be fewer."""
    validator, source, window, _ = opened(splits_of(noise((1, rows, 16))), FLAT, 16, cpu)
    found = score(validator, PredictedPart(window), source)
    assert all(math.isfinite(value) for value in vars(found).values())


@pytest.mark.parametrize(
    ("blocks", "steps", "batch", "device", "expected"),
    [
        (32, 64, 4, "cpu", 1),  # 32 forward passes, a third of a step each, after 256 blocks: 4 %
        (32, 8, 4, "cpu", 7),  # so many epochs until they are 5 % again
        (2, 1000, 4, "cpu", 1),
        (32, 64, 4, "cuda", 7),  # 448 steps
        (32, 8, 32, "cuda", 50),
        (32, 1000, 32, "cuda", 1),
    ],
)
def test_scoring_takes_a_small_share_of_the_time(
    blocks: int, steps: int, batch: int, device: str, expected: int
) -> None:
    assert epochs_between_scores(blocks, steps, batch, device) == expected
