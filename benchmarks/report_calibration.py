"""Are the numbers of `denoise report`, which never see the truth, right where the truth is known?

    python benchmarks/report_calibration.py --folder scratch [--objects foam,... --doses 400,... --modes 2.5d,...]
    python benchmarks/report_calibration.py --folder scratch --unseen ...          # the same models, other scans
    python benchmarks/report_calibration.py --folder scratch --unseen --judged 256 ...     # four times as long ones
    python benchmarks/report_calibration.py --folder scratch --splits 4 ...        # X:1, as many angles in each split
    python benchmarks/report_calibration.py --folder scratch --size 384 --slices 128 ...   # eight times the voxels
    python benchmarks/report_calibration.py --folder scratch --report docs/report.md

Five objects at three doses are scanned (64 x 192 x 192 voxels, 300 angles per split). In both modes a model is trained
for 300 steps (3D: 600) and one for 30 on two thirds of the slices, and the good one is damaged in seven ways. Every one
of them is judged on the 22 held-out slices and compared with the truth there. With ``--unseen`` on all 64 slices of a
scan of another object of the same kind, which no limit was chosen on. Rows are appended to
``scratch/report_calibration.jsonl``; what is there, or trained, or simulated, is not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, median_filter

import cases
from denoise.api import load_checkpoint, train
from denoise.config import InferSection
from denoise.config.recipes import RECIPES
from denoise.inference.engine import denoise_slices
from denoise.inference.models import make_denoiser
from denoise.modes import mode_of
from denoise.patches.holdout import HoldOut
from denoise.resolution import Rings
from denoise.run_folder import RunFolder
from denoise.tiles import Region, Triple
from denoise.training.observers import read_history
from denoise.trust.confidence import calibrated
from denoise.trust.evidence import Evidence, Run, collect
from denoise.trust.report import Report
from denoise.trust.scores import crossing
from denoise.trust.spectra import ring_starts
from denoise.trust.verdict import Severity
from denoise.volumes import ArrayVolume, Volume
from phantoms import anatomy, fibres
from report_objects import grains, layers

Float32Array = NDArray[np.float32]

#: Of the scans, in voxels: (Z, Y, X).
SHAPE: Triple = (64, 192, 192)
#: Per split 300 angles for 192 columns: as many as filtered back-projection needs.
_ANGLES_PER_COLUMN = 1.5625
HELD_OUT = 0.34
#: Standard error below which a ring's correlation is compared to 0.03.
_SHARP = 0.015
OBJECTS: Mapping[str, Callable[[int, int, int], cases.Phantom]] = {
    "foam": cases.foam,
    "anatomy": anatomy,
    "fibres": fibres,
    "grains": grains,
    "layers": layers,
}
DOSES = (100, 400, 1600)
MODES = ("2.5d", "3d")
#: Of 30 steps; the first half of those in 3D are on single slices.
_GOOD_EPOCHS = {"2.5d": 10, "3d": 20}


@dataclass(frozen=True)
class Scan:
    """An object at a dose."""

    truth: Float32Array
    splits: tuple[Float32Array, ...]

    @property
    def contrast(self) -> float:
        """What damage is measured in."""
        low, high = np.percentile(self.truth, (1, 99))
        return float(high - low)


@dataclass(frozen=True)
class Denoiser:
    """One way to denoise: whose model, what is done to its output, and in ``wrong`` what the report may say of it."""

    what: str
    model: str = "good"
    damage: Callable[[Float32Array, range, Scan], Float32Array] = lambda image, z, scan: image
    wrong: frozenset[str] = frozenset()


@lru_cache(maxsize=4)
def _specks(shape: Triple, radius: float) -> Float32Array:
    """25 Gaussian specks of height 1 in the volume, one in 90 000 voxels."""
    rng = np.random.default_rng(5)
    place = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    specks = np.zeros(shape, np.float32)
    for _ in range(25):
        centre = rng.uniform(0.2, 0.8, 3) * shape
        squared = sum((p - c) ** 2 for p, c in zip(place, centre, strict=True))
        specks += np.exp(-0.5 * squared / radius**2).astype(np.float32)
    return specks


def _blurred(sigma: float) -> Callable[[Float32Array, range, Scan], Float32Array]:
    return lambda image, z, scan: gaussian_filter(image, (0, sigma, sigma))


def _sharpened(image: Float32Array, z: range, scan: Scan) -> Float32Array:
    return 2 * image - gaussian_filter(image, (0, 1.5, 1.5))


def _textured(image: Float32Array, z: range, scan: Scan) -> Float32Array:
    noise = gaussian_filter(np.random.default_rng(3).standard_normal(scan.truth.shape), (1, 1.2, 1.2))
    return image + np.float32(0.05 * scan.contrast) * (noise / noise.std()).astype(np.float32)[z.start : z.stop]


def _with_specks(image: Float32Array, z: range, scan: Scan) -> Float32Array:
    return image + np.float32(0.5 * scan.contrast) * _specks(scan.truth.shape, 2.0)[z.start : z.stop]


def _copied(image: Float32Array, z: range, scan: Scan) -> Float32Array:
    third = np.arange(image.shape[1]) // 32 % 3 == 0
    return np.where(third[:, None] & third[None, :], np.roll(image, 32, axis=2), image)


def _erased(image: Float32Array, z: range, scan: Scan) -> Float32Array:
    holes = np.clip(2 * _specks(scan.truth.shape, 4.0), 0, 1)[z.start : z.stop]
    return image + holes * (gaussian_filter(image, (0, 6, 6)) - image)


_INVENTED = frozenset({"unsupported_detail", "invented_structure"})
_REMOVED = frozenset({"suppressed_detail", "removed_structure"})
DENOISERS: Mapping[str, Denoiser] = {
    "good": Denoiser("trained for 300 steps (3D: 600)"),
    "undertrained": Denoiser("trained for 30 steps", model="under", wrong=frozenset({"converged"})),
    "oversmoothed": Denoiser("good, blurred (sigma 1)", damage=_blurred(1.0), wrong=_REMOVED),
    "median": Denoiser(
        "good, median of 5 x 5", damage=lambda image, z, scan: median_filter(image, (1, 5, 5)), wrong=_REMOVED
    ),
    "erased": Denoiser("good, 25 places of radius 5 smoothed out", damage=_erased, wrong=_REMOVED),
    "sharpened": Denoiser("good, unsharp mask (sigma 1.5)", damage=_sharpened, wrong=_INVENTED),
    "textured": Denoiser("good, fine texture of 5 % of the contrast added", damage=_textured, wrong=_INVENTED),
    "specks": Denoiser("good, 25 specks of half of the contrast added", damage=_with_specks, wrong=_INVENTED),
    "copied": Denoiser("good, a ninth of the image copied from beside it", damage=_copied, wrong=_INVENTED),
}


@dataclass(frozen=True)
class Setting:
    """What is scanned, and what is judged of it; a row's name."""

    name: str
    dose: int
    mode: str
    unseen: bool = False
    splits: int = 2
    shape: Triple = SHAPE
    judged_slices: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Setting:
        """Of a stored row."""
        shape: Triple = tuple(row.get("shape", SHAPE))
        judged = row.get("judged_slices", 0)
        return cls(row["object"], row["dose"], row["mode"], row["unseen"], row["splits"], shape, judged)

    @property
    def key(self) -> dict[str, Any]:
        """In a row."""
        key = {"object": self.name, "dose": self.dose, "mode": self.mode, "unseen": self.unseen, "splits": self.splits}
        key = key if self.shape == SHAPE else {**key, "shape": self.shape}
        return {**key, "judged_slices": self.judged_slices} if self.judged_slices else key

    @property
    def second(self) -> Setting:
        """Of the scan that is judged where it is not the one trained on."""
        return replace(self, shape=(self.judged_slices or self.shape[0], *self.shape[1:]), judged_slices=0)

    @property
    def suffix(self) -> str:
        """Of names of files, where something is not as usual."""
        splits = "" if self.splits == 2 else f"_k{self.splits}"
        return splits if self.shape == SHAPE else f"{splits}_{'x'.join(map(str, self.shape))}"


