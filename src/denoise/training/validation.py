"""Scores on held-out blocks, summed over all ranks: what the three checkpoints are chosen by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from denoise.arithmetic import autocast, summing_device
from denoise.launch import World
from denoise.patches.holdout import HoldOut
from denoise.patches.sampler import BlockPlace, scored_part, validation_places
from denoise.quality import edge_score, edge_sums, laplacian_contrast_loss
from denoise.tiles import Triple, Window
from denoise.training.data import BlockSource
from denoise.training.objective import centre_slice, paired, target_noise

#: Enough blocks for a score that does not jump, few enough to cost little.
MOST_BLOCKS = 32
#: Validation costs a forward pass per block, a training step three: this keeps it near 5 % of the time.
_SHARE = 0.15
#: A GPU makes small steps in a few milliseconds, and scoring, with a model to be written after it, takes some tens.
_FEWEST_STEPS_ON_GPU = 400


def epochs_between_scores(blocks: int, steps_per_epoch: int, batch_size: int, device_type: str) -> int:
    """After how many epochs a run is scored, where the user does not say.

    Parameters
    ----------
    blocks
        That are scored.
    """
    by_blocks = round(blocks / (_SHARE * steps_per_epoch * batch_size))
    by_steps = math.ceil(_FEWEST_STEPS_ON_GPU / steps_per_epoch) if device_type == "cuda" else 1
    return max(1, by_blocks, by_steps)


@dataclass(frozen=True)
class Scores:
    """Held-out scores, in normalised units."""

    l1: float
    """E|f(x_i) - x_j|: its minimum selects the ``val`` model."""
    l2: float
    """E(f(x_i) - x_j)^2: equals the true mean squared error plus a constant."""
    mse: float
    """``l2`` less the noise variance of its targets: estimates the mean squared error against the unknown truth
    (Marcos-Morales et al. 2023, arXiv 2210.05553). Can come out below zero where that is small."""
    lcl: float
    """Laplacian Contrast Loss of the predictions; no measure of fidelity."""
    edge: float
    """Pooled Laplacian edge score of the predictions; no measure of fidelity."""


@dataclass(frozen=True)
class Preview:
    """One held-out slice as three images (Y, X), float32, normalised."""

    noisy: Tensor
    predicted: Tensor
    other: Tensor


class Validator:
    """Fixed held-out blocks, each rank its share of them."""

    def __init__(
        self, holdout: HoldOut, window: Window, shape: Triple, *, strategy: str, batch_size: int, world: World
    ) -> None:
        self._places = validation_places(holdout, window, shape, MOST_BLOCKS)
        self._middle = [size / 2 for size in shape]
        self._holdout = holdout
        self._window = window
        self._strategy = strategy
        self._batch_size = batch_size
        self._world = world

    @property
    def block_count(self) -> int:
        """How many blocks are scored, over all ranks."""
        return len(self._places)

    @torch.inference_mode()
    def scores(self, network: nn.Module, source: BlockSource, dtype: torch.dtype) -> tuple[Scores, Preview | None]:
        """Score a network; the preview (of the block nearest to the middle) is there on the chief only."""
        device = self._world.device
        home = summing_device(device)
        # |d|, d^2, noise variance of the targets, voxels, sum of LCL, images
        sums = torch.zeros(6, dtype=torch.float64, device=home)
        edges = torch.zeros(4, dtype=torch.float64, device=home)
        preview = None
        mine = [self._places[i] for i in self._world.share(len(self._places))]
        batches = [mine[i : i + self._batch_size] for i in range(0, len(mine), self._batch_size)]
        shown = min(mine, key=self._from_the_middle, default=None) if self._world.is_chief else None
        for places, blocks in zip(batches, source.batches(batches), strict=True):
            inputs, targets = paired(blocks, self._strategy)
            with autocast(device, dtype):
                predictions = network(inputs)
            inputs, targets = (blocks[(slice(None), *self._window.predicted)] for blocks in (inputs, targets))
            if shown is not None and shown in places:
                held_out = scored_part(shown, self._holdout, self._window)[0]
                which = places.index(shown) * (len(inputs) // len(places)), (held_out.start + held_out.stop) // 2
                preview = Preview(*(blocks[which].float().cpu() for blocks in (inputs, predictions, targets)))
            noise = target_noise(blocks, self._strategy)[(slice(None), *self._window.predicted)]
            columns = (predictions.float().to(home), targets.to(home), noise.to(home))
            for predicted, target, variance in self._held_out(places, *columns):
                difference = predicted - target
                sums[0] += difference.abs().sum(dtype=torch.float64)
                sums[1] += difference.square().sum(dtype=torch.float64)
                sums[2] += variance.sum(dtype=torch.float64)
                sums[3] += difference.numel()
                sums[4] += laplacian_contrast_loss(centre_slice(predicted)).double() * len(predicted)
                sums[5] += len(predicted)
                edges += edge_sums(predicted).to(home)
        self._world.sum(sums)
        self._world.sum(edges)
        l1, l2, noise_variance, voxels, lcl, images = sums.tolist()
        error = (l2 - noise_variance) / voxels
        return Scores(l1 / voxels, l2 / voxels, error, lcl / images, edge_score(edges)), preview

    def _from_the_middle(self, place: BlockPlace) -> float:
        """How far a block is from the middle of the volume, where the object is, in y and x."""
        start, stop = place.region.start_zyx, place.region.stop_zyx
        return sum(((start[i] + stop[i]) / 2 - self._middle[i]) ** 2 for i in (1, 2))

    def _held_out(self, places: list[BlockPlace], *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The held-out parts of (N, Z, Y, X) tensors, batched over neighbours whose part has the same place."""
        parts = [scored_part(place, self._holdout, self._window) for place in places]
        choices = len(columns[0]) // len(places)
        first = 0
        for last in range(1, len(parts) + 1):
            if last == len(parts) or parts[last] != parts[first]:
                rows = slice(first * choices, last * choices)
                yield tuple(column[(rows, *parts[first])] for column in columns)
                first = last
