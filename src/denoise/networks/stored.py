"""Which network stored weights belong to: model files of the published tools say it only by names and shapes.

In: a dictionary of tensors from a ``.pth`` file that was loaded as data only; out: a `NetworkSpec`. Reads no files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from denoise.errors import CheckpointError, ConfigError
from denoise.networks.catalogue import build_network
from denoise.networks.spec import NetworkSpec

_DISTRIBUTED = "module."
_2D_MARK = "in_box.0.weight"
_3D_MARK = "down_convs.0.conv1.weight"


def without_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights, without the ``module.`` that distributed training puts before every name."""
    if state_dict and all(name.startswith(_DISTRIBUTED) for name in state_dict):
        return {name.removeprefix(_DISTRIBUTED): value for name, value in state_dict.items()}
    return dict(state_dict)


def recognise(state_dict: Mapping[str, Tensor]) -> NetworkSpec:
    """Tell which published network, of which size, these weights belong to.

    Parameters
    ----------
    state_dict
        Names to tensors, with or without the ``module.`` prefix.

    Returns
    -------
    A spec whose network takes ``without_prefix(state_dict)`` with ``strict=True``.

    Raises
    ------
    CheckpointError
        Neither network's names are there; or they are, but a tensor is missing, superfluous, or of another shape.
    """
    unnamed = [name for name in state_dict if not isinstance(name, str)]
    if unnamed:
        raise CheckpointError(f"expected stored weights by name, found {unnamed[0]!r} for a name; the file is damaged")
    weights = without_prefix(state_dict)
    spec = _guess(weights)
    try:
        with torch.device("meta"):
            expected = build_network(spec).state_dict()
    except ConfigError as error:
        raise CheckpointError(
            f"the stored weights look like {spec.name}, but {error}; is this the right file?"
        ) from error
    for name in [*expected, *weights]:
        wanted = f"shape {tuple(expected[name].shape)}" if name in expected else "no such tensor"
        found = _describe(weights[name]) if name in weights else "none"
        if wanted != found:
            raise CheckpointError(
                f"the stored weights look like {spec.name} with {dict(spec.options)}, but tensor {name[:80]!r} does "
                f"not fit: expected {wanted}, found {found}; the file is damaged or was made by another network"
            )
    return spec


def _guess(weights: Mapping[str, Tensor]) -> NetworkSpec:
    """The spec that the telling tensors suggest; nothing else is looked at."""
    if _has_axes(weights, _2D_MARK, 4):
        return NetworkSpec("unet2d", {"n_slices": weights[_2D_MARK].shape[1]})
    if _has_axes(weights, _3D_MARK, 5):
        blocks = {name.split(".")[1] for name in weights if name.startswith("down_convs.")}
        return NetworkSpec("unet3d", {"n_blocks": len(blocks), "start_filters": weights[_3D_MARK].shape[0]})
    first = ", ".join(repr(name[:80]) for name in list(weights)[:3]) or "nothing"
    raise CheckpointError(
        f"the stored weights belong to no published network: expected {_2D_MARK!r} with 4 axes (2.5D) or {_3D_MARK!r} "
        f"with 5 (3D), found {len(weights)} tensors beginning with {first}; choose a model file of one of the two"
    )


def _has_axes(weights: Mapping[str, Tensor], name: str, axes: int) -> bool:
    tensor = weights.get(name)
    return isinstance(tensor, Tensor) and tensor.ndim == axes


def _describe(value: object) -> str:
    if isinstance(value, Tensor) and value.is_floating_point():
        return f"shape {tuple(value.shape)}"
    if isinstance(value, Tensor):
        return f"values of type {value.dtype}"
    return f"a value of type {type(value).__name__}"
