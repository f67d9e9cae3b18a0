"""Bad input of every kind: one sentence, exit code 2, and nothing is lost or left half-done."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import tifffile
import torch

if TYPE_CHECKING:
    from tiny_dataset import Dataset, Outcome, Tools

pytest_plugins = ("tiny_dataset",)


def spoil(path: Path, value: float, z: int = 7) -> Path:
    """Put one such voxel into a slice of a folder."""
    file = sorted(path.iterdir())[z]
    image = tifffile.imread(file)
    image[3, 5] = value
    tifffile.imwrite(file, image)
    return file


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("verb", [("volume",), ("slice", "--slice-number", 7)])
def test_a_voxel_that_is_no_number_stops_denoising_and_names_file_and_slice(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools, verb: tuple[object, ...], value: float
) -> None:
    spoil(finished.folder / "whole", value)
    before = tools.fingerprint(finished.folder)
    error = denoise(*verb, "--config", finished.config).error
    assert str(finished.folder / "whole") in error
    assert "slice 7" in error
    assert "non_finite" in error
    left = tools.fingerprint(finished.folder)
    assert {name: left.get(name) for name in before} == before
    assert [name for name in left.keys() - before.keys() if left[name] != "folder"] == []


def test_on_request_voxels_that_are_no_numbers_are_replaced_and_counted(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    spoil(finished.folder / "whole", np.nan)
    config = finished.configured("sample: foam", "sample: foam\n  non_finite: fill")
    outcome = denoise("slice", "--config", config, "--slice-number", 7)
    assert outcome.code == 0, outcome.err
    assert "1 NaN or Inf voxels" in outcome.log
    assert np.isfinite(tools.read(outcome.out.strip())).all()


def test_on_request_even_a_slice_without_any_number_is_filled(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools
) -> None:
    tifffile.imwrite(finished.folder / "whole" / "whole_00007.tif", np.full((48, 48), np.nan, np.float32))
    config = finished.configured("sample: foam", "sample: foam\n  non_finite: fill")
    outcome = denoise("slice", "--config", config, "--slice-number", 7)
    assert outcome.code == 0, outcome.err
    assert "2304 NaN or Inf voxels" in outcome.log
    assert np.isfinite(tools.read(outcome.out.strip())).all()


def test_a_voxel_that_is_no_number_stops_training_and_names_split_and_slice(
    dataset: Dataset, denoise: Callable[..., Outcome]
) -> None:
    spoil(dataset.folder / "odd", np.nan)
    error = denoise("train", "--config", dataset.config).error
    assert str(dataset.folder / "odd") in error
    assert "slice 7" in error
    spoil(dataset.folder / "odd", 30.0)
    assert denoise("train", "--config", dataset.config).code == 0, "what a refused start left must not be in the way"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:4000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def another_shape(file: Path) -> None:
    tifffile.imwrite(file, np.zeros((48, 40), np.float32))


def another_type(file: Path) -> None:
    tifffile.imwrite(file, np.zeros((48, 48), np.uint16))


def text(file: Path) -> None:
    file.write_text("no image")


@pytest.mark.parametrize("damage", [truncate, empty, another_shape, another_type, text])
def test_a_damaged_slice_in_mid_stack_names_the_file_and_keeps_the_earlier_result(
    finished: Dataset, denoise: Callable[..., Outcome], tools: Tools, damage: Callable[[Path], None]
) -> None:
    output = finished.folder / "result"
    tools.write(output, np.full((12, 48, 48), 5.0, np.float32))
    file = finished.folder / "whole" / "whole_00009.tif"
    damage(file)
    before = tools.fingerprint(finished.folder)
    error = denoise("volume", "--config", finished.config, "--output", output, "--overwrite").error
    assert str(file) in error
    after = tools.fingerprint(finished.folder)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith(".result.unfinished") for name in after.keys() - before.keys())


class Mistake(NamedTuple):
    """What to do to a dataset, and what the message must hold."""

    change: Callable[[Dataset, Tools], Any]
    says: tuple[str, ...]


def shallower(data: Dataset, tools: Tools) -> None:
    (data.folder / "odd" / "odd_00011.tif").unlink()


def narrower(data: Dataset, tools: Tools) -> None:
    shutil.rmtree(data.folder / "odd")
    tools.write(data.folder / "odd", np.ones((12, 48, 40), np.float32))


def other_numbers(data: Dataset, tools: Tools) -> None:
    shutil.rmtree(data.folder / "odd")
    tools.write(data.folder / "odd", tools.images()[1], first=1)


def a_gap(data: Dataset, tools: Tools) -> None:
    (data.folder / "odd" / "odd_00004.tif").unlink()


def same_by_link(data: Dataset, tools: Tools) -> None:
    shutil.rmtree(data.folder / "odd")
    (data.folder / "odd").symlink_to("even", target_is_directory=True)


def missing(data: Dataset, tools: Tools) -> None:
    shutil.rmtree(data.folder / "odd")


def no_images(data: Dataset, tools: Tools) -> None:
    missing(data, tools)
    (data.folder / "odd").mkdir()


MISTAKES = {
    "one slice fewer": Mistake(shallower, ("(11, 48, 48)", "(12, 48, 48)")),
    "narrower": Mistake(narrower, ("(12, 48, 40)", "(12, 48, 48)")),
    "slice numbers that do not pair": Mistake(other_numbers, ("1..12", "0..11")),
    "a slice missing": Mistake(a_gap, ("slice 4", "odd")),
    "the same folder through a link": Mistake(same_by_link, ("same volume", "splits 0 and 1")),
    "a folder missing": Mistake(missing, ("odd", "does not exist")),
    "a folder without images": Mistake(no_images, ("odd", "no .tif")),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_splits_that_do_not_belong_together_are_refused_with_both_facts_by_train_and_check_alike(
    dataset: Dataset, denoise: Callable[..., Outcome], tools: Tools, mistake: Mistake
) -> None:
    mistake.change(dataset, tools)
    before = tools.fingerprint(dataset.folder)
    errors = [denoise(verb, "--config", dataset.config).error for verb in ("train", "check")]
    assert errors[0] == errors[1]
    for fact in mistake.says:
        assert fact in errors[0]
    assert tools.fingerprint(dataset.folder) == before


@pytest.mark.parametrize("again", ["even", "./even", "../scan/even"])
def test_the_same_folder_twice_is_refused(dataset: Dataset, denoise: Callable[..., Outcome], again: str) -> None:
    config = dataset.configured("[even, odd]", f"[even, {again}]")
    outcome = denoise("train", "--config", config)
    assert outcome.code == 2
    assert "the same" in outcome.err
    assert again in outcome.err
    assert not dataset.run.exists()


def test_constant_splits_are_refused(dataset: Dataset, denoise: Callable[..., Outcome], tools: Tools) -> None:
    for name in ("even", "odd"):
        shutil.rmtree(dataset.folder / name)
        tools.write(dataset.folder / name, np.full((12, 48, 48), 7.0, np.float32))
    assert "same value 7" in denoise("train", "--config", dataset.config).error


class RunsCode:
    """Its pickle calls os.mkdir when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["torch", "torch legacy", "pickle", "inside a state dict"])
