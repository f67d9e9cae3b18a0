"""How much host memory a training run takes, before it takes it: its processes, and the part that is for data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from denoise.arithmetic import autocast, fast_layout
from denoise.memory import first_step_bytes, processes_bytes
from denoise.networks.catalogue import build_network, find_network
from denoise.networks.spec import NetworkSpec
from denoise.tiles import Window

#: Whatever the network; with it, `NetworkKind.step_peak` of what autograd keeps.
_STEP_BYTES = 20_000_000
#: Weights, their gradients, two moments, what is cast to bf16, and what comes and goes in the optimiser.
_COPIES_OF_WEIGHTS = 6
#: Which weights are carried into each other (five, as int64), and what finding that out, or projecting them, takes.
_COPIES_FOR_SYMMETRY = 8
#: Batches of blocks on the host at a time, float32: trained on, ahead, being cut, normalised.
_BATCHES = 4
_SMALL_EDGE = 16


@dataclass(frozen=True)
class Footprint:
    """What a run takes on one node besides its training data.

    Attributes
    ----------
    processes
        On this node.
    blocks_each
        Per process and step.
    splits
        How many there are.
    itemsize
        Bytes per element that convolutions compute in.
    symmetric
        Whether gradients are kept equivariant.
    """

    network: NetworkSpec
    window: Window
    device_type: str
    processes: int
    blocks_each: int
    splits: int
    itemsize: int
    symmetric: bool = False

    @property
    def bytes(self) -> int:
        """Host memory of all processes together."""
        return processes_bytes(self.device_type, self.processes, self.step_bytes)

    @cached_property
    def step_bytes(self) -> int:
        """What one process takes of that while it trains, and not before."""
        batches = _BATCHES * self.blocks_each * self.splits * 4 * math.prod(self.window.read_zyx)
        weights, kept = self._network_bytes if self.device_type != "cuda" else (0, 0)
        copies = _COPIES_OF_WEIGHTS + (_COPIES_FOR_SYMMETRY if self.symmetric else 0)
        step = _STEP_BYTES + copies * weights + int(find_network(self.network.name).step_peak * kept)
        return batches + step

    @property
    def not_yet_bytes(self) -> int:
        """What one process takes once it trains, and not while it reads its data."""
        return self.step_bytes + first_step_bytes(self.device_type)

    @property
    def _network_bytes(self) -> tuple[int, int]:
        """Bytes of the weights (float32), and of what autograd keeps of the forward pass of a step.

        Counted in a small block that goes through once, and scaled: it grows with the voxels.
        """
        kind = find_network(self.network.name)
        edge = min(self.window.read_zyx[2], max(_SMALL_EDGE, kind.divisor(self.network.options)))
        depth = edge if len(set(self.window.read_zyx)) == 1 else self.window.read_zyx[0]
        with torch.device("meta"):  # not initialised: no time is spent on random numbers, and none are used up
            network = build_network(self.network)
        network = fast_layout(network.to_empty(device="cpu"))
        dtype = torch.float32 if self.itemsize == 4 else torch.bfloat16
        # What the second block adds: weights cast to bf16 are kept once.
        one, two = (_kept_bytes(network, torch.zeros(blocks, depth, edge, edge), dtype) for blocks in (1, 2))
        blocks = self.splits * self.blocks_each  # every split is an input once
        whole = (two - one) * blocks * math.prod(self.window.read_zyx) // (depth * edge * edge)
        return 4 * sum(p.numel() for p in network.parameters()), whole


def _kept_bytes(network: nn.Module, blocks: Tensor, dtype: torch.dtype) -> int:
    """What autograd keeps of a forward pass besides the weights; what several layers keep counts once."""
    kept: dict[int, Tensor] = {}  # holds them: memory that was freed could be given out again

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(blocks.device, dtype):
        network(blocks)
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
