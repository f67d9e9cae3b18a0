"""Blocks from a few slabs in memory: the same as from the files, in bounded memory, and errors instead of waiting."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from denoise.errors import DenoiseError, VolumeError, WorkerError
from denoise.launch import World
from denoise.modes import MODES
from denoise.networks.spec import NetworkSpec
from denoise.normalization import Normalization
from denoise.patches.holdout import HoldOut
from denoise.patches.sampler import BlockPlace, VolumeSampler, validation_places
from denoise.patches.slabs import Division, divide
from denoise.patches.turns import SlabSampler
from denoise.tiles import Region, Triple
from denoise.training import reading, slots
from denoise.training.cache import CachedBlocks
from denoise.training.reading import sampled_normalization
from denoise.volumes import create_sink, open_volume
from denoise.volumes.volume import ArrayVolume, SplitSet, read_reflected

SHAPE = (40, 26, 24)
DIVISION = Division((6, 5, 1000), 3)
KNOWN = Normalization(100.0, 30.0)
Splits = Callable[..., SplitSet]


def whole_sampler(mode: str, shape: Triple = SHAPE, edge: int = 8) -> VolumeSampler:
    network = NetworkSpec({"2.5d": "residual2d", "3d": "residual3d"}[mode], {})
    window = MODES[mode].window(network, edge, 0.0, "uniform")
    return MODES[mode].sampler(HoldOut.of(shape, window, 0.1), window, 0)


def noise(shape: Triple = SHAPE, dtype: str = "float32") -> list[NDArray[Any]]:
    rng = np.random.default_rng(3)
    return [rng.normal(100, 30, shape).astype(dtype) for _ in range(2)]


def requests(sampler: SlabSampler, rounds: float, batch: int = 4, share: slice = slice(None)) -> list[list[BlockPlace]]:
    """Batches, epoch after epoch; of each a share."""
    steps = math.ceil(sampler.epoch_size / batch)
    wanted = math.ceil(rounds * sampler.turns.blocks_per_round / batch)
    indices = list(range(batch))[share]
    return [sampler.places(i // steps, [i % steps * batch + k for k in indices]) for i in range(wanted)]


def sampler_and_blocks(
    splits: SplitSet,
    cpu: World,
    mode: str = "2.5d",
    division: Division = DIVISION,
    non_finite: str = "error",
    normalization: Normalization | None = KNOWN,
) -> tuple[SlabSampler, CachedBlocks]:
    whole = whole_sampler(mode, splits.shape)
    sampler = SlabSampler(whole, division, -(-whole.epoch_size // 4) * 4)
    return sampler, CachedBlocks.open(splits, sampler.turns, cpu, non_finite, normalization)


@pytest.mark.parametrize("dtype", ["float32", "uint16", "float64"])
@pytest.mark.parametrize("mode", ["2.5d", "3d"])
def test_blocks_are_what_is_read_from_the_files(mode: str, dtype: str, splits_of: Splits, cpu: World) -> None:
    """Over two rounds: every slab is loaded, given up and loaded again; blocks at all faces are among them."""
    splits = splits_of(noise(dtype=dtype))
    sampler, blocks = sampler_and_blocks(splits, cpu, mode)
    wanted = requests(sampler, 2.2)
    reflected = 0
    for places, batch in zip(wanted, blocks.batches(iter(wanted)), strict=True):
        for place, block in zip(places, batch, strict=True):
            read = np.stack([read_reflected(volume, place.region, place.box) for volume in splits.volumes])
            turned = torch.from_numpy(np.ascontiguousarray(place.symmetry.apply(read)))
            assert torch.equal(block, KNOWN.apply(turned))
            reflected += not Region(
                tuple(a - b for a, b in zip(place.region.start_zyx, place.box.start_zyx, strict=True)),  # type: ignore[arg-type]
                place.region.shape_zyx,
            ).inside(place.box.shape_zyx)
    assert mode == "3d" or reflected > 10
    blocks.close()


@dataclass(frozen=True)
class Recorded(ArrayVolume):
    """An array that notes what was read of it, after doing something."""

    regions: list[Region] = field(default_factory=list)
    before: Callable[[Region], None] = lambda region: None

    def read_stored(self, region: Region) -> NDArray[Any]:
        self.before(region)
        self.regions.append(region)
        return super().read_stored(region)


def recorded(before: Callable[[Region], None] = lambda region: None) -> SplitSet:
    return SplitSet.of([Recorded(array, f"recon_{k}", before=before) for k, array in enumerate(noise())])


def test_every_slab_is_read_once_and_at_most_one_ahead(cpu: World) -> None:
    splits = recorded()
    sampler, blocks = sampler_and_blocks(splits, cpu)
    turns = sampler.turns
    wanted = requests(sampler, 1.5)
    turn = 0
    for places, _ in zip(wanted, blocks.batches(iter(wanted)), strict=True):
        turn = places[-1].turn
    blocks.close()
    for volume in splits.volumes:
        found = Counter(volume.regions)
        loads = Counter(turns.slab(loaded).region for loaded in range(turn + 2))
        assert sum(found.values()) in (sum(loads.values()), sum(loads.values()) - 1)
        assert not found - loads


def test_memory_is_that_of_the_slots_and_within_the_budget(splits_of: Splits, cpu: World) -> None:
    splits = splits_of(noise(dtype="uint16"))
    for budget in (60_000, 100_000, 190_000):
        whole = whole_sampler("2.5d")
        division = divide(whole, 4, budget)
        sampler, blocks = sampler_and_blocks(splits, cpu, division=division)
        assert blocks.slots.nbytes <= budget
        assert blocks.slots.nbytes == division.bytes_of(sampler.turns.slabs, 4)
        blocks.close()
        assert blocks.slots.nbytes == 0


def test_slabs_that_all_fit_are_read_once_for_the_whole_run(cpu: World) -> None:
    splits = recorded()
    sampler, blocks = sampler_and_blocks(splits, cpu, division=Division((20, 1000, 1000), 2))
    wanted = requests(sampler, 8)
    assert len(list(blocks.batches(iter(wanted)))) == len(wanted)
    blocks.close()
    assert [len(volume.regions) for volume in splits.volumes] == [2, 2]


def test_a_run_may_begin_anywhere(splits_of: Splits, cpu: World) -> None:
    """A resumed run begins with the slabs of the turn where it stood."""
    splits = splits_of(noise())
    sampler, blocks = sampler_and_blocks(splits, cpu)
    wanted = requests(sampler, 2)
    whole = list(blocks.batches(iter(wanted)))
    blocks.close()
    for start in (1, len(wanted) // 3, len(wanted) - 2):
        _, resumed = sampler_and_blocks(splits, cpu)
        for one, other in zip(whole[start:], resumed.batches(iter(wanted[start:])), strict=True):
            assert torch.equal(one, other)
        resumed.close()


def test_blocks_that_are_scored_are_read_once_between_training_blocks(cpu: World) -> None:
    splits = recorded()
    sampler, blocks = sampler_and_blocks(splits, cpu)
    whole = whole_sampler("2.5d")
    fixed = validation_places(whole.holdout, whole.window, SHAPE, 32)
    wanted = requests(sampler, 1)
    scored = []
    for i, _ in enumerate(blocks.batches(iter(wanted))):
        if i % 9 == 0:
            scored.append(torch.cat(list(blocks.batches([fixed[:5], fixed[5:]]))))
    for each in scored:
        assert torch.equal(each, scored[0])
    read = np.stack([read_reflected(volume, fixed[6].region) for volume in splits.volumes])
    assert torch.equal(scored[0][6], KNOWN.apply(torch.from_numpy(read)))
    blocks.close()


# What is wrong with the data


def test_nan_in_a_slab_is_refused_with_the_name_of_the_split_and_the_slice(splits_of: Splits, cpu: World) -> None:
    arrays = noise()
    arrays[1][7, 3, 3] = arrays[1][7, 20, 3] = np.nan
    arrays[1][7, 3, 4] = np.inf
    sampler, blocks = sampler_and_blocks(splits_of(arrays, 100), cpu, division=Division((6, 1000, 1000), 3))
    wanted = requests(sampler, 2)
    with pytest.raises(VolumeError, match=r"recon_1 holds 3 NaN or Inf voxels in slice 107.*non_finite"):
        list(blocks.batches(iter(wanted)))
    blocks.close()


def test_nan_in_a_block_that_is_scored_is_refused_too(splits_of: Splits, cpu: World) -> None:
    arrays = noise()
    whole = whole_sampler("2.5d")
    fixed = validation_places(whole.holdout, whole.window, SHAPE, 32)
    z, y, x = fixed[0].region.start_zyx
    arrays[0][z + 2, y + 1, x + 1] = np.nan
    _, blocks = sampler_and_blocks(splits_of(arrays, 100), cpu)
    with pytest.raises(VolumeError, match=rf"recon_0 holds 1 NaN or Inf voxels in slice {100 + z + 2}"):
        list(blocks.batches([fixed]))
    blocks.close()


def test_nan_and_inf_are_filled_with_the_mean_and_told_once_of_each_split(
    splits_of: Splits, cpu: World, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = noise()
    for z in range(40):
        arrays[0][z, z % 26, 3] = [np.nan, np.inf, -np.inf][z % 3]
    sampler, blocks = sampler_and_blocks(splits_of(arrays), cpu, non_finite="fill")
    wanted = requests(sampler, 2)
    filled = 0
    with caplog.at_level(logging.WARNING):
        for batch in blocks.batches(iter(wanted)):
            assert torch.isfinite(batch).all()
            assert not (batch[:, 1] == 0).any()
            filled += int((batch[:, 0] == 0).sum())
    assert filled > 100
    assert [record.getMessage().split(" holds")[0] for record in caplog.records] == ["recon_0"]
    blocks.close()


def test_the_normalisation_comes_from_some_slices_where_all_would_take_too_long(splits_of: Splits, cpu: World) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(7, 2, (300, 24, 24)).astype(np.float32) for _ in range(2)]
    splits = SplitSet.of([Recorded(array, f"recon_{k}") for k, array in enumerate(arrays)])
    _, blocks = sampler_and_blocks(splits, cpu, normalization=None)
    assert blocks.normalization.mean == pytest.approx(7, abs=0.05)
    assert blocks.normalization.std == pytest.approx(2, abs=0.05)
    assert [len(volume.regions) for volume in splits.volumes] == [64, 64]
    blocks.close()


def test_slices_that_are_large_are_looked_at_in_bands(cpu: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sampled_normalization(recorded(), cpu, "error")
    monkeypatch.setattr(reading, "_BAND_VOXELS", 5 * 24)
    monkeypatch.setattr(reading, "_SAMPLED_VOXELS", 1)
    splits = recorded()
    fewer = sampled_normalization(splits, cpu, "error")
    assert {region.shape_zyx for region in splits.volumes[0].regions} == {(1, 5, 24), (1, 1, 24)}
    assert len({region.start_zyx[0] for region in splits.volumes[0].regions}) == 4
    assert fewer.mean == pytest.approx(whole.mean, abs=3)
    assert fewer.std == pytest.approx(whole.std, rel=0.1)


def test_a_slice_that_vanishes_during_the_run_ends_it_with_its_name(tmp_path: Path, cpu: World) -> None:
    for k, array in enumerate(noise()):
        with create_sink(tmp_path / f"recon_{k}", shape=SHAPE) as sink:
            sink.write(0, array)
    splits = SplitSet.of([open_volume(tmp_path / f"recon_{k}") for k in range(2)])
    sampler, blocks = sampler_and_blocks(splits, cpu)
    wanted = requests(sampler, 4)
    batches = blocks.batches(iter(wanted))
    next(batches)
    for z in range(10):
        (tmp_path / "recon_1" / f"recon_1_0000{z}.tif").unlink()
    with pytest.raises(VolumeError, match=r"recon_1_0000[0-9]\.tif \(slice [0-9]\) does not exist"):
        list(batches)
    blocks.close()


# Waiting


def test_closing_ends_the_reading_and_whoever_waits_for_it(cpu: World) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def dawdle(region: Region) -> None:
        begun.set()
        go_on.wait(10)

    sampler, blocks = sampler_and_blocks(recorded(dawdle), cpu)
    batches = blocks.batches(iter(requests(sampler, 1)))

    def wait() -> None:
        with pytest.raises(DenoiseError):
            next(batches)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert begun.wait(10)
    closing = threading.Thread(target=blocks.close)
    closing.start()
    go_on.set()
    for thread in (closing, waiting):
        thread.join(10)
        assert not thread.is_alive()


def test_a_training_step_does_not_wait_for_the_next_slab(cpu: World) -> None:
    """Blocks of a turn are there while the slab of the next one is still being read."""
    blocked, number = threading.Event(), itertools.count(1)

    def before(region: Region) -> None:
        if next(number) > 3 * 2:  # three slabs of two splits
            blocked.wait(10)

    sampler, blocks = sampler_and_blocks(recorded(before), cpu)
    wanted = [places for places in requests(sampler, 1) if places[-1].turn == sampler.turns.first]
    assert len(list(blocks.batches(iter(wanted)))) == len(wanted) >= 2
    assert blocks.slots._filled.tolist() == [sampler.turns.first], "the next slab was waited for"
    blocked.set()
    blocks.close()


@pytest.fixture
def with_a_silent_peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[CachedBlocks]:
    """One of two processes of a node; the other reads nothing."""
    monkeypatch.setattr(slots, "_PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(slots, "_GRACE_SECONDS", 0.1)
    world = World(0, 1, torch.device("cpu"), local_rank=0, local_size=2)
    _, blocks = sampler_and_blocks(recorded(), world)
    yield blocks
    blocks.close()


def test_a_process_that_is_gone_is_not_waited_for_for_ever(with_a_silent_peer: CachedBlocks, cpu: World) -> None:
    sampler = SlabSampler(whole_sampler("2.5d"), DIVISION, 1000)
    with pytest.raises(WorkerError, match="another process of this node"):
        next(with_a_silent_peer.batches(iter(requests(sampler, 1))))


def test_a_process_that_could_not_read_ends_the_others(
    with_a_silent_peer: CachedBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "_PATIENCE_SECONDS", 1000)
    with_a_silent_peer.slots._failed[1] = 1
    sampler = SlabSampler(whole_sampler("2.5d"), DIVISION, 1000)
    begun = time.monotonic()
    with pytest.raises(WorkerError, match="another process of this node"):
        next(with_a_silent_peer.batches(iter(requests(sampler, 1))))
    assert time.monotonic() - begun < 100


# Enormous slices


@dataclass(frozen=True)
class Endless:
    """Slices that are larger than memory; every voxel is its own place, as far as float32 can tell."""

    name: str
    shape: Triple
    voxel_size_um: None = None
    chunk_zyx: Triple = (1, 1, 16384)
    largest: list[int] = field(default_factory=list)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def slice_numbers(self) -> range:
        return range(self.shape[0])

    def read(self, region: Region) -> NDArray[np.float32]:
        return self.read_stored(region)

    def read_stored(self, region: Region) -> NDArray[np.float32]:
        self.largest.append(math.prod(region.shape_zyx))
        z, y, x = (
            np.arange(start, start + count, dtype=np.float32)
            for start, count in zip(region.start_zyx, region.shape_zyx, strict=True)
        )
        return 100 * z[:, None, None] + y[None, :, None] + 0.01 * x


def test_slices_that_are_larger_than_memory_are_read_by_bands_of_rows(cpu: World) -> None:
    shape, budget = (64, 16384, 16384), 60_000_000
    volumes = [Endless(f"recon_{k}", shape) for k in range(2)]
    splits = SplitSet.of(volumes)
    whole = whole_sampler("2.5d", shape, edge=32)
    sampler = SlabSampler(whole, divide(whole, 8, budget, volumes[0].chunk_zyx), 1000)
    blocks = CachedBlocks.open(splits, sampler.turns, cpu, "error", KNOWN)
    assert blocks.slots.nbytes <= budget
    wanted = [sampler.places(0, range(4))]
    (batch,) = blocks.batches(iter(wanted))
    for place, block in zip(wanted[0], batch, strict=True):
        read = place.symmetry.apply(read_reflected(volumes[0], place.region, place.box))
        assert torch.equal(block[1], KNOWN.apply(torch.from_numpy(np.ascontiguousarray(read))))
    blocks.close()
    assert max(volumes[0].largest) * 4 <= 16_000_000
