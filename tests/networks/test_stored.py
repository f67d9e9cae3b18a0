from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from denoise.errors import CheckpointError
from denoise.networks.catalogue import build_network
from denoise.networks.spec import NetworkSpec
from denoise.networks.stored import recognise, without_prefix


def weights_of(name: str, **options: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_network(NetworkSpec(name, options)).state_dict()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unet2d", {"n_slices": 1}),
        ("unet2d", {"n_slices": 8}),
        ("unet3d", {"n_blocks": 1, "start_filters": 3}),
        ("unet3d", {"n_blocks": 4, "start_filters": 8}),
    ],
)
def test_a_published_network_is_recognised_by_names_and_shapes(name: str, options: dict[str, int], prefix: str) -> None:
    stored = {prefix + key: value for key, value in weights_of(name, **options).items()}
    spec = recognise(stored)
    assert spec == NetworkSpec(name, options)
    with torch.device("meta"):
        build_network(spec).load_state_dict(without_prefix(stored), strict=True, assign=True)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "spec"),
    [
        ("unet2d_n5.pth", NetworkSpec("unet2d", {"n_slices": 5})),
        ("unet3d_b3_f8.pth", NetworkSpec("unet3d", {"n_blocks": 3, "start_filters": 8})),
    ],
)
def test_stored_models_are_recognised(shared_data: Path, file: str, spec: NetworkSpec) -> None:
    stored = torch.load(shared_data / "legacy" / file, weights_only=True)
    assert recognise(stored["model_state_dict"]) == spec


def test_a_prefix_on_only_some_names_is_left_alone() -> None:
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert set(without_prefix(mixed)) == set(mixed)


def changed(name: str, changes: dict[str, Any], **options: int) -> dict[str, Any]:
    weights: dict[str, Any] = {**weights_of(name, **options), **changes}
    return {key: value for key, value in weights.items() if value is not None}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "found 0 tensors beginning with nothing"),
        ({"layer.weight": torch.zeros(3)}, "no published network: .*'layer.weight'"),
        ({"in_box.0.weight": "text"}, "no published network"),
        ({0: torch.zeros(3)}, "found 0 for a name"),
        (changed("unet2d", {"out_layer.3.bias": None}), r"'out_layer.3.bias' .* expected shape \(1,\), found none"),
        (changed("unet2d", {"extra": torch.zeros(2)}), r"'extra' .* expected no such tensor, found shape \(2,\)"),
        (
            changed("unet2d", {"box1.double_conv.0.weight": torch.zeros(64, 16, 5, 5)}),
            r"expected shape \(64, 16, 3, 3\), found shape \(64, 16, 5, 5\)",
        ),
        (changed("unet2d", {"in_box.0.bias": "text"}), "found a value of type str"),
        (changed("unet2d", {"in_box.0.bias": torch.zeros(16, dtype=torch.int64)}), "found values of type torch.int64"),
        (changed("unet2d", {"in_box.0.weight": torch.zeros(1).expand(16, 10**9, 1, 1)}), "from 1 to 99"),
        (changed("unet3d", {"down_convs.9.conv1.bias": torch.zeros(1)}, n_blocks=2, start_filters=2), "down_convs"),
        (
            changed("unet3d", {"down_convs.0.conv1.weight": torch.zeros(1).expand(10**9, 1, 3, 3, 3)}, n_blocks=2),
            "from 1 to 512",
        ),
    ],
)
def test_anything_else_is_refused_with_what_was_expected_and_found(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        recognise(weights)
