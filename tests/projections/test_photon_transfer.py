"""Counts of one photon: found from flats that flicker, drift, read noise and have damaged pixels; 0 where unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from denoise.projections.photon_transfer import counts_per_photon
from denoise.projections.scan import Scan, write_scan

ROWS, COLUMNS = 24, 200


def scan_of(folder: Path, white: np.ndarray, dark: np.ndarray) -> Scan:
    """A scan with these flats and darks."""
    path = folder / "scan.h5"
    write_scan(path, np.ones((4, ROWS, COLUMNS)), white, dark, np.arange(4) * 45.0, "flats")
    return Scan.open(path)


def frames(
    rng: np.random.Generator, *, gain: float, photons: float, count: int = 10, read_noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Flats and darks of a detector with an offset of 100 and an uneven beam that flickers."""
    beam = photons * (1 + 0.3 * np.sin(np.arange(COLUMNS) / 40)) * np.ones((ROWS, 1))
    flicker = 1 + 0.05 * rng.standard_normal((count, 1, 1))
    dark = 100 + read_noise * rng.standard_normal((count, ROWS, COLUMNS))
    white = 100 + gain * rng.poisson(beam * flicker) + read_noise * rng.standard_normal(dark.shape)
    return white, dark


@pytest.mark.parametrize("photons", [5.0, 100.0, 5000.0])
@pytest.mark.parametrize("gain", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("read_noise", [0.0, 2.0])
def test_the_gain_of_a_detector_is_found(
    tmp_path: Path, rng: np.random.Generator, gain: float, photons: float, read_noise: float
) -> None:
    scan = scan_of(tmp_path, *frames(rng, gain=gain, photons=photons, read_noise=read_noise))
    # With 5 photons of 0.3 counts the noise without light is nine times that of the light.
    tolerance = 0.6 if gain * photons < 10 and read_noise else 0.03
    assert counts_per_photon(scan) == pytest.approx(gain, rel=tolerance)


def test_it_is_the_same_whichever_rows_are_used(tmp_path: Path, rng: np.random.Generator) -> None:
    scan = scan_of(tmp_path, *frames(rng, gain=1.0, photons=50.0))
    assert counts_per_photon(scan.only_rows(0, 3)) == counts_per_photon(scan) > 0


def test_shadows_damaged_pixels_and_a_frame_of_another_kind_do_not_count(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    white, dark = frames(rng, gain=2.0, photons=300.0, count=12)
    white[:, :, :80] = 100 + 5 * rng.standard_normal((12, ROWS, 80))
    white[3, 8, 130] = np.nan
    white[5, 9, 150] = 60000.0
    white[7] = white[7, :, ::-1]
    dark[0, 12, 190] = np.inf
    assert counts_per_photon(scan_of(tmp_path, white, dark)) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(
    ("white", "dark"),
    [
        pytest.param(np.full((1, ROWS, COLUMNS), 900.0), np.zeros((2, ROWS, COLUMNS)), id="one flat"),
        pytest.param(np.full((ROWS, COLUMNS), 900.0), np.zeros((ROWS, COLUMNS)), id="one flat without an axis for it"),
        pytest.param(np.full((3, ROWS, COLUMNS), 900.0), np.zeros((1, ROWS, COLUMNS)), id="flats without noise"),
        pytest.param(np.full((3, ROWS, COLUMNS), 9.0), np.full((2, ROWS, COLUMNS), 10.0), id="no light"),
        pytest.param(np.full((3, ROWS, COLUMNS), np.nan), np.zeros((2, ROWS, COLUMNS)), id="nothing finite"),
    ],
)
def test_where_flats_do_not_tell_it_is_nothing(tmp_path: Path, white: np.ndarray, dark: np.ndarray) -> None:
    assert counts_per_photon(scan_of(tmp_path, white, dark)) == 0.0


def test_less_noise_with_light_than_without_is_no_gain_below_zero(tmp_path: Path, rng: np.random.Generator) -> None:
    dark = 100 + 5 * rng.standard_normal((6, ROWS, COLUMNS))
    white = 1000 + rng.standard_normal((6, ROWS, COLUMNS))
    assert counts_per_photon(scan_of(tmp_path, white, dark)) == 0.0
