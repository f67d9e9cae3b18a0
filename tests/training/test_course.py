"""Where a run stands by its steps, its minutes and its scores, with a clock that the test turns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from denoise.launch import World
from denoise.training import course as course_module
from denoise.training.course import Course
from denoise.training.job import TrainJob
from denoise.training.state import Progress

Jobs = Callable[..., TrainJob]
CPU = torch.device("cpu")
STEPS_PER_EPOCH = 10


class Clock(threading.local):
    """Each process, which is a thread here, has its own; they do not agree."""

    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(course_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def course_of(job: TrainJob, progress: Progress, world: World | None = None, begun: float = 1000.0) -> Course:
    return Course(job, world or World(0, 1, CPU), progress, STEPS_PER_EPOCH, begun)


def take_steps(course: Course, progress: Progress, clock: Clock, count: int, seconds: float = 1.0) -> None:
    for _ in range(count):
        progress.step += 1
        progress.epoch = progress.step // STEPS_PER_EPOCH
        progress.seconds += seconds
        clock.now += seconds
        assert not course.agree(False)


# Steps


def test_without_a_limit_in_minutes_the_steps_say_how_far_a_run_is(jobs: Jobs, tmp_path: Path, clock: Clock) -> None:
    progress = Progress()
    course = course_of(jobs(tmp_path, max_epochs=4), progress)
    found = [course.done]
    for _ in range(5):
        take_steps(course, progress, clock, 10, seconds=1e6)
        found.append(course.done)
    assert found == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert course.reason == "all epochs done"


def test_the_rate_is_that_of_the_schedule_where_the_run_is(jobs: Jobs, tmp_path: Path, clock: Clock) -> None:
    job = jobs(tmp_path, max_epochs=20, schedule="hold", learning_rate=0.01)
    progress = Progress()
    course = course_of(job, progress)
    for _ in range(20):
        assert course.rate == job.schedule.rate(progress.step, course.done)
        take_steps(course, progress, clock, 10)
    assert course.rate == 0.0


# Minutes


def test_minutes_count_from_the_beginning_of_the_work_reading_and_scoring_included(
    jobs: Jobs, tmp_path: Path, clock: Clock
) -> None:
    progress = Progress()
    clock.now = 1015.0  # the splits were read for 15 s
    course = course_of(jobs(tmp_path, max_epochs=10**6, max_minutes=1.0), progress)
    assert course.seconds == 15.0
    take_steps(course, progress, clock, 15)
    assert course.done == pytest.approx(0.5)
    clock.now += 14.0  # something else took its time
    take_steps(course, progress, clock, 1)
    assert course.done == pytest.approx(0.75)
    take_steps(course, progress, clock, 15)
    assert course.done == 1.0
    assert course.reason == "its minute is used"


@pytest.mark.parametrize(("epochs", "minutes"), [(2, 10.0), (100, 1 / 3)])
def test_whichever_comes_first_ends_a_run(
    jobs: Jobs, tmp_path: Path, clock: Clock, epochs: int, minutes: float
) -> None:
    """Twenty steps of a second each."""
    progress = Progress()
    course = course_of(jobs(tmp_path, max_epochs=epochs, max_minutes=minutes), progress)
    take_steps(course, progress, clock, 19)
    assert course.done == pytest.approx(0.95)
    take_steps(course, progress, clock, 1)
    assert course.done == pytest.approx(1.0)


def test_the_last_score_is_within_the_minutes_too(jobs: Jobs, tmp_path: Path, clock: Clock) -> None:
    progress = Progress()
    course = course_of(jobs(tmp_path, max_epochs=100, max_minutes=1.0), progress)
    take_steps(course, progress, clock, 10)
    clock.now += 20.0
    course.scored(1.0, 20.0)
    take_steps(course, progress, clock, 10)
    assert course.done == 1.0, "after 40 s of 60, as another score takes 20"


def test_a_first_step_is_taken_however_long_the_reading_took(jobs: Jobs, tmp_path: Path, clock: Clock) -> None:
    progress = Progress()
    clock.now = 5000.0
    course = course_of(jobs(tmp_path, max_epochs=100, max_minutes=1.0), progress)
    assert course.done == 0.0
    take_steps(course, progress, clock, 1)
    assert course.done == 1.0


def test_pauses_between_the_parts_of_a_run_do_not_count(jobs: Jobs, tmp_path: Path, clock: Clock) -> None:
    job = jobs(tmp_path, max_epochs=100, max_minutes=1.0)
    progress = Progress()
    first = course_of(job, progress)
    take_steps(first, progress, clock, 24)
    progress.elapsed = first.seconds
    clock.now += 1e5
    second = course_of(job, progress, begun=clock.now)
    assert second.done == pytest.approx(0.4)
    take_steps(second, progress, clock, 6)
    assert second.done == pytest.approx(0.5)


def test_a_run_whose_minutes_are_used_goes_on_with_more_of_them(jobs: Jobs, tmp_path: Path, clock: Clock) -> None:
    progress = Progress(step=30, epoch=3, elapsed=60.0)
    assert course_of(jobs(tmp_path, max_epochs=100, max_minutes=1.0), progress, begun=clock.now).done == 1.0
    longer = course_of(jobs(tmp_path, max_epochs=100, max_minutes=4.0), progress, begun=clock.now)
    assert longer.done == pytest.approx(0.25)


def test_minutes_hold_for_a_resumed_run_that_is_not_given_others(jobs: Jobs, tmp_path: Path, clock: Clock) -> None:
    """Without them it would go on at the rate that it fell from."""
    begun = Progress()
    course_of(jobs(tmp_path, max_epochs=100, max_minutes=2.0), begun)
    stored = Progress.stored({**asdict(begun), "step": 30, "epoch": 3, "elapsed": 120.0})
    resumed = course_of(jobs(tmp_path, max_epochs=100), stored, begun=clock.now)
    assert resumed.done == 1.0
    assert resumed.reason == "its 2 minutes are used"
    assert course_of(jobs(tmp_path, max_epochs=100, max_minutes=8.0), stored, begun=clock.now).done == 0.25
    assert course_of(jobs(tmp_path, max_epochs=100), Progress(step=30, epoch=3), begun=clock.now).minutes is None


# Scores


def score_every_epoch(course: Course, progress: Progress, clock: Clock, errors: list[float]) -> None:
    for error in errors:
        take_steps(course, progress, clock, STEPS_PER_EPOCH)
        course.scored(error, 0.0)


FLAT_FROM_THE_START = [1.0] * 12


@pytest.fixture(autouse=True)
def short_runs_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course_module, "_FEWEST_STEPS", 0)


@pytest.mark.parametrize(("fewest", "ended"), [(120, True), (121, False)])
def test_a_run_that_has_hardly_begun_is_not_called_finished(
    jobs: Jobs, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, fewest: int, ended: bool
) -> None:
    monkeypatch.setattr(course_module, "_FEWEST_STEPS", fewest)
    progress = Progress()
    course = course_of(jobs(tmp_path, max_epochs=10_000, schedule="hold"), progress)
    score_every_epoch(course, progress, clock, FLAT_FROM_THE_START)
    assert (progress.flat_since == 120) is ended


@pytest.mark.parametrize(("schedule", "end"), [("hold", 200), ("constant", 120), ("cosine", 100_000)])
def test_a_flat_score_ends_a_run_after_its_rate_has_fallen(
    jobs: Jobs, tmp_path: Path, clock: Clock, schedule: str, end: int
) -> None:
    progress = Progress()
    course = course_of(jobs(tmp_path, max_epochs=10_000, schedule=schedule, learning_rate=0.01), progress)
    score_every_epoch(course, progress, clock, FLAT_FROM_THE_START)
    assert course.done == pytest.approx(120 / end)
    assert course.rate == pytest.approx(0.01, rel=1e-3), "from where it was, without a jump"
    if schedule == "cosine":
        return
    assert "all but stopped improving at step 120" in course.reason
    take_steps(course, progress, clock, end - 120)
    assert course.done == 1.0


def test_what_the_score_does_while_the_rate_falls_does_not_move_the_end(
    jobs: Jobs, tmp_path: Path, clock: Clock
) -> None:
    """It gets better then, by much: that is why the rate falls."""
    progress = Progress()
    course = course_of(jobs(tmp_path, max_epochs=10_000, schedule="hold"), progress)
    score_every_epoch(course, progress, clock, [*FLAT_FROM_THE_START, 0.5, 0.3, 0.2, 0.1, 0.1])
    assert course.done == pytest.approx(170 / 200)


def test_a_run_that_is_flat_late_still_ends_after_its_epochs_or_minutes(
    jobs: Jobs, tmp_path: Path, clock: Clock
) -> None:
    """A fall that was planned already is not planned anew."""
    for limits in ({"max_epochs": 15}, {"max_epochs": 10_000, "max_minutes": 2.5}):
        progress, clock.now = Progress(), 1000.0
        course = course_of(jobs(tmp_path, schedule="hold", **limits), progress)
        score_every_epoch(course, progress, clock, FLAT_FROM_THE_START)
        assert course.done == pytest.approx(0.8)
        take_steps(course, progress, clock, 30)
        assert course.done == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["hold", "constant"])
def test_a_run_without_patience_never_ends_early(jobs: Jobs, tmp_path: Path, clock: Clock, schedule: str) -> None:
    progress = Progress()
    course = course_of(jobs(tmp_path, max_epochs=100, schedule=schedule, patience=0), progress)
    score_every_epoch(course, progress, clock, [1.0] * 99)
    assert course.done == pytest.approx(0.99)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_patience_in_epochs_is_counted_from_the_best_one(
    jobs: Jobs, tmp_path: Path, clock: Clock, schedule: str
) -> None:
    progress = Progress()
    course = course_of(jobs(tmp_path, max_epochs=100, schedule=schedule, patience=3), progress)
    score_every_epoch(course, progress, clock, [1.0, 1.0])
    progress.best_epoch = 2
    score_every_epoch(course, progress, clock, [1.0, 1.0])
    assert course.done == pytest.approx(0.04)
    score_every_epoch(course, progress, clock, [1.0])
    assert course.done == 1.0
    assert "at step 50" in course.reason


@pytest.mark.parametrize("patience", [1, 2])
def test_one_score_that_is_no_better_ends_nothing(jobs: Jobs, tmp_path: Path, clock: Clock, patience: int) -> None:
    progress = Progress(best_epoch=1)
    course = course_of(jobs(tmp_path, max_epochs=100, schedule="constant", patience=patience), progress)
    take_steps(course, progress, clock, 3 * STEPS_PER_EPOCH)
    course.scored(1.0, 0.0)
    assert course.done < 1
    take_steps(course, progress, clock, STEPS_PER_EPOCH)
    course.scored(1.0, 0.0)
    assert course.done == 1


def test_a_run_that_ended_for_its_score_goes_on_when_that_is_switched_off(
    jobs: Jobs, tmp_path: Path, clock: Clock
) -> None:
    progress = Progress(step=120, epoch=12, flat_since=120, curve=[(120, 1.0)])
    assert course_of(jobs(tmp_path, max_epochs=100), progress).done == 1.0
    assert "with train.patience: 0, --resume goes on" in course_of(jobs(tmp_path, max_epochs=100), progress).reason
    assert course_of(jobs(tmp_path, max_epochs=100, patience=0), progress).done == pytest.approx(0.12)


def test_a_run_that_ended_for_its_patience_goes_on_with_more_of_it(jobs: Jobs, tmp_path: Path, clock: Clock) -> None:
    for patience, done in ((3, 1.0), (4, 1.0), (5, 0.12)):
        progress = Progress()
        course = course_of(jobs(tmp_path, max_epochs=100, schedule="constant", patience=4), progress)
        score_every_epoch(course, progress, clock, [1.0] * 8)
        progress.best_epoch = 8
        score_every_epoch(course, progress, clock, [1.0] * 4)
        assert course.done == 1
        resumed = course_of(jobs(tmp_path, max_epochs=100, schedule="constant", patience=patience), progress)
        assert resumed.done == pytest.approx(done)


def test_a_run_that_is_resumed_while_its_rate_falls_ends_where_it_would_have_ended(
    jobs: Jobs, tmp_path: Path, clock: Clock
) -> None:
    """It improves then, which is why the rate falls, and has waited for less than its patience when it is resumed."""
    progress = Progress()
    job = jobs(tmp_path, max_epochs=100, schedule="hold", patience=3)
    course = course_of(job, progress)
    score_every_epoch(course, progress, clock, [1.0])
    progress.best_epoch = 1
    score_every_epoch(course, progress, clock, [1.0] * 3)
    assert progress.flat_since == 40
    progress.best_epoch = 5
    score_every_epoch(course, progress, clock, [0.5])
    assert course_of(job, progress).done == course.done == pytest.approx(50 / 67, abs=0.01)


# Several processes


class Meeting:
    """Where processes exchange their numbers; one that does not come breaks it, and the test."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size)
        self._values: list[list[float]] = [[] for _ in range(size)]
        self.held = 0

    def largest(self, rank: int, values: list[float]) -> list[float]:
        self._values[rank] = values
        self._barrier.wait(timeout=20)
        found = [max(column) for column in zip(*self._values, strict=True)]
        if self._barrier.wait(timeout=20) == 0:
            self.held += 1
        return found


