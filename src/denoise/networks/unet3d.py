"""The published 3D network: a cube in, the same cube out, with concatenated skip connections.

``(B, Z, Y, X) -> (B, Z, Y, X)``; the channel axis is added and removed here. Parameter names are those of the published
tool's model files, so that those load by name.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from denoise.networks.output import in_float32


class UNet3d(nn.Module):
    """A 3D U-Net of 3x3x3 convolutions with one-group GroupNorm ("layer" norm) and ReLU.

    Its output depends on the content of the whole tile, through the statistics of the norm layers. Weights start
    Xavier-normal, biases 0. 17,151,513 parameters and 652,876 multiply-accumulates per voxel at 4 blocks x 56 filters.

    Parameters
    ----------
    n_blocks
        Levels; the sides are halved ``n_blocks - 1`` times.
    start_filters
        Channels of the first level; doubled at each further level.

    References
    ----------
    Laugros et al. 2025, bioRxiv 2025.02.10.633538; the layout is that of ELEKTRONN3's U-Net.
    """

    def __init__(self, n_blocks: int = 4, start_filters: int = 56) -> None:
        super().__init__()
        channels = [start_filters * 2**level for level in range(n_blocks)]
        self.down_convs = nn.ModuleList(
            _Down(inputs, outputs) for inputs, outputs in zip([1, *channels], channels, strict=False)
        )
        rising = channels[::-1]
        self.up_convs = nn.ModuleList(_Up(inputs, outputs) for inputs, outputs in pairwise(rising))
        self.conv_final = nn.Conv3d(start_filters, 1, 1)
        # Odd sides are rounded up, and cropped again on the way up.
        self.pool = nn.MaxPool3d(2, ceil_mode=True)
        self.apply(_initialise)

    def forward(self, block: Tensor) -> Tensor:
        """Predict a whole cube.

        Parameters
        ----------
        block
            ``(B, Z, Y, X)``, normalised; any size.

        Returns
        -------
        ``(B, Z, Y, X)``, the same size.
        """
        features = block.unsqueeze(1)  # (B, 1, Z, Y, X)
        skips: list[Tensor] = []
        for level, down in enumerate(self.down_convs):
            if level > 0:
                skips.append(features)
                features = self.pool(features)
            features = down(features)
        for up, skip in zip(self.up_convs, reversed(skips), strict=True):
            features = up(features, skip)
        return in_float32(self.conv_final, features).squeeze(1)


class _Down(nn.Module):
    """[convolution, norm, ReLU] twice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.norm0 = nn.GroupNorm(1, outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.norm1 = nn.GroupNorm(1, outputs)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        features = self.activation(self.norm0(self.conv1(features)))
        result: Tensor = self.activation(self.norm1(self.conv2(features)))
        return result


class _Up(nn.Module):
    """Upsampling by a transposed convolution, concatenation with the skip, [convolution, norm, ReLU] twice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.upconv = nn.ConvTranspose3d(inputs, outputs, 2, stride=2)
        self.norm0 = nn.GroupNorm(1, outputs)
        self.conv1 = nn.Conv3d(2 * outputs, outputs, 3, padding=1)
        self.norm1 = nn.GroupNorm(1, outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(1, outputs)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        z, y, x = skip.shape[2:]
        features = self.upconv(features)[..., :z, :y, :x]
        features = self.activation(self.norm0(features))
        features = torch.cat((features, skip), dim=1)
        features = self.activation(self.norm1(self.conv1(features)))
        result: Tensor = self.activation(self.norm2(self.conv2(features)))
        return result


def _initialise(module: nn.Module) -> None:
    # On the meta device there is nothing to set, and trying costs the import of torch's compiler, two seconds.
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and not module.weight.is_meta:
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