@pytest.mark.parametrize(
    "use", [("slice", "--slice-number", 1, "--model"), ("volume", "--model"), ("train", "--finetune")]
)
def test_code_in_a_model_file_is_not_run(
    dataset: Dataset, denoise: Callable[..., Outcome], tmp_path: Path, kind: str, use: tuple[object, ...]
) -> None:
    trap, model = tmp_path / "trap", tmp_path / "best_val_model.pth"
    bad = RunsCode(str(trap))
    if kind == "pickle":
        model.write_bytes(pickle.dumps({"model_state_dict": bad}, protocol=2))
    elif kind == "inside a state dict":
        torch.save({"model_state_dict": {"in_box.0.weight": torch.zeros(1), "x": bad}}, model)
    else:
        torch.save({"model_state_dict": bad}, model, _use_new_zipfile_serialization=kind == "torch")
    verb, *options = use
    error = denoise(verb, "--config", dataset.config, *options, model).error
    assert str(model) in error
    assert not trap.exists()
    assert not dataset.run.exists()


def test_a_resume_state_with_code_is_not_run(
    finished: Dataset, denoise: Callable[..., Outcome], tmp_path: Path
) -> None:
    torch.save({"fingerprint": RunsCode(str(tmp_path / "trap"))}, finished.run / "resume_state.pth")
    assert "resume_state.pth" in denoise("train", "--config", finished.config, "--resume").error
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"text", None], ids=repr)
def test_a_damaged_model_file_is_named(
    finished: Dataset, denoise: Callable[..., Outcome], content: bytes | None
) -> None:
    model = finished.run / "best_val_model.pth"
    model.write_bytes(model.read_bytes()[:5000] if content is None else content)
    assert str(model) in denoise("volume", "--config", finished.config).error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--gpus", "0"), "sees no CUDA GPU"),
        (("--gpus", "0,1"), "--gpus 0,1"),
        (("--device", "cuda"), "sees no CUDA GPU"),
        (("--gpus", "x"), "--gpus 'x'"),
        (("--gpus", ""), "--gpus ''"),
        (("--gpus", "-1"), "--gpus '-1'"),
        (("--gpus", "0", "--device", "cpu"), "contradicts"),
        (("--gpus", "²"), "--gpus '²'"),
    ],
)
@pytest.mark.parametrize("verb", [("train",), ("slice", "--slice-number", 1), ("volume",), ("check",)])
def test_a_gpu_that_is_not_there_is_an_error_and_never_a_silent_cpu(
    trained: Dataset,
    denoise: Callable[..., Outcome],
    tools: Tools,
    monkeypatch: pytest.MonkeyPatch,
    verb: tuple[object, ...],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = tools.fingerprint(trained.folder)
    assert says in denoise(*verb, "--config", trained.config, *arguments).error
    assert tools.fingerprint(trained.folder) == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", ("dataset",)),
        ("dataset: {folder: ., full: whole", ("line",)),
        ("dataset: {folder: ., full: whole, colour: red}", ("dataset.colour", "line 1")),
        ("dataset: {folder: ., full: whole}\ntrain: {mode: 4d}", ("train.mode", "4d", "line 2")),
        ("dataset: {folder: ., full: whole}\ntrain: {patch_size: 18}", ("train.patch_size", "18", "4")),
        ("dataset: {folder: ., full: whole}\ninfer: {overlap: 1.0}", ("infer.overlap", "1.0")),
        ("dataset: !!python/object/apply:os.mkdir [trap]", ("tags are not read",)),
        ("dataset: {folder: ., splits: [even]}", ("dataset.splits", "two or more")),
        (None, ("does not exist",)),
    ],
)
@pytest.mark.parametrize("verb", [("train",), ("slice", "--slice-number", 1), ("volume",), ("check",)])
def test_a_config_that_cannot_be_used_is_explained_by_every_verb(
    trained: Dataset,
    denoise: Callable[..., Outcome],
    tmp_path: Path,
    verb: tuple[object, ...],
    content: str | None,
    says: tuple[str, ...],
) -> None:
    config = tmp_path / "bad.yaml"
    if content is not None:
        config.write_text(content)
    outcome = denoise(*verb, "--config", config)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {config}")
    assert "Traceback" not in outcome.err
    for fact in says:
        assert fact in outcome.err
    assert sorted(tmp_path.iterdir()) == ([config] if content is not None else [])


