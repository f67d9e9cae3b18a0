"""From a model to what denoises: its tiles, its precision, what it sees of the splits; whether it knows such values."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from denoise.arithmetic import resolve_precision
from denoise.checkpoint import Checkpoint
from denoise.config import InferSection
from denoise.errors import CheckpointError, ConfigError
from denoise.inference.engine import Denoiser
from denoise.inference.versions import Version, versions_for
from denoise.modes import default_tile, inference_window
from denoise.networks.catalogue import find_network
from denoise.networks.symmetric import SymmetricWeights
from denoise.normalization import Moments, Normalization
from denoise.tiles import Region, Triple
from denoise.volumes import Volume, mean_of

_log = logging.getLogger(__name__)


def input_views(splits: Sequence[Volume], strategy: str) -> tuple[Volume, ...]:
    """What the network sees of K splits at inference: the same kind of input as in training, for every choice."""
    if len(splits) <= 2 or strategy == "1:X":
        return tuple(splits)
    return tuple(mean_of((*splits[:k], *splits[k + 1 :])) for k in range(len(splits)))


def make_denoiser(
    checkpoint: Checkpoint,
    infer: InferSection,
    device: torch.device,
    *,
    shape: Triple | None = None,
    normalization: Normalization | None = None,
    patch_size: int | None = None,
    fill_non_finite: bool = False,
) -> Denoiser:
    """A model for a device, with its tiles; ``prepared`` brings it there.

    Parameters
    ----------
    shape
        (Z, Y, X) of the volume: networks that give the same for any tile get none that reach far past it.
    normalization, patch_size
        For models that do not carry their own.

    Raises
    ------
    CheckpointError
        The model has no normalisation and none is given.
    ConfigError
        The network cannot take tiles of the size that was asked for.
    """
    normalization = checkpoint.normalization or normalization
    if normalization is None:
        raise CheckpointError(
            "this model was stored without its normalisation; give the mean and standard deviation that it was trained "
            "with as mean4norm and std4norm in the config's section dataset (they are in the config of that training)"
        )
    kind = find_network(checkpoint.network.name)
    edge = infer.tile_size or default_tile(checkpoint.network, checkpoint.patch_size or patch_size)
    divisor = kind.divisor(checkpoint.network.options)
    if edge % divisor:
        raise ConfigError(
            f"infer.tile_size is {edge}; it must be divisible by {divisor} for the network {checkpoint.network.name} "
            f"{dict(checkpoint.network.options)}"
        )
    window = inference_window(checkpoint.network, edge, infer.overlap, infer.window, shape)
    network = checkpoint.build()
    versions = versions_of(checkpoint, network, infer.tta)
    if 1 + len(versions) < infer.tta:
        _log.info(
            "infer.tta is %d, but this model gives the same for turned tiles: shifted ones are averaged, of which %d "
            "differ",
            infer.tta,
            1 + len(versions),
        )
    return Denoiser(
        network=network,
        normalization=normalization,
        window=window,
        device=device,
        dtype=resolve_precision(infer.precision, device),
        batch_size=infer.batch_size,
        fill_non_finite=fill_non_finite,
        versions=versions,
        forward_peak=kind.forward_peak(checkpoint.network.options),
    )


def versions_of(checkpoint: Checkpoint, network: nn.Module, count: int) -> Sequence[Version]:
    """Of so many versions of a tile (`infer.tta`) those that a model is shown besides the tile as it is.

    Parameters
    ----------
    network
        Built from the checkpoint.
    """
    weights = SymmetricWeights.of(network) if count > 1 else None
    cell = find_network(checkpoint.network.name).divisor(checkpoint.network.options)
    return versions_for(weights is not None and weights.hold, count, cell)


def warn_of_another_scale(normalization: Normalization, grid: Volume, z_range: range) -> None:
    """A look at one slice: a model knows only grey values like those that it was trained on.

    Parameters
    ----------
    z_range
        The slices that are denoised, counted from 0.

    Raises
    ------
    VolumeError
        The slice cannot be read.
    """
    z = z_range[len(z_range) // 2]
    found = Moments.of_slice(grid.read(Region.of_slices(z, z + 1, grid.shape))[0])
    if not normalization.resembles(found):
        _log.warning(
            "slice %d of the input has grey values %.4g +- %.4g, the model was trained on %.4g +- %.4g: the result is "
            "unreliable; denoise a volume of the same scale, or train on this one",
            grid.slice_numbers[z],
            found.mean,
            (found.squared_deviation / found.count) ** 0.5,
            normalization.mean,
            normalization.std,
        )
