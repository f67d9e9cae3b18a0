"""What each projection stands for, and which split it goes to: right for any order and range of angles."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from denoise.errors import ScanError
from denoise.projections.angles import HalfCircle, SplitAngles

TURN = 2 * np.pi


def full_turn(count: int) -> NDArray[np.float64]:
    return np.arange(count) * (TURN / count)


def golden(count: int) -> NDArray[np.float64]:
    return np.deg2rad(137.508) * np.arange(count)


@pytest.mark.parametrize(
    ("degrees", "weights"),
    [
        ([0, 45, 90, 135], [45, 45, 45, 45]),
        ([0, 90, 180], [45, 90, 45]),
        ([0, 180, 360, 90], [30, 30, 30, 90]),
        ([10, 20, 60, 100, 140], [30, 25, 40, 40, 45]),
        ([7, 7], [90, 90]),
        ([0, 5, 10, 15, 20, 25, 30], [5] * 7),
    ],
)
def test_each_projection_stands_for_half_the_gaps_to_its_neighbours(degrees: list[int], weights: list[int]) -> None:
    angles = np.deg2rad(degrees)
    np.testing.assert_allclose(np.rad2deg(HalfCircle.of(angles).weights(angles)), weights, atol=1e-3)


def test_jitter_of_measured_angles_leaves_the_sum_at_a_half_turn(rng: np.random.Generator) -> None:
    angles = full_turn(720) + rng.normal(0, 1e-5, 720)
    assert HalfCircle.of(angles).weights(angles).sum() == pytest.approx(np.pi, rel=1e-5)


def test_many_wide_gaps_are_coarse_steps_and_a_few_are_wedges() -> None:
    mixed = np.deg2rad([*np.arange(0, 90, 0.1), *np.arange(90, 180, 1)])
    assert HalfCircle.of(mixed).length == pytest.approx(np.pi)
    two_wedges = np.deg2rad([*np.arange(0, 60, 0.5), *np.arange(90, 150, 0.5)])
    assert np.rad2deg(HalfCircle.of(two_wedges).length) == pytest.approx(120)


@pytest.mark.parametrize("count", [2, 3, 4, 6])
@pytest.mark.parametrize(
    "angles",
    [
        pytest.param(np.linspace(0, np.pi, 181), id="half turn"),
        pytest.param(full_turn(384), id="full turn"),
        pytest.param(golden(700), id="golden angle"),
        pytest.param(np.deg2rad(np.linspace(-70, 70, 281)), id="missing wedge"),
        pytest.param(np.array([int(f"{i:010b}"[::-1], 2) for i in range(700)]) * np.pi / 1024, id="bits reversed"),
    ],
)
def test_splits_have_the_scale_of_the_whole_scan(angles: NDArray[np.float64], count: int) -> None:
    dealt = SplitAngles.of(angles, count)
    circle = dealt.half_circle
    for chosen in dealt.indices:
        assert circle.weights(angles[chosen]).sum() == pytest.approx(circle.weights(angles).sum())


@pytest.mark.parametrize(("n_angles", "n_splits"), [(7, 2), (8, 2), (9, 4), (4, 2), (5, 1)])
def test_projections_of_a_half_turn_are_dealt_out_in_turn(n_angles: int, n_splits: int) -> None:
    dealt = SplitAngles.of(np.arange(n_angles) * np.pi / n_angles, n_splits)
    assert dealt.is_in_turn
    assert [list(chosen) for chosen in dealt.indices] == [list(range(k, n_angles, n_splits)) for k in range(n_splits)]


@pytest.mark.parametrize("angles", [full_turn(384), full_turn(386), np.tile(np.linspace(0, 3, 192), 2), golden(720)])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_projection_belongs_to_one_split_and_all_have_as_many(angles: NDArray[np.float64], count: int) -> None:
    parts = SplitAngles.of(angles, count).indices
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(angles)))
    assert np.ptp([len(part) for part in parts]) <= 1


@pytest.mark.parametrize(("n_angles", "count"), [(384, 2), (386, 2), (1800, 2), (384, 4), (361, 2)])
def test_a_full_turn_leaves_every_split_as_many_directions_as_there_can_be(n_angles: int, count: int) -> None:
    angles = full_turn(n_angles) if n_angles % 2 == 0 else np.linspace(0, TURN, n_angles)
    dealt = SplitAngles.of(angles, count)
    in_all = n_angles // 2
    assert dealt.fewest_directions >= in_all // max(1, count // 2)
    for chosen in dealt.indices:  # what drifts must not tell one split from another
        assert np.mean(angles[chosen] < np.pi) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "angles",
    [
        pytest.param(full_turn(720), id="full turn"),
        pytest.param(np.arange(1440) * np.pi / 360, id="two turns"),
        pytest.param(np.arange(1080) * np.pi / 360, id="one and a half turns"),
        pytest.param(np.tile(np.arange(360) * np.pi / 360, 2), id="two half turns"),
        pytest.param(np.tile(np.arange(360) * np.pi / 360, 3), id="three half turns"),
        pytest.param(full_turn(721), id="odd full turn"),
        pytest.param(np.linspace(0, TURN, 720), id="full turn with its end"),
        pytest.param(np.deg2rad(np.linspace(0, 359.8, 1000)), id="a step too short"),
        pytest.param(full_turn(720) + np.random.default_rng(0).normal(0, 0.05 * TURN / 720, 720), id="jitter"),
    ],
)
def test_every_split_has_as_much_of_each_half_turn_and_of_each_time(angles: NDArray[np.float64], count: int) -> None:
    """Or a rotation axis that is half a voxel off would shift the splits against each other."""
    dealt = SplitAngles.of(angles, count)
    other_way, time = np.mod(angles, TURN) > np.pi - 1e-9, np.linspace(0, 1, len(angles))
    assert dealt.is_balanced
    for chosen in dealt.indices:
        assert other_way[chosen].mean() == pytest.approx(other_way.mean(), abs=0.02)
        assert time[chosen].mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("angles", "changed"),
    [
        (np.arange(720) * np.pi / 720, False),
        (np.linspace(0, np.pi, 721), False),
        (full_turn(721), False),
        (np.deg2rad(np.linspace(0, 150, 60)), False),
        (np.delete(np.arange(720) * np.pi / 720, [5, 100, 101]), False),
        (np.deg2rad([*np.arange(0, 90, 0.1), *np.arange(90, 180, 1)]), True),
        (np.deg2rad([a for a in range(0, 180, 3) if a % 45 < 21]), True),
        (golden(720), True),
    ],
)
def test_only_where_weights_have_changed_is_an_earlier_result_another(
    angles: NDArray[np.float64], changed: bool
) -> None:
    assert SplitAngles.in_turn(angles, 3).is_weighted_as_before != changed


def test_few_degrees_have_all_their_directions() -> None:
    assert SplitAngles.of(np.deg2rad(np.linspace(0, 15, 100)), 2).fewest_directions == 50


def test_a_full_turn_of_many_projections_is_dealt_out_at_once() -> None:
    assert SplitAngles.of(full_turn(20_000), 5_000).fewest_directions == 4


def test_splits_of_a_full_turn_with_an_odd_number_are_no_half_turns() -> None:
    angles = full_turn(385)
    for chosen in SplitAngles.of(angles, 2).indices:
        assert np.mean(angles[chosen] < np.pi) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_golden_and_interlaced_orders_leave_no_wedge_in_a_split(count: int) -> None:
    reversed_bits = np.array([int(f"{i:010b}"[::-1], 2) for i in range(1024)]) * np.pi / 1024
    for angles in (golden(720), reversed_bits):
        dealt = SplitAngles.of(angles, count)
        assert dealt.typical_gap < 2 * count * dealt.half_circle.typical_gap(angles)


def test_measured_angles_that_jitter_are_dealt_out_as_exact_ones(rng: np.random.Generator) -> None:
    dealt = SplitAngles.of(full_turn(720) + rng.normal(0, 1e-5, 720), 2)
    assert dealt.fewest_directions == 360


@pytest.mark.parametrize(("n_angles", "n_splits"), [(3, 2), (7, 4), (10, 0), (1, 1)])
def test_splits_without_two_projections_are_refused(n_angles: int, n_splits: int) -> None:
    with pytest.raises(ScanError, match=f"{n_angles} projections cannot be divided into {n_splits} splits"):
        SplitAngles.of(np.arange(n_angles) * 0.1, n_splits)
