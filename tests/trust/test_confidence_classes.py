"""What a class of voxels is said to be off by, where noise hides it and where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from denoise.trust.confidence import _steadied

SLICES, VOXELS = 12, 1000


def sums_of(disagreement: list[float], errors: np.ndarray, scatter: float = 0.0) -> np.ndarray:
    """Of classes of equal size.

    ``errors`` are the mean squared errors (slices, classes) as estimated, ``scatter`` the standard deviation of those
    of single voxels within a slice.
    """
    d = np.broadcast_to(disagreement, errors.shape)
    return VOXELS * np.stack([np.ones_like(errors), d, np.square(d), errors, np.square(errors) + scatter**2], axis=1)


def test_an_error_that_every_slice_says_alike_is_believed() -> None:
    alike = np.tile([0.1, 3.0, 7.0], (SLICES, 1))
    np.testing.assert_allclose(_steadied(sums_of([1.0, 2.0, 3.0], alike), 1.0), alike[0])


def test_voxels_that_all_splits_have_alike_are_told_too() -> None:
    """Air that was clipped to 0: nothing differs, neither between splits nor between slices."""
    alike = np.tile([0.1, 3.0], (SLICES, 1))
    np.testing.assert_allclose(_steadied(sums_of([0.0, 2.0], alike), 1.0), alike[0])


def test_an_error_that_is_all_noise_is_taken_to_follow_the_disagreement() -> None:
    noise = np.where(np.arange(SLICES) % 2, 1000.0, -1000.0)[:, None] + np.zeros((SLICES, 3))
    np.testing.assert_allclose(_steadied(sums_of([1.0, 2.0, 3.0], noise), 2.0), [2.0, 8.0, 18.0], rtol=1e-2)


def test_two_slices_that_say_the_same_by_chance_are_not_believed() -> None:
    """Both say less than nothing, and their voxels that each may be off by ten times what is expected."""
    told = _steadied(sums_of([1.0, 2.0], np.full((2, 2), -1.0), scatter=10 * np.sqrt(2 * VOXELS)), 1.0)
    np.testing.assert_allclose(told, [1.0, 4.0], rtol=0.2)


@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
def test_what_is_told_is_nearer_to_the_truth_than_either(strength: float) -> None:
    """Over many scans: the class's own estimate is noisy, and proportionality is not exactly true."""
    rng = np.random.default_rng(0)
    disagreement = np.sqrt(np.arange(1.0, 11.0))
    own, proportional, told = [], [], []
    for _ in range(200):
        truth = disagreement**2 * np.clip(rng.normal(1.0, 0.4, 10), 0.1, None)
        estimated = truth + rng.normal(0, strength * np.sqrt(SLICES), (SLICES, 10))
        sums = sums_of(list(disagreement), estimated, scatter=strength * np.sqrt(SLICES * VOXELS))
        own.append(estimated.mean(axis=0) - truth)
        proportional.append(disagreement**2 - truth)
        told.append(_steadied(sums, 1.0) - truth)
    rms = [float(np.sqrt(np.mean(np.square(errors)))) for errors in (own, proportional, told)]
    assert rms[2] < 1.05 * min(rms[:2])
