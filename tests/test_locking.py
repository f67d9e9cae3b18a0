"""The lock on an output: one at a time, named to the second, and gone with the process that held it."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from denoise.errors import OutputError
from denoise.locking import only_run

HOLD = """
import sys, time
from pathlib import Path
from denoise.locking import only_run
with only_run(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_with_host_process_and_start_and_the_lock_goes_with_a_killed_process(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(OutputError) as refused, only_run(path, "the training in run"):
                pytest.fail("two at a time")
            facts = f"the training in run is in use by process {holder.pid} on {socket.gethostname()}, since "
            assert str(refused.value).startswith(facts)
            assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", str(refused.value))
        finally:
            holder.send_signal(signal.SIGKILL)
    assert path.exists(), "the test's premise: a killed process leaves its file"
    with only_run(path, "the training in run"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(path.parent.iterdir()) == []


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_run(tmp_path / ".lock", "it"):
        raise ZeroDivisionError
    with only_run(tmp_path / ".lock", "it"):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x", "host": 1}'])
def test_a_lock_whose_file_says_nothing_is_held_all_the_same(tmp_path: Path, content: str) -> None:
    path = tmp_path / ".lock"
    path.write_text(content)
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="it is in use by another process; wait"), only_run(path, "it"):
            pytest.fail("two at a time")


def test_a_lock_file_that_its_holder_removes_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, calls = tmp_path / ".lock", fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            path.unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with only_run(path, "it"):
        assert len(calls) == 2
        with pytest.raises(OutputError), only_run(path, "it"):
            pytest.fail("two at a time")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_without_locks_the_run_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), only_run(tmp_path / ".lock", "it"):
        assert list(tmp_path.iterdir()) == []
    assert "no file locks" in caplog.text
    assert str(tmp_path) in caplog.text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "open", refuse)
    with (
        pytest.raises(OutputError, match=r"\.lock cannot be written: no permission"),
        only_run(tmp_path / ".lock", "x"),
    ):
        pytest.fail("not locked")
