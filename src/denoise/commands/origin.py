"""What a result was made from, by content and not by name: stored with it, and compared before it counts as done."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from denoise.archive import software_versions
from denoise.checkpoint import Checkpoint, digest
from denoise.commands.inputs import InferenceInputs, given_normalization
from denoise.config import RunConfig
from denoise.errors import OutputError
from denoise.files import file_and_dataset
from denoise.inference.engine import Denoiser
from denoise.inference.models import versions_of
from denoise.inference.versions import named
from denoise.memory import give_back_freed
from denoise.volumes import Volume, is_whole, open_volume, stored_description
from denoise.volumes.contents import contents_hash
from denoise.volumes.volume import describe_numbers

_SOFTWARE = "ct-denoise"
_MARK = re.compile("sha256:[0-9a-f]{64}")
_SCALE = "mean and deviation"
_ASKED = "tiles that were asked for"
#: Of the section infer, what changes the values that come out.
_CHANGES_VALUES = {"overlap", "tile_size", "window", "precision"}


@dataclass(frozen=True)
class Origin:
    """A model and grey values, whatever their files are called.

    Attributes
    ----------
    parts
        A digest of each, and what else makes another result of them.
    """

    parts: Mapping[str, str]

    @classmethod
    def of(cls, config: RunConfig, checkpoint: Checkpoint, inputs: InferenceInputs, z_range: range) -> Origin:
        """Of a result for some slices; a model without a normalisation of its own has that of the config."""
        volumes = [open_volume(path) for path in inputs.paths]
        scale = given_normalization(config) if checkpoint.normalization is None else None
        # What is not asked for is left out, as in earlier versions.
        asked = config.infer.model_dump(include=_CHANGES_VALUES, exclude_defaults=True)
        more = {_ASKED: json.dumps(asked, sort_keys=True)} if asked else {}
        if config.infer.tta > 1 and (versions := versions_of(checkpoint, checkpoint.build(), config.infer.tta)):
            more["tta"] = named(versions)
        if scale is not None:
            more[_SCALE] = f"{scale.mean!r}, {scale.std!r}"
        return cls({"model": digest(checkpoint.weights), "grey values": _hash(volumes, z_range), **more})

    def with_splits(self, splits: Sequence[Volume], z_range: range) -> Origin:
        """Of what is made from the splits too."""
        return Origin({**self.parts, "splits": _hash(splits, z_range)})

    @property
    def mark(self) -> str:
        """As it stands in a result's description."""
        return _mark(self.parts)

    @property
    def former_mark(self) -> str:
        """As it stood there until 2026-11-28: whatever the config said of the scale."""
        return _mark({name: part for name, part in self.parts.items() if name != _SCALE})


def is_there(output: str, numbers: range, plane: tuple[int, int], dtype: np.dtype[Any], origin: Origin) -> bool:
    """Whether there is a whole result of this origin under a name.

    Parameters
    ----------
    numbers, plane, dtype
        Of the result that is wanted: its slices' numbers, (Y, X) and type.

    Raises
    ------
    OutputError
        There is something else, or a result of other slices, of another type or another origin.
    """
    if not is_whole(output):
        return False
    found = open_volume(output)
    other = "choose another --output, or replace it with --overwrite"
    if found.slice_numbers != numbers:
        raise OutputError(
            f"{output} is whole and has slices {describe_numbers(found.slice_numbers)}, this run has "
            f"{describe_numbers(numbers)}; {other}"
        )
    description = stored_description(output)
    said = _MARK.search(description)
    if found.shape[1:] != plane or not (said or _SOFTWARE in description):
        raise OutputError(f"{output} is there already and is no result of this run; choose another --output")
    if found.dtype != dtype:
        raise OutputError(f"{output} is whole and of type {found.dtype}, this run makes {dtype}; {other}")
    if said and said[0] not in (origin.mark, origin.former_mark):
        raise OutputError(
            f"{output} is whole, but another model made it, or other settings of infer (tta, overlap, tile_size, "
            "window, precision), or the input (or dataset.mean and std) has changed since; make it anew with "
            "--overwrite, or choose another --output"
        )
    return True


def uncertainty_path(result: str) -> str:
    """Beside the result, named after it."""
    place, dataset = file_and_dataset(result)
    path = Path(place)
    # What follows the last point of foam_volume_2.5d is no suffix: those of formats begin with a letter.
    suffix = path.suffix if path.suffix[1:2].isalpha() else ""
    beside = str(path.with_name(f"{path.name.removesuffix(suffix)}_uncertainty{suffix}"))
    return f"{beside}::{dataset}" if dataset else beside


def described(facts: Mapping[str, Any], origin: Origin) -> str:
    """A description for the file's own metadata."""
    return json.dumps({"software": _SOFTWARE, **facts, "made_from": origin.mark})


def made_with(checkpoint: Checkpoint, inputs: InferenceInputs) -> dict[str, Any]:
    """Which model made a result, for those who read its description."""
    return {
        "versions": software_versions(),
        "network": checkpoint.network.name,
        "criterion": checkpoint.criterion,
        "epoch": checkpoint.epoch,
        "inputs": [Path(path).name for path in inputs.paths],
    }


def made_how(denoiser: Denoiser, inputs: InferenceInputs) -> dict[str, Any]:
    """How an unfinished result must have been made, to be continued; its ``Origin`` says from what."""
    return {
        "inputs": list(inputs.paths),
        "normalization": [denoiser.normalization.mean, denoiser.normalization.std],
        "tiles": str(denoiser.window),
        "symmetries": 1 + len(denoiser.versions),
        "arithmetic": str(denoiser.dtype),
        "NaN filled": denoiser.fill_non_finite,
    }


def _mark(parts: Mapping[str, str]) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()}"


def _hash(volumes: Sequence[Volume], z_range: range) -> str:
    found = contents_hash(volumes, z_range)[:16]
    give_back_freed()  # what stayed in this process would come on top of what denoising may take
    return found
