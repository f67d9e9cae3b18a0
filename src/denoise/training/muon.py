"""Muon: steps whose every direction has the same length, for the weights of convolutions.

K. Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"
(https://kellerjordan.github.io/posts/muon).

A gradient of weights, as a matrix of outputs by inputs, has a few large singular values and many small ones; the step
is the averaged gradient with all singular values made nearly 1. What it gains: docs/network-study.md, "Steps of one
length in every direction".

torch's own Muon takes matrices only, one at a time. This one takes windows of convolutions, works on all of one shape
at once, and on products of outputs by outputs where it can, which are small.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

_MOMENTUM = "momentum_buffer"
#: Of Jordan's quintic a s + b s^3 + c s^5, which takes singular values s in (0, 1] to about 1 (0.7 to 1.2) in 5 rounds.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5
_TINY = 1e-12


class Muon(torch.optim.Optimizer):
    """Steps of one length in every direction, for weights of two and more dimensions (outputs first).

    Parameters
    ----------
    groups
        Weights, or groups of them; all else is somebody else's.
    rate
        Spectral norm of a step, about.
    momentum
        Decay of the average of gradients; a step looks ahead by as much again (Nesterov).
    decay
        Times the rate, the share of themselves that weights lose at every step.
    """

    def __init__(self, groups: ParamsT, *, rate: float, momentum: float, decay: float) -> None:
        super().__init__(groups, {"lr": rate, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the weights that have a gradient."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for alike in _of_one_shape(group["params"]):
                averages = [self._average(weights) for weights in alike]
                gradients = [weights.grad for weights in alike if weights.grad is not None]
                torch._foreach_lerp_(averages, gradients, 1 - momentum)
                ahead = torch._foreach_lerp(gradients, averages, momentum)
                directions = orthogonalised(torch.stack([one.flatten(1) for one in ahead]))
                if group["decay"]:
                    torch._foreach_mul_(alike, 1 - rate * group["decay"])
                steps = [step.reshape(weights.shape) for step, weights in zip(directions, alike, strict=True)]
                torch._foreach_add_(alike, steps, alpha=-rate)

    def _average(self, weights: Tensor) -> Tensor:
        state = self.state[weights]
        if _MOMENTUM not in state:
            state[_MOMENTUM] = torch.zeros_like(weights)
        average: Tensor = state[_MOMENTUM]
        return average


def _of_one_shape(weights: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Those that have a gradient, together with all others of their shape."""
    groups: dict[torch.Size, list[Tensor]] = {}
    for one in weights:
        if one.grad is not None:
            groups.setdefault(one.shape, []).append(one)
    return groups.values()


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are all 1, nearly: U V^T of U S V^T, by Newton-Schulz rounds.

    Every round is X <- (a + b X X^T + c (X X^T)^2) X, whose polynomials commute: they are multiplied first, as matrices
    of rows by rows, and X only once.

    Parameters
    ----------
    matrices
        (N, rows, columns), float32. A matrix of zeros stays one.

    Returns
    -------
    The same shape; singular values 0.7 to 1.2, but for those that were less than about a thousandth of all.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalised(matrices.mT).mT
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    matrices = matrices / norms.clamp(min=_TINY)
    squares = matrices @ matrices.mT
    identity = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
    product: Tensor = identity.expand_as(squares)
    for _ in range(_ROUNDS):
        factor = torch.baddbmm(squares, squares, squares, beta=_B, alpha=_C) + _A * identity
        product = factor @ product
        squares = factor @ squares @ factor
    return product @ matrices
