"""Image quality against training time, on simulated scans with known truth.

    python benchmarks/quality.py --folder scratch --calibrate --methods published2d,ours2d,ours3d   # seconds per step
    python benchmarks/quality.py --folder scratch --methods published2d --minutes 30
    python benchmarks/quality.py --folder scratch --methods noisy,tv,nlm,ours2d,ours3d,clean2d --minutes 1.5
    python benchmarks/quality.py --folder scratch --report docs/quality.md         # and docs/images/quality.png

Every run is a process of its own, appended to ``scratch/quality.jsonl``; what is there is not run again. Scored are
slices 16 to 31 of 48 (the middle third) of the full reconstruction, inside the field of view, against the
reconstruction of the noise-free projections, whose range is the data range.

Calibrate on an idle machine: minutes are minutes of training there. A budget is turned into optimiser steps with the
calibrated seconds per step, so a machine that is busy changes how long the benchmark takes and not what it finds. Our
3D network is trained on single slices first, then on blocks: both kinds of step have a time of their own.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from baselines import CLASSICAL
from cases import CASES, CaseData, chosen_cases, open_case
from denoise.api import denoise_volume, load_checkpoint, train
from denoise.quality import psnr, ssim
from denoise.run_folder import find_model
from denoise.training.job import Plan, Record
from denoise.training.validation import Preview
from quality_clock import Clock, calibrated_as

#: What the published networks are trained with here: their 32 patches of 256^2 (3D: 4 of 96^3) would make fewer than
#: 50 steps in half an hour on two cores.
_PUBLISHED = {"network": "unet", "learning_rate": 1e-3, "schedule": "constant", "patch_size": 128, "batch_size": 8}
_STEPS_PER_EPOCH = 25
#: Minutes: on scans as small as these equivariant weights are better in less, and worse in more (network-study.md).
_BRIEF = 3.0


@dataclass(frozen=True)
class Method:
    """A way of training: settings of the config's section ``train``."""

    what: str
    mode: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    clean_targets: bool = False
    tta: int = 1


METHODS: Mapping[str, Method] = {
    "published2d": Method("published 2.5D recipe", "2.5d", _PUBLISHED),
    "published3d": Method("published 3D recipe", "3d", {**_PUBLISHED, "patch_size_3d": 48, "batch_size": 1}),
    "ours2d": Method("ours, 2.5D", "2.5d"),
    "ours3d": Method("ours, 3D", "3d"),
    "ours2d_tta": Method("ours, 2.5D, tta: 8", "2.5d", tta=8),
    "clean2d": Method("the same network, clean targets", "2.5d", clean_targets=True),
    "clean3d": Method("the same in 3D, clean targets", "3d", clean_targets=True),
}


@dataclass(frozen=True)
class Run:
    """One row: a method on a case."""

    case: str
    splits: int
    method: str
    minutes: float

    @property
    def key(self) -> list[Any]:
        """What makes it the same run."""
        trained = self.method in METHODS
        return [self.case, self.splits if trained else 0, self.method, self.minutes if trained else 0.0]


