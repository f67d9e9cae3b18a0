"""What ``check --data`` finds in splits that are as they should be, and in those that are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, shift

from denoise.normalization import Moments, Normalization
from denoise.projections.phantom import FoamPhantom
from denoise.projections.projector import project_slices
from denoise.projections.reconstruct import reconstruct_rows
from denoise.trust.before import check_splits, judge_full, judge_scale
from denoise.trust.layout import shift_between
from denoise.trust.splits import chosen_slices
from denoise.trust.verdict import Severity, Verdict
from denoise.volumes import ArrayVolume

if TYPE_CHECKING:
    from conftest import Scan

Float32Array = NDArray[np.float32]


def checked(*splits: NDArray[np.floating]) -> Verdict:
    return check_splits([ArrayVolume(v.astype(np.float32), name=f"split {k}") for k, v in enumerate(splits)])


def severities(verdict: Verdict) -> dict[str, Severity]:
    return {finding.name: finding.severity for finding in verdict.findings}


@pytest.fixture(scope="module")
def pair(scans: Callable[..., Scan]) -> tuple[Float32Array, Float32Array]:
    """An object within the field of view, and noise everywhere."""
    scan = scans(1, noise=0.5)
    y, x = (np.arange(n) - n / 2 + 0.5 for n in scan.truth.shape[1:])
    body = np.clip(40 - np.hypot(y[:, None], x[None, :]), 0, 1)
    return tuple((body * (scan.truth + 3) + s - scan.truth).astype(np.float32) for s in scan.splits)  # type: ignore[return-value]


def test_good_splits_are_fine(pair: tuple[Float32Array, Float32Array], scans: Callable[..., Scan]) -> None:
    verdict = checked(*pair)
    assert verdict.word == "fine", verdict.sentence
    assert all(finding.why and finding.question and finding.sentence for finding in verdict.findings)
    four = scans(2, count=4)
    assert checked(*four.splits).word == "fine"


def test_only_slices_of_the_range_are_looked_at(pair: tuple[Float32Array, Float32Array]) -> None:
    one, other = (split.copy() for split in pair)
    for split in (one, other):
        split[:8] = np.nan
    volumes = [ArrayVolume(split, name=f"split {k}") for k, split in enumerate((one, other))]
    found = {f.name: f.value for f in check_splits(volumes).findings}
    assert found["finite"] == 8 / len(one)
    found = {f.name: f.value for f in check_splits(volumes, range(8, len(one))).findings}
    assert found["finite"] == 0


def faults(one: Float32Array, other: Float32Array) -> dict[str, tuple[Float32Array, Float32Array]]:
    noise = one - other
    elsewhere = np.roll(noise, 5, axis=0)  # of other slices: independent of the noise here
    radius = np.hypot(*np.meshgrid(*(np.arange(n) - n / 2 + 0.5 for n in one.shape[1:]), indexing="ij")).astype(int)
    rings = np.random.default_rng(0).standard_normal(radius.max() + 1)[radius] * 0.2
    bright = np.percentile(one, 98)
    jumps = np.random.default_rng(0).standard_normal((len(one), 1, 1)) * 0.2
    return {
        "registered": (one, shift(other, (0, 0.4, 0), order=3)),
        "same_scale": (one, 1.06 * other),
        "equal_noise": (one, other + 0.5 * elsewhere),
        "rings": (one + rings, other + rings),
        "saturated": (np.minimum(one, bright), np.minimum(other, bright)),
        "drift": (one + jumps, other + jumps),
        "noise_independent": (one + 0.3 * elsewhere, other + 0.3 * elsewhere),
        "counts": (0.05 * one + elsewhere, 0.05 * other - np.roll(noise, 3, axis=0)),
        "finite": (np.where(one > bright, np.nan, one), other),
    }


@pytest.mark.parametrize(
    "name",
    ["registered", "same_scale", "equal_noise", "rings", "saturated", "drift", "noise_independent", "counts", "finite"],
)
def test_each_fault_is_found_under_its_own_name(pair: tuple[Float32Array, Float32Array], name: str) -> None:
    verdict = checked(*faults(*pair)[name])
    assert severities(verdict)[name] > Severity.FINE
    assert verdict.word == ("fine" if name == "drift" else "usable with reservations"), verdict.sentence


def test_splits_that_cannot_be_trained_on_are_not_valid(pair: tuple[Float32Array, Float32Array]) -> None:
    one, other = pair
    noise = one - other
    for name, splits in {
        "noise_independent": (one, one * np.float32(1.00001)),
        "same_scale": (one, 3 * other),
        "registered": (one, np.roll(other, 3, axis=2)),
        "empty": (np.zeros_like(one), np.zeros_like(one)),
    }.items():
        verdict = checked(*splits)
        assert verdict.word == "not valid"
        assert severities(verdict)[name] == Severity.INVALID
    opposed = checked(one + 0.2 * noise, other - 0.2 * noise)
    assert severities(opposed)["noise_independent"] == Severity.INVALID
    assert "opposed" in opposed.sentence


@pytest.mark.parametrize("photons", [400, 3000, 20_000])
def test_many_photons_are_no_shared_noise_and_edges_are_no_gaps_between_projections(photons: int) -> None:
    """What the splits share of a block of sharp layers is far above their noise, also at the finest frequencies."""
    size, count = 96, 400
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    layers = sum(np.abs(x - place) < 2 for place in (-21, -13, -2, 4, 17))
    block = gaussian_filter((np.abs(x) < 26) * (np.abs(y) < 17) * (1.0 + layers), 0.6).astype(np.float32) * 0.02
    angles = np.arange(count) * np.pi / count
    clean = project_slices(np.stack([block] * 6), angles)
    counts = np.random.default_rng(0).poisson(photons * np.exp(-clean.astype(np.float64)))
    noisy = -np.log(np.maximum(counts, 0.5) / photons).astype(np.float32)
    splits = [reconstruct_rows(np.ascontiguousarray(noisy[k::2]), angles[k::2], (size - 1) / 2) for k in range(2)]
    verdict = checked(*splits)
    assert verdict.word == "fine", verdict.sentence
    if photons == 400:  # beside much detail shared noise cannot be told from it
        elsewhere = np.roll(0.5 * (splits[0] - splits[1]), 2, axis=0)
        shared = checked(splits[0] + elsewhere, splits[1] + elsewhere)
        assert severities(shared)["noise_independent"] > Severity.NOTE


def _foam(photons: NDArray[np.float64], filtered: Callable[[Float32Array], Float32Array] | None = None) -> Verdict:
    """Of pores two voxels wide and more in 128 columns; photons of each projection, (400,)."""
    phantom = FoamPhantom.create(size=128, slices=8, seed=1, n_pores=60)
    angles = np.arange(400) * np.pi / 400
    beam = photons[:, None, None]
    counts = np.random.default_rng(1).poisson(beam * np.exp(-phantom.project(angles).astype(np.float64)))
    lines = -np.log((counts + 0.5) / beam).astype(np.float32)
    lines = lines if filtered is None else filtered(lines)
    return checked(
        *(reconstruct_rows(np.ascontiguousarray(lines[k::2]), angles[k::2], phantom.center) for k in range(2))
    )


@pytest.mark.parametrize("photons", [4000.0, 10_000.0])
def test_pores_in_many_photons_are_no_shared_noise(photons: float) -> None:
    assert severities(_foam(np.full(400, photons)))["noise_independent"] <= Severity.NOTE


def test_a_filter_of_each_projection_for_phase_contrast_shares_no_noise() -> None:
    def paganin(lines: Float32Array) -> Float32Array:
        y, x = np.fft.fftfreq(lines.shape[1])[:, None], np.fft.rfftfreq(lines.shape[2])[None]
        smoothed = np.fft.rfft2(np.exp(-lines), axes=(1, 2)) / (1 + 16 * np.pi**2 * (y**2 + x**2))
        return -np.log(np.fft.irfft2(smoothed, lines.shape[1:], axes=(1, 2))).astype(np.float32)

    assert severities(_foam(np.full(400, 400.0), paganin))["noise_independent"] <= Severity.NOTE


@pytest.mark.parametrize("ratio", [1.5, 3.0])
def test_the_ratio_of_noise_is_right_beside_much_detail(ratio: float) -> None:
    verdict = _foam(np.where(np.arange(400) % 2 == 0, 10_000.0, 10_000.0 * ratio))
    (finding,) = (f for f in verdict.findings if f.name == "equal_noise")
    assert finding.severity is Severity.RESERVATION
    assert finding.value == pytest.approx(ratio, rel=0.05)


def test_voxels_without_a_number_hide_nothing_and_accuse_of_nothing(pair: tuple[Float32Array, Float32Array]) -> None:
    """Far from zero: what is put in their place must be neither an edge nor an extreme value."""
    rng = np.random.default_rng(4)
    missing = rng.random(pair[0].shape) < 1e-3
    for holes in ((missing, missing), (missing, np.zeros_like(missing))):
        verdict = checked(
            *(np.where(hole, np.nan, 1000 * split + 5000) for split, hole in zip(pair, holes, strict=True))
        )
        assert {name for name, severity in severities(verdict).items() if severity > Severity.NOTE} == {"finite"}


def test_what_was_masked_or_is_missing_in_one_split_is_no_smooth_place(pair: tuple[Float32Array, Float32Array]) -> None:
    """Its blocks hold only what filters smear over them: shared, or in one split alone."""
    y, x = np.mgrid[:96, :96] - 47.5
    bar = (np.abs(x) < 14) & (np.abs(y) < 34)
    masked = severities(checked(*(np.where(bar, split + 5, 0) for split in pair)))
    assert masked["noise_independent"] <= Severity.NOTE
    patch = (np.abs(x) < 12) & (np.abs(y) < 12)
    missing = severities(checked(np.where(patch, np.nan, pair[0]), pair[1]))
    assert {name for name, severity in missing.items() if severity > Severity.NOTE} == {"finite"}


@pytest.mark.parametrize("first", [0, 6, 20])
def test_a_body_that_grows_from_slice_to_slice_in_air_of_zero_is_seen_whole(first: int) -> None:
    """An 8-bit export of a ball: what its first slice shows says nothing of where the others show something."""
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[:64, :64, :64] - 31.5
    ball = np.clip(26 - np.sqrt(z**2 + y**2 + x**2), 0, 1)
    splits = [(ball * np.clip(120 + rng.normal(0, 25, ball.shape), 1, 255)).astype(np.uint8) for _ in range(2)]
    verdict = checked(*(split[first:] for split in splits))
    assert severities(verdict)["noise_independent"] < Severity.INVALID
    assert severities(verdict)["counts"] == Severity.FINE


@pytest.mark.parametrize("slices", [1, 2, 20])
@pytest.mark.parametrize("contrast", [1.0, 0.1, 0.0])
def test_few_slices_and_faint_objects_are_no_reason_to_find_faults(slices: int, contrast: float) -> None:
    shape = (slices, 96, 96)
    found: dict[str, int] = {}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        body = contrast * (gaussian_filter(rng.standard_normal(shape), (0, 4, 4)) > 0)
        verdict = checked(*(body + rng.standard_normal(shape) for _ in range(2)))
        for finding in verdict.warnings:
            found[finding.name] = found.get(finding.name, 0) + (finding.severity >= Severity.RESERVATION)
    assert not found.get("registered", 0) + found.get("same_scale", 0), found


def test_a_shift_between_single_slices_is_found(pair: tuple[Float32Array, Float32Array]) -> None:
    one, other = (split[5:6] for split in pair)
    assert severities(checked(one, np.roll(other, 3, axis=2)))["registered"] == Severity.INVALID


@pytest.mark.parametrize("plane", [(1, 300), (2, 40), (8, 8), (16, 16), (17, 200), (3, 3)])
def test_the_smallest_slices_are_tested_or_said_to_be_too_small(plane: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    verdict = checked(*(rng.standard_normal((3, *plane)) for _ in range(2)))
    assert ("too_small" in severities(verdict)) == (min(plane) < 8)


def test_a_full_reconstruction_is_compared_where_it_shows_something(rng: np.random.Generator) -> None:
    mean = rng.standard_normal((1, 32, 32)).astype(np.float32)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    full = mean.copy()
    full[0, 12, 12] = np.nan
    full[:, ~mask] += 100
    assert judge_full(full, mean, 1.0, mask).severity == Severity.FINE
    full += 5
    assert judge_full(full, mean, 1.0, mask).severity == Severity.RESERVATION
    full[:] = np.nan
    assert judge_full(full, mean, 1.0, mask).severity == Severity.RESERVATION


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [(0.5, 0.7, Severity.FINE), (2750, 564, Severity.RESERVATION), (0.6, 0.1, Severity.RESERVATION)],
)
def test_grey_values_unlike_those_trained_on_are_told(mean: float, std: float, expected: Severity) -> None:
    values = np.array([mean - std, mean + std], np.float32)
    finding = judge_scale(Normalization(0.62, 0.70), Moments.of(values))
    assert finding.severity == expected
    assert ("unreliable" in finding.sentence) == bool(expected)


def test_an_object_that_reaches_the_rim_is_told(scan: Scan) -> None:
    assert severities(checked(*scan.splits))["field_of_view"] == Severity.NOTE


@pytest.mark.parametrize(("per_column", "expected"), [(0.5, Severity.RESERVATION), (1.6, Severity.FINE)])
def test_few_angles_show_in_the_noise_and_the_number_is_about_right(per_column: float, expected: Severity) -> None:
    size = 96
    count = 2 * round(per_column * size)
    angles = np.arange(count) * np.pi / count
    noise = np.random.default_rng(0).standard_normal((count, 8, size)).astype(np.float32)
    splits = [reconstruct_rows(np.ascontiguousarray(noise[k::2]), angles[k::2], (size - 1) / 2) for k in range(2)]
    scale = splits[0].std()
    smooth = gaussian_filter(np.random.default_rng(1).standard_normal(splits[0].shape), (0, 4, 4)) * (splits[0] != 0)
    verdict = checked(*(split + smooth * scale * 20 for split in splits))
    finding = next(f for f in verdict.findings if f.name == "enough_angles")
    assert finding.severity == expected
    if expected:
        assert f"about {per_column:.1f} angles" in finding.sentence


@pytest.mark.parametrize("moved", [(0.0, 0.0), (0.25, -0.4), (-3.3, 7.1)])
def test_shifts_are_measured_to_a_hundredth_of_a_voxel(moved: tuple[float, float]) -> None:
    image = gaussian_filter(np.random.default_rng(0).standard_normal((64, 80)), 2)
    f = np.fft.rfft2(image)
    y, x = np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(80)[None, :]
    g = f * np.exp(-2j * np.pi * (y * moved[0] + x * moved[1]))
    found = shift_between(g * f.conj(), 80)
    assert np.abs([found.y, found.x]) == pytest.approx(np.abs(moved), abs=0.01)


@pytest.mark.parametrize(("depth", "plane"), [(1, 100), (2, 100), (7, 100), (1000, 100), (500, 4_000_000), (3, 10**9)])
def test_slices_are_spread_over_the_volume_and_bounded(depth: int, plane: int) -> None:
    chosen = chosen_slices(depth, plane)
    assert chosen == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < depth
    assert len(chosen) * plane <= max(24_000_000, 2 * plane)
    if depth > 100:
        assert chosen[0] < depth / 3 < 2 * depth / 3 < chosen[-1]
        assert all(z + 1 in chosen or z - 1 in chosen for z in chosen)
