"""Gradients of one step: of the whole batch at once, or added up over parts of it where memory is too small."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from denoise.arithmetic import autocast, give_back_unused
from denoise.launch import World, describe_device
from denoise.memory import is_out_of_memory
from denoise.tiles import Window
from denoise.training.objective import Objective, paired

_log = logging.getLogger(__name__)


@dataclass
class Gradients:
    """What a batch says of the weights.

    Attributes
    ----------
    network
        As it is called; of several processes it averages their gradients (DistributedDataParallel).
    share
        Of the blocks of all processes, that this one has.
    """

    network: nn.Module
    objective: Objective
    window: Window
    world: World
    dtype: torch.dtype
    share: float
    _parts: int = field(default=1, init=False)

    def of(self, blocks: Tensor, *, with_lcl: bool) -> Tensor:
        """Leave the gradients of a batch with the weights, which have none yet; returns its loss, detached.

        Parameters
        ----------
        blocks
            (B, K, Z, Y, X), normalised, on the device.

        Raises
        ------
        RuntimeError
            Memory ran out with a single block; or, of several processes, at all: those that had enough of it wait for
            the others in mid-step.
        """
        while True:
            try:
                return self._added_up(blocks, with_lcl=with_lcl)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.world.size > 1 or self._parts >= len(blocks):
                    raise
            self._parts *= 2
            device = self.world.device
            _log.warning(
                "memory ran out on %s; steps of %d blocks go on in %d parts, with the same result",
                describe_device(device), len(blocks), min(self._parts, len(blocks)),
            )  # fmt: skip
            self.network.zero_grad(set_to_none=True)
            give_back_unused(device)

    def _added_up(self, blocks: Tensor, *, with_lcl: bool) -> Tensor:
        total = torch.zeros((), device=blocks.device)
        for part in torch.tensor_split(blocks, min(self._parts, len(blocks))):
            weight = len(part) / len(blocks)
            inputs, targets = paired(part, self.objective.strategy)
            with autocast(self.world.device, self.dtype):
                prediction = self.network(inputs)
            targets = targets[:, self.window.before_zyx[0] : targets.shape[1] - self.window.after_zyx[0]]
            loss = self.objective(prediction, targets, with_lcl=with_lcl)
            # Gradients are averaged over processes; where their shares differ, that weighs them by their blocks.
            (loss * (weight * self.share * self.world.size)).backward()  # type: ignore[no-untyped-call]
            total += weight * loss.detach()
        return total
