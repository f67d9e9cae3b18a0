"""What a result was made from, by content and not by name: stored with it, and compared before it counts as done."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoise.archive import software_versions
from denoise.checkpoint import Checkpoint, digest
from denoise.commands.inputs import InferenceInputs
from denoise.errors import OutputError
from denoise.inference.engine import Denoiser
from denoise.memory import give_back_freed
from denoise.volumes import Volume, is_whole, open_volume, stored_description
from denoise.volumes.contents import contents_hash
from denoise.volumes.volume import describe_numbers

_MARK = re.compile("sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Origin:
    """A model and grey values, whatever their files are called.

    Attributes
    ----------
    parts
        A digest of each.
    """

    parts: Mapping[str, str]

    @classmethod
    def of(cls, checkpoint: Checkpoint, inputs: InferenceInputs, z_range: range) -> Origin:
        """Of a result for some slices."""
        volumes = [open_volume(path) for path in inputs.paths]
        return cls({"model": digest(checkpoint.weights), "grey values": _hash(volumes, z_range)})

    def with_splits(self, splits: Sequence[Volume], z_range: range) -> Origin:
        """Of what is made from the splits too."""
        return Origin({**self.parts, "splits": _hash(splits, z_range)})

    @property
    def mark(self) -> str:
        """As it stands in a result's description."""
        return f"sha256:{hashlib.sha256(json.dumps(dict(self.parts), sort_keys=True).encode()).hexdigest()}"


def is_there(output: str, numbers: range, origin: Origin) -> bool:
    """Whether there is a whole result of this origin under a name.

    Raises
    ------
    OutputError
        There is one of other slices, or of another origin.
    """
    if not is_whole(output):
        return False
    found = open_volume(output).slice_numbers
    if found != numbers:
        raise OutputError(
            f"{output} is whole and has slices {describe_numbers(found)}, this run has {describe_numbers(numbers)}; "
            "choose another --output, or replace it with --overwrite"
        )
    said = _MARK.search(stored_description(output))
    if said and said[0] != origin.mark:
        raise OutputError(
            f"{output} is whole, but another model made it, or the input has changed since; make it anew with "
            "--overwrite, or choose another --output"
        )
    return True


def described(facts: Mapping[str, Any], origin: Origin) -> str:
    """A description for the file's own metadata."""
    return json.dumps({"software": "ct-denoise", **facts, "made_from": origin.mark})


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
        "symmetries": denoiser.turns,
        "arithmetic": str(denoiser.dtype),
        "NaN filled": denoiser.fill_non_finite,
    }


def _hash(volumes: Sequence[Volume], z_range: range) -> str:
    found = contents_hash(volumes, z_range)[:16]
    give_back_freed()  # what stayed in this process would come on top of what denoising may take
    return found
