"""The command line: arguments in, exit codes out. Loads nothing heavy before it knows what to do.

Exit codes: 0 done, 2 the user's mistake (one line on stderr), 1 a bug (traceback), 130 after SIGINT, 143 after SIGTERM.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from denoise.errors import ConfigError, DenoiseError, Interrupted

if TYPE_CHECKING:
    from denoise.api import Compute
    from denoise.commands.infer import Choice
    from denoise.config import RunConfig

app = typer.Typer(
    name="denoise",
    help="Remove the noise of X-ray CT reconstructions with a network trained on the scan itself (Noise2Inverse).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes "[default: ...]" for markup and drops it
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


ConfigOption = Annotated[Path, typer.Option("--config", help="Config file (YAML); see baseline_config.yaml.")]
TemplateOption = Annotated[
    Path | None, typer.Option("--config", help="Take the sections train and infer from this config file.")
]
ModeOption = Annotated[
    str | None, typer.Option("--mode", help="How to work.  [default: as the config says]", metavar="2.5d|3d")
]
GpusOption = Annotated[
    str | None, typer.Option("--gpus", help="GPUs to use, e.g. 0,1.  [default: all visible; none: the CPU]")
]
DeviceOption = Annotated[Device | None, typer.Option("--device", help="Kind of device.  [default: cuda if visible]")]
CheckpointOption = Annotated[
    Criterion | None,
    typer.Option("--checkpoint", help="Which of the three best models.  [default: the config's infer.checkpoint, val]"),
]
ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Model file or training folder.  [default: the config's own training]")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")]
DtypeOption = Annotated[OutputType, typer.Option("--dtype", help="Type of the output; input: the input's.")]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        help="Where to write; the suffix chooses the format (.tif, .h5, .zarr; none: a folder of TIFF slices).  "
        "[default: beside the reconstructions, named after the sample]",
    ),
]


@app.command()
def prepare(
    scan: Annotated[Path, typer.Argument(metavar="SCAN.h5", help="Raw scan, DXchange HDF5.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the results.  [default: SCAN_rec]")] = None,
    splits: Annotated[int, typer.Option("--splits", min=2, help="Number of sub-reconstructions.")] = 2,
    center: Annotated[
        float | None, typer.Option("--center", help="Rotation centre, in columns from 0.  [default: found]")
    ] = None,
    remove_stripes: Annotated[bool, typer.Option("--remove-stripes", help="Suppress ring artefacts.")] = False,
    overwrite: OverwriteOption = False,
    config: TemplateOption = None,
    mode: ModeOption = None,
) -> None:
    """Reconstruct a raw scan. Writes the full volume, the splits, and a config ready to train from."""
    from denoise.commands.prepare import prepare as run

    run(
        scan,
        out=out,
        splits=splits,
        center=center,
        remove_stripes=remove_stripes,
        overwrite=overwrite,
        settings=_template(config, mode),
        mode=mode,
    )


@app.command()
def train(
    config: ConfigOption,
    resume: Annotated[bool, typer.Option("--resume", help="Continue where the run stopped.")] = False,
    finetune: Annotated[
        Path | None, typer.Option("--finetune", help="Start from this model file or training folder.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Folder of the run.  [default: from config]")
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes",
            min=0.01,
            max=1e6,
            help="Train for this long, and plan the learning rate for it.  [default: until it stops improving]",
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Processes on a CPU.  [default: 1]")
    ] = None,
    gpus: GpusOption = None,
    mode: ModeOption = None,
    device: DeviceOption = None,
) -> None:
    """Train a network on the splits. Resumable; on one GPU, many, or a CPU."""
    from denoise.commands.train import train as run

    changes = {"output_dir": output_dir and output_dir.absolute(), "max_minutes": max_minutes}
    run(
        _load(config, mode, {name: value for name, value in changes.items() if value is not None}),
        _compute(device, gpus, processes),
        resume=resume,
        finetune=finetune,
    )


@app.command("slice")
def slice_(
    config: ConfigOption,
    slice_number: Annotated[int, typer.Option("--slice-number", help="Number of the slice, as its file has it.")],
    checkpoint: CheckpointOption = None,
    model: ModelOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    dtype: DtypeOption = OutputType.float32,
    gpus: GpusOption = None,
    mode: ModeOption = None,
    device: DeviceOption = None,
) -> None:
    """Denoise one slice; works while training goes on."""
    from denoise.commands.infer import denoise_slice

    settings = _load(config, mode)
    choice = _choice(settings, checkpoint, model, mode, output, overwrite, dtype)
    denoise_slice(settings, _compute(device, gpus), choice, number=slice_number)


@app.command()
def volume(
    config: ConfigOption,
    start_slice: Annotated[int | None, typer.Option("--start-slice", help="First slice.  [default: the first]")] = None,
    end_slice: Annotated[
        int | None, typer.Option("--end-slice", help="First slice that is left out.  [default: to the end]")
    ] = None,
    checkpoint: CheckpointOption = None,
    model: ModelOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    dtype: DtypeOption = OutputType.float32,
    gpus: GpusOption = None,
    mode: ModeOption = None,
    device: DeviceOption = None,
) -> None:
    """Denoise the volume, or a range of its slices, in bounded memory."""
    from denoise.commands.infer import denoise_volume

    settings = _load(config, mode)
    choice = _choice(settings, checkpoint, model, mode, output, overwrite, dtype)
    denoise_volume(settings, _compute(device, gpus), choice, start=start_slice, end=end_slice)


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for everything.  [default: denoise-demo-MODE]")
    ] = None,
    mode: Annotated[str, typer.Option("--mode", help="How to denoise.", metavar="2.5d|3d")] = "2.5d",
    overwrite: OverwriteOption = False,
    config: TemplateOption = None,
    gpus: GpusOption = None,
    device: DeviceOption = None,
) -> None:
    """Try everything on a simulated scan with known truth. Needs no data; takes 2.5 minutes on 2 cores (3D: 3.5)."""
    from denoise.commands.demo import demo as run

    run(
        out or Path(f"denoise-demo-{mode.lower()}"),
        mode=mode,
        compute=_compute(device, gpus),
        settings=_template(config, mode),
        overwrite=overwrite,
    )


@app.command()
def check(
    config: ConfigOption,
    data: Annotated[
        bool,
        typer.Option("--data", help="Read some slices too, and test whether the splits are what the method needs."),
    ] = False,
    gpus: GpusOption = None,
    mode: ModeOption = None,
    device: DeviceOption = None,
) -> None:
    """Say what would run, and write nothing. Reads the config and every input's header."""
    from denoise.commands.check import check as run

    run(_load(config, mode), _compute(device, gpus), data=data)


