"""Tables and a picture from the rows of `quality.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import CASES
from denoise.modes import mode_of
from denoise.networks.spec import NetworkSpec
from quality_clock import ADAM, Clock
from throughput import counted

Row = Mapping[str, Any]
#: In the order of the table.
_NAMES = {
    "noisy": "noisy",
    "tv": "total variation*",
    "nlm": "non-local means*",
    "bm3d": "BM3D*",
    "published2d": "published, 2.5D",
    "ours2d": "ours, 2.5D",
    "ours2d_tta": "ours, 2.5D, tta: 8",
    "clean2d": "ours, 2.5D, clean targets",
    "published3d": "published, 3D",
    "ours3d": "ours, 3D",
    f"ours2d{ADAM}": "ours with Adam, 2.5D",
    f"clean2d{ADAM}": "ours with Adam, 2.5D, clean targets",
    f"ours3d{ADAM}": "ours with Adam, 3D",
    "clean3d": "ours, 3D, clean targets",
}


def write_report(rows: Sequence[Row], seconds_per_step: Mapping[str, float], path: Path) -> None:
    """Write the tables to ``path`` and the curves to ``images/quality.png`` beside it."""
    parts = ["# Quality\n\n<!-- Written by benchmarks/quality.py --report; what it means is in benchmarks.md. -->\n"]
    for splits in (2, 4):
        chosen = [row for row in rows if row["key"][1] in (0, splits)]
        if any(row["key"][1] == splits for row in chosen):
            parts += [f"\n## PSNR in dB (SSIM), K = {splits}\n", *_table(chosen)]
    parts += ["\n## Time to quality\n", *_times(rows, seconds_per_step)]
    parts += ["\n## Cost\n", *_costs(rows, seconds_per_step)]
    path.write_text("\n".join(parts) + "\n")
    picture = path.parent / "images" / "quality.png"
    picture.parent.mkdir(exist_ok=True)
    draw_curves(rows, seconds_per_step, picture)


def _label(row: Row) -> str:
    _, _, method, minutes = row["key"]
    return _NAMES[method] + (f", {minutes:g} min" if minutes else "")


def _order(row: Row) -> tuple[int, float]:
    return list(_NAMES).index(row["key"][2]), row["key"][3]


def _table(rows: Sequence[Row]) -> Iterable[str]:
    cases = [name for name in CASES if any(row["key"][0] == name for row in rows)]
    yield "| method | " + " | ".join(name.replace("_", " ") for name in cases) + " |"
    yield "| --- |" + " --- |" * len(cases)
    labels = dict.fromkeys(_label(row) for row in sorted(rows, key=_order))
    for label in labels:
        cells = []
        for case in cases:
            found = [row for row in rows if row["key"][0] == case and _label(row) == label]
            last = found[-1]["points"][-1] if found else None
            cells.append(f"{last['psnr']:.2f} ({last['ssim']:.2f})" if last else "")
        yield f"| {label} | " + " | ".join(cells) + " |"


def clocked(row: Row, seconds_per_step: Mapping[str, float]) -> list[float]:
    """When each point of a row was reached, in seconds of the calibrated machine."""
    _, splits, method, _ = row["key"]
    clock, last = Clock.of(method, splits, seconds_per_step), row["points"][-1]["steps"]
    return [clock.seconds(point["steps"], last) for point in row["points"]]


def _times(rows: Sequence[Row], seconds_per_step: Mapping[str, float]) -> Iterable[str]:
    """For each case, when ours first beats what the published recipe reached in the end."""
    yield "| case | K | published: minutes | its PSNR | ours, at the latest after, s | its PSNR | times faster |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in sorted(rows, key=lambda r: (list(CASES).index(r["key"][0]), r["key"][1])):
        case, splits, method, _ = row["key"]
        if method != "published2d":
            continue
        last = row["points"][-1]
        seconds = clocked(row, seconds_per_step)[-1]
        rivals = [
            (then, point["psnr"])
            for other in rows
            if other["key"][:3] == [case, splits, "ours2d"]
            for then, point in zip(clocked(other, seconds_per_step), other["points"], strict=True)
            if point["psnr"] >= last["psnr"]
        ]
        if rivals:
            first = min(rivals)
            cells = f"{first[0]:.0f} | {first[1]:.2f} | {seconds / first[0]:.0f}"
        else:
            cells = "not reached | | "
        yield f"| {case} | {splits} | {seconds / 60:.1f} | {last['psnr']:.2f} | {cells} |"


def _costs(rows: Sequence[Row], seconds_per_step: Mapping[str, float]) -> Iterable[str]:
    yield "| method | parameters | MACs per voxel | seconds per step | peak memory of the training, MB |"
    yield "| --- | --- | --- | --- | --- |"
    seen = set()
    for row in sorted(rows, key=_order):
        method, splits = row["key"][2], row["key"][1]
        if "parameters" not in row or method.endswith(ADAM) or (method, splits) in seen:
            continue
        seen.add((method, splits))
        step = Clock.of(method, splits, seconds_per_step).per_step
        macs = macs_per_voxel(row["network"])
        yield (
            f"| {_NAMES[method]}, K = {splits} | {row['parameters']:,} | {macs:,.0f} | {step:.3f} | {row['peak_mb']} |"
        )


def macs_per_voxel(name: str) -> float:
    """Multiply-accumulates for one predicted voxel, with the network's default options."""
    spec = NetworkSpec(name, {})
    window = mode_of(spec).window(spec, 64, 0.0, "uniform")
    return counted(spec, window.read_zyx, window.predict_zyx)[1]


def draw_curves(rows: Sequence[Row], seconds_per_step: Mapping[str, float], path: Path) -> None:
    """PSNR against seconds of training (calibrated), one panel per case, K = 2."""
    from matplotlib.figure import Figure

    cases = [
        name for name in CASES if any(row["key"][:3] == [name, 2, "ours2d"] and len(row["points"]) > 2 for row in rows)
    ]
    columns = 3
    figure = Figure(figsize=(12, 3.6 * -(-len(cases) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(cases) // columns), columns, squeeze=False).ravel()
    styles = {"published2d": "C7", "ours2d": "C0", "ours3d": "C1", "clean2d": "C2"}
    for panel, case in zip(panels, cases, strict=False):
        for row in rows:
            name, splits, method, _ = row["key"]
            if name != case or (splits == 2 and method not in styles) or splits == 4:
                continue
            psnr = [point["psnr"] for point in row["points"]]
            if splits == 0:
                panel.axhline(psnr[-1], color="0.8", linewidth=1)
                panel.text(
                    0.01,
                    psnr[-1],
                    _NAMES[method].rstrip("*"),
                    transform=panel.get_yaxis_transform(),
                    fontsize=7,
                    color="0.5",
                    va="bottom",
                )
                continue
            panel.plot(
                clocked(row, seconds_per_step), psnr, ".-", color=styles[method], label=_NAMES[method], markersize=3
            )
        panel.set_xscale("log")
        panel.set_xlim(8, 2000)
        panel.set_xticks([10, 30, 100, 300, 1000], ["10", "30", "100", "300", "1000"], minor=False)
        panel.set_title(CASES[case].what, fontsize=9)
        panel.set_xlabel("training, s")
        panel.set_ylabel("PSNR, dB")
        handles = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        panel.legend(handles.values(), handles.keys(), fontsize=7, loc="lower right")
    for panel in panels[len(cases) :]:
        panel.set_axis_off()
    figure.savefig(path, dpi=80)
