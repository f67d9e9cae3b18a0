"""From a config to open volumes, with every check that needs only headers."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from denoise.checkpoint import Checkpoint
from denoise.commands.prepared import how_full_differs, require_one_division
from denoise.config import RunConfig
from denoise.errors import ConfigError, OutputError
from denoise.files import file_and_dataset
from denoise.inference.models import input_views
from denoise.modes import mode_of
from denoise.normalization import Normalization
from denoise.projections.angles import SplitAngles
from denoise.readable import counted
from denoise.volumes import SplitSet, Volume, open_volume
from denoise.volumes.combined import CombinedVolume

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferenceInputs:
    """What is denoised: the volumes whose predictions are averaged, and every file behind them."""

    views: tuple[Volume, ...]
    paths: tuple[str, ...]

    @property
    def grid(self) -> Volume:
        """The volume that gives shape, voxel size, numbering and type."""
        return self.views[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        """That the files have; several splits that are combined are float32 whatever they are made of."""
        grid = self.grid
        return grid.volumes[0].dtype if isinstance(grid, CombinedVolume) else grid.dtype


def open_splits(config: RunConfig) -> SplitSet:
    """The splits that a config lists, proven to belong together."""
    splits = SplitSet.of([open_volume(path) for path in config.split_paths])
    require_one_division(config.split_paths)
    return splits


def open_inference_inputs(config: RunConfig, strategy: str) -> InferenceInputs:
    """The full reconstruction, or the splits (combined as in the model's training), as ``infer.input`` says.

    Raises
    ------
    ConfigError
        The config asks for the full reconstruction but names none.
    """
    if config.infer.input == "splits":
        splits = open_splits(config)
        return InferenceInputs(input_views(splits.volumes, strategy), tuple(config.split_paths))
    if config.full_path is None:
        raise ConfigError(
            "dataset.full is missing, and it is what is denoised; name the full reconstruction, or set "
            "infer.input: splits"
        )
    _warn_of_another_full(config.full_path, config.given_splits)
    return InferenceInputs((open_volume(config.full_path),), (config.full_path,))


def _warn_of_another_full(full: str, splits: Sequence[str]) -> None:
    """What a model learnt from these splits does not fit; it may be meant all the same."""
    if full in splits:
        _log.warning("%s is denoised, which is one of the splits: it has more noise than the full reconstruction", full)
    elif splits and (difference := how_full_differs(full, splits[0])):
        _log.warning(
            "%s is denoised, which %s: it does not show what the model learnt; name the full reconstruction of the "
            "same `denoise prepare`",
            full,
            difference,
        )


def scan_angles(config: RunConfig) -> SplitAngles | None:
    """Angles of the scan, from ``SAMPLE_angles.txt`` beside the splits; None without it, or if it has more splits.

    Each line is a projection: its angle in degrees, and the number of its split. Where no line has the second, the
    projections are taken to be divided in turn.

    Raises
    ------
    ConfigError
        The file cannot be read, or holds something else.
    """
    path, count = config.dataset.folder / f"{config.sample_name}_angles.txt", len(config.split_paths)
    if not path.is_file():
        return None
    expected = f"{path} must hold one angle in degrees on each line, and may hold the number of its split after it"
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        angles = np.deg2rad([float(line[0]) for line in lines])
        split_of = [int(number) for line in lines for number in line[1:]]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{expected} ({error}); mend or remove it") from None
    if not np.isfinite(angles).all() or len({len(line) for line in lines}) > 1 or len(split_of) not in (0, len(lines)):
        raise ConfigError(f"{expected}, all finite and all alike; mend or remove it")
    if split_of and max(split_of) >= count:
        return None
    of_each = [split_of.count(k) for k in range(count)] if split_of else [len(lines) // count]
    if min(of_each) < 2 or sum(of_each) < len(split_of):
        raise ConfigError(
            f"{path} holds {counted(len(lines), 'angle')}; expected at least two for each of {count} splits, which are "
            f"numbered 0 to {count - 1}: mend or remove it"
        )
    return SplitAngles(angles, np.array(split_of)) if split_of else SplitAngles.in_turn(angles, count)


def made_by(checkpoint: Checkpoint, model: Path, criterion: str) -> str:
    """Mode and choice of a model, as names of results have them: no result may take the place of another model's.

    The default model is named by its mode alone.

    Parameters
    ----------
    model
        The file that was named, which says itself by what it was chosen; or the folder that ``criterion`` chose in.
    """
    mode = mode_of(checkpoint.network).name
    criterion = checkpoint.criterion if model.is_file() else criterion
    return mode if criterion == "val" else f"{mode}_{criterion}"


def given_normalization(config: RunConfig) -> Normalization | None:
    """``dataset.mean`` and ``dataset.std``, for models that carry no normalisation."""
    if config.dataset.mean is None or config.dataset.std is None:
        return None
    return Normalization(config.dataset.mean, config.dataset.std)


def require_not_an_input(output: str, config: RunConfig, option: str = "--output", *, may_hold: bool = False) -> None:
    """Refuse an output that is, holds or lies in a reconstruction that the config names, denoised now or not.

    Parameters
    ----------
    option
        That names the output.
    may_hold
        A folder that others may share with it may hold one.

    Raises
    ------
    OutputError
        Names both.
    """
    target = _place(output)
    named = config.given_splits if config.full_path is None else (*config.given_splits, config.full_path)
    for path in named:
        own, linked = _place(path), _elsewhere(_place(path))
        for source in (own, *linked):
            lies_in = source in target.parents
            if source in (*linked, config.dataset.folder.resolve()):
                # Where slices lie loose in a folder, other outputs have their place beside them.
                lies_in = source == target.parent and target.suffix.lower() in _SLICES
            if source == target or (target in source.parents and not may_hold) or lies_in:
                raise OutputError(f"the output {output} is, holds or lies in the input {path}; choose another {option}")


_SLICES = (".tif", ".tiff")


def _place(path: str) -> Path:
    return Path(file_and_dataset(path)[0]).resolve()


def _elsewhere(source: Path) -> set[Path]:
    """Folders where slices of this one really lie, of which it holds links."""
    if not source.is_dir() or not os.access(source, os.R_OK):
        return set()
    with os.scandir(source) as entries:
        links = [entry.path for entry in entries if entry.is_symlink() and entry.name.lower().endswith(_SLICES)]
    return {Path(os.path.realpath(link)).parent for link in links} - {source}
