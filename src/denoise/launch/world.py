"""One process among those that share a job, and how they speak with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """One process among those that share a job. Size 1 needs no process group."""

    rank: int
    size: int
    device: torch.device
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, on every process (in place where there are several)."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, values: Sequence[float]) -> list[float]:
        """For each of these numbers the largest on any process. Costs one small exchange between the hosts' CPUs."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return [float(value) for value in found]

    def any(self, claim: bool) -> bool:
        """Whether the claim holds on at least one process."""
        return self.largest([float(claim)])[0] > 0

    def barrier(self) -> None:
        """Wait for every process."""
        self.any(False)

    def from_chief(self, value: Any) -> Any:
        """The chief's plain value, on every process."""
        return self._from(value, 0)

    def from_local_chief(self, value: Any) -> Any:
        """The plain value of the first process of this node."""
        return self._from(value, self.rank - self.local_rank)

    def _from(self, value: Any, source: int) -> Any:
        if self.size == 1:
            return value
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values[source]

    def share(self, total: int) -> range:
        """The part of ``total`` items that falls to this process: contiguous, nothing left out, sizes within one."""
        return range(self.rank * total // self.size, (self.rank + 1) * total // self.size)