def scored_slices(depth: int) -> range:
    """The middle third."""
    return range(depth // 3, depth - depth // 3)


def score(denoised: np.ndarray[Any, Any], data: CaseData) -> dict[str, float]:
    """PSNR and SSIM of the scored slices."""
    rows = scored_slices(len(data.truth))
    image, truth = (torch.tensor(np.asarray(v))[None] for v in (denoised, data.truth[rows.start : rows.stop]))
    mask = torch.from_numpy(data.inside)
    found = psnr(image, truth, data.data_range, mask), ssim(image, truth, data.data_range, mask)
    return {"psnr": round(found[0], 3), "ssim": round(found[1], 4)}


class Curve:
    """An observer that scores the best model so far against the truth, every now and then."""

    def __init__(self, data: CaseData, folder: Path, every_steps: int, tta: int) -> None:
        self._data, self._folder, self._every, self._tta = data, folder, every_steps, tta
        self._next = every_steps
        self.points: list[dict[str, float]] = []

    def started(self, plan: Plan) -> None:
        """Nothing to do."""

    def stepped(self, step: int, epoch: int, done: float, loss: float | None) -> None:
        """Nothing to do."""

    def validated(self, record: Record, preview: Preview | None) -> None:
        """Score."""
        if record.step < self._next and record.done < 1:
            return
        self._next = record.step + self._every
        self.points.append({"steps": record.step, "seconds": record.seconds, **self.now()})
        print(f"  {record.step} steps {self.points[-1]}", flush=True)

    def now(self) -> dict[str, float]:
        """Scores of the best model so far."""
        from denoise.config import InferSection

        rows = scored_slices(len(self._data.truth))
        denoised = denoise_volume(
            self._data.full,
            load_checkpoint(self._folder),
            start_slice=rows.start,
            end_slice=rows.stop,
            infer=InferSection(tta=self._tta),
        )
        return score(denoised, self._data)

    def close(self) -> None:
        """Nothing to do."""


@contextmanager
def clean_targets() -> Iterator[None]:
    """Within it, the last volume of the "splits" is the truth, and the target of all others.

    The package has no such way of training (there is no truth to train on); the ceiling is measured by exchanging what
    pairs inputs with targets, so that everything else stays the loop of the package.
    """
    from denoise.training import gradients, validation

    def paired(blocks: torch.Tensor, strategy: str) -> tuple[torch.Tensor, torch.Tensor]:
        noisy, truth = blocks[:, :-1], blocks[:, -1:]
        count = noisy.shape[1]
        others = (noisy.sum(dim=1, keepdim=True) - noisy) / (count - 1)
        return others.flatten(0, 1), truth.expand_as(noisy).flatten(0, 1)

    def no_noise(blocks: torch.Tensor, strategy: str) -> torch.Tensor:
        return torch.zeros_like(blocks[:, :-1]).flatten(0, 1)

    kept = gradients.paired, validation.paired, validation.target_noise
    gradients.paired = validation.paired = paired  # type: ignore[attr-defined]
    validation.target_noise = no_noise  # type: ignore[attr-defined]
    try:
        yield
    finally:
        gradients.paired, validation.paired, validation.target_noise = kept  # type: ignore[attr-defined]


def trained(
    run: Run, data: CaseData, scratch: Path, steps: int, points: int, steps_per_epoch: int = _STEPS_PER_EPOCH
) -> dict[str, Any]:
    """Train for so many steps and score on the way."""
    method = METHODS[run.method]
    folder = scratch / "runs" / "_".join(str(part) for part in run.key)
    if folder.exists():
        shutil.rmtree(folder)
    epochs = max(1, round(steps / steps_per_epoch))
    recipe = _batch_size(method)
    curve = Curve(data, folder, max(1, steps // points), method.tta)
    volumes = data.splits(run.splits) + ([data.truth] if method.clean_targets else [])
    settings = {
        "max_epochs": epochs,
        "patience": 0,
        "patches_per_epoch_3d" if method.mode == "3d" else "patches_per_epoch": recipe * steps_per_epoch,
        "validate_every": max(1, epochs // 40),
        **({"symmetric": run.minutes < _BRIEF} if method.mode == "2.5d" else {}),
        **method.settings,
    }
    begun = time.monotonic()
    if method.clean_targets:
        with clean_targets():
            train(volumes, folder, mode=method.mode, observers=(curve,), **settings)
    else:
        train(volumes, folder, mode=method.mode, observers=(curve,), **settings)
    checkpoint = load_checkpoint(folder)
    models = scratch / "models"  # for overlap.py
    models.mkdir(exist_ok=True)
    shutil.move(find_model(folder, "val"), models / f"{folder.name}.pth")
    shutil.rmtree(folder)
    return {
        "points": curve.points,
        "parameters": sum(w.numel() for w in checkpoint.weights.values()),
        "network": checkpoint.network.name,
        "wall_seconds": round(time.monotonic() - begun, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _batch_size(method: Method) -> int:
    from denoise.config import RunConfig

    config = RunConfig.from_mapping(
        {"dataset": {"folder": ".", "full": "none"}, "train": {"mode": method.mode, **method.settings}}
    )
    return config.batch_on("cpu")


def classical(name: str, data: CaseData) -> dict[str, Any]:
    """Denoise with the best of several strengths."""
    denoise, strengths = CLASSICAL[name]
    rows = scored_slices(len(data.truth))
    reach = 4  # slices around the scored ones, for what works in three dimensions
    part = slice(max(rows.start - reach, 0), rows.stop + reach)
    noise = float(np.sqrt(np.mean((data.splits(2)[0][part] - data.splits(2)[1][part]) ** 2)) / 2)
    best: dict[str, float] = {"psnr": -np.inf}
    seconds = 0.0
    for strength in strengths:
        begun = time.monotonic()
        denoised = denoise(data.full[part] / noise, strength) * noise
        seconds = time.monotonic() - begun
        found = score(denoised[rows.start - part.start :][: len(rows)], data)
        best = max(best, found, key=lambda f: f["psnr"])
    return {"points": [{"steps": 0, "seconds": round(seconds, 2), **best}]}


def result_of(run: Run, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one row."""
    data = open_case(scratch, run.case, size=options.size, slices=options.slices)
    if run.method == "noisy":
        rows = scored_slices(len(data.truth))
        return {"points": [{"steps": 0, "seconds": 0.0, **score(data.full[rows.start : rows.stop], data)}]}
    if run.method in CLASSICAL:
        return classical(run.method, data)
    steps = Clock.of(run.method, run.splits, seconds_per_step(scratch)).steps(60 * run.minutes)
    return trained(run, data, scratch, steps, options.points)


def seconds_per_step(scratch: Path) -> dict[str, float]:
    """As calibrated."""
    path = scratch / "seconds_per_step.json"
    if not path.exists():
        sys.exit(f"{path} is missing; run with --calibrate on an idle machine first")
    return {str(name): float(value) for name, value in json.loads(path.read_text()).items()}


def calibrate(scratch: Path, options: argparse.Namespace) -> None:
    """Median over three rounds of the seconds per step of the methods and numbers of splits that were asked for."""
    data = open_case(scratch, "foam_low", size=options.size, slices=options.slices)
    found: dict[str, list[float]] = {}
    for _ in range(3):
        for name in options.methods.split(","):
            for k in map(int, options.splits.split(",")):
                run = Run("foam_low", k, name, 0.0)
                steps = 5 if name.startswith("published") else 100
                halves = 2 if METHODS[name].mode == "3d" and not name.startswith("published") else 1
                points = trained(run, data, scratch, steps, halves, steps_per_epoch=steps // halves)["points"]
                times = np.diff([0.0, *(point["seconds"] for point in points)]) / (steps / halves)
                names = calibrated_as(name, k), f"{calibrated_as(name, k)}_on_slices"
                for key, value in zip(names, times[::-1], strict=False):
                    found.setdefault(key, []).append(float(value))
                print(name, k, found, flush=True)
    medians = {name: round(float(np.median(values)), 5) for name, values in found.items()}
    path = scratch / "seconds_per_step.json"
    path.write_text(json.dumps({**(seconds_per_step(scratch) if path.exists() else {}), **medians}, indent=1) + "\n")


def stored(scratch: Path) -> list[dict[str, Any]]:
    """All rows so far."""
    path = scratch / "quality.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wanted(options: argparse.Namespace) -> Sequence[Run]:
    """The rows that were asked for and are not there yet."""
    there = [row["key"] for row in stored(options.folder)]
    runs = [
        Run(case, k, method, minutes)
        for case in chosen_cases(options.cases)
        for method in options.methods.split(",")
        for k in (map(int, options.splits.split(",")) if method in METHODS else (2,))
        for minutes in (map(float, options.minutes.split(",")) if method in METHODS else (0.0,))
    ]
    return [run for run in runs if run.key not in there]


def main() -> None:
    """Run what is missing, or report what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cases", default="all")
    parser.add_argument("--methods", default="noisy,tv,nlm,ours2d")
    parser.add_argument("--splits", default="2")
    parser.add_argument("--minutes", default="1.5")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--slices", type=int, default=48)
    parser.add_argument("--points", type=int, default=10, help="how often a run is scored")
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--one", help="used by the script itself: a row as JSON")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.one:
        run = Run(*json.loads(options.one))
        row = {"key": run.key, **result_of(run, options.folder, options)}
        with (options.folder / "quality.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    elif options.calibrate:
        calibrate(options.folder, options)
    elif options.report:
        from quality_report import write_report

        write_report(stored(options.folder), seconds_per_step(options.folder), options.report)
    else:
        for run in wanted(options):
            print(f"{run}: {CASES[run.case].what}", flush=True)
            arguments = ["--one", json.dumps([run.case, run.splits, run.method, run.minutes])]
            same = [f"--size={options.size}", f"--slices={options.slices}", f"--points={options.points}"]
            subprocess.run([sys.executable, __file__, "--folder", str(options.folder), *same, *arguments], check=True)


if __name__ == "__main__":
    main()
