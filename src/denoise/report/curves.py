"""Which curves a report shows: from the content of ``report.json`` to charts.

A part that the content lacks, or that has nothing to draw, gives no chart. The content was made by us, but may be of
another version: what has not the expected form counts as missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from denoise.report.svg import Axis, Curve, Mark, Number, chart, number_text

Plain = Mapping[str, Any]

_FREQUENCY = Axis("spatial frequency", "cycles per voxel", low=0.0, high=0.5)
_GREY = "grey value"


@dataclass(frozen=True)
class Figure:
    """A chart, and what it tells."""

    title: str
    svg: str
    caption: str


def figures(content: Plain) -> dict[str, tuple[Figure, ...]]:
    """Charts by the part of the page that they belong to; parts without a chart are left out."""
    parts = {
        "profiles": _profiles(content),
        "greys": _greys(content),
        "frequencies": _frequencies(content),
        "training": _training(content),
    }
    drawn = {name: tuple(f for f in found if f.svg) for name, found in parts.items()}
    return {name: found for name, found in drawn.items() if found}


def number(value: object) -> Number:
    """A number, or None for everything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def numbers(part: object, name: str) -> list[Number]:
    """A list of numbers in a part of the content; empty where it is missing."""
    values = part.get(name) if isinstance(part, Mapping) else None
    return [number(v) for v in values] if isinstance(values, Sequence) and not isinstance(values, str) else []


def entries(content: Plain, name: str) -> list[Plain]:
    """A list of objects in the content; empty where it is missing."""
    values = content.get(name)
    return [v for v in values if isinstance(v, Mapping)] if isinstance(values, list | tuple) else []


def _curve(name: str, style: str, x: Sequence[Number], y: Sequence[Number], **more: Any) -> list[Curve]:
    """A list of one curve, or of none where numbers are missing."""
    return [Curve(name, style, x, y, **more)] if len(x) == len(y) and any(v is not None for v in y) else []


def _profiles(content: Plain) -> Iterable[Figure]:
    for i, profile in enumerate(entries(content, "profiles"), 1):
        x = numbers(profile, "distance")
        curves = [
            *_curve("before", "before", x, numbers(profile, "noisy")),
            *_curve("other split", "other", x, numbers(profile, "other")),
            *_curve("after", "after", x, numbers(profile, "denoised")),
        ]
        place = [int(n) for n in numbers(profile, "place_zyx") if n is not None]
        where = "Slice {}, row {}, column {}. ".format(*place) if len(place) == 3 else ""
        yield Figure(
            f"Line profile {i}",
            chart(f"Line profile {i}", curves, Axis("distance from the edge", "voxels"), Axis(_GREY, "input units")),
            f"{where}Mean of five parallel lines across one of the steepest edges.",
        )


def _greys(content: Plain) -> Iterable[Figure]:
    stored = content.get("histograms")
    edges = [e for e in numbers(stored, "edges") if e is not None]
    steps = [e for edge in edges for e in (edge, edge)]
    curves = []
    for name in ("before", "after"):
        counts = [c or 0.0 for c in numbers(stored, name)]
        total = sum(counts)
        if len(counts) + 1 == len(edges) and total > 0:
            shares = [100 * c / total for c in counts]
            curves += _curve(name, name, steps, [0.0, *(s for share in shares for s in (share, share)), 0.0])
    marks = [
        Mark(grey, number_text(grey), upright=True)
        for m in entries(content, "materials")
        if (grey := number(m.get("grey_after"))) is not None
    ]
    yield Figure(
        "Histogram",
        chart(
            "Histogram of grey values", curves, Axis(_GREY, "input units"), Axis("voxels", "% per bin", low=0), marks
        ),
        "Voxels of the field of view. Lines: the mean grey value of each material after denoising, see the table.",
    )
    stored = content.get("grey_values")
    result, unseen = numbers(stored, "result"), numbers(stored, "unseen")
    if len(result) == len(unseen):
        differences = [None if a is None or b is None else a - b for a, b in zip(result, unseen, strict=True)]
        yield Figure(
            "Grey values kept",
            chart(
                "Grey value of the result less that of splits it has not seen",
                _curve("result less unseen splits", "after", result, differences, dots=True),
                Axis("grey value of the result", "input units"),
                Axis("difference", "input units"),
                [Mark(0.0, "")],
            ),
            "Means over classes with equal numbers of voxels. A faithful result lies at 0, whatever its grey value.",
        )


