"""``denoise report`` and ``denoise check --data``: what they say, write and refuse."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from denoise.checkpoint import Checkpoint
from denoise.seen import AllSeen

if TYPE_CHECKING:
    from tiny_dataset import Dataset, Outcome, Tools

pytest_plugins = ("tiny_dataset",)


def test_check_reads_the_data_only_when_asked_and_writes_nothing(
    dataset: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    before = tools.fingerprint(dataset.folder)
    plain = denoise("check", "--config", dataset.config, "--device", "cpu")
    asked = denoise("check", "--config", dataset.config, "--device", "cpu", "--data")
    assert tools.fingerprint(dataset.folder) == before
    assert "verdict" not in plain.out
    facts, found = asked.out.split("\n\n")
    assert len(facts.splitlines()) == len(plain.out.splitlines())
    lines = found.splitlines()
    assert lines[-1] == "verdict: fine"
    assert any(line.startswith("fine") and "noise_independent" in line and "(at most 0.05)" in line for line in lines)


def test_check_says_why_splits_are_not_valid(dataset: Dataset, denoise: Callable[..., Outcome], tools: Tools) -> None:
    shutil.rmtree(dataset.folder / "odd")
    tools.write(dataset.folder / "odd", np.roll(tools.images()[1], 3, axis=1))
    said = denoise("check", "--config", dataset.config, "--data")
    assert said.code == 0
    assert "NOT VALID" in said.out
    assert "shifted by" in said.out
    assert said.out.splitlines()[-1] == "verdict: not valid"


def test_check_of_data_needs_splits(dataset: Dataset, denoise: Callable[..., Outcome]) -> None:
    config = dataset.configured("  splits: [even, odd]   # angles 0, 2, 4, ... and 1, 3, 5, ...\n", "")
    assert "dataset.splits" in denoise("check", "--config", config, "--data").error


@pytest.fixture(scope="module")
def reported(trained_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A report's content. Made once, from Python, beside the shared dataset."""
    from denoise.commands.report import Request, report
    from denoise.config import load_config
    from denoise.launch import Compute

    folder = tmp_path_factory.mktemp("report")
    made = report(load_config(trained_folder / "foam.yaml"), Compute("cpu"), Request(output=folder / "of" / "foam"))
    assert made.path == folder / "of" / "foam" / "report.json"
    assert made.evidence.shape == made.region.shape_zyx
    return json.loads(made.path.read_text())


def test_the_report_judges_what_training_held_out(reported: Any) -> None:
    assert reported["format"] == "ct-denoise report"
    assert reported["held_out"]["shape_zyx"] == [1, 48, 48]
    assert reported["held_out"]["slices"] == [5, 5]
    assert reported["held_out"]["why"] == "held out in training"
    assert reported["scores"]["psnr_after"]["value"] > reported["scores"]["psnr_before"]["value"]
    severities = {f["name"]: f["severity"] for f in reported["findings"]}
    assert severities.keys() >= {"gain", "converged", "overfitted", "seams", "noise_independent", "full_is_mean"}
    assert severities["full_is_mean"] == "fine"
    assert len(reported["history"]) == 2


def test_the_report_says_how_to_repeat_it(reported: Any, trained_folder: Any) -> None:
    provenance = reported["provenance"]
    assert [entry["path"] for entry in provenance["inputs"]] == [str(trained_folder / n) for n in ("even", "odd")]
    assert all(len(entry["sha256"]) == 64 for entry in (*provenance["inputs"], provenance["model"]))
    assert provenance["inputs"][0]["sha256"] != provenance["inputs"][1]["sha256"]
    assert provenance["model"]["network"] == "residual2d"
    assert any(line.startswith("denoise report --config") for line in provenance["repeat"])
    assert "ct-denoise" in provenance["software"]
    assert "even" in provenance["config"]


