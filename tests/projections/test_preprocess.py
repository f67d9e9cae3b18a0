"""Line integrals: the numbers, and that every repair is counted."""

from __future__ import annotations

import numpy as np
import pytest

from denoise.errors import ScanError
from denoise.projections.preprocess import Repairs, line_integrals, remove_stripes
from denoise.projections.scan import RawRows


def _raw(data: np.ndarray, white: float = 1100.0, dark: float = 100.0, *, whole_counts: bool = True) -> RawRows:
    shape = data.shape[1:]
    return RawRows(
        data.astype(np.float32),
        np.full((3, *shape), white, np.float32),
        np.full((2, *shape), dark, np.float32),
        whole_counts=whole_counts,
        first_row=40,
    )


def test_line_integrals_undo_the_law_of_beer_and_lambert(rng: np.random.Generator) -> None:
    truth = rng.uniform(0, 4, (6, 2, 9))
    values, repairs = line_integrals(_raw(100 + 1000 * np.exp(-truth)))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, truth, atol=1e-4)
    assert repairs == Repairs(0, 0, truth.size)
    assert repairs.sentence is None


def test_flats_and_darks_are_averaged_over_their_frames(rng: np.random.Generator) -> None:
    raw = _raw(np.full((4, 1, 5), 600.0))
    raw.white[:] += rng.normal(0, 5, raw.white.shape)
    raw.dark[:] += rng.normal(0, 5, raw.dark.shape)
    dark = raw.dark.mean(0)
    expected = -np.log((600 - dark) / (raw.white.mean(0) - dark))
    np.testing.assert_allclose(line_integrals(raw)[0], np.broadcast_to(expected, (4, 1, 5)), rtol=1e-5)


@pytest.mark.parametrize("gain", [1.0, 3.0])
@pytest.mark.parametrize(
    ("photons", "plain_bias", "left"),
    [(1.5, 0.15, 0.011), (2.0, 0.18, 0.011), (4.0, 0.14, 0.008), (10.0, 0.054, 0.002), (40.0, 0.0127, 0.002)],
)
def test_the_logarithm_of_few_photons_is_right_on_average(
    photons: float, plain_bias: float, left: float, gain: float, rng: np.random.Generator
) -> None:
    beam = 200.0
    counts = gain * rng.poisson(photons, (100, 40, 100))
    raw = _raw(100 + counts, white=100 + gain * beam)
    error = np.log(beam / photons)
    standard_error = photons**-0.5 / np.sqrt(counts.size)
    corrected = float(line_integrals(raw, gain)[0].mean(dtype=np.float64))
    assert corrected == pytest.approx(error, abs=left + 4 * standard_error)
    plain = float(line_integrals(_raw(100 + counts, white=100 + gain * beam))[0].mean(dtype=np.float64))
    assert plain - error > 0.9 * plain_bias


@pytest.mark.parametrize("photons", [1.5, 3.0, 10.0])
def test_what_the_detector_reads_in_the_dark_is_no_long_tail_of_the_logarithm(
    photons: float, rng: np.random.Generator
) -> None:
    """Ten counts for a photon, and as many of noise without light: near nothing, and below it, are as many as not."""
    counts = np.round(10 * rng.poisson(photons, (100, 40, 100)) + rng.normal(0, 10, (100, 40, 100)))
    raw = _raw(100 + counts, white=100 + 10 * 200)
    values, _ = line_integrals(raw, 10.0)
    assert abs(float(values.mean(dtype=np.float64)) - np.log(200 / photons)) < 0.065
    assert float(values.std(dtype=np.float64)) < 0.9


def test_counts_that_are_not_corrected_stay_as_they_are(rng: np.random.Generator) -> None:
    counts = 100.0 + rng.integers(0, 900, (3, 2, 7))
    expected = -np.log(np.maximum(counts - 100, 0.5) / 1000)
    np.testing.assert_allclose(line_integrals(_raw(counts))[0], expected, rtol=1e-5)