@pytest.mark.parametrize("verb", [("slice", "--slice-number", 1), ("volume",)])
def test_a_full_disk_is_told_before_anything_is_computed(
    trained: Dataset,
    denoise: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    verb: tuple[object, ...],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be computed")

    monkeypatch.setattr("denoise.inference.run.denoise_slices", refuse)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    error = denoise(*verb, "--config", trained.config, "--output", tmp_path / "out.h5").error
    assert "free" in error
    assert str(tmp_path) in error
    assert not any(tmp_path.iterdir())


def test_check_tells_of_a_full_disk_too(
    trained: Dataset, denoise: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(trained.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "0.11 MB" in denoise("check", "--config", trained.config).error


def test_a_file_in_the_place_of_an_output_folder_is_refused(
    trained: Dataset, dataset: Dataset, denoise: Callable[..., Outcome], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    volume = denoise("volume", "--config", trained.config, "--output", file / "out").error
    train = denoise("train", "--config", dataset.config, "--output-dir", file / "run").error
    itself = denoise("train", "--config", dataset.config, "--output-dir", file).error
    for error in (volume, train, itself):
        assert str(file) in error
    assert file.read_text() == "mine"


def test_a_folder_without_permission_to_write_is_refused(
    trained: Dataset,
    dataset: Dataset,
    denoise: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **__: not mode & os.W_OK and allowed(path, mode))
    for arguments in (
        ("volume", "--config", trained.config, "--output", tmp_path / "new" / "out"),
        ("slice", "--config", trained.config, "--slice-number", 1),
        ("train", "--config", dataset.config),
        ("train", "--config", trained.config, "--resume"),
    ):
        error = denoise(*arguments).error
        assert "no permission" in error
    assert not (tmp_path / "new").exists()