def test_the_command_says_the_headline_and_replaces_nothing_unasked(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    said = denoise("report", "--config", finished.config, "--device", "cpu")
    path = finished.folder / "foam_report_2.5d" / "report.json"
    assert said.out.splitlines()[-2:] == [str(path.with_suffix(".html")), str(path)]
    assert said.out.startswith("Gain: ")
    before = tools.fingerprint(finished.folder)
    assert str(path) in denoise("report", "--config", finished.config).error
    assert tools.fingerprint(finished.folder) == before
    assert denoise("report", "--config", finished.config, "--overwrite").code == 0


def test_the_page_shows_what_the_numbers_say_and_is_not_replaced_unasked(
    finished: Dataset, denoise: Callable[..., Outcome]
) -> None:
    shutil.copy(finished.run / "best_val_model.pth", finished.run / "best_edge_model.pth")
    (finished.run / "best_lcl_model.pth").write_bytes(b"damaged")
    said = denoise("report", "--config", finished.config, "--device", "cpu")
    page = finished.folder / "foam_report_2.5d" / "report.html"
    text = page.read_text(encoding="utf-8")
    content = json.loads(page.with_suffix(".json").read_text())
    assert all(f["question"] in html.unescape(text) for f in content["findings"])
    assert "The crop: val, epoch" in text
    assert "The crop: edge, epoch" in text
    assert "The crop: lcl" not in text
    assert "best_lcl_model.pth" in said.log
    page.with_suffix(".json").unlink()
    assert str(page) in denoise("report", "--config", finished.config).error
    assert page.read_text(encoding="utf-8") == text


def test_a_model_of_another_scan_has_seen_no_slice_of_this_one(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    for name, values in zip(("a", "b"), tools.images(seed=5), strict=False):
        tools.write(finished.folder / name, values)
    config = finished.configured("[even, odd]", "[a, b]")
    assert denoise("report", "--config", config, "--model", finished.run, "--output", finished.folder / "r").code == 0
    content = json.loads((finished.folder / "r" / "report.json").read_text())
    assert content["held_out"]["shape_zyx"] == [12, 48, 48]
    assert "another scan" in content["held_out"]["why"]
    assert content["scores"]["gain"]["low"] < content["scores"]["gain"]["high"]


def test_a_copy_of_the_scan_is_the_same_scan_and_only_what_was_held_out_is_judged(
    finished: Dataset, denoise: Callable[..., Outcome]
) -> None:
    for name in ("even", "odd"):
        shutil.copytree(finished.folder / name, finished.folder / f"copy_of_{name}")
    config = finished.configured("[even, odd]", "[copy_of_even, copy_of_odd]")
    asked = ("report", "--config", config, "--model", finished.run, "--overwrite", "--output", finished.folder / "r")
    for _ in range(2):  # with the originals, and without
        assert denoise(*asked).code == 0
        content = json.loads((finished.folder / "r" / "report.json").read_text())
        assert content["held_out"]["shape_zyx"] == [1, 48, 48]
        shutil.rmtree(finished.folder / "even", ignore_errors=True)


@pytest.mark.parametrize(("has_record", "whose"), [(True, "the config beside the model"), (False, "this config")])
def test_a_model_that_does_not_say_what_it_has_seen_is_judged_as_a_config_says_and_that_is_said(
    finished: Dataset, denoise: Callable[..., Outcome], has_record: bool, whose: str
) -> None:
    file = finished.run / "best_val_model.pth"
    replace(Checkpoint.load(file), seen=AllSeen()).save(file)
    if not has_record:
        (finished.run / "config.yaml").unlink()
    said = denoise("report", "--config", finished.config, "--output", finished.folder / "r")
    assert said.code == 0, said.err
    content = json.loads((finished.folder / "r" / "report.json").read_text())
    assert content["held_out"]["slices"] == [5, 5]
    assert f"if {whose} was its own; the model does not say what it was trained on" in content["held_out"]["why"]
    assert "the model does not say" in said.out


def test_slices_that_were_trained_on_are_not_judged_in_another_reconstruction_of_them(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    for name, values in zip(("a", "b", "c"), tools.images(), strict=True):
        tools.write(finished.folder / name, values[4:7] + 0.01, first=4)
    config = finished.configured("splits: [even, odd]   # angles", "splits: [a, b]   # angles")
    config.write_text(config.read_text().replace("full: whole", "full: c"))
    asked = ("report", "--config", config, "--model", finished.run, "--overwrite", "--output", finished.folder / "r")
    assert denoise(*asked).code == 0
    content = json.loads((finished.folder / "r" / "report.json").read_text())
    assert content["held_out"]["slices"] == [5, 5]
    assert content["held_out"]["start_zyx"] == [1, 0, 0]
    assert "other grey values" in content["held_out"]["why"]
    for name, values in zip(("a", "b", "c"), tools.images(), strict=True):
        shutil.rmtree(finished.folder / name)
        tools.write(finished.folder / name, values[7:] + 0.01, first=7)
    assert "trained on all slices" in denoise(*asked).error


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["0 0", "1", "2 0", "3 1"], "all alike"),
        (["0 0", "1 1", "2 0", "3 0"], "at least two for each"),
        (["0 -1", "1 1", "2 0", "3 0", "4 1"], "numbered 0 to 1"),
        (["0 0 0", "1 1 1", "2 0 0", "3 1 1"], "may hold the number of its split"),
        (["0", "north"], "one angle in degrees"),
    ],
)
def test_angles_that_make_no_sense_are_refused(
    finished: Dataset, denoise: Callable[..., Outcome], lines: list[str], named: str
) -> None:
    (finished.folder / "foam_angles.txt").write_text("\n".join(lines))
    said = denoise("report", "--config", finished.config)
    assert "foam_angles.txt" in said.error
    assert named in said.error


