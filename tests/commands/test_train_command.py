"""``denoise train``: what it refuses, what it leaves alone, where it puts things."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from denoise.checkpoint import Checkpoint, TrainState
from denoise.config import load_config
from denoise.locking import only_run
from denoise.run_folder import RunFolder

if TYPE_CHECKING:
    from tiny_dataset import Dataset, Outcome, Tools

pytest_plugins = ("tiny_dataset",)

MODELS = ("best_val_model.pth", "best_lcl_model.pth", "best_edge_model.pth")


def test_a_run_says_its_models_goes_where_it_is_told_and_leaves_config_data_and_foreign_files_alone(
    dataset: Dataset, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path
) -> None:
    before = tools.fingerprint(dataset.folder)
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "notes.txt").write_text("mine")
    outcome = denoise("train", "--config", dataset.config, "--output-dir", run, "--device", "cpu", "--processes", 1)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [str(run / name) for name in MODELS]
    assert tools.fingerprint(dataset.folder) == before
    assert (run / "notes.txt").read_text() == "mine"
    assert Checkpoint.load(run / MODELS[0]).sample == "foam"


def test_minutes_on_the_command_line_come_before_the_config_and_leave_the_rest_of_it_as_it_is(
    dataset: Dataset, denoise: Callable[..., Outcome], tmp_path: Path
) -> None:
    config = dataset.configured("max_epochs: 2", "max_epochs: 1000000, max_minutes: 600.0")
    before = config.read_bytes()
    arguments = ("--max-minutes", 0.02, "--output-dir", tmp_path / "run")
    outcome = denoise("train", "--config", config, *arguments)
    assert outcome.code == 0, outcome.err
    assert "its 0.02 minutes are used" in outcome.log
    assert config.read_bytes() == before
    used = load_config(tmp_path / "run" / "config.yaml")
    given = load_config(config)
    assert used.train.max_minutes == 0.02
    changed = {"max_minutes": 600.0, "output_dir": given.train.output_dir}
    assert used.train.model_copy(update=changed) == given.train
    again = denoise("train", "--config", config, *arguments, "--resume")
    assert again.code == 0, again.err
    assert outcome.out == again.out


def test_a_finished_run_is_refused_and_stays_as_it_is(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    before = tools.fingerprint(finished.folder)
    error = denoise("train", "--config", finished.config).error
    assert str(finished.run) in error
    assert "--resume" in error
    assert "--output-dir" in error
    assert tools.fingerprint(finished.folder) == before


@pytest.mark.parametrize("name", [*MODELS, "resume_state.pth", "history.jsonl"])
def test_a_folder_with_any_part_of_a_run_is_refused(
    dataset: Dataset, denoise: Callable[..., Outcome], name: str
) -> None:
    dataset.run.mkdir()
    (dataset.run / name).write_text("something dear")
    assert str(dataset.run) in denoise("train", "--config", dataset.config).error
    assert [(p.name, p.read_text()) for p in dataset.run.iterdir()] == [(name, "something dear")]


def test_a_config_of_the_users_in_the_folder_of_the_run_is_not_overwritten(
    dataset: Dataset, denoise: Callable[..., Outcome]
) -> None:
    config = dataset.folder / "config.yaml"
    dataset.config.rename(config)
    text = config.read_bytes()
    error = denoise("train", "--config", config, "--output-dir", dataset.folder).error
    assert str(config) in error
    assert "--output-dir" in error
    assert config.read_bytes() == text


def test_resume_begins_a_run_where_there_is_none_and_continues_one_that_is_there(
    dataset: Dataset, denoise: Callable[..., Outcome], tmp_path: Path
) -> None:
    """One command line for every start of a batch job that is put back into the queue."""
    run = tmp_path / "run"

    def epochs(last: int) -> list[int]:
        config = dataset.configured("max_epochs: 2", f"max_epochs: {last}")
        outcome = denoise("train", "--config", config, "--output-dir", run, "--resume")
        assert outcome.code == 0, outcome.err
        assert (f"nothing to resume in {run} yet" in outcome.log) == (last == 1)
        return [json.loads(line)["epoch"] for line in (run / "history.jsonl").read_text().splitlines()]

    assert epochs(1) == [1]
    assert load_config(run / "config.yaml").train.max_epochs == 1
    assert epochs(2) == [1, 2]
    assert load_config(run / "config.yaml").train.max_epochs == 2, "the record is of the run as it goes on"


def test_resume_begins_anew_where_a_run_died_before_its_first_state_with_nothing_of_worth(
    finished: Dataset, denoise: Callable[..., Outcome]
) -> None:
    for name in (*MODELS, "resume_state.pth"):
        (finished.run / name).unlink()
    outcome = denoise("train", "--config", finished.config, "--resume")
    assert outcome.code == 0, outcome.err
    assert "starts from the beginning" in outcome.log
    lines = (finished.run / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_models_without_a_state_are_not_overwritten_and_ways_that_work_are_named(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    (finished.run / "resume_state.pth").unlink()
    before = tools.fingerprint(finished.folder)
    error = denoise("train", "--config", finished.config, "--resume").error
    assert "without --resume" not in error, "that is refused too, as there are models in the folder"
    assert f"--finetune {finished.run}" in error
    assert "--output-dir" in error
    assert tools.fingerprint(finished.folder) == before


@pytest.mark.parametrize("options", [(), ("--resume",), ("--processes", "2")], ids=" ".join)
def test_a_folder_in_use_is_refused_with_who_uses_it_and_slices_can_be_denoised_meanwhile(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools, options: tuple[str, ...]
) -> None:
    if "--resume" not in options:
        for name in (*MODELS, "resume_state.pth", "history.jsonl"):
            (finished.run / name).rename(finished.folder / name)
    with only_run(RunFolder(finished.run).lock, "it"):
        before = tools.fingerprint(finished.run)
        error = denoise("train", "--config", finished.config, "--device", "cpu", *options).error
        assert error.startswith(f"the training in {finished.run} is in use by process {os.getpid()} on ")
        assert tools.fingerprint(finished.run) == before
        if "--resume" in options:
            assert denoise("slice", "--config", finished.config, "--slice-number", 3).code == 0


@pytest.mark.parametrize("inside", ["", "run"])
def test_no_run_and_no_report_in_a_reconstruction(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools, inside: str
) -> None:
    before = tools.fingerprint(finished.folder)
    place = finished.folder / "even" / inside
    assert "another --output-dir" in denoise("train", "--config", finished.config, "--output-dir", place).error
    assert "another --output-dir" in denoise("check", "--config", finished.config, "--output-dir", place).error
    assert "another --output" in denoise("report", "--config", finished.config, "--output", place).error
    assert tools.fingerprint(finished.folder) == before


def test_a_place_where_no_folder_can_be_made_is_named(dataset: Dataset, denoise: Callable[..., Outcome]) -> None:
    assert "/proc/x" in denoise("train", "--config", dataset.config, "--output-dir", "/proc/x").error


def test_a_run_does_not_go_on_with_other_grey_values_under_the_same_names(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    again = ("train", "--config", finished.config, "--resume")
    assert denoise(*again).code == 0
    before = tools.fingerprint(finished.run)
    shutil.rmtree(finished.folder / "odd")
    tools.write(finished.folder / "odd", tools.images()[1] + 0.01)
    assert "reconstructed anew" in denoise(*again).error
    assert tools.fingerprint(finished.run) == before


def test_resume_with_another_network_keeps_the_run(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    config = finished.configured("width: 16", "width: 24")
    before = tools.fingerprint(finished.folder)
    error = denoise("train", "--config", config, "--resume").error
    assert "16" in error
    assert "24" in error
    assert tools.fingerprint(finished.folder) == before


@pytest.mark.parametrize("source", ["", "best_val_model.pth"])
def test_finetuning_from_the_folder_that_is_written_to_keeps_the_model(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools, source: str
) -> None:
    before = tools.fingerprint(finished.folder)
    assert "--output-dir" in denoise("train", "--config", finished.config, "--finetune", finished.run / source).error
    (finished.run / "resume_state.pth").unlink()
    (finished.run / "history.jsonl").unlink()
    assert denoise("train", "--config", finished.config, "--finetune", finished.run / source).code == 2
    after = tools.fingerprint(finished.folder)
    assert before.items() - after.items() == {
        (name, content) for name, content in before.items() if name.endswith(("resume_state.pth", "history.jsonl"))
    }


def test_finetuning_starts_from_the_model(finished: Dataset, denoise: Callable[..., Outcome], tmp_path: Path) -> None:
    def first_loss(*arguments: object) -> float:
        run = tmp_path / f"run{len(arguments)}"
        outcome = denoise("train", "--config", config, "--output-dir", run, *arguments)
        assert outcome.code == 0, outcome.err
        return float(json.loads((run / "history.jsonl").read_text().splitlines()[0])["val_l1"])

    config = finished.configured("max_epochs: 2", "max_epochs: 1")
    from_nothing = first_loss()
    assert first_loss("--finetune", finished.run) < from_nothing


def test_a_model_remembers_what_all_its_runs_have_seen_once_each(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    def seen(run: str) -> list[str]:
        return [
            part.contents.sha256 for part in Checkpoint.load(finished.folder / run / "best_val_model.pth").seen.runs
        ]

    (first,) = seen(finished.run.name)
    arguments = ("train", "--config", finished.config, "--output-dir")
    assert denoise(*arguments, finished.folder / "again", "--finetune", finished.run).code == 0
    assert seen("again") == [first]
    shutil.rmtree(finished.folder / "odd")
    tools.write(finished.folder / "odd", tools.images(seed=3)[1])
    assert denoise(*arguments, finished.folder / "other", "--finetune", finished.folder / "again").code == 0
    assert seen("other")[0] == first
    assert len(set(seen("other"))) == 2
    assert denoise(*arguments, finished.folder / "other", "--resume").code == 0
    assert len(seen("other")) == 2


def test_the_learning_rate_of_a_config_that_names_no_network_is_said(
    dataset: Dataset, denoise: Callable[..., Outcome], tmp_path: Path
) -> None:
    def log(old: str, new: str) -> str:
        said = denoise("train", "--config", dataset.configured(old, new), "--output-dir", tmp_path / new[:1])
        assert said.code == 0, said.err
        return said.log

    assert "the config names no network" in log("network: residual, ", "")
    assert "the config names no network" not in log("network: residual, ", "network: residual, ")


def test_a_model_to_begin_from_that_is_not_there_is_asked_for_by_its_option(
    dataset: Dataset, denoise: Callable[..., Outcome]
) -> None:
    error = denoise("train", "--config", dataset.config, "--finetune", dataset.folder / "none.pth").error
    assert "--finetune" in error
    assert "--model" not in error


def test_finetuning_another_network_names_both(finished: Dataset, denoise: Callable[..., Outcome]) -> None:
    config = finished.configured("width: 16", "width: 24")
    arguments = ("--finetune", finished.run, "--output-dir", finished.folder / "new")
    error = denoise("train", "--config", config, *arguments).error
    assert "n_slices 3, width 16, levels 2" in error
    assert "n_slices 3, width 24, levels 2" in error
    assert not (finished.folder / "new").exists()


def test_one_command_begins_from_a_model_and_continues_what_it_has_begun(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    model = finished.folder / "model.pth"
    (finished.run / "best_val_model.pth").rename(model)
    shorter = finished.configured("max_epochs: 2", "max_epochs: 1")
    straight, stopped = finished.folder / "straight", finished.folder / "stopped"
    assert denoise("train", "--config", shorter, "--finetune", model, "--output-dir", straight).code == 0
    command = ("--resume", "--finetune", model, "--output-dir", stopped)
    begun = denoise("train", "--config", shorter, *command)
    assert begun.code == 0, begun.err
    assert f"nothing to resume in {stopped} yet: the training starts from {model}" in begun.log

    def scores(run: Path) -> list[float]:
        return [json.loads(line)["val_l1"] for line in (run / "history.jsonl").read_text().splitlines()]

    assert scores(stopped) == scores(straight)
    assert denoise("train", "--config", finished.config, *command).code == 0
    assert len(scores(stopped)) == 2
    # What it began from is not needed to go on, and is remembered all the same.
    assert denoise("train", "--config", finished.config, "--resume", "--output-dir", stopped).code == 0
    assert denoise("train", "--config", finished.config, *command).code == 0


def test_a_run_that_began_from_something_else_is_not_continued_and_kept(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    before = tools.fingerprint(finished.run)
    command = ("train", "--config", finished.config, "--resume", "--finetune")
    error = denoise(*command, finished.run).error
    assert f"the run in {finished.run} began from no model" in error
    assert "--resume alone" in error
    assert tools.fingerprint(finished.run) == before
    run = finished.folder / "tuned"
    assert denoise(*command, finished.run, "--output-dir", run).code == 0
    other = run / "best_val_model.pth"
    before = tools.fingerprint(run)
    assert f"the run in {run} began from another model" in denoise(*command, other, "--output-dir", run).error
    assert tools.fingerprint(run) == before


def test_a_state_that_does_not_say_what_its_run_began_from_is_continued(
    finished: Dataset, denoise: Callable[..., Outcome]
) -> None:
    path = finished.run / "resume_state.pth"
    state = TrainState.load(path)
    known = {name: value for name, value in state.fingerprint.items() if name != "begun from"}
    replace(state, fingerprint=known).save(path)
    command = ("train", "--config", finished.config, "--resume", "--finetune", finished.run)
    assert denoise(*command).code == 0


def test_three_splits_train_and_denoise(dataset: Dataset, denoise: Callable[..., Outcome], tools: Tools) -> None:
    for name in ("even", "odd"):
        shutil.rmtree(dataset.folder / name)
    for k, values in enumerate(tools.images(count=3)[:3]):
        tools.write(dataset.folder / f"third{k}", values)
    config = dataset.configured("[even, odd]", "[third0, third1, third2]")
    config.write_text(
        config.read_text().replace("max_epochs: 2", "max_epochs: 1").replace("infer: {", "infer: {input: splits, ")
    )
    assert denoise("train", "--config", config).code == 0
    outcome = denoise("volume", "--config", config, "--end-slice", 1)
    assert outcome.code == 0, outcome.err
    assert tools.read(outcome.out.strip()).shape == (1, 48, 48)


def test_a_config_without_splits_cannot_train(dataset: Dataset, denoise: Callable[..., Outcome]) -> None:
    config = dataset.configured("  splits: [even, odd]   # angles 0, 2, 4, ... and 1, 3, 5, ...\n", "")
    assert "dataset.splits is missing" in denoise("train", "--config", config).error


def test_where_nobody_asked_for_the_cpu_its_use_is_a_warning(
    dataset: Dataset, denoise: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_now(*_: object, **__: object) -> None:
        from denoise.errors import DeviceError

        raise DeviceError("not now")

    monkeypatch.setattr("denoise.commands.train.run_training", not_now)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    silent = denoise("train", "--config", dataset.config)
    asked = denoise("train", "--config", dataset.config, "--device", "cpu", "--processes", 2)
    assert "WARNING" in silent.log
    assert "no GPU is visible: running on CPU" in silent.log
    assert "WARNING" not in asked.log
    assert "running on 2 processes that share CPU" in asked.log


@pytest.mark.parametrize(
    ("full", "why"), [("full: no_whole", "no_whole does not exist"), ("", "dataset.full is missing")]
)
def test_what_volume_will_refuse_tomorrow_is_said_before_a_night_of_training(
    dataset: Dataset, denoise: Callable[..., Outcome], full: str, why: str
) -> None:
    config = dataset.configured("full: whole", full)
    outcome = denoise("train", "--config", config, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "`denoise volume` will not work as the config is" in outcome.log
    assert why in outcome.log


NOT_INDEPENDENT = "The splits are the same image"


def test_splits_that_teach_nothing_are_named_before_a_night_of_training(
    dataset: Dataset, denoise: Callable[..., Outcome]
) -> None:
    config = dataset.configured("[even, odd]", "[even, copy]")
    shutil.copytree(dataset.folder / "even", dataset.folder / "copy")
    outcome = denoise("train", "--config", config, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert NOT_INDEPENDENT in outcome.log
    again = denoise("train", "--config", config, "--device", "cpu", "--resume")
    assert again.code == 0, again.err
    assert NOT_INDEPENDENT not in again.log, "it was said when the run began"
    independent = denoise("train", "--config", dataset.config, "--device", "cpu", "--output-dir", dataset.folder / "b")
    assert "WARNING" not in independent.log


def test_splits_are_not_tested_where_that_would_take_more_memory_than_training_may(
    dataset: Dataset, denoise: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoise.trust.splits._BYTES", 2 * 10**9)
    config = dataset.configured("[even, odd]", "[even, copy]")
    shutil.copytree(dataset.folder / "even", dataset.folder / "copy")
    outcome = denoise("train", "--config", config, "--device", "cpu", "--max-memory", "3G")
    assert outcome.code == 0, outcome.err
    assert NOT_INDEPENDENT not in outcome.log
    assert "the splits are not tested first, which takes 2.00 GB" in outcome.log
