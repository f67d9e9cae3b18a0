"""The published 2.5D network: neighbouring slices in, the slice among them out, no skip connections.

In: ``(B, n_slices, Y, X)``; out: ``(B, 1, Y, X)``; Y and X divisible by 8. Parameter names are those of the published
tool's model files, so that those load by name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from denoise.networks.output import in_float32

DIVISOR = 8
"""Three poolings by 2: tile sizes in y and x must be divisible by this."""

_WIDTH = 16
_CHANNELS_PER_GROUP = 8
_NEGATIVE_SLOPE = 0.1


class UNet2d(nn.Module):
    """A U-shaped network of 3x3 convolutions with GroupNorm (8 channels a group) and LeakyReLU(0.1).

    Its output depends on the content of the whole tile, through the statistics of the norm layers. Weights start as
    torch initialises convolutions (Kaiming-uniform with a = sqrt(5)), as the published tool's do.
    2,375,809 parameters and 297,072 multiply-accumulates per pixel at 5 slices.

    Parameters
    ----------
    n_slices
        Neighbouring slices that are read; odd or even.

    References
    ----------
    Hendriksen et al. 2021, Sci Rep 11:11895, doi 10.1038/s41598-021-91084-8 (2.5D Noise2Inverse).
    """

    def __init__(self, n_slices: int = 5) -> None:
        super().__init__()
        w = _WIDTH
        self.n_slices = n_slices
        self.in_box = nn.Sequential(nn.Conv2d(n_slices, w, 1), _norm(w), _activation())
        self.box1 = _DoubleConv(w, 4 * w)
        self.box2 = _DoubleConv(4 * w, 8 * w)
        self.box3 = _DoubleConv(8 * w, 16 * w)
        self.bottleneck = _Bottleneck(16 * w)
        self.box4 = _DoubleConv(16 * w, 8 * w)
        self.box5 = _DoubleConv(8 * w, 4 * w)
        self.box6 = _DoubleConv(4 * w, 4 * w)
        self.out_layer = nn.Sequential(nn.Conv2d(4 * w, 2 * w, 1), _norm(2 * w), _activation(), nn.Conv2d(2 * w, 1, 1))
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, block: Tensor) -> Tensor:
        """Predict one slice.

        Parameters
        ----------
        block
            ``(B, n_slices, Y, X)``, normalised.

        Returns
        -------
        ``(B, 1, Y, X)``.

        Raises
        ------
        ValueError
            Y or X is not divisible by 8, or there are not ``n_slices`` slices.
        """
        _, slices, y, x = block.shape
        if slices != self.n_slices or y % DIVISOR or x % DIVISOR:
            raise ValueError(
                f"unet2d reads blocks of {self.n_slices} slices with Y and X divisible by {DIVISOR}; "
                f"this block is (Z, Y, X) = {(slices, y, x)}"
            )
        features = self.in_box(block)
        for box in (self.box1, self.box2, self.box3):
            features = self.pool(box(features))
        features = self.bottleneck(features)
        # Half as long as repeating voxels and then convolving, measured on a CPU; elsewhere it was not measured.
        folded = features.device.type == "cpu" and not torch.is_grad_enabled()
        for box in (self.box4, self.box5, self.box6):
            if folded:
                features = box.after_first_convolution(_convolved_upsampled(box.double_conv[0], features))
            else:
                features = box(self.upsample(features))
        *entry, last = self.out_layer
        for layer in entry:
            features = layer(features)
        return in_float32(last, features)


class _DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with norm and activation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            _norm(outputs),
            _activation(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            _norm(outputs),
            _activation(),
        )

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.double_conv(features)
        return result

    def after_first_convolution(self, features: Tensor) -> Tensor:
        """What follows the first of the two convolutions."""
        result: Tensor = self.double_conv[1:](features)
        return result


class _Bottleneck(nn.Module):
    """One 3x3 convolution with norm and activation, at the coarsest level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn_conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), _norm(channels), _activation())

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.bn_conv(features)
        return result


def _convolved_upsampled(convolution: nn.Module, features: Tensor) -> Tensor:
    """A 3x3 convolution of features that are doubled by nearest-neighbour repetition, without doubling them first.

    Repetition is a transposed convolution with a 2x2 kernel of ones; the two together are one with a kernel of 4x4 and
    stride 2, in which every output has 4 terms instead of 9. Equal but for rounding.
    """
    assert isinstance(convolution, nn.Conv2d)
    kernel = convolution.weight.flip(2, 3).transpose(0, 1)  # (in, out, 3, 3), as a transposed convolution has it
    shifts = ((0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0))
    wide = torch.stack([functional.pad(kernel, shift) for shift in shifts]).sum(dim=0)
    wide = wide.contiguous(memory_format=torch.channels_last)
    return functional.conv_transpose2d(features, wide, convolution.bias, stride=2, padding=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // _CHANNELS_PER_GROUP, channels)


def _activation() -> nn.LeakyReLU:
    return nn.LeakyReLU(_NEGATIVE_SLOPE, inplace=True)