def test_angles_of_more_splits_than_are_used_are_not_those_of_these(
    finished: Dataset, denoise: Callable[..., Outcome]
) -> None:
    (finished.folder / "foam_angles.txt").write_text("".join(f"{k} {k % 4}\n" for k in range(20)))
    said = denoise("report", "--config", finished.config)
    assert said.code == 0, said.err
    assert "angles are not known" not in said.out or "upper bounds" in said.out


def test_a_full_reconstruction_that_is_not_the_mean_of_the_splits_is_a_reservation(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    shutil.rmtree(finished.folder / "whole")
    tools.write(finished.folder / "whole", 1.1 * tools.images()[2])
    assert "not for it" in denoise("report", "--config", finished.config).out


def test_splits_with_nan_that_training_fills_are_judged(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    for name, values in zip(("even", "odd"), tools.images(), strict=False):
        values[:, :8] = np.nan
        shutil.rmtree(finished.folder / name)
        tools.write(finished.folder / name, values)
    config = finished.configured("  sample: foam\n", "  sample: foam\n  non_finite: fill\n")
    run = finished.folder / "run"
    assert denoise("train", "--config", config, "--output-dir", run).code == 0
    said = denoise("report", "--config", config, "--model", run, "--output", finished.folder / "r")
    assert said.code == 0, said.err
    assert json.loads((finished.folder / "r" / "report.json").read_text())["held_out"]["slices"] == [5, 5]


def test_splits_can_be_what_is_delivered(finished: Dataset, denoise: Callable[..., Outcome]) -> None:
    config = finished.configured("infer: {", "infer: {input: splits, ")
    assert denoise("report", "--config", config, "--output", finished.folder / "r").code == 0


def test_too_small_a_part_that_was_held_out_is_an_error_that_says_so(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    for name, values in zip(("a", "b"), tools.images((2, 48, 48)), strict=False):
        tools.write(finished.folder / name, values)
    config = finished.folder / "two.yaml"
    text = finished.config.read_text().replace("[even, odd]", "[a, b]").replace("full: whole", "full: null")
    config.write_text(text.replace("max_epochs: 2", "max_epochs: 1"))
    assert denoise("train", "--config", config, "--output-dir", finished.folder / "run").code == 0
    error = denoise("report", "--config", config, "--model", finished.folder / "run").error
    assert "16 x 16" in error
    assert "validation_fraction" in error
