"""What the tests of a result find: nothing in the best one, and what was done to all others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from denoise.errors import VolumeError
from denoise.tiles import Region, TileGrid, Window
from denoise.trust.after import judge
from denoise.trust.errors import error_sums
from denoise.trust.evidence import Frame
from denoise.trust.greys import grey_shift, materials
from denoise.trust.pictures import edge_profiles, sections
from denoise.trust.report import Report
from denoise.trust.seams import Seams, find_seams, shifted, tile_borders
from denoise.trust.support import support_of
from denoise.trust.verdict import Severity

if TYPE_CHECKING:
    from conftest import Filter, Scan

Float32Array = NDArray[np.float32]


def warnings_of(report: Report) -> set[str]:
    return {finding.name for finding in report.verdict.warnings}


def sharper(stack: Float32Array) -> Float32Array:
    return 2 * stack - gaussian_filter(stack, (0, 1.5, 1.5))


def blurred(stack: Float32Array) -> Float32Array:
    return gaussian_filter(stack, (0, 1.5, 1.5))


@pytest.mark.parametrize("noise", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("delivers", ["full", "splits"])
def test_nothing_is_found_in_the_best_possible_result(scans: Callable[..., Scan], noise: float, delivers: str) -> None:
    """At any dose: it smooths more where there is more noise, and that is no fault."""
    scan = scans(2, noise=noise)
    report = Report.of(scan.evidence(scan.best_filter(), delivers=delivers))
    assert warnings_of(report) == set()
    assert report.verdict.word == "fine"
    assert "closer to the truth" in " ".join(f.sentence for f in report.verdict.findings)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (blurred, "suppressed_detail"),
        (sharper, "unsupported_detail"),
        (lambda stack: stack * np.float32(0.8), "suppressed_detail"),
        (lambda stack: stack * np.float32(1.2), "unsupported_detail"),
        (lambda stack: stack + np.float32(0.2), "mean_shift"),
        (lambda stack: np.where(stack > 1, np.float32(2.2), stack), "grey_values"),
    ],
)
def test_what_was_done_to_the_result_is_found(scan: Scan, change: Filter, expected: str) -> None:
    best = scan.best_filter()
    assert expected in warnings_of(Report.of(scan.evidence(lambda stack: change(best(stack)))))


def test_an_invented_texture_is_found_and_not_taken_for_removed_detail(scan: Scan) -> None:
    best = scan.best_filter()
    texture = gaussian_filter(np.random.default_rng(4).standard_normal(scan.truth.shape), (0, 1.5, 1.5))
    texture = (0.15 * texture / texture.std()).astype(np.float32)
    found = warnings_of(Report.of(scan.evidence(lambda stack: best(stack) + texture)))
    assert "unsupported_detail" in found
    assert "suppressed_detail" not in found


def test_specks_that_were_invented_are_found_where_they_are(scan: Scan, invented: Callable[..., Float32Array]) -> None:
    best, specks = scan.best_filter(), invented(3.0)
    report = Report.of(scan.evidence(lambda stack: best(stack) + specks))
    assert "invented_structure" in warnings_of(report)
    worst = max((band.invented for band in report.bands[:3]), key=lambda place: place.value)
    assert specks[worst.z, worst.y, worst.x] > 0.2


def test_places_are_those_of_the_volume(scan: Scan, invented: Callable[..., Float32Array]) -> None:
    best, specks = scan.best_filter(), invented(3.0)
    evidence = scan.evidence(lambda stack: best(stack) + specks)
    numbers = range(20, 20 + 2 * (evidence.shape[0] + 3), 2)
    region = Region((3, 100, 7), evidence.shape)
    report = Report.of(evidence, frame=Frame.of(region, numbers))
    worst = max((band.invented for band in report.bands[:3]), key=lambda place: place.value)
    assert specks[numbers.index(worst.z) - 3, worst.y - 100, worst.x - 7] > 0.2
    said = next(f.sentence for f in report.verdict.findings if f.name == "invented_structure")
    assert re.search(r"at slice \d+, row \d+, column \d+", said)
    for profile in report.profiles:
        assert profile.z in numbers[3:]
        assert (0 <= profile.y - 100 < evidence.shape[1], 0 <= profile.x - 7 < evidence.shape[2]) == (True, True)


def test_places_that_were_smoothed_over_are_found_where_they_are(
    scans: Callable[..., Scan], invented: Callable[..., Float32Array]
) -> None:
    scan = scans(4, noise=0.25)
    best, holes = scan.best_filter(), np.clip(2 * invented(1.0, 4.0), 0, 1)
    report = Report.of(
        scan.evidence(lambda stack: best(stack) + holes * (gaussian_filter(stack, (0, 8, 8)) - best(stack)))
    )
    assert "removed_structure" in warnings_of(report)
    worst = max((band.removed for band in report.bands[:3]), key=lambda place: place.value)
    assert holes[worst.z, worst.y, worst.x] > 0.2


def test_held_out_slices_of_air_are_told(scan: Scan) -> None:
    air = replace(scan, truth=0 * scan.truth, splits=tuple(split - scan.truth for split in scan.splits))
    findings = {f.name: f for f in Report.of(air.evidence(lambda stack: 0.1 * stack)).verdict.findings}
    assert findings["anything"].severity == Severity.RESERVATION
    findings = {f.name: f for f in Report.of(scan.evidence(lambda stack: stack)).verdict.findings}
    assert findings["anything"].severity == Severity.FINE


@pytest.mark.parametrize(("scale", "offset"), [(1e-7, 0.0), (5.0, 30000.0)])
def test_nothing_depends_on_the_unit_of_the_grey_values(scan: Scan, scale: float, offset: float) -> None:
    """Attenuation per nanometre, or 16-bit integers with a large mean."""
    best = scan.best_filter()
    scaled = type(scan)(scan.truth, tuple((v * scale + offset).astype(np.float32) for v in scan.splits), scan.noise)
    one = Report.of(scan.evidence(lambda stack: 1.2 * best(stack)))
    other = Report.of(
        scaled.evidence(lambda stack: ((1.2 * best((stack - offset) / scale)) * scale + offset).astype(np.float32))
    )
    assert other.scores.gain.value == pytest.approx(one.scores.gain.value, abs=0.03)
    for here, there in zip(one.verdict.findings, other.verdict.findings, strict=True):
        assert (here.name, here.severity) == (there.name, there.severity)
        assert there.value == pytest.approx(here.value, rel=0.03, abs=0.003)


def test_a_result_that_is_worse_than_its_input_is_not_valid(scan: Scan) -> None:
    report = Report.of(scan.evidence(lambda stack: gaussian_filter(stack, (0, 12, 12))))
    assert report.verdict.word == "not valid"
    assert report.verdict.warnings[0].name == "gain"


def test_a_result_without_anything_in_it_is_refused_and_bands_without_it_are_not_known(scan: Scan) -> None:
    nothing = scan.evidence(lambda stack: np.zeros_like(stack))
    assert all(np.isnan(band.support) and band.kept == 0 for band in support_of(nothing))
    with pytest.raises(VolumeError, match="is 0 nearly everywhere, and nothing can be judged"):
        Report.of(nothing)


def test_splits_whose_streaks_are_opposed_give_no_number_but_a_word(scan: Scan) -> None:
    """What too few angles do: artefacts of opposite sign, which the splits' product counts as less than nothing."""
    streaks = (2 * scan.noise * np.sin(np.arange(96) * 1.3)[None, :, None]).astype(np.float32)
    opposed = type(scan)(scan.truth, (scan.splits[0] + streaks, scan.splits[1] - streaks), scan.noise)
    rising = [record(epoch, 0.01 * 2**epoch) for epoch in range(10)]
    report = Report.of(opposed.evidence(scan.best_filter()), history=rising)
    assert report.verdict.word == "not valid"
    assert "unknown" in report.headline[0]
    assert report.headline[1] == "Equivalent dose: unknown."
    # Held-out errors of the training are off by the same streaks.
    assert not {f.name for f in report.verdict.findings} & {"converged", "overfitted"}
    assert report.as_plain()["scores"]["gain"]["value"] is None