def open_scan(root: Path, setting: Setting, *, second: bool) -> Scan:
    """Simulated if it is not there yet, with a noise of its own; a second one is another object of the same kind."""
    name, dose, splits, (slices, size, _) = setting.name, setting.dose, setting.splits, setting.shape
    seed = 1 + list(OBJECTS).index(name) + len(OBJECTS) * (DOSES.index(dose) + len(DOSES) * second)
    folder = root / "cases" / f"{name}_{dose}_{seed}{setting.suffix}"
    if not (folder / "full.npy").exists():  # written last
        folder.mkdir(parents=True, exist_ok=True)
        case = cases.Case(name, OBJECTS[name], dose)
        cases.simulate(case, folder, size, slices, seed, (splits,), splits * _ANGLES_PER_COLUMN, corrected=True)
    truth, *parts = (np.load(folder / f"{part}.npy") for part in ("truth", *(f"k{splits}_{k}" for k in range(splits))))
    return Scan(truth, tuple(parts))


def trained(root: Path, scan: Scan, name: str, mode: str, epochs: int) -> RunFolder:
    """A run of so many epochs of 30 steps; trained if it is not there yet."""
    folder = root / "runs" / name
    done = folder / "done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        patches = 30 * RECIPES["residual2d" if mode == "2.5d" else "residual3d"].batch_size
        train(
            scan.splits,
            folder,
            mode=mode,
            validation_fraction=HELD_OUT,
            max_epochs=epochs,
            patience=0,
            patches_per_epoch=patches,
            patches_per_epoch_3d=patches,
            validate_every=1,
        )
        done.write_text("")
    return RunFolder(folder)


