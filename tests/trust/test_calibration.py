"""The estimates that never see the truth, against the truth: a wrong calibration fails here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, median_filter

from denoise.resolution import Rings
from denoise.trust.confidence import calibrated
from denoise.trust.errors import error_sums
from denoise.trust.evidence import Evidence
from denoise.trust.scores import Scores, crossing, scores_of
from denoise.trust.spectra import ring_starts, ring_sums

if TYPE_CHECKING:
    from conftest import Filter, Scan

Float32Array = NDArray[np.float32]


def denoiser(name: str, scan: Scan) -> Filter:
    """Linear and not, good and bad, inventing and erasing."""
    best = scan.best_filter()
    texture = gaussian_filter(np.random.default_rng(1).standard_normal(scan.truth.shape), (0, 1, 1))
    texture = (0.3 * texture / texture.std()).astype(np.float32)
    return {
        "best": best,
        "blurred": lambda v: gaussian_filter(best(v), (0, 2, 2)),
        "median": lambda v: median_filter(v, (1, 5, 5)),
        "shrunk": lambda v: np.sign(best(v)) * np.maximum(np.abs(best(v)) - np.float32(0.3), 0),
        "nothing": lambda v: v,
        "textured": lambda v: best(v) + texture[: len(v)],
        "sharpened": lambda v: 2 * best(v) - gaussian_filter(best(v), (0, 1.5, 1.5)),
    }[name]


def judged(evidence: Evidence) -> Scores:
    return scores_of(evidence, error_sums(evidence), ring_sums(evidence))


def decibels(stack: Float32Array, truth: Float32Array, data_range: float) -> float:
    return float(10 * np.log10(data_range**2 / np.square(stack.astype(np.float64) - truth).mean()))


@pytest.mark.parametrize("name", ["best", "blurred", "median", "shrunk", "nothing", "textured", "sharpened"])
@pytest.mark.parametrize(("count", "strategy", "delivers"), [(2, "X:1", "full"), (2, "X:1", "splits")])
def test_psnr_and_gain_of_two_splits_are_those_against_the_truth(
    scans: Callable[..., Scan], name: str, count: int, strategy: str, delivers: str
) -> None:
    assert_calibrated(scans, name, count, strategy, delivers)


@pytest.mark.parametrize("name", ["best", "shrunk"])
@pytest.mark.parametrize(("count", "strategy", "delivers"), [(3, "X:1", "full"), (4, "1:X", "splits")])
def test_psnr_and_gain_of_more_splits_are_those_against_the_truth(
    scans: Callable[..., Scan], name: str, count: int, strategy: str, delivers: str
) -> None:
    assert_calibrated(scans, name, count, strategy, delivers)


def assert_calibrated(scans: Callable[..., Scan], name: str, count: int, strategy: str, delivers: str) -> None:
    """All within 0.3 dB, and inside their interval."""
    for seed in range(2):
        scan = scans(seed, count=count)
        evidence = scan.evidence(denoiser(name, scan), strategy=strategy, delivers=delivers)
        found = judged(evidence)
        after = decibels(evidence.delivered, scan.truth, found.data_range)
        before = decibels(evidence.full, scan.truth, found.data_range)
        of_view = np.mean([np.square(f - scan.truth).mean() for f in evidence.outputs])
        assert found.psnr_after.value == pytest.approx(after, abs=0.3)
        assert found.gain.value == pytest.approx(after - before, abs=0.3)
        assert found.psnr_before.value == pytest.approx(before, abs=0.1)
        assert found.psnr_of_view.value == pytest.approx(10 * np.log10(found.data_range**2 / of_view), abs=0.4)
        assert found.gain.low - 0.05 <= after - before <= found.gain.high + 0.05


def test_equivalent_dose_is_what_a_longer_exposure_would_have_needed(scan: Scan) -> None:
    found = judged(scan.evidence(scan.best_filter(scan.noise / np.sqrt(2))))
    # The plain mean of two splits, exposed n times as long, has the noise variance noise^2 / 2n.
    error = np.square(scan.evidence(scan.best_filter(scan.noise / np.sqrt(2))).delivered - scan.truth).mean()
    assert found.equivalent_dose.value == pytest.approx(scan.noise**2 / 2 / error, rel=0.07)


def true_correlation(image: Float32Array, truth: Float32Array) -> NDArray[np.float64]:
    rings = Rings.of(*truth.shape[1:])
    sums = np.zeros((3, len(rings.frequencies)))
    for a, b in zip(image, truth, strict=True):
        f, g = rings.transform(torch.from_numpy(a)), rings.transform(torch.from_numpy(b))
        sums += np.array([rings.sums(*pair).numpy() for pair in ((f, g), (f, f), (g, g))])
    cross, one, other = np.add.reduceat(sums, ring_starts(sums.shape[1]), axis=1)
    return np.asarray(cross / np.sqrt(one * other))


@pytest.mark.parametrize("name", ["best", "median", "textured", "sharpened"])
@pytest.mark.parametrize("delivers", ["full", "splits"])
def test_cross_frc_is_the_correlation_with_the_truth_up_to_the_resolution(
    scans: Callable[..., Scan], name: str, delivers: str
) -> None:
    scan = scans(11, noise=0.3)
    evidence = scan.evidence(denoiser(name, scan), delivers=delivers)
    rings = ring_sums(evidence)
    truth = true_correlation(evidence.delivered, scan.truth)
    told = (rings.frequencies <= crossing(rings, truth)) & rings.known
    sharp = told & (rings.error_after() < 0.015)
    assert sharp.sum() >= 8
    assert np.abs(rings.correlation_after() - truth)[sharp].max() < 0.03
    assert (np.abs(rings.correlation_after() - truth) < 2.5 * rings.error_after() + 0.005)[told].mean() >= 0.9


def test_voxels_are_as_far_from_the_truth_as_they_are_said_to_be(scans: Callable[..., Scan]) -> None:
    """Where noise is strong in one half of the image, the uncertainty is larger there, and right in both halves."""
    scan = scans(5)
    stronger = np.where(np.arange(scan.truth.shape[2]) < scan.truth.shape[2] // 2, 1.0, 3.0)
    noisy = type(scan)(
        scan.truth,
        tuple((scan.truth + (s - scan.truth) * stronger).astype(np.float32) for s in scan.splits),
        scan.noise,
    )
    evidence = noisy.evidence(scan.best_filter(2 * scan.noise))
    found = calibrated([evidence]).uncertainty(evidence.outputs)
    distance = np.abs(evidence.delivered - scan.truth) / found
    half = scan.truth.shape[2] // 2
    assert found[:, :, half + 4 :].mean() > 1.3 * found[:, :, : half - 4].mean()
    for part in (slice(0, half - 4), slice(half + 4, None)):
        assert (distance[:, :, part] < 1).mean() == pytest.approx(0.68, abs=0.07)
        assert (distance[:, :, part] < 2).mean() == pytest.approx(0.95, abs=0.03)
