"""``denoise report``: judges a model on slices that it was not trained on; says the verdict, writes it down.

``report.json`` holds all numbers, ``report.html`` shows them with pictures.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from denoise.api import load_checkpoint
from denoise.archive import software_versions
from denoise.checkpoint import Checkpoint
from denoise.commands.display import say, say_device
from denoise.commands.inputs import given_normalization, made_by, open_splits, require_not_an_input, scan_angles
from denoise.config import RunConfig, load_config, render
from denoise.config.recipes import RECIPES
from denoise.errors import CheckpointError, OutputError, VolumeError
from denoise.files import require_free, write_text
from denoise.inference.engine import Denoiser, denoise_slices
from denoise.inference.models import make_denoiser
from denoise.launch import Compute, describe_device
from denoise.modes import MODES, mode_of
from denoise.normalization import Moments, Normalization
from denoise.patches.holdout import HoldOut
from denoise.readable import counted
from denoise.report.images import CROP, Trial, centred, data_uri, pictures_of, window_of
from denoise.report.page import render_page
from denoise.run_folder import CRITERIA, RunFolder, find_model
from denoise.tiles import Region, TileGrid
from denoise.training.observers import read_history
from denoise.training.part import training_slices
from denoise.trust.before import check_splits, judge_full, judge_scale
from denoise.trust.evidence import FEWEST, Evidence, Frame, Run, collect
from denoise.trust.report import FORMAT, FORMAT_VERSION, Report
from denoise.trust.seams import shifted, tile_borders
from denoise.trust.verdict import Verdict, finite
from denoise.volumes import SplitSet, Volume, mean_of, open_volume, require_same_grid
from denoise.volumes.volume import Float32Array, describe_numbers

_log = logging.getLogger(__name__)

#: Of the held-out part so many voxels are judged: eight arrays of 64 MB, and the estimates are sharp long before.
_MOST_VOXELS = 16_000_000
#: Slices of every input whose hash identifies it; hashing all of a large volume takes longer than the report.
_HASHED_SLICES = 3
_CITE = (
    "Hendriksen, Pelt, Batenburg 2020, Noise2Inverse, IEEE TCI 6:1320, doi 10.1109/TCI.2020.3019647 (the method)",
    "Marcos-Morales et al. 2023, arXiv 2210.05553 (error without ground truth, one view)",
    "Stein 1981, Ann. Stat. 9:1135, doi 10.1214/aos/1176345632; Ramani, Blu, Unser 2008, IEEE TIP 17:1540, doi "
    "10.1109/TIP.2008.2001404 (error without ground truth, delivered image)",
    "Saxton, Baumeister 1982, J. Microsc. 127:127 (Fourier ring correlation)",
)


@dataclass(frozen=True)
class Request:
    """What the user chose on the command line."""

    criterion: str = "val"
    model: Path | None = None
    output: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Judgement:
    """A report, what it rests on, and where it was written."""

    report: Report
    evidence: Evidence
    region: Region
    where: str
    """Which slices those are, and how it is known that the model has not seen them."""
    path: Path

    @property
    def page(self) -> Path:
        """The same for people."""
        return self.path.with_suffix(".html")


def report(config: RunConfig, compute: Compute, request: Request) -> Judgement:
    """As ``write_report``; says headline, verdict and what was written."""
    judgement = write_report(config, compute, request)
    for sentence in judgement.report.headline:
        say(sentence)
    say(f"Judged on {judgement.where}.")
    say(str(judgement.page))
    say(str(judgement.path))
    return judgement


def write_report(config: RunConfig, compute: Compute, request: Request) -> Judgement:
    """Judge the model, and write ``report.json`` and ``report.html`` into the folder.

    Raises
    ------
    DenoiseError
        Model or splits cannot be used; the held-out part is too small; one of the files is there already.
    """
    begun = time.monotonic()
    model_path = request.model or config.output_dir
    checkpoint = load_checkpoint(model_path, request.criterion)
    name = f"{config.sample_name}_report_{made_by(checkpoint, model_path, request.criterion)}"
    folder = request.output or config.dataset.folder / name
    require_not_an_input(str(folder), config, may_hold=True)
    path = folder / "report.json"
    for written in (path, path.with_suffix(".html")):
        require_free(written, overwrite=request.overwrite)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; --output takes the folder for the report")
    splits = open_splits(config)
    if config.infer.input == "full" and config.full_path is not None:
        require_same_grid(splits.volumes[0], open_volume(config.full_path), "split 0", "the full reconstruction")
    model_file = find_model(model_path, request.criterion)
    run = RunFolder(model_path if model_path.is_dir() else model_path.parent)
    region, where = held_out_region(config, checkpoint, splits, run)
    angles = scan_angles(config)
    device = compute.devices()[0]
    say_device([device], compute.device == "cpu")
    denoiser = _denoiser(config, checkpoint, splits, device)
    depth, rows, columns = region.shape_zyx
    _log.info("judging %s of %d x %d, five times each", counted(depth, "slice"), rows, columns)
    evidence = collect(
        splits.volumes, region, runner(denoiser), strategy=checkpoint.strategy, delivers=config.infer.input
    )
    size = splits.volumes[0].voxel_size_um
    _, first_row, first_column = region.start_zyx
    numbers = splits.volumes[0].slice_numbers
    judged = Report.of(
        evidence,
        frame=Frame.of(region, numbers),
        borders=shifted(tile_borders(TileGrid(splits.shape, denoiser.window)), first_row, first_column),
        history=read_history(run.history),
        inputs=_inputs(config, splits, evidence, region, denoiser.normalization),
        angles=angles,
        voxel_size_um=None if size is None else size[2],
    )
    low, high = region.start_zyx[0], region.stop_zyx[0] - 1
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "sample": config.sample_name,
        **judged.as_plain(),
        "held_out": {
            "slices": [numbers[low], numbers[high]],
            "rows": None if region.shape_zyx[1] == splits.shape[1] else [first_row, region.stop_zyx[1] - 1],
            "start_zyx": list(region.start_zyx),
            "shape_zyx": list(region.shape_zyx),
            "why": where,
        },
        "provenance": {
            **_provenance(config, checkpoint, model_file, splits, run),
            "device": describe_device(device),
            "seconds": round(time.monotonic() - begun, 1),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }
    slices = f"slice{'s' if high > low else ''} {describe_numbers(numbers[low : high + 1])}"
    if region.shape_zyx[1] < splits.shape[1]:
        slices = f"rows {first_row}..{region.stop_zyx[1] - 1} of {slices}"
    judgement = Judgement(judged, evidence, region, f"{slices} ({where})", path)
    folder.mkdir(parents=True, exist_ok=True)
    content = _known(content)
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    pictures = pictures_of(
        evidence,
        slice_numbers=numbers[low : high + 1],
        first_row=region.start_zyx[1],
        first_column=region.start_zyx[2],
    )
    middle = region.start_zyx[0] + evidence.shape[0] // 2

    def middle_slice(other: Checkpoint) -> Float32Array:
        run_other = runner(_denoiser(config, other, splits, device))
        return np.asarray(run_other(mean_of(splits.volumes), range(middle, middle + 1))[0][region.slices[1:]])

    trials = _trials(run, model_file, evidence, middle_slice)
    write_text(judgement.page, render_page(content, pictures, trials))
    return judgement


def _known(value: Any) -> Any:
    """With null for every number that is none: splits with NaN, which training fills, leave some untold."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_known(item) for item in value]
    return finite(value) if isinstance(value, float) else value


