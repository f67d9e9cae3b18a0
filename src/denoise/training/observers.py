"""What a run leaves for people to look at: history.jsonl, curves and previews as PNG, TensorBoard, a live display."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from denoise.errors import CheckpointError, ConfigError, damage_reason
from denoise.files import explained, whole_file, write_text
from denoise.readable import duration
from denoise.run_folder import RunFolder
from denoise.training.job import Observer, Plan, Record, TrainJob
from denoise.training.validation import Preview

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_log = logging.getLogger(__name__)

#: Pictures take longer than a validation of a small network: at most one set in so many seconds.
_SECONDS_PER_PICTURE = 20.0
_SECONDS_PER_LINE = 30.0
#: What curves are drawn from.
_DRAWN = ("epoch", "train_loss", "val_l1", "val_lcl", "val_edge")
#: What a record has to have; the rest judges whether training was long enough.
_READ = ("step", "learning_rate", "val_mse", *_DRAWN)


def observers_of(job: TrainJob, folder: RunFolder) -> list[Observer]:
    """Everybody who watches a run, on its chief."""
    observers: list[Observer] = [History(folder, resume=job.resume), Pictures(folder)]
    if job.settings.tensorboard:
        observers.append(TensorBoard(folder.path / "tensorboard"))
    console = Console(stderr=True)
    if job.show_progress:
        observers.append(LiveDisplay(console) if console.is_terminal else LogLines())
    return [*observers, *job.observers]


class _Silent:
    """An observer that ignores what it is not interested in."""

    def started(self, plan: Plan) -> None:
        """See ``Observer``."""

    def stepped(self, step: int, epoch: int, done: float, loss: float | None) -> None:
        """See ``Observer``."""

    def validated(self, record: Record, preview: Preview | None) -> None:
        """See ``Observer``."""

    def close(self) -> None:
        """See ``Observer``."""


class History(_Silent):
    """history.jsonl: one line per validation; lines of steps that a resumed run repeats are dropped."""

    def __init__(self, folder: RunFolder, *, resume: bool) -> None:
        self._path = folder.history
        self._resume = resume
        self._last_step = 0

    def started(self, plan: Plan) -> None:
        """Begin the file, or keep the lines up to the step that the run resumes from."""
        kept = [r for r in read_history(self._path) if r["step"] <= plan.first_step] if self._resume else []
        write_text(self._path, "".join(json.dumps(record) + "\n" for record in kept))
        self._last_step = kept[-1]["step"] if kept else 0

    def validated(self, record: Record, preview: Preview | None) -> None:
        """Append a line, unless it stands there: a state that was saved before its score is scored once more."""
        if record.step == self._last_step:
            return
        with explained(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.as_plain()) + "\n")


def read_history(path: Path) -> list[dict[str, Any]]:
    """The records of a history file; a last line that was cut short by a kill is left out.

    Raises
    ------
    CheckpointError
        It may not be read, or a line is no record; names it.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {damage_reason(error)}; move it elsewhere") from error
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _damaged_history(path, number) from error
        if not isinstance(record, dict) or not all(type(record.get(n)) in (int, float) for n in _READ):
            raise _damaged_history(path, number)
        records.append(record)
    return records


def _damaged_history(path: Path, line: int) -> CheckpointError:
    return CheckpointError(
        f"{path}, line {line} is no record of a validation; the file is damaged: remove that line, or move the file "
        "elsewhere to go on without it"
    )


