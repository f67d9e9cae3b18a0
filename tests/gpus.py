"""Graphics cards that this machine does not have. A plugin: test modules name it in ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import pytest
import torch

Gpus: TypeAlias = Callable[..., None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """``gpus(2)``: torch says that it sees two of them, and that it was built for such."""

    def seen(
        count: int, capability: tuple[int, int] = (9, 0), built: Sequence[str] = ("sm_75", "sm_90", "compute_90")
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")

    return seen
