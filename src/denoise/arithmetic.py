"""How a network runs on a device: number format, memory layout, free memory. Knows devices, no data and no networks."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from denoise.errors import DeviceError


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in: torch.bfloat16 or torch.float32.

    "auto" takes bfloat16 where the device multiplies it in hardware: there it ran the networks of this package about
    twice as fast as float32, at scores that differ by less than two seeds do.

    Raises
    ------
    DeviceError
        bf16 was asked for and this device has no such arithmetic.
    """
    if name == "float32":
        return torch.float32
    available = has_bf16(device)
    if name == "bf16" and not available:
        raise DeviceError(
            f"precision bf16 was asked for, but {device.type} here computes it only in emulation, slower than float32; "
            "use auto or float32"
        )
    return torch.bfloat16 if available else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
    return False


def _cpu_flags() -> set[str]:
    """Instruction sets as Linux names them; empty elsewhere, which means float32."""
    path = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not path.exists():
        return set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return set(value.split())
    return set()


def summing_device(device: torch.device) -> torch.device:
    """Where sums are kept in float64: the device itself, or the CPU beside Apple's GPUs, which have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Convolutions in ``dtype``; what needs range (norms, losses) stays float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Meanwhile, float32 means float32 on NVIDIA GPUs too.

    Left alone, their convolutions round float32 inputs to 10 bits (TF32): about as coarse as bfloat16, which is there
    for whoever wants that. Who asks for float32 wants the other thing.
    """
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    kept = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = kept


def free_on(device: torch.device) -> int | None:
    """Memory in bytes that this process may still take of an NVIDIA GPU; None where there is no telling."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused)


def give_back_unused(device: torch.device) -> None:
    """Let others have what this process holds of an accelerator's memory and does not use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def sent_to(device: torch.device, host: Tensor) -> Tensor:
    """Data of a step on the device; on an NVIDIA GPU nobody waits for the copy, and the next kernels come after it."""
    if device.type != "cuda":
        return host.to(device)
    with torch.cuda.device(device):  # page-locked memory belongs to a context, and GPU 0 may not be ours
        return host.pin_memory().to(device, non_blocking=True)


def fast_layout(network: torch.nn.Module) -> torch.nn.Module:
    """The network with its weights in channels-last order, which the convolutions of all devices run fastest in."""
    volumetric = any(parameter.dim() == 5 for parameter in network.parameters())
    return network.to(memory_format=torch.channels_last_3d if volumetric else torch.channels_last)  # type: ignore[call-overload, no-any-return]
