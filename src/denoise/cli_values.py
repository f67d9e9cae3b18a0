"""From the options of the command line to what commands take: a config, a device, a choice. Loads nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.cli_options import Criterion, Device, OutputType
from denoise.cluster import Spread
from denoise.errors import ConfigError

if TYPE_CHECKING:
    from denoise.commands.infer import Choice
    from denoise.config import RunConfig
    from denoise.launch import Compute


def loaded(
    path: Path, mode: str | None, train: dict[str, Any] | None = None, max_memory: str | None = None
) -> RunConfig:
    """The config, with what the command line says (and None does not) in its place."""
    from denoise.config import load_config

    config = load_config(path, mode=mode)
    bytes_allowed(max_memory)
    changes = {"train": train or {}, "dataset": {"max_memory": max_memory}}
    sections = {
        name: getattr(config, name).model_copy(update={field: v for field, v in values.items() if v is not None})
        for name, values in changes.items()
    }
    return config.model_copy(update=sections)


def bytes_allowed(max_memory: str | None) -> int | None:
    """What ``--max-memory`` says; None where it is not given."""
    from denoise.config.fields import bytes_of

    try:
        return None if max_memory is None else bytes_of(max_memory)
    except ValueError as error:
        raise ConfigError(f"--max-memory {max_memory!r} {error}") from error


def template(path: Path | None, mode: str | None) -> dict[str, Any] | None:
    """Sections train and infer of another config, as plain values."""
    if path is None:
        return None
    config = loaded(path, mode)
    return {
        "train": config.train.model_dump(exclude={"output_dir"}, exclude_unset=True),
        "infer": config.infer.model_dump(exclude_unset=True),
    }


def computing(
    device: Device | None, gpus: str | None, processes: int | None = None, spread: Spread | None = None
) -> Compute:
    """The devices, processes and machines that were asked for."""
    from denoise.launch import Compute

    numbers = None
    if gpus is not None:
        parts = [part.strip() for part in gpus.split(",")]
        if not all(part.isascii() and part.isdigit() for part in parts):
            raise ConfigError(f"--gpus {gpus!r} is not a list of GPU numbers; expected e.g. --gpus 0,1")
        numbers = tuple(int(part) for part in parts)
    return Compute(device.value if device else None, numbers, processes, spread or Spread())


def criterion_of(config: RunConfig, checkpoint: Criterion | None, model: Path | None) -> str:
    """By what the model is chosen among those of a training.

    Raises
    ------
    ConfigError
        The model is a file: there is no choice.
    """
    if checkpoint is not None and model is not None and model.is_file():
        raise ConfigError(
            f"--checkpoint {checkpoint.value} chooses a model of a training folder, and --model {model} is one model; "
            "leave one of them out"
        )
    return checkpoint.value if checkpoint else config.infer.checkpoint


def chosen(
    config: RunConfig,
    checkpoint: Criterion | None,
    model: Path | None,
    mode: str | None,
    output: str | None,
    overwrite: bool,
    dtype: OutputType,
) -> Choice:
    """Which model, and where its result goes."""
    from denoise.commands.infer import Choice

    return Choice(criterion_of(config, checkpoint, model), model, mode, output, overwrite, dtype=dtype.value)
