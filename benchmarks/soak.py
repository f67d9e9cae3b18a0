"""Kill prepare, train and volume (SIGKILL) at random moments; check that nothing is harmed and resuming ends the same.

    python benchmarks/soak.py --folder scratch --kills 100 [--seed 0]
    python benchmarks/soak.py --folder scratch --kills 40 --minutes [--only "volume out.tif 1,volume out.h5 2"]

Every command is first run without being disturbed: its result is the reference, and its duration (the shortest so
far) the span from which the moments of death are drawn. Then it is started with ``--resume``, killed with all of its
processes, and checked: every file under a final name must be whole. It is started again, and again, until it lives to
its end; what it then leaves must equal the reference, byte by byte for volumes, tensor by tensor for models. Runs take
some seconds each, with ``--minutes`` about a minute: then most deaths come while something is half done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from denoise.checkpoint import Checkpoint, TrainState
from denoise.projections.phantom import simulate_foam_scan
from denoise.tiles import Region
from denoise.volumes import open_volume


@dataclass(frozen=True)
class Scale:
    """How much there is to do."""

    size: int
    slices: int
    angles: int
    train: dict[str, Any]
    infer: dict[str, Any]

    @property
    def template(self) -> str:
        """A config to take the sections train and infer from."""
        return json.dumps({"dataset": {"folder": ".", "full": "none"}, "train": self.train, "infer": self.infer})


SECONDS = Scale(96, 24, 144, {"mode": "2.5d", "patch_size": 32, "max_epochs": 24, "save_every_minutes": 0.02}, {})
MINUTES = Scale(
    512,
    48,
    768,
    {"mode": "2.5d", "max_epochs": 20, "patience": 0, "save_every_minutes": 0.1, "symmetric": False},
    {"tta": 8},
)
_FORMATS = ("out", "out.tif", "out.h5", "out.zarr")


@dataclass
class Command:
    """One command line in a folder of its own, how its result is identified, and what was seen of it."""

    name: str
    prepare: Callable[[Path], None]
    """Put what it needs into an empty folder."""
    arguments: Callable[[Path], list[str]]
    result: Callable[[Path], str]
    """A digest of what it made."""
    reference: str = ""
    seconds: float = 0.0
    kills: int = 0
    ends: int = 0
    lives: list[int] = field(default_factory=list)


def digest_of(volume: Path) -> str:
    """Of a volume's voxels."""
    opened = open_volume(volume)
    values = opened.read_stored(Region((0, 0, 0), opened.shape))
    return hashlib.sha256(f"{opened.shape}{opened.voxel_size_um}".encode() + values.tobytes()).hexdigest()


def digest_of_model(path: Path) -> str:
    """Of a model's weights and scores."""
    model = Checkpoint.load(path)
    digest = hashlib.sha256(json.dumps(dict(model.scores), sort_keys=True).encode())
    for name, tensor in sorted(model.weights.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def require_whole(folder: Path) -> int:
    """Open everything under a final name (hidden names are unfinished by definition); returns how many there were."""
    checked = 0
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        inside = any(parent.suffix == ".zarr" for parent in path.parents)
        if hidden or inside or (path.is_dir() and path.suffix != ".zarr"):
            continue
        checked += 1
        if path.suffix in (".tif", ".h5", ".zarr"):
            digest_of(path)
        elif path.name.startswith("best_"):
            digest_of_model(path)
        elif path.suffix == ".pth":
            TrainState.load(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            YAML(typ="safe").load(path.read_text())
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)
        elif path.name.endswith("_angles.txt"):
            assert all(math.isfinite(float(line.split()[0])) for line in path.read_text().splitlines()), (
                f"{path} is damaged"
            )
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), f"{path} is cut short"
        else:
            raise AssertionError(f"the soak does not know what {path} is")
    return checked


