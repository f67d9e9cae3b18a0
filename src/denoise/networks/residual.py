"""A small, fast U-Net that predicts a correction to its input; this package's own, in 2.5D and 3D.

``(B, Z + n_slices - 1, Y, X) -> (B, Z, Y, X)``: every predicted slice sees ``n_slices`` slices, the same network goes
over each of them, and in 3D what it finds in one slice is mixed with what it finds in the slices above and below. In
2.5D there is no mixing, and Z is 1 as a rule. So the 3D network is the 2.5D one and a little more (15 % more
arithmetic): it can be trained slice by slice first, where steps are cheap, and then on blocks.

No norm layers, and no activation on the sums of the residual branches: sums that a high learning rate has once driven
below zero stay there where they are rectified, and in models that were trained so all features of the coarser levels
were dead (docs/network-study.md). What comes out for a voxel depends on the voxels within `receptive_radius` of it and
on nothing else, so that tiles which read a halo of that much, and start at multiples of ``2**(levels-1)``, give exactly
what one pass over the whole slice gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BRANCH_GAIN = 0.3
_MIDDLE_BLOCKS = 2


class ResidualUNet(nn.Module):
    """Residual blocks at each level of a U-Net with additive skips; it starts as the identity.

    Per level one block of two convolutions of side 3 down and one up, 2 blocks at the coarsest level; strided
    convolutions of side 2 halve y and x; a convolution of side 1, then nearest-neighbour repetition, doubles them. With
    the defaults 29,792 multiply-accumulates per voxel, 34,400 with mixing. For speed: channels_last memory format,
    bfloat16 autocast, and a ``width`` that is a multiple of 16. All convolutions are 2D (mixing, too, is one over z and
    all voxels of a slice in a row): they are faster than 3D ones on every device.

    Without norm layers the start decides whether it trains: normal weights of variance 1 / inputs where a convolution
    reads sums and 2 / inputs where it reads a ReLU, the second convolution of each block scaled by 0.3, the last
    convolution and all mixing zero. What was tried: docs/network-study.md.

    Parameters
    ----------
    n_slices
        Neighbouring slices that a predicted slice sees directly; it is slice ``n_slices // 2`` of them.
    width
        Channels at full resolution, doubled at each further level.
    levels
        Resolutions; 1 never halves.
    mixes
        Whether features of neighbouring slices are mixed, after every block (3D).
    rectified_sums
        Whether sums of features and branches go through a ReLU, as in models of versions before 2026-11-26.
    """

    def __init__(
        self,
        n_slices: int = 5,
        width: int = 16,
        levels: int = 3,
        *,
        mixes: bool = False,
        rectified_sums: bool = False,
    ) -> None:
        super().__init__()
        self.n_slices = n_slices
        self.divisor: int = 2 ** (levels - 1)
        fine = [width * 2**level for level in range(levels - 1)]
        coarsest = width * self.divisor
        block = partial(_Block, mixes=mixes, rectified=rectified_sums)
        self.enter = nn.Conv2d(n_slices, width, 3, padding=1)
        self.down_blocks = nn.ModuleList(block(channels) for channels in fine)
        self.shrink = nn.ModuleList(nn.Conv2d(channels, 2 * channels, 2, stride=2) for channels in fine)
        self.middle = nn.ModuleList(block(coarsest) for _ in range(_MIDDLE_BLOCKS))
        self.grow = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * channels, channels, 1), nn.Upsample(scale_factor=2, mode="nearest"))
            for channels in reversed(fine)
        )
        self.up_blocks = nn.ModuleList(block(channels) for channels in reversed(fine))
        self.leave = nn.Conv2d(width, 1, 3, padding=1)
        self._initialise()

    def forward(self, block: Tensor) -> Tensor:
        """Predict the slices of a block that have all their neighbours in it.

        Parameters
        ----------
        block
            ``(B, Z + n_slices - 1, Y, X)``, normalised.

        Returns
        -------
        ``(B, Z, Y, X)``.

        Raises
        ------
        ValueError
            Y or X is not divisible by ``2**(levels-1)``, or there are fewer than ``n_slices`` slices.
        """
        self._require_fitting(block)
        height, width = block.shape[2:]
        depth = block.shape[1] - self.n_slices + 1
        centre = self.n_slices // 2
        seen = block.unfold(1, self.n_slices, 1).movedim(-1, 2).reshape(-1, self.n_slices, height, width)
        correction = self._correction(seen, depth)
        return block[:, centre : centre + depth] + correction.reshape(-1, depth, height, width)

    def convolutions(self) -> Iterator[tuple[nn.Conv2d, bool]]:
        """Everything that has weights, and whether its window lies in the plane of a slice (or else along z)."""
        across = {module.weights for module in self.modules() if isinstance(module, _Mixing)}
        return ((m, m not in across) for m in self.modules() if isinstance(m, nn.Conv2d))

    def _correction(self, features: Tensor, depth: int) -> Tensor:
        features = self.enter(features)
        skips: list[Tensor] = []
        for block, shrink in zip(self.down_blocks, self.shrink, strict=True):
            features = block(features, depth)
            skips.append(features)
            features = shrink(features)
        for block in self.middle:
            features = block(features, depth)
        for grow, block in zip(self.grow, self.up_blocks, strict=True):
            features = block(grow(features).add_(skips.pop()), depth)
        correction: Tensor = self.leave(features)
        return correction

    def _initialise(self) -> None:
        if self.leave.weight.is_meta:
            return  # nothing to set, and trying costs the import of torch's compiler, two seconds
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # of sums, which are not rectified
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _Block):
                nn.init.kaiming_normal_(module.second.weight, nonlinearity="relu")
                with torch.no_grad():
                    module.second.weight.mul_(_BRANCH_GAIN)
            elif isinstance(module, _Mixing):
                nn.init.zeros_(module.weights.weight)
        nn.init.zeros_(self.leave.weight)

    def _require_fitting(self, block: Tensor) -> None:
        shape = tuple(block.shape[1:])
        if shape[0] < self.n_slices:
            raise ValueError(
                f"this network sees {self.n_slices} slices at once; this block has fewer: (Z, Y, X) = {shape}"
            )
        if any(side % self.divisor for side in shape[1:]):
            raise ValueError(
                f"this network halves Y and X and needs them divisible by {self.divisor}; this block is "
                f"(Z, Y, X) = {shape}"
            )


def receptive_radius(levels: int) -> int:
    """The largest distance in voxels, along y or x, at which an input still changes an output."""
    radius = 2 * _MIDDLE_BLOCKS
    for _ in range(levels - 1):
        # Halved: twice the distance, plus the neighbour within the cell of 2; two blocks of two convolutions.
        radius = 2 * radius + 1 + 4
    return radius + 2


def mixing_weights(network: nn.Module) -> list[nn.Parameter]:
    """What of a network only blocks of several slices can train; none in most."""
    return [weights for module in network.modules() if isinstance(module, _Mixing) for weights in module.parameters()]


class _Block(nn.Module):
    """Two convolutions of side 3, added to their input; with mixing, features of the slices above and below too."""

    def __init__(self, channels: int, *, mixes: bool, rectified: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.mixing = _Mixing(channels, rectified=rectified) if mixes else None
        self._rectified = rectified

    def forward(self, features: Tensor, depth: int) -> Tensor:
        # In place: nothing else reads it, backward neither.
        result = self.second(self.first(features).relu_()).add_(features)
        if self._rectified:
            result = result.relu_()
        summed: Tensor = result if self.mixing is None else self.mixing(result, depth)
        return summed


class _Mixing(nn.Module):
    """A convolution across slices, of side 3, added to its input; slices beyond the block count as zero."""

    def __init__(self, channels: int, *, rectified: bool) -> None:
        super().__init__()
        self.weights = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self._rectified = rectified

    def forward(self, features: Tensor, depth: int) -> Tensor:
        """Mix (B * Z, C, Y, X), where Z is ``depth``."""
        change = self._alone(features) if depth == 1 else self._across(features, depth)
        result = change.add_(features)
        return result.relu_() if self._rectified else result

    def _alone(self, features: Tensor) -> Tensor:
        return F.conv2d(features, self.weights.weight[:, :, 1:2], self.weights.bias)

    def _across(self, features: Tensor, depth: int) -> Tensor:
        _, channels, height, width = features.shape
        # As images (B, C, Z, Y * X): in channels_last that is the same memory.
        stacked = features.permute(0, 2, 3, 1).reshape(-1, depth, height * width, channels).permute(0, 3, 1, 2)
        change: Tensor = self.weights(stacked).permute(0, 2, 3, 1).reshape(-1, height, width, channels)
        return change.permute(0, 3, 1, 2)
