from __future__ import annotations

import pytest
import torch

from denoise.quality import laplacian_contrast_loss
from denoise.training.objective import Objective, centre_slice, paired, target_noise


def blocks(*values: float) -> torch.Tensor:
    """One block per split, constant."""
    return torch.tensor(values).reshape(1, -1, 1, 1, 1).expand(1, len(values), 2, 3, 3)


@pytest.mark.parametrize("strategy", ["X:1", "1:X"])
def test_two_splits_predict_each_other(strategy: str) -> None:
    inputs, targets = paired(blocks(1.0, 5.0), strategy)
    assert inputs[:, 0, 0, 0].tolist() == [5.0, 1.0] if strategy == "X:1" else [1.0, 5.0]
    torch.testing.assert_close(inputs + targets, torch.full_like(inputs, 6.0))


@pytest.mark.parametrize(
    ("values", "means"),
    [
        ((1.0, 2.0, 6.0), [4.0, 3.5, 1.5]),
        ((1.0, 2.0, 6.0, 3.0), [11 / 3, 10 / 3, 2.0, 3.0]),
    ],
)
@pytest.mark.parametrize("strategy", ["X:1", "1:X"])
def test_each_split_once_stands_alone_against_the_mean_of_the_others(
    values: tuple[float, ...], means: list[float], strategy: str
) -> None:
    inputs, targets = paired(blocks(*values), strategy)
    alone, others = (targets, inputs) if strategy == "X:1" else (inputs, targets)
    torch.testing.assert_close(alone[:, 1, 2, 2], torch.tensor(values))
    torch.testing.assert_close(others[:, 1, 2, 2], torch.tensor(means))


def test_choices_of_one_block_lie_next_to_each_other() -> None:
    batch = torch.randn(3, 4, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    inputs, targets = paired(batch, "X:1")
    assert inputs.shape == targets.shape == (12, 2, 5, 6)
    torch.testing.assert_close(targets[2 * 4 + 3], batch[2, 3])
    torch.testing.assert_close(inputs[2 * 4 + 3], batch[2, :3].mean(dim=0))


def test_an_input_never_contains_its_own_target() -> None:
    """Noise of the target in the input would teach the network the identity."""
    for count in (2, 3, 4):
        batch = torch.zeros(1, count, 1, 4, 4)
        for k in range(count):
            loud = batch.clone()
            loud[0, k] = 1000.0
            for strategy in ("X:1", "1:X"):
                inputs, targets = paired(loud, strategy)
                both = (inputs.abs().amax(dim=(1, 2, 3)) > 0) & (targets.abs().amax(dim=(1, 2, 3)) > 0)
                assert not both.any()


@pytest.mark.parametrize(
    ("loss", "delta", "expected"),
    [
        ("l1", 1.0, (0.5 + 3.0 + 0.0 + 1.5) / 4),
        ("l2", 1.0, (0.25 + 9.0 + 0.0 + 2.25) / 4),
        ("huber", 1.0, (0.125 + 2.5 + 0.0 + 1.0) / 4),
        ("huber", 2.0, (0.125 + 4.0 + 0.0 + 1.125) / 4),
    ],
)
def test_losses_have_the_values_of_their_formulas(loss: str, delta: float, expected: float) -> None:
    prediction = torch.tensor([0.5, -3.0, 2.0, 1.5]).reshape(1, 1, 2, 2)
    target = torch.tensor([0.0, 0.0, 2.0, 3.0]).reshape(1, 1, 2, 2)
    assert Objective(loss, huber_delta=delta).fidelity(prediction, target).item() == pytest.approx(expected)


def test_half_precision_predictions_are_compared_in_float32() -> None:
    prediction = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    target = torch.full((1, 1, 64, 64), 1.001)
    value = Objective("l1").fidelity(prediction, target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_contrast_loss_is_added_with_its_weight_and_only_when_asked(depth: int) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(3, depth, 9, 9, generator=generator) for _ in range(2))
    objective = Objective("l1", lcl_weight=0.25)
    plain = (prediction - target).abs().mean()
    middle = depth // 2
    contrast = laplacian_contrast_loss(prediction[:, middle : middle + 1])
    torch.testing.assert_close(objective(prediction, target, with_lcl=False), plain)
    torch.testing.assert_close(objective(prediction, target, with_lcl=True), plain + 0.25 * contrast)
    torch.testing.assert_close(Objective("l1", lcl_weight=0.0)(prediction, target, with_lcl=True), plain)


def test_the_objective_can_be_followed_downhill() -> None:
    prediction = torch.randn(2, 1, 8, 8, requires_grad=True)
    Objective()(prediction, torch.randn(2, 1, 8, 8), with_lcl=True).backward()  # type: ignore[no-untyped-call]
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize(("depth", "centre"), [(1, 0), (2, 1), (4, 2), (5, 2)])
def test_the_centre_slice_is_the_one_in_the_middle(depth: int, centre: int) -> None:
    slices = torch.arange(float(depth)).reshape(1, depth, 1, 1).expand(2, depth, 4, 4)
    assert centre_slice(slices).shape == (2, 1, 4, 4)
    assert centre_slice(slices).unique().tolist() == [centre]


# The noise of the targets


@pytest.mark.parametrize("strengths", [(0.5, 0.5), (0.7, 0.7, 0.7), (0.2, 0.5, 0.9), (1.0, 0.1), (0.3, 0.4, 0.5, 0.6)])
@pytest.mark.parametrize("strategy", ["X:1", "1:X"])
def test_the_noise_of_the_targets_is_found_without_the_truth(strengths: tuple[float, ...], strategy: str) -> None:
    """Over all choices of a block, also where the splits are not equally noisy."""
    generator = torch.Generator().manual_seed(5)
    truth = 10 * torch.rand(6, 1, 3, 64, 64, generator=generator)
    noise = torch.randn(6, len(strengths), 3, 64, 64, generator=generator)
    batch = truth + noise * torch.tensor(strengths).reshape(1, -1, 1, 1, 1)
    _, targets = paired(batch, strategy)
    known = (targets - truth.expand_as(batch).flatten(0, 1)).square().mean().item()
    assert target_noise(batch, strategy).mean().item() == pytest.approx(known, rel=0.02)


@pytest.mark.parametrize("strategy", ["X:1", "1:X"])
def test_the_noise_of_one_block_is_not_that_of_another(strategy: str) -> None:
    quiet, loud = torch.ones(1, 3, 2, 5, 6), torch.randn(1, 3, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    batch = torch.cat([quiet, loud])
    found = target_noise(batch, strategy)
    assert found.shape == paired(batch, strategy)[1].shape == (6, 2, 5, 6)
    assert (found[:3] == 0).all()
    assert (found[3:] > 0).all()