def _frequencies(content: Plain) -> Iterable[Figure]:
    stored = content.get("correlation")
    x = numbers(stored, "frequency_per_voxel")
    threshold = number(stored.get("threshold")) if isinstance(stored, Mapping) else None
    error = numbers(stored, "after_standard_error")
    after = numbers(stored, "after")
    curves = [
        *_curve("before", "before", x, numbers(stored, "before")),
        *_curve("after, of one split", "other", x, numbers(stored, "after_for_one_view")),
        *_curve("after", "after", x, after, margin=error if len(error) == len(x) else ()),
    ]
    threshold = 0.5 if threshold is None else threshold
    highest = max((v for c in curves for v in c.y if v is not None), default=1.0)
    yield Figure(
        "Resolution",
        chart(
            "Correlation with the truth per spatial frequency",
            curves,
            _FREQUENCY,
            Axis("correlation with the truth", "1", low=0, high=min(max(1.05, highest), 1.3)),
            [Mark(threshold, f"resolved above {threshold:g}")],
        ),
        "Cross-FRC: estimated from the splits, without the truth. Curves end where the splits no longer tell. "
        "Band: standard error.",
    )
    stored = content.get("power_spectra")
    x = numbers(stored, "frequency_per_voxel")
    yield Figure(
        "Noise power spectrum",
        chart(
            "Noise power spectrum",
            [
                *_curve("noise before", "before", x, numbers(stored, "noise_before")),
                *_curve("noise after", "after", x, numbers(stored, "noise_after")),
                *_curve("object", "object", x, numbers(stored, "object")),
            ],
            _FREQUENCY,
            Axis("power", "grey value²", logarithmic=True),
        ),
        "Noise after: how much of the noise of the input is still in the result. Where the object lies below the "
        "noise, its detail is covered.",
    )


def _training(content: Plain) -> Iterable[Figure]:
    history = entries(content, "history")
    step = [number(r.get("step")) for r in history]

    def of(name: str) -> list[Number]:
        return [number(r.get(name)) for r in history]

    steps = Axis("training step", "steps", low=0)
    trained = of("train_loss")
    lasted = [b - a for a, b in pairwise([0.0, *step]) if a is not None and b is not None]
    if len(lasted) == len(step) > 1 and lasted[-1] < median(lasted) / 2:
        trained[-1] = None  # of the few steps that were left for a last epoch: chance
    yield Figure(
        "Loss",
        chart(
            "Training and held-out loss",
            [
                *_curve("training loss", "before", step, trained, dots=True),
                *_curve("held-out L1 (val)", "after", step, of("val_l1"), dots=True),
            ],
            steps,
            Axis("loss", "σ"),
        ),
        "σ: the standard deviation that grey values are divided by. Both are against a noisy split, so that they level "
        "off at its noise and not at 0. The held-out L1 chooses the val model, or the squared error where that is "
        "trained on.",
    )
    yield Figure(
        "Error against the truth",
        chart(
            "Held-out squared error, noise of the target taken off",
            _curve("held-out error", "after", step, of("val_mse"), dots=True),
            steps,
            # The estimate falls below zero where the error is small.
            Axis("mean squared error", "σ²", logarithmic=all(v is None or v > 0 for v in of("val_mse"))),
        ),
        "The held-out squared error less the noise of what it is compared with: an estimate of that against the truth.",
    )
    for name, title in (("lcl", "Laplacian contrast loss"), ("edge", "Laplacian edge score")):
        yield Figure(
            title,
            chart(
                title,
                _curve(f"held-out {name}", "object", step, of(f"val_{name}"), dots=True),
                steps,
                Axis(title, "1"),
            ),
            f"Chooses the {name} model. It measures sharpness, not fidelity.",
        )
