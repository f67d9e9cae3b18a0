"""Networks that mix slices are trained on single slices of their blocks first, where a step costs a third."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from denoise.patches.sampler import BlockPlace, sliced
from denoise.tiles import Window
from denoise.training.job import TrainJob

#: Steps on single slices end with this share of the run, however short it is.
SHARE = 0.5
#: Taken of each block: with one block a step, as many voxels as four patches of its width have.
_OF_BLOCK = 4


@dataclass(frozen=True)
class SlicesFirst:
    """Which steps are made on single slices.

    Attributes
    ----------
    window
        Of the whole blocks.
    steps
        The first so many, unless minutes end them before.
    """

    window: Window
    steps: float

    @classmethod
    def of(cls, job: TrainJob, window: Window, steps_per_epoch: int) -> SlicesFirst:
        """As the job says; none of cubes, which are turned so that their slices lie across."""
        if window.is_cube:
            return cls(window, 0)
        return cls(window, min(job.slices_first, SHARE * job.settings.max_epochs * steps_per_epoch))

    def places(self, whole: Sequence[BlockPlace], step: int, done: float) -> list[BlockPlace]:
        """What is read for a step of the run, asked a step ahead where blocks are cut ahead.

        Parameters
        ----------
        whole
            The step's blocks.
        step
            Its number, from 0.
        done
            The share of the run that is done by now.
        """
        if step < self.steps and done < SHARE:
            return [part for place in whole for part in sliced(place, self.window, _OF_BLOCK)]
        return list(whole)

    def made(self, blocks: Tensor) -> bool:
        """Whether a batch (B, K, Z, Y, X) is of single slices."""
        return blocks.shape[2] < self.window.read_zyx[0]