class Pictures(_Silent):
    """curves.png and previews/epoch_NNNNNN.png."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._drawn_at = -_SECONDS_PER_PICTURE
        self._pending: tuple[Record, Preview] | None = None

    def validated(self, record: Record, preview: Preview | None) -> None:
        """Draw, unless the last pictures are quite new."""
        if preview is not None:
            self._pending = (record, preview)
        if time.monotonic() - self._drawn_at >= _SECONDS_PER_PICTURE:
            self._draw()

    def _draw(self) -> None:
        if self._pending is None:
            return
        record, preview = self._pending
        self._pending = None
        draw_preview(preview, self._folder.preview(record.epoch))
        draw_curves(read_history(self._folder.history), self._folder.curves)
        self._drawn_at = time.monotonic()

    def close(self) -> None:
        """Draw what is not drawn yet."""
        self._draw()


def draw_preview(preview: Preview, path: Path) -> None:
    """Three panels at the grey window of the noisy input: what goes in, what comes out, what it is compared with."""
    from matplotlib.figure import Figure

    images = {
        "input: one split": preview.noisy.numpy(),
        "prediction": preview.predicted.numpy(),
        "target: other split": preview.other.numpy(),
    }
    low, high = np.percentile(images["prediction"], (0.5, 99.5))
    margin = 0.1 * (high - low) + 1e-6
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = figure.subplots(1, 3)
    for panel, (title, image) in zip(axes, images.items(), strict=True):
        panel.imshow(image, cmap="gray", vmin=low - margin, vmax=high + margin, interpolation="nearest")
        panel.set_title(title)
        panel.set_axis_off()
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=100)


def best_of(history: Sequence[Mapping[str, Any]]) -> int:
    """Which line of a history is that of the ``val`` model: the last that improved on it."""
    return max(i for i, record in enumerate(history) if i == 0 or "val" in record.get("improved", ()))


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Training loss and held-out score over epochs; below, the two sharpness scores."""
    from matplotlib.figure import Figure

    if not history:
        return
    epochs = [r["epoch"] for r in history]
    figure = Figure(figsize=(9, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot(epochs, [r["train_loss"] for r in history], color="0.6", label="training loss")
    top.plot(epochs, [r["val_l1"] for r in history], color="C0", label="held-out L1")
    best = history[best_of(history)]
    top.plot(best["epoch"], best["val_l1"], "o", color="C3", label=f"best: epoch {best['epoch']}")
    top.set_ylabel("normalised grey values")
    top.legend()
    bottom.plot(epochs, [r["val_lcl"] for r in history], color="C1", label="LCL (lower is flatter)")
    right: Axes = bottom.twinx()
    right.plot(epochs, [r["val_edge"] for r in history], color="C2", label="edge score (higher is sharper)")
    bottom.set_xlabel("epoch")
    bottom.set_ylabel("LCL")
    right.set_ylabel("edge score")
    lines = [*bottom.get_lines(), *right.get_lines()]
    labels = [line.get_label() for line in lines]
    title = "sharpness, no measure of fidelity"
    bottom.legend(lines, labels, title=title, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=100)


class TensorBoard(_Silent):
    """The same scores for TensorBoard (an optional extra)."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "train.tensorboard is true but tensorboard is not installed; run `pip install ct-denoise[tensorboard]` "
                "or set it to false"
            ) from error
        self._writer = SummaryWriter(str(folder))

    def validated(self, record: Record, preview: Preview | None) -> None:
        """Write the numbers."""
        for name, value in record.as_plain().items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, record.step)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class LiveDisplay(_Silent):
    """A progress bar on a terminal: epoch, loss, scores, rate, time left."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("starting", total=None, rate="")
        self._plan: Plan | None = None
        self._begun = time.monotonic()
        self._loss = self._score = ""

    def started(self, plan: Plan) -> None:
        """Show the bar."""
        self._plan = plan
        self._begun = time.monotonic()
        self._bar.update(self._task, total=1.0, completed=plan.first_step / plan.most_steps)
        self._bar.start()

    def stepped(self, step: int, epoch: int, done: float, loss: float | None) -> None:
        """Advance."""
        assert self._plan is not None
        if loss is not None:
            self._loss = f" · loss {loss:.4f}"
        blocks = (step - self._plan.first_step) * self._plan.blocks_per_step
        rate = blocks / max(time.monotonic() - self._begun, 1e-9)
        self._bar.update(
            self._task,
            completed=done,
            description=f"epoch {epoch + 1}{self._loss}{self._score}",
            rate=f"{rate:.1f} blocks/s",
        )

    def validated(self, record: Record, preview: Preview | None) -> None:
        """Show the held-out score."""
        star = " *" if "val" in record.improved else ""
        self._score = f" · held-out {record.scores.l1:.4f}{star}"

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()


class LogLines(_Silent):
    """A line now and then, for batch queues without a terminal."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._said_at = -_SECONDS_PER_LINE

    def started(self, plan: Plan) -> None:
        """Say what is going to happen."""
        self._plan = plan

    def validated(self, record: Record, preview: Preview | None) -> None:
        """Say where the run stands, unless that was said just now."""
        assert self._plan is not None
        now = time.monotonic()
        if now - self._said_at < _SECONDS_PER_LINE and record.done < 1.0:
            return
        self._said_at = now
        whole = 60 * self._plan.minutes if self._plan.minutes else record.seconds / max(record.done, 1e-9)
        _log.info(
            "epoch %d · step %d · loss %.4f · held-out %.4f%s · %.1f blocks/s · at most %s left",
            record.epoch,
            record.step,
            record.train_loss,
            record.scores.l1,
            " (best)" if "val" in record.improved else "",
            record.blocks_per_second,
            duration((1 - record.done) * whole),
        )
