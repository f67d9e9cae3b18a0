"""Where a command runs: the devices of this machine, and how a run is spread over several."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch

from denoise.cluster import Place, Spread, place_of, spread_of
from denoise.launch.devices import choose_devices, device_of


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
        devices = self.devices()
        if self.gpus is not None or devices[0].type != "cuda" or self.place is not None:  # it has its GPU already
            return devices
        return devices[: max(1, batch_size // (spread_of(self.spread, os.environ).nodes or 1))]

    @property
    def place(self) -> Place | None:
        """Where this process stands among others that it will join; None: it is on its own, or starts others."""
        return place_of(os.environ) if spread_of(self.spread, os.environ).nodes is None else None

    def own_device(self) -> torch.device:
        """Where this process works by itself: beside others that somebody else has started, not where they do."""
        devices, place = self.devices(), self.place
        return devices[0] if place is None else device_of(place, devices)
