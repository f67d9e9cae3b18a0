"""Curves as inline SVG: axes with labels and units, a legend, and colours that the page chooses.

In go numbers, None where one is not known; out comes the text of an ``<svg>`` element. Colours are classes
(``s-before``, ``s-after``, ...) that the page's style sheet gives for light, dark and paper; lines also differ by their
dashes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Number = float | None

_WIDTH, _HEIGHT = 440, 290
_RIGHT, _BOTTOM = 14, 46
#: Left of the numbers of the y axis: its title.
_TITLE = 24
#: Where the legend starts at most.
_LEGEND = 90
_LINE = 16
#: Of a character on average, at the font size of the style sheet.
_CHARACTER = 6.3
_TICKS = 5
#: Whole numbers below are written out.
_COUNTED = 100_000
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Curve:
    """One line of a chart; a gap where x or y is None, or y is not positive on a logarithmic axis."""

    name: str
    style: str
    """The class of its colour and dashes: before, after, other, object or plain."""
    x: Sequence[Number]
    y: Sequence[Number]
    margin: Sequence[Number] = ()
    """Drawn as a band of y - margin to y + margin."""
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A straight line through the whole chart with a few words beside it."""

    value: float
    words: str
    upright: bool = False
    """At an x rather than at a y."""


@dataclass(frozen=True)
class Axis:
    """What an axis shows. ``low`` and ``high`` default to the range of the curves."""

    label: str
    unit: str
    logarithmic: bool = False
    low: float | None = None
    high: float | None = None

    @property
    def title(self) -> str:
        """Label and unit; what has none says so with a 1."""
        return f"{self.label} / {self.unit}"


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool

    def at(self, value: Number) -> float | None:
        """The place of a value in the drawing; None where it has none."""
        if value is None or not math.isfinite(value) or (self.logarithmic and value <= 0):
            return None
        low, high, here = (math.log10(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (self.stop - self.start) * (here - low) / (high - low)

    def ticks(self) -> list[float]:
        if not self.logarithmic:
            return _round_steps(self.low, self.high)
        decades = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
        thinned = list(decades)[:: max(1, math.ceil(len(decades) / _TICKS))]
        if len(thinned) > 2:
            return [10.0**d for d in thinned]
        places = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        finer = [m * 10.0**d for d in places for m in (1, 2, 5) if self.low <= m * 10.0**d <= self.high]
        return finer if len(finer) > 1 else _round_steps(self.low, self.high)


def chart(title: str, curves: Sequence[Curve], x: Axis, y: Axis, marks: Sequence[Mark] = ()) -> str:
    """The text of an SVG element; empty where there is nothing to draw.

    Parameters
    ----------
    title
        For those who cannot see it, and as a tooltip.
    """
    points = [
        (a, b)
        for curve in curves
        for a, b in zip(curve.x, curve.y, strict=True)
        if _drawable(a, x.logarithmic) and _drawable(b, y.logarithmic)
    ]
    if not points:
        return ""
    rows = _legend_rows([c.name for c in curves])
    top = 10 + _LINE * len(rows)
    ends = [m.value for m in marks if not m.upright]
    up = _scale(y, [p[1] for p in points if p[1] is not None] + ends, _HEIGHT - _BOTTOM, top)
    left = _TITLE + 8 + _CHARACTER * max((len(_tick_text(v, up)) for v in up.ticks()), default=0)
    tight = not any(c.dots for c in curves)
    across = _scale(x, [p[0] for p in points if p[0] is not None], left, _WIDTH - _RIGHT, tight=tight)
    clip = f"clip-{zlib.crc32(repr((title, points)).encode()):x}"
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        f'<clipPath id="{clip}"><rect x="{left:.1f}" y="{top}" width="{across.stop - left:.1f}" '
        f'height="{_HEIGHT - _BOTTOM - top}"/></clipPath>',
        *_axes(across, up, x, y, top),
        f'<g clip-path="url(#{clip})">',
        *(_band(c, across, up) for c in curves if len(c.margin)),
        *(_path(c, across, up) for c in curves),
        "</g>",
        *_marks(marks, across, up, top),
        *_legend(curves, rows, left),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part)


def number_text(value: float) -> str:
    """Three digits, powers of ten as people write them; whole numbers of up to five digits as they are."""
    if math.isfinite(value) and value == round(value) and abs(value) < _COUNTED:
        return f"{value:.0f}".replace("-", "−")
    text = f"{value:.3g}"
    if "e" not in text:
        return text.replace("-", "−")
    mantissa, _, power = text.partition("e")
    factor = {"1": "", "-1": "−"}.get(mantissa, f"{mantissa}·".replace("-", "−"))
    return f"{factor}10{str(int(power)).translate(_RAISED)}"


def _drawable(value: Number, logarithmic: bool) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not logarithmic)


