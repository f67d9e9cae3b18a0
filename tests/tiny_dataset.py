"""A dataset of a few slices, a run trained on it, and the command line called in this process.

A plugin: test modules name it in ``pytest_plugins`` and share its fixtures.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

CONFIG = """\
# my scan; this comment is mine
dataset:
  folder: .
  splits: [even, odd]   # angles 0, 2, 4, ... and 1, 3, 5, ...
  full: whole
  sample: foam
train: {network: residual, width: 16, levels: 2, n_slices: 3, patch_size: 16, batch_size: 4, max_epochs: 2,
        learning_rate: 2.0e-3, warmup_steps: 3, validate_every: 1, precision: float32}
infer: {tile_size: 32, overlap: 0.25, precision: float32}
"""
SHAPE = (12, 48, 48)
VOXEL_SIZE_UM = (1.3, 1.3, 1.3)


@dataclass(frozen=True)
class Dataset:
    """A folder with the splits ``even`` and ``odd``, the full reconstruction ``whole``, and a config."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "foam.yaml"

    @property
    def run(self) -> Path:
        """Where the config says that training goes."""
        return self.folder / "foam_training_2.5d"

    def configured(self, old: str, new: str) -> Path:
        """Another config beside the first, with one part of the text changed."""
        assert CONFIG.count(old) == 1
        path = self.folder / "changed.yaml"
        path.write_text(CONFIG.replace(old, new))
        return path


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, stdout, and what a user reads on stderr (errors, then the log)."""

    code: int
    out: str
    err: str
    log: str

    @property
    def error(self) -> str:
        """The one line that explains a failure."""
        lines = self.err.splitlines()
        assert self.code == 2, (self.code, self.err)
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        assert "Traceback" not in self.err
        return lines[0].removeprefix("error: ")


def images(shape: tuple[int, int, int] = SHAPE, *, count: int = 2, seed: int = 0) -> list[NDArray[np.float32]]:
    """Noisy splits of one smooth object, and last their mean."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    truth = 30 + 10 * np.sin(y / 5) * np.cos(x / 7) + 0.3 * z
    splits = [(truth + rng.normal(0, 4, shape)).astype(np.float32) for _ in range(count)]
    return [*splits, np.mean(splits, axis=0, dtype=np.float32)]


def write_volume(path: Path | str, values: NDArray[Any], *, first: int = 0) -> None:
    """Store values in their own type."""
    from denoise.volumes import create_sink

    numbers = range(first, first + len(values))
    with create_sink(
        path, shape=values.shape, dtype=values.dtype, voxel_size_um=VOXEL_SIZE_UM, slice_numbers=numbers
    ) as sink:
        sink.write(0, values.astype(np.float32))


def read_volume(path: Path | str) -> NDArray[Any]:
    """Everything in the stored type."""
    from denoise.tiles import Region
    from denoise.volumes import open_volume

    volume = open_volume(path)
    return volume.read_stored(Region((0, 0, 0), volume.shape))


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@dataclass(frozen=True)
class Tools:
    """The functions above, for modules that get them through a fixture."""

    images = staticmethod(images)
    write = staticmethod(write_volume)
    read = staticmethod(read_volume)
    fingerprint = staticmethod(fingerprint)


@pytest.fixture(scope="session")
def tools() -> Tools:
    return Tools()


@pytest.fixture(scope="session")
def untrained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    folder = tmp_path_factory.mktemp("scan")
    for name, values in zip(("even", "odd", "whole"), images(), strict=True):
        write_volume(folder / name, values)
    (folder / "foam.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="session")
def trained_folder(untrained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a finished run. Read only."""
    from denoise.commands.train import train
    from denoise.config import load_config
    from denoise.launch import Compute

    folder = tmp_path_factory.mktemp("trained") / "scan"
    shutil.copytree(untrained_folder, folder)
    train(load_config(folder / "foam.yaml"), Compute("cpu"), progress=False)
    return folder


@pytest.fixture(scope="session")
def trained(trained_folder: Path) -> Dataset:
    """For tests that write elsewhere."""
    return Dataset(trained_folder)


@pytest.fixture
def dataset(untrained_folder: Path, tmp_path: Path) -> Dataset:
    """A dataset of the test's own."""
    shutil.copytree(untrained_folder, tmp_path / "scan")
    return Dataset(tmp_path / "scan")


@pytest.fixture
def finished(trained_folder: Path, tmp_path: Path) -> Dataset:
    """A dataset and a run of the test's own."""
    shutil.copytree(trained_folder, tmp_path / "scan")
    return Dataset(tmp_path / "scan")


@pytest.fixture
def denoise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[..., Outcome]]:
    """``denoise(*arguments)`` as a shell would call it, in this process; what it sets up globally is undone."""
    from denoise.cli import main

    for name, value in (("PYTHONNOUSERSITE", "1"), ("TORCH_CPP_LOG_LEVEL", "ERROR")):
        monkeypatch.setenv(name, os.environ.get(name, value))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    terminate = signal.getsignal(signal.SIGTERM)
    tiff_level = logging.getLogger("tifffile").level

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["denoise", *map(str, arguments)])
        capsys.readouterr()
        caplog.clear()
        with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        code = exit_.value.code or 0
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err, caplog.text)

    yield run
    logging.captureWarnings(capture=False)
    logging.getLogger("tifffile").setLevel(tiff_level)
    signal.signal(signal.SIGTERM, terminate)
