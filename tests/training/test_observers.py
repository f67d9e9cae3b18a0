from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from rich.console import Console

from denoise.errors import ConfigError, OutputError
from denoise.run_folder import RunFolder
from denoise.training import observers
from denoise.training.job import Plan, Record, TrainJob
from denoise.training.observers import (
    History,
    LiveDisplay,
    LogLines,
    Pictures,
    TensorBoard,
    draw_curves,
    draw_preview,
    observers_of,
    read_history,
)
from denoise.training.validation import Preview, Scores


def plan(first_step: int = 0) -> Plan:
    return Plan(10, 5, first_step, None, 4, 2, 1, "CPU", "float32", 1, 1000)


def record(epoch: int, l1: float = 0.5, improved: tuple[str, ...] = ("val",)) -> Record:
    """Of ten epochs."""
    scores = Scores(l1, l1**2, l1**2 / 2, 0.3, 4.0)
    return Record(epoch, epoch * 5, epoch * 1.5, epoch / 10, 1e-3, l1 + 0.1, scores, 8.0, improved)


def preview(height: int = 16, width: int = 16) -> Preview:
    images = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    return Preview(*images)


def epochs_in(folder: RunFolder) -> list[int]:
    return [line["epoch"] for line in read_history(folder.history)]


def test_the_history_has_one_line_per_validation(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    history = History(folder, resume=False)
    history.started(plan())
    for epoch in (1, 2, 3):
        history.validated(record(epoch), None)
    assert read_history(folder.history) == [record(epoch).as_plain() for epoch in (1, 2, 3)]


def test_lines_of_steps_that_a_resumed_run_repeats_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first = History(folder, resume=False)
    first.started(plan())
    for epoch in (1, 2, 3, 4):
        first.validated(record(epoch), None)
    again = History(folder, resume=True)
    again.started(plan(first_step=12))
    assert epochs_in(folder) == [1, 2]
    again.validated(record(3), None)
    assert epochs_in(folder) == [1, 2, 3]


def test_a_last_line_that_was_cut_short_is_left_out_and_replaced(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    whole = json.dumps(record(1).as_plain()) + "\n"
    folder.history.write_text(whole + whole[:20], encoding="utf-8")
    assert epochs_in(folder) == [1]
    history = History(folder, resume=True)
    history.started(plan(first_step=5))
    history.validated(record(2), None)
    assert epochs_in(folder) == [1, 2]


def test_a_history_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_history(tmp_path / "history.jsonl") == []
    History(RunFolder(tmp_path), resume=True).started(plan(first_step=50))
    assert read_history(tmp_path / "history.jsonl") == []


def test_a_history_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    history = History(folder, resume=False)
    history.started(plan())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", _no_space)
        with pytest.raises(OutputError, match="disk is full"):
            history.validated(record(1), None)


def _no_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("height", "width"), [(16, 16), (3, 40), (1, 1)])
def test_a_preview_is_a_picture_of_three_panels(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "previews" / "epoch_000001.png"
    draw_preview(preview(height, width), path)
    image = matplotlib.image.imread(path)
    assert image.shape == (440, 1200, 4)
    assert np.ptp(image[..., :3]) > 0.5


def test_a_constant_prediction_can_be_drawn(tmp_path: Path) -> None:
    flat = torch.zeros(8, 8)
    draw_preview(Preview(flat, flat, flat), tmp_path / "flat.png")
    assert matplotlib.image.imread(tmp_path / "flat.png").ndim == 3


@pytest.mark.parametrize("count", [1, 2, 30])
def test_curves_are_a_picture(tmp_path: Path, count: int) -> None:
    history = [record(epoch, 1 / epoch).as_plain() for epoch in range(1, count + 1)]
    draw_curves(history, tmp_path / "curves.png")
    image = matplotlib.image.imread(tmp_path / "curves.png")
    assert image.shape == (700, 900, 4)
    assert np.ptp(image[..., :3]) > 0.5


def test_curves_of_nothing_are_not_drawn(tmp_path: Path) -> None:
    draw_curves([], tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_drawn_at_once_then_now_and_then_and_the_last_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    clock = [100.0]
    monkeypatch.setattr(observers, "draw_preview", lambda shown, path: drawn.append(path.name))
    monkeypatch.setattr(observers, "draw_curves", lambda history, path: None)
    monkeypatch.setattr(observers.time, "monotonic", lambda: clock[0])
    pictures = Pictures(RunFolder(tmp_path))
    for epoch in range(1, 8):
        pictures.validated(record(epoch), preview())
        clock[0] += 8.0
    assert drawn == ["epoch_000001.png", "epoch_000004.png", "epoch_000007.png"]
    pictures.validated(record(8), preview())
    pictures.close()
    pictures.close()
    assert drawn[-1] == "epoch_000008.png"
    assert len(drawn) == 4


def test_pictures_are_files_under_their_final_names_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    History(folder, resume=False).validated(record(1), None)
    pictures = Pictures(folder)
    pictures.validated(record(1), preview())
    pictures.close()
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["curves.png", "history.jsonl", "previews/epoch_000001.png"]


def test_log_lines_say_now_and_then_and_at_the_end_where_the_run_stands(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(observers.time, "monotonic", lambda: clock[0])
    lines = LogLines()
    lines.started(plan())
    with caplog.at_level(logging.INFO, logger="denoise"):
        for epoch in range(1, 11):
            lines.validated(record(epoch, improved=("val",) if epoch == 1 else ()), None)
            clock[0] += 8.0
    said = [r.getMessage() for r in caplog.records]
    places = [line.split(" · ")[:2] for line in said]
    assert places == [[f"epoch {epoch}", f"step {5 * epoch}"] for epoch in (1, 5, 9, 10)]
    assert "held-out 0.5000 (best)" in said[0]
    assert "(best)" not in said[1]
    assert "at most 14 s left" in said[0]  # nine tenths, of which one took 1.5 s
    assert "at most 0 s left" in said[-1]


def test_what_is_left_of_minutes_does_not_depend_on_how_much_of_them_was_reading(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = LogLines()
    lines.started(replace(plan(), minutes=10.0))
    with caplog.at_level(logging.INFO, logger="denoise"):
        lines.validated(replace(record(1), seconds=0.1, done=0.5), None)
    assert "at most 5 min left" in caplog.text


def test_the_live_display_shows_epoch_loss_and_score() -> None:
    screen = io.StringIO()
    display = LiveDisplay(Console(file=screen, force_terminal=True, width=160))
    display.started(plan(first_step=20))
    display.stepped(21, 4, 0.42, 0.25)
    display.validated(record(5, 0.125), None)
    display.stepped(22, 4, 0.44, None)
    display.close()
    text = screen.getvalue()
    assert "epoch 5 " in text
    assert "loss 0.2500" in text
    assert "held-out 0.1250 *" in text


def test_closing_a_display_that_never_started_is_harmless() -> None:
    LiveDisplay(Console(file=io.StringIO())).close()


def test_tensorboard_that_is_not_installed_is_a_mistake_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"ct-denoise\[tensorboard\]"):
        TensorBoard(tmp_path)


@pytest.mark.parametrize(("show", "kinds"), [(False, [History, Pictures]), (True, [History, Pictures, LogLines])])
def test_without_a_terminal_progress_is_lines(
    show: bool, kinds: list[type[Any]], jobs: Callable[..., TrainJob], tmp_path: Path
) -> None:
    assert [type(o) for o in observers_of(jobs(tmp_path, show_progress=show), RunFolder(tmp_path))] == kinds
