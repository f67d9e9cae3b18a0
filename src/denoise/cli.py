"""The command line: arguments in, exit codes out. Loads nothing heavy before it knows what to do.

Exit codes: 0 done, 2 the user's mistake (one line on stderr), 1 a bug (traceback), 130 after SIGINT, 143 after SIGTERM.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from denoise.cli_options import (
    CheckpointOption,
    CompressionOption,
    ConfigOption,
    ContinueOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    FinetuneOption,
    GpusOption,
    MemoryOption,
    ModelOption,
    ModeOption,
    NodeRankOption,
    NodesOption,
    OutputDirOption,
    OutputOption,
    OutputType,
    OverwriteOption,
    ProcessesOption,
    RendezvousOption,
    RestartsOption,
    ResumeOption,
    TemplateOption,
    VersionOption,
    path_at_home,
)
from denoise.cli_values import bytes_allowed, chosen, computing, criterion_of, loaded, template
from denoise.cluster import Spread, speaks
from denoise.errors import DenoiseError, Interrupted, damage_reason, printable
from denoise.streams import lasting_streams

app = typer.Typer(
    name="denoise",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes "[default: ...]" for markup and drops it
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def denoise(version: VersionOption = False) -> None:
    """Remove the noise of X-ray CT reconstructions with a network trained on the scan itself (Noise2Inverse)."""


#: What is never the fault of this program: permissions, limits, disks and networks that fail while they are used.
_OF_THE_MACHINE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
    | {
        errno.EFBIG,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENXIO,
        errno.ENODEV,
        errno.EHOSTDOWN,
    }
)


@app.command()
def prepare(
    scan: Annotated[Path, typer.Argument(parser=path_at_home, metavar="SCAN.h5", help="Raw scan, DXchange HDF5.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", parser=path_at_home, metavar="PATH", help="Folder for the results.  [default: SCAN_rec]"),
    ] = None,
    splits: Annotated[int, typer.Option("--splits", min=2, help="Number of sub-reconstructions.")] = 2,
    center: Annotated[
        float | None, typer.Option("--center", help="Rotation centre, in columns from 0.  [default: found]")
    ] = None,
    start_row: Annotated[
        int | None, typer.Option("--start-row", min=0, help="First detector row.  [default: the first]")
    ] = None,
    end_row: Annotated[
        int | None, typer.Option("--end-row", help="First detector row that is left out.  [default: to the end]")
    ] = None,
    remove_stripes: Annotated[bool, typer.Option("--remove-stripes", help="Suppress ring artefacts.")] = False,
    counts_per_photon: Annotated[
        float | None,
        typer.Option(
            "--counts-per-photon",
            min=0.0,
            help="Variance of a pixel's counts over their mean, to correct low counts; 0: do not.  [default: found]",
        ),
    ] = None,
    keep_projections: Annotated[
        bool, typer.Option("--keep-projections", help="Use also those without light, and copies.")
    ] = False,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
    max_memory: MemoryOption = None,
    config: TemplateOption = None,
    mode: ModeOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Reconstruct a raw scan. Writes the full volume, the splits, and a config ready to train from."""
    from denoise.commands.prepare import prepare as run

    run(
        scan,
        out=out,
        splits=splits,
        center=center,
        rows=(start_row, end_row),
        remove_stripes=remove_stripes,
        counts_per_photon=counts_per_photon,
        keep_projections=keep_projections,
        overwrite=overwrite,
        resume=resume,
        max_memory=bytes_allowed(max_memory),
        settings=template(config, mode),
        mode=mode,
        dry_run=dry_run,
    )


