"""What it takes to rebuild a network: its name and its numbers. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkSpec:
    """A network's name in the table of networks, and the whole numbers that its constructor takes."""

    name: str
    options: Mapping[str, int]
