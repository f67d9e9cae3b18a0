"""How far a run has come and when it is over, the same on every process of it."""

from __future__ import annotations

import time

from denoise.launch import World
from denoise.training.job import TrainJob
from denoise.training.schedule import has_stopped_improving
from denoise.training.state import Progress

#: Several processes agree on the clock, and on whether to stop, about once a second, but within so many steps.
_MOST_STEPS_APART = 50
#: Before so many steps a run is not called finished: scores can rest for a while early on. Those of a real tooth did
#: after 768 steps, and the run ended with a held-out L1 of 0.2447 after 1280; after 2270 it was 0.2405, after 5150
#: 0.2343.
_FEWEST_STEPS = 1500
#: Scores that are no better than the best: of single ones the next is often better again.
_FEWEST_WORSE = 2


class Course:
    """The clock of a run, and its end: after its epochs, its minutes, or when it no longer improves.

    A resumed run has the minutes that it began with, unless it is given others: without them its rate, which may have
    fallen to zero, would be the first one again.

    Parameters
    ----------
    begun
        When this process began to work on the run, by ``time.monotonic``: reading the data counts.
    """

    def __init__(self, job: TrainJob, world: World, progress: Progress, steps_per_epoch: int, begun: float) -> None:
        self._job, self._world, self._progress = job, world, progress
        self._most_steps = job.settings.max_epochs * steps_per_epoch
        self._begun = begun - progress.elapsed
        self._agreed_seconds = progress.elapsed
        self._agree_at_step = 0
        self.minutes = progress.minutes = job.settings.max_minutes or progress.minutes
        self._steps_per_epoch = steps_per_epoch
        patience = job.settings.patience
        if patience is not None and (patience == 0 or 0 < progress.waited < patience):
            progress.flat_since = progress.waited = 0  # a run that had ended for that may be resumed to go on

    @property
    def seconds(self) -> float:
        """Since the run began; pauses between its parts are left out."""
        return time.monotonic() - self._begun

    @property
    def done(self) -> float:
        """Share of the run that is done, 1 when it is over."""
        last = self._most_steps
        if self._progress.flat_since:
            last = min(last, self._job.schedule.end_after(self._progress.flat_since))
        return min(max(self._progress.step / last, self._share_of_minutes), 1.0)

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return self._job.schedule.rate(self._progress.step, self.done)

    @property
    def reason(self) -> str:
        """Why it is over."""
        if self._share_of_minutes >= 1.0:
            return "its minute is used" if self.minutes == 1 else f"its {self.minutes:g} minutes are used"
        if self._progress.flat_since:
            since = self._progress.flat_since
            return (
                f"the held-out score had all but stopped improving at step {since}"
                + (", from where the learning rate fell to zero" if self._job.schedule.end_after(since) > since else "")
                + "; with train.patience: 0, --resume goes on"
            )
        return "all epochs done"

    @property
    def _share_of_minutes(self) -> float:
        if self.minutes is None or self._progress.step == 0:
            return 0.0
        # The last validation comes after the last step, and belongs to the minutes too.
        return self._agreed_seconds / max(60 * self.minutes - self._progress.validation_seconds, 1e-3)

    def agree(self, stopping: bool) -> bool:
        """Bring all processes to one clock after a step; returns whether they all stop now.

        Every rank must stop after the same step (one that stopped alone would leave the others waiting), and take
        every step at the same learning rate, which may follow the clock.
        """
        step = self._progress.step
        if step < self._agree_at_step:
            return False
        apart = step / max(self._progress.seconds, 1e-9) if self._world.size > 1 else 1.0
        mine = [float(stopping), self.seconds, min(max(apart, 1.0), _MOST_STEPS_APART)]
        stopped, self._agreed_seconds, apart = self._world.largest(mine)
        self._agree_at_step = step + int(apart)
        return stopped > 0

    def scored(self, error: float, seconds: float) -> None:
        """Note a held-out error, and how long it took to find it."""
        progress = self._progress
        progress.curve.append((progress.step, error))
        if not progress.flat_since and self._is_flat():
            progress.flat_since = progress.step
            progress.waited = progress.epoch - progress.best_epoch
        # The longest so far: a run that was over must not go on because its last score took less.
        progress.validation_seconds = max(progress.validation_seconds, self._world.largest([seconds])[0])

    def _is_flat(self) -> bool:
        patience, progress = self._job.settings.patience, self._progress
        if patience is None:
            may_end = self._job.schedule.ends_when_flat and progress.step >= _FEWEST_STEPS
            return may_end and has_stopped_improving(progress.curve)
        later = [step for step, _ in progress.curve if step > progress.best_epoch * self._steps_per_epoch]
        return patience > 0 and progress.epoch - progress.best_epoch >= patience and len(later) >= _FEWEST_WORSE