@app.command()
def report(
    config: ConfigOption,
    checkpoint: CheckpointOption = None,
    model: ModelOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Folder for the report.  [default: beside the reconstructions, SAMPLE_report]"),
    ] = None,
    overwrite: OverwriteOption = False,
    gpus: GpusOption = None,
    mode: ModeOption = None,
    device: DeviceOption = None,
) -> None:
    """Judge a model on held-out slices: gain, resolution, detail invented or removed. Needs no ground truth."""
    from denoise.commands.report import Request
    from denoise.commands.report import report as run

    settings = _load(config, mode)
    criterion = checkpoint.value if checkpoint else settings.infer.checkpoint
    run(settings, _compute(device, gpus), Request(criterion, model, output, overwrite))


def _load(path: Path, mode: str | None, train: dict[str, Any] | None = None) -> RunConfig:
    """The config, with these fields of its section train as the command line has them."""
    from denoise.config import load_config

    config = load_config(path, mode=mode)
    return config.model_copy(update={"train": config.train.model_copy(update=train or {})})


def _template(path: Path | None, mode: str | None) -> dict[str, Any] | None:
    """Sections train and infer of another config, as plain values."""
    if path is None:
        return None
    config = _load(path, mode)
    return {
        "train": config.train.model_dump(exclude={"output_dir"}, exclude_unset=True),
        "infer": config.infer.model_dump(exclude_unset=True),
    }


def _compute(device: Device | None, gpus: str | None, processes: int | None = None) -> Compute:
    from denoise.api import Compute

    numbers = None
    if gpus is not None:
        parts = [part.strip() for part in gpus.split(",")]
        if not all(part.isascii() and part.isdigit() for part in parts):
            raise ConfigError(f"--gpus {gpus!r} is not a list of GPU numbers; expected e.g. --gpus 0,1")
        numbers = tuple(int(part) for part in parts)
    return Compute(device.value if device else None, numbers, processes)


def _choice(
    config: RunConfig,
    checkpoint: Criterion | None,
    model: Path | None,
    mode: str | None,
    output: str | None,
    overwrite: bool,
    dtype: OutputType,
) -> Choice:
    from denoise.commands.infer import Choice

    criterion = checkpoint.value if checkpoint else config.infer.checkpoint
    return Choice(criterion, model, mode, output, overwrite, dtype.value)


def main() -> NoReturn:
    """Run a command and end the process with its exit code."""
    _set_up()
    try:
        app(prog_name="denoise")  # reports wrong arguments itself, with exit code 2, and ends with 130 after SIGINT
    except DenoiseError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except Interrupted as interruption:
        sys.stderr.write(f"{interruption}\n")
        sys.exit(interruption.exit_code)
    sys.exit(0)


def _set_up() -> None:
    """Logging, and what every process started from here inherits."""
    # Under torchrun every rank runs this command; one of them speaks.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(capture=True)
    # It reports damaged files on its own, besides the error that we raise for them.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    os.environ["PYTHONNOUSERSITE"] = "1"
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leave by an exception, so that partial results are removed on the way."""
    raise Interrupted(number, "terminated; results that were not finished are removed")
