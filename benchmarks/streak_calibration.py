"""Is the error of a result estimated rightly where the splits have few angles, and streaks of their own?

    python benchmarks/streak_calibration.py --folder scratch [--objects foam,... --doses 200,1600 --ratios 0.75,1,1.5,3]

Objects of 32 x 128 x 128 voxels are scanned with so many angles for each column in the whole scan, and half of them in
each split. A small network is trained for 150 steps on two thirds of the slices, and judged on the others: as if there
were no streaks, with the correction of ``denoise.trust.streaks``, and against the truth (the reconstruction of
noise-free projections at all angles), on the same voxels. What is in ``scratch`` is not simulated or trained again.
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
from denoise.api import load_checkpoint, make_denoiser, train
from denoise.checkpoint import RunFolder
from denoise.commands.report import runner
from denoise.config import InferSection
from denoise.modes import mode_of
from denoise.patches.holdout import HoldOut
from denoise.projections.reconstruct import reconstruct_rows, split_indices
from denoise.trust.errors import error_sums
from denoise.trust.evidence import Evidence, collect
from denoise.trust.scores import Interval, scores_of
from denoise.trust.spectra import ring_sums
from denoise.trust.streaks import measure_streaks
from denoise.volumes import ArrayVolume
from phantoms import anatomy, fibres

Float32Array = NDArray[np.float32]

SLICES, SIZE, HELD_OUT = 32, 128, 0.34
OBJECTS: Mapping[str, Callable[[int, int, int], cases.Phantom]] = {
    "foam": cases.foam,
    "anatomy": anatomy,
    "fibres": fibres,
}
_SETTINGS = {"patch_size": 64, "width": 16, "n_slices": 3, "patches_per_epoch": 240, "batch_size": 8}


def angles_of(ratio: float) -> NDArray[np.float64]:
    """Equal steps over half a turn."""
    count = round(ratio * SIZE)
    return np.arange(count) * (np.pi / count)


def scanned(folder: Path, name: str, dose: int, ratio: float) -> tuple[Float32Array, ...]:
    """Truth and both splits."""
    if not (folder / "full.npy").exists():  # written last
        folder.mkdir(parents=True, exist_ok=True)
        cases.simulate(cases.Case(name, OBJECTS[name], dose), folder, SIZE, SLICES, 1, (2,), ratio)
    return tuple(np.load(folder / f"{part}.npy") for part in ("truth", "k2_0", "k2_1"))


def evidence_of(folder: Path, splits: tuple[Float32Array, ...]) -> tuple[Evidence, slice]:
    """What a model of these splits makes of the slices that it was not trained on, and which these are."""
    run = folder / "run"
    if not (folder / "done").exists():
        shutil.rmtree(run, ignore_errors=True)
        train(splits, run, validation_fraction=HELD_OUT, max_epochs=5, patience=0, validate_every=5, **_SETTINGS)
        (folder / "done").write_text("")
    checkpoint = load_checkpoint(RunFolder(run).path)
    assert checkpoint.patch_size is not None
    shape = (SLICES, SIZE, SIZE)
    denoiser = make_denoiser(checkpoint, InferSection(precision="float32"), torch.device("cpu"), shape=shape)
    window = mode_of(checkpoint.network).window(checkpoint.network, checkpoint.patch_size, 0.0, "uniform")
    region = HoldOut.of(shape, window, HELD_OUT).held_out
    volumes = [ArrayVolume(split, name=f"split {k}") for k, split in enumerate(splits)]
    return collect(volumes, region, runner(denoiser)), region.slices[0]


def true_streaks(name: str, ratio: float, chosen: slice) -> Float32Array:
    """Half the difference of the splits of a noise-free scan."""
    angles, phantom = angles_of(ratio), OBJECTS[name](SIZE, SLICES, 1)
    clean = phantom.project(angles)[:, chosen]
    one, other = (
        reconstruct_rows(np.ascontiguousarray(clean[part]), angles[part], phantom.center)
        for part in split_indices(angles.size, 2)
    )
    return np.asarray(0.5 * (one - other), np.float32)


def judged(folder: Path, name: str, dose: int, ratio: float) -> str:
    """A row of the table."""
    truth, *splits = scanned(folder, name, dose, ratio)
    evidence, chosen = evidence_of(folder, tuple(splits))
    mask = evidence.mask

    def power(stack: Float32Array) -> float:
        return float(np.square(stack[:, mask].astype(np.float64)).mean())

    noise, error = power(evidence.full - truth[chosen]), power(evidence.delivered - truth[chosen])
    errors, rings = error_sums(evidence), ring_sums(evidence)
    streaks = measure_streaks(evidence, rings, angles_of(ratio))
    plain = scores_of(evidence, errors, rings).gain
    corrected = scores_of(evidence, errors, rings, streaks).gain
    true = 10 * np.log10(noise / error)

    def said(gain: Interval) -> str:
        inside = "" if gain.low <= true <= gain.high else " *"
        return f"{gain.value:.2f} ({gain.low:.2f} to {gain.high:.2f}){inside}"

    per_mille = 1000 / noise
    return (
        f"| {name} | {dose} | {ratio:g} | {true:.2f} | {said(plain)} | {said(corrected)} "
        f"| {per_mille * power(true_streaks(name, ratio, chosen)):.2f} "
        f"| {per_mille * streaks.power:.2f} ± {per_mille * streaks.uncertainty:.2f} "
        f"| {streaks.coefficient:.2f} ± {streaks.coefficient_error:.2f} |"
    )


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--objects", default="foam")
    parser.add_argument("--doses", default="200,1600")
    parser.add_argument("--ratios", default="0.75,1,1.5,3")
    options = parser.parse_args()
    print(
        "| object | photons | angles / column | true gain, dB | uncorrected | corrected | streaks, 1/1000 | found | b |"
    )
    for name in options.objects.split(","):
        for ratio in map(float, options.ratios.split(",")):
            for dose in map(int, options.doses.split(",")):
                folder = options.folder / "streaks" / f"{name}_{dose}_{ratio:g}"
                print(judged(folder, name, dose, ratio), flush=True)


if __name__ == "__main__":
    main()
