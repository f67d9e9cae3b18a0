from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from denoise.resolution import cross_frc, first_below, frc


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


# Fourier ring correlation


@pytest.mark.parametrize(("y", "x"), [(8, 8), (64, 64), (63, 40), (32, 51)])
def test_identical_images_correlate_perfectly_at_every_frequency(random: torch.Generator, y: int, x: int) -> None:
    image = normal(random, 2, 1, y, x)
    frequencies, correlation = frc(image, 3 * image + 10)
    n = min(y, x)
    torch.testing.assert_close(frequencies, torch.arange(1, n // 2 + 1, dtype=torch.float64) / n)
    torch.testing.assert_close(correlation, torch.ones_like(frequencies))
    torch.testing.assert_close(frc(image, -image)[1], -torch.ones_like(frequencies))


def test_independent_noise_does_not_correlate(random: torch.Generator) -> None:
    _, correlation = frc(normal(random, 2, 8, 96, 96), normal(random, 2, 8, 96, 96))
    assert correlation.mean().abs() < 0.01
    assert correlation[10:].abs().max() < 0.1


@pytest.mark.parametrize("snr", [0.5, 3.0])
def test_white_signal_in_white_noise_correlates_by_snr_over_snr_plus_one(random: torch.Generator, snr: float) -> None:
    truth = snr**0.5 * normal(random, 2, 8, 96, 96)
    x0, x1 = (truth + normal(random, *truth.shape) for _ in range(2))
    _, correlation = frc(x0.float(), x1.float())
    assert correlation[5:].mean().item() == pytest.approx(snr / (snr + 1), abs=0.01)


def test_cross_frc_estimates_the_correlation_with_the_truth(random: torch.Generator) -> None:
    truth = 2 * smooth(normal(random, 2, 12, 96, 96))
    x0, x1 = (truth + normal(random, *truth.shape) for _ in range(2))
    invented = 0.5 * smooth(normal(random, *truth.shape))
    prediction = smooth(x0) + invented
    _, expected = frc(prediction, truth)
    _, estimated = cross_frc(prediction, x0, x1)
    known = ~estimated.isnan()
    assert known[:30].all()
    reliable = frc(x0, x1)[1] > 0.2
    assert reliable.sum() > 20
    assert (estimated - expected)[reliable][3:].abs().max() < 0.03


def test_cross_frc_exposes_what_agreement_of_denoised_halves_hides(random: torch.Generator) -> None:
    truth = smooth(normal(random, 1, 8, 96, 96))
    x0, x1 = (truth + normal(random, *truth.shape) for _ in range(2))
    invented = normal(random, *truth.shape)
    _, agreement = frc(x0 + 2 * invented, x1 + 2 * invented)
    _, fidelity = cross_frc(x0 + 2 * invented, x0, x1)
    assert agreement[2:12].mean() > 0.7
    assert fidelity[2:12].nanmean() < 0.5


def test_cross_frc_says_nothing_where_the_splits_share_nothing(random: torch.Generator) -> None:
    x0, x1 = normal(random, 1, 4, 64, 64), normal(random, 1, 4, 64, 64)
    _, estimated = cross_frc(smooth(x0), x0, x1)
    assert estimated.isnan().float().mean() > 0.9


@pytest.mark.parametrize("shape", [(1, 1, 7, 20), (1, 20, 20)])
def test_images_too_small_for_rings_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 8"):
        frc(torch.zeros(shape), torch.zeros(shape))


def test_stacks_of_two_shapes_are_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 8, 8\) and \(1, 2, 8, 8\)"):
        frc(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 8, 8))


@pytest.mark.parametrize(
    ("correlation", "expected"),
    [
        ([0.9, 0.7, 0.3, 0.1], 0.25),
        ([0.9, 0.8, 0.7, 0.6], None),
        ([0.4, 0.9, 0.1, 0.1], 0.1),
        ([0.9, 0.7, math.nan, 0.9], 0.2),
        ([math.nan, 0.7, 0.6, 0.9], 0.1),
    ],
)
def test_resolution_is_where_the_curve_first_falls_below_one_half(
    correlation: list[float], expected: float | None
) -> None:
    found = first_below(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor(correlation))
    assert found == (None if expected is None else pytest.approx(expected))
