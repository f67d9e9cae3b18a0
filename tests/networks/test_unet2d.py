from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from denoise.networks.unet2d import UNet2d


@pytest.mark.real_data
def test_stored_model_loads_by_name_and_gives_the_stored_output(shared_data: Path) -> None:
    stored = torch.load(shared_data / "legacy" / "unet2d_n5.pth", weights_only=True)
    network = UNet2d(n_slices=5)
    network.load_state_dict(stored["model_state_dict"], strict=True)
    with np.load(shared_data / "legacy" / "unet2d_n5_io.npz") as data, torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(data["x"])).numpy(), data["y"], atol=1e-5)


@pytest.mark.parametrize(("n_slices", "y", "x"), [(1, 8, 8), (4, 16, 24), (5, 40, 8)])
def test_one_slice_of_the_same_size_comes_out(n_slices: int, y: int, x: int) -> None:
    assert UNet2d(n_slices)(torch.zeros(2, n_slices, y, x)).shape == (2, 1, y, x)


@pytest.mark.parametrize("shape", [(1, 5, 12, 16), (1, 5, 16, 4), (1, 4, 16, 16)])
def test_a_block_that_does_not_fit_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"5 slices .* divisible by 8; .*\({shape[1]}, {shape[2]}, {shape[3]}\)"):
        UNet2d(5)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (2, 2, 40, 24)])
def test_inference_takes_a_shorter_way_to_what_training_computes(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    """Borders included: the padding of a doubled image is not the doubled padding."""
    torch.manual_seed(1)
    network = UNet2d(2)
    block = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    long_way = network(block).detach()
    with torch.no_grad():
        short_way = network(block)
    assert long_way.std() > 0.05
    torch.testing.assert_close(short_way, long_way, rtol=1e-4, atol=1e-4)


def test_half_precision_with_channels_last_agrees_with_float32(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    network = UNet2d(3).to(memory_format=torch.channels_last)
    block = torch.from_numpy(rng.standard_normal((1, 3, 32, 32), dtype=np.float32))
    with torch.no_grad():
        exact = network(block)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(block.contiguous(memory_format=torch.channels_last))
    assert (half.float() - exact).abs().max() < 0.05 * exact.abs().max()
