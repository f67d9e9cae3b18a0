"""Slabs to the device and finished slices back, beside the computation. Knows devices and no volumes."""

from __future__ import annotations

import torch
from torch import Tensor

from denoise.volumes.volume import Float32Array


class DeviceLink:
    """Copies between host and device that the network does not wait for.

    On CUDA they run from page-locked memory on streams of their own, each driven by the thread that reads or writes, so
    that reading, both transfers, the network and writing all go on at once. On other devices they are plain copies.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        is_cuda = device.type == "cuda"
        self._up = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._down = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]

    def upload(self, slab: Float32Array) -> Tensor:
        """The slab on the device, whole; called by the thread that reads."""
        host = torch.from_numpy(slab)
        if self._up is None:
            return host.to(self._device)
        with torch.cuda.stream(self._up):
            moved = host.pin_memory().to(self._device, non_blocking=True)
        self._up.synchronize()
        # Its memory belongs to this stream; it must not be given away while the network still reads it.
        moved.record_stream(torch.cuda.default_stream(self._device))
        return moved

    def computed(self) -> torch.cuda.Event | None:
        """A mark after all that was asked of the device so far; called by the thread that computes."""
        if self._down is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def download(self, slices: Tensor, computed: torch.cuda.Event | None) -> Float32Array:
        """The slices on the host, once ``computed`` has passed; called by the thread that writes."""
        if self._down is None or computed is None:
            array: Float32Array = slices.cpu().numpy()
            return array
        with torch.cuda.stream(self._down):
            self._down.wait_event(computed)
            slices.record_stream(self._down)
            host = torch.empty(slices.shape, dtype=slices.dtype, pin_memory=True)
            host.copy_(slices, non_blocking=True)
        self._down.synchronize()
        return host.numpy()
