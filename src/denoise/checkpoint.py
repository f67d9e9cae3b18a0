"""What a training run leaves behind: models (all that inference needs) and its own state (all that resume needs).

Files are torch archives of tensors and plain values, written whole and loaded with ``weights_only=True``: a model from
a shared folder is hostile until parsed, and loading one runs no code. Files of the published tools (a dict with
``model_state_dict`` only) are recognised by their parameter names.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import torch

from denoise.archive import as_plain, first_line, listed_keys, load_archive, save_archive, shown, software_versions
from denoise.errors import CheckpointError, ConfigError, printable
from denoise.networks.catalogue import NETWORKS, build_network, find_network
from denoise.networks.spec import NetworkSpec
from denoise.networks.stored import recognise, without_prefix
from denoise.normalization import Normalization
from denoise.run_folder import CRITERIA
from denoise.seen import UNKNOWN, AllSeen

Weights: TypeAlias = dict[str, torch.Tensor]

_FORMAT = "ct-denoise checkpoint"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with everything that inference needs besides the volume.

    ``weights`` are on the CPU, float32. ``normalization`` is None only for models stored by the published tools, which
    do not carry one. ``patch_size`` is the edge of the blocks that it was trained on (None: unknown);
    ``strategy`` ("X:1" or "1:X") says what the network was given of several splits; ``seen`` what it was trained on.
    """

    network: NetworkSpec
    weights: Weights = field(repr=False)
    normalization: Normalization | None
    patch_size: int | None = None
    strategy: str = "X:1"
    criterion: str = "val"
    epoch: int = 0
    step: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    sample: str = ""
    seen: AllSeen = field(default=UNKNOWN, repr=False)
    versions: Mapping[str, str] = field(default_factory=dict, repr=False)
    created: str = ""

    def build(self) -> torch.nn.Module:
        """The network with these weights, in evaluation mode, on the CPU.

        Raises
        ------
        CheckpointError
            The weights do not fit the network that the file names.
        """
        network = build_network(self.network)
        try:
            network.load_state_dict(self.weights, strict=True)
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights do not fit the network {self.network.name} {dict(self.network.options)} that the model "
                f"file names: {first_line(error)}; the file is damaged or was changed"
            ) from error
        network.eval()
        return network

    def save(self, path: Path) -> None:
        """Write the model whole; readers see the old file or the new one, never half of one."""
        content = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "model_state_dict": self.weights,
            # All of them: an option that is not named means what it was before there was that option.
            "network": {
                "name": self.network.name,
                "options": find_network(self.network.name).complete(self.network.options),
            },
            "normalization": as_plain(asdict(self.normalization)) if self.normalization else None,
            "patch_size": self.patch_size,
            "strategy": self.strategy,
            "criterion": self.criterion,
            "epoch": self.epoch,
            "step": self.step,
            "scores": as_plain(self.scores),
            "sample": self.sample,
            "seen": self.seen.as_plain(),
            "versions": dict(self.versions) or software_versions(),
            "created": self.created or datetime.now(UTC).isoformat(timespec="seconds"),
        }
        save_archive(content, path)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a model file of ours or of the published tools.

        Raises
        ------
        CheckpointError
            The file is missing, damaged, holds code or anything but tensors and plain values, or is no such model.
        """
        content = load_archive(path)
        if "model_state_dict" not in content:
            raise CheckpointError(
                f"{path} holds {listed_keys(content)} but no 'model_state_dict'; expected a model written by "
                "`denoise train` (best_val_model.pth) or by the published tools"
            )
        weights = _checked_weights(content["model_state_dict"], path)
        if content.get("format") != _FORMAT:
            return _published(weights, path)
        found = content.get("format_version")
        if type(found) is not int or found != _FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {shown(found)}, this release of denoise reads "
                f"{_FORMAT_VERSION}; install a newer release"
            )
        return _parsed(content, weights, path)


def _published(weights: Weights, path: Path) -> Checkpoint:
    weights = without_prefix(weights)
    try:
        network = recognise(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(network, weights, None)


def _parsed(content: Mapping[str, Any], weights: Weights, path: Path) -> Checkpoint:
    def take(key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        value = content.get(key, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CheckpointError(f"{path}: {key} is {shown(value)}; the file is damaged or was changed")
        if isinstance(value, int) and not 0 <= value < 2**63:
            raise CheckpointError(f"{path}: {key} is {shown(value)}; expected a count; the file was changed")
        return value

    network, patch_size = take("network", dict), take("patch_size", (int, type(None)))
    name, options = network.get("name"), network.get("options")
    plain = isinstance(options, dict) and all(type(k) is str and type(v) is int for k, v in options.items())
    if not isinstance(name, str) or not plain:
        raise CheckpointError(f"{path}: network is {shown(network)}; the file is damaged or was changed")
    unsaid = NETWORKS[name].unsaid if name in NETWORKS else {}
    spec = NetworkSpec(name, {**unsaid, **options})
    normalization = take("normalization", (dict, type(None)), "missing")
    if patch_size is not None and not 1 <= patch_size <= 8192:
        raise CheckpointError(f"{path}: patch_size is {patch_size}; expected 1 to 8192; the file was changed")
    strategy = take("strategy", str, "X:1")
    if strategy not in ("X:1", "1:X"):
        raise CheckpointError(f"{path}: strategy is {shown(strategy)}; expected X:1 or 1:X; the file was changed")
    criterion = take("criterion", str)
    if criterion not in CRITERIA:  # it becomes a part of file names
        raise CheckpointError(
            f"{path}: criterion is {shown(criterion)}; expected {', '.join(CRITERIA)}; it was changed"
        )
    scores = {k: v for k, v in take("scores", dict).items() if type(k) is str and type(v) is float}
    versions = {k: v for k, v in take("versions", dict).items() if type(k) is type(v) is str}
    checkpoint = Checkpoint(
        network=spec,
        weights=weights,
        normalization=_parsed_normalization(normalization, path) if normalization is not None else None,
        patch_size=patch_size,
        strategy=strategy,
        criterion=criterion,
        epoch=take("epoch", int),
        step=take("step", int),
        scores=scores,
        sample=take("sample", str),
        seen=parsed_seen(take("seen", dict, {}), path),
        versions=versions,
        created=take("created", str),
    )
    _require_fit(checkpoint, path)
    return checkpoint


def parsed_seen(stored: Mapping[str, Any], path: Path) -> AllSeen:
    """What a model was trained on, as a file says.

    Raises
    ------
    CheckpointError
        It is damaged; names the file.
    """
    try:
        return AllSeen.of_plain(stored)
    except ValueError as error:
        raise CheckpointError(f"{path}: seen is damaged ({error}); the file is damaged or was changed") from error


def _parsed_normalization(stored: Any, path: Path) -> Normalization:
    mean, std = (stored.get("mean"), stored.get("std")) if isinstance(stored, dict) else (None, None)
    if not (type(mean) is type(std) is float and math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise CheckpointError(f"{path}: normalization is {shown(stored)}; the file is damaged or was changed")
    return Normalization(mean, std)


def _require_fit(checkpoint: Checkpoint, path: Path) -> None:
    """Build the network without memory behind it, so that a wrong shape is found before anything is allocated."""
    try:
        with torch.device("meta"):
            network = build_network(checkpoint.network)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    if expected != found:
        differing = sorted({n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n)})[0]
        raise CheckpointError(
            f"{path}: network {checkpoint.network.name} {dict(checkpoint.network.options)} has "
            f"{printable(differing)[:80]} of shape {expected.get(differing)} but the file holds "
            f"{found.get(differing)}; it is damaged or was changed"
        )


@dataclass(frozen=True)
class TrainState:
    """Everything that an interrupted run needs to go on as if nothing had happened; tensors and plain values only."""

    fingerprint: Mapping[str, Any]
    model: Weights
    ema: Weights | None
    optimizer: dict[str, Any]
    progress: dict[str, Any]
    normalization: Normalization
    generator: torch.Tensor

    def save(self, path: Path) -> None:
        """Write the state whole."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        content["normalization"] = as_plain(asdict(self.normalization))
        content["fingerprint"] = dict(self.fingerprint)
        save_archive(content, path)

    @classmethod
    def load(cls, path: Path) -> TrainState:
        """Read a state.

        Raises
        ------
        CheckpointError
            The file is missing, damaged or not a training state.
        """
        content = load_archive(path)
        if set(content) != set(cls.__dataclass_fields__):
            raise CheckpointError(f"{path} holds {listed_keys(content)}; expected the state of a training run")
        for name in ("fingerprint", "optimizer", "progress"):
            if not isinstance(content[name], dict):
                raise CheckpointError(f"{path}: {name} is {shown(content[name])}; the file is damaged or was changed")
        generator = content["generator"]
        if not isinstance(generator, torch.Tensor) or generator.dtype != torch.uint8 or generator.device.type != "cpu":
            raise CheckpointError(f"{path}: generator is {shown(generator)}; the file is damaged or was changed")
        content["normalization"] = _parsed_normalization(content["normalization"], path)
        content["model"] = _checked_weights(content["model"], path)
        content["ema"] = _checked_weights(content["ema"], path) if content["ema"] is not None else None
        return cls(**content)


def digest(weights: Weights) -> str:
    """The same for the same weights, SHA-256 in hexadecimal."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def _checked_weights(weights: Any, path: Path) -> Weights:
    if not isinstance(weights, Mapping) or not weights:
        raise CheckpointError(f"{path}: model_state_dict is a {type(weights).__name__}; expected named tensors")
    checked = {}
    for name, tensor in weights.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise CheckpointError(
                f"{path}: {shown(name)} is not a tensor of floats; the file is damaged or was changed"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{path}: the weight {printable(name)[:80]} holds NaN or Inf; take another checkpoint of the run"
            )
        checked[name] = tensor.float()
    return checked


def _is_plain(tensor: Any) -> bool:
    """Whether this is a tensor of floats, each of which is in the file: a strided view may claim any size."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.is_floating_point()
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )
