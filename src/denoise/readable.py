"""Sizes and times as people read them."""

from __future__ import annotations


def gigabytes(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def counted(count: int, singular: str) -> str:
    """So many of something: "1 slice", "12 slices"."""
    return f"{count:,} {singular}" if count == 1 else f"{count:,} {singular}s"


def duration(seconds: float) -> str:
    """Seconds in words: two digits, in a unit that fits."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 86400:.0f} days"
