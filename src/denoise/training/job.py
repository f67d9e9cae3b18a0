"""What a training process is told, and what it reports while it works. Plain, picklable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from denoise.checkpoint import Weights
from denoise.config import RunConfig, TrainSection
from denoise.config.recipes import PLAIN_ADAM, Adam, Muon
from denoise.networks.catalogue import find_network
from denoise.networks.spec import NetworkSpec
from denoise.seen import NOTHING, AllSeen
from denoise.training.objective import Objective
from denoise.training.schedule import Schedule
from denoise.training.validation import Preview, Scores
from denoise.volumes.volume import SplitSet

#: What the settings of Muon are called in fingerprints; states of runs without one have none of them.
MUON = "muon"


@dataclass(frozen=True)
class TrainJob:
    """One training run. ``settings`` holds what has the same meaning in every mode; the rest is resolved already."""

    splits: SplitSet
    network: NetworkSpec
    settings: TrainSection
    patch_size: int
    batch_size: int
    schedule: Schedule
    objective: Objective
    folder: Path
    ema_decay: float = 0.0
    adam: Adam = PLAIN_ADAM
    muon: Muon | None = None
    slices_first: int = 0
    """Steps, at most, on single slices of the blocks, before those on whole blocks: where steps are cheap, first."""
    sample: str = "sample"
    patches_per_epoch: int | None = None
    train_slices: range | None = None
    non_finite: str = "error"
    resume: bool = False
    """Continue from the state in the folder, if there is one."""
    initial: Weights | None = None
    begun_from: str | None = None
    """Which model the run began from (``checkpoint.digest``); None: from none. A resumed run keeps what it was."""
    seen_before: AllSeen = NOTHING
    """What that model was trained on; nothing, where there is none."""
    show_progress: bool = True
    config: RunConfig | None = None
    """What the folder keeps as the settings of the run."""
    max_memory: int | None = None
    """Bytes that all processes of a node may take together; None: the data take what is free, but for a part."""
    observers: tuple[Observer, ...] = ()
    """Told what happens, besides those that write the record of the run."""

    def restarted(self) -> TrainJob:
        """The job that goes on from what this one has saved, after one of its processes was lost."""
        return replace(self, resume=True)

    @property
    def chosen_by(self) -> Literal["l1", "l2"]:
        """The held-out score whose lowest makes the ``val`` model.

        With noisy targets L1 wavers where the squared error, of networks that are trained on it, still falls.
        """
        return "l2" if self.objective.loss == "l2" else "l1"

    def fingerprint(self) -> Mapping[str, Any]:
        """What must not change between a run and its resumption; plain values."""
        settings = self.settings
        return {
            "network": self.network.name,
            **{
                f"network.{name}": value
                for name, value in find_network(self.network.name).complete(self.network.options).items()
            },
            "splits": len(self.splits),
            "shape": list(self.splits.shape),
            "patch size": self.patch_size,
            "batch_size": self.batch_size,
            "patches per epoch": self.patches_per_epoch,
            **asdict(self.objective),
            "ema_decay": self.ema_decay,
            "training slices": [self.train_slices[0], self.train_slices[-1] + 1] if self.train_slices else None,
            **{
                name: getattr(settings, name)
                for name in (
                    "seed",
                    "warmup_steps",
                    "z_stride",
                    "augment",
                    "validation_fraction",
                )
            },
            **self.recipe,
        }

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What of the fingerprint is up to the version of denoise: no key of the config changes it.

        Left out where it is as it always was: states of the first versions do not name it.
        """
        kind = find_network(self.network.name)
        options = kind.complete(self.network.options)
        return {
            **{f"network.{name}": options[name] for name in kind.unsaid},
            **({"steps on slices": self.slices_first} if self.slices_first else {}),
            **({} if self.adam == PLAIN_ADAM else {f"adam.{name}": value for name, value in asdict(self.adam).items()}),
            **({f"{MUON}.{name}": value for name, value in asdict(self.muon).items()} if self.muon else {}),
            **({"val model chosen by": self.chosen_by} if self.chosen_by != "l1" else {}),
        }


@dataclass(frozen=True)
class Plan:
    """What the run is going to do."""

    epochs: int
    steps_per_epoch: int
    first_step: int
    minutes: float | None
    blocks_per_step: int
    validation_blocks: int
    validate_every: int
    device: str
    precision: str
    processes: int
    parameters: int

    @property
    def most_steps(self) -> int:
        """Optimiser steps of the whole run, if it goes on to its last epoch."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Record:
    """One line of the history: where the run stands after a validation."""

    epoch: int
    step: int
    seconds: float
    done: float
    """Share of the run, 0 to 1, as its schedule sees it."""
    learning_rate: float
    train_loss: float
    scores: Scores
    blocks_per_second: float
    improved: tuple[str, ...]

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        plain = asdict(self)
        scores = plain.pop("scores")
        return {**plain, **{f"val_{name}": value for name, value in scores.items()}, "improved": list(self.improved)}


class Observer(Protocol):
    """Is told what happens, on the chief only."""

    def started(self, plan: Plan) -> None:
        """Before the first step."""
        ...

    def stepped(self, step: int, epoch: int, done: float, loss: float | None) -> None:
        """After a step, with the share of the run that is done; ``loss`` now and then (reading it waits)."""
        ...

    def validated(self, record: Record, preview: Preview | None) -> None:
        """After scoring on the held-out blocks."""
        ...

    def close(self) -> None:
        """At the end, also when an error or a signal ends the run."""
        ...
