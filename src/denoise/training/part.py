"""What of the splits a run reads: the slices that the user chose to train on, and what blocks there see beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from denoise.config import RunConfig, TrainSection
from denoise.patches.holdout import HoldOut
from denoise.patches.sampler import validation_places
from denoise.seen import Seen
from denoise.tiles import Triple, Window, reflect_indices
from denoise.training.validation import MOST_BLOCKS
from denoise.volumes.part import part_of
from denoise.volumes.volume import SplitSet, slice_range

#: From here on equivariant weights are better however long the run; docs/network-study.md, "Directions that are alike".
_MANY_VOXELS = 8_000_000


@dataclass(frozen=True)
class TrainingPart:
    """Splits that nothing but whole slices is missing from, divided into what is trained on and what is held out.

    Attributes
    ----------
    splits
        From the first slice that is read to the last, and what is stored together with these.
    holdout
        The division of the whole splits, counted from the part's first slice.
    used
        Slices of the part that blocks read: of the others nothing matters, whatever is in them.
    voxels
        Of each split, in the slices that are trained on or held out.
    """

    splits: SplitSet
    holdout: HoldOut
    used: range
    voxels: int

    @classmethod
    def of(cls, splits: SplitSet, window: Window, fraction: float, chosen: range | None) -> TrainingPart:
        """Cut the splits to what blocks read.

        Parameters
        ----------
        window
            What a training block reads and predicts.
        fraction
            Share of the slices to hold out.
        chosen
            Slices (counted from 0) to train on; None for all.

        Raises
        ------
        VolumeError
            Too few and too small slices to hold out a part.
        """
        whole = HoldOut.of(splits.shape, window, fraction, chosen)
        if chosen is None:
            return cls(splits, whole, range(splits.shape[0]), math.prod(splits.shape))
        read = list(_read(whole, window, splits.shape))
        used = range(min(z for z, _ in read), max(z for _, z in read) + 1)
        part, first = part_of(splits, used)
        moved = range(chosen[0] - first, chosen[-1] + 1 - first)
        holdout = HoldOut.of(part.shape, window, fraction, moved)
        voxels = len(chosen) * math.prod(splits.shape[1:])
        return cls(part, holdout, range(used[0] - first, used[-1] + 1 - first), voxels)

    def seen(self) -> Seen:
        """What the model will have been trained on; reads a few rows of some slices.

        Raises
        ------
        VolumeError
            A slice cannot be read.
        """
        return Seen.of(self.splits, self.used, self.holdout.held_out)

    def wants_symmetry(self, settings: TrainSection) -> bool:
        """Whether a new network is to treat directions alike: as the config says, or as the data are many."""
        by_itself = settings.augment and self.voxels >= _MANY_VOXELS
        return by_itself if settings.symmetric is None else settings.symmetric


def training_slices(config: RunConfig, splits: SplitSet) -> range | None:
    """The slices that a config says to train on, counted from 0; None for all.

    Raises
    ------
    VolumeError
        They do not exist.
    """
    first, last = config.dataset.train_start_slice, config.dataset.train_end_slice
    return None if first is None and last is None else slice_range(splits.volumes[0], first, last)


def _read(holdout: HoldOut, window: Window, shape: Triple) -> Iterator[tuple[int, int]]:
    """First and last slice that blocks read; of training blocks those at both ends of their sources."""
    depth = window.read_zyx[0]
    blocks = [
        (z - window.before_zyx[0], source.box.start_zyx[0], source.box.stop_zyx[0])
        for source in holdout.sources
        for z in (source.z_starts[0], source.z_starts[-1])
    ]
    scored = validation_places(holdout, window, shape, MOST_BLOCKS)
    blocks += [(place.region.start_zyx[0], place.box.start_zyx[0], place.box.stop_zyx[0]) for place in scored]
    for start, low, high in blocks:
        indices = reflect_indices(start, depth, low, high)
        yield int(indices.min()), int(indices.max())
