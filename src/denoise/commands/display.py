"""What commands say: results on stdout, progress on a terminal or as lines for a batch queue's log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from denoise.launch import describe_device
from denoise.trust.verdict import Severity, Verdict

_log = logging.getLogger(__name__)

_SECONDS_PER_LINE = 30.0
_MARKS = {
    Severity.FINE: "fine",
    Severity.NOTE: "note",
    Severity.RESERVATION: "reservation",
    Severity.INVALID: "NOT VALID",
}


def say(text: str) -> None:
    """A result, on stdout, as it is."""
    sys.stdout.write(text + "\n")


def say_verdict(verdict: Verdict) -> None:
    """Every finding as a line: how grave, the number and its threshold, what it means; last the verdict."""
    width = max(len(finding.name) for finding in verdict.findings)
    for finding in verdict.findings:
        number = "" if finding.value is None else f"{finding.value:.3g}"
        limit = f" ({finding.limit})" if finding.limit else ""
        say(
            f"{_MARKS[finding.severity]:<11}  {finding.name:<{width}}  {number}{limit} {finding.unit}: "
            f"{finding.sentence}"
        )
    say(f"verdict: {verdict.word}")


def say_device(devices: Sequence[torch.device], asked_for_cpu: bool) -> None:
    """Name the devices; where nobody asked for the CPU and there is no GPU, say that."""
    names = ", ".join(dict.fromkeys(describe_device(device) for device in devices))
    if len(devices) > 1:
        names = f"{len(devices)} processes that share {names}" if devices[0].type == "cpu" else names
    if devices[0].type == "cpu" and not asked_for_cpu:
        _log.warning("no GPU is visible: running on %s", names)
    else:
        _log.info("running on %s", names)


@contextmanager
def progress_bar(what: str, total: int, voxels_per_item: int) -> Iterator[Callable[[int], None]]:
    """A bar (or a line now and then) with voxels per second; gives a function that takes the items done so far."""
    console = Console(stderr=True)
    begun = said = time.monotonic()

    def rate(done: int) -> str:
        return f"{done * voxels_per_item / max(time.monotonic() - begun, 1e-9) / 1e6:.2f} Mvoxel/s"

    if not console.is_terminal:

        def line(done: int) -> None:
            nonlocal said
            if time.monotonic() - said >= _SECONDS_PER_LINE:
                said = time.monotonic()
                _log.info("%s: %d of %d slices, %s", what, done, total, rate(done))

        yield line
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed}/{task.total} slices · {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task(what, total=total, rate="")
        yield lambda done: bar.update(task, completed=done, rate=rate(done))


def slices_bar(what: str, voxels_per_slice: int, slices: int) -> AbstractContextManager[Callable[[int], None]]:
    """As ``progress_bar``, in the order in which a job in another process is told of it."""
    return progress_bar(what, slices, voxels_per_slice)