def _denoiser(config: RunConfig, checkpoint: Checkpoint, splits: SplitSet, device: torch.device) -> Denoiser:
    return make_denoiser(
        checkpoint,
        # Half precision would round away how the image answers to a small change of its input.
        config.infer.model_copy(update={"precision": "float32"}),
        device,
        shape=splits.shape,
        normalization=given_normalization(config),
        patch_size=config.given_patch(mode_of(checkpoint.network).name) or RECIPES[checkpoint.network.name].patch_size,
        fill_non_finite=config.dataset.non_finite == "fill",
    )


def _trials(
    run: RunFolder, model: Path, evidence: Evidence, denoised: Callable[[Checkpoint], Float32Array]
) -> list[Trial]:
    """The middle of the middle held-out slice by each model of the run; none where there is one model only.

    Parameters
    ----------
    model
        The one that is judged.
    denoised
        What a model makes of that slice.
    """
    there = [criterion for criterion in CRITERIA if run.model(criterion).is_file()]
    if len(there) < 2:
        return []
    crop = tuple(centred(n, CROP) for n in evidence.shape[1:])
    window = window_of(evidence)
    trials = [Trial("before", data_uri(evidence.full[evidence.shape[0] // 2][crop], window))]
    for criterion in there:
        try:
            checkpoint = load_checkpoint(run.path, criterion)
        except CheckpointError as error:
            _log.warning("left out of the comparison of models: %s", error)
            continue
        said = f"{criterion}, epoch {checkpoint.epoch}"
        said += " (judged here)" if run.model(criterion).samefile(model) else ""
        trials.append(Trial(said, data_uri(denoised(checkpoint)[crop], window)))
    return trials


def runner(denoiser: Denoiser, budget: int | None = None) -> Run:
    """A model as the function that evidence is collected with.

    Parameters
    ----------
    budget
        Host memory that slabs may take, in bytes; None: as much as is fastest.
    """
    denoiser = denoiser.prepared()

    def run(volume: Volume, z_range: range) -> Float32Array:
        result = np.empty((len(z_range), *volume.shape[1:]), np.float32)

        def keep(start: int, slab: Float32Array) -> None:
            result[start : start + len(slab)] = slab

        denoise_slices([volume], denoiser, z_range, keep, budget=budget)
        return result

    return run


def held_out_region(config: RunConfig, checkpoint: Checkpoint, splits: SplitSet, run: RunFolder) -> tuple[Region, str]:
    """What the model was not trained on, cut to a size that is enough, and how that is known.

    Raises
    ------
    VolumeError
        Nothing that is large enough was held out.
    """
    if checkpoint.seen.runs:
        region, where = checkpoint.seen.unseen(splits)
    else:
        region, where = _held_out_by_config(config, checkpoint, splits, run)
    depth, rows, columns = region.shape_zyx
    if min(rows, columns) < FEWEST:
        raise VolumeError(
            f"only {rows} x {columns} voxels were held out of each slice, fewer than the {FEWEST} x {FEWEST} "
            "that a report needs; train with a larger train.validation_fraction, or on more slices"
        )
    kept = max(1, min(depth, _MOST_VOXELS // (rows * columns)))
    start = region.start_zyx[0] + (depth - kept) // 2
    return replace(region, start_zyx=(start, *region.start_zyx[1:]), shape_zyx=(kept, rows, columns)), where


def _held_out_by_config(
    config: RunConfig, checkpoint: Checkpoint, splits: SplitSet, run: RunFolder
) -> tuple[Region, str]:
    """What a model that does not say what it has seen did not see, if its config is true and this is its scan."""
    trained = load_config(run.config) if run.config.is_file() else config
    chosen = training_slices(trained, splits)
    patch = checkpoint.patch_size or trained.patch
    window = MODES[mode_of(checkpoint.network).name].window(checkpoint.network, patch, 0.0, "uniform")
    region = HoldOut.of(splits.shape, window, trained.train.validation_fraction, chosen).held_out
    of = "this config" if trained is config else "the config beside the model"
    return region, f"held out in training, if {of} was its own; the model does not say what it was trained on"


def _inputs(
    config: RunConfig, splits: SplitSet, evidence: Evidence, region: Region, normalization: Normalization
) -> Verdict:
    """What speaks against the splits, for this model, or against the full reconstruction being their mean."""
    checked = check_splits(splits.volumes, training_slices(config, splits))
    middle = evidence.shape[0] // 2
    scale = judge_scale(normalization, Moments.of(evidence.splits[0][middle][evidence.mask]))
    found = Verdict.of((*checked.findings, scale))
    if config.infer.input != "full" or config.full_path is None:
        return found
    z = region.start_zyx[0] + middle
    full = open_volume(config.full_path).read(
        replace(region, start_zyx=(z, *region.start_zyx[1:]), shape_zyx=(1, *region.shape_zyx[1:]))
    )
    noise = float(evidence.probe[middle].std(dtype=np.float64))
    return Verdict.of((*found.findings, judge_full(full, evidence.full[middle : middle + 1], noise, evidence.mask)))


def _provenance(
    config: RunConfig, checkpoint: Checkpoint, model: Path, splits: SplitSet, run: RunFolder
) -> dict[str, Any]:
    minutes = load_config(run.config).train.max_minutes if run.config.is_file() else None
    asked = "" if minutes is None or minutes == config.train.max_minutes else f" --max-minutes {minutes:g}"
    return {
        "inputs": [_identified(volume) for volume in splits.volumes],
        "model": {
            "path": str(model),
            "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
            "network": checkpoint.network.name,
            "options": dict(checkpoint.network.options),
            "criterion": checkpoint.criterion,
            "epoch": checkpoint.epoch,
            "step": checkpoint.step,
            "created": checkpoint.created,
            "trained_with": dict(checkpoint.versions),
        },
        "software": software_versions(),
        "seed": config.train.seed,
        "config": render(config),
        "config_sha256": hashlib.sha256(render(config).encode()).hexdigest(),
        "repeat": [
            "denoise check --config CONFIG --data",
            f"denoise train --config CONFIG{asked}",
            f"denoise report --config CONFIG --model {shlex.quote(str(model))}",
            f"denoise volume --config CONFIG --model {shlex.quote(str(model))}",
        ],
        "cite": list(_CITE),
    }


def _identified(volume: Volume) -> dict[str, Any]:
    """Name, shape, and a hash of some slices in their stored type, little-endian, in this order."""
    depth = volume.shape[0]
    chosen = sorted({round(i * (depth - 1) / max(_HASHED_SLICES - 1, 1)) for i in range(_HASHED_SLICES)})
    found = hashlib.sha256()
    for z in chosen:
        stored = volume.read_stored(Region.of_slices(z, z + 1, volume.shape))
        found.update(np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("<")).tobytes())
    return {
        "path": volume.name,
        "shape_zyx": list(volume.shape),
        "dtype": volume.dtype.name,
        "slices_hashed": [volume.slice_numbers[z] for z in chosen],
        "sha256": found.hexdigest(),
    }
