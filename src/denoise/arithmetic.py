"""How a network runs fast on a device: number format and memory layout. Knows devices, no data and no networks."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

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


def fast_layout(network: torch.nn.Module) -> torch.nn.Module:
    """The network with its weights in channels-last order, which the convolutions of all devices run fastest in."""
    volumetric = any(parameter.dim() == 5 for parameter in network.parameters())
    return network.to(memory_format=torch.channels_last_3d if volumetric else torch.channels_last)  # type: ignore[call-overload, no-any-return]
