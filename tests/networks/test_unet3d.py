from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from denoise.networks.unet3d import UNet3d


@pytest.mark.real_data
def test_stored_model_loads_by_name_and_gives_the_stored_output(shared_data: Path) -> None:
    stored = torch.load(shared_data / "legacy" / "unet3d_b3_f8.pth", weights_only=True)
    network = UNet3d(n_blocks=3, start_filters=8)
    network.load_state_dict(stored["model_state_dict"], strict=True)
    with np.load(shared_data / "legacy" / "unet3d_b3_f8_io.npz") as data, torch.no_grad():
        predicted = network(torch.from_numpy(data["x"][:, 0]))
        np.testing.assert_allclose(predicted.numpy(), data["y"][:, 0], atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 8, 8, 8), (1, 5, 7, 9), (1, 1, 6, 4)])
@pytest.mark.parametrize("n_blocks", [1, 2, 3])
def test_a_cube_of_the_same_size_comes_out_whatever_the_size(shape: tuple[int, ...], n_blocks: int) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        assert UNet3d(n_blocks, 2)(torch.randn(shape)).shape == shape


def test_biases_start_at_zero_and_weights_xavier_normal() -> None:
    torch.manual_seed(0)
    network = UNet3d(2, 16)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv3d | torch.nn.ConvTranspose3d)]
    assert all(m.bias is not None and not m.bias.any() for m in convolutions)
    weight = convolutions[1].weight  # 16 -> 16 channels, 3^3
    assert weight.std().item() == pytest.approx((2 / (16 * 27 + 16 * 27)) ** 0.5, rel=0.05)
