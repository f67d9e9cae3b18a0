"""Sections through held-out slices, before and after, as images that are part of the page.

In goes an ``Evidence``, out come 8-bit PNG images as data URIs, at one grey window for all but the residual, whose
window is symmetric around 0. What is too large for a page is reduced by averaging blocks of voxels, which takes noise
away as well, so that one part is shown in full besides.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from denoise.trust.evidence import Evidence
from denoise.volumes.volume import Float32Array

#: Bytes of images in one page, as text.
MOST_BYTES = 14_000_000
#: The longest side of an image, and in how many places of each direction: the first that fits is taken.
_CHOICES = ((1024, 5), (1024, 3), (1024, 2), (768, 5), (768, 3), (512, 5), (512, 3), (384, 3), (256, 1))
#: Side of the part that is shown in full where the others are reduced, and of what models are compared on.
DETAIL = 384
CROP = 256
KINDS = ("before", "after", "residual", "other")
_GREY_PERCENTILES = (0.1, 99.9)
_RESIDUAL_PERCENTILE = 99.5
_MARGIN = 0.05


@dataclass(frozen=True)
class Window:
    """The grey values that are shown as black and white."""

    low: float
    high: float


@dataclass(frozen=True)
class Picture:
    """One section.

    Attributes
    ----------
    place
        Voxel of the held-out region along the direction that the section is across.
    label
        The same for people, in the numbering of the input.
    images
        Data URIs by kind, see ``KINDS``.
    """

    place: int
    label: str
    images: Mapping[str, str]


@dataclass(frozen=True)
class Plate:
    """Sections across one direction.

    Attributes
    ----------
    name, title
        For programs and for people.
    axes
        What is to the right and what is downwards, as "xy".
    origin, extent
        (right, down) in voxels of the held-out region.
    reduced
        So many voxels along each side are one pixel.
    """

    name: str
    title: str
    axes: str
    origin: tuple[int, int]
    extent: tuple[int, int]
    reduced: int
    pictures: tuple[Picture, ...]

    @property
    def middle(self) -> Picture:
        """The one that is shown first."""
        return self.pictures[len(self.pictures) // 2]

    @property
    def others(self) -> tuple[Picture, ...]:
        """All but the middle."""
        return tuple(p for p in self.pictures if p is not self.middle)


@dataclass(frozen=True)
class Pictures:
    """All sections of a page."""

    plates: tuple[Plate, ...]
    greys: Window
    residual: float
    """Largest residual that is told apart, in grey values."""


@dataclass(frozen=True)
class Trial:
    """What one model makes of the crop that models are compared on."""

    name: str
    image: str


def pictures_of(
    evidence: Evidence, *, slice_numbers: Sequence[int], first_row: int = 0, first_column: int = 0
) -> Pictures:
    """Sections in three directions, as many and as large as fit.

    Parameters
    ----------
    slice_numbers
        Of the held-out slices.
    first_row, first_column
        Of the held-out region in its slices.
    """
    greys = window_of(evidence)
    full = evidence.full
    stacks = dict(zip(KINDS, (full, evidence.delivered, full - evidence.delivered, evidence.others[0]), strict=True))
    residual = float(np.percentile(np.abs(stacks["residual"][:, evidence.mask]), _RESIDUAL_PERCENTILE)) or 1.0
    windows = dict.fromkeys(KINDS, greys) | {"residual": Window(-residual, residual)}

    def images(cut: Callable[[Float32Array], Float32Array], factor: int) -> dict[str, str]:
        return {kind: data_uri(_reduced(cut(stack), factor), windows[kind]) for kind, stack in stacks.items()}

    depth, height, width = evidence.shape
    limit, count = _fitting(evidence.shape, images)
    plates = []
    for axis, (name, title, first) in enumerate(
        (
            ("axial", "Axial (slices)", 0),
            ("coronal", "Coronal (across the rows)", first_row),
            ("sagittal", "Sagittal (across the columns)", first_column),
        )
    ):
        down, right = (n for i, n in enumerate(evidence.shape) if i != axis)
        factor = math.ceil(max(down, right) / limit)
        word = ("slice", "row", "column")[axis]
        plates.append(
            Plate(
                name,
                title,
                ("xy", "xz", "yz")[axis],
                (0, 0),
                (right, down),
                factor,
                tuple(
                    Picture(
                        place,
                        f"{word} {slice_numbers[place] if axis == 0 else first + place}",
                        images(partial(np.take, indices=place, axis=axis), factor),
                    )
                    for place in _places(evidence.shape[axis], count)
                ),
            )
        )
    if plates[0].reduced > 1:
        rows, columns = centred(height, DETAIL), centred(width, DETAIL)
        middle = depth // 2
        plates.append(
            Plate(
                "detail",
                "Axial, its middle in full",
                "xy",
                (columns.start, rows.start),
                (columns.stop - columns.start, rows.stop - rows.start),
                1,
                (Picture(middle, f"slice {slice_numbers[middle]}", images(lambda s: s[middle, rows, columns], 1)),),
            )
        )
    return Pictures(tuple(plates), greys, residual)


def window_of(evidence: Evidence) -> Window:
    """The range of grey values of the delivered image, and a little more."""
    low, high = (float(v) for v in np.percentile(evidence.delivered[:, evidence.mask], _GREY_PERCENTILES))
    margin = _MARGIN * (high - low) or 0.5
    return Window(low - margin, high + margin)


def data_uri(image: Float32Array, window: Window) -> str:
    """An 8-bit grey PNG: 0 at and below the window's lower end, 255 at and above its upper."""
    grey = np.clip((image.astype(np.float64) - window.low) / (window.high - window.low), 0, 1)
    packed: Any = imagecodecs.png_encode(np.ascontiguousarray(np.rint(255 * grey).astype(np.uint8)), level=6)
    return "data:image/png;base64," + base64.b64encode(packed).decode("ascii")


