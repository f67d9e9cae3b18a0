"""Contents of volumes, known again whatever the files are called and whatever they were reconstructed with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from denoise.projections.angles import SplitAngles
from denoise.projections.phantom import FoamPhantom
from denoise.projections.reconstruct import reconstruct_rows
from denoise.tiles import Region
from denoise.volumes import ArrayVolume, Volume
from denoise.volumes.contents import Contents, contents_hash
from denoise.volumes.volume import Float32Array

SIZE, SLICES, ANGLES = 64, 12, 96


def scanned(seed: int, noise: int) -> tuple[Float32Array, float]:
    """Noisy line integrals of a foam, (angles, rows, columns), and the column of its axis."""
    phantom = FoamPhantom.create(size=SIZE, slices=SLICES, seed=seed, n_pores=120)
    transmitted = np.exp(-phantom.project(np.arange(ANGLES) * np.pi / ANGLES).astype(np.float64))
    counts = np.random.default_rng(noise).poisson(300 * transmitted) / 300
    return -np.log(np.maximum(counts, 1 / 600)).astype(np.float32), phantom.center


def reconstructed(scan: tuple[Float32Array, float], moved: float = 0.0, k: int = 2, first: int = 0) -> list[Volume]:
    sinograms, center = scan
    angles = np.arange(ANGLES) * np.pi / ANGLES
    return [
        ArrayVolume(
            reconstruct_rows(np.ascontiguousarray(sinograms[chosen, first:]), angles[chosen], center + moved),
            first_slice=first,
        )
        for chosen in SplitAngles.of(angles, k).indices
    ]


@pytest.fixture(scope="module")
def scan() -> tuple[Float32Array, float]:
    return scanned(0, 1)


@pytest.fixture(scope="module")
def contents(scan: tuple[Float32Array, float]) -> Contents:
    return Contents.of(reconstructed(scan), range(SLICES))


@pytest.mark.parametrize("settings", [{"moved": 1.0}, {"k": 3}, {"first": 5}, {"moved": 0.5, "first": 9}])
def test_another_reconstruction_of_a_scan_shows_the_same_object(
    scan: tuple[Float32Array, float], contents: Contents, settings: dict[str, Any]
) -> None:
    other = reconstructed(scan, **settings)
    assert contents.show_one_object(other) is True
    assert not contents.are_those_of(other)


def test_a_bad_slice_and_inverted_contrast_do_not_make_another_object(
    scan: tuple[Float32Array, float], contents: Contents
) -> None:
    clean = [volume.read(Region((0, 0, 0), volume.shape)) for volume in reconstructed(scan, moved=0.5)]
    for values in clean:
        values[5, 20:40] += 100 * values.std()
    assert contents.show_one_object([ArrayVolume(values) for values in clean]) is True
    assert contents.show_one_object([ArrayVolume(-v.read(Region((0, 0, 0), v.shape))) for v in reconstructed(scan)])


class Counted:
    """A volume that is stored in layers, and counts how often it is read."""

    def __init__(self, volume: ArrayVolume, layer: int) -> None:
        self.volume, self.chunk_zyx, self.reads = volume, (layer, *volume.shape[1:]), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.volume, name)

    def read(self, region: Region) -> Float32Array:
        self.reads += 1
        return self.volume.read(region)


def test_slices_that_are_stored_together_are_decoded_together() -> None:
    plain = ArrayVolume(np.random.default_rng(2).normal(size=(40, 16, 16)).astype(np.float32))
    layers = Counted(plain, 20)
    assert Contents.of([cast("Volume", layers)], range(40)).sha256 == Contents.of([plain], range(40)).sha256
    assert layers.reads == 2


def test_of_a_few_slices_what_they_show_counts_not_how_they_differ(scan: tuple[Float32Array, float]) -> None:
    few = Contents.of(reconstructed(scan), range(5, 7))
    assert few.show_one_object(reconstructed(scan, moved=1.0)) is True
    unlike = np.random.default_rng(5).normal(size=(SLICES, SIZE, SIZE)).astype(np.float32)
    assert few.show_one_object([ArrayVolume(unlike)]) is False


def test_another_object_of_the_same_kind_is_another_one(contents: Contents) -> None:
    assert contents.show_one_object(reconstructed(scanned(7, 1))) is False
    assert contents.show_one_object(reconstructed(scanned(8, 1), first=6)) is False


def test_grey_values_are_known_again_among_more_slices(scan: tuple[Float32Array, float]) -> None:
    some = Contents.of(reconstructed(scan), range(4, 9))
    assert some.numbers == (4, 5, 6, 7, 8)
    assert some.are_those_of(reconstructed(scan))
    assert some.show_one_object(reconstructed(scan)) is True
    assert not some.are_those_of(reconstructed(scan, first=5))


def test_a_single_changed_voxel_of_a_slice_that_is_looked_at_is_noticed() -> None:
    values = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    before = [ArrayVolume(values), ArrayVolume(values + 1)]
    changed = values.copy()
    changed[2, 4, 4] += 1e-3
    after = [ArrayVolume(values), ArrayVolume(changed + 1)]
    assert Contents.of(before, range(3)).sha256 != Contents.of(after, range(3)).sha256
    assert contents_hash(before, range(3)) != contents_hash(after, range(3))
    assert contents_hash(before, range(2)) == contents_hash(after, range(2))
    assert Contents.of(before[::-1], range(3)).sha256 == Contents.of(before, range(3)).sha256
    assert Contents.of([before[0], before[0]], range(3)).sha256 != Contents.of(before, range(3)).sha256


def test_nothing_is_said_where_nothing_can_be_compared(scan: tuple[Float32Array, float], contents: Contents) -> None:
    elsewhere = [ArrayVolume(np.zeros((3, SIZE, SIZE), np.float32), first_slice=100)]
    assert contents.show_one_object(elsewhere) is None
    assert contents.show_one_object([ArrayVolume(np.zeros((SLICES, 32, 32), np.float32))]) is None
    blank = [ArrayVolume(np.full((SLICES, SIZE, SIZE), np.nan, np.float32))]
    assert Contents.of(blank, range(SLICES)).show_one_object(reconstructed(scan)) is None


def test_contents_are_stored_as_plain_values(contents: Contents) -> None:
    again = Contents.of_plain(contents.as_plain())
    np.testing.assert_allclose(again.pictures, contents.pictures, atol=5e-4)
    assert replace(again, pictures=contents.pictures) == contents


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sha256", 7),
        ("numbers", []),
        ("numbers", list(range(33))),
        ("numbers", [0, "1"]),
        ("numbers", None),
        ("rows", -1),
        ("rows", 0),
        ("columns", True),
        ("columns", 2**70),
        ("pictures", [0.0]),
        ("pictures", "long"),
        ("pictures", [float("nan")] * (12 * 4 * 32)),
        ("pictures", [0] * (12 * 4 * 32)),
    ],
)
def test_damaged_contents_are_refused(contents: Contents, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"no|pictures"):
        Contents.of_plain({**contents.as_plain(), name: value})
