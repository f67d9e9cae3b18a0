"""What a test found, in numbers and in words, and what follows from all of them.

A ``Finding`` says what was asked, the number, the threshold and why it lies there, and one plain sentence. Its severity
is one of four; the gravest decides the ``Verdict``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """From harmless to grave."""

    FINE = 0
    NOTE = 1
    """Worth knowing; nothing is wrong."""
    RESERVATION = 2
    """Usable, if one keeps this in mind."""
    INVALID = 3
    """The result, or its estimates, cannot be relied on."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one test."""

    name: str
    """For programs: a word or two, the same in every release."""
    question: str
    value: float | None
    """None where the test could not be made."""
    unit: str
    threshold: float | None
    """None where no number decides."""
    why: str
    """Where the threshold comes from, and what the number means."""
    severity: Severity
    sentence: str
    is_minimum: bool = False
    """Whether the number must lie above the threshold, not below it."""

    @property
    def limit(self) -> str:
        """The threshold in words; nothing where there is none."""
        if self.threshold is None:
            return ""
        excused = self.severity is Severity.FINE and is_beyond(self.value, self.threshold, self.is_minimum)
        return limit_text(f"{self.threshold:g}", self.is_minimum, excused)

    def as_plain(self) -> dict[str, str | float | None]:
        """For JSON; numbers that are none become null."""
        return {
            "name": self.name,
            "question": self.question,
            "value": finite(self.value),
            "unit": self.unit,
            "threshold": finite(self.threshold),
            "threshold_is": None if self.threshold is None else "minimum" if self.is_minimum else "maximum",
            "why": self.why,
            "severity": self.severity.name.lower(),
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class Verdict:
    """All findings of one judgement."""

    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> Verdict:
        """In the order that they were made."""
        return cls(tuple(findings))

    @property
    def severity(self) -> Severity:
        """The gravest."""
        return max((f.severity for f in self.findings), default=Severity.FINE)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Reservations and worse, the gravest first."""
        grave = [f for f in self.findings if f.severity >= Severity.RESERVATION]
        return tuple(sorted(grave, key=lambda f: -f.severity))

    @property
    def word(self) -> str:
        """One of three: "fine", "usable with reservations", "not valid"."""
        if self.severity is Severity.INVALID:
            return "not valid"
        return "usable with reservations" if self.severity is Severity.RESERVATION else "fine"

    @property
    def sentence(self) -> str:
        """The word, and why."""
        reasons = " ".join(f.sentence for f in self.warnings)
        start = self.word[0].upper() + self.word[1:]
        return f"{start}: {reasons}" if reasons else f"{start}: no test found anything wrong."

    def as_plain(self) -> dict[str, object]:
        """For JSON."""
        return {
            "verdict": self.word,
            "sentence": self.sentence,
            "findings": [f.as_plain() for f in self.findings],
        }


def is_beyond(value: float | None, threshold: float, is_minimum: bool) -> bool:
    """Whether a number is on the wrong side of its threshold."""
    return value is not None and (value < threshold if is_minimum else value > threshold)


def limit_text(threshold: str, is_minimum: bool, excused: bool) -> str:
    """A threshold with what it is.

    Parameters
    ----------
    excused
        The number is beyond it, and that proves nothing.
    """
    limit = f"at least {threshold}" if is_minimum else f"at most {threshold}"
    return f"{limit}, but this may be chance" if excused else limit


def finite(value: float | None) -> float | None:
    """A number that JSON knows, or None."""
    return None if value is None or not math.isfinite(value) else float(value)
