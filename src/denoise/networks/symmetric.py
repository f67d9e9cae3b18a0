"""Weights of a residual network that treat all directions within a slice alike.

What goes in turned or mirrored comes out turned or mirrored, exactly: the network is equivariant under the eight
symmetries of the square (Cohen and Welling 2016, arXiv 1602.07576). Half of the channels of every level come in eights,
one for each direction that a feature can have, which the symmetries exchange; the others have no direction. A
convolution is equivariant if its weights stay as they are when channels are exchanged and the window is turned.

Such weights are a linear subspace, so nothing else has to know: they begin in it, and gradients are projected onto it
before each step. That step then has learnt from all eight versions of its patches. The network itself, its files and
its speed are what they would be without. What it gains, and what was tried: docs/network-study.md, "Directions that are
alike".
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from denoise.networks.residual import ResidualUNet

#: The symmetries of the square as matrices on (y, x).
_SQUARE = torch.tensor([rows for a in (1, -1) for b in (1, -1) for rows in ([[a, 0], [0, b]], [[0, a], [b, 0]])])
_ORDER = len(_SQUARE)
#: Narrower networks would have no channels with a direction.
_NARROWEST = 2 * _ORDER
#: Relative; weights that were trained within the subspace leave it by rounding alone, others are at about 1.
_NEAR = 1e-2


class SymmetricWeights:
    """The subspace of equivariant weights of one network, on its device."""

    def __init__(self, network: ResidualUNet) -> None:
        self._weights: list[Tensor] = []
        orbits, members, count = [], [], 0
        for weights, sources in _sources(network):
            # Weights that the symmetries carry into each other have the lowest of their places in common.
            firsts, member = torch.unique(sources.min(dim=0).values, return_inverse=True)
            orbits.append(sources[:, firsts].T + sum(w.numel() for w in self._weights))
            members.append(member.int() + count)
            self._weights.append(weights)
            count += len(firsts)
        self._sizes = [weights.numel() for weights in self._weights]
        device = self._weights[0].device
        # Small numbers while they are many times there; int64 is what indexing would make of them, at every step.
        self._orbits, self._members = torch.cat(orbits).to(device).long(), torch.cat(members).to(device).long()

    @classmethod
    def of(cls, network: nn.Module) -> SymmetricWeights | None:
        """None for networks of other kinds, and those too narrow for channels that come in eights."""
        return cls(network) if isinstance(network, ResidualUNet) and cls.can_hold_in(network) else None

    @staticmethod
    def can_hold_in(network: nn.Module) -> bool:
        """Whether the network is of the kind, and wide enough; its weights may be on the device "meta"."""
        return isinstance(network, ResidualUNet) and network.enter.out_channels >= _NARROWEST

    @property
    def hold(self) -> bool:
        """Whether the network is equivariant, but for rounding."""
        with torch.no_grad():
            weights = self._flat(self._weights)
            return bool((weights - self._projected(weights)).norm() <= _NEAR * weights.norm())

    @torch.no_grad()
    def impose(self) -> None:
        """Make random weights equivariant; their variances stay what they were."""
        ordered = self._orbits.sort(dim=1).values
        distinct = 1 + (ordered.diff(dim=1) != 0).sum(dim=1)
        weights = self._flat(self._weights)
        self._write(self._weights, self._projected(weights) * distinct.sqrt()[self._members])

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Take from the gradients what would lead out of the subspace; weights without a gradient count as zero."""
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self._weights]
        self._write(gradients, self._projected(self._flat(gradients)))

    def _projected(self, flat: Tensor) -> Tensor:
        return flat[self._orbits].mean(dim=1)[self._members]

    @staticmethod
    def _flat(tensors: list[Tensor]) -> Tensor:
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def _write(self, tensors: list[Tensor], flat: Tensor) -> None:
        parts = flat.split(self._sizes)  # type: ignore[no-untyped-call]
        torch._foreach_copy_(tensors, [values.view_as(t) for t, values in zip(tensors, parts, strict=True)])


def _sources(network: ResidualUNet) -> Iterator[tuple[Tensor, Tensor]]:
    """All weight tensors, and which of its places every symmetry takes a weight to: int32 (8, numel)."""
    for convolution, in_plane in network.convolutions():
        outward = _exchanges(convolution.out_channels, alike=convolution is network.leave)
        inward = _exchanges(convolution.in_channels, alike=convolution is network.enter)
        window = _turns(convolution.weight.shape[2:], in_plane)
        places = (outward[:, :, None] * inward.shape[1] + inward[:, None, :])[..., None] * window.shape[1]
        yield convolution.weight, (places + window[:, None, None, :]).flatten(1)
        if convolution.bias is not None:
            yield convolution.bias, outward


def _exchanges(channels: int, *, alike: bool) -> Tensor:
    """Where each symmetry takes a channel: (8, channels). Slices of an image are alike, as they have no direction."""
    places = torch.arange(channels, dtype=torch.int32).repeat(_ORDER, 1)
    if not alike:
        directed = channels // 2 // _ORDER * _ORDER
        group, element = places[:, :directed] // _ORDER, places[:, :directed] % _ORDER
        places[:, :directed] = group * _ORDER + _products().gather(1, element.long())
    return places


def _products() -> Tensor:
    """Number of the symmetry that g after h is: (g, h)."""
    products = torch.einsum("gij,hjk->ghik", _SQUARE, _SQUARE)
    return (products[:, :, None] == _SQUARE).all(dim=(3, 4)).long().argmax(dim=2)


def _turns(window: torch.Size, in_plane: bool) -> Tensor:
    """Where each symmetry takes a place of a convolution's window: (8, places)."""
    height, width = window
    if not in_plane:
        return torch.arange(height * width, dtype=torch.int32).repeat(_ORDER, 1)
    y, x = torch.meshgrid(*(2 * torch.arange(n) - (n - 1) for n in window), indexing="ij")
    turned = _SQUARE @ torch.stack([y.flatten(), x.flatten()])
    return ((turned[:, 0] + height - 1) // 2 * width + (turned[:, 1] + width - 1) // 2).int()
