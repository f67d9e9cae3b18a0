"""The foam: exact projections, no overlaps, and a scan with the statistics of photons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from denoise.errors import ScanError
from denoise.projections.phantom import FoamPhantom, simulate_foam_scan
from denoise.projections.reconstruct import reconstruct_rows
from denoise.projections.scan import Scan


@pytest.fixture(scope="module")
def foam() -> FoamPhantom:
    return FoamPhantom.create(size=96, slices=8, seed=1, n_pores=150)


def test_the_same_seed_gives_the_same_foam_and_another_seed_another(foam: FoamPhantom) -> None:
    again = FoamPhantom.create(size=96, slices=8, seed=1, n_pores=150)
    np.testing.assert_array_equal(foam.spheres, again.spheres)
    other = FoamPhantom.create(size=96, slices=8, seed=2, n_pores=150)
    assert foam.spheres.shape != other.spheres.shape or not np.array_equal(foam.spheres, other.spheres)


def test_spheres_touch_neither_each_other_nor_the_side_of_the_cylinder(foam: FoamPhantom) -> None:
    place, radius = foam.spheres[:, :3], foam.spheres[:, 3]
    distance = np.linalg.norm(place[:, None] - place[None], axis=2) - radius[:, None] - radius[None]
    np.fill_diagonal(distance, 1.0)
    assert distance.min() > 0
    assert (np.hypot(place[:, 0], place[:, 1]) + radius).max() < 0.45 * 96
    assert len(radius) > 50
    assert radius.max() > 4 * radius.min()


def test_a_quarter_of_the_beam_passes_the_middle(foam: FoamPhantom) -> None:
    middle = foam.project(np.linspace(0, np.pi, 30, endpoint=False))[:, :, 38:58]
    assert 0.2 < np.exp(-middle).mean() < 0.3
    assert (foam.project(np.array([0.0])) >= -1e-6).all()


def test_rows_of_a_projection_are_those_of_the_whole(foam: FoamPhantom) -> None:
    angles = np.array([0.1, 1.0, 2.5])
    np.testing.assert_array_equal(foam.project(angles, slice(3, 6)), foam.project(angles)[:, 3:6])


def test_projections_half_a_turn_apart_are_mirror_images(foam: FoamPhantom) -> None:
    one, other = foam.project(np.array([0.4, 0.4 + np.pi]))
    np.testing.assert_allclose(one, other[:, ::-1], atol=1e-5)


def test_the_mass_in_every_projection_is_that_of_the_spheres_and_the_cylinder() -> None:
    spheres = np.array([[10.0, -7.0, 9.5, 6.0, -0.02], [-12.0, 3.0, 9.0, 4.0, 0.03]])
    phantom = FoamPhantom(64, 20, spheres, 0.02)
    expected = 0.02 * np.pi * (0.45 * 64) ** 2 * 20 + 4 / 3 * np.pi * (6.0**3 * -0.02 + 4.0**3 * 0.03)
    for mass in phantom.project(np.array([0.0, 0.7, 2.0])).sum(axis=(1, 2), dtype=np.float64):
        assert mass == pytest.approx(expected, rel=2e-3)


def test_a_grain_is_reconstructed_where_it_is_with_its_attenuation() -> None:
    phantom = FoamPhantom(96, 3, np.array([[20.0, 10.0, 1.0, 12.0, 0.02]]), 0.01)
    angles = np.linspace(0, np.pi, 180, endpoint=False)
    image = reconstruct_rows(phantom.project(angles), angles, phantom.center)[1]
    y, x = np.mgrid[:96, :96] - 47.5
    assert image[np.hypot(x - 20, y - 10) < 9].mean() == pytest.approx(0.03, rel=0.01)
    assert image[np.hypot(x + 20, y + 10) < 9].mean() == pytest.approx(0.01, rel=0.02)


def test_a_simulated_scan_has_the_counts_that_its_photons_give(tmp_path: Path) -> None:
    phantom = simulate_foam_scan(tmp_path / "foam.h5", size=64, slices=4, angles=70, photons=300, seed=5)
    scan = Scan.open(tmp_path / "foam.h5")
    assert scan.shape == (70, 4, 64)
    np.testing.assert_allclose(scan.angles_rad, np.arange(70) * np.pi / 70)
    raw = scan.read_rows(0, 4)
    assert raw.whole_counts
    np.testing.assert_allclose(raw.white.mean(axis=0), 300, rtol=1e-6)
    assert np.diff(raw.white, axis=0).std() == pytest.approx(np.sqrt(2 * 300), rel=0.15)
    assert (raw.dark == 0).all()
    expected = 300 * np.exp(-phantom.project(scan.angles_rad))
    deviation = (raw.data - expected) / np.sqrt(expected)
    assert abs(deviation.mean()) < 0.03
    assert deviation.std() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("photons", [0.0, -3.0, 1e5, float("nan")])
def test_photons_that_16_bits_cannot_count_are_refused(tmp_path: Path, photons: float) -> None:
    with pytest.raises(ScanError, match="expected 1 to 60000 photons"):
        simulate_foam_scan(tmp_path / "foam.h5", size=32, slices=2, angles=8, photons=photons)
    assert not list(tmp_path.iterdir())
