"""Where a run stands, how that is restored, and what a resumed run must not forget."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from denoise.archive import shown
from denoise.checkpoint import Checkpoint, TrainState, Weights, parsed_seen
from denoise.errors import CheckpointError
from denoise.launch import World
from denoise.memory import give_back_freed, large_arrays_given_back
from denoise.run_folder import RunFolder
from denoise.seen import AllSeen
from denoise.training.job import MUON, TrainJob
from denoise.training.optimizer import Optimizers
from denoise.training.part import TrainingPart

#: In the fingerprint of a state: which model the run began from. States of earlier versions do not say.
BEGUN_FROM = "begun from"
#: Likewise: what the model was trained on, in all its runs.
SEEN = "seen"
#: NFS keeps what it knows of a file, or of its absence, for up to a minute.
_STALE_SECONDS = 120.0


@dataclass
class Progress:
    """Where a run stands; all of it is saved and restored."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0
    """Spent in optimiser steps."""
    elapsed: float = 0.0
    """Seconds since the run began, reading and scoring included, pauses between runs not."""
    validation_seconds: float = 0.0
    """The longest that a score took."""
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, held-out error) of every score."""
    flat_since: int = 0
    """The step at which the run was found to improve no longer; 0: not yet."""
    waited: int = 0
    """Epochs without improvement by then."""
    division: list[int] | None = None
    """How the training part is divided into slabs and how many are in memory (starts along z, y and x, slabs), as
    blocks are drawn accordingly; None where all of it is in memory."""
    minutes: float | None = None
    """That the run was given; they hold where it is resumed without saying how many."""
    symmetric: bool | None = None
    """Whether its weights are equivariant; None in states of earlier versions."""

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> Progress:
        """As it was saved.

        Raises
        ------
        ValueError
            A value is missing, superfluous or of another kind; names it.
        """
        progress = cls(**values)
        for name, default in asdict(cls()).items():
            value = getattr(progress, name)
            if name == "division" and isinstance(value, list) and {type(number) for number in value} == {int}:
                continue
            if name == "symmetric" and type(value) is bool:
                continue
            if name == "minutes" and type(value) in (int, float) and value > 0:
                continue
            kinds = (int, float) if type(default) is float else (type(default),)
            if type(value) not in kinds:
                raise ValueError(f"{name} is no {type(default).__name__}")
        if not all(type(k) is str and type(v) in (int, float) for k, v in progress.best.items()):
            raise ValueError("best is no list of scores")
        if not all(
            isinstance(point, list | tuple) and [type(n) for n in point] == [int, float] for point in progress.curve
        ):
            raise ValueError("curve is no list of steps and scores")
        return progress

    @property
    def epochs_begun(self) -> int:
        """The epoch that a score belongs to, counted from 1."""
        return self.epoch + (self.step_in_epoch > 0)

    @property
    def is_scored(self) -> bool:
        """Whether the model as it stands has been scored."""
        return bool(self.curve) and self.curve[-1][0] == self.step


def state_to_resume(job: TrainJob, folder: RunFolder, world: World) -> TrainState | None:
    """What the run continues from, the same on every process; None where there is nothing yet, or nothing is wanted.

    A network file system may show another machine the state before the last one for a while, or none.

    Raises
    ------
    CheckpointError
        As ``load_state``; or a machine goes on seeing another state than the first one does.
    """
    state = load_state(job, folder) if world.is_chief and job.resume and folder.state.exists() else None
    wanted = world.from_chief(None if state is None else dict(state.progress))
    if wanted is None or world.is_chief:
        return state
    deadline = time.monotonic() + _STALE_SECONDS
    while True:
        if folder.state.exists():
            state = load_state(job, folder)
            if dict(state.progress) == wanted:
                return state
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{folder.state} on {socket.gethostname()} is not the file that the first machine reads (step "
                f"{wanted['step']}); all machines must see the folder of the run under the same path"
            )
        time.sleep(1.0)


def load_state(job: TrainJob, folder: RunFolder) -> TrainState:
    """The state in a run's folder.

    Raises
    ------
    CheckpointError
        It is damaged, or the run that it belongs to had other settings; names the first that differs.
    """
    state = TrainState.load(folder.state)
    now, then = job.fingerprint(), state.fingerprint
    if job.initial is not None and then.get(BEGUN_FROM, job.begun_from) != job.begun_from:
        began = "no model" if then[BEGUN_FROM] is None else "another model"
        raise CheckpointError(
            f"the run in {folder.path} began from {began}, not from the one that --finetune names; continue it with "
            "--resume alone, or begin another one with another --output-dir"
        )
    if state.progress.get("symmetric") is True and job.settings.symmetric is False:
        raise CheckpointError(
            f"the run in {folder.path} has weights that treat directions alike, and train.symmetric is false; resume "
            "it without that, or start a new run with another --output-dir (--finetune begins from a model)"
        )
    changed = [name for name in now if now[name] != then.get(name)]
    if not Optimizers.had_muon(state.optimizer):  # begun by an earlier version: it goes on with Adam alone
        changed = [name for name in changed if not name.startswith(f"{MUON}.")]
    if changed:
        name = changed[0]
        told = f"with {name} = {shown(then[name])}" if name in then else f"without {name}"
        saved = f"{folder.state} was saved {told}"
        new = "start a new run with another --output-dir (--finetune begins from a model)"
        if name in job.recipe:
            raise CheckpointError(
                f"{saved}, and this version of denoise trains with {now[name]!r}; finish the run with the version that "
                f"began it, or {new}"
            )
        raise CheckpointError(f"{saved}, the config now has {now[name]!r}; set it back to resume, or {new}")
    return state


def seen_so_far(job: TrainJob, part: TrainingPart, state: TrainState | None, folder: RunFolder) -> AllSeen:
    """What the model was trained on, in all its runs, this one included.

    Raises
    ------
    CheckpointError
        The run that goes on was trained on other grey values.
    """
    stored = state.fingerprint.get(SEEN) if state else None
    seen = parsed_seen(stored if isinstance(stored, dict) else {}, folder.state) if state else job.seen_before
    begun = state is not None and bool(seen.runs)
    with large_arrays_given_back():  # what stayed in this process would come on top of what training may take
        if not begun:
            seen = seen.then(part.seen())
        # The slices that were looked at then: of a range of slices, earlier versions read other neighbours.
        elif not seen.runs[-1].contents.are_those_of(job.splits.volumes):
            raise CheckpointError(
                f"the splits are not those that the run in {folder.path} was trained on: their grey values differ, as "
                "if they had been reconstructed anew; train on these with another --output-dir (--finetune begins from "
                "a model), or bring those back to resume"
            )
    give_back_freed()
    return seen


def keep_stored_bests(progress: Progress, folder: RunFolder, chosen_by: str) -> None:
    """A model written after the state was saved (the machine died in between) must not lose to a worse one.

    ``chosen_by`` is the score whose lowest makes the ``val`` model.
    """
    for criterion, score, sign in (("val", chosen_by, 1), ("lcl", "lcl", 1), ("edge", "edge", -1)):
        path = folder.model(criterion)
        if not path.exists():
            continue
        stored = Checkpoint.load(path)
        value = sign * stored.scores.get(score, math.inf * sign)
        if value < progress.best.get(criterion, math.inf):
            # A hair worse, so that a repeated run improves on it at the very epoch where the first one did.
            progress.best[criterion] = math.nextafter(value, math.inf)
            if criterion == "val":
                progress.best_epoch = stored.epoch


def on_cpu(weights: Weights) -> Weights:
    """A copy that later steps do not change."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
