"""One U-Net with every choice open, for `study.py`; what paid became ``denoise.networks.residual``."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Kernels of a block that looks within slices, then across them.
_FLAT = ((1, 3, 3), (3, 1, 1))


class StudyUNet(nn.Module):
    """A U-Net of convolution blocks: (B, Zin, Y, X) -> (B, Zout, Y, X), the Zout slices in the middle of the block.

    Parameters
    ----------
    dimensions
        2: slices are channels; 3: volumetric (Zin = Zout); "hybrid": a volumetric first layer, then as in 2.
    widths
        Channels at each level, finest first.
    skips
        "add", "cat" or "none".
    unshuffle
        Side of the cells that become channels before the first convolution (1: full resolution).
    norm
        "none", or "channel": layer norm over the channels of each voxel, which knows nothing of the tile.
    residual
        Whether the output is a correction to the input.
    flat
        In 3D, how many levels, finest first, have blocks of a convolution within slices and one across them.
    """

    def __init__(
        self,
        dimensions: int = 2,
        n_in: int = 5,
        n_out: int = 1,
        widths: tuple[int, ...] = (16, 32, 64),
        middle_blocks: int = 2,
        blocks: int = 1,
        skips: str = "add",
        unshuffle: int = 1,
        norm: str = "none",
        activation: str = "relu",
        residual: bool = True,
        block_residual: bool = True,
        gain: float = 0.3,
        flat: int = 0,
    ) -> None:
        super().__init__()
        self.dimensions, self.n_in, self.n_out = dimensions, n_in, n_out
        self.skips, self.unshuffle, self.residual = skips, unshuffle, residual
        conv = nn.Conv2d if dimensions == 2 else nn.Conv3d

        def stack(width: int, count: int) -> nn.Sequential:
            kernels = _FLAT if width in widths[:flat] else (3, 3)
            return nn.Sequential(
                *(_Block(conv, width, norm, activation, block_residual, gain, kernels) for _ in range(count))
            )

        inputs, outputs = (n_in * unshuffle**2, n_out * unshuffle**2) if dimensions == 2 else (1, 1)
        self.enter = conv(inputs, widths[0], 3, padding=1)
        self.down = nn.ModuleList(stack(w, blocks) for w in widths[:-1])
        self.shrink = nn.ModuleList(conv(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.middle = stack(widths[-1], middle_blocks)
        self.grow = nn.ModuleList(conv(b, a, 1) for a, b in reversed(list(pairwise(widths))))
        self.join = nn.ModuleList(conv(2 * w, w, 1) for w in reversed(widths[:-1])) if skips == "cat" else None
        self.up = nn.ModuleList(stack(w, blocks) for w in reversed(widths[:-1]))
        self.leave = conv(widths[0], outputs, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _Block) and block_residual:
                with torch.no_grad():
                    module.second.weight.mul_(gain)
        if residual:
            nn.init.zeros_(self.leave.weight)

    def forward(self, block: Tensor) -> Tensor:
        """Predict the slices in the middle."""
        first = (self.n_in - self.n_out + 1) // 2
        centre = block[:, first : first + self.n_out] if self.dimensions == 2 else block
        features = block if self.dimensions == 2 else block.unsqueeze(1)
        if self.unshuffle > 1:
            features = F.pixel_unshuffle(features, self.unshuffle)
        features = self.enter(features)
        kept = []
        for down, shrink in zip(self.down, self.shrink, strict=True):
            features = down(features)
            kept.append(features)
            features = shrink(features)
        features = self.middle(features)
        for i, (grow, up) in enumerate(zip(self.grow, self.up, strict=True)):
            features = F.interpolate(grow(features), scale_factor=2, mode="nearest")
            skip = kept.pop()
            if self.skips == "add":
                features = features + skip
            elif self.skips == "cat":
                features = self.join[i](torch.cat([features, skip], 1))
            features = up(features)
        features = self.leave(features)
        if self.unshuffle > 1:
            features = F.pixel_shuffle(features, self.unshuffle)
        if self.dimensions == 3:
            features = features.squeeze(1)
        return centre + features if self.residual else features


class _Block(nn.Module):
    def __init__(
        self,
        conv: type,
        width: int,
        norm: str,
        activation: str,
        residual: bool,
        gain: float,
        kernels: tuple[Any, Any],
    ) -> None:
        super().__init__()
        self.first, self.second = (conv(width, width, kernel, padding="same") for kernel in kernels)
        self.norm = _ChannelNorm(width) if norm == "channel" else None
        self.activation = {"relu": nn.ReLU(), "leaky": nn.LeakyReLU(0.1), "silu": nn.SiLU(), "gelu": nn.GELU()}[
            activation
        ]
        self.residual = residual

    def forward(self, features: Tensor) -> Tensor:
        change = self.first(features if self.norm is None else self.norm(features))
        change = self.second(self.activation(change))
        return self.activation(features + change if self.residual else change)


class _ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(features.movedim(1, -1)).movedim(-1, 1)
