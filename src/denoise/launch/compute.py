"""Where a command runs: the devices of this machine, and how a run is spread over several."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch

from denoise.cluster import Spread, place_of, spread_of
from denoise.launch.devices import choose_devices


@dataclass(frozen=True)
class Compute:
    """Where to run: see ``denoise.launch.choose_devices``; on several machines: see ``denoise.cluster.Spread``."""

    device: str | None = None
    gpus: tuple[int, ...] | None = None
    processes: int | None = None
    spread: Spread = field(default_factory=Spread)

    def devices(self) -> list[torch.device]:
        """One device per process."""
        return choose_devices(self.device, self.gpus, self.processes)

    def training_devices(self, batch_size: int) -> list[torch.device]:
        """The same; of GPUs that nobody named no more than a batch has blocks for, as each needs one."""
        devices, spread = self.devices(), spread_of(self.spread, os.environ)
        joins = spread.nodes is None and place_of(os.environ) is not None  # its process has its GPU already
        if self.gpus is not None or devices[0].type != "cuda" or joins:
            return devices
        return devices[: max(1, batch_size // (spread.nodes or 1))]
