"""The folder of a training run: the names of what lies there, and the model that a user means by it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from denoise.errors import CheckpointError

#: Which file holds the best model by which score; see the method, "Selecting a model".
CRITERIA = {"val": "best_val_model.pth", "lcl": "best_lcl_model.pth", "edge": "best_edge_model.pth"}


@dataclass(frozen=True)
class RunFolder:
    """The names of everything that a training run writes."""

    path: Path

    def model(self, criterion: str) -> Path:
        """The best model by one score."""
        return self.path / CRITERIA[criterion]

    @property
    def state(self) -> Path:
        """What ``--resume`` reads."""
        return self.path / "resume_state.pth"

    @property
    def lock(self) -> Path:
        """Held while a run writes to the folder."""
        return self.path / ".training.lock"

    @property
    def config(self) -> Path:
        """The resolved config of the run; the user's own file is never touched."""
        return self.path / "config.yaml"

    @property
    def history(self) -> Path:
        """One JSON object per validation."""
        return self.path / "history.jsonl"

    @property
    def curves(self) -> Path:
        """Loss and scores as a picture."""
        return self.path / "curves.png"

    def preview(self, epoch: int) -> Path:
        """Input, prediction and other split after an epoch."""
        return self.path / "previews" / f"epoch_{epoch:06d}.png"

    @property
    def holds_models(self) -> bool:
        """Whether there is a model of any criterion."""
        return any(self.model(criterion).exists() for criterion in CRITERIA)

    @property
    def holds_a_run(self) -> bool:
        """Whether a run has left something of worth here; one that died before its first score has not."""
        begun = self.history.exists() and self.history.stat().st_size > 0
        return begun or self.state.exists() or self.holds_models


def find_model(path: Path, criterion: str, option: str = "--model") -> Path:
    """The model file that a user means by a file or a training folder.

    Parameters
    ----------
    option
        That names it.

    Raises
    ------
    CheckpointError
        Nothing is there, or the folder has no model of this criterion (yet).
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"there is no model at {path}; run `denoise train` first, or name one with {option}")
    wanted = RunFolder(path).model(criterion)
    if wanted.is_file():
        return wanted
    there = [c for c in CRITERIA if RunFolder(path).model(c).is_file()]
    if not there:
        raise CheckpointError(f"{path} holds no model yet (expected {wanted.name}); run `denoise train` first")
    raise CheckpointError(
        f"{path} holds no {wanted.name}, only {', '.join(CRITERIA[c] for c in there)}; the lcl and edge models are "
        f"written after train.warmup_steps: use --checkpoint {there[0]}, or train longer"
    )
