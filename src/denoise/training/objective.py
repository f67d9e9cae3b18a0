"""What is minimised: every split predicted from the others, plus (after a warm-up) the Laplacian Contrast Loss.

Blocks come in as (B, K, Zin, Y, X), normalised; nothing here knows which mode it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from denoise.quality import laplacian_contrast_loss


def paired(blocks: Tensor, strategy: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets for all K choices of the split that stands alone.

    Hendriksen, Pelt, Batenburg 2020 (doi 10.1109/TCI.2020.3019647), section III: X:1 predicts one split from the mean
    of the others, 1:X the mean of the others from one. For K = 2 both are "each from the other".

    Parameters
    ----------
    blocks
        (B, K, Z, Y, X).
    strategy
        "X:1" or "1:X".

    Returns
    -------
    inputs, targets, each (B * K, Z, Y, X); row b * K + k is choice k of block b.
    """
    splits = blocks.shape[1]
    others = (blocks.sum(dim=1, keepdim=True) - blocks) / (splits - 1)
    inputs, targets = (others, blocks) if strategy == "X:1" else (blocks, others)
    return inputs.flatten(0, 1), targets.flatten(0, 1)


def target_noise(blocks: Tensor, strategy: str) -> Tensor:
    """Noise variance of the targets of ``paired``, per voxel: half the squared difference of two splits, on average.

    Returns
    -------
    (B * K, Z, Y, X), in the order of ``paired``. Meaningful as a mean over many voxels only.
    """
    splits = blocks.shape[1]
    variance = blocks.var(dim=1, keepdim=True)  # of one split: its sum of squares over K - 1, unbiased
    return (variance if strategy == "X:1" else variance / (splits - 1)).expand_as(blocks).flatten(0, 1)


def _huber(prediction: Tensor, target: Tensor, delta: float) -> Tensor:
    return functional.huber_loss(prediction, target, delta=delta)


_LOSSES: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "l1": lambda prediction, target, _: functional.l1_loss(prediction, target),
    "l2": lambda prediction, target, _: functional.mse_loss(prediction, target),
    "huber": _huber,
}


@dataclass(frozen=True)
class Objective:
    """The loss of a batch; see the method, "Objective"."""

    loss: str = "l1"
    huber_delta: float = 1.0
    strategy: str = "X:1"
    lcl_weight: float = 0.01

    def fidelity(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over voxels of |d|, d^2 or the Huber function, float32 whatever the inputs; a scalar."""
        return _LOSSES[self.loss](prediction.float(), target.float(), self.huber_delta)

    def __call__(self, prediction: Tensor, target: Tensor, *, with_lcl: bool) -> Tensor:
        """Loss of predictions (N, Z, Y, X) against targets of the same shape, N = blocks times choices; a scalar."""
        loss = self.fidelity(prediction, target)
        if with_lcl and self.lcl_weight > 0:
            loss = loss + self.lcl_weight * laplacian_contrast_loss(centre_slice(prediction))
        return loss


def centre_slice(blocks: Tensor) -> Tensor:
    """The centre axial slice of every block: (N, Z, Y, X) -> (N, 1, Y, X)."""
    middle = blocks.shape[1] // 2
    return blocks[:, middle : middle + 1]
