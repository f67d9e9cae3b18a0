"""The table of networks: what each is called, which numbers it takes, what the rest must know of it; and building one.

A `NetworkSpec` may come from a config file or from a stranger's model file: names, options and sizes are checked here,
before anything of their size is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import torch
from torch import nn

from denoise.errors import ConfigError
from denoise.networks import unet2d
from denoise.networks.residual import ResidualUNet, receptive_radius
from denoise.networks.spec import NetworkSpec
from denoise.networks.unet2d import UNet2d
from denoise.networks.unet3d import UNet3d

MAX_PARAMETERS = 2**28
"""A gigabyte of float32 weights; fifteen times the largest published network."""


@dataclass(frozen=True)
class Option:
    """A whole number that a network's constructor takes."""

    default: int
    lowest: int
    highest: int


@dataclass(frozen=True)
class NetworkKind:
    """What the rest of the package must know of a network without knowing which it is.

    Attributes
    ----------
    description
        One line for the user.
    dimensions
        2: ``(B, n_slices, Y, X) -> (B, 1, Y, X)``; 3: ``(B, Z + n_slices - 1, Y, X) -> (B, Z, Y, X)``.
    options
        What its spec may say, with defaults and limits; where ``n_slices`` is none of them it is 1.
    content_dependent
        Whether the output for a voxel depends on the content of its whole tile, through norm layers: such a network is
        best run at the tile size that it was trained at.
    overlap, overlap_z
        Voxels by which neighbouring tiles must overlap at inference, along z if that is less; see docs/benchmarks.md,
        "Overlap of tiles".
    tile
        Edge in y and x of the tiles at inference, where the network does not keep the size that it was trained on.
    step_peak
        Memory of a training step at its most, as a multiple of what autograd keeps of the forward pass; see
        docs/scale.md, "Memory of a training step".
    halves_z
        Whether it halves z as it does y and x.
    flatness
        In 3D, how many times as wide as deep the blocks are that it is best trained on; 1: cubes.
    unsaid
        What model files mean that do not name an option, where it is not the default: they are older than it.
    """

    description: str
    dimensions: Literal[2, 3]
    options: Mapping[str, Option]
    content_dependent: bool
    overlap: int
    tile: int
    step_peak: float
    _forward_peak: Callable[[Mapping[str, int]], float]
    _build: Callable[[Mapping[str, int]], nn.Module]
    _divisor: Callable[[Mapping[str, int]], int]
    _receptive_radius: Callable[[Mapping[str, int]], int] | None = None
    halves_z: bool = False
    flatness: int = 1
    unsaid: Mapping[str, int] = field(default_factory=dict)
    overlap_z: int | None = None

    @property
    def defaults(self) -> dict[str, int]:
        """Every option with its default."""
        return {name: option.default for name, option in self.options.items()}

    def complete(self, options: Mapping[str, int]) -> dict[str, int]:
        """The options given, checked, and the defaults of those that are not.

        Raises
        ------
        ConfigError
            An option that this network does not have, that is no whole number, or outside its limits.
        """
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options)
                raise ConfigError(f"this network has no option {name!r}; its options are {known}")
            option = self.options[name]
            if type(value) is not int or not option.lowest <= value <= option.highest:
                raise ConfigError(
                    f"expected a whole number from {option.lowest} to {option.highest} for network option {name}, "
                    f"found {value!r}"
                )
        return {**self.defaults, **options}

    def n_slices(self, options: Mapping[str, int]) -> int:
        """How many slices it reads for each that it predicts. Raises as `complete` does."""
        return self.complete(options).get("n_slices", 1)

    def divisor(self, options: Mapping[str, int]) -> int:
        """What tile sizes must be divisible by in y and x; in z too where it ``halves_z``. Raises as `complete`."""
        return self._divisor(self.complete(options))

    def divisors(self, options: Mapping[str, int]) -> dict[int, int]:
        """The same by axis: 0 (z) to 2 (x)."""
        divisor = self.divisor(options)
        return {0: divisor if self.halves_z else 1, 1: divisor, 2: divisor}

    def receptive_radius(self, options: Mapping[str, int]) -> int | None:
        """Voxels of context in y and x on which an output depends, to each side.

        None where it depends on the whole tile. Raises as `complete` does.
        """
        complete = self.complete(options)
        return None if self._receptive_radius is None else self._receptive_radius(complete)

    def forward_peak(self, options: Mapping[str, int]) -> float:
        """How many elements exist at the worst moment of a forward pass, for each voxel that is predicted (on a CPU).

        Measured with the defaults, docs/scale.md, "Memory of a tile"; as many times more as it is wider. Raises as
        `complete` does.
        """
        return self._forward_peak(self.complete(options))

    def build(self, options: Mapping[str, int]) -> nn.Module:
        """The network with fresh weights.

        Raises
        ------
        ConfigError
            As `complete`; or the options together ask for more than `MAX_PARAMETERS` weights.
        """
        complete = self.complete(options)
        # On the meta device tensors have shapes and no memory.
        with torch.device("meta"):
            count = sum(p.numel() for p in self._build(complete).parameters())
        if count > MAX_PARAMETERS:
            raise ConfigError(
                f"network options {complete} ask for {count:,} weights; at most {MAX_PARAMETERS:,} are allowed"
            )
        return self._build(complete)