def runner(run: RunFolder, shape: Triple) -> tuple[Run, Region]:
    """A model as a function, and what it was not trained on."""
    checkpoint = load_checkpoint(run.path)
    assert checkpoint.patch_size is not None
    denoiser = make_denoiser(checkpoint, InferSection(precision="float32"), torch.device("cpu"), shape=shape)
    window = mode_of(checkpoint.network).window(checkpoint.network, checkpoint.patch_size, 0.0, "uniform")

    def denoised(volume: Volume, z_range: range) -> Float32Array:
        result = np.empty((len(z_range), *volume.shape[1:]), np.float32)

        def keep(start: int, slab: Float32Array) -> None:
            result[start : start + len(slab)] = slab

        denoise_slices([volume], denoiser, z_range, keep)
        return result

    outputs: dict[tuple[str, object], Float32Array] = {}

    def remembered(volume: Volume, z_range: range) -> Float32Array:
        key = volume.name, getattr(volume, "weights", None)
        if key not in outputs:
            outputs[key] = denoised(volume, z_range)
        return outputs[key].copy()

    return remembered, HoldOut.of(shape, window, HELD_OUT).held_out


def judged(root: Path, setting: Setting) -> Iterator[dict[str, Any]]:
    """A row for every denoiser of one scan in one mode: on what training held out, or on a scan of its own."""
    own = open_scan(root, setting, second=False)
    scan = open_scan(root, setting.second, second=True) if setting.unseen else own
    shape, mode = setting.shape, setting.mode
    volumes = [ArrayVolume(split, name=f"split {k}") for k, split in enumerate(scan.splits)]
    runs = {
        kind: trained(root, own, f"{setting.name}_{setting.dose}_{mode}_{kind}{setting.suffix}", mode, epochs)
        for kind, epochs in (("good", _GOOD_EPOCHS[mode]), ("under", 1))
    }
    runners = {kind: runner(run, shape) for kind, run in runs.items()}
    for kind, denoiser in DENOISERS.items():
        plain, held_out = runners[denoiser.model]
        region = Region((0, 0, 0), setting.second.shape) if setting.unseen else held_out

        def damaged(volume: Volume, z: range, plain: Run = plain, denoiser: Denoiser = denoiser) -> Float32Array:
            return denoiser.damage(plain(volume, z), z, scan).astype(np.float32)

        evidence = collect(volumes, region, damaged)
        history = read_history(runs[denoiser.model].history)
        found = compared(evidence, Report.of(evidence, history=history), scan.truth[region.slices])
        yield {**setting.key, "denoiser": kind, **found}