@dataclass(frozen=True)
class MeetingWorld(World):
    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def largest(self, values: Any) -> list[float]:
        return self.meeting.largest(self.rank, list(values))


def run_together(
    job: TrainJob,
    clock: Clock,
    step_seconds: tuple[float, ...],
    stop: Callable[[int, int], bool] = lambda rank, step: False,
) -> tuple[list[list[Any]], Meeting]:
    """What each process saw at every step: step, share done, rate; at the end whether it was stopped, and its time."""
    size = len(step_seconds)
    meeting = Meeting(size)

    def process(rank: int) -> list[Any]:
        clock.now = 1000.0 * rank
        progress, seen = Progress(), []
        course = course_of(job, progress, MeetingWorld(rank, size, CPU, meeting=meeting), begun=clock.now - rank)
        while course.done < 1.0:
            seen.append((progress.step, course.done, course.rate))
            clock.now += step_seconds[rank]
            progress.step += 1
            progress.seconds += step_seconds[rank]
            if course.agree(stop(rank, progress.step)):
                return [seen, "stopped", progress.step, course.seconds]
            if progress.step % 100 == 0:
                clock.now += 0.1 * (1 + rank)
                course.scored(1.0 / progress.step, 0.1 * (1 + rank))
        return [seen, "done", progress.step, course.seconds]

    with ThreadPoolExecutor(size) as processes:
        return list(processes.map(process, range(size))), meeting