def _scale(axis: Axis, values: Sequence[float], start: float, stop: float, *, tight: bool = False) -> _Scale:
    positive = [v for v in values if v > 0] if axis.logarithmic else list(values)
    low = min(positive) if axis.low is None else axis.low
    high = max(positive) if axis.high is None else axis.high
    if axis.logarithmic:
        margin = 1.0 if tight else max(high / low, 1.1) ** 0.05
        return _Scale(low / margin, high * margin if high * margin > low / margin else 2 * low, start, stop, True)
    margin = 0.0 if tight else 0.05 * (high - low)
    low, high = low - (margin if axis.low is None else 0), high + (margin if axis.high is None else 0)
    if not high > low:
        spread = abs(low) * 0.01 or 1.0
        low, high = low - spread, high + spread
    return _Scale(low, high, start, stop, False)


def _round_steps(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]


def _axes(across: _Scale, up: _Scale, x: Axis, y: Axis, top: float) -> Iterable[str]:
    bottom, left, right = _HEIGHT - _BOTTOM, across.start, across.stop
    for value in across.ticks():
        place = across.at(value)
        if place is not None:
            yield f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{top}" y2="{bottom}"/>'
            yield _text(place, bottom + 15, _tick_text(value, across), "middle")
    for value in up.ticks():
        place = up.at(value)
        if place is not None:
            yield f'<line class="grid" x1="{left:.1f}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}"/>'
            yield _text(left - 6, place + 4, _tick_text(value, up), "end")
    yield f'<path class="frame" d="M{left:.1f} {top}V{bottom}H{right}"/>'
    yield _text((left + right) / 2, _HEIGHT - 10, x.title, "middle", "axis-x")
    middle = (top + bottom) / 2
    turned = f' transform="rotate(-90 13 {middle:.1f})"'
    yield _text(13, middle, y.title, "middle", "axis-y", turned)


def _tick_text(value: float, scale: _Scale) -> str:
    """Powers of ten as such on a logarithmic axis, so that neighbours are written alike."""
    power = math.log10(value) if scale.logarithmic else math.nan
    if math.isfinite(power) and math.isclose(power, round(power), abs_tol=1e-9) and scale.high > 50 * scale.low:
        return f"10{str(round(power)).translate(_RAISED)}"
    return number_text(value)


def _text(x: float, y: float, words: str, anchor: str, kind: str = "", more: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def _places(curve: Curve, across: _Scale, up: _Scale) -> list[list[tuple[float, float]]]:
    """Runs of neighbouring points that can be drawn."""
    runs: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(curve.x, curve.y, strict=True):
        x, y = across.at(a), up.at(b)
        if x is None or y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _path(curve: Curve, across: _Scale, up: _Scale) -> str:
    runs = _places(curve, across, up)
    line = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run) for run in runs if len(run) > 1)
    alone = [run[0] for run in runs if len(run) == 1]
    dots = [place for run in runs for place in run] if curve.dots else alone
    drawn = f'<path class="curve s-{curve.style}" d="{line}"/>' if line else ""
    return drawn + "".join(f'<circle class="dot s-{curve.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in dots)


def _band(curve: Curve, across: _Scale, up: _Scale) -> str:
    there: list[tuple[float, float, float]] = []
    for a, b, m in zip(curve.x, curve.y, curve.margin, strict=True):
        if b is None or m is None:
            continue
        x, low, high = across.at(a), up.at(b - m), up.at(b + m)
        if x is not None and low is not None and high is not None:
            there.append((x, low, high))
    if len(there) < 2:
        return ""
    outline = [*((x, high) for x, _, high in there), *((x, low) for x, low, _ in reversed(there))]
    return f'<path class="band s-{curve.style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in outline)}Z"/>'


def _marks(marks: Sequence[Mark], across: _Scale, up: _Scale, top: float) -> Iterable[str]:
    bottom, left, right = _HEIGHT - _BOTTOM, across.start, across.stop
    for number, mark in enumerate(m for m in marks if m.upright):
        place = across.at(mark.value)
        if place is not None and left <= place <= right:
            yield f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{top}" y2="{bottom}"/>'
            too_far = place + _CHARACTER * len(mark.words) + 4 > right
            side, anchor = (-4, "end") if too_far else (4, "start")
            yield _text(place + side, top + 12 + 13 * (number % 4), mark.words, anchor)
    for mark in (m for m in marks if not m.upright):
        place = up.at(mark.value)
        if place is not None and top <= place <= bottom:
            yield f'<line class="mark" x1="{left:.1f}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}"/>'
            yield _text(right - 3, place - 4, mark.words, "end")


def _legend_rows(names: Sequence[str]) -> list[list[int]]:
    """Which curves are named in which line above the chart."""
    rows: list[list[int]] = []
    used = math.inf
    for number, name in enumerate(names):
        wanted = _entry_width(name)
        if used + wanted > _WIDTH - _LEGEND:
            rows.append([])
            used = 0.0
        rows[-1].append(number)
        used += wanted
    return rows


def _entry_width(name: str) -> float:
    return 38 + _CHARACTER * len(name)


def _legend(curves: Sequence[Curve], rows: Sequence[Sequence[int]], left: float) -> Iterable[str]:
    for row, numbers in enumerate(rows):
        x, y = left, 4 + _LINE * row + 8
        for number in numbers:
            curve = curves[number]
            yield f'<path class="curve s-{curve.style}" d="M{x:.1f} {y - 4}h22"/>'
            yield _text(x + 27, y, curve.name, "start")
            x += _entry_width(curve.name)
