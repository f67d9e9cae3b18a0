"""Pictures of a page: their grey values, places and size."""

from __future__ import annotations

import base64

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from denoise.report import images
from denoise.report.images import KINDS, Window, data_uri, pictures_of
from denoise.trust.evidence import Evidence


def evidence(shape: tuple[int, int, int]) -> Evidence:
    """A ramp along x with noise of its own in each split; the model gives the ramp."""
    rng = np.random.default_rng(0)
    truth = np.broadcast_to(np.linspace(0, 1, shape[2], dtype=np.float32), shape).copy()
    splits = tuple((truth + 0.3 * rng.standard_normal(shape)).astype(np.float32) for _ in range(2))
    return Evidence(
        splits, splits, splits[::-1], (truth, truth), truth, splits[0] - splits[1], None, np.ones(shape[1:], bool)
    )


def pixels(uri: str) -> NDArray[np.uint8]:
    kind, _, text = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(imagecodecs.png_decode(base64.b64decode(text)))


def test_grey_values_are_clipped_to_the_window_and_spread_over_it() -> None:
    shown = pixels(data_uri(np.array([[-9, 2, 3, 4, 99]], np.float32), Window(2.0, 4.0)))
    assert shown.tolist() == [[0, 0, 128, 255, 255]]


def test_before_and_after_share_a_window_and_nothing_taken_away_is_mid_grey() -> None:
    whole = evidence((3, 20, 30))
    twice = (whole.delivered, whole.delivered)
    same = Evidence(twice, twice, twice, twice, whole.delivered, whole.probe, None, whole.mask)
    middle = pictures_of(same, slice_numbers=range(3)).plates[0].middle.images
    assert (pixels(middle["before"]) == pixels(middle["after"])).all()
    assert set(pixels(middle["residual"]).ravel().tolist()) == {128}


def test_sections_in_three_directions_say_where_they_lie() -> None:
    found = pictures_of(evidence((4, 20, 30)), slice_numbers=range(40, 48, 2), first_row=100, first_column=7)
    assert [p.name for p in found.plates] == ["axial", "coronal", "sagittal"]
    assert [p.extent for p in found.plates] == [(30, 20), (30, 4), (20, 4)]
    assert [pixels(p.middle.images["after"]).shape for p in found.plates] == [(20, 30), (4, 30), (4, 20)]
    axial, coronal, sagittal = found.plates
    assert [p.label for p in axial.pictures] == ["slice 40", "slice 42", "slice 44", "slice 46"]
    assert coronal.middle.label == f"row {100 + coronal.middle.place}"
    assert sagittal.middle.label == f"column {7 + sagittal.middle.place}"
    assert axial.middle not in axial.others
    assert len(axial.others) == 3


def test_a_section_shows_the_voxels_of_its_place() -> None:
    found = pictures_of(evidence((3, 20, 30)), slice_numbers=range(3))
    axial, _, sagittal = found.plates
    row = pixels(axial.middle.images["after"])[0]
    for picture in sagittal.pictures:
        assert set(pixels(picture.images["after"]).ravel().tolist()) == {int(row[picture.place])}


def test_what_is_too_large_is_reduced_by_means_and_its_middle_is_shown_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "DETAIL", 16)
    monkeypatch.setattr(images, "_CHOICES", ((25, 3),))
    whole = evidence((3, 40, 50))
    found = pictures_of(whole, slice_numbers=range(3))
    axial, detail = found.plates[0], found.plates[-1]
    assert axial.reduced == 2
    assert axial.extent == (50, 40)
    assert pixels(axial.middle.images["after"]).shape == (20, 25)
    mean = whole.full[1].reshape(20, 2, 25, 2).mean(axis=(1, 3))
    assert (pixels(axial.middle.images["before"]) == pixels(data_uri(mean, found.greys))).all()
    assert detail.reduced == 1
    assert detail.origin == (17, 12)
    part = whole.full[1, 12:28, 17:33]
    assert (pixels(detail.middle.images["before"]) == pixels(data_uri(part, found.greys))).all()


@pytest.mark.parametrize("allowed", [200_000, 60_000])
def test_images_stay_below_what_is_allowed(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    monkeypatch.setattr(images, "MOST_BYTES", allowed)
    monkeypatch.setattr(images, "DETAIL", 32)
    monkeypatch.setattr(images, "_CHOICES", tuple((limit, n) for limit in (160, 96, 64, 32, 16) for n in (5, 3)))
    found = pictures_of(evidence((9, 160, 140)), slice_numbers=range(9))
    stored = [uri for plate in found.plates for p in plate.pictures for uri in p.images.values()]
    assert allowed / 4 < sum(map(len, stored)) < allowed
    assert all(set(p.images) == set(KINDS) for plate in found.plates for p in plate.pictures)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 16, 200), (2, 17, 1)])
def test_thin_regions_have_pictures_too(shape: tuple[int, int, int]) -> None:
    found = pictures_of(evidence(shape), slice_numbers=range(shape[0]))
    assert all(plate.pictures for plate in found.plates)