def find_network(name: str) -> NetworkKind:
    """Look a network up by name.

    Raises
    ------
    ConfigError
        There is none of that name; says which there are.
    """
    if name not in NETWORKS:
        raise ConfigError(f"no network is called {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name]


def build_network(spec: NetworkSpec) -> nn.Module:
    """Build a network with fresh weights from torch's global generator; options left out take their defaults.

    Returns
    -------
    A module that maps ``(B, Zin, Y, X) -> (B, Zout, Y, X)``, float32, on torch's default device.

    Raises
    ------
    ConfigError
        Unknown name or option, a value outside its limits, or too many weights.
    """
    return find_network(spec.name).build(spec.options)


def _residual(options: Mapping[str, int], *, mixes: bool) -> nn.Module:
    return ResidualUNet(
        options["n_slices"],
        options["width"],
        options["levels"],
        mixes=mixes,
        rectified_sums=bool(options["rectified_sums"]),
    )


_N_SLICES = Option(default=5, lowest=1, highest=99)
_WIDTH = Option(default=16, lowest=1, highest=512)
_LEVELS = Option(default=3, lowest=1, highest=6)
_RESIDUAL_OPTIONS: Mapping[str, Option] = MappingProxyType(
    {"n_slices": _N_SLICES, "width": _WIDTH, "levels": _LEVELS, "rectified_sums": Option(0, 0, 1)}
)
_RESIDUAL_UNSAID: Mapping[str, int] = MappingProxyType({"rectified_sums": 1})

NETWORKS: Mapping[str, NetworkKind] = MappingProxyType(
    {
        "unet2d": NetworkKind(
            description="published 2.5D network: neighbouring slices in, one out; GroupNorm",
            dimensions=2,
            options=MappingProxyType({"n_slices": _N_SLICES}),
            content_dependent=True,
            overlap=32,
            tile=256,
            step_peak=1.15,
            _forward_peak=lambda _: 420,
            _build=lambda o: UNet2d(o["n_slices"]),
            _divisor=lambda _: unet2d.DIVISOR,
        ),
        "unet3d": NetworkKind(
            description="published 3D network: cubes in, cubes out; GroupNorm",
            dimensions=3,
            options=MappingProxyType({"n_blocks": Option(4, 1, 7), "start_filters": Option(56, 1, 512)}),
            content_dependent=True,
            overlap=32,
            tile=64,
            step_peak=1.15,
            _forward_peak=lambda o: 620 * o["start_filters"] / 56,
            halves_z=True,
            _build=lambda o: UNet3d(o["n_blocks"], o["start_filters"]),
            # The published rule; the network itself takes any size.
            _divisor=lambda o: 2 ** o["n_blocks"],
        ),
        "residual2d": NetworkKind(
            description="small, fast 2.5D network: corrects the centre slice; no norm layers",
            dimensions=2,
            options=_RESIDUAL_OPTIONS,
            content_dependent=False,
            overlap=24,
            tile=384,
            step_peak=1.6,
            _forward_peak=lambda o: 100 * o["width"] / 16,
            _build=lambda o: _residual(o, mixes=False),
            _divisor=lambda o: 2 ** (o["levels"] - 1),
            _receptive_radius=lambda o: receptive_radius(o["levels"]),
            unsaid=_RESIDUAL_UNSAID,
        ),
        "residual3d": NetworkKind(
            description="the same in 3D: corrects the block it reads, features of neighbouring slices are mixed",
            dimensions=3,
            options=_RESIDUAL_OPTIONS,
            content_dependent=False,
            overlap=16,
            overlap_z=4,
            tile=128,
            step_peak=1.6,
            _forward_peak=lambda o: 100 * o["width"] / 16,
            _build=lambda o: _residual(o, mixes=True),
            _divisor=lambda o: 2 ** (o["levels"] - 1),
            _receptive_radius=lambda o: receptive_radius(o["levels"]),
            unsaid=_RESIDUAL_UNSAID,
            flatness=6,
        ),
    }
)
