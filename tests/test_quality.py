from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from denoise.quality import (
    edge_score,
    edge_sums,
    laplacian,
    laplacian_contrast_loss,
    noise_variance,
    psnr,
    ssim,
    unbiased_mse,
)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(20261123)


def normal(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64)


def smooth(image: Tensor) -> Tensor:
    """A little low-pass in the plane, periodic."""
    for axis in (2, 3):
        image = 0.5 * image + 0.25 * (image.roll(1, axis) + image.roll(-1, axis))
    return image


# Laplacian, contrast, edges


def test_the_laplacian_of_a_paraboloid_is_constant_up_to_the_border() -> None:
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    image = (y**2 + 3 * x**2 + 7 * y - x)[None, None]
    torch.testing.assert_close(laplacian(image), torch.full((1, 1, 4, 3), 8.0))


@pytest.mark.parametrize("shape", [(1, 1, 2, 5), (1, 1, 5, 2), (5, 5), (1, 5, 5)])
def test_images_too_small_for_a_laplacian_are_refused_with_their_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"at least 3, found a tensor of shape \({shape[0]}, {shape[1]}"):
        laplacian(torch.zeros(shape))


def reference_contrast_loss(image: np.ndarray) -> float:
    """The definition, read literally, for one image."""
    strength = np.abs(image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:] - 4 * image[1:-1, 1:-1])
    threshold = np.quantile(strength, 0.8, method="inverted_cdf")
    return float(strength[strength <= threshold].mean() / (strength[strength > threshold].mean() + 1e-6))


def test_contrast_loss_is_the_mean_over_images_of_the_definition(random: torch.Generator) -> None:
    images = normal(random, 3, 2, 17, 23)
    expected = np.mean([reference_contrast_loss(image.numpy()) for image in images.flatten(0, 1)])
    assert laplacian_contrast_loss(images).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_contrast_loss_is_computed_in_float32_also_under_autocast(random: torch.Generator, dtype: torch.dtype) -> None:
    images = normal(random, 2, 1, 32, 32).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        inside = laplacian_contrast_loss(images)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, laplacian_contrast_loss(images.float()))


def test_contrast_loss_has_the_gradient_of_finite_differences(random: torch.Generator) -> None:
    images = normal(random, 1, 2, 7, 8).requires_grad_()
    assert torch.autograd.gradcheck(laplacian_contrast_loss, (images,), eps=1e-7)


def test_contrast_loss_prefers_a_cartoon_to_a_noisy_image(random: torch.Generator) -> None:
    cartoon = torch.zeros(1, 1, 64, 64)
    cartoon[..., 20:40, 20:40] = 1
    noisy = cartoon + 0.1 * normal(random, 1, 1, 64, 64).float()
    assert laplacian_contrast_loss(cartoon) < 0.1 * laplacian_contrast_loss(noisy)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (torch.full((1, 1, 8, 8), 3.0), 0.0),
        ((torch.arange(8.0) ** 2).expand(1, 1, 8, 8), 1.0),
        (torch.arange(9.0).reshape(1, 1, 3, 3) ** 2, 1.0),
    ],
    ids=["constant", "all edges alike", "a single voxel"],
)
def test_contrast_loss_of_degenerate_images_is_finite_with_a_finite_gradient(image: Tensor, expected: float) -> None:
    image = image.clone().requires_grad_()
    loss = laplacian_contrast_loss(image)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_edge_sums_count_every_voxel_and_add_up_over_batches(random: torch.Generator) -> None:
    images = normal(random, 4, 3, 12, 13)
    whole, parts = edge_sums(images), edge_sums(images[:1]) + edge_sums(images[1:])
    torch.testing.assert_close(whole, parts)
    assert whole[1] + whole[3] == 4 * 3 * 10 * 11
    assert whole[1] == 4 * 3 * 11  # a tenth of 110, image by image
    assert (whole[0] + whole[2]).item() == pytest.approx(laplacian(images).abs().sum().item())
    assert not edge_sums(images.requires_grad_()).requires_grad


def test_a_flat_patch_does_not_dominate_the_edge_score(random: torch.Generator) -> None:
    textured, flat = normal(random, 4, 1, 32, 32), 1e-6 * normal(random, 1, 1, 32, 32)
    flat[..., 10, 10] = 1
    alone, together = edge_score(edge_sums(textured)), edge_score(edge_sums(textured) + edge_sums(flat))
    assert edge_score(edge_sums(flat)) > 1e3
    assert together == pytest.approx(alone, rel=0.3)


