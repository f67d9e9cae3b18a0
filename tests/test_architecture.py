"""Guards on decisions that no single module can keep: layers, modes, file lengths, a light command line."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import denoise

SOURCE = Path(denoise.__file__).parent
PROJECT = Path(__file__).parents[1]
MODULES = sorted(SOURCE.rglob("*.py"))
HEAVY = ("torch", "h5py", "hdf5plugin", "zarr", "matplotlib", "algotom", "numba", "scipy", "tifffile")


def _name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def test_every_room_uses_only_the_rooms_below_it():
    pytest.importorskip("importlinter")
    command = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    checked = subprocess.run(
        [sys.executable, "-c", command, "--config", str(PROJECT / "pyproject.toml"), "--no-cache"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert re.search(r"[1-9]\d* kept, 0 broken", checked.stdout)


def test_training_and_inference_never_ask_which_mode_they_are_in():
    asking = [
        f"{_name(path)}:{number}: {line.strip()}"
        for room in ("training", "inference")
        for path in sorted((SOURCE / room).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"2\.5d|3d", line, re.IGNORECASE)
    ]
    assert not asking


def test_no_source_file_is_longer_than_can_be_read():
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert len(lengths) > 30
    assert not {name: length for name, length in lengths.items() if length > 400}


@pytest.mark.parametrize("drawer", ["utils", "util", "helpers", "common", "misc"])
def test_nothing_is_kept_in_a_drawer(drawer):
    assert not [_name(path) for path in MODULES if drawer in (path.stem, path.parent.name)]


_HELP = """
import sys
sys.argv = ["denoise", *sys.argv[1:]]
try:
    from denoise.cli import main
    code = main()
except SystemExit as exit:
    code = exit.code
sys.stderr.write("\\n".join(sorted(sys.modules)))
sys.exit(code)
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("verb", ["", "prepare", "train", "slice", "volume", "demo", "check", "report"])
def test_help_loads_none_of_the_heavy_libraries(verb):
    shown = _run("-c", _HELP, *verb.split(), "--help")
    assert shown.returncode == 0, shown.stderr
    assert "Usage: denoise" in shown.stdout
    loaded = set(shown.stderr.split())
    assert "denoise.cli" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("module", ["denoise", "denoise.errors", "denoise.config", "denoise.tiles", "denoise.files"])
def test_light_modules_load_none_of_the_heavy_libraries(module):
    shown = _run("-c", f"import sys, {module}; print(*sys.modules)")
    assert shown.returncode == 0, shown.stderr
    assert not set(shown.stdout.split()) & set(HEAVY)


def test_help_answers_at_once():
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert _run("-m", "denoise", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Of the processor, and the best of several: others may be using the machine.
    assert min(seconds() for _ in range(5)) < 0.4


def test_a_bare_command_and_a_wrong_one_say_how_to_use_it():
    assert "Usage" in _run("-m", "denoise").stdout + _run("-m", "denoise").stderr
    wrong = _run("-m", "denoise", "polish")
    assert wrong.returncode == 2
    assert "polish" in wrong.stderr
    assert "Traceback" not in wrong.stderr
