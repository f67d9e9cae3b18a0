"""Slabs to the device and finished slices back, beside the computation. Knows devices and no volumes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from denoise.volumes.volume import Float32Array


@dataclass(frozen=True)
class Leaving:
    """Finished slices on their way to the host."""

    slices: Tensor
    computed: torch.cuda.Event | None
    """Passed once they are computed; None: they are."""


class DeviceLink:
    """Copies between host and device that the network does not wait for.

    On CUDA they run from page-locked memory on streams of their own, each driven by the thread that reads or writes, so
    that reading, both transfers, the network and writing all go on at once. On other devices they are plain copies,
    made by the thread that computes: Apple's GPUs bear no other.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        is_cuda = device.type == "cuda"
        self._up = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._down = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]

    def upload(self, slab: Float32Array) -> Tensor:
        """Send a slab; called by the thread that reads."""
        host = torch.from_numpy(slab)
        if self._up is None:
            return host
        # The device of a new thread is GPU 0: without the first context manager, leaving the second one would make
        # this process take memory there, whatever GPU is its own.
        with torch.cuda.device(self._device), torch.cuda.stream(self._up):
            moved = host.pin_memory().to(self._device, non_blocking=True)
        self._up.synchronize()
        # Its memory belongs to this stream; it must not be given away while the network still reads it.
        moved.record_stream(torch.cuda.default_stream(self._device))
        return moved

    def arrived(self, slab: Tensor) -> Tensor:
        """The slab that was sent, on the device; called by the thread that computes."""
        return slab.to(self._device)

    def leaving(self, slices: Tensor) -> Leaving:
        """Let slices go that what was asked of the device so far will finish; called by the thread that computes."""
        if self._down is None:
            return Leaving(slices.cpu(), None)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return Leaving(slices, event)

    def download(self, leaving: Leaving) -> Float32Array:
        """The slices on the host; called by the thread that writes."""
        slices = leaving.slices
        if self._down is None or leaving.computed is None:
            array: Float32Array = slices.numpy()
            return array
        with torch.cuda.device(self._device), torch.cuda.stream(self._down):
            self._down.wait_event(leaving.computed)
            slices.record_stream(self._down)
            host = torch.empty(slices.shape, dtype=slices.dtype, pin_memory=True)
            host.copy_(slices, non_blocking=True)
        self._down.synchronize()
        return host.numpy()
