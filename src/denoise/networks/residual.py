"""A small, fast U-Net that predicts a correction to its input; this package's own, in 2.5D and 3D.

2.5D: ``(B, n_slices, Y, X) -> (B, 1, Y, X)``; 3D: ``(B, Z, Y, X) -> (B, Z, Y, X)``. No norm layers: what comes out for
a voxel depends on the voxels within `receptive_radius` of it and on nothing else, so that tiles which read a halo of
that much, and start at multiples of ``2**(levels-1)``, give exactly what one pass over the whole slice gives.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

_BRANCH_GAIN = 0.3


class ResidualUNet(nn.Module):
    """Residual blocks at each level of a U-Net with additive skips; it starts as the identity.

    Per level one block of two convolutions of side 3 down and one up, 2 blocks (2D) or 1 (3D) at the coarsest level;
    strided convolutions of side 2 halve; a convolution of side 1, then nearest-neighbour repetition, doubles. With the
    defaults 29,792 multiply-accumulates per pixel (2.5D) and 46,656 per voxel (3D). For speed: channels_last memory
    format, bfloat16 autocast, and a ``width`` that is a multiple of 16.

    Measured on discs in noise after 200 steps, gain in dB with two seeds: this network 18.3, 18.2; transposed
    convolutions instead of repetition 18.1, 18.1. Before that change, 18.1, 18.1 against: max pooling 18.0, 17.8;
    LeakyReLU(0.1) 17.8, 18.0; no activation after the addition 17.7, 18.0; one block at the coarsest level 17.9, 16.9
    (15 % faster); no additions within blocks 15.3, 15.1. The others take the same time within 5 %.

    Without norm layers the start decides whether it trains: He-normal weights, the second convolution of each
    block scaled by 0.3 (by 0.1: 16.9, 18.0 dB; by 1: 15.0, 16.3 dB), the last convolution zero.

    Parameters
    ----------
    dimensions
        2: predicts slice ``n_slices // 2`` of the block; 3: the whole block.
    n_slices
        Neighbouring slices read in 2.5D; has no meaning in 3D.
    width
        Channels at full resolution, doubled at each further level.
    levels
        Resolutions; 1 never halves.
    """

    def __init__(self, dimensions: Literal[2, 3], n_slices: int = 5, width: int = 16, levels: int = 3) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.n_slices = n_slices
        self.divisor: int = 2 ** (levels - 1)
        conv: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d if dimensions == 2 else nn.Conv3d
        fine = [width * 2**level for level in range(levels - 1)]
        coarsest = width * self.divisor
        self.enter = conv(n_slices if dimensions == 2 else 1, width, 3, padding=1)
        self.down_blocks = nn.ModuleList(_Block(conv, channels) for channels in fine)
        self.shrink = nn.ModuleList(conv(channels, 2 * channels, 2, stride=2) for channels in fine)
        self.middle = nn.Sequential(*(_Block(conv, coarsest) for _ in range(_middle_blocks(dimensions))))
        self.grow = nn.ModuleList(
            nn.Sequential(conv(2 * channels, channels, 1), nn.Upsample(scale_factor=2, mode="nearest"))
            for channels in reversed(fine)
        )
        self.up_blocks = nn.ModuleList(_Block(conv, channels) for channels in reversed(fine))
        self.leave = conv(width, 1, 3, padding=1)
        self._initialise()

    def forward(self, block: Tensor) -> Tensor:
        """Predict the centre slice (2.5D) or the whole block (3D).

        Parameters
        ----------
        block
            ``(B, n_slices, Y, X)`` or ``(B, Z, Y, X)``, normalised.

        Returns
        -------
        ``(B, 1, Y, X)`` or ``(B, Z, Y, X)``.

        Raises
        ------
        ValueError
            A side is not divisible by ``2**(levels-1)``, or there are not ``n_slices`` slices.
        """
        self._require_fitting(block)
        if self.dimensions == 2:
            centre = self.n_slices // 2
            return block[:, centre : centre + 1] + self._correction(block)
        return block + self._correction(block.unsqueeze(1)).squeeze(1)

    def _correction(self, features: Tensor) -> Tensor:
        features = self.enter(features)
        skips: list[Tensor] = []
        for block, shrink in zip(self.down_blocks, self.shrink, strict=True):
            features = block(features)
            skips.append(features)
            features = shrink(features)
        features = self.middle(features)
        for grow, block in zip(self.grow, self.up_blocks, strict=True):
            features = block(grow(features).add_(skips.pop()))
        correction: Tensor = self.leave(features)
        return correction

    def _initialise(self) -> None:
        if self.leave.weight.is_meta:
            return  # nothing to set, and trying costs the import of torch's compiler, two seconds
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _Block):
                with torch.no_grad():
                    module.second.weight.mul_(_BRANCH_GAIN)
        nn.init.zeros_(self.leave.weight)

    def _require_fitting(self, block: Tensor) -> None:
        shape = tuple(block.shape[1:])
        halved = shape[1:] if self.dimensions == 2 else shape
        if self.dimensions == 2 and shape[0] != self.n_slices:
            raise ValueError(f"this network reads blocks of {self.n_slices} slices; this block is (Z, Y, X) = {shape}")
        if any(side % self.divisor for side in halved):
            raise ValueError(
                f"this network halves {'Y and X' if self.dimensions == 2 else 'Z, Y and X'} and needs them divisible "
                f"by {self.divisor}; this block is (Z, Y, X) = {shape}"
            )


def receptive_radius(dimensions: Literal[2, 3], levels: int) -> int:
    """The largest distance in voxels, along y or x (and z in 3D), at which an input still changes an output."""
    radius = 2 * _middle_blocks(dimensions)
    for _ in range(levels - 1):
        # Halved: twice the distance, plus the neighbour within the cell of 2; two blocks of two convolutions.
        radius = 2 * radius + 1 + 4
    return radius + 2


class _Block(nn.Module):
    """Two convolutions of side 3, added to their input."""

    def __init__(self, conv: type[nn.Conv2d | nn.Conv3d], channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels, 3, padding=1)
        self.second = conv(channels, channels, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        change = self.second(self.activation(self.first(features)))
        result: Tensor = self.activation(change.add_(features))  # in place: nothing else reads it, backward neither
        return result


def _middle_blocks(dimensions: int) -> int:
    return 2 if dimensions == 2 else 1
