"""What is fuzzed: for each kind of file, what a user's command would do with it.

A target's ``run`` takes the folder in which an input lies. It returns a word for what happened, or raises: a
`DenoiseError` is a refusal, everything else a finding.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from denoise.checkpoint import Checkpoint, TrainState
from denoise.config import load_config
from denoise.config.reading import render
from denoise.config.recipes import PLAIN_ADAM, Muon
from denoise.errors import CheckpointError, DenoiseError
from denoise.projections.scan import Scan
from denoise.run_folder import RunFolder
from denoise.tiles import Region
from denoise.training.observers import read_history
from denoise.training.optimizer import Optimizers
from denoise.training.state import Progress
from denoise.volumes import open_volume
from fuzz_mutation import Tree
from fuzz_seeds import (
    command_seeds,
    config_seeds,
    folder_seeds,
    hdf5_seeds,
    history_seeds,
    model_seeds,
    scan_seeds,
    state_seeds,
    tiff_seeds,
    zarr_seeds,
)

#: So many voxels per axis are read at three places of a volume.
_CORNER = (2, 24, 24)


@dataclass(frozen=True)
class Target:
    """One kind of input. ``traced``: parts of the paths of modules whose new lines make an input worth keeping."""

    name: str
    seeds: Callable[[], list[Tree]]
    run: Callable[[Path], str]
    traced: tuple[str, ...] = ("/denoise/",)


def read_volume(path: Path) -> str:
    """Header, then three small regions: first, middle and last corner."""
    volume = open_volume(path)
    _ = volume.name, volume.dtype, volume.voxel_size_um, volume.slice_numbers[-1]
    size = [min(n, most) for n, most in zip(volume.shape, _CORNER, strict=True)]
    for share in (0.0, 0.5, 1.0):
        start = [int((n - s) * share) for n, s in zip(volume.shape, size, strict=True)]
        values = volume.read(Region((start[0], start[1], start[2]), (size[0], size[1], size[2])))
        assert values.shape == tuple(size)
        assert values.dtype == np.float32
    return "read"


def read_config(folder: Path) -> str:
    """Load, write out, load again: the same config."""
    config = load_config(folder / "config.yaml")
    again = folder / "again.yaml"
    again.write_text(render(config), encoding="utf-8")
    assert load_config(again) == config, "reading what was rendered gives another config"
    again.unlink()
    return "read"


def read_model(folder: Path) -> str:
    """Load, and build the network."""
    Checkpoint.load(folder / "model.pth").build()
    return "read"


def read_state(folder: Path) -> str:
    """What a resumed run restores."""
    state = TrainState.load(folder / "resume_state.pth")
    layer = torch.nn.Linear(2, 1)
    try:
        layer.load_state_dict(state.model)
        muon = Muon(1.0) if Optimizers.had_muon(state.optimizer) else None
        Optimizers(layer, PLAIN_ADAM, muon, 0.01, torch.device("cpu")).restore(state.optimizer)
        Progress.stored(state.progress)
        torch.set_rng_state(state.generator)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:  # as the training loop does
        raise CheckpointError(f"{folder} does not fit this run ({error})") from error
    return "read"


def read_run_history(folder: Path) -> str:
    """What a resumed run keeps of its history."""
    return "read" if all(r["step"] <= 10 for r in read_history(RunFolder(folder).history)) else "read, later steps"


def read_scan(folder: Path) -> str:
    """Header, then the first and the last detector row."""
    scan = Scan.open(folder / "scan.h5")
    rows = scan.shape[1]
    for row in {0, rows - 1}:
        scan.read_rows(row, row + 1)
    return "read"


def run_command(folder: Path) -> str:
    """``denoise ARGUMENTS`` in this process: exit code 0 or 2, a printable line for a refusal, nothing new on disk."""
    import denoise.commands.demo
    import denoise.commands.train
    from denoise import cli

    try:
        arguments = json.loads((folder / "arguments.json").read_bytes())
        assert all(type(word) is str and "\0" not in word for word in arguments)
    except (OSError, ValueError, TypeError, AssertionError):
        return "no arguments that a shell could pass on"
    # Only their arguments are of interest here, not minutes of training.
    denoise.commands.train.run_training = lambda *_, **__: RunFolder(folder)  # type: ignore[assignment]
    denoise.commands.demo.demo = lambda *_, **__: None  # type: ignore[assignment]
    before = sorted(folder.rglob("*"))
    out, err, argv, code = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = ["denoise", *arguments]
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
    finally:
        sys.argv = argv
    said = err.getvalue()
    assert code in (0, 2), f"exit code {code}: {said}"
    assert "Traceback" not in said + out.getvalue(), said
    assert len(said) < 20_000, said
    # Wrong arguments are shown as they were typed, by the library that parses them.
    assert said.startswith("Usage:") or all(c.isprintable() or c == "\n" for c in said), f"not printable: {said!r}"
    assert sorted(folder.rglob("*")) == before, "files came or went"
    return "done" if code == 0 else "refused"


def _first(folder: Path, suffix: str) -> Path:
    found = sorted(folder.glob(f"*{suffix}"))
    return found[0] if found else folder / f"v{suffix}"


TARGETS = {
    t.name: t
    for t in (
        Target("config", config_seeds, read_config, ("/denoise/config/", "/ruamel/yaml/")),
        Target("tiff", tiff_seeds, lambda f: read_volume(f / "v.tif"), ("/denoise/", "/tifffile/")),
        Target("tiff folder", folder_seeds, read_volume),
        Target("hdf5", hdf5_seeds, lambda f: read_volume(f / "v.h5"), ("/denoise/", "/h5py/")),
        Target("zarr", zarr_seeds, lambda f: read_volume(_first(f, ".zarr")), ("/denoise/", "/zarr/core/")),
        Target("model", model_seeds, read_model, ("/denoise/", "/_weights_only_unpickler")),
        Target("state", state_seeds, read_state, ("/denoise/", "/_weights_only_unpickler")),
        Target("history", history_seeds, read_run_history),
        Target("scan", scan_seeds, read_scan, ("/denoise/", "/h5py/")),
        Target("command line", command_seeds, run_command),
    )
}


@contextlib.contextmanager
def input_folder(tree: Tree, place: Path) -> Iterator[Path]:
    """The tree as files."""
    for name, content in tree.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    yield place


def refusal_problem(error: DenoiseError) -> str | None:
    """What is wrong with the words of a refusal."""
    text = str(error)
    if "Traceback" in text:
        return "a traceback in the message"
    if len(text) > 4000:
        return f"a message of {len(text)} characters"
    return None if text.strip() else "an empty message"