def run(command: Command, folder: Path, die_after: float | None) -> bool:
    """Start it; kill it and all of its processes after so many seconds. Whether it lived to its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "denoise", *command.arguments(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    try:
        _, err = process.communicate(timeout=die_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, f"{command.name} ended with {process.returncode}:\n{err.decode()}"
    return True


def commands_of(base: Path, scale: Scale) -> list[Command]:
    """prepare; train; volume in every format, and in two processes."""
    scan = base / "scan.h5"
    if not scan.exists():
        simulate_foam_scan(scan, size=scale.size, slices=scale.slices, angles=scale.angles)

    def reconstruction(folder: Path) -> None:
        shutil.copytree(base / "reference prepare" / "rec", folder / "rec")

    def trained(folder: Path) -> None:
        reconstruction(folder)
        shutil.copytree(base / "reference train" / "run", folder / "run")

    def config(folder: Path) -> str:
        return str(folder / "rec" / "foam_config.yaml")

    def prepare_arguments(folder: Path) -> list[str]:
        settings = base / "settings.yaml"
        settings.write_text(scale.template)
        return ["prepare", str(scan), "--out", str(folder / "rec"), "--config", str(settings), "--resume"]

    def prepared(folder: Path) -> str:
        return "".join(digest_of(folder / "rec" / f"foam_{part}") for part in ("full", "split0", "split1"))

    def train_arguments(folder: Path) -> list[str]:
        return ["train", "--config", config(folder), "--output-dir", str(folder / "run"), "--resume"]

    def models(folder: Path) -> str:
        return digest_of_model(folder / "run" / "best_val_model.pth")

    found = [
        Command("prepare", lambda folder: None, prepare_arguments, prepared),
        Command("train", reconstruction, train_arguments, models),
    ]
    for output in _FORMATS:
        for processes in (1, 2):
            more = ["--processes", "2"] if processes == 2 else []

            def arguments(folder: Path, output: str = output, more: list[str] = more) -> list[str]:
                place = ["--model", str(folder / "run"), "--output", str(folder / output)]
                return ["volume", "--config", config(folder), *place, "--resume", *more]

            def result(folder: Path, output: str = output) -> str:
                return digest_of(folder / output)

            found.append(Command(f"volume {output} {processes}", trained, arguments, result))
    return found


def main() -> None:
    """Soak and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="commands, by the names that the table has")
    parser.add_argument("--minutes", action="store_true", help="runs of minutes instead of seconds")
    options = parser.parse_args()
    base = options.folder.resolve()
    base.mkdir(parents=True, exist_ok=True)
    chance = random.Random(options.seed)
    commands = commands_of(base, MINUTES if options.minutes else SECONDS)
    killed = [c for c in commands if not options.only or c.name in options.only.split(",")]
    # What volume starts from is always made.
    for command in [c for c in commands if c in killed or not c.name.startswith("volume")]:
        folder = base / f"reference {command.name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        command.prepare(folder)
        begun = time.monotonic()
        run(command, folder, None)
        command.seconds = time.monotonic() - begun
        command.reference = command.result(folder)
        print(f"{command.name}: {command.seconds:.1f} s undisturbed", flush=True)
    # Prepare and train die as often as two forms of volume each: whoever is furthest behind is next.
    share = {command.name: 1 if command.name.startswith("volume") else 2 for command in killed}
    checked = 0
    while sum(command.kills for command in killed) < options.kills:
        command = min(killed, key=lambda c: (c.kills + c.ends) / share[c.name])
        folder = base / f"life {command.name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        command.prepare(folder)
        kills = 0
        begun = time.monotonic()
        # After some deaths it may live, and tells how long that takes when the machine is not busy.
        while not run(command, folder, chance.uniform(0.3, 1.0) * command.seconds if kills < 6 else None):
            kills += 1
            checked += require_whole(folder)
            begun = time.monotonic()
        command.seconds = min(command.seconds, time.monotonic() - begun)
        command.kills += kills
        command.ends += 1
        command.lives.append(kills + 1)
        checked += require_whole(folder)
        assert command.result(folder) == command.reference, f"{command.name}: another result after {kills} kills"
        print(f"{command.name}: killed {kills} times, then the same result", flush=True)
    print("\n| command | kills | runs brought to their end, result the same | seconds undisturbed |")
    print("| --- | --- | --- | --- |")
    for command in killed:
        print(f"| {command.name} | {command.kills} | {command.ends} | {command.seconds:.1f} |")
    total = sum(command.kills for command in killed)
    print(f"\n{total} kills, {checked} files under a final name opened after them, all whole")


if __name__ == "__main__":
    main()
