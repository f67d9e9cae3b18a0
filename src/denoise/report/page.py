"""From the content of ``report.json``, and pictures, to one HTML page.

The page holds all that it shows and asks for nothing: style, script and images are inside, and its content security
policy forbids requests. All text is escaped. Whatever the content lacks is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from denoise.report.curves import Plain, entries, figures, number
from denoise.report.images import KINDS, Pictures, Trial
from denoise.report.svg import number_text
from denoise.trust.interval import ends_in_words
from denoise.trust.verdict import is_beyond, limit_text

UNKNOWN = "unknown"
_SEVERITIES = {"invalid": "not valid", "reservation": "reservation", "note": "note", "fine": "fine"}
_VERDICTS = {"fine": "fine", "usable with reservations": "reservation", "not valid": "invalid"}
_CITED = re.compile(r"(?P<doi>10\.\d{4,9}/[^\s,;)]+[^\s,;).])|arXiv (?P<arxiv>\d{4}\.\d{4,5})")
_CODE = re.compile(r"`([^`]+)`")
_KIND_NAMES = {"before": "before", "after": "after", "residual": "taken away", "other": "other split"}


@dataclass(frozen=True)
class Tile:
    """A number of the headline."""

    title: str
    value: str
    more: str
    sentence: str = ""


@dataclass(frozen=True)
class Test:
    """A finding, in words."""

    name: str
    question: str
    severity: str
    word: str
    sentence: Markup
    number: str
    limit: str
    why: str


def render_page(content: Plain, pictures: Pictures | None = None, trials: Sequence[Trial] = ()) -> str:
    """The whole page.

    Parameters
    ----------
    content
        What ``report.json`` holds.
    trials
        The same crop by several models, the noisy one first; fewer than two are not shown.
    """
    environment = Environment(
        loader=PackageLoader("denoise.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    verdict = text(content.get("verdict")) or UNKNOWN
    found = tests(content)
    charts = {
        part: [{"title": f.title, "svg": Markup(f.svg), "caption": f.caption} for f in found]
        for part, found in figures(content).items()
    }
    provenance = content.get("provenance")
    return environment.get_template("page.html").render(
        sample=text(content.get("sample")) or UNKNOWN,
        verdict=verdict,
        verdict_class=_VERDICTS.get(verdict, "note"),
        sentence=text(content.get("sentence")),
        reasons=[t.sentence for t in found if t.severity in ("invalid", "reservation")],
        tiles=headline(content),
        held_out=_held_out(content),
        pictures=pictures,
        kinds=[(kind, _KIND_NAMES[kind]) for kind in KINDS],
        number_text=number_text,
        trials=trials if len(trials) > 1 else (),
        charts=charts,
        materials=_materials(content),
        bands=_bands(content),
        tests=found,
        provenance=_provenance(provenance if isinstance(provenance, Mapping) else {}),
    )


def text(value: object) -> str:
    """What is said of a value; nothing for null."""
    return "" if value is None else str(value)


def headline(content: Plain) -> list[Tile]:
    """The numbers at the top, with the sentences that the report words them in."""
    scores = content.get("scores")
    if not isinstance(scores, Mapping):
        return []
    said = [text(s) for s in content.get("headline") or ()]

    def sentence(start: str) -> str:
        return next((s for s in said if s.startswith(start)), "")

    gain, dose = (_interval(scores.get(n)) for n in ("gain", "equivalent_dose"))
    before, after = (_interval(scores.get(n)) for n in ("psnr_before", "psnr_after"))
    size = number(content.get("voxel_size_um"))
    coarse, fine = (_period(scores.get(n), size) for n in ("resolution_before", "resolution_after"))
    bound = " or finer" if scores.get("resolution_is_bound") and fine != UNKNOWN else ""
    resolution = Tile("Resolution", f"{coarse} → {fine}{bound}", "period with a correlation of 0.5 with the truth")
    if scores.get("error_is_bound"):
        return _bounds(gain[2], dose[2], before[0], after[2], resolution)
    return [
        Tile("Gain", _signed(gain[0], " dB"), _between(gain, " dB")),
        resolution,
        Tile(
            "Equivalent dose",
            UNKNOWN if dose[0] is None else f"as if exposed {_rounded(dose[0])} times as long",
            _between(dose, " times"),
            "" if dose[0] is None else sentence("Equivalent dose"),
        ),
        Tile("PSNR", f"{_plain(before[0], '')} → {_plain(after[0], ' dB')}", f"{_between(after, ' dB')}, after"),
    ]


def _bounds(
    gain: float | None, dose: float | None, before: float | None, after: float | None, resolution: Tile
) -> list[Tile]:
    """The same where a part of the error is hidden: upper ends of intervals."""

    def tile(title: str, value: float | None, told: str, otherwise: str = UNKNOWN) -> Tile:
        if value is None:
            return Tile(title, otherwise, "streaks hide the error: not even a bound can be told")
        return Tile(title, told, "upper bound: streaks hide a part of the error")

    return [
        tile("Gain", gain, f"at most {_signed(gain, ' dB')}"),
        resolution,
        tile("Equivalent dose", dose, "" if dose is None else f"at most {_rounded(dose)} times as long"),
        tile(
            "PSNR",
            after,
            f"{_plain(before, '')} → at most {_plain(after, ' dB')}",
            f"{_plain(before, ' dB')} → {UNKNOWN}",
        ),
    ]


def tests(content: Plain) -> list[Test]:
    """All findings, the gravest first, otherwise in their order."""
    order = list(_SEVERITIES)
    found = []
    for finding in entries(content, "findings"):
        severity = text(finding.get("severity"))
        severity = severity if severity in _SEVERITIES else "note"
        value, threshold = number(finding.get("value")), number(finding.get("threshold"))
        unit = text(finding.get("unit"))
        found.append(
            Test(
                name=text(finding.get("name")).replace("_", " "),
                question=text(finding.get("question")),
                severity=severity,
                word=_SEVERITIES[severity],
                sentence=_with_code(text(finding.get("sentence"))),
                number="not measured" if value is None else f"{number_text(value)} {unit}".strip(),
                limit=_limit(finding, value, threshold),
                why=text(finding.get("why")),
            )
        )
    return sorted(found, key=lambda t: order.index(t.severity))


def _limit(finding: Plain, value: float | None, threshold: float | None) -> str:
    if threshold is None:
        return ""
    is_minimum = finding.get("threshold_is") == "minimum"
    excused = finding.get("severity") == "fine" and is_beyond(value, threshold, is_minimum)
    return limit_text(number_text(threshold), is_minimum, excused)


def cited(source: str) -> Markup:
    """A citation, its DOI or arXiv number as a link."""
    parts, end = [], 0
    for match in _CITED.finditer(source):
        address = f"https://doi.org/{match['doi']}" if match["doi"] else f"https://arxiv.org/abs/{match['arxiv']}"
        parts.append(escape(source[end : match.start()]))
        parts.append(f'<a href="{escape(address)}" rel="noreferrer noopener">{escape(match[0])}</a>')
        end = match.end()
    return Markup("".join([*parts, escape(source[end:])]))


def _with_code(sentence: str) -> Markup:
    """What stands between backticks as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", escape(sentence)))


