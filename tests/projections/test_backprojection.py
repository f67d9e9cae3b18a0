"""Filter and back-projection against an independent implementation, and for independence of threads and chunks."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from denoise.projections.backprojection import back_project, filter_projections, ramp_response


@pytest.fixture
def noise(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(90, 3, 64)).astype(np.float32)


@pytest.mark.parametrize("center", [31.5, 28.25, 40.0])
def test_slices_agree_with_algotom_on_one_thread(noise: np.ndarray, center: float) -> None:
    from algotom.rec.reconstruction import fbp_reconstruction

    angles = np.linspace(0, np.pi, 90)
    ours = back_project(filter_projections(noise, np.full(90, np.pi / 89)), angles, center)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        theirs = fbp_reconstruction(
            noise[:, 1], center, angles=angles, gpu=False, filter_name=None, apply_log=False, ncore=1, pad=32
        )
    finally:
        numba.set_num_threads(threads)
    y, x = np.mgrid[:64, :64] - 31.5
    disc = np.hypot(y, x) < 30
    np.testing.assert_allclose(ours[1][disc], theirs[disc], atol=0.02 * theirs[disc].std())


def test_the_number_of_threads_changes_no_bit(noise: np.ndarray) -> None:
    filtered, angles = filter_projections(noise, np.ones(90)), np.linspace(0, 3, 90)
    threads = numba.get_num_threads()
    results = []
    for count in (1, threads):
        numba.set_num_threads(count)
        results.append(back_project(filtered, angles, 31.5))
    np.testing.assert_array_equal(results[0], results[1])


def test_rows_do_not_influence_each_other(noise: np.ndarray) -> None:
    angles, weights = np.linspace(0, 3, 90), np.ones(90)
    together = back_project(filter_projections(noise, weights), angles, 31.5)
    alone = back_project(filter_projections(noise[:, 1:2], weights), angles, 31.5)
    np.testing.assert_allclose(together[1], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("columns", [3, 5, 16, 33])
def test_any_width_is_filtered_without_a_shift(columns: int) -> None:
    impulse = np.zeros((1, 1, columns), np.float32)
    impulse[0, 0, columns // 2] = 1.0
    filtered = filter_projections(impulse, np.array([2.0]))
    assert filtered.shape == (1, columns, 1)
    assert filtered[0, :, 0].argmax() == columns // 2
    assert filtered[0, columns // 2, 0] == pytest.approx(0.5, abs=1e-4)
    assert back_project(filtered, np.array([0.3]), 0.5 * (columns - 1)).shape == (1, columns, columns)


@pytest.mark.parametrize("length", [8, 64, 100])
def test_the_ramp_is_a_ramp_but_for_a_small_offset(length: int) -> None:
    frequency = np.fft.rfftfreq(length)
    np.testing.assert_allclose(ramp_response(length), frequency, atol=1.1 / length / np.pi)
    assert ramp_response(length)[0] > 0


def test_nothing_is_drawn_outside_the_circle(noise: np.ndarray) -> None:
    slices = back_project(filter_projections(noise, np.ones(90)), np.linspace(0, 3, 90), 31.5)
    y, x = np.mgrid[:64, :64] - 31.5
    outside = np.hypot(y, x) > 32
    assert (slices[:, outside] == 0).all()
    assert (slices[:, ~outside] != 0).all()
