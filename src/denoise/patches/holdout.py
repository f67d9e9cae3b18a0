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
    """Training sources and the held-out region of one volume.

    Attributes
    ----------
    near
        Slices that may be read: those that the user chose, and their neighbours as far as the context reaches. None:
        all.
    """

    sources: tuple[Source, ...]
    held_out: Region
    near: range | None = None

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
            Neighbours outside are read too.
        """
        if min(shape[1:]) < _SMALLEST_SCORED:
            raise VolumeError(f"slices of {shape[1]} x {shape[2]} voxels are too small to train on; {_LEAST}")
        limits = (train_z[0], train_z[-1] + 1) if train_z else (0, shape[0])
        within = (max(0, limits[0] - window.before_zyx[0]), min(shape[0], limits[1] + window.after_zyx[0]))
        near = range(*within) if train_z else None
        depth = limits[1] - limits[0]
        band = max(1, round(fraction * depth))
        places = ((limits[0] + limits[1] - band) // 2, limits[1] - band)
        middle, end = (
            cls(
                _slices_around(shape, window, limits, (start, start + band)),
                Region.of_slices(start, start + band, shape),
                near,
            )
            for start in places
        )
        # The middle of a sample is its most typical part, unless a band there leaves few places for blocks.
        prefer_end = middle._places(window) < _SHARE_IN_THE_MIDDLE * end._places(window)
        for candidate in (end, middle) if prefer_end else (middle, end):
            if 2 * candidate._trained_slices(window) > depth - band:
                return candidate
        return cls._of_rows(shape, window, fraction, limits, near)

    def _deep_enough(self, window: Window) -> list[Source]:
        """Sources where at most half of a block is reflected."""
        return [source for source in self.sources if 2 * source.box.shape_zyx[0] >= window.read_zyx[0]]

    def _places(self, window: Window) -> int:
        return sum(len(source.z_starts) for source in self._deep_enough(window))

    def _trained_slices(self, window: Window) -> int:
        """Slices that some block predicts."""
        deep = self._deep_enough(window)
        return sum(min(len(s.z_starts) - 1 + window.predict_zyx[0], s.box.shape_zyx[0]) for s in deep)

    @classmethod
    def _of_rows(
        cls, shape: Triple, window: Window, fraction: float, limits: tuple[int, int], near: range | None
    ) -> HoldOut:
        rows, columns = shape[1:]
        if rows < _FEWEST_ROWS:
            raise VolumeError(
                f"{shape[0]} slices of {rows} x {columns} voxels are too few and too small to hold out a part; {_LEAST}"
            )
        band = max(_SMALLEST_SCORED, round(fraction * rows))
        # In the middle, where the sample is, if patches still fit on both sides; otherwise at the end.
        side = (rows - band) // 2
        start = side if side >= window.read_zyx[1] // 2 else rows - band
        # The z axis is not divided, so blocks have their true neighbours there.
        first, last = (near[0], near[-1] + 1) if near else (0, shape[0])
        starts = range(limits[0], max(limits[0], limits[1] - window.predict_zyx[0]) + 1)
        sources = tuple(
            Source(Region((first, low, 0), (last - first, high - low, columns)), starts)
            for low, high in ((0, start), (start + band, rows))
            if high > low
        )
        return cls(sources, Region((limits[0], start, 0), (limits[1] - limits[0], band, columns)), near)


#: The scores of sharpness need three voxels in a row; both parts get at least that.
_SMALLEST_SCORED = 3
_FEWEST_ROWS = 8
_LEAST = f"expected at least {_SMALLEST_SCORED} x {_SMALLEST_SCORED}, or {_FEWEST_ROWS} rows where slices are few"
_SHARE_IN_THE_MIDDLE = 0.6


def _slices_around(shape: Triple, window: Window, limits: tuple[int, int], band: tuple[int, int]) -> tuple[Source, ...]:
    """The parts before and after the band.

    At the limits blocks read on (to the true neighbours, or reflections at a face of the volume), at the band they
    read nothing of it. Its gap is the deeper side of the context, as with an even number of slices what validation
    reads reaches further to one side than what training reads does to the other.
    """
    before, predict, after = window.before_zyx[0], window.predict_zyx[0], window.after_zyx[0]
    gap = max(before, after)
    below = Source(
        Region.of_slices(max(0, limits[0] - before), band[0], shape),
        _starts(limits[0], band[0] - gap - predict, band[0] - limits[0], window),
    )
    above = Source(
        Region.of_slices(band[1], min(shape[0], limits[1] + after), shape),
        _starts(band[1] + gap, limits[1] - predict, limits[1] - band[1], window),
    )
    return tuple(source for source in (below, above) if len(source.z_starts) > 0)


def _starts(first: int, last: int, depth: int, window: Window) -> range:
    if 0 < depth < window.predict_zyx[0]:
        return range(first, first + 1)  # shallower than one cube: read from its start and reflected at its end
    return range(first, last + 1)
