"""Splits are read in portions: none twice, none cut out of what is stored together, no more memory than was planned."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from denoise.errors import VolumeError
from denoise.launch import World
from denoise.modes import MODES
from denoise.networks.spec import NetworkSpec
from denoise.patches.holdout import HoldOut
from denoise.patches.sampler import validation_places
from denoise.tiles import Region, Triple, Window
from denoise.training.data import ResidentBlocks, bytes_per_voxel, resident_bytes
from denoise.training.footprint import Footprint
from denoise.training.memory_plan import plan_memory
from denoise.training.reading import Pieces, common_dtype, sampled_normalization
from denoise.training.validation import MOST_BLOCKS
from denoise.volumes import ArrayVolume
from denoise.volumes.volume import SplitSet

Splits = Callable[..., SplitSet]


@dataclass(frozen=True)
class Watched(ArrayVolume):
    """A volume in layers that notes which slices were read, and how many reads went on at a time."""

    layer: int = 1
    reads: list[range] = field(default_factory=list)
    going_on: list[int] = field(default_factory=list)
    most: list[int] = field(default_factory=list)

    @property
    def chunk_zyx(self) -> Triple:
        return (self.layer, 1, 1)

    def read_stored(self, region: Region) -> NDArray[Any]:
        self.going_on.append(1)
        self.most.append(len(self.going_on))
        time.sleep(0.005)
        self.reads.append(range(region.start_zyx[0], region.stop_zyx[0]))
        found = super().read_stored(region)
        self.going_on.pop()
        return found


def watched(shape: tuple[int, int, int], layer: int) -> SplitSet:
    rng = np.random.default_rng(3)
    return SplitSet.of([Watched(rng.normal(0, 1, shape).astype(np.float32), f"split {k}", layer=layer) for k in (0, 1)])


def read(splits: SplitSet, world: World) -> ResidentBlocks:
    return ResidentBlocks.read(splits, world, common_dtype(splits), "error", None)


@pytest.mark.parametrize(("depth", "layer", "piece"), [(23, 5, 5), (23, 1, 1), (3, 5, 5), (24, 8, 16)])
def test_layers_that_are_stored_together_are_read_once_and_whole(
    cpu: World, monkeypatch: pytest.MonkeyPatch, depth: int, layer: int, piece: int
) -> None:
    monkeypatch.setattr("denoise.training.reading._PIECE_BYTES", 9 * 32 * 32 * 4 if layer == 8 else 1)
    splits = watched((depth, 32, 32), layer)
    read(splits, cpu).close()
    for volume in splits.volumes:
        assert isinstance(volume, Watched)
        found = sorted(volume.reads, key=lambda r: r.start)
        assert found == [range(z, min(z + piece, depth)) for z in range(0, depth, piece)]


def test_a_layer_too_large_to_be_held_is_read_in_parts(cpu: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denoise.training.reading._MOST_OF_A_LAYER", 5 * 32 * 32 * 4 - 1)
    monkeypatch.setattr("denoise.training.reading._PIECE_BYTES", 2 * 32 * 32 * 4)
    splits = watched((10, 32, 32), 5)
    read(splits, cpu).close()
    assert max(len(r) for volume in splits.volumes for r in volume.reads) == 2


def test_large_slices_are_not_all_read_at_once(cpu: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denoise.training.reading._PIECE_BYTES", 1)
    for at_once, threads in ((10**9, 4), (2 * 32 * 32 * 4, 2), (1, 1)):
        monkeypatch.setattr("denoise.training.reading._AT_ONCE_BYTES", at_once)
        splits = watched((16, 32, 32), 1)
        assert Pieces.of(splits).threads == threads
        read(splits, cpu).close()
        assert max(n for volume in splits.volumes for n in volume.most) <= threads


def test_chunks_of_several_slices_are_planned_for_while_slabs_are_read() -> None:
    window = Window((3, 32, 32), (1, 32, 32), (1, 32, 32), (1, 0, 0))
    footprint = Footprint(NetworkSpec("residual2d", {"n_slices": 3}), window, "cpu", 1, 1, 2, 4)
    splits = SplitSet.of([Watched(np.zeros((64, 128, 128), np.float32), f"split {k}", layer=8) for k in (0, 1)])
    chunk = 8 * 4
    part = HoldOut.of(splits.shape, window, 0.1)
    sampler = MODES["2.5d"].sampler(part, window, 0, True, 1, 8)
    allowed = footprint.bytes + resident_bytes(splits) // 2
    plan = plan_memory(splits, sampler, footprint, allowed)
    assert plan.division is not None
    places = validation_places(part, window, splits.shape, MOST_BLOCKS)
    kept = len(places) * 2 * 4 * 3 * 32 * 32
    slabs = plan.division.bytes_of(plan.division.slabs(sampler), bytes_per_voxel(splits))
    assert plan.data_bytes == slabs + kept + 3 * chunk
    assert plan.data_bytes + footprint.bytes <= allowed
    with pytest.raises(VolumeError, match=r"0\.0 MB of training data.* chunks of 8 x 1 x 1 voxels \(split 0\)"):
        plan_memory(splits, sampler, footprint, footprint.bytes + 1000)


def test_what_follows_a_slice_that_cannot_be_used_is_not_read(cpu: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denoise.training.reading._PIECE_BYTES", 1)
    splits = watched((400, 16, 16), 1)
    splits.volumes[0].array[3, 2, 2] = np.nan
    with pytest.raises(VolumeError, match="in slice 3;"):
        read(splits, cpu)
    assert sum(len(volume.reads) for volume in splits.volumes) < 400
    assert threading.active_count() < 10


@pytest.mark.parametrize("libraries", [0, 50_000_000])
def test_what_reading_takes_is_planned_for_where_it_is_more_than_what_comes_with_the_first_step(
    libraries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoise.training.footprint.first_step_bytes", lambda device_type: libraries)
    window = Window((3, 32, 32), (1, 32, 32), (1, 32, 32), (1, 0, 0))
    footprint = Footprint(NetworkSpec("residual2d", {"n_slices": 3}), window, "cpu", 1, 1, 2, 4)
    small, large = (
        SplitSet.of([ArrayVolume(np.zeros((2, edge, edge), np.float32), f"split {k}") for k in (0, 1)])
        for edge in (64, 4096)
    )
    assert plan_memory(small, None, footprint, None).data_bytes == resident_bytes(small)
    reading = Pieces.of(large).bytes
    assert reading > footprint.not_yet_bytes == footprint.step_bytes + libraries
    assert (
        plan_memory(large, None, footprint, None).data_bytes
        == resident_bytes(large) + reading - footprint.not_yet_bytes
    )
    two = replace(footprint, processes=2)
    assert plan_memory(large, None, two, None).data_bytes == resident_bytes(large) + 2 * (reading - two.not_yet_bytes)


@pytest.mark.parametrize("looked_at", ["all", "some"])
@pytest.mark.parametrize("value", [1e30, -3.4e38, 1e8])
def test_a_slice_of_fill_values_beside_which_all_else_is_nothing_is_named(
    cpu: World, looked_at: str, value: float
) -> None:
    splits = watched((9, 32, 32), 1)
    splits.volumes[1].array[6, 2, 2] = value
    with pytest.raises(VolumeError, match=r"slice 6 of .* has a standard deviation of .* mean something else"):
        read(splits, cpu) if looked_at == "all" else sampled_normalization(splits, cpu, "error")


@pytest.mark.parametrize(("empty", "noise"), [(7, 1e-3), (7, 1e-9), (6, 1e-9), (6, 0.0)])
def test_an_object_beside_air_is_no_slice_of_fill_values(cpu: World, empty: int, noise: float) -> None:
    splits = watched((9, 32, 32), 1)
    for volume in splits.volumes:
        volume.array[:empty] *= noise
    read(splits, cpu).close()


def test_values_that_no_reconstruction_has_are_no_object_in_however_many_slices(cpu: World) -> None:
    splits = watched((9, 32, 32), 1)
    splits.volumes[0].array[[2, 6], 3, 3] = [1e29, 1e30]
    with pytest.raises(VolumeError, match=r"slice 6 of .* mean something else"):
        read(splits, cpu)


@pytest.mark.parametrize(("deviation", "told"), [(6.0, True), (200.0, False)])
def test_grey_values_that_single_precision_cannot_tell_apart_are_refused(
    cpu: World, rng: np.random.Generator, deviation: float, told: bool
) -> None:
    arrays = [1e9 + deviation * rng.standard_normal((4, 32, 32)) for _ in range(2)]
    splits = SplitSet.of([ArrayVolume(array, f"split {k}") for k, array in enumerate(arrays)])
    if told:
        with pytest.raises(VolumeError, match=r"split 0 are 1000000000 \+- 6.*, and single .* steps of 64 there"):
            sampled_normalization(splits, cpu, "error")
    else:
        sampled_normalization(splits, cpu, "error")


def test_fill_values_in_many_slices_are_warned_of(cpu: World, caplog: pytest.LogCaptureFixture) -> None:
    splits = watched((9, 32, 32), 1)
    splits.volumes[0].array[[2, 6], 3, 3] = 1e9
    read(splits, cpu).close()
    assert "if that is not the object beside slices of nothing, but fill values" in caplog.text


def test_slices_of_no_data_are_no_offset(cpu: World, rng: np.random.Generator) -> None:
    arrays = [1e-3 * rng.standard_normal((9, 32, 32)) for _ in range(2)]
    for array in arrays:
        array[:7] = -32768.0
    splits = SplitSet.of([ArrayVolume(array, f"split {k}") for k, array in enumerate(arrays)])
    sampled_normalization(splits, cpu, "error")
