"""Line integrals through voxels, and the streaks that follow from them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from denoise.projections.angles import SplitAngles
from denoise.projections.phantom import FoamPhantom
from denoise.projections.projector import project_slices
from denoise.projections.reconstruct import reconstruct_rows
from denoise.projections.streaks import streaks_of_splits


def angles_of(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.arange(count) * (np.pi / count)


@pytest.mark.parametrize(("allowed", "numba_s_own"), [("1", None), ("1,4", None), ("2", "1")])
def test_numba_takes_no_more_threads_than_others_may(allowed: str, numba_s_own: str | None) -> None:
    """Where its threads are OpenMP's, it would raise their number for torch too."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "NUMBA"))}
    environment["OMP_NUM_THREADS"] = allowed
    if numba_s_own:
        environment["NUMBA_NUM_THREADS"] = numba_s_own
    script = "from denoise.projections import projector; import numba; print(numba.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1


def test_a_voxel_falls_on_the_column_that_the_back_projection_takes_it_from() -> None:
    size, angles = 41, angles_of(12)
    slices = np.zeros((2, size, size), np.float32)
    slices[1, 28, 13] = 1.0
    integrals = project_slices(slices, angles)
    middle = 0.5 * (size - 1)
    expected = middle + (13 - middle) * np.cos(angles) - (28 - middle) * np.sin(angles)
    assert integrals.shape == (12, 2, size)
    assert not integrals[:, 0].any()
    np.testing.assert_allclose((integrals[:, 1] @ np.arange(size)) / integrals[:, 1].sum(1), expected, atol=0.3)
    assert integrals[:, 1].sum(1) == pytest.approx(1, abs=0.15)


def test_a_reconstruction_projects_to_the_projections_that_it_was_made_from() -> None:
    phantom, angles = FoamPhantom.create(size=64, slices=4, seed=1, n_pores=30), angles_of(160)
    clean = phantom.project(angles)
    again = project_slices(reconstruct_rows(clean, angles, phantom.center), angles)
    assert np.square(again - clean).mean() < 1e-3 * clean.var()


@pytest.mark.parametrize("count", [2, 3])
def test_streaks_are_those_of_the_splits_of_a_noise_free_scan(count: int) -> None:
    phantom, angles = FoamPhantom.create(size=64, slices=10, seed=1, n_pores=60), angles_of(60)
    clean = phantom.project(angles)
    splits = [
        reconstruct_rows(np.ascontiguousarray(clean[k::count]), angles[k::count], phantom.center) for k in range(count)
    ]
    mean = np.mean(splits, axis=0)
    found = streaks_of_splits(mean, SplitAngles.in_turn(angles, count))
    np.testing.assert_allclose(sum(found), 0, atol=1e-6)
    for one, split in zip(found, splits, strict=True):
        assert np.square(one - (split - mean)).mean() < 0.2 * np.square(split - mean).mean()
