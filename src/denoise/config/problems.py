"""Mistakes in a config, put so that the user can mend them: field, value, rule, and the line if there is one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from denoise.errors import ConfigError

Place: TypeAlias = tuple[str | int, ...]

_LONGEST_VALUE = 80
_MOST_MISTAKES = 20


@dataclass(frozen=True)
class Problem:
    """One mistake: the place as the user wrote it, ("train", "psz"), and a sentence that names it."""

    place: Place
    message: str


@dataclass(frozen=True)
class Source:
    """Where a config came from: what to call it, and the line (from 1) of each place in it."""

    name: str = "the config"
    lines: Mapping[Place, int] = field(default_factory=dict)

    def line(self, place: Place) -> int | None:
        """Line of the place, or of the nearest thing around it that has one."""
        return next((self.lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in self.lines), None)


class RulesBroken(ValueError):
    """Fields that do not go together; carried through pydantic, which wants a ValueError."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(p.message for p in problems))
        self.problems = problems


def error_listing(problems: Iterable[Problem], source: Source) -> ConfigError:
    """One error that names every mistake, in the order of the file."""
    placed = sorted(((source.line(p.place) or 0, p.message) for p in problems), key=lambda item: item[0])
    if len(placed) == 1:
        line, message = placed[0]
        return ConfigError(f"{source.name}{f', line {line}' if line else ''}: {message}")
    shown_ones = placed[:_MOST_MISTAKES]
    listed = "".join(f"\n  {f'line {line}: ' if line else ''}{message}" for line, message in shown_ones)
    more = f"\n  and {len(placed) - _MOST_MISTAKES} more" if len(placed) > _MOST_MISTAKES else ""
    return ConfigError(f"{source.name} has {len(placed)} mistakes:{listed}{more}")


def shown(value: Any) -> str:
    """A value as a config file would say it, shortened, in printable characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a section" if value else "an empty section"
    if isinstance(value, int) and abs(value) >= 10**_LONGEST_VALUE:  # repr refuses above 4300 digits
        return "a number of more than 80 digits"
    text = f"a list of {len(value)} values" if isinstance(value, list | tuple | set | frozenset) else ascii_safe(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def ascii_safe(value: Any) -> str:
    """The value's repr: quoted, with what cannot be printed escaped, double quotes for text."""
    text = repr(value)
    if isinstance(value, str) and text.startswith("'") and '"' not in text:
        return f'"{text[1:-1]}"'
    return text


def plain_name(name: object) -> str:
    """A field's name as it can stand in a sentence."""
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= _LONGEST_VALUE else shown(name)
