"""Counts of one photon: found from flats and projections that flicker, move, were averaged or are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from denoise.projections.photon_transfer import Photons, photons_of
from denoise.projections.scan import Scan, write_scan

ROWS, COLUMNS, ANGLES = 24, 200, 60
Frames = tuple[np.ndarray, np.ndarray, np.ndarray]


def scan_of(folder: Path, data: np.ndarray, white: np.ndarray, dark: np.ndarray) -> Scan:
    """A scan over half a turn, written in an order that jumps."""
    path = folder / "scan.h5"
    jumping = np.random.default_rng(3).permutation(len(data))
    write_scan(path, data[jumping], white, dark, (np.arange(len(data)) * 180.0 / len(data))[jumping], "flats")
    return Scan.open(path)


def frames(
    rng: np.random.Generator, *, gain: float = 1.0, photons: float, count: int = 10, read_noise: float = 0.0
) -> Frames:
    """Projections, flats and darks of a detector with an offset of 100 and an uneven beam that flickers.

    The object is a bar that moves over a third of the detector.
    """
    beam = photons * (1 + 0.3 * np.sin(np.arange(COLUMNS) / 40)) * np.ones((ROWS, 1))

    def exposed(n: int, transmission: np.ndarray | float = 1.0) -> np.ndarray:
        flicker = 1 + 0.05 * rng.standard_normal((n, 1, 1))
        noise = read_noise * rng.standard_normal((n, ROWS, COLUMNS))
        return 100 + gain * rng.poisson(beam * flicker * transmission) + noise

    position = 100 + 30 * np.sin(np.arange(ANGLES) * np.pi / ANGLES)
    bar = 1 - 0.7 * (np.abs(np.arange(COLUMNS) - position[:, None]) < 20)
    dark = 100 + read_noise * rng.standard_normal((count, ROWS, COLUMNS))
    return exposed(ANGLES, bar[:, None, :]), exposed(count), dark


@pytest.mark.parametrize("photons", [5.0, 100.0, 5000.0])
@pytest.mark.parametrize("gain", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("read_noise", [0.0, 2.0])
def test_the_gain_of_a_detector_is_found(
    tmp_path: Path, rng: np.random.Generator, gain: float, photons: float, read_noise: float
) -> None:
    found = photons_of(scan_of(tmp_path, *frames(rng, gain=gain, photons=photons, read_noise=read_noise)))
    # With 5 photons of 0.3 counts the noise without light is nine times that of the light.
    tolerance = 0.6 if gain * photons < 10 and read_noise else 0.05
    assert found.in_flats == pytest.approx(gain, rel=tolerance)
    assert found.in_projections == pytest.approx(gain, rel=2 * tolerance)
    assert found.counts_each == min(found.in_flats, found.in_projections)
    assert found.beam == pytest.approx(gain * photons, rel=0.1)
    assert found.doubt is None or tolerance > 0.1


def test_it_is_the_same_whichever_rows_are_used(tmp_path: Path, rng: np.random.Generator) -> None:
    scan = scan_of(tmp_path, *frames(rng, photons=50.0))
    assert photons_of(scan.only_rows(0, 3)) == photons_of(scan)


def test_shadows_damaged_pixels_and_a_frame_of_another_kind_do_not_count(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data, white, dark = frames(rng, gain=2.0, photons=300.0, count=12)
    white[:, :, :80] = 100 + 5 * rng.standard_normal((12, ROWS, 80))
    white[3, 8, 130] = np.nan
    white[5, 9, 150] = 60000.0
    white[7] = white[7, :, ::-1]
    dark[0, 12, 190] = np.inf
    data[:, 10, 7] = np.nan
    data[30] = 7.0
    found = photons_of(scan_of(tmp_path, data, white, dark))
    assert found.in_flats == pytest.approx(2.0, rel=0.1)
    assert found.in_projections == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("value", [65535.0, 2.0**32 - 1])
def test_one_pixel_that_always_says_the_most_does_not_count(
    tmp_path: Path, rng: np.random.Generator, value: float
) -> None:
    data, white, dark = frames(rng, photons=200.0)
    data[:, 12, 70] = white[:, 12, 70] = value
    found = photons_of(scan_of(tmp_path, data, white, dark))
    assert found.in_flats == pytest.approx(1.0, rel=0.05)
    assert found.counts_each == pytest.approx(1.0, rel=0.1)


def test_a_beam_that_moves_between_two_flats_does_not_count(tmp_path: Path, rng: np.random.Generator) -> None:
    data, _, dark = frames(rng, photons=800.0)
    pattern = 1 + 0.1 * np.sin(2 * np.pi * (np.arange(COLUMNS) + np.arange(ROWS)[:, None]) / 12)
    white = 100 + rng.poisson(800 * np.stack([pattern, np.roll(pattern, 4, axis=1)]))
    found = photons_of(scan_of(tmp_path, data, white, dark))
    assert found.in_flats > 3
    assert found.counts_each == pytest.approx(1.0, rel=0.1)
    assert found.doubt is not None
    assert "moved between flats" in found.doubt


def test_projections_that_were_averaged_and_flats_that_were_not(tmp_path: Path, rng: np.random.Generator) -> None:
    stack = [frames(rng, photons=50.0) for _ in range(8)]
    averaged = np.mean([data for data, _, _ in stack], axis=0)
    found = photons_of(scan_of(tmp_path, averaged, *stack[0][1:]))
    assert found.counts_each == pytest.approx(1 / 8, rel=0.2)
    assert found.doubt is not None
    assert "averaged" in found.doubt


@pytest.mark.parametrize("count", [1, 8])
def test_flats_that_were_averaged_and_projections_that_were_not(
    tmp_path: Path, rng: np.random.Generator, count: int
) -> None:
    data, _, dark = frames(rng, photons=50.0)
    white = np.mean([frames(rng, photons=50.0, count=count)[1] for _ in range(10)], axis=0)
    found = photons_of(scan_of(tmp_path, data, white, dark))
    assert found.counts_each == pytest.approx(0.1 if count > 1 else 0.0, rel=0.1)
    # How much of what projections fluctuate by is the object is not known: good flats are not doubted for it.
    said = None if count > 1 else f"gave {found.in_projections:g} counts at most"
    assert found.doubt is None if said is None else said in (found.doubt or "")
    assert found.in_projections == pytest.approx(1.0, rel=0.1)


def test_where_there_are_many_photons_nothing_is_said() -> None:
    assert Photons(38.0, 1.5, 20000.0).doubt is None
    assert Photons(0.0, 1.5, 20000.0).doubt is None
    assert Photons(38.0, 1.5, 1000.0).doubt is not None


@pytest.mark.parametrize(
    ("data", "white", "dark"),
    [
        pytest.param(500.0, np.full((ROWS, COLUMNS), 900.0), np.zeros((ROWS, COLUMNS)), id="no axis of frames"),
        pytest.param(500.0, np.full((3, ROWS, COLUMNS), 900.0), np.zeros((1, ROWS, COLUMNS)), id="no noise"),
        pytest.param(9.0, np.full((3, ROWS, COLUMNS), 9.0), np.full((2, ROWS, COLUMNS), 10.0), id="no light"),
        pytest.param(np.nan, np.full((3, ROWS, COLUMNS), np.nan), np.zeros((2, ROWS, COLUMNS)), id="nothing finite"),
        pytest.param(0.0, np.full((3, ROWS, COLUMNS), 0.0), np.full((2, ROWS, COLUMNS), np.inf), id="infinite darks"),
        pytest.param(np.inf, np.full((3, ROWS, COLUMNS), np.inf), np.full((2, ROWS, COLUMNS), np.inf), id="infinite"),
    ],
)
def test_where_nothing_is_told_it_is_nothing(tmp_path: Path, data: float, white: np.ndarray, dark: np.ndarray) -> None:
    found = photons_of(scan_of(tmp_path, np.full((ANGLES, ROWS, COLUMNS), data), white, dark))
    assert (found.in_flats, found.in_projections, found.doubt) == (0.0, 0.0, None)


def test_two_projections_tell_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    data, white, dark = frames(rng, photons=50.0)
    assert photons_of(scan_of(tmp_path, data[:2], white, dark)).in_projections == 0.0


def test_less_noise_with_light_than_without_is_no_gain_below_zero(tmp_path: Path, rng: np.random.Generator) -> None:
    dark = 100 + 5 * rng.standard_normal((6, ROWS, COLUMNS))
    light = 1000 + rng.standard_normal((ANGLES, ROWS, COLUMNS))
    found = photons_of(scan_of(tmp_path, light, light[:6], dark))
    assert (found.in_flats, found.in_projections) == (0.0, 0.0)


def test_what_fluctuates_by_more_than_a_photon_in_the_beam_is_no_photons() -> None:
    assert Photons(150.0, 120.0, 100.0).counts_each == 0.0
    assert Photons(150.0, 80.0, 100.0).counts_each == 80.0
