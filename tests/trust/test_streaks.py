"""Splits with few angles: errors are right although their streaks look like noise, or they are said to be bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from denoise.projections.angles import SplitAngles
from denoise.projections.phantom import FoamPhantom
from denoise.projections.reconstruct import reconstruct_rows
from denoise.tiles import Region
from denoise.trust.errors import error_sums
from denoise.trust.evidence import Evidence, Run, collect
from denoise.trust.report import Report
from denoise.trust.scores import scores_of
from denoise.trust.spectra import ring_sums
from denoise.trust.streaks import judge_streaks, measure_streaks
from denoise.trust.verdict import Finding, Severity, Verdict
from denoise.volumes import ArrayVolume, Volume

Float32Array = NDArray[np.float32]
SIZE, SLICES = 96, 12
#: Of the line integrals: weak, so that streaks matter.
NOISE = 0.03


def angles_of(count: int) -> SplitAngles:
    return SplitAngles.in_turn(np.arange(count) * (np.pi / count), 2)


def scanned(count: int, noise: float = NOISE) -> tuple[Float32Array, list[Float32Array]]:
    """The truth, and the splits of a scan with so many angles."""
    phantom = FoamPhantom.create(size=SIZE, slices=SLICES, seed=4, n_pores=120)
    angles = angles_of(count)
    clean = phantom.project(angles.angles_rad)
    noisy = clean + np.float32(noise) * np.random.default_rng(count).standard_normal(clean.shape).astype(np.float32)
    splits = [
        reconstruct_rows(np.ascontiguousarray(noisy[part]), angles.angles_rad[part], phantom.center)
        for part in angles.indices
    ]
    return reconstruct_rows(clean, angles.angles_rad, phantom.center), splits


def smoothed(volume: Volume, z_range: range) -> Float32Array:
    """A denoiser that keeps edges: strong smoothing where the image is flat."""
    stack = volume.read(Region.of_slices(z_range.start, z_range.stop, volume.shape))
    fine, coarse = gaussian_filter(stack, (0, 0.5, 0.5)), gaussian_filter(stack, (1, 1, 1))
    edge = np.square(gaussian_filter(coarse, (0, 1, 1)) - coarse)
    share = edge / (edge + np.float32(1e-7))
    return np.asarray(share * fine + (1 - share) * coarse, np.float32)


def blurred(volume: Volume, z_range: range) -> Float32Array:
    """A denoiser that lets little noise through, and little of the detail that makes streaks."""
    stack = volume.read(Region.of_slices(z_range.start, z_range.stop, volume.shape))
    return np.asarray(gaussian_filter(stack, (1, 1.2, 1.2)), np.float32)


def evidence_of(splits: list[Float32Array], *, delivers: str = "full", denoiser: Run = smoothed) -> Evidence:
    volumes = [ArrayVolume(split, name=f"split {k}") for k, split in enumerate(splits)]
    return collect(volumes, Region((0, 0, 0), splits[0].shape), denoiser, delivers=delivers)


def evidence_of_outputs(splits: list[Float32Array], outputs: tuple[Float32Array, Float32Array]) -> Evidence:
    """As if a denoiser had made these of the splits, and their mean were delivered."""
    like = evidence_of(splits, delivers="splits")
    return replace(like, outputs=outputs, delivered=0.5 * (outputs[0] + outputs[1]))


def power_of_true_streaks(count: int, mask: NDArray[np.bool_]) -> float:
    _, clean = scanned(count, 0.0)
    return float(np.square(0.5 * (clean[0] - clean[1])[:, mask].astype(np.float64)).mean())


def few_angles() -> Verdict:
    return Verdict.of([Finding("enough_angles", "?", 0.4, "", 0.18, "", Severity.RESERVATION, "Few angles.")])


def true_gain(evidence: Evidence, truth: Float32Array) -> float:
    before, after = (
        np.square(stack.astype(np.float64) - truth)[:, evidence.mask].mean()
        for stack in (evidence.full, evidence.delivered)
    )
    return float(10 * np.log10(before / after))


@pytest.mark.parametrize(("count", "noise"), [(72, 0.1), (96, 0.1), (96, 0.03), (144, 0.03)])
@pytest.mark.parametrize("delivers", ["full", "splits"])
def test_the_gain_is_right_although_the_splits_have_streaks(count: int, noise: float, delivers: str) -> None:
    truth, splits = scanned(count, noise)
    evidence = evidence_of(splits, delivers=delivers)
    errors, rings = error_sums(evidence), ring_sums(evidence)
    streaks = measure_streaks(evidence, rings, angles_of(count))
    found, true = scores_of(evidence, errors, rings, streaks).gain, true_gain(evidence, truth)
    assert streaks.fits
    assert found.value == pytest.approx(true, abs=0.35)
    assert found.low <= true <= found.high


def test_the_power_of_streaks_is_that_of_a_noise_free_scan() -> None:
    count = 96
    evidence = evidence_of(scanned(count)[1])
    found = measure_streaks(evidence, ring_sums(evidence), angles_of(count))
    true = power_of_true_streaks(count, evidence.mask)
    assert found.power == pytest.approx(true, abs=found.uncertainty)
    assert found.uncertainty < found.power
    assert found.is_validated


@pytest.mark.parametrize("noise", [0.03, 0.2])
def test_the_power_of_streaks_is_right_for_a_good_result_however_strong_the_noise(noise: float) -> None:
    count = 96
    truth, splits = scanned(count, noise)
    rng = np.random.default_rng(1)
    outputs = [truth + 3e-4 * rng.standard_normal(truth.shape).astype(np.float32) for _ in range(2)]
    evidence = evidence_of_outputs(splits, (outputs[0], outputs[1]))
    found = measure_streaks(evidence, ring_sums(evidence), angles_of(count))
    true = power_of_true_streaks(count, evidence.mask)
    assert found.power == pytest.approx(true, rel=0.4)
    assert found.power == pytest.approx(true, abs=found.uncertainty)


def test_the_power_of_streaks_rests_on_outputs_that_did_not_meet_their_noise() -> None:
    evidence = evidence_of(scanned(96)[1])
    rings, angles = ring_sums(evidence), angles_of(96)
    found = measure_streaks(evidence, rings, angles)
    overfitted = replace(evidence, delivered=evidence.full, response=evidence.probe)
    again = measure_streaks(overfitted, ring_sums(overfitted), angles)
    assert again.power == pytest.approx(found.power)
    assert again.passed == pytest.approx(1)


def test_streaks_that_are_not_found_are_not_corrected_and_widen_the_interval() -> None:
    truth, splits = scanned(96, 0.1)
    evidence = evidence_of(splits, denoiser=blurred)
    errors, rings = error_sums(evidence), ring_sums(evidence)
    found = measure_streaks(evidence, rings, angles_of(96))
    assert not found.is_validated
    assert found.power == 0
    assert found.uncertainty > power_of_true_streaks(96, evidence.mask)
    plain, widened = scores_of(evidence, errors, rings).gain, scores_of(evidence, errors, rings, found).gain
    assert widened.value == plain.value
    assert widened.low < plain.low
    assert widened.low <= true_gain(evidence, truth)
    assert "nothing was corrected" in judge_streaks(found).sentence


def test_with_very_few_angles_streaks_cannot_be_told_and_the_gain_is_a_bound() -> None:
    truth, splits = scanned(30)
    evidence = evidence_of(splits, denoiser=blurred)
    report = Report.of(evidence, angles=angles_of(30))
    assert report.streaks is not None
    assert report.streaks.fits
    assert not report.streaks.can_be_told
    assert report.scores.error_is_bound
    assert true_gain(evidence, truth) <= report.scores.gain.high
    finding = next(f for f in report.verdict.findings if f.name == "streaks")
    assert finding.severity is Severity.RESERVATION
    assert "cannot be told" in finding.sentence


def test_angles_that_are_not_those_of_the_splits_are_noticed_and_nothing_is_corrected() -> None:
    evidence = evidence_of(scanned(72, 0.01)[1])
    wrong = SplitAngles.in_turn(np.roll(angles_of(72).angles_rad, 1), 2)  # even for odd
    report = Report.of(evidence, angles=wrong)
    assert report.streaks is not None
    assert not report.streaks.fits
    assert report.scores.error_is_bound
    assert report.headline[0].startswith("Gain: at most ")
    finding = next(f for f in report.verdict.findings if f.name == "streaks")
    assert finding.severity is Severity.RESERVATION
    assert "upper bounds" in finding.sentence


def test_without_angles_a_result_of_few_angles_is_a_bound_that_holds() -> None:
    truth, splits = scanned(96)
    evidence = evidence_of(splits)
    report = Report.of(evidence, inputs=few_angles())
    assert report.scores.error_is_bound
    assert true_gain(evidence, truth) <= report.scores.gain.high
    assert report.scores.as_plain()["gain"] == {
        "value": report.scores.gain.value, "low": None, "high": report.scores.gain.high,
    }  # fmt: skip
    assert "at most" in next(f.sentence for f in report.verdict.findings if f.name == "gain")
    assert "as the angles are not known:" in next(f.sentence for f in report.verdict.findings if f.name == "streaks")
    assert report.as_plain()["streaks"] is None


@pytest.mark.parametrize(
    ("count", "rows", "reason"),
    [(2, 64, "only parts of slices were held out"), (3, SIZE, "there are more than two splits")],
)
def test_it_is_said_why_streaks_are_not_computed(count: int, rows: int, reason: str) -> None:
    splits = (2 * scanned(96)[1])[:count]
    volumes = [ArrayVolume(split, name=f"split {k}") for k, split in enumerate(splits)]
    evidence = collect(volumes, Region((0, 0, 0), (SLICES, rows, SIZE)), smoothed)
    (finding,) = (f for f in Report.of(evidence, inputs=few_angles()).verdict.findings if f.name == "streaks")
    assert f"as {reason}:" in finding.sentence


def test_nothing_is_said_of_streaks_where_there_are_enough_angles() -> None:
    evidence = evidence_of(scanned(300)[1])
    report = Report.of(evidence, angles=angles_of(300))
    assert report.streaks is None
    assert not report.scores.error_is_bound
    assert "streaks" not in {f.name for f in report.verdict.findings}


def test_what_counts_are_directions_and_not_projections() -> None:
    evidence = evidence_of(scanned(72)[1])
    twice = SplitAngles.in_turn(np.tile(angles_of(72).angles_rad, 5), 2)
    assert len(twice.angles_rad) > 3 * SIZE
    assert Report.of(evidence, angles=twice).streaks is not None
