"""The options that several verbs share, with their help. Loads nothing heavy."""

from __future__ import annotations

import importlib.metadata
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """Kinds of device."""

    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Criterion(StrEnum):
    """Which of the best models."""

    val = "val"
    lcl = "lcl"
    edge = "edge"


class OutputType(StrEnum):
    """Types of the values that are written."""

    float32 = "float32"
    input = "input"
    float64 = "float64"
    uint8 = "uint8"
    uint16 = "uint16"
    int16 = "int16"


class Compression(StrEnum):
    """How an output is compressed, without loss."""

    none = "none"
    gzip = "gzip"
    blosc = "blosc"


def at_home(text: str) -> str:
    """A path with what ``~`` stands for: shells leave it in ``--output=~/x``."""
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        raise typer.BadParameter(f"{text}: no home folder is known for the user after ~") from None


def path_at_home(text: str) -> Path:
    """The same as a Path."""
    return Path(at_home(text))


ConfigOption = Annotated[
    Path,
    typer.Option("--config", parser=path_at_home, metavar="PATH", help="Config file (YAML); see baseline_config.yaml."),
]
TemplateOption = Annotated[
    Path | None,
    typer.Option(
        "--config", parser=path_at_home, metavar="PATH", help="Take the sections train and infer from this config file."
    ),
]
ModeOption = Annotated[
    str | None, typer.Option("--mode", help="How to work.  [default: as the config says]", metavar="2.5d|3d")
]
GpusOption = Annotated[
    str | None, typer.Option("--gpus", help="GPUs to use, e.g. 0,1.  [default: all visible; none: the CPU]")
]
ProcessesOption = Annotated[int | None, typer.Option("--processes", min=1, help="Processes on a CPU.  [default: 1]")]
NodesOption = Annotated[
    int | None,
    typer.Option(
        "--nodes",
        help="Number of machines; start the same command on each.  [default: as Slurm or torchrun say, else 1]",
    ),
]
NodeRankOption = Annotated[
    int | None, typer.Option("--node-rank", help="Which of the machines this is, from 0; with --nodes.")
]
RendezvousOption = Annotated[
    str | None,
    typer.Option("--rendezvous", help="Machine 0 and a free port on it; with --nodes.", metavar="HOST:PORT"),
]
RestartsOption = Annotated[
    int, typer.Option("--max-restarts", min=0, help="Start again so often when a process was lost.")
]
DeviceOption = Annotated[Device | None, typer.Option("--device", help="Kind of device.  [default: cuda if visible]")]
CheckpointOption = Annotated[
    Criterion | None,
    typer.Option("--checkpoint", help="Which of the three best models.  [default: the config's infer.checkpoint, val]"),
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        parser=path_at_home,
        metavar="PATH",
        help="Model file or training folder.  [default: the config's own training]",
    ),
]
OutputDirOption = Annotated[
    Path | None,
    typer.Option(
        "--output-dir", parser=path_at_home, metavar="PATH", help="Folder of the training run.  [default: from config]"
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="Host memory for all processes together, e.g. 8G.  [default: as the config says, what is free]",
    ),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with what a run that died has left.")]
ContinueOption = Annotated[
    bool,
    typer.Option(
        "--resume", help="Continue where the run stopped; begin (with --finetune: from its model) if not begun."
    ),
]
FinetuneOption = Annotated[
    Path | None,
    typer.Option(
        "--finetune", parser=path_at_home, metavar="PATH", help="Begin from this model file or training folder."
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what memory and disk it would take, and write nothing.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")]
DtypeOption = Annotated[OutputType, typer.Option("--dtype", help="Type of the output; input: the input's.")]
CompressionOption = Annotated[
    Compression | None,
    typer.Option("--compression", help="Of the output, without loss.  [default: blosc for .zarr, else none]"),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        parser=at_home,
        metavar="PATH",
        help="Where to write; the suffix chooses the format (.tif, .h5, .zarr; none: a folder of TIFF slices).  "
        "[default: beside the reconstructions, named after the sample]",
    ),
]


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"denoise {importlib.metadata.version('ct-denoise')}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
]
