"""``denoise demo``: the whole way on a simulated scan, and what it does with a folder that is not empty."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from denoise.commands.demo import demo
from denoise.commands.train import train
from denoise.launch import Compute

if TYPE_CHECKING:
    from tiny_dataset import Outcome, Tools

pytest_plugins = ("tiny_dataset",)

SETTINGS: dict[str, Any] = {
    "train": {
        "network": "residual", "levels": 2, "n_slices": 3, "patch_size": 32, "patch_size_3d": 16, "batch_size": 4,
        "patches_per_epoch": 60, "max_epochs": 3, "learning_rate": 4e-3, "schedule": "cosine", "validate_every": 3,
        "precision": "float32",
    },
    "infer": {"overlap": 0.25, "tile_size": 48, "precision": "float32"},
}  # fmt: skip


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a demo filled. Read only."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        # The reconstruction, before it, raised the number of threads that torch takes; see tests/conftest.py.
        patch.setattr("denoise.commands.demo.train", lambda *a, **k: (torch.set_num_threads(1), train(*a, **k)))
        summary = demo(out, compute=Compute("cpu"), settings=SETTINGS, progress=False, slices=16, size=48)
    assert summary == out / "summary.json"
    return out


@pytest.fixture
def copy(shown: Path, tmp_path: Path) -> Path:
    """The same, of the test's own."""
    return Path(shutil.copytree(shown, tmp_path / "demo"))


def test_the_summary_holds_the_figures_and_denoising_improves_them(shown: Path) -> None:
    summary = json.loads((shown / "summary.json").read_text())
    assert set(summary) >= {"psnr_noisy", "psnr_denoised", "ssim_noisy", "ssim_denoised", "seconds", "mode", "network"}
    assert summary["psnr_denoised"] > summary["psnr_noisy"] + 1
    assert summary["ssim_denoised"] > summary["ssim_noisy"]
    assert summary["seconds"] > 0
    low, high = summary["gain_reported_95"]
    assert low < summary["gain_reported"]
    assert high is None or summary["gain_reported"] < high
    assert summary["mode"] == "2.5d"
    assert summary["device"].startswith("CPU")
    assert set(summary["versions"]) == {"ct-denoise", "torch", "numpy", "python"}


