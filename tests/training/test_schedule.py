"""How the rate falls, when a run ends, and when it has stopped improving: no clock, no files."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoise.training.schedule import Schedule, has_stopped_improving

NAMES = ["constant", "cosine", "hold"]
PEAK = 0.004
#: A step after any warm-up, and before a rate that is held wears off.
WARM = 1000

Curve = list[tuple[int, float]]


@pytest.mark.parametrize("done", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("step", [0, 7, WARM])
def test_a_constant_rate_stays(step: int, done: float) -> None:
    assert Schedule("constant", PEAK).rate(step, done) == PEAK


@pytest.mark.parametrize(("done", "share"), [(0.0, 1.0), (0.25, (1 + math.sqrt(0.5)) / 2), (0.5, 0.5), (1.0, 0.0)])
def test_a_cosine_rate_falls_from_its_peak_to_zero(done: float, share: float) -> None:
    assert Schedule("cosine", PEAK).rate(WARM, done) == pytest.approx(PEAK * share, abs=1e-12)


@pytest.mark.parametrize(
    ("done", "share"), [(0.0, 1.0), (0.59, 1.0), (0.6, 1.0), (0.7, 0.75), (0.8, 0.5), (0.9, 0.25), (1.0, 0.0)]
)
def test_a_held_rate_stays_for_six_tenths_of_the_run_and_then_falls_in_a_line(done: float, share: float) -> None:
    assert Schedule("hold", PEAK).rate(WARM, done) == pytest.approx(PEAK * share, abs=1e-12)


def test_a_held_rate_is_reached_in_small_steps() -> None:
    rates = [Schedule("hold", PEAK).rate(step, 0.0) for step in range(200)]
    assert 0 < rates[0] < 0.1 * PEAK
    assert rates == sorted(rates)
    assert rates[100:] == [PEAK] * 100


def test_a_run_of_few_steps_reaches_its_rate_too() -> None:
    rates = [Schedule("hold", PEAK).rate(step, step / 20) for step in range(20)]
    assert rates[0] < 0.1 * PEAK
    assert rates[2:12] == [pytest.approx(PEAK)] * 10


@pytest.mark.parametrize("name", NAMES)
@given(step=st.integers(WARM, 10**6), shares=st.lists(st.floats(-1, 2), min_size=2, max_size=8))
def test_a_rate_never_rises_with_the_share_that_is_done_nor_leaves_its_range(
    name: str, step: int, shares: list[float]
) -> None:
    schedule = Schedule(name, PEAK)
    rates = [schedule.rate(step, done) for done in sorted(shares)]
    assert all(0 <= rate <= PEAK for rate in rates)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(rates))
    assert schedule.rate(step, -0.5) == schedule.rate(step, 0.0)
    assert schedule.rate(step, 1.5) == schedule.rate(step, 1.0)


@given(st.integers(1, 10**7))
def test_a_run_that_held_its_rate_until_it_was_flat_has_it_fall_from_its_peak_from_then_on(flat_since: int) -> None:
    schedule = Schedule("hold", PEAK)
    end = schedule.end_after(flat_since)
    assert schedule.rate(WARM, flat_since / end) == pytest.approx(PEAK)
    assert schedule.rate(WARM, (flat_since + 1) / end) < PEAK, "the very next step is smaller"
    assert end - flat_since == pytest.approx(flat_since * 2 / 3, abs=1), "two fifths of the whole"


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_where_the_rate_was_not_held_a_flat_run_ends_at_once(name: str) -> None:
    assert Schedule(name, PEAK).end_after(123) == 123


def test_a_cosine_is_not_judged_while_it_falls() -> None:
    """Most of what it gains comes at its end."""
    assert [Schedule(name, PEAK).ends_when_flat for name in NAMES] == [True, False, True]


# Whether a run still improves


def scored(errors: list[float], every: int = 10) -> Curve:
    return [((i + 1) * every, error) for i, error in enumerate(errors)]


def in_decibel(*gains: float) -> list[float]:
    """Errors that are smaller than 1 by these gains."""
    return [10 ** (-gain / 10) for gain in gains]


def test_a_run_that_gains_nothing_has_stopped_but_not_before_there_are_scores_enough() -> None:
    assert not has_stopped_improving([])
    assert not has_stopped_improving(scored([1.0] * 5))
    assert has_stopped_improving(scored([1.0] * 30))


@pytest.mark.parametrize("factor", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("count", [12, 50, 200])
def test_a_run_whose_error_keeps_falling_goes_on(factor: float, count: int) -> None:
    assert not has_stopped_improving(scored([factor**i for i in range(count)]))


@pytest.mark.parametrize(("gain", "stopped"), [(0.05, True), (0.09, True), (0.11, False), (1.0, False)])
def test_a_tenth_of_a_decibel_in_the_last_third_is_an_improvement(gain: float, stopped: bool) -> None:
    assert has_stopped_improving(scored(in_decibel(*[5.0] * 20, *[5.0 + gain] * 10))) is stopped


def test_a_pause_must_be_long_for_how_long_the_run_is() -> None:
    """The same ten scores without a gain: a third of a run of thirty, a tenth of one of a hundred."""
    assert has_stopped_improving(scored(in_decibel(*range(20), *[19.0] * 10)))
    assert not has_stopped_improving(scored(in_decibel(*(0.2 * i for i in range(90)), *[18.0] * 10)))


def test_a_score_that_got_worse_does_not_undo_a_gain_and_one_lucky_score_is_none_to_wait_for() -> None:
    rising = in_decibel(*[0.0] * 20, 3.0, *[-5.0] * 9)
    assert not has_stopped_improving(scored(rising)), "the best came in the last third"
    falling = in_decibel(*[0.0] * 5, 3.0, *[0.0] * 24)
    assert has_stopped_improving(scored(falling)), "the best came long ago"


@pytest.mark.parametrize("errors", [[1.0] * 10 + [-0.1] * 10, [-0.1] * 5 + [1.0] * 15, [-0.1] * 20])
def test_an_error_below_zero_that_stays_ends_the_run(errors: list[float]) -> None:
    assert has_stopped_improving(scored(errors))


@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize(("gain", "stopped"), [(0.02, True), (0.1, False)])
def test_below_zero_the_last_third_counts_by_what_the_whole_run_gained(
    offset: float, gain: float, stopped: bool
) -> None:
    """Streaks that are opposed in the splits take a constant from every score."""
    errors = [1.0 - 0.1 * i for i in range(10)] + [0.1 - gain] * 5
    assert has_stopped_improving(scored([error - 0.1 - offset for error in errors])) is stopped


def test_scores_that_lie_unevenly_count_by_their_steps() -> None:
    """A run that is scored often at first: what counts as its last third are its last steps, not its last scores."""
    often = [(step, 1.0) for step in range(1, 21)]
    assert not has_stopped_improving([*often, (60, 0.9), (90, 0.8)])
    assert has_stopped_improving([*often, (21, 0.5), (90, 0.5)])


@given(
    errors=st.lists(st.floats(1e-6, 1e6), min_size=12, max_size=40),
    unit=st.integers(-20, 20),
    pace=st.integers(0, 10),
)
def test_neither_the_unit_of_the_error_nor_that_of_the_steps_matters(errors: list[float], unit: int, pace: int) -> None:
    plain = scored(errors, every=3)
    other = [(step * 2**pace, error * 2.0**unit) for step, error in plain]
    assert has_stopped_improving(plain) == has_stopped_improving(other)


@pytest.mark.parametrize(("step", "share"), [(100, 1.0), (1500, 1.0), (6000, 0.5), (150_000, 0.1)])
def test_a_rate_that_is_held_wears_off_in_long_runs(step: int, share: float) -> None:
    assert Schedule("hold", PEAK).rate(step, 0.3) == pytest.approx(PEAK * share)
    assert Schedule("constant", PEAK).rate(step, 0.3) == PEAK
