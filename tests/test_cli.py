"""Arguments in, exit codes out: help, mistakes in arguments, signals, and what is never loaded."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from denoise import cli
from denoise.errors import DenoiseError, Interrupted, WorkerError

if TYPE_CHECKING:
    from tiny_dataset import Dataset, Outcome, Tools

pytest_plugins = ("tiny_dataset",)

VERBS = ("prepare", "train", "slice", "volume", "demo", "check")


def test_help_loads_nothing_heavy() -> None:
    script = """
import sys
sys.argv = ["denoise", "--help"]
from denoise.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
heavy = ("torch", "h5py", "zarr", "matplotlib", "algotom", "numba", "scipy", "tifffile")
print("loaded:", [name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "loaded: []" in done.stdout
    assert "Usage: denoise" in done.stdout


def test_the_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "denoise", "volume", "--nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: denoise volume")
    assert "--nonsense" in done.stderr


@pytest.mark.parametrize("spelling", ["--help", "-h"])
def test_help_names_every_verb_in_whole_sentences(denoise: Callable[..., Outcome], spelling: str) -> None:
    outcome = denoise(spelling)
    assert outcome.code == 0
    lines = {line.split()[0]: line for line in outcome.out.splitlines() if line.strip()}
    for verb in VERBS:
        assert lines[verb].endswith("."), lines[verb]
        assert not lines[verb].endswith("..."), lines[verb]


DEFAULTS = {
    "prepare": {
        "--out": "[default: SCAN_rec]", "--splits": "[default: 2]", "--center": "[default: found]",
        "--mode": "[default: as the config says]",
    },
    "train": {
        "--config": "[required]", "--output-dir": "[default: from config]", "--processes": "[default: 1]",
        "--gpus": "[default: all visible; none: the CPU]", "--mode": "[default: as the config says]",
        "--device": "[default: cuda if visible]", "--max-minutes": "[default: until it stops improving]",
        "--nodes": "[default: as Slurm or torchrun say, else 1]", "--max-restarts": "[default: 0]",
    },
    "slice": {
        "--config": "[required]", "--slice-number": "[required]", "--dtype": "[default: float32]",
        "--checkpoint": "[default: the config's infer.checkpoint, val]",
        "--model": "[default: the config's own training]",
        "--output": "[default: beside the reconstructions, named after the sample]",
    },
    "volume": {
        "--start-slice": "[default: the first]", "--end-slice": "[default: to the end]",
        "--dtype": "[default: float32]", "--device": "[default: cuda if visible]",
        "--output": "[default: beside the reconstructions, named after the sample]",
    },
    "demo": {"--out": "[default: denoise-demo-MODE]", "--mode": "[default: 2.5d]"},
    "check": {"--config": "[required]", "--mode": "[default: as the config says]"},
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_its_defaults(denoise: Callable[..., Outcome], verb: str) -> None:
    outcome = denoise(verb, "--help")
    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    for option, default in DEFAULTS[verb].items():
        explained = text.partition(f" {option} ")[2].partition(" --")[0]
        # Help is wrapped, also at hyphens; a range may follow a default within its brackets.
        assert default.rstrip("]").replace(" ", "") in explained.replace(" ", ""), (option, explained)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nonsense",), "nonsense"),
        (("volume",), "--config"),
        (("slice", "--config", "x.yaml"), "--slice-number"),
        (("slice", "--config", "x.yaml", "--slice-number", "seven"), "--slice-number"),
        (("train", "--config", "x.yaml", "--processes", "0"), "--processes"),
        (("train", "--config", "x.yaml", "--max-restarts", "-1"), "--max-restarts"),
        (("train", "--config", "x.yaml", "--nodes", "two"), "--nodes"),
        (("train", "--config", "x.yaml", "--max-minutes", "0"), "--max-minutes"),
        (("train", "--config", "x.yaml", "--max-minutes", "long"), "--max-minutes"),
        (("train", "--config", "x.yaml", "--max-minutes", "nan"), "--max-minutes"),
        (("train", "--config", "x.yaml", "--max-minutes", "inf"), "--max-minutes"),
        (("volume", "--config", "x.yaml", "--dtype", "int32"), "--dtype"),
        (("volume", "--config", "x.yaml", "--checkpoint", "best"), "--checkpoint"),
        (("volume", "--config", "x.yaml", "--device", "tpu"), "--device"),
        (("check", "--config", "x.yaml", "--overwrite"), "--overwrite"),
        (("prepare", "scan.h5", "--splits", "1"), "--splits"),
        (("prepare",), "SCAN.h5"),
        (("volume", "--config", "x.yaml", "stray"), "stray"),
    ],
)
def test_a_wrong_argument_is_named_with_exit_code_2_and_no_traceback(
    denoise: Callable[..., Outcome], arguments: tuple[str, ...], says: str
) -> None:
    outcome = denoise(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    message = outcome.err.strip().splitlines()[-1]
    assert message.startswith("Error: ")
    assert says in message


def test_without_a_verb_the_verbs_are_shown(denoise: Callable[..., Outcome]) -> None:
    outcome = denoise()
    for verb in VERBS:
        assert verb in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--nodes", 2), "--rendezvous HOST:PORT"),
        (("--nodes", 2, "--node-rank", 2, "--rendezvous", "node01:29500"), "--node-rank is 2"),
        (("--node-rank", 1), "--nodes"),
    ],
)
def test_options_for_several_machines_that_contradict_each_other_are_one_clear_line(
    denoise: Callable[..., Outcome], dataset: Dataset, options: tuple[object, ...], says: str
) -> None:
    assert says in denoise("train", "--config", dataset.config, *options).error
    assert not dataset.run.exists()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DenoiseError("no such thing"), 2, "error: no such thing"),
        (WorkerError("a process died", 2), 2, "error: a process died"),
        (WorkerError("a bug", 1), 1, "error: a bug"),
        (Interrupted(signal.SIGTERM, "saved"), 143, "saved"),
        (Interrupted(signal.SIGINT, "saved"), 130, "saved"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=repr,
)
def test_every_end_has_its_exit_code(
    denoise: Callable[..., Outcome],
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("denoise.commands.check.check", fail)
    outcome = denoise("check", "--config", dataset.config)
    assert outcome.code == code
    assert outcome.err.strip() == line


def test_a_bug_keeps_its_traceback(
    denoise: Callable[..., Outcome], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("denoise.commands.check.check", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        denoise("check", "--config", dataset.config)


def test_every_process_started_from_here_inherits_a_clean_python(
    denoise: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONNOUSERSITE", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    denoise("--help")
    assert os.environ["PYTHONNOUSERSITE"] == "1"
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == "ERROR"
    assert logging.getLogger("tifffile").level == logging.CRITICAL
    assert signal.getsignal(signal.SIGTERM) is cli._terminate


# The real command, but slow: after the first slabs it says so and sleeps.
SLOW = """
import sys, time
from denoise.cli import main
from denoise.inference import run
real = run.denoise_slices
def slow(inputs, denoiser, z_range, write, progress, **memory):
    def wait(done):
        print("waiting", flush=True)
        for _ in range(1200):  # a signal that comes just before a sleep is obeyed after it
            time.sleep(0.05)
    real(inputs, denoiser, z_range, write, wait)
run.denoise_slices = slow
sys.argv = ["denoise", *sys.argv[1:]]
main()
"""


def killed(number: int, config: Path, output: str) -> tuple[int, str]:
    """Start ``denoise volume``, send it the signal in the middle; its exit code and stderr."""
    command = [sys.executable, "-c", SLOW, "volume", "--config", str(config), "--output", output, "--overwrite"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "waiting"
            parent = Path(output).parent
            assert list(parent.glob(".*.unfinished")), "the test's premise: it was in the middle of writing"
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, err


def test_sigterm_ends_with_143_keeps_the_earlier_result_and_what_is_done(
    trained: Dataset, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "result"
    tools.write(output, tools.images((2, 8, 8))[0])
    before = tools.fingerprint(tmp_path)
    code, err = killed(signal.SIGTERM, trained.config, str(output))
    assert code == 143
    assert "Traceback" not in err
    assert "no GPU is visible: running on CPU" in err
    assert err.splitlines()[-1] == "terminated; --resume continues where something was done"
    after = tools.fingerprint(tmp_path)
    assert {name: after[name] for name in before} == before
    command = ("volume", "--config", trained.config, "--output", output, "--overwrite")
    assert denoise(*command, "--resume").code == 0
    assert denoise("volume", "--config", trained.config, "--output", tmp_path / "straight").code == 0
    np.testing.assert_array_equal(tools.read(output), tools.read(tmp_path / "straight"))


def test_after_sigkill_the_earlier_result_is_whole_and_the_next_run_clears_up(
    trained: Dataset, denoise: Callable[..., Outcome], tools: Tools, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "result.h5"
    tools.write(output, tools.images((2, 8, 8))[0])
    before = tools.fingerprint(tmp_path)
    code, _ = killed(signal.SIGKILL, trained.config, str(output))
    assert code == -signal.SIGKILL
    after = tools.fingerprint(tmp_path)
    assert {name: after[name] for name in before} == before
    assert all(".unfinished" in name for name in after.keys() - before.keys())
    outcome = denoise("volume", "--config", trained.config, "--output", output, "--overwrite", "--end-slice", 1)
    assert outcome.code == 0, outcome.err
    assert [path.name for path in output.parent.iterdir()] == ["result.h5"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "--config=~/foam.yaml"),
        ("slice", "--config=~/foam.yaml", "--slice-number", "1", "--model=~/none.pth", "--output=~/x.tif"),
    ],
)
def test_a_tilde_that_the_shell_has_left_is_the_home_folder(
    denoise: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(tmp_path / "foam.yaml") in denoise(*arguments).error
    assert "~" not in denoise(*arguments).error
    assert "no home folder is known" in denoise("check", "--config=~nobody-of-that-name/x.yaml").err


def test_the_version_is_said_for_a_logbook(denoise: Callable[..., Outcome]) -> None:
    outcome = denoise("--version")
    assert outcome.code == 0
    assert outcome.out.split() == ["denoise", importlib.metadata.version("ct-denoise")]
