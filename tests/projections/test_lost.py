"""Projections that say nothing: which are found, and which are not taken for such."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from denoise.projections.lost import LostProjections, lost_projections
from denoise.projections.scan import Scan, write_scan

ANGLES, ROWS, COLUMNS = 300, 6, 64
HALF_TURN = np.arange(ANGLES) * 180.0 / ANGLES
ORDERS = {
    "half turn": HALF_TURN,
    "full turn": 2 * HALF_TURN,
    "golden angle": np.arange(ANGLES) * 137.508,
    "backwards": 90 - HALF_TURN,
}


def counts(rng: np.random.Generator, transmission: np.ndarray | float = 1.0, photons: float = 500.0) -> np.ndarray:
    """Projections of a detector with an offset of 100 and some noise of its own, in a beam that flickers."""
    flicker = 1 + 0.05 * rng.standard_normal((ANGLES, 1, 1))
    light = rng.poisson(photons * flicker * np.broadcast_to(transmission, (ANGLES, ROWS, COLUMNS)))
    return light + 100 + 2 * rng.standard_normal(light.shape)


def found(folder: Path, data: np.ndarray, theta: np.ndarray = HALF_TURN) -> LostProjections:
    dark = 100 + 2 * np.random.default_rng(1).standard_normal((10, ROWS, COLUMNS))
    write_scan(folder / "scan.h5", data, dark + 500, dark, theta, "lost")
    scan = Scan.open(folder / "scan.h5")
    assert lost_projections(scan.only_rows(0, 1)) == lost_projections(scan)
    return lost_projections(scan)


@pytest.mark.parametrize("theta", ORDERS.values(), ids=ORDERS.keys())
@pytest.mark.parametrize("level", ["nothing", "dark"])
@pytest.mark.parametrize(
    "numbers", [[7], [0, 1], [ANGLES - 1], [40, 41, 42, 43, 44, 45, 46, 47, 90], range(120, ANGLES)], ids=str
)
def test_projections_without_light_are_found(
    tmp_path: Path, rng: np.random.Generator, theta: np.ndarray, level: str, numbers: list[int]
) -> None:
    data = counts(rng)
    lost = list(numbers)
    data[lost] = 0 if level == "nothing" else counts(rng, 0.0)[lost]
    assert found(tmp_path, data, theta).dark == tuple(lost)


def plate(theta: np.ndarray) -> np.ndarray:
    """Transmissions of a plate that is wider than the beam; edge-on, nothing passes."""
    return np.exp(-0.2 / np.maximum(np.abs(np.sin(np.deg2rad(theta))), 1e-9))[:, None, None]


@pytest.mark.parametrize("theta", ORDERS.values(), ids=ORDERS.keys())
def test_a_sample_that_lets_nothing_through_is_light_enough(
    tmp_path: Path, rng: np.random.Generator, theta: np.ndarray
) -> None:
    data = counts(rng, plate(theta))
    assert (data.mean(axis=(1, 2)) < 103).sum() >= 5
    assert found(tmp_path, data, theta).numbers == ()


@pytest.mark.parametrize("photons", [0.0, 0.0005, 0.001, 0.002, 0.01, 0.5])
def test_where_there_is_hardly_a_photon_none_is_missed(
    tmp_path: Path, rng: np.random.Generator, photons: float
) -> None:
    assert found(tmp_path, counts(rng, photons=photons)).numbers == ()


@pytest.mark.parametrize("photons", [0.05, 0.11, 0.12, 0.2, 0.3, 0.5, 1.0, 5.0])
def test_single_photons_that_are_counted_come_and_go(tmp_path: Path, rng: np.random.Generator, photons: float) -> None:
    """So many in both rows of a projection together, as where the beam is narrower than the detector."""
    data = rng.poisson(photons / (2 * COLUMNS), (ANGLES, ROWS, COLUMNS)).astype(np.uint16)
    flats, dark = (np.full((3, ROWS, COLUMNS), level, np.uint16) for level in (1, 0))
    write_scan(tmp_path / "scan.h5", data, flats, dark, HALF_TURN, "counted")
    assert lost_projections(Scan.open(tmp_path / "scan.h5")).dark == ()


def test_views_past_an_opaque_core_of_half_a_detector_are_not_lost(tmp_path: Path, rng: np.random.Generator) -> None:
    """A full turn about an axis at the edge of the detector: what one view hides, the opposite one does not."""
    theta = np.linspace(0, 360, len(HALF_TURN), endpoint=False)
    opaque = np.clip((np.cos(np.deg2rad(theta)) - 0.6) * 20, 0, 12)[:, None, None]
    assert found(tmp_path, counts(rng, np.exp(-opaque)), theta).numbers == ()


def test_pixels_that_are_no_numbers_say_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    data = counts(rng)
    data[7] = 100
    data[:, :, 5] = np.nan
    data[9] = np.nan
    data[11, :, 6] = np.inf
    assert found(tmp_path, data).numbers == (7,)
    assert found(tmp_path, np.full_like(data, np.nan)).numbers == ()


@pytest.mark.parametrize("numbers", [[7], [1, 2, 255, 256, 257, 299], range(20, ANGLES)], ids=str)
@pytest.mark.parametrize("photons", [1.0, 500.0])
def test_copies_of_the_one_before_are_found(
    tmp_path: Path, rng: np.random.Generator, numbers: list[int], photons: float
) -> None:
    data = rng.poisson(photons, (ANGLES, ROWS, COLUMNS)).astype(np.uint16) + 100
    for number in numbers:
        data[number] = data[number - 1]
    assert found(tmp_path, data) == LostProjections(copies=tuple(numbers))


def test_copies_of_a_projection_without_light_have_none_either(tmp_path: Path, rng: np.random.Generator) -> None:
    data = counts(rng)
    data[50:60] = counts(rng, 0.0)[50]
    data[81] = data[80]
    assert found(tmp_path, data) == LostProjections(dark=tuple(range(50, 60)), copies=(81,))


def test_what_is_equal_without_noise_is_no_copy(tmp_path: Path, rng: np.random.Generator) -> None:
    beam = np.broadcast_to(500 + np.arange(COLUMNS), (ANGLES, ROWS, COLUMNS)).astype(np.uint16)
    assert found(tmp_path, beam).numbers == ()
    turning = beam.copy()
    turning[::10, :, 20:22] += 1
    assert found(tmp_path, turning).numbers == ()
    hardly = beam * 0 + rng.poisson(0.01, beam.shape).astype(np.uint16)
    assert found(tmp_path, hardly).numbers == ()


def test_saturated_projections_are_no_copies(tmp_path: Path, rng: np.random.Generator) -> None:
    data = counts(rng)
    data[70:80] = 65535
    assert found(tmp_path, data).numbers == ()


def test_what_is_said_names_runs_and_not_too_many() -> None:
    path = Path("scan.h5")
    said = LostProjections(dark=(4,)).sentences(path)
    assert said == ["projection 4 of scan.h5 has no light (beam lost?) and is left out; --keep-projections uses all"]
    (said,) = LostProjections(dark=(1, 2, *range(10, 60, 5))).sentences(path)
    assert said.startswith("projections 1..2, 10, 15, 20, 25, 30, 35, 40 and others (12 in all) of scan.h5 have")
    said = LostProjections(dark=(4,), copies=(6, 7, 8)).sentences(path)
    assert said[1].startswith("projections 6..8 of scan.h5 are copies of the one before, whose noise would be in")
    assert LostProjections().sentences(path) == []
