"""``denoise check``: what it says, and that it writes nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import psutil
import pytest
import tifffile
import torch
import zarr

from denoise.commands.calibration import _Clock
from denoise.errors import VolumeError
from denoise.inference import run
from denoise.inference.engine import Denoiser, weights_bytes
from denoise.inference.reader import layer_bytes
from denoise.inference.slabs import plan_slabs
from denoise.memory import denoising_bytes
from denoise.tiles import TileGrid
from denoise.volumes import open_volume
from denoise.volumes.slice_pool import waiting_bytes

if TYPE_CHECKING:
    from tiny_dataset import Dataset, Outcome, Tools

pytest_plugins = ("tiny_dataset",)


def facts(outcome: Outcome) -> dict[str, str]:
    """The lines, by their first words."""
    assert outcome.code == 0, outcome.err
    pairs = (line.split("  ", 1) for line in outcome.out.splitlines())
    return {name: text.strip() for name, text in pairs}


def test_it_says_what_would_run_with_numbers_and_writes_nothing(
    dataset: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    before = tools.fingerprint(dataset.folder)
    said = facts(denoise("check", "--config", dataset.config, "--device", "cpu"))
    assert tools.fingerprint(dataset.folder) == before
    assert said["device"].startswith("CPU")
    for name, folder in (("split 0", "even"), ("split 1", "odd"), ("full", "whole")):
        assert str(dataset.folder / folder) in said[name]
        assert "12 x 48 x 48 float32, voxels of 1.3 x 1.3 x 1.3 um, slices 0..11" in said[name]
    assert said["mode"].startswith("2.5d; residual2d")
    assert said["patches"].startswith("3 x 16 x 16 voxels")
    assert "of 4 patches" in said["steps"]
    assert said["held out"].startswith("slices")
    assert "0.22 MB, in memory" in said["training data"]
    assert said["models"] == f"{dataset.run} (no model yet)"
    # Two tiles that overlap by a quarter of 32 cover 48 voxels evenly: (48 + 8) / 2 = 28; one layer per slice.
    assert said["tiles"].startswith("48 of 3 x 28 x 28 voxels, each voxel is predicted 1.36 times")
    assert "GB" in said["memory"] or "MB" in said["memory"]
    assert "0.11 MB as float32" in said["disk"]


@pytest.mark.parametrize("folder", ["odd", "whole"])
def test_a_slice_that_is_not_like_the_others_is_found_before_the_queue(
    dataset: Dataset, denoise: Callable[..., Outcome], folder: str
) -> None:
    slices = sorted((dataset.folder / folder).glob("*.tif"))
    tifffile.imwrite(slices[5], np.zeros((7, 9), np.float32))
    said = denoise("check", "--config", dataset.config)
    assert slices[5].name in said.error
    assert "(7, 9)" in said.error


def test_too_few_held_out_rows_for_a_report_are_said_before_training(
    dataset: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    assert "report" not in facts(denoise("check", "--config", dataset.config))["held out"]
    for name, values in zip(("a", "b"), tools.images((2, 48, 48)), strict=False):
        tools.write(dataset.folder / name, values)
    config = dataset.configured("[even, odd]", "[a, b]")
    config.write_text(
        config.read_text().replace("full: whole", "full: null").replace("infer: {", "infer: {input: splits, ")
    )
    assert "`denoise report` needs 16" in facts(denoise("check", "--config", config))["held out"]


def test_rows_that_are_held_out_are_named_where_a_range_of_slices_is_trained_on(
    dataset: Dataset, denoise: Callable[..., Outcome]
) -> None:
    ranged = "  sample: foam\n  train_start_slice: 5\n  train_end_slice: 6\n"
    config = dataset.configured("  sample: foam\n", ranged)
    assert re.match(r"rows \d+\.\.\d+, counted from 0", facts(denoise("check", "--config", config))["held out"])


def test_more_memory_than_is_free_is_said(
    dataset: Dataset, denoise: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert facts(denoise("check", "--config", dataset.config))["host memory"].endswith("data included")
    monkeypatch.setattr("denoise.commands.check.available_bytes", lambda: 10**8)
    said = facts(denoise("check", "--config", dataset.config))["host memory"]
    assert said.endswith(": more than the 0.10 GB that are free")


def test_so_many_versions_of_a_tile_are_said_as_are_computed(dataset: Dataset, denoise: Callable[..., Outcome]) -> None:
    config = dataset.configured("infer: {", "infer: {tta: 8, ")
    assert facts(denoise("check", "--config", config))["tiles"].endswith("1.36 times, in 8 versions")
    config.write_text(config.read_text().replace("train: {", "train: {symmetric: true, "))
    assert facts(denoise("check", "--config", config))["tiles"].endswith("1.36 times, in 4 versions"), "shifted ones"
    config.write_text(config.read_text().replace("width: 16", "width: 8"))
    assert facts(denoise("check", "--config", config))["tiles"].endswith("in 8 versions"), "too narrow for it"


def test_only_the_slices_to_train_on_are_tested(
    dataset: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    for name, values in zip(("even", "odd"), tools.images(), strict=False):
        shutil.rmtree(dataset.folder / name)
        tools.write(
            dataset.folder / name, np.where(np.arange(12)[:, None, None] < 3, np.nan, values).astype(np.float32)
        )
    said = denoise("check", "--config", dataset.config, "--data")
    assert "NaN" in said.out
    assert "training stops at NaN" in said.error
    filled = dataset.configured("  sample: foam\n", "  sample: foam\n  non_finite: fill\n")
    assert denoise("check", "--config", filled, "--data").code == 0
    config = dataset.configured("  sample: foam\n", "  sample: foam\n  train_start_slice: 3\n")
    assert "NaN" not in denoise("check", "--config", config, "--data").out


def test_the_tests_of_the_splits_keep_to_the_memory_that_is_allowed(
    dataset: Dataset, denoise: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("check", "--config", dataset.config, "--data", "--max-memory", "16G")
    assert denoise(*arguments).code == 0
    monkeypatch.setattr("denoise.trust.splits._BYTES", 17 * 10**9)
    error = denoise(*arguments).error
    assert re.match(r"testing the splits takes about 1[78]\.\d\d GB of memory, and 17\.18 GB are allowed", error), error
    assert denoise(*(a for a in arguments if a != "--data")).code == 0


def test_what_testing_the_splits_takes_counts_where_it_is_more_than_training(
    dataset: Dataset, denoise: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoise.trust.before.available_bytes", lambda: 10**10)
    for needed, said in ((2 * 10**9, "about 2.28 GB"), (6 * 10**9, "about 0.")):  # the latter is not tested
        monkeypatch.setattr("denoise.trust.splits._BYTES", needed)
        assert facts(denoise("check", "--config", dataset.config, "--device", "cpu"))["host memory"].startswith(said)


def test_it_says_how_much_of_the_splits_is_in_memory_where_not_all_fits(
    dataset: Dataset, denoise: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = facts(denoise("check", "--config", dataset.config, "--device", "cpu"))
    assert whole["host memory"].startswith("about 0.4")
    real = psutil.virtual_memory()
    monkeypatch.setattr("psutil.virtual_memory", lambda: real._replace(available=360_000))
    said = facts(denoise("check", "--config", dataset.config, "--device", "cpu"))["training data"]
    assert re.match(r"0\.[12]\d MB: \d of \d+ slabs of \d x \d+ x 48 voxels in memory, .* \(0\.36 MB free\)", said)


@pytest.mark.parametrize(
    ("free", "allowed", "kept"),
    [(10, None, True), (8, None, False), (100, "2600M", True), (100, "1400M", False), (1, "2600M", True)],
)
@pytest.mark.parametrize("suffix", ["h5", "zarr"])
def test_what_it_predicts_for_chunks_that_are_many_slices_deep_is_what_volume_does(
    trained: Dataset,
    denoise: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    free: int,
    allowed: str | None,
    kept: bool,
) -> None:
    shape, layer = (128, 2048, 2048), 4 * 64 * 2048**2  # no chunk is there: the file is small
    path = tmp_path / f"whole.{suffix}"
    if suffix == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("data", shape, np.float32, chunks=(64, 64, 64))
    else:
        zarr.create_array(path, shape=shape, chunks=(64, 64, 64), dtype=np.float32)
    splits, full = "  splits: [even, odd]   # angles 0, 2, 4, ... and 1, 3, 5, ...\n", f"full: {path}"
    config = tmp_path / "foam.yaml"
    config.write_text(trained.config.read_text().replace(splits, "").replace("full: whole", full))
    real = psutil.virtual_memory()
    monkeypatch.setattr("psutil.virtual_memory", lambda: real._replace(available=free * 10**9))
    monkeypatch.setattr("denoise.commands.check.gigabytes", str)  # to the last byte
    limit = [] if allowed is None else ["--max-memory", allowed]
    said = facts(denoise("check", "--config", config, "--device", "cpu", *limit))

    told: dict[str, Any] = {}

    def ended(inputs: object, denoiser: Denoiser, *_: object, **options: Any) -> None:
        told.update(options, denoiser=denoiser)
        raise VolumeError("seen enough")

    monkeypatch.setattr(run, "denoise_slices", ended)
    # A process that takes what such processes, and this network, are known to take.
    count = int(said["mode"].split("; ")[-1].removesuffix(" weights").replace(",", ""))
    process = denoising_bytes("cpu", 1) + weights_bytes(count, torch.float32)
    monkeypatch.setattr(run, "process_bytes", lambda: process - run.FIRST_BATCH_BYTES)
    outcome = denoise("volume", "--config", config, "--model", trained.run, "--output", tmp_path / "out", *limit)
    assert "seen enough" in outcome.err

    batch = told["denoiser"].batch_bytes
    slabs = plan_slabs(TileGrid(shape, told["denoiser"].window), 1, told["budget"]).n_bytes
    layers = layer_bytes(open_volume(path), told["largest_layer"])
    besides = process + waiting_bytes(4 * 2048**2) + batch
    assert batch > 0
    assert said["memory"].startswith(f"about {slabs + layers + besides} for")
    assert layers == (layer if kept else 0)
    assert said["stored layers"].startswith(f"64 slices each, {layer if kept else 'decoded again'}")


def test_it_names_the_models_that_are_there(trained: Dataset, denoise: Callable[..., Outcome]) -> None:
    said = facts(denoise("check", "--config", trained.config))
    assert said["models"] == f"{trained.run} (holds best_val_model.pth, best_lcl_model.pth, best_edge_model.pth)"


def test_the_mode_can_be_tried_out(trained: Dataset, denoise: Callable[..., Outcome]) -> None:
    config = trained.config
    assert facts(denoise("check", "--config", config, "--mode", "3d"))["mode"].startswith("3d; residual3d")


def test_a_config_for_inference_alone_and_one_for_training_alone_are_fine(
    dataset: Dataset, denoise: Callable[..., Outcome]
) -> None:
    no_splits = dataset.configured("  splits: [even, odd]   # angles 0, 2, 4, ... and 1, 3, 5, ...\n", "")
    said = facts(denoise("check", "--config", no_splits))
    assert "tiles" in said
    assert "patches" not in said
    no_full = dataset.configured("  full: whole\n", "")
    said = facts(denoise("check", "--config", no_full))
    assert "patches" in said
    assert "tiles" not in said
    no_full.write_text(no_full.read_text().replace("infer: {", "infer: {input: splits, "))
    assert "tiles" in facts(denoise("check", "--config", no_full))


def test_a_full_reconstruction_that_does_not_fit_the_splits_is_an_error(
    dataset: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    shutil.rmtree(dataset.folder / "whole")
    tools.write(dataset.folder / "whole", tools.images((12, 40, 48))[0])
    error = denoise("check", "--config", dataset.config).error
    assert "(12, 40, 48)" in error
    assert "(12, 48, 48)" in error


@pytest.mark.parametrize(
    ("verb", "old", "new"),
    [
        ("volume", "full: whole", "full: gone"),
        ("train", "[even, odd]", "[even, gone]"),
        ("train", "sample: foam", "sample: foam\n  train_start_slice: 40"),
        ("train", "sample: foam", "sample: foam\n  train_start_slice: 4\n  train_end_slice: 13"),
        ("train", "infer: {", "infer: {batch_size: 0, "),
    ],
)
def test_it_fails_with_the_message_of_the_run_that_would_fail(
    finished: Dataset, denoise: Callable[..., Outcome], verb: str, old: str, new: str
) -> None:
    config = finished.configured(old, new)
    if verb == "train":
        shutil.rmtree(finished.run)
        checked, tried = (denoise(each, "--config", config) for each in ("check", verb))
    else:
        checked, tried = (
            denoise("check", "--config", config),
            denoise(verb, "--config", config, "--model", finished.run),
        )
    assert checked.err == tried.err
    assert checked.code == tried.code == 2


def test_a_users_config_in_the_folder_of_the_run_is_told_by_check_too(
    dataset: Dataset, denoise: Callable[..., Outcome]
) -> None:
    dataset.run.mkdir()
    (dataset.run / "config.yaml").write_text("mine")
    errors = [denoise(verb, "--config", dataset.config).error for verb in ("check", "train")]
    assert errors[0] == errors[1]
    assert str(dataset.run / "config.yaml") in errors[0]


def test_a_calibration_says_how_long_and_how_large_runs_will_be_and_writes_nothing(
    dataset: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    before = tools.fingerprint(dataset.folder)
    said = facts(denoise("check", "--config", dataset.config, "--device", "cpu", "--calibrate"))
    assert tools.fingerprint(dataset.folder) == before
    assert re.search(r"ms a step, .* an epoch, at most", said["training time"])
    assert re.match(r"\S+ s, unless files are slower", said["volume time"])
    for name in ("training memory", "volume memory"):
        # A process with torch in it takes some hundred megabytes, and these data nearly nothing.
        assert 0.15 < float(said[name].split()[0]) < 2.0, said[name]


@pytest.mark.parametrize("steps", [1, 2, 40])
def test_a_step_is_timed_however_few_there_are(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large network on a slow machine makes one step in the time that a calibration may take."""
    now = [0.0]
    monkeypatch.setattr("denoise.commands.calibration.time.monotonic", lambda: now[0])
    clock = _Clock()
    clock.started(None)  # type: ignore[arg-type]
    for step in range(1, steps + 1):
        now[0] += 20.0
        clock.stepped(step, 1, 0.0, None)
    assert clock.seconds_per_step == pytest.approx(20)