def compared(evidence: Evidence, report: Report, truth: Float32Array) -> dict[str, Any]:
    """Estimates beside what they estimate."""
    scores = report.scores

    def decibels(stack: Float32Array) -> float:
        error = np.square(stack.astype(np.float64) - truth)[:, evidence.mask].mean()
        return float(10 * np.log10(scores.data_range**2 / error))

    before, after = decibels(evidence.full), decibels(evidence.delivered)
    rings = report.rings
    true_curve = correlation(evidence.delivered, truth)
    limit = crossing(rings, true_curve)
    told = (rings.frequencies <= limit) & rings.known
    difference, by_chance = np.abs(rings.correlation_after() - true_curve)[told], rings.error_after()[told]
    sharp = by_chance < _SHARP
    uncertainty = calibrated([evidence]).uncertainty(evidence.outputs)
    distance = (np.abs(evidence.delivered - truth) / uncertainty)[:, evidence.mask]
    return {
        "psnr": [scores.psnr_after.value, scores.psnr_after.low, scores.psnr_after.high, after],
        "psnr_before": [scores.psnr_before.value, scores.psnr_before.low, scores.psnr_before.high, before],
        "gain": [scores.gain.value, scores.gain.low, scores.gain.high, after - before],
        "psnr_of_view": [scores.psnr_of_view.value, float(np.mean([decibels(f) for f in evidence.outputs]))],
        "frc": float(difference[sharp].max()) if sharp.any() else None,
        "frc_rings": [int(sharp.sum()), len(sharp)],
        "frc_within": float((difference < 2 * by_chance + 0.005).mean()) if len(difference) else None,
        "within": [float((distance < s).mean()) for s in (1, 2)],
        "resolution": [scores.resolution_after.value, limit],
        "flags": [f.name for f in report.verdict.findings if f.severity >= Severity.RESERVATION],
        "values": {f.name: f.value for f in report.verdict.findings},
    }


def correlation(image: Float32Array, truth: Float32Array) -> NDArray[np.float64]:
    """Of an image with the truth, on the same joined rings as the report."""
    rings = Rings.of(*truth.shape[1:])
    sums = np.zeros((3, len(rings.frequencies)))
    for a, b in zip(image, truth, strict=True):
        one, other = rings.transform(torch.from_numpy(a)), rings.transform(torch.from_numpy(b))
        sums += np.array([rings.sums(*pair).numpy() for pair in ((one, other), (one, one), (other, other))])
    cross, one_power, other_power = np.add.reduceat(sums, ring_starts(sums.shape[1]), axis=1)
    return np.asarray(cross / np.sqrt(one_power * other_power))


def main() -> None:
    """Judge what is missing, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--objects", default=",".join(OBJECTS))
    parser.add_argument("--doses", default=",".join(map(str, DOSES)))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--report", type=Path, help="replace the tables in this document")
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--unseen", action="store_true", help="judge on scans of other objects")
    parser.add_argument("--size", type=int, default=SHAPE[2], help="edge of the slices, voxels")
    parser.add_argument("--slices", type=int, default=SHAPE[0])
    parser.add_argument("--judged", type=int, default=0, help="slices of the other scans of --unseen")
    options = parser.parse_args()
    rows_file = options.folder / "report_calibration.jsonl"
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()] if rows_file.exists() else []
    if options.report:
        from report_tables import write_tables

        write_tables(rows, options.report)
        return
    there = {Setting.of(row) for row in rows}
    shape = (options.slices, options.size, options.size)
    doses, modes, names = map(int, options.doses.split(",")), options.modes.split(","), options.objects.split(",")
    for dose, mode, name in product(doses, modes, names):
        setting = Setting(name, dose, mode, options.unseen, options.splits, shape, options.judged)
        if setting not in there:
            new = list(judged(options.folder, setting))
            with rows_file.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in new)
            print(setting, flush=True)


if __name__ == "__main__":
    main()
