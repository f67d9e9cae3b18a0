"""Is the error of a result estimated rightly where the splits have few angles, and streaks of their own?

    python benchmarks/streak_calibration.py --folder scratch [--objects foam,... --doses 200,1600 --ratios 0.75,1,1.5]

For every object and dose a small network is trained for 150 steps on 28 slices of 128 x 128, from a scan with one angle
for each column. It denoises 96 slices of another such object, from scans with so many angles for each column in the
whole scan, and half of them in each split. Groups of 12 slices are judged as held-out slices of a scan are: as if there
were no streaks, with the correction of ``denoise.trust.streaks``, and against the truth (the reconstruction of
noise-free projections at all angles), on the same voxels. The mean over the groups tells bias from chance. What is in
``scratch`` is not simulated or trained again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import cases
from denoise.api import load_checkpoint, train
from denoise.commands.report import runner
from denoise.config import InferSection
from denoise.inference.models import make_denoiser
from denoise.projections.angles import SplitAngles
from denoise.projections.reconstruct import reconstruct_rows
from denoise.run_folder import RunFolder
from denoise.tiles import Region
from denoise.trust.errors import error_sums
from denoise.trust.evidence import Evidence, collect
from denoise.trust.scores import scores_of
from denoise.trust.spectra import ring_sums
from denoise.trust.streaks import measure_streaks
from denoise.volumes import ArrayVolume
from phantoms import anatomy, fibres

Float32Array = NDArray[np.float32]

SIZE, TRAINED_ON, JUDGED, GROUP = 128, 28, 96, 12
OBJECTS: Mapping[str, Callable[[int, int, int], cases.Phantom]] = {
    "foam": cases.foam,
    "anatomy": anatomy,
    "fibres": fibres,
}
_SETTINGS = {"patch_size": 64, "width": 16, "n_slices": 3, "patches_per_epoch": 240, "batch_size": 8}
#: Errors of a gain that is infinite count as this many dB.
_MOST_DB = 10.0


def angles_of(ratio: float) -> NDArray[np.float64]:
    """Equal steps over half a turn."""
    count = round(ratio * SIZE)
    return np.arange(count) * (np.pi / count)


def scanned(folder: Path, name: str, dose: int, ratio: float, slices: int, seed: int) -> tuple[Float32Array, ...]:
    """Truth and both splits."""
    if not (folder / "full.npy").exists():  # written last
        folder.mkdir(parents=True, exist_ok=True)
        cases.simulate(cases.Case(name, OBJECTS[name], dose), folder, SIZE, slices, seed, (2,), ratio)
    return tuple(np.load(folder / f"{part}.npy") for part in ("truth", "k2_0", "k2_1"))


def evidence_of(root: Path, name: str, dose: int, splits: tuple[Float32Array, ...]) -> Evidence:
    """What a model of another object of this kind makes of these splits."""
    folder = root / f"model_{name}_{dose}"
    _, *training = scanned(folder, name, dose, 1.0, TRAINED_ON, 1)
    run = folder / "run"
    if not (folder / "done").exists():
        shutil.rmtree(run, ignore_errors=True)
        train(training, run, validation_fraction=0.2, max_epochs=5, patience=0, validate_every=5, **_SETTINGS)
        (folder / "done").write_text("")
    shape = splits[0].shape
    denoiser = make_denoiser(
        load_checkpoint(RunFolder(run).path), InferSection(precision="float32"), torch.device("cpu"), shape=shape
    )
    volumes = [ArrayVolume(split, name=f"split {k}") for k, split in enumerate(splits)]
    return collect(volumes, Region((0, 0, 0), shape), runner(denoiser))


def true_streaks(name: str, ratio: float) -> Float32Array:
    """Half the difference of the splits of a noise-free scan."""
    angles, phantom = angles_of(ratio), OBJECTS[name](SIZE, JUDGED, 2)
    clean = phantom.project(angles)
    one, other = (
        reconstruct_rows(np.ascontiguousarray(clean[part]), angles[part], phantom.center)
        for part in SplitAngles.of(angles, 2).indices
    )
    return np.asarray(0.5 * (one - other), np.float32)


def part_of(evidence: Evidence, rows: slice) -> Evidence:
    """Some of its slices."""

    def parts(stacks: tuple[Float32Array, ...]) -> tuple[Float32Array, ...]:
        return tuple(stack[rows] for stack in stacks)

    response = None if evidence.response is None else evidence.response[rows]
    return Evidence(
        *map(parts, (evidence.splits, evidence.views, evidence.others, evidence.outputs)),
        evidence.delivered[rows],
        evidence.probe[rows],
        response,
        evidence.mask,
    )


def judged(root: Path, name: str, dose: int, ratio: float) -> str:
    """A row of the table."""
    truth, *splits = scanned(root / f"{name}_{dose}_{ratio:g}", name, dose, ratio, JUDGED, 2)
    whole, streaks = evidence_of(root, name, dose, tuple(splits)), true_streaks(name, ratio)
    mask = whole.mask

    def power(stack: Float32Array) -> float:
        return float(np.square(stack[:, mask].astype(np.float64)).mean())

    plain, corrected, inside, rows = [], [], [0, 0, 0], []
    for start in range(0, JUDGED, GROUP):
        chosen = slice(start, start + GROUP)
        evidence = part_of(whole, chosen)
        noise, error = power(evidence.full - truth[chosen]), power(evidence.delivered - truth[chosen])
        true, hidden = 10 * np.log10(noise / error), power(streaks[chosen])
        errors, rings = error_sums(evidence), ring_sums(evidence)
        facts = measure_streaks(evidence, rings, SplitAngles.of(angles_of(ratio), 2))
        before, after = scores_of(evidence, errors, rings).gain, scores_of(evidence, errors, rings, facts).gain
        plain.append(np.clip(before.value - true, -_MOST_DB, _MOST_DB))
        corrected.append(np.clip(after.value - true, -_MOST_DB, _MOST_DB))
        inside[0] += before.low <= true <= before.high
        inside[1] += after.low <= true <= after.high
        inside[2] += abs(facts.power - hidden) <= facts.uncertainty
        rows.append((true, hidden / error, facts.power / error, facts.uncertainty / error, facts.coefficient))

    def off(values: list[float]) -> str:
        return f"{np.mean(values):+.2f}, {np.sqrt(np.mean(np.square(values))):.2f}"

    true, hidden, found, uncertainty, coefficient = np.mean(rows, axis=0)
    return (
        f"| {name} | {dose} | {ratio:g} | {true:.2f} | {off(plain)} | {off(corrected)} | {inside[0]}, {inside[1]} "
        f"| {hidden:.2f} | {found:.2f} ± {uncertainty:.2f} | {inside[2]} | {coefficient:.1f} |"
    )


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--objects", default="foam")
    parser.add_argument("--doses", default="200,1600")
    parser.add_argument("--ratios", default="0.75,1,1.5")
    options = parser.parse_args()
    print(
        "| object | photons | angles / column | true gain, dB | uncorrected: mean, RMS error | corrected "
        "| inside | D / error | found | inside | b |"
    )
    for name in options.objects.split(","):
        for ratio in map(float, options.ratios.split(",")):
            for dose in map(int, options.doses.split(",")):
                print(judged(options.folder / "streaks", name, dose, ratio), flush=True)


if __name__ == "__main__":
    main()