def test_edge_score_rises_with_the_edges_and_ignores_the_unit(random: torch.Generator) -> None:
    texture, square = 0.1 * normal(random, 1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    square[..., 20:40, 20:40] = 1
    none, weak, strong = (edge_score(edge_sums(texture + c * square)) for c in (0, 1, 4))
    assert 1 < none < weak < strong
    assert edge_score(edge_sums(7 * (texture + square))) == pytest.approx(weak)


@pytest.mark.parametrize("sums", [(0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 36.0), (1.0, 3.0, 0.0, 33.0)])
def test_edge_score_of_dead_predictions_is_zero(sums: tuple[float, ...]) -> None:
    assert edge_score(torch.tensor(sums, dtype=torch.float64)) == 0.0


# Fidelity


def test_noise_variance_and_unbiased_error_find_what_the_truth_would_tell(random: torch.Generator) -> None:
    truth = smooth(normal(random, 2, 3, 128, 128)) + 1000
    x0, x1 = (truth + 0.5 * normal(random, 2, 3, 128, 128) for _ in range(2))
    prediction = smooth(x0)
    error = (prediction - truth).square().mean(dim=(2, 3))
    estimate = unbiased_mse(prediction.float(), x1.float(), x0.float())
    assert noise_variance(x0, x1).mean().item() == pytest.approx(0.25, rel=0.02)
    assert estimate.shape == (2, 3)
    assert estimate.dtype == torch.float64
    assert estimate.mean().item() == pytest.approx(error.mean().item(), abs=0.01)


def test_masked_scores_ignore_what_is_outside(random: torch.Generator) -> None:
    truth, noise = torch.zeros(2, 1, 32, 32, dtype=torch.float64), normal(random, 2, 1, 32, 32)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:24, 8:24] = True
    other = truth.clone()
    other[..., ~mask] = math.nan
    image = torch.where(mask, noise, torch.tensor(math.nan, dtype=torch.float64))
    inside = noise[..., mask].square()  # (2, 1, voxels)
    assert psnr(image, truth, 2.0, mask) == pytest.approx(10 * math.log10(4 / inside.mean().item()))
    torch.testing.assert_close(noise_variance(image, other, mask), inside.mean(dim=2) / 2)


def test_psnr_is_that_of_the_definition() -> None:
    truth = torch.zeros(1, 2, 4, 4)
    assert psnr(truth + 0.1, truth, 1.0) == pytest.approx(20.0, abs=1e-5)
    assert psnr(truth, truth, 1.0) == math.inf


@pytest.mark.parametrize("shape", [(1, 1, 11, 11), (2, 2, 40, 33)])
def test_ssim_agrees_with_scikit_image(random: torch.Generator, shape: tuple[int, ...]) -> None:
    truth = smooth(smooth(normal(random, *shape))) + 5
    image = truth + 0.2 * normal(random, *shape)
    expected = np.mean(
        [
            structural_similarity(
                a.numpy(), b.numpy(), data_range=2.5, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            for a, b in zip(image.flatten(0, 1), truth.flatten(0, 1), strict=True)
        ]
    )
    assert ssim(image, truth, 2.5) == pytest.approx(expected, abs=1e-6)
    assert ssim(image.float(), truth.float(), 2.5) == pytest.approx(expected, abs=1e-4)


def test_ssim_averages_over_the_mask_only(random: torch.Generator) -> None:
    truth = normal(random, 1, 2, 32, 48)
    image = truth.clone()
    image[..., 24:] += normal(random, 1, 2, 32, 24)
    mask = torch.zeros(32, 48, dtype=torch.bool)
    mask[:, :18] = True  # 24 - 5 and less: windows that see no noise
    assert ssim(image, truth, 4.0, mask) == pytest.approx(1.0)
    assert ssim(image, truth, 4.0, mask.expand(1, 2, 32, 48)) == pytest.approx(1.0)
    assert ssim(image, truth, 4.0) < 0.9


def test_images_smaller_than_the_ssim_window_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 11"):
        ssim(torch.zeros(1, 1, 10, 20), torch.zeros(1, 1, 10, 20), 1.0)
