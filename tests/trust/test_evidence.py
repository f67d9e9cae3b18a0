"""What evidence is made of: views and what is independent of them, the probe, the field of view."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from denoise.errors import VolumeError
from denoise.tiles import Region
from denoise.trust.confidence import Confidence, calibrated, disagreement_of
from denoise.trust.evidence import collect, field_of_view, probe_weights, shown_in
from denoise.trust.spectra import ring_sums
from denoise.trust.verdict import Finding, Severity, Verdict
from denoise.volumes import ArrayVolume, Volume

if TYPE_CHECKING:
    from conftest import Scan


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_the_probe_has_the_noise_of_the_mean_and_nothing_of_the_object(count: int) -> None:
    weights = np.array(probe_weights(count))
    assert weights.sum() == pytest.approx(0)
    assert np.square(weights).sum() == pytest.approx(1 / count)


@pytest.mark.parametrize("strategy", ["X:1", "1:X"])
def test_no_view_holds_a_split_that_it_is_compared_with(scans: Callable[..., Scan], strategy: str) -> None:
    scan = scans(1, count=3)
    evidence = scan.evidence(lambda stack: stack, strategy=strategy)
    for k, (output, other) in enumerate(zip(evidence.outputs, evidence.others, strict=True)):
        alone, rest = evidence.splits[k], np.mean([s for j, s in enumerate(evidence.splits) if j != k], axis=0)
        seen, unseen = (rest, alone) if strategy == "X:1" else (alone, rest)
        np.testing.assert_allclose(output, seen, atol=1e-5)
        np.testing.assert_allclose(other, unseen, atol=1e-5)
    np.testing.assert_allclose(evidence.delivered, evidence.full, atol=1e-5)
    np.testing.assert_allclose(evidence.response, evidence.probe, atol=1e-5)


def test_rows_that_were_held_out_are_cut_from_slices_that_were_denoised_whole(scan: Scan) -> None:
    asked: list[range] = []

    def run(volume: Volume, z_range: range) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
        asked.append(z_range)
        return volume.read(Region.of_slices(z_range.start, z_range.stop, volume.shape))

    evidence = collect(scan.volumes, Region((3, 40, 0), (2, 20, 96)), run)
    assert set(asked) == {range(3, 5)}
    assert evidence.shape == (2, 20, 96)
    assert evidence.mask.shape == (20, 96)
    np.testing.assert_array_equal(evidence.splits[0], scan.splits[0][3:5, 40:60])


def test_the_field_of_view_is_a_circle_only_where_all_is_zero_outside_it() -> None:
    ones = np.ones((2, 40, 50), np.float32)
    assert field_of_view([ones]).all()
    y, x = np.arange(40) - 19.5, np.arange(50) - 24.5
    circle = np.hypot(y[:, None] / 20, x[None, :] / 25) <= 1
    mask = field_of_view([ones * circle, 2 * ones * circle])
    assert mask[20, 25]
    assert not mask[0, 0]
    assert (mask <= circle).all()
    assert mask.sum() > 0.85 * circle.sum()


@pytest.mark.parametrize("ratio", [0.8, 0.95])
def test_a_circle_that_was_cut_smaller_is_the_field_of_view(ratio: float, rng: np.random.Generator) -> None:
    y, x = np.mgrid[:96, :96] - 47.5
    inside = np.hypot(y, x) < 48 * ratio
    found = field_of_view([np.where(inside, rng.standard_normal((3, 96, 96)), 0).astype(np.float32)])
    noise = rng.standard_normal((3, 96, 96))
    np.testing.assert_array_equal(field_of_view([np.where(inside, noise, np.nan).astype(np.float32)]), found)
    assert not found[~inside].any()
    assert np.count_nonzero(found) > 0.9 * np.count_nonzero(inside)


@pytest.mark.parametrize("delivers", ["full", "splits"])
@pytest.mark.parametrize(("count", "strategy"), [(2, "X:1"), (3, "X:1"), (4, "X:1"), (4, "1:X")])
def test_what_changes_nothing_lets_all_noise_through(
    scans: Callable[..., Scan], count: int, strategy: str, delivers: str
) -> None:
    rings = ring_sums(scans(3, count=count).evidence(lambda stack: stack, delivers=delivers, strategy=strategy))
    np.testing.assert_allclose(rings.passed.sum(0), rings.noise.sum(0), rtol=0.01 if delivers == "splits" else 0.5)
    assert rings.passed.sum() == pytest.approx(rings.noise.sum(), rel=0.1)


@pytest.mark.parametrize("outside", [0.0, 1000.0, -3.5])
def test_what_a_mask_put_outside_is_not_shown_whatever_its_grey_value(outside: float, rng: np.random.Generator) -> None:
    y, x = np.mgrid[:64, :64] - 31.5
    circle = np.hypot(y, x) < 28
    stacks = [np.where(circle, rng.standard_normal((2, 64, 64)), outside).astype(np.float32) for _ in range(2)]
    found = field_of_view(stacks)
    assert not found[~circle].any()
    assert np.count_nonzero(found) > 0.85 * np.count_nonzero(circle)
    np.testing.assert_array_equal(shown_in(stacks), circle)


def test_the_uncertainty_of_slices_does_not_depend_on_which_others_are_asked_for(scan: Scan) -> None:
    evidence = scan.evidence(scan.best_filter())
    found = calibrated([evidence])
    whole = found.uncertainty(evidence.outputs)
    part = found.uncertainty([output[4:6] for output in evidence.outputs])
    np.testing.assert_array_equal(whole[4:6], part)
    assert list(found.error) == sorted(found.error)
    assert whole.dtype == np.float32


def test_disagreement_is_the_standard_deviation_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    outputs = [(2.0 * rng.standard_normal((3, 64, 64))).astype(np.float32) for _ in range(4)]
    assert disagreement_of(outputs).mean() == pytest.approx(2.0, rel=0.05)
    confidence = Confidence((0.0, 1.0, 4.0), (0.5, 1.0, 2.5))
    flat = [np.full((1, 32, 32), v, np.float32) for v in (0.0, 2 * np.sqrt(2.0))]  # standard deviation 2
    np.testing.assert_allclose(confidence.uncertainty(flat), 1.5, rtol=1e-5)


def test_an_uncertainty_that_cannot_be_calibrated_is_an_error_that_says_what_to_do(scan: Scan) -> None:
    same = collect([ArrayVolume(scan.truth), ArrayVolume(scan.truth)], Region((0, 0, 0), scan.truth.shape), _identity)
    with pytest.raises(VolumeError, match="validation_fraction"):
        calibrated([same])


def _identity(volume: Volume, z_range: range) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    return volume.read(Region.of_slices(z_range.start, z_range.stop, volume.shape))


def finding(severity: Severity, sentence: str) -> Finding:
    return Finding("name", "question?", float("inf"), "dB", 1.0, "why", severity, sentence)


def test_the_gravest_finding_decides_the_verdict_and_is_said_first() -> None:
    fine = Verdict.of([finding(Severity.FINE, "Good."), finding(Severity.NOTE, "By the way.")])
    assert (fine.word, fine.sentence) == ("fine", "Fine: no test found anything wrong.")
    reserved = Verdict.of([*fine.findings, finding(Severity.RESERVATION, "Mind this.")])
    assert (reserved.word, reserved.sentence) == ("usable with reservations", "Usable with reservations: Mind this.")
    invalid = Verdict.of([*reserved.findings, finding(Severity.INVALID, "Broken.")])
    assert (invalid.word, invalid.sentence) == ("not valid", "Not valid: Broken. Mind this.")
    assert invalid.findings[0].as_plain()["value"] is None
