"""What of the splits a run reads: the slices that the user chose to train on, and what blocks there see beside them."""

from __future__ import annotations

from dataclasses import dataclass

from denoise.patches.holdout import HoldOut
from denoise.tiles import Window
from denoise.volumes.part import part_of
from denoise.volumes.volume import SplitSet


@dataclass(frozen=True)
class TrainingPart:
    """Splits that nothing but whole slices is missing from, divided into what is trained on and what is held out."""

    splits: SplitSet
    holdout: HoldOut

    @classmethod
    def of(cls, splits: SplitSet, window: Window, fraction: float, chosen: range | None) -> TrainingPart:
        """Cut the splits to what blocks can reach; the division is that of the whole splits.

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
        if chosen is None:
            return cls(splits, HoldOut.of(splits.shape, window, fraction))
        reach = window.read_zyx[0]  # a block that is deeper than what is held out is centred on it
        part, first = part_of(splits, range(chosen[0] - reach, chosen[-1] + 1 + reach))
        inside = range(chosen[0] - first, chosen[-1] + 1 - first)
        return cls(part, HoldOut.of(part.shape, window, fraction, inside))
