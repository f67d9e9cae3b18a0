"""The training part of a volume in slabs, for splits of which only a few slabs are in memory at a time.

What is divided are the *places* where blocks start, not the voxels: every place belongs to exactly one slab, and a slab
is read with all that the blocks which start in it read. So no place is lost or doubled at a border between two slabs,
and a block is the same whether it is cut from a slab or from the whole volume. Integers only; no voxel is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from denoise.errors import VolumeError
from denoise.patches.holdout import Source
from denoise.patches.sampler import VolumeSampler
from denoise.tiles import Region, Triple, Window, reflect_indices

#: A slab is not deeper than this many starts, or twice a block, or twice a layer of slices that are stored together:
#: thin slabs are many, which mixes what is in memory, and in 2.5D those of 16 slices read only a quarter more than
#: they predict.
_DEEPEST = 16
#: What few slabs cost: with 4 slots, twice the reading would be done to have very many, with 16 a quarter more. It is
#: not only that one slot is always being read: the fewer, the longer a network is trained on the same ones.
_MIXING = 4
#: With fewer, the blocks of a batch come from too few places of the sample.
FEWEST_RESIDENT = 3


@dataclass(frozen=True)
class Slab:
    """A box of places where blocks start.

    Attributes
    ----------
    source
        The part of the volume that it belongs to: its blocks are reflected at the faces of that, as without slabs.
    starts_zyx
        Where predicted parts start along z, and where blocks start along y and x.
    region
        Everything that those blocks read.
    """

    source: Source
    starts_zyx: tuple[range, range, range]
    region: Region

    @property
    def places(self) -> int:
        """How many blocks can be cut from it."""
        return math.prod(len(starts) for starts in self.starts_zyx)

    @property
    def voxels(self) -> int:
        """How many voxels are read, of each split."""
        return math.prod(self.region.shape_zyx)


@dataclass(frozen=True)
class Division:
    """How fine the training part is divided, and how many slabs are in memory: what decides which blocks are drawn.

    Attributes
    ----------
    most_starts_zyx
        A slab has at most so many starts along each axis.
    resident
        How many slabs blocks are drawn from at a time. Memory holds one more, which is being read, unless these are
        all.
    """

    most_starts_zyx: Triple
    resident: int

    def as_plain(self) -> list[int]:
        """For a file."""
        return [*self.most_starts_zyx, self.resident]

    @classmethod
    def of_plain(cls, plain: Sequence[int] | None) -> Division | None:
        """From a file."""
        if plain is None:
            return None
        z, y, x, resident = plain
        return cls((z, y, x), resident)

    def slabs(self, sampler: VolumeSampler) -> tuple[Slab, ...]:
        """The slabs, in order of place; along each axis of a source their sizes differ by one start at most."""
        return tuple(
            slab for source in sampler.holdout.sources for slab in _slabs_of(source, sampler, self.most_starts_zyx)
        )

    def slots(self, slabs: Sequence[Slab]) -> int:
        """How many slabs there is memory for."""
        return min(self.resident + 1, len(slabs))

    def bytes_of(self, slabs: Sequence[Slab], bytes_per_voxel: int) -> int:
        """Memory that they take; every slot is as large as the largest slab."""
        return self.slots(slabs) * max(slab.voxels for slab in slabs) * bytes_per_voxel


def divide(sampler: VolumeSampler, bytes_per_voxel: int, budget: int, chunk_zyx: Triple = (1, 1, 1)) -> Division:
    """The division for which the least is read, among those of which enough slabs fit.

    Of files with slices, whole slices where that is possible; bands of rows of a few slices where slices are enormous;
    parts of the columns only where little else is left. Of files with chunks, slabs of about their size and more.

    Parameters
    ----------
    bytes_per_voxel
        Of all splits together.
    budget
        Bytes for all slots.
    chunk_zyx
        What is read of a file at once, whatever is asked for: boxes that begin at multiples of it.

    Raises
    ------
    VolumeError
        Not even slabs that hold one block each fit.
    """
    starts = [_starts(source, sampler) for source in sampler.holdout.sources]
    longest = [max(len(axes[axis]) for axes in starts) for axis in range(3)]
    window = sampler.window
    deepest = -(-max(_DEEPEST, 2 * window.read_zyx[0], 2 * chunk_zyx[0]) // sampler.z_stride)
    choices = [_halvings(min(deepest, longest[0])), _fractions(longest[1]), _fractions(longest[2])]
    # Of every source and axis, for each choice.
    along = [
        [
            {
                n: _Cut.of(
                    [_reads(piece, window, axis) for piece in _pieces(axes[axis], n)],
                    range(source.box.start_zyx[axis], source.box.stop_zyx[axis]),
                    chunk_zyx[axis],
                )
                for n in choices[axis]
            }
            for axis in range(3)
        ]
        for source, axes in zip(sampler.holdout.sources, starts, strict=True)
    ]
    best: tuple[float, Triple, int] | None = None
    for z, y, x in product(*choices):
        cuts = [(axes[0][z], axes[1][y], axes[2][x]) for axes in along]
        count = sum(math.prod(cut.count for cut in axes) for axes in cuts)
        largest = max(math.prod(cut.largest for cut in axes) for axes in cuts)
        slots = min(budget // (largest * bytes_per_voxel), count)
        read = sum(math.prod(cut.read for cut in axes) for axes in cuts)
        cost = read * (1 + _MIXING / slots if 0 < slots < count else 1)
        if slots >= min(FEWEST_RESIDENT + 1, count) and (best is None or cost < best[0]):
            best = cost, (z, y, x), slots if slots == count else slots - 1
    if best is None:
        needed = (FEWEST_RESIDENT + 1) * math.prod(window.read_zyx) * bytes_per_voxel
        raise VolumeError(
            f"there is memory for {max(budget, 0) / 1e6:.1f} MB of training data; expected at least "
            f"{needed / 1e6:.1f} MB, {FEWEST_RESIDENT + 1} times what one patch reads of all splits: allow more "
            "memory, or lower the patch size"
        )
    return Division(best[1], best[2])


@dataclass(frozen=True)
class _Cut:
    """An axis of a source in pieces.

    Attributes
    ----------
    read
        Voxels that are read of files for all pieces together.
    largest
        Voxels that are kept of the largest; reflection makes it a little less.
    """

    read: int
    largest: int
    count: int

    @classmethod
    def of(cls, pieces: Sequence[range], box: range, chunk: int) -> _Cut:
        """Pieces of blocks that read these voxels of a box, which are stored in such chunks."""
        read = 0
        for piece in pieces:
            first, stop = max(piece.start, box.start), min(piece.stop, box.stop)
            read += -(-stop // chunk) * chunk - first // chunk * chunk
        return cls(read, max(min(len(piece), len(box)) for piece in pieces), len(pieces))


def _reads(starts: range, window: Window, axis: int) -> range:
    """What blocks with these starts read along an axis, reflections left aside."""
    first = starts[0] - (window.before_zyx[0] if axis == 0 else 0)
    return range(first, first + starts[-1] - starts[0] + window.read_zyx[axis])


def _slabs_of(source: Source, sampler: VolumeSampler, most: Triple) -> Iterator[Slab]:
    window, box = sampler.window, source.box
    pieces = [_pieces(starts, n) for starts, n in zip(_starts(source, sampler), most, strict=True)]
    extents = [
        [_extent(starts, before, read, low, size) for starts in along]
        for along, before, read, low, size in zip(
            pieces, (window.before_zyx[0], 0, 0), window.read_zyx, box.start_zyx, box.shape_zyx, strict=True
        )
    ]
    for k, j, i in product(*(range(len(along)) for along in pieces)):
        (z, depth), (y, height), (x, width) = extents[0][k], extents[1][j], extents[2][i]
        yield Slab(source, (pieces[0][k], pieces[1][j], pieces[2][i]), Region((z, y, x), (depth, height, width)))


def _starts(source: Source, sampler: VolumeSampler) -> tuple[range, range, range]:
    """Where blocks of a source start, as the samplers of whole volumes have it."""
    y, x = (
        range(source.box.start_zyx[axis], source.box.start_zyx[axis] + _places_along(source, sampler.window, axis))
        for axis in (1, 2)
    )
    return source.z_starts[:: sampler.z_stride], y, x


def _places_along(source: Source, window: Window, axis: int) -> int:
    return max(source.box.shape_zyx[axis] - window.read_zyx[axis], 0) + 1


def _pieces(starts: range, most: int) -> list[range]:
    """Runs of at most so many, whose lengths differ by one at most."""
    count = -(-len(starts) // most)
    return [starts[i * len(starts) // count : (i + 1) * len(starts) // count] for i in range(count)]


def _extent(starts: range, before: int, read: int, low: int, size: int) -> tuple[int, int]:
    """First coordinate and number of those that these blocks read along an axis, reflections at the box resolved."""
    first, last = starts[0] - before, starts[-1] - before
    if first < low or last + read > low + size:
        found = [reflect_indices(start - before, read, low, low + size) for start in starts]
        first = min(int(indices.min()) for indices in found)
        return first, max(int(indices.max()) for indices in found) + 1 - first
    return first, last + read - first


def _halvings(length: int) -> list[int]:
    """The length, half of it, a quarter, ... 1."""
    return [length] + [-(-length // 2**k) for k in range(1, length.bit_length())] + ([1] if length > 1 else [])


def _fractions(length: int) -> list[int]:
    """The length divided by 1, 2, 3, ... 64, and by powers of two from there on."""
    return list(dict.fromkeys([-(-length // n) for n in range(1, 65)] + _halvings(length)))