@pytest.mark.parametrize("schedule", ["hold", "cosine"])
def test_processes_whose_clocks_differ_take_every_step_at_the_same_rate_and_stop_together(
    jobs: Jobs, tmp_path: Path, clock: Clock, schedule: str
) -> None:
    """One that stopped alone would leave the others waiting for ever."""
    job = jobs(tmp_path, max_epochs=10**6, max_minutes=1.0, schedule=schedule)
    runs, meeting = run_together(job, clock, (0.010, 0.013, 0.016))
    assert [run[:3] for run in runs] == [runs[0][:3]] * 3
    assert runs[0][1] == "done"
    steps, slowest = runs[0][2], max(run[3] for run in runs)
    assert 60 - 1 < slowest < 60 + 50 * 0.016, "a minute, on the clock of the slowest"
    assert runs[0][0][-1][2] < 0.05 * job.schedule.peak
    scores = steps // 100
    assert meeting.held - scores <= steps / 50 + 2, "they do not meet after every step of these"


def test_where_steps_are_slow_processes_agree_after_each(jobs: Jobs, tmp_path: Path, clock: Clock) -> None:
    job = jobs(tmp_path, max_epochs=10**6, max_minutes=1.0)
    runs, meeting = run_together(job, clock, (2.0, 3.0))
    assert runs[0][:3] == runs[1][:3]
    assert meeting.held == runs[0][2]
    assert max(run[3] for run in runs) <= 60 + 3.0


def test_a_signal_to_one_process_stops_all_after_the_same_step(jobs: Jobs, tmp_path: Path, clock: Clock) -> None:
    job = jobs(tmp_path, max_epochs=10**6)
    runs, _ = run_together(job, clock, (0.010, 0.011), stop=lambda rank, step: rank == 1 and step >= 123)
    assert [run[1:3] for run in runs] == [["stopped", runs[0][2]]] * 2
    assert 123 <= runs[0][2] <= 123 + 50