@pytest.mark.parametrize(("whole_counts", "least"), [(True, 0.5 / 1000), (False, 1e-4)])
@pytest.mark.parametrize("count", [100.0, 60.0, -5.0])
def test_rays_without_transmission_are_raised_and_counted(count: float, whole_counts: bool, least: float) -> None:
    data = np.full((5, 2, 4), 600.0)
    data[1, 0, 2] = count
    values, repairs = line_integrals(_raw(data, whole_counts=whole_counts))
    assert values[1, 0, 2] == pytest.approx(-np.log(least), rel=1e-5)
    assert repairs == Repairs(0, 1, 40)
    assert repairs.sentence is not None
    assert "1 of 40 rays (2.5 %)" in repairs.sentence


@pytest.mark.parametrize("dead", [[3], [0], [8], [3, 4, 5], [0, 1, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_dead_pixels_are_filled_from_their_neighbours_and_counted(dead: list[int]) -> None:
    truth = np.broadcast_to(np.linspace(0.5, 1.3, 9), (4, 2, 9))
    raw = _raw(100 + 1000 * np.exp(-truth))
    raw.white[:, 1, dead] = 90.0
    raw.data[:, 1, dead] = 77.0
    values, repairs = line_integrals(raw)
    alive = [c for c in range(9) if c not in dead]
    expected = np.interp(np.arange(9), alive, truth[0, 0, alive])
    np.testing.assert_allclose(values[:, 1], np.broadcast_to(expected, (4, 9)), atol=1e-4)
    np.testing.assert_allclose(values[:, 0], truth[:, 0], atol=1e-4)
    assert repairs == Repairs(len(dead), 0, truth.size)


def test_a_row_without_beam_is_refused_with_its_number() -> None:
    raw = _raw(np.full((4, 3, 5), 600.0))
    raw.white[:, 2] = 100.0
    with pytest.raises(ScanError, match=r"row 42 .*mean flat 100, mean dark 100"):
        line_integrals(raw)


def test_repairs_of_several_slabs_add_up() -> None:
    total = Repairs(1, 2, 100) + Repairs(3, 4, 100)
    assert total == Repairs(4, 6, 200)
    assert total.sentence is not None
    assert "4 dead pixels" in total.sentence
    assert "6 of 200 rays (3 %)" in total.sentence


def _striped_disc(rng: np.random.Generator, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """An off-centre disc, (angles, rows, columns); a stripe at column 90 of row 0 only."""
    angle, column = np.linspace(0, np.pi, 120)[:, None], np.arange(256)
    offset = column - 127.5 - 40 * np.cos(angle)
    clean = 0.01 * 2 * np.sqrt(np.maximum(60**2 - offset**2, 0))
    clean = np.stack([clean, clean], axis=1)
    striped = clean + rng.normal(0, noise, clean.shape)
    striped[:, 0, 90] += 0.3
    return clean, striped.astype(np.float32)


def test_a_stripe_is_removed_and_the_rest_is_kept(rng: np.random.Generator) -> None:
    clean, striped = _striped_disc(rng, 0.01)
    before = striped.copy()
    result = remove_stripes(striped)
    np.testing.assert_array_equal(striped, before)
    assert result.dtype == np.float32
    assert abs((result[:, 0, 90] - clean[:, 0, 90]).mean()) < 0.03
    assert abs((result[:, 1] - clean[:, 1]).mean()) < 0.003
    assert np.sqrt(((result[:, 1] - clean[:, 1]) ** 2).mean()) < 0.03


@pytest.mark.parametrize("shape", [(2, 1, 16), (40, 3, 33), (7, 1, 64)])
@pytest.mark.parametrize("value", [0.0, 9.2])
def test_stripe_removal_keeps_constant_sinograms_of_any_shape(shape: tuple[int, int, int], value: float) -> None:
    sinograms = np.full(shape, value, np.float32)
    np.testing.assert_allclose(remove_stripes(sinograms), sinograms, atol=1e-5)


def test_stripes_of_a_few_columns_are_refused() -> None:
    with pytest.raises(ScanError, match="cannot be removed from 2 detector columns"):
        remove_stripes(np.ones((20, 1, 2), np.float32))
