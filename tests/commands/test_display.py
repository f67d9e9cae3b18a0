"""Results as they are on stdout; progress as a bar on a terminal, as lines in a log."""

from __future__ import annotations

import logging

import pytest
import torch
from rich.console import Console

from denoise.commands import display


def test_a_result_is_printed_as_it_is_however_long_and_whatever_brackets_it_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = "/data/[red]scan[/red]/:smile:/" + "long_" * 60 + "name 0.65um.tif"
    display.say(path)
    assert capsys.readouterr().out == path + "\n"


def test_in_a_log_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO), display.progress_bar("denoising", 12, 48 * 48) as progress:
        progress(1)
        monkeypatch.setattr(display, "_SECONDS_PER_LINE", 0.0)
        progress(3)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("denoising: 3 of 12 slices, ")
    assert line.endswith(" Mvoxel/s")
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_progress_is_a_bar_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "120")
    with display.progress_bar("denoising", 12, 48 * 48) as progress:
        progress(12)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "denoising" in captured.err
    assert "12/12 slices" in captured.err
    assert "Mvoxel/s" in captured.err


@pytest.mark.parametrize(
    ("count", "asked", "level", "says"),
    [
        (1, False, "WARNING", "no GPU is visible: running on CPU"),
        (1, True, "INFO", "running on CPU"),
        (2, True, "INFO", "running on 2 processes that share CPU"),
    ],
)
def test_the_device_is_named_and_a_cpu_that_nobody_asked_for_is_a_warning(
    caplog: pytest.LogCaptureFixture, count: int, asked: bool, level: str, says: str
) -> None:
    with caplog.at_level(logging.INFO):
        display.say_device([torch.device("cpu")] * count, asked)
    (record,) = caplog.records
    assert record.levelname == level
    assert record.getMessage().startswith(says)