def test_how_good_a_result_is_at_most_stays_open_where_its_error_is_nearly_nothing(scan: Scan) -> None:
    """Of few voxels it cannot be told from nothing; not "23.2 dB (18.2 to 45.1 dB), as if exposed 26,000 times"."""
    nearly = (scan.truth + 0.3 * gaussian_filter(np.random.default_rng(9).standard_normal(scan.truth.shape), 1)).astype(
        np.float32
    )
    report = Report.of(scan.evidence(lambda stack: nearly))
    gain, dose = report.scores.gain, report.scores.equivalent_dose
    assert 0 < gain.low < gain.value < gain.high == dose.high == np.inf
    assert f"{gain.value:.1f} dB ({gain.low:.1f} dB or more)" in report.headline[0]
    assert f"{dose.value:.1f} times ({dose.low:.1f} times or more)" in report.headline[1]
    assert f"({gain.low:.1f} dB or more)" in report.verdict.findings[0].sentence
    assert report.as_plain()["scores"]["gain"]["high"] is None
    bounds = replace(report, scores=report.scores.as_bounds())
    assert bounds.headline[0].startswith("Gain: unknown;")
    assert bounds.headline[1] == "Equivalent dose: unknown."


def test_grey_values_of_materials_are_those_of_the_object(scans: Callable[..., Scan]) -> None:
    """Two materials of 0 and 4, and a model that moves the bright one to 3.6."""
    scan = scans(1)
    truth = np.where(gaussian_filter(scan.truth, (0, 2, 2)) > 0, 4, 0).astype(np.float32)
    splits = tuple((truth + s - scan.truth).astype(np.float32) for s in scan.splits)
    two = type(scan)(truth, splits, scan.noise)

    def model(stack: Float32Array) -> Float32Array:
        return (
            np.where(gaussian_filter(stack, (0, 1, 1)) > 2, np.float32(3.6), np.float32(0)) + np.float32(0.02) * stack
        )

    dark, bright = materials(two.evidence(model))
    assert dark.grey_before == pytest.approx(0, abs=0.1)
    assert bright.grey_before == pytest.approx(4, abs=0.1)
    assert bright.grey_after == pytest.approx(3.68, abs=0.05)
    assert bright.width_before == pytest.approx(two.noise / np.sqrt(2), rel=0.3)
    assert dark.share + bright.share == pytest.approx(1)
    evidence = two.evidence(model)
    assert grey_shift(evidence, error_sums(evidence)).largest < -0.2


