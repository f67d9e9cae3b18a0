"""What a run on some slices reads, and that it divides them as it would divide the whole volume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from denoise.errors import VolumeError
from denoise.modes import MODES
from denoise.networks.spec import NetworkSpec
from denoise.patches.holdout import HoldOut, Source
from denoise.patches.sampler import validation_places
from denoise.tiles import Region
from denoise.training.part import TrainingPart
from denoise.volumes import open_volume
from denoise.volumes.volume import ArrayVolume, SplitSet

WINDOWS = {
    "slices": MODES["2.5d"].window(NetworkSpec("residual2d", {"n_slices": 5}), 16, 0.0, "uniform"),
    "even number of slices": MODES["2.5d"].window(NetworkSpec("unet2d", {"n_slices": 4}), 16, 0.0, "uniform"),
    "flat blocks": MODES["3d"].window(NetworkSpec("residual3d", {"n_slices": 5}), 16, 0.0, "uniform"),
    "cubes": MODES["3d"].window(NetworkSpec("unet3d", {}), 16, 0.0, "uniform"),
}


def _splits(depth: int, rows: int) -> SplitSet:
    return SplitSet.of([ArrayVolume(np.zeros((depth, rows, 20), np.float32), f"split_{k}") for k in range(2)])


def _moved(region: Region, slices: int) -> Region:
    z, y, x = region.start_zyx
    return replace(region, start_zyx=(z + slices, y, x))


def _read_zs(region: Region, low: int, high: int) -> set[int]:
    """Slices that a block reads, where it is reflected at these faces."""
    found = set()
    for z in range(region.start_zyx[0], region.stop_zyx[0]):
        while high - low > 1 and not low <= z < high:
            z = 2 * low - z if z < low else 2 * (high - 1) - z
        found.add(min(max(z, low), high - 1))
    return found


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(sorted(WINDOWS)),
    depth=st.integers(1, 90),
    rows=st.integers(8, 40),
    ends=st.tuples(st.integers(0, 89), st.integers(1, 90)),
    fraction=st.floats(0.02, 0.4),
)
def test_the_division_is_that_of_the_whole_volume(
    kind: str, depth: int, rows: int, ends: tuple[int, int], fraction: float
) -> None:
    assume(ends[0] < ends[1] <= depth)
    window, splits, chosen = WINDOWS[kind], _splits(depth, rows), range(*ends)
    try:
        expected = HoldOut.of(splits.shape, window, fraction, chosen)
    except VolumeError:
        assume(False)
    part = TrainingPart.of(splits, window, fraction, chosen)
    first = part.splits.volumes[0].slice_numbers[0]
    assert _moved(part.holdout.held_out, first) == expected.held_out
    assert [range(s.z_starts[0] + first, s.z_starts[-1] + first + 1) for s in part.holdout.sources] == [
        range(s.z_starts[0], s.z_starts[-1] + 1) for s in expected.sources
    ]
    for mine, whole in zip(part.holdout.sources, expected.sources, strict=True):
        for z in (mine.z_starts[0], mine.z_starts[-1]):
            assert _of(mine, z, window.before_zyx[0], window.read_zyx, first) == _of(
                whole, z + first, window.before_zyx[0], window.read_zyx, 0
            )
    seen, whole_seen = (
        [_read_zs(place.region, place.box.start_zyx[0], place.box.stop_zyx[0]) for place in places]
        for places in (
            validation_places(part.holdout, window, part.splits.shape, 64),
            validation_places(expected, window, splits.shape, 64),
        )
    )
    assert [{z + first for z in zs} for zs in seen] == whole_seen
    # Of what lies outside, the nearest neighbours only, however few slices were chosen.
    used = range(part.used[0] + first, part.used[-1] + 1 + first)
    assert chosen[0] - used[0] <= window.before_zyx[0]
    assert used[-1] - chosen[-1] <= window.after_zyx[0]


def _of(source: Source, z: int, before: int, read: tuple[int, int, int], first: int) -> set[int]:
    """Slices of the whole volume that a training block reads."""
    low, high = source.box.start_zyx[0], source.box.stop_zyx[0]
    return {found + first for found in _read_zs(Region((z - before, 0, 0), read), low, high)}


def test_little_beside_the_chosen_slices_is_read() -> None:
    part = TrainingPart.of(_splits(500, 32), WINDOWS["slices"], 0.1, range(200, 240))
    numbers = part.splits.volumes[0].slice_numbers
    assert numbers == range(198, 242)


@pytest.mark.parametrize("kind", sorted(WINDOWS))
@pytest.mark.parametrize("layer", [1, 40])
def test_what_is_used_does_not_depend_on_what_is_stored_together(tmp_path: Path, kind: str, layer: int) -> None:
    """And no more is used than what blocks read: a slice next to that may be damaged."""
    paths = [tmp_path / f"{k}.h5" for k in range(2)]
    for path in paths:
        with h5py.File(path, "w") as file:
            file.create_dataset("volume", data=np.zeros((400, 32, 20), np.float32), chunks=(layer, 32, 20))
    splits = SplitSet.of([open_volume(path) for path in paths])
    window = WINDOWS[kind]
    part = TrainingPart.of(splits, window, 0.1, range(150, 250))
    used = part.splits.volumes[0].slice_numbers[part.used.start : part.used.stop]
    assert used == range(150 - window.before_zyx[0], 250 + window.after_zyx[0])


def test_all_slices_are_the_splits_themselves() -> None:
    splits = _splits(20, 32)
    assert TrainingPart.of(splits, WINDOWS["slices"], 0.1, None).splits is splits
    assert TrainingPart.of(splits, WINDOWS["slices"], 0.1, range(20)).splits is splits
    assert TrainingPart.of(splits, WINDOWS["slices"], 0.1, None).used == range(20)
