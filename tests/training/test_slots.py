"""How a slab is read: in parts that cover it once, of which no two ask for the same chunk."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest

from denoise.patches.holdout import HoldOut
from denoise.patches.sampler import SliceSampler
from denoise.patches.slabs import Division, Slab, divide
from denoise.tiles import Region, Triple, Window
from denoise.training import slots
from denoise.training.slots import Piece, pieces_of

WINDOW = Window((5, 8, 8), (1, 8, 8), (1, 8, 8), (2, 0, 0), "uniform")


def slab_of(start: Triple, shape: Triple) -> Slab:
    sampler = SliceSampler(HoldOut.of((40, 40, 40), WINDOW, 0.1), WINDOW, 0)
    return Slab(sampler.holdout.sources[0], (range(1), range(1), range(1)), Region(start, shape))


def chunks_in(region: Region, chunk: Triple) -> set[tuple[int, ...]]:
    axes = (range(s.start // c, -(-s.stop // c)) for s, c in zip(region.slices, chunk, strict=True))
    return set(product(*axes))


@pytest.mark.parametrize("piece_voxels", [10, 200, 3000, 10**6])
@pytest.mark.parametrize("chunk", [(1, 1, 1), (1, 1, 30), (4, 5, 6), (7, 30, 30), (64, 4, 4), (16, 16, 16)], ids=str)
@pytest.mark.parametrize(("start", "shape"), [((0, 0, 0), (20, 30, 30)), ((3, 7, 5), (11, 13, 17))], ids=str)
def test_parts_cover_a_slab_once_and_no_chunk_is_decoded_for_two(
    monkeypatch: pytest.MonkeyPatch, piece_voxels: int, chunk: Triple, start: Triple, shape: Triple
) -> None:
    monkeypatch.setattr(slots, "_PIECE_BYTES", 4 * piece_voxels)
    slab = slab_of(start, shape)
    pieces = pieces_of(slab, 2, 4, chunk)
    times = np.zeros((2, 40, 40, 40), int)
    for piece in pieces:
        assert piece.region.inside((40, 40, 40))
        times[(piece.split, *piece.region.slices)] += 1
    assert times.sum() == 2 * math.prod(shape)
    assert set(np.unique(times[(slice(None), *slab.region.slices)])) == {1}
    decoded = Counter((piece.split, place) for piece in pieces for place in chunks_in(piece.region, chunk))
    whole_lines = [c for c in chunk if c > 1]
    if whole_lines:
        assert set(decoded.values()) == {1}
    smallest = math.prod(min(c, n) for c, n in zip(chunk, shape, strict=True))
    assert max(math.prod(piece.region.shape_zyx) for piece in pieces) <= max(smallest, piece_voxels)


def test_what_a_part_of_an_enormous_chunk_takes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_PIECE_BYTES", 4 * 50)
    monkeypatch.setattr(slots, "_LARGEST_PIECE_BYTES", 4 * 400)
    pieces = pieces_of(slab_of((3, 0, 0), (20, 10, 10)), 1, 4, (30, 10, 10))
    assert [piece.region.shape_zyx[0] for piece in pieces] == [4] * 5


def test_files_with_slices_are_read_in_runs_of_them_and_enormous_ones_in_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_PIECE_BYTES", 4 * 250)
    runs = pieces_of(slab_of((0, 0, 0), (5, 10, 10)), 1, 4, (1, 1, 10))
    assert [piece.region.shape_zyx for piece in runs] == [(2, 10, 10), (2, 10, 10), (1, 10, 10)]
    rows = pieces_of(slab_of((0, 0, 0), (2, 40, 20)), 1, 4, (1, 1, 20))
    assert rows[0] == Piece(0, Region((0, 0, 0), (1, 12, 20)))
    assert [piece.region.shape_zyx[1] for piece in rows] == [12, 12, 12, 4] * 2


@pytest.mark.parametrize("chunk", [(32, 32, 32), (64, 64, 64), (100, 8, 8), (1, 128, 128)], ids=str)
def test_slabs_of_files_with_chunks_are_cut_so_that_little_is_decoded_twice(chunk: Triple) -> None:
    """Of all slabs together, against those that fit as well and were chosen as if any voxel were there by itself."""
    shape = (200, 128, 128)
    sampler = SliceSampler(HoldOut.of(shape, WINDOW, 0.1), WINDOW, 0)

    def decoded(division: Division) -> float:
        voxels = sum(len(chunks_in(slab.region, chunk)) for slab in division.slabs(sampler)) * math.prod(chunk)
        return voxels / math.prod(shape)

    budget = math.prod(shape) * 8 * 3 // 4
    aware, unaware = divide(sampler, 8, budget, chunk), divide(sampler, 8, budget)
    assert aware.bytes_of(aware.slabs(sampler), 8) <= budget
    assert decoded(aware) <= decoded(unaware)
    assert decoded(aware) < 4
