"""Which part of a volume is trained on and which is held out to score the model.

The held-out part is a band of slices. No training block reads any of them, and (2.5D) a gap as deep as the network's
context in z keeps training targets out of what the validation blocks read. Where a volume has too few slices for a
band, it is a band of rows instead, so that a single slice can be trained on and scored honestly.
"""

from __future__ import annotations

from dataclasses import dataclass

from denoise.errors import VolumeError
from denoise.tiles import Region, Triple, Window


@dataclass(frozen=True)
class Source:
    """A part of the volume that training blocks are cut from.

    Blocks read only inside ``box``; what would lie outside is reflected at its faces. Predicted parts start in z at
    one of ``z_starts``.
    """

    box: Region
    z_starts: range


@dataclass(frozen=True)
class HoldOut:
    """Training sources and the held-out region of one volume."""

    sources: tuple[Source, ...]
    held_out: Region

    @classmethod
    def of(cls, shape: Triple, window: Window, fraction: float, train_z: range | None = None) -> HoldOut:
        """Divide a volume.

        Parameters
        ----------
        shape
            (Z, Y, X) of the volume.
        window
            What a training block reads and predicts.
        fraction
            Share of the slices to hold out; at least one.
        train_z
            Slices (counted from 0) that the user wants to train on; None for all.
        """
        z_low, z_high = (train_z[0], train_z[-1] + 1) if train_z else (0, shape[0])
        depth = z_high - z_low
        band = max(1, round(fraction * depth))
        for start in ((z_low + z_high - band) // 2, z_high - band):
            sources = _slices_around(shape, window, (z_low, z_high), (start, start + band))
            if _enough(sources, window, depth - band):
                return cls(sources, Region.of_slices(start, start + band, shape))
        return cls._of_rows(shape, window, fraction, (z_low, z_high))

    @classmethod
    def _of_rows(cls, shape: Triple, window: Window, fraction: float, z_range: tuple[int, int]) -> HoldOut:
        if shape[1] < 2:
            raise VolumeError(
                f"a volume of shape {shape} has neither slices nor rows to hold out; expected at least 2 rows"
            )
        band = max(1, round(fraction * shape[1]))
        rows = shape[1] - band
        z_low, z_high = z_range
        depth = z_high - z_low
        train = Region((z_low, 0, 0), (depth, rows, shape[2]))
        held_out = Region((z_low, rows, 0), (depth, band, shape[2]))
        starts = range(z_low, max(z_low, z_high - window.predict_zyx[0]) + 1)
        return cls((Source(train, starts),), held_out)


def _slices_around(shape: Triple, window: Window, limits: tuple[int, int], band: tuple[int, int]) -> tuple[Source, ...]:
    before, predict, after = window.before_zyx[0], window.predict_zyx[0], window.after_zyx[0]
    sources = []
    for low, high in ((limits[0], band[0]), (band[1], limits[1])):
        # At a true face of the volume a block may read reflections, as it does at inference; at the band it may not.
        first = low if low == 0 else low + before
        last = (high if high == shape[0] else high - after) - predict
        if high - low < window.read_zyx[0] and window.before_zyx[0] == 0:
            last = low  # a source shallower than one cube: read from its start and reflect at its end
        starts = range(first, last + 1) if high > low else range(0)
        if len(starts) > 0:
            sources.append(Source(Region.of_slices(low, high, shape), starts))
    return tuple(sources)


def _enough(sources: tuple[Source, ...], window: Window, slices_left: int) -> bool:
    """Whether a band at this place leaves most of the other slices to train on, in sources deeper than a block."""
    covered = sum(s.box.shape_zyx[0] for s in sources if s.box.shape_zyx[0] >= window.read_zyx[0])
    return covered > slices_left // 2