def test_the_picture_is_a_png_of_1320_by_946_pixels(shown: Path) -> None:
    header = (shown / "before_after_truth.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:]) == (1320, 946)


def test_nothing_partial_is_left(shown: Path) -> None:
    assert sorted(path.name for path in shown.iterdir()) == [
        "before_after_truth.png", "foam_angles.txt", "foam_config.yaml", "foam_denoised_volume_2.5d", "foam_full",
        "foam_report_2.5d", "foam_scan.h5", "foam_split0", "foam_split1", "foam_training_2.5d", "foam_truth",
        "summary.json",
    ]  # fmt: skip


def test_the_report_lies_beside_the_results_and_says_how_it_was_scored(shown: Path) -> None:
    assert sorted(path.name for path in (shown / "foam_report_2.5d").iterdir()) == ["report.html", "report.json"]
    content = json.loads((shown / "foam_report_2.5d" / "report.json").read_text())
    page = (shown / "foam_report_2.5d" / "report.html").read_text()
    assert content["verdict"] in page
    assert "held out in training" in page


def test_every_other_command_works_on_the_files_of_the_demo(
    copy: Path, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path
) -> None:
    config = copy / "foam_config.yaml"
    text = config.read_text()
    assert denoise("check", "--config", config).code == 0
    one = denoise("slice", "--config", config, "--slice-number", 8)
    assert one.code == 0, one.err
    few = denoise("volume", "--config", config, "--start-slice", 8, "--end-slice", 10)
    assert few.code == 0, few.err
    assert tools.read(few.out.strip()).shape == (2, 48, 48)
    config.write_text(
        text.replace("max_epochs: 3", "max_epochs: 1").replace("patches_per_epoch: 60", "patches_per_epoch: 4")
    )
    run = denoise("train", "--config", config, "--output-dir", tmp_path / "run")
    assert run.code == 0, run.err
    again = denoise("prepare", copy / "foam_scan.h5", "--center", 23.5, "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert (tools.read(tmp_path / "again" / "foam_full") == tools.read(copy / "foam_full")).all()


def test_a_folder_with_anything_in_it_is_refused(
    copy: Path, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path
) -> None:
    before = tools.fingerprint(tmp_path)
    assert "--overwrite" in denoise("demo", "--out", copy).error
    assert tools.fingerprint(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "foam_notes.txt", "foam_thesis.h5", "foam_full/notes.txt", ".hidden"])
def test_a_folder_with_a_file_of_the_users_is_refused_even_with_overwrite(
    copy: Path, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path, name: str
) -> None:
    (copy / name).write_text("mine")
    before = tools.fingerprint(tmp_path)
    assert name in denoise("demo", "--out", copy, "--overwrite").error
    assert tools.fingerprint(tmp_path) == before


def test_prepared_data_of_a_sample_called_foam_is_no_demo(
    copy: Path, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path
) -> None:
    shutil.rmtree(copy / "foam_truth")
    before = tools.fingerprint(tmp_path)
    assert "which no demo wrote" in denoise("demo", "--out", copy, "--overwrite").error
    assert tools.fingerprint(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--mode", "4d"), "4d"),
        (("--gpus", "0"), "--gpus 0"),
        (("--device", "cuda"), "--device cuda"),
        (("--config", "missing.yaml"), "missing.yaml"),
    ],
)
def test_what_can_be_refused_is_refused_before_an_earlier_demo_makes_room(
    copy: Path,
    denoise: Callable[..., Outcome],
    tools: Tools,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = tools.fingerprint(copy)
    outcome = denoise("demo", "--out", copy, "--overwrite", *arguments)
    assert outcome.code == 2
    assert says in outcome.err
    assert tools.fingerprint(copy) == before


class Begun(Exception):
    """The demo passed all checks."""


@pytest.mark.parametrize("state", ["finished", "killed while simulating", "killed while reconstructing"])
def test_overwrite_empties_the_folder_of_a_demo_finished_or_not(
    copy: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    if state != "finished":
        kept = {"foam_scan.h5"} if "simulating" in state else {"foam_scan.h5", "foam_truth"}
        for path in copy.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (copy / ".foam_full.partial-host-123").mkdir()

    def begin(*_: object, **__: object) -> None:
        raise Begun

    monkeypatch.setattr("denoise.commands.demo.simulate_foam_scan", begin)
    with pytest.raises(Begun):
        demo(copy, compute=Compute("cpu"), overwrite=True)
    assert list(copy.iterdir()) == []


def test_an_empty_folder_is_used_and_a_file_is_refused(
    denoise: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object, **__: object) -> None:
        raise Begun

    monkeypatch.setattr("denoise.commands.demo.simulate_foam_scan", begin)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Begun):
        demo(tmp_path / "empty", compute=Compute("cpu"))
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in denoise("demo", "--out", tmp_path / "file", "--overwrite").error
    assert (tmp_path / "file").read_text() == "mine"


def test_the_settings_of_a_config_can_be_tried_on_the_demo(
    denoise: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "mine.yaml"
    template.write_text(
        "dataset: {folder: ., full: x}\ntrain: {network: residual, width: 24}\ninfer: {overlap: 0.125}\n"
    )
    given: dict[str, Any] = {}

    def keep(out: Path, **options: Any) -> None:
        given.update(options, out=out)

    monkeypatch.setattr("denoise.commands.demo.demo", keep)
    monkeypatch.chdir(tmp_path)
    outcome = denoise("demo", "--config", template, "--mode", "3D")
    assert outcome.code == 0, outcome.err
    assert given["out"] == Path("denoise-demo-3d")
    assert given["settings"]["train"] == {"network": "residual", "width": 24, "mode": "3d"}
    assert given["settings"]["infer"] == {"overlap": 0.125}