def _interval(value: object) -> tuple[float | None, float | None, float | None]:
    stored = value if isinstance(value, Mapping) else {}
    return number(stored.get("value")), number(stored.get("low")), number(stored.get("high"))


def _rounded(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _plain(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{value:.1f}{unit}".replace("-", "−")


def _signed(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{value:+.1f}{unit}".replace("-", "−")


def _between(interval: tuple[float | None, float | None, float | None], unit: str) -> str:
    return f"95 % interval {ends_in_words(*interval[1:], unit)}".replace("-", "−")


def _period(value: object, voxel_size_um: float | None) -> str:
    """A frequency as a length; none means that there is no limit."""
    if not isinstance(value, Mapping):
        return UNKNOWN
    frequency = number(value.get("value"))
    period = 2.0 if frequency is None else 1 / frequency if frequency > 0 else math.inf
    size = "" if voxel_size_um is None else f" ({number_text(period * voxel_size_um)} µm)"
    return f"{period:.1f} voxels{size}"


def _held_out(content: Plain) -> str:
    stored = content.get("held_out")
    if not isinstance(stored, Mapping):
        return ""
    slices, shape = stored.get("slices") or (), stored.get("shape_zyx") or ()
    which = "Slices"
    if slices:
        which = f"Slices {' to '.join(map(str, slices))}" if len(set(slices)) > 1 else f"Slice {slices[0]}"
    rows = stored.get("rows")
    if rows:  # not all of them
        which = f"Rows {' to '.join(map(str, rows))} of {which[0].lower()}{which[1:]}"
    size = f", {' × '.join(map(str, shape))} voxels" if shape else ""
    return f"{which}{size}: {text(stored.get('why'))}." if stored.get("why") else f"{which}{size}."


def _materials(content: Plain) -> list[list[str]]:
    rows = []
    for i, material in enumerate(entries(content, "materials"), 1):
        values = [number(material.get(n)) for n in ("grey_before", "grey_after", "width_before", "width_after")]
        share = number(material.get("share"))
        rows.append([str(i), "" if share is None else f"{100 * share:.1f} %", *map(_cell, values)])
    return rows


def _bands(content: Plain) -> list[list[str]]:
    rows = []
    for band in entries(content, "bands"):
        low, high = number(band.get("low")), number(band.get("high"))
        if low and high:
            values = (_cell(number(band.get(n))) for n in ("support", "kept", "linear"))
            rows.append([f"{0.5 / high:.0f} to {0.5 / low:.0f} voxels", *values])
    return rows


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else number_text(value)


def _provenance(stored: Plain) -> dict[str, Any]:
    model, software = stored.get("model"), stored.get("software")
    facts = {
        "made": text(stored.get("created")),
        "device": text(stored.get("device")),
        "time for this report": f"{stored['seconds']} s" if number(stored.get("seconds")) is not None else "",
        "seed": text(stored.get("seed")),
        "software": _listed(software),
        "SHA-256 of the config": text(stored.get("config_sha256")),
    }
    of_model = dict(model) if isinstance(model, Mapping) else {}
    return {
        "facts": {name: value for name, value in facts.items() if value},
        "model": {
            text(name).replace("_", " "): _listed(value) if isinstance(value, Mapping) else text(value)
            for name, value in of_model.items()
            if value not in (None, {}, "")
        },
        "inputs": [
            {
                "path": text(entry.get("path")),
                "what": f"{' × '.join(map(str, entry.get('shape_zyx') or ()))} {text(entry.get('dtype'))}".strip(),
                "sha256": text(entry.get("sha256")),
                "slices": ", ".join(map(str, entry.get("slices_hashed") or ())),
            }
            for entry in entries(stored, "inputs")
        ],
        "config": text(stored.get("config")),
        "repeat": [text(line) for line in stored.get("repeat") or ()],
        "cite": [cited(text(line)) for line in stored.get("cite") or ()],
    }


def _listed(values: object) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) if isinstance(values, Mapping) else ""