def centred(length: int, wanted: int) -> slice:
    """The middle of an axis."""
    start = max(0, (length - wanted) // 2)
    return slice(start, min(length, start + wanted))


def _places(length: int, count: int) -> list[int]:
    """Evenly spaced places, neither of them at an end where there is room."""
    count = min(length, count)
    return [int((2 * i + 1) * length / (2 * count)) for i in range(count)]


def _reduced(image: Float32Array, factor: int) -> NDArray[np.float32]:
    """Means of blocks; those at the far ends may be smaller."""
    if factor == 1:
        return image
    total = image.astype(np.float64)
    for axis, length in enumerate(image.shape):
        starts = np.arange(0, length, factor)
        counts = np.minimum(starts + factor, length) - starts
        shape = [1, 1]
        shape[axis] = len(counts)
        total = np.add.reduceat(total, starts, axis=axis) / counts.reshape(shape)
    return total.astype(np.float32)


def _fitting(
    shape: tuple[int, int, int], images: Callable[[Callable[[Float32Array], Float32Array], int], dict[str, str]]
) -> tuple[int, int]:
    """Longest side and number of places, from how well a part of the middle slice is packed."""
    depth, height, width = shape
    rows, columns = centred(height, DETAIL), centred(width, DETAIL)
    part = images(lambda stack: stack[depth // 2, rows, columns], 1)
    of_pixel = sum(map(len, part.values())) / ((rows.stop - rows.start) * (columns.stop - columns.start))
    spare = MOST_BYTES - sum(map(len, part.values()))  # one such part is shown in full
    for limit, count in _CHOICES:
        pixels = 0.0
        for axis in range(3):
            down, right = (n for i, n in enumerate(shape) if i != axis)
            factor = math.ceil(max(down, right) / limit)
            pixels += min(count, shape[axis]) * math.ceil(down / factor) * math.ceil(right / factor)
        if pixels * of_pixel < spare:
            break
    return limit, count
