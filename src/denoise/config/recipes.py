"""How each network is best trained, where the user does not say: what `null` means in the section `train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

ScheduleName = Literal["constant", "cosine", "hold"]
LossName = Literal["l1", "l2", "huber"]


@dataclass(frozen=True)
class Adam:
    """How steps are scaled (Kingma and Ba 2015, arXiv 1412.6980).

    Attributes
    ----------
    beta2
        Decay of the averages of squared gradients. Lower: they follow sooner when gradients grow.
    full_rate_fan_in
        A weight tensor with so many inputs per output, or fewer, has the full learning rate; with n times as many
        an n-th of it, so that one step changes what comes out of wide layers by no more than what comes out of narrow
        ones (Yang et al. 2022, arXiv 2203.03466, table 3, hidden weights). None: the full rate for all.
    """

    beta2: float = 0.999
    full_rate_fan_in: int | None = None


#: As published, and as torch has it.
PLAIN_ADAM = Adam()


@dataclass(frozen=True)
class Muon:
    """How steps of convolutions' weights are made, where not by Adam (``denoise.training.muon``).

    Attributes
    ----------
    rate
        Spectral norm of a step, about, as a multiple of the learning rate.
    momentum
        Decay of the average of gradients.
    decay
        Times that norm, the share of themselves that weights lose at every step (decoupled, as Loshchilov and Hutter
        2019, arXiv 1711.05101).
    """

    rate: float
    momentum: float = 0.95
    decay: float = 0.1


@dataclass(frozen=True)
class Recipe:
    """Settings that belong to a network; the measurements behind them are in docs/network-study.md.

    Attributes
    ----------
    batch_size
        Patches per optimiser step, on a CPU, where a step with more of them takes as many times longer.
    gpu_batch_size
        On an NVIDIA GPU, where a small step takes as long as it takes to ask for it; None: the same.
    """

    patch_size: int
    batch_size: int
    learning_rate: float
    schedule: ScheduleName
    loss: LossName = "l1"
    lcl_weight: float = 0.01
    ema_decay: float = 0.0
    slices_first: int = 0
    adam: Adam = PLAIN_ADAM
    muon: Muon | None = None
    gpu_batch_size: int | None = None

    def batch_on(self, device_type: str) -> int:
        """Patches per optimiser step on devices of this type ("cpu", "cuda", "mps")."""
        return self.gpu_batch_size or self.batch_size if device_type == "cuda" else self.batch_size


#: 16 channels in a window of 3 x 3.
_STEADY = Adam(beta2=0.98, full_rate_fan_in=144)

#: The published networks as they are published (docs/about.md, "Networks"); ours as the study found them.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "unet2d": Recipe(256, 32, 1e-3, "constant", "l1", 0.01),
        "unet3d": Recipe(96, 4, 1e-3, "constant", "l1", 0.01),
        "residual2d": Recipe(
            64, 4, 4e-3, "hold", "l2", 0.0, ema_decay=0.995, adam=_STEADY, muon=Muon(2.5), gpu_batch_size=32
        ),
        "residual3d": Recipe(
            64,
            1,
            4e-3,
            "hold",
            "l2",
            0.0,
            ema_decay=0.995,
            slices_first=2500,
            adam=_STEADY,
            muon=Muon(1.25),
            gpu_batch_size=8,
        ),
    }
)