def test_seams_are_found_where_tiles_meet_and_nowhere_else(rng: np.random.Generator) -> None:
    grid = TileGrid((4, 96, 96), Window((1, 32, 32), (1, 32, 32), (1, 32, 32), (0, 0, 0), "uniform"))
    borders = tile_borders(grid)
    assert borders[0].tolist() == borders[1].tolist() == [32, 64]
    smooth = gaussian_filter(rng.standard_normal((4, 96, 96)), (0, 2, 2)).astype(np.float32)
    mask = np.ones((96, 96), bool)
    steps = smooth + smooth.std() * (np.arange(96) // 32 % 2)[None, None, :].astype(np.float32)
    without, seen = find_seams(smooth, borders, mask), find_seams(steps, borders, mask)
    assert without is not None
    assert seen is not None
    assert abs(without.deviations) < 4
    assert seen.deviations > 5
    assert seen.ratio > 1.1
    assert [line.tolist() for line in shifted(borders, 40, 0)] == [[24], [32, 64]]
    assert find_seams(smooth, (np.array([], int), np.array([], int)), mask) is None


def record(epoch: int, error: float, rate: float = 0.01, best: bool = False) -> dict[str, Any]:
    improved = ["val"] if best else []
    return {"epoch": epoch, "step": 100 * epoch, "learning_rate": rate, "val_mse": error, "improved": improved}


def training_findings(report: Report, history: list[dict[str, Any]], seams: Seams | None = None) -> dict[str, Severity]:
    findings = judge(report.scores, report.rings, report.bands, report.greys, seams, history)
    return {finding.name: finding.severity for finding in findings}


def test_runs_that_were_too_short_or_too_long_are_told(scan: Scan) -> None:
    report = Report.of(scan.evidence(scan.best_filter()))
    flat = [record(e, v, best=v > 0.1) for e, v in enumerate((0.4, 0.2, 0.11, 0.102, 0.101, 0.1, 0.1, 0.1, 0.1), 1)]
    found = training_findings(report, flat, Seams(1.5, 9.0, 4))
    assert (found["converged"], found["overfitted"], found["seams"]) == (0, 0, Severity.RESERVATION)
    falling = [record(e, 0.5**e) for e in range(1, 9)]
    assert training_findings(report, falling)["converged"] == Severity.RESERVATION
    assert training_findings(report, falling[:2])["converged"] == Severity.RESERVATION
    flat[6]["improved"] = ["val", "edge"]
    rising = [*flat, *(record(e, 0.1 * 1.1 ** (e - 9)) for e in range(10, 20))]
    assert training_findings(report, rising)["overfitted"] == Severity.RESERVATION
    assert "converged" not in training_findings(report, [])


def test_a_report_is_plain_json_with_every_curve(scan: Scan) -> None:
    history = [record(1, 0.1)]
    report = Report.of(scan.evidence(scan.best_filter()), history=history, voxel_size_um=0.65)
    plain = json.loads(json.dumps(report.as_plain(), allow_nan=False))
    assert plain["verdict"] in ("fine", "usable with reservations")
    assert plain["scores"]["gain"]["low"] < plain["scores"]["gain"]["value"] < plain["scores"]["gain"]["high"]
    rings = len(plain["correlation"]["frequency_per_voxel"])
    assert all(len(plain["correlation"][name]) == rings for name in ("before", "after", "after_standard_error"))
    assert all(len(curve) == rings for curve in plain["power_spectra"].values())
    assert len(plain["histograms"]["edges"]) == len(plain["histograms"]["after"]) + 1
    assert {f["name"] for f in plain["findings"]} >= {"gain", "unsupported_detail", "removed_structure", "grey_values"}
    assert plain["history"] == history
    assert "um" in " ".join(plain["headline"])


def test_noise_power_is_white_before_and_what_the_filter_lets_through_after(scan: Scan) -> None:
    plain = Report.of(scan.evidence(scan.best_filter())).as_plain()["power_spectra"]
    before, after = np.array(plain["noise_before"]), np.array(plain["noise_after"])
    assert before[8:] == pytest.approx(scan.noise**2 / 2, rel=0.1)
    assert after[-1] < 0.02 * before[-1]
    assert after[1] > 0.5 * before[1]


def test_sections_and_profiles_are_of_the_same_place(scan: Scan) -> None:
    evidence = scan.evidence(scan.best_filter())
    xy, xz, yz = sections(evidence)
    z, y, x = (n // 2 for n in evidence.shape)
    assert np.array_equal(xy.denoised, evidence.delivered[z])
    assert np.array_equal(xz.noisy, evidence.full[:, y])
    assert np.array_equal(yz.residual, (evidence.full - evidence.delivered)[:, :, x])
    profiles = edge_profiles(evidence)
    assert profiles
    for profile in profiles:
        middle = len(profile.distance) // 2
        steepest = np.abs(np.diff(profile.denoised))[middle - 2 : middle + 2].max()
        assert steepest > 2 * np.abs(np.diff(profile.denoised)).mean()
        assert np.std(profile.noisy - profile.denoised) < 3 * scan.noise
