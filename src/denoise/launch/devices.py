"""The devices that a command runs on."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from denoise.cluster import Place
from denoise.errors import DeviceError


def choose_devices(kind: str | None, gpus: Sequence[int] | None, processes: int | None) -> list[torch.device]:
    """The devices that a command runs on, one process each.

    Parameters
    ----------
    kind
        "cpu", "cuda", "mps" or None for the GPUs that are visible, else the CPU.
    gpus
        Indices of the GPUs that were asked for; None for all that are visible.
    processes
        Number of processes on a CPU; None for 1.

    Raises
    ------
    DeviceError
        A device was asked for that is not there.
    """
    if kind not in (None, "cpu", "cuda", "mps"):
        raise DeviceError(f"--device {kind} is unknown; expected cpu, cuda or mps")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("--device mps was asked for, but this machine has no Apple GPU; use --device cpu")
        return [torch.device("mps")]
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind is None and gpus is None and visible == 0):
        if kind == "cpu" and gpus:
            raise DeviceError(f"--gpus {','.join(map(str, gpus))} contradicts --device cpu; give one of the two")
        return [torch.device("cpu")] * (processes or 1)
    if visible == 0:
        asked = "--device cuda" if gpus is None else f"--gpus {','.join(map(str, gpus))}"
        raise DeviceError(
            f"{asked} was asked for, but torch {torch.__version__} sees no CUDA GPU here; check nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or use --device cpu"
        )
    if gpus is None:
        gpus = range(visible)
    missing = [g for g in gpus if not 0 <= g < visible]
    if missing or len(set(gpus)) != len(gpus) or not gpus:
        raise DeviceError(
            f"--gpus {','.join(map(str, gpus))}: this machine shows {visible} GPU(s), numbered 0 to {visible - 1}; "
            "name each at most once"
        )
    if processes is not None and processes != len(gpus):
        raise DeviceError(f"--processes {processes} with {len(gpus)} GPU(s): each GPU has one process; leave it out")
    for number in gpus:
        _require_kernels(number)
    return [torch.device("cuda", g) for g in gpus]


def _require_kernels(number: int) -> None:
    """Refuse a GPU that is older than this torch was built for: it would fail at its first step, in torch's words."""
    built = [int(name.removeprefix("sm_")) for name in torch.cuda.get_arch_list() if re.fullmatch(r"sm_\d+", name)]
    major, minor = torch.cuda.get_device_capability(number)
    if built and 10 * major + minor < min(built):
        oldest = min(built)
        raise DeviceError(
            f"GPU {number} ({torch.cuda.get_device_name(number)}) has compute capability {major}.{minor}, and torch "
            f"{torch.__version__} is built for {oldest // 10}.{oldest % 10} and newer; install a build of torch for an "
            "older CUDA (see pytorch.org), choose another GPU with --gpus, or use --device cpu"
        )


def device_of(place: Place, devices: list[torch.device]) -> torch.device:
    """The device of a process that others were started beside: its own, if it is shown one, else that of its number.

    Raises
    ------
    DeviceError
        There are fewer GPUs than processes.
    """
    if devices[0].type == "cuda" and 1 < len(devices) < place.local_size:
        raise DeviceError(
            f"{place.started_by} has started {place.local_size} processes on this machine, which shows "
            f"{len(devices)} GPUs; start one process for each GPU"
        )
    return devices[place.local_rank % len(devices)]


def describe_device(device: torch.device) -> str:
    """For people: the GPU's name, or the CPU with the number of threads."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (cuda:{device.index or 0})"
    return "Apple GPU (mps)" if device.type == "mps" else f"CPU, {_plural(torch.get_num_threads(), 'thread')}"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
