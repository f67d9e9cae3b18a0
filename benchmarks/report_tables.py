"""Tables from the rows of `report_calibration.py`, put into a document between two marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from denoise.trust.after import CLASS_SHIFT, INVENTED_PLACE, REMOVED_PLACE
from report_calibration import DENOISERS, SHAPE, Setting

Row = Mapping[str, Any]
BEGIN, END = "<!-- calibration: written by benchmarks/report_calibration.py -->", "<!-- end of calibration -->"


def write_tables(rows: Sequence[Row], path: Path) -> None:
    """Replace what stands between the marks."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    rows = sorted(({**r, "flags": _flags(r)} for r in rows), key=lambda r: (r["mode"], r["object"], r["dose"]))
    usual = [r for r in rows if Setting.of(r).shape == SHAPE and not Setting.of(r).judged_slices]
    held_out, unseen = ([r for r in usual if r["splits"] == 2 and r["unseen"] == which] for which in (False, True))
    parts = [_summary(held_out), _denoisers(held_out), _scans(held_out)]
    if unseen:
        parts += ["### Scans of other objects", _summary(unseen), _denoisers(unseen)]
    for judged in sorted({Setting.of(r).judged_slices for r in rows} - {0}):
        long = [r for r in rows if Setting.of(r).judged_slices == judged]
        parts += [f"### Scans of other objects, {judged} slices", _summary(long), _denoisers(long), _scans(long)]
    for shape in sorted({Setting.of(r).shape for r in rows} - {SHAPE}):
        large = [r for r in rows if Setting.of(r).shape == shape]
        parts += [f"### Scans of {' x '.join(map(str, shape))}", _summary(large), _denoisers(large), _scans(large)]
    if more := [r for r in usual if r["splits"] > 2]:
        parts += [f"### {more[0]['splits']} splits, X:1", _summary(more), _denoisers(more), _scans(more)]
    tables = "\n\n".join(parts)
    path.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


def _flags(row: Row) -> list[str]:
    """What a row warns of with the limits of today, which may be others than when it was made."""
    flags, values = set(row["flags"]), row["values"]
    for name, limit in (("invented_structure", INVENTED_PLACE), ("removed_structure", REMOVED_PLACE)):
        flags = flags | {name} if values[name] > limit else flags - {name}
    if abs(values["grey_values"]) <= CLASS_SHIFT:
        flags -= {"grey_values"}
    return sorted(flags)


def _summary(rows: Sequence[Row]) -> str:
    scans = sorted({(r["object"], r["dose"], r["mode"]) for r in rows})
    objects, doses = sorted({s[0] for s in scans}), sorted({s[1] for s in scans})
    psnr, gain = (np.array([r[name] for r in rows], float) for name in ("psnr", "gain"))
    near = np.abs(psnr[:, 0] - psnr[:, 3])
    wrong = [r for r in rows if DENOISERS[r["denoiser"]].wrong]
    found = sum(bool(DENOISERS[r["denoiser"]].wrong & set(r["flags"])) for r in wrong)
    good = [r for r in rows if r["denoiser"] == "good"]
    correlations = [r["frc"] for r in rows if r["frc"] is not None]
    lines = (
        f"{len(rows)} judgements: {len(scans)} scans and modes ({', '.join(objects)}; "
        f"{', '.join(map(str, doses))} photons; {', '.join(sorted({s[2] for s in scans}))}) by {len(DENOISERS)} "
        "denoisers.",
        f"Estimated PSNR: {100 * (near < 0.3).mean():.0f} % within 0.3 dB of the true one, the farthest "
        f"{near.max():.2f} dB, "
        f"mean difference {np.mean(psnr[:, 0] - psnr[:, 3]):+.2f} dB; {100 * _inside(psnr):.0f} % inside their "
        "interval.",
        f"Estimated gain: {100 * (np.abs(gain[:, 0] - gain[:, 3]) < 0.3).mean():.0f} % within 0.3 dB; "
        f"{100 * _inside(gain):.0f} % inside their interval.",
        "Cross-FRC up to the resolution, rings whose standard error is below 0.015: within 0.03 of the true "
        "correlation in "
        f"all rings of {sum(c < 0.03 for c in correlations)} of {len(correlations)} judgements, at most "
        f"{max(correlations):.3f} off; {100 * np.mean([r['frc_within'] for r in rows]):.0f} % of all rings within two "
        "standard errors.",
        f"Inventing, erasing and undertrained denoisers flagged: {found} of {len(wrong)}. Good ones flagged: "
        f"{sum(bool(r['flags']) for r in good)} of {len(good)}.",
    )
    return "\n".join(f"- {line}" for line in lines)


def _denoisers(rows: Sequence[Row]) -> str:
    lines = [
        "| denoiser | what it is | cases | PSNR: largest / mean difference, dB | in interval | cross-FRC: largest "
        "difference | "
        "voxels within s, 2 s | flagged as it should be | most frequent findings |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, denoiser in DENOISERS.items():
        mine = [r for r in rows if r["denoiser"] == name]
        if not mine:
            continue
        psnr = np.array([r["psnr"] for r in mine], float)
        difference = psnr[:, 0] - psnr[:, 3]
        right = [bool(denoiser.wrong & set(r["flags"])) if denoiser.wrong else not r["flags"] for r in mine]
        flags = [flag for r in mine for flag in r["flags"]]
        often = sorted({f for f in flags if flags.count(f) >= len(mine) / 2})
        within = np.mean([r["within"] for r in mine], axis=0)
        lines.append(
            f"| {name} | {denoiser.what} | {len(mine)} | {np.abs(difference).max():.2f} / {difference.mean():+.2f} | "
            f"{round(_inside(psnr) * len(mine))} | {max(r['frc'] or 0 for r in mine):.3f} | "
            f"{within[0]:.2f}, {within[1]:.2f} | {sum(right)} | {', '.join(often) or 'none'} |"
        )
    return "\n".join(lines)


def _scans(rows: Sequence[Row]) -> str:
    lines = [
        "| good model of | photons | mode | PSNR before, dB | PSNR after: estimated (95 %) | true | gain: estimated "
        "| true | "
        "resolution: estimated, voxels | true |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        if r["denoiser"] != "good":
            continue
        value, low, high, true = r["psnr"]
        estimated, limit = ("2.0" if v == float("inf") else f"{1 / v:.1f}" for v in r["resolution"])
        lines.append(
            f"| {r['object']} | {r['dose']} | {r['mode']} | {r['psnr_before'][3]:.2f} | {value:.2f} ({low:.2f} to "
            f"{high:.2f}) | {true:.2f} | {r['gain'][0]:.2f} | {r['gain'][3]:.2f} | {estimated} | {limit} |"
        )
    return "\n".join(lines)


def _inside(columns: np.ndarray[Any, Any]) -> float:
    """Share of rows (value, low, high, true) whose truth lies in the interval."""
    return float(((columns[:, 1] <= columns[:, 3]) & (columns[:, 3] <= columns[:, 2])).mean())
