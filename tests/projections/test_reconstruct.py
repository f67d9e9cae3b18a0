"""Reconstruction: grey values that are right for any set of angles, independent splits, the rotation axis."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest

from denoise.errors import ScanError
from denoise.projections.angles import SplitAngles
from denoise.projections.axis import center_doubt, find_center
from denoise.projections.phantom import FoamPhantom, simulate_foam_scan
from denoise.projections.reconstruct import (
    angles_warning,
    reconstruct_rows,
    reconstruct_scan,
)
from denoise.projections.scan import Scan, write_scan

DISC_RADIUS, ATTENUATION = 45.0, 0.013


class ArraySink:
    """A volume in memory that knows which slices were written."""

    path = "memory"
    allows_parallel_slabs = False
    slices_together = 1

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.array = np.full(shape, np.nan, np.float32)
        self.starts: list[int] = []
        self.missing = [range(shape[0])]

    def write(self, z_start: int, slab: np.ndarray) -> None:
        assert slab.dtype == np.float32
        self.array[z_start : z_start + len(slab)] = slab
        self.starts.append(z_start)

    def flush(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def _disc(angles: np.ndarray, center: float = 63.5, columns: int = 128, x: float = 8.0, y: float = 5.0) -> np.ndarray:
    """Line integrals of a disc at (x, y) from the axis, averaged over five rays in each pixel."""
    rays = np.arange(columns)[:, None] + (np.arange(5) - 2) / 5
    offset = rays - center - (x * np.cos(angles) - y * np.sin(angles))[:, None, None]
    chords = 2 * np.sqrt(np.maximum(DISC_RADIUS**2 - offset**2, 0)).mean(axis=-1)
    return (ATTENUATION * chords[:, None]).astype(np.float32)


def _mean_inside(image: np.ndarray, x: float = 8.0, y: float = 5.0) -> float:
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] - 0.5 * (len(image) - 1)
    return float(image[np.hypot(rows - y, columns - x) < 0.9 * DISC_RADIUS].mean())


_GOLDEN = np.pi * (3 - np.sqrt(5)) / 2 * np.arange(233)


@pytest.mark.parametrize(
    "angles",
    [
        pytest.param(np.linspace(0, np.pi, 180, endpoint=False), id="180 excluded"),
        pytest.param(np.linspace(0, np.pi, 181), id="180 included"),
        pytest.param(np.linspace(0, 2 * np.pi, 360, endpoint=False), id="full turn"),
        pytest.param(np.linspace(0, 2 * np.pi, 361), id="full turn with both ends"),
        pytest.param(np.linspace(0, 2 * np.pi, 361, endpoint=False), id="odd full turn"),
        pytest.param(np.linspace(np.pi / 2, -np.pi / 2, 180), id="backwards"),
        pytest.param(_GOLDEN, id="golden angle"),
        pytest.param(np.deg2rad(137.508) * np.arange(720), id="golden angle that every third repeats"),
        pytest.param(np.deg2rad([*np.arange(0, 90, 0.25), *np.arange(90, 180, 1)]), id="finer in one half"),
        pytest.param(np.delete(np.linspace(0, np.pi, 180, endpoint=False), [40, 41, 90]), id="projections lost"),
    ],
)
def test_grey_values_are_the_attenuation_and_equal_in_full_and_splits(angles: np.ndarray) -> None:
    sinograms = _disc(angles)
    full = _mean_inside(reconstruct_rows(sinograms, angles, 63.5)[0])
    assert full == pytest.approx(ATTENUATION, rel=0.01)
    for n_splits in (2, 3):
        dealt = SplitAngles.of(angles, n_splits)
        for part in dealt.indices:
            slices = reconstruct_rows(sinograms[part], angles[part], 63.5, dealt.half_circle)
            assert _mean_inside(slices[0]) == pytest.approx(full, rel=0.005)


@pytest.mark.parametrize(("center", "columns"), [(55.25, 128), (70.0, 128), (63.0, 127)])
def test_a_shifted_axis_shifts_nothing_in_the_slice(center: float, columns: int) -> None:
    angles = np.linspace(0, np.pi, 180, endpoint=False)
    image = reconstruct_rows(_disc(angles, center, columns, x=3.0, y=-2.0), angles, center)[0]
    rows, cols = np.mgrid[:columns, :columns] - 0.5 * (columns - 1)
    bright = image > ATTENUATION / 2
    assert cols[bright].mean() == pytest.approx(3.0, abs=0.05)
    assert rows[bright].mean() == pytest.approx(-2.0, abs=0.05)
    assert _mean_inside(image, 3.0, -2.0) == pytest.approx(ATTENUATION, rel=0.01)


@pytest.mark.parametrize("shape", [(2, 1, 2), (3, 17, 2), (5, 33, 3), (4, 1, 1000)])
def test_the_smallest_and_odd_shapes_are_reconstructed(shape: tuple[int, int, int]) -> None:
    angles, rows, columns = shape
    slices = reconstruct_rows(np.ones(shape, np.float32), np.linspace(0, 3, angles), 0.5 * (columns - 1))
    assert slices.shape == (rows, columns, columns)
    assert np.isfinite(slices).all()


def _scan(path: Path, angles_deg: np.ndarray, center: float = 63.5, rows: int = 1, columns: int = 128) -> Scan:
    """Two discs, noisy enough for real life; the same in every row but for the noise."""
    angles = np.deg2rad(angles_deg)
    integrals = _disc(angles, center, columns) + 3 * _disc(angles, center, columns, x=-50.0, y=-20.0) / 10
    rng = np.random.default_rng(3)
    counts = rng.poisson(20000 * np.exp(-np.repeat(integrals, rows, axis=1))).astype(np.uint16)
    white = np.full((1, rows, columns), 20000, np.uint16)
    write_scan(path, counts, white, 0 * white, angles_deg, "discs")
    return Scan.open(path)


def _sinks(scan: Scan, count: int) -> list[ArraySink]:
    _, rows, columns = scan.shape
    return [ArraySink((rows, columns, columns)) for _ in range(count)]


@pytest.mark.parametrize("stripes", [False, True])
def test_a_scan_is_reconstructed_slab_by_slab_whatever_the_slab(tmp_path: Path, *, stripes: bool) -> None:
    scan = _scan(tmp_path / "a.h5", np.arange(60) * 3.0, rows=5)
    results = []
    for depth in (None, 2):
        full, *splits = _sinks(scan, 4)
        steps: list[tuple[int, int]] = []
        facts = reconstruct_scan(
            scan, center=63.5, n_splits=3, stripes=stripes, full=full, splits=splits, rows_per_slab=depth,
            progress=lambda done, total, steps=steps: steps.append((done, total)),
        )  # fmt: skip
        results.append([full.array, *(s.array for s in splits)])
    assert full.starts == [0, 2, 4]
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert facts.shape_zyx == (5, 128, 128)
    assert (facts.n_angles, facts.n_splits, facts.rows_per_slab) == (60, 3, 2)
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_no_split_sees_the_angles_of_another_even_with_stripe_removal(tmp_path: Path) -> None:
    theta = np.arange(40) * 4.5
    whole = _scan(tmp_path / "a.h5", theta)
    raw = whole.read_rows(0, 1)
    data = raw.data.copy()
    data[1::2] *= np.random.default_rng(0).uniform(0.5, 1, data[1::2].shape)
    write_scan(tmp_path / "b.h5", data.astype(np.uint16), raw.white, raw.dark, theta, "changed")
    splits = []
    for scan in (whole, Scan.open(tmp_path / "b.h5")):
        full, *pair = _sinks(scan, 3)
        reconstruct_scan(scan, center=63.5, n_splits=2, stripes=True, full=full, splits=pair)
        splits.append([s.array for s in pair])
    np.testing.assert_array_equal(splits[0][0], splits[1][0])
    assert not np.array_equal(splits[0][1], splits[1][1])


def test_repairs_are_reported_once_for_the_whole_scan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = np.full((20, 4, 32), 500, np.uint16)
    data[3, :, 8] = 0
    white = np.full((1, 4, 32), 1000, np.uint16)
    white[0, 2, 5] = 0
    write_scan(tmp_path / "a.h5", data, white, 0 * white, np.arange(20) * 9.0, "dead")
    scan = Scan.open(tmp_path / "a.h5")
    full, *splits = _sinks(scan, 3)
    with caplog.at_level(logging.WARNING):
        facts = reconstruct_scan(
            scan, center=15.5, n_splits=2, stripes=False, full=full, splits=splits, rows_per_slab=1
        )
    assert (facts.repairs.dead_pixels, facts.repairs.clipped_rays) == (1, 4)
    assert len(caplog.records) == 1
    assert "1 dead pixels" in caplog.text
    assert np.isfinite(full.array).all()


@pytest.mark.parametrize("center", [-1.0, 127.5, float("nan")])
def test_an_axis_outside_the_detector_is_refused(tmp_path: Path, center: float) -> None:
    scan = _scan(tmp_path / "a.h5", np.arange(60) * 3.0)
    full, *splits = _sinks(scan, 3)
    with pytest.raises(ScanError, match=r"center .* columns 0\.\.127"):
        reconstruct_scan(scan, center=center, n_splits=2, stripes=False, full=full, splits=splits)
    assert full.starts == []


@pytest.mark.parametrize(
    ("degrees", "center"),
    [
        pytest.param(np.arange(180) * 1.0, 60.0, id="half turn"),
        pytest.param(np.arange(361) * 1.0, 66.5, id="full turn"),
        pytest.param(90 - np.arange(181) * 1.0, 63.5, id="backwards"),
        pytest.param((np.arange(180) * 180 * (3 - 5**0.5) / 2) % 180, 62.0, id="golden angle"),
    ],
)
def test_the_rotation_axis_is_found(tmp_path: Path, degrees: np.ndarray, center: float) -> None:
    assert find_center(_scan(tmp_path / "a.h5", degrees, center, rows=2)) == pytest.approx(center, abs=0.5)


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        (np.arange(120) * 1.0, "120 projections in the half turn.*gap of 61.0 degrees.*--center"),
        (np.arange(9) * 20.0, "9 projections .*--center"),
        (np.delete(np.arange(180) * 1.0, slice(50, 70)), "gap of 21.0 degrees.*--center"),
    ],
)
def test_an_axis_that_cannot_be_found_is_asked_for(tmp_path: Path, degrees: np.ndarray, message: str) -> None:
    with pytest.raises(ScanError, match=message):
        find_center(_scan(tmp_path / "a.h5", degrees))


def test_a_centre_that_the_projections_do_not_have_is_doubted(tmp_path: Path) -> None:
    scan = _scan(tmp_path / "a.h5", np.arange(180) * 1.0, 60.0, rows=30).only_rows(4, 25)
    assert center_doubt(scan, 60.5) is None
    doubt = center_doubt(scan, 63.5)
    assert doubt is not None
    found = re.search(r"--center is 63.5, but in detector rows (\d+)\.\.(\d+) .* at column (\d+\.\d\d);", doubt)
    assert found is not None, doubt
    assert 4 <= int(found[1]) < int(found[2]) < 25
    assert float(found[3]) == pytest.approx(60.0, abs=0.5)


def test_where_the_axis_cannot_be_found_no_centre_is_doubted(tmp_path: Path) -> None:
    assert center_doubt(_scan(tmp_path / "a.h5", np.arange(120) * 1.0, 60.0), 20.0) is None


def test_too_few_angles_are_said_in_numbers(tmp_path: Path) -> None:
    few = angles_warning(_scan(tmp_path / "a.h5", np.arange(180) * 1.0), 2)
    assert few is not None
    assert "each of 2 splits has 90 angles for 128 detector columns; below about 192" in few
    assert "wedge" not in few
    assert angles_warning(_scan(tmp_path / "b.h5", np.arange(400) * 0.45), 2) is None


def test_a_missing_wedge_is_said_in_degrees(tmp_path: Path) -> None:
    warning = angles_warning(_scan(tmp_path / "a.h5", np.arange(400) * 0.3), 2)
    assert warning is not None
    assert "wedge of about 60 of 180 degrees" in warning


def test_the_noise_of_two_splits_of_a_simulated_scan_is_independent(tmp_path: Path) -> None:
    phantom = simulate_foam_scan(tmp_path / "foam.h5", size=96, slices=4, angles=200, photons=200)
    scan = Scan.open(tmp_path / "foam.h5")
    full, *splits = _sinks(scan, 3)
    reconstruct_scan(scan, center=phantom.center, n_splits=2, stripes=False, full=full, splits=splits)
    integrals = phantom.project(scan.angles_rad)
    clean = [
        reconstruct_rows(integrals[k::2], scan.angles_rad[k::2], phantom.center)[:, phantom.inside()] for k in (0, 1)
    ]
    noise = [sink.array[:, phantom.inside()] - c for sink, c in zip(splits, clean, strict=True)]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05
    mean = 0.5 * (splits[0].array + splits[1].array)
    np.testing.assert_allclose(mean, full.array, atol=2e-6)


def test_the_axis_of_a_foam_is_found_through_its_noise(tmp_path: Path) -> None:
    phantom: FoamPhantom = simulate_foam_scan(tmp_path / "foam.h5", size=128, slices=10, angles=180, photons=200)
    assert find_center(Scan.open(tmp_path / "foam.h5")) == pytest.approx(phantom.center, abs=0.5)


@pytest.mark.real_data
def test_the_real_scan_has_its_axis_and_a_grey_value_common_to_full_and_splits(shared_data: Path) -> None:
    scan = Scan.open(shared_data / "tooth" / "tooth.h5")
    center = find_center(scan)
    assert center == pytest.approx(295.0, abs=0.5)
    full, *splits = _sinks(scan, 3)
    facts = reconstruct_scan(scan, center=center, n_splits=2, stripes=False, full=full, splits=splits)
    assert facts.repairs.sentence is None
    rows, columns = np.mgrid[:640, :640] - 319.5
    disc = np.hypot(rows, columns) < 200
    means = [float(sink.array[0][disc].mean()) for sink in (full, *splits)]
    np.testing.assert_allclose(means, means[0], rtol=0.005)
