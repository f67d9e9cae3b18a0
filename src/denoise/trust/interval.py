"""An estimate with the interval it lies in, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass

from denoise.trust.verdict import finite


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; an end that cannot be told is infinite, a value that cannot be NaN."""

    value: float
    low: float
    high: float

    def as_plain(self) -> dict[str, float | None]:
        """For JSON: null where nothing can be told."""
        return {"value": finite(self.value), "low": finite(self.low), "high": finite(self.high)}

    def ends(self, unit: str) -> str:
        """Both ends in words; see ``ends_in_words``."""
        return ends_in_words(finite(self.low), finite(self.high), unit)


def ends_in_words(low: float | None, high: float | None, unit: str) -> str:
    """As "16.8 to 20.1 dB"; where an end cannot be told (None) "16.8 dB or more", "20.1 dB or less", or "unknown"."""
    if low is None:
        return "unknown" if high is None else f"{high:.1f}{unit} or less"
    return f"{low:.1f}{unit} or more" if high is None else f"{low:.1f} to {high:.1f}{unit}"