@app.command()
def train(
    config: ConfigOption,
    resume: ContinueOption = False,
    finetune: FinetuneOption = None,
    output_dir: OutputDirOption = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes",
            min=0.01,
            max=1e6,
            help="Train for this long, and plan the learning rate for it.  [default: until it stops improving]",
        ),
    ] = None,
    max_memory: MemoryOption = None,
    processes: ProcessesOption = None,
    gpus: GpusOption = None,
    mode: ModeOption = None,
    device: DeviceOption = None,
    nodes: NodesOption = None,
    node_rank: NodeRankOption = None,
    rendezvous: RendezvousOption = None,
    max_restarts: RestartsOption = 0,
) -> None:
    """Train a network on the splits. Resumable; on one GPU, many, several machines, or a CPU."""
    from denoise.commands.train import train as run

    changes = {"output_dir": output_dir and output_dir.absolute(), "max_minutes": max_minutes}
    run(
        loaded(config, mode, changes, max_memory),
        computing(device, gpus, processes, Spread(nodes, node_rank, rendezvous, max_restarts)),
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

    settings = loaded(config, mode)
    choice = chosen(settings, checkpoint, model, mode, output, overwrite, dtype)
    denoise_slice(settings, computing(device, gpus), choice, number=slice_number)


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
    resume: ResumeOption = False,
    dtype: DtypeOption = OutputType.float32,
    compression: CompressionOption = None,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Write a volume of uncertainties too; takes three times as long.")
    ] = False,
    max_memory: MemoryOption = None,
    processes: ProcessesOption = None,
    gpus: GpusOption = None,
    mode: ModeOption = None,
    device: DeviceOption = None,
    nodes: NodesOption = None,
    node_rank: NodeRankOption = None,
    rendezvous: RendezvousOption = None,
    max_restarts: RestartsOption = 0,
) -> None:
    """Denoise the volume, or a range of its slices. Resumable, in bounded memory, on one GPU or many machines."""
    from denoise.commands.infer import denoise_volume

    settings = loaded(config, mode, max_memory=max_memory)
    choice = replace(
        chosen(settings, checkpoint, model, mode, output, overwrite, dtype),
        resume=resume,
        compression=compression.value if compression else None,
        confidence=confidence,
    )
    compute = computing(device, gpus, processes, Spread(nodes, node_rank, rendezvous, max_restarts))
    denoise_volume(settings, compute, choice, start=start_slice, end=end_slice)


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=path_at_home, metavar="PATH", help="Folder for everything.  [default: denoise-demo-MODE]"
        ),
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
        compute=computing(device, gpus),
        settings=template(config, mode),
        overwrite=overwrite,
    )


@app.command()
def check(
    config: ConfigOption,
    data: Annotated[
        bool,
        typer.Option("--data", help="Read some slices too, and test whether the splits are what the method needs."),
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Train and denoise noise for some seconds too; says how long runs take.")
    ] = False,
    output_dir: OutputDirOption = None,
    max_memory: MemoryOption = None,
    processes: ProcessesOption = None,
    gpus: GpusOption = None,
    mode: ModeOption = None,
    device: DeviceOption = None,
) -> None:
    """Say what would run, and write nothing. Reads the config and every input's header."""
    from denoise.commands.check import check as run

    compute = computing(device, gpus, processes)
    changes = {"output_dir": output_dir and output_dir.absolute()}
    run(loaded(config, mode, changes, max_memory), compute, data=data, calibrate=calibrate)


@app.command()
def report(
    config: ConfigOption,
    checkpoint: CheckpointOption = None,
    model: ModelOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            parser=path_at_home,
            metavar="PATH",
            help="Folder for the report.  [default: beside the reconstructions]",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    gpus: GpusOption = None,
    mode: ModeOption = None,
    device: DeviceOption = None,
) -> None:
    """Judge a model on held-out slices: gain, resolution, detail invented or removed. Needs no ground truth."""
    from denoise.commands.report import Request
    from denoise.commands.report import report as run

    settings = loaded(config, mode)
    criterion = criterion_of(settings, checkpoint, model)
    run(settings, computing(device, gpus), Request(criterion, model, output, overwrite))


def main() -> NoReturn:
    """Run a command and end the process with its exit code."""
    with lasting_streams():
        _set_up()
        code = _run()
    sys.exit(code)


def _run() -> int:
    try:
        app(prog_name="denoise")  # reports wrong arguments itself, with exit code 2, and ends with 130 after SIGINT
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except DenoiseError as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        return error.exit_code
    except Interrupted as interruption:
        sys.stderr.write(f"{interruption}\n")
        return interruption.exit_code
    except (MemoryError, RuntimeError, OSError) as error:
        from denoise.memory import is_out_of_memory

        if is_out_of_memory(error):
            sys.stderr.write(
                f"error: memory ran out ({damage_reason(error)}); lower train.batch_size, train.patch_size or "
                "infer.tile_size, or use a machine that allows this process more memory\n"
            )
        elif isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            where = f"{printable(str(error.filename))[:500]}: " if error.filename else ""
            sys.stderr.write(f"error: {where}{damage_reason(error)}; a file or a disk cannot be used as it is\n")
        else:
            raise
        return DenoiseError.exit_code
    return 0


def _set_up() -> None:
    """Logging, and what every process started from here inherits."""
    # Under torchrun and srun every rank runs this command; one of them speaks.
    level = logging.INFO if speaks(os.environ) else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(capture=True)
    # It reports damaged files on its own, besides the error that we raise for them.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    # It sets this itself when its import is over; where Ctrl-C ends that, it would print the statistics of a cache.
    logging.getLogger("torch").setLevel(logging.WARNING)
    os.environ["PYTHONNOUSERSITE"] = "1"
    # Where a partner was lost, torch prints pages of addresses in its libraries before we say which one it was.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leave by an exception, so that what is done is made to last on the way."""
    raise Interrupted(number, "terminated; --resume continues where something was done")
