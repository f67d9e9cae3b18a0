"""What a volume holds, told by a few of its slices: a hash, and coarse pictures of them.

Names tell nothing: files are moved and copied, and reconstructions are made anew under the names that they had. The
hash is the same for the same grey values, whatever the format. The pictures are alike for reconstructions of one scan,
whatever rotation centre and filter they were made with.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from denoise.tiles import Region
from denoise.volumes.volume import Float32Array, Volume

#: Slices that are looked at, and rows in their middle: little to read, also where many slices are stored together.
_SLICES, _ROWS = 32, 64
#: Slices of which only the hash is wanted: whoever makes a volume anew changes them all.
_HASHED = 4
#: Of a picture, (Y, X): coarse, as another rotation centre moves what is seen by some voxels.
_PICTURE = (4, 32)
#: Correlation of pictures of many slices, without the mean of all, from where on they show one object; of one slice
#: three times as much. Measured on 10 simulated scans (5 kinds, 16 slices): one scan with the axis moved by 0.5 and by
#: 2 voxels of 128, 0.86 to 0.97 and 0.28 to 0.67; another object of the same kind at most 0.08, in one slice 0.43.
_ALIKE = 0.2
_MANY = 8


@dataclass(frozen=True)
class Contents:
    """Of some volumes with one shape and numbering.

    Attributes
    ----------
    sha256
        Of the grey values that were looked at, of all volumes in whatever order.
    numbers
        The slices that were.
    rows, columns
        Of the volumes, in voxels.
    pictures
        (len(numbers), Y, X), float32, of the mean of the volumes; their mean is 0 and their standard deviation 1.
    """

    sha256: str
    numbers: tuple[int, ...]
    rows: int
    columns: int
    pictures: Float32Array

    @classmethod
    def of(cls, volumes: Sequence[Volume], z_range: range) -> Contents:
        """Look at some of the slices.

        Parameters
        ----------
        z_range
            Which to choose from, counted from 0; not empty.

        Raises
        ------
        VolumeError
            One of them cannot be read.
        """
        _, rows, columns = volumes[0].shape
        chosen = _spread(z_range, _SLICES)
        pictures = _standardised(np.stack([_picture([_band(volume, z) for volume in volumes]) for z in chosen]))
        numbers = tuple(volumes[0].slice_numbers[z] for z in chosen)
        return cls(_hash(volumes, chosen), numbers, rows, columns, pictures)

    def are_those_of(self, volumes: Sequence[Volume]) -> bool:
        """Whether other volumes hold the same grey values in the slices that were looked at."""
        numbers = volumes[0].slice_numbers
        if (self.rows, self.columns) != volumes[0].shape[1:] or not all(n in numbers for n in self.numbers):
            return False
        return _hash(volumes, [numbers.index(number) for number in self.numbers]) == self.sha256

    def show_one_object(self, volumes: Sequence[Volume]) -> bool | None:
        """Whether other volumes were reconstructed from the same scan, as far as the pictures tell.

        None where the slices that were looked at are not among theirs, or nothing can be told from them.
        """
        numbers = volumes[0].slice_numbers
        common = [i for i, number in enumerate(self.numbers) if number in numbers]
        if (self.rows, self.columns) != volumes[0].shape[1:] or not common:
            return None
        theirs = [_picture([_band(v, numbers.index(self.numbers[i])) for v in volumes]) for i in common]
        # Samples have outlines, and holders, in common: what counts is where a slice differs from the mean of all. The
        # mean of a few slices is the object itself; then outlines count, and in doubt it is the same.
        mean = self.pictures.mean(0) if len(self.numbers) >= _MANY else np.float32(0)
        correlation = _correlation(
            *(_centred(pictures - mean) for pictures in (self.pictures[common], _standardised(np.stack(theirs))))
        )
        seen_together = len(common) if len(self.numbers) >= _MANY else 1
        return None if correlation is None else correlation > _ALIKE * (1 + 2 / seen_together)

    def as_plain(self) -> dict[str, Any]:
        """For an archive: plain values, and the pictures as nested lists of a few digits."""
        return {
            "sha256": self.sha256,
            "numbers": list(self.numbers),
            "rows": self.rows,
            "columns": self.columns,
            "pictures": [round(float(value), 3) for value in self.pictures.ravel()],
        }

    @classmethod
    def of_plain(cls, stored: Mapping[str, Any]) -> Self:
        """As it was stored.

        Raises
        ------
        ValueError
            A value is missing or of another kind.
        """
        sha256, numbers, rows, columns = (stored.get(name) for name in ("sha256", "numbers", "rows", "columns"))
        pictures = stored.get("pictures")
        counts = [rows, columns, *(numbers if isinstance(numbers, list) else [None])]
        if not isinstance(sha256, str) or not all(type(n) is int and 0 <= n < 2**63 for n in counts):
            raise ValueError("no contents")
        if not 0 < len(counts) - 2 <= _SLICES or min(counts[:2]) < 1:
            raise ValueError("no slices")
        shape = (len(counts) - 2, min(_PICTURE[0], counts[0], _ROWS), min(_PICTURE[1], counts[1]))
        if not isinstance(pictures, list) or not all(type(v) is float and math.isfinite(v) for v in pictures):
            raise ValueError("no pictures")
        if len(pictures) != math.prod(shape):
            raise ValueError("pictures of another shape")
        values = np.array(pictures, np.float32).reshape(shape)
        return cls(sha256, tuple(counts[2:]), counts[0], counts[1], values)


def contents_hash(volumes: Sequence[Volume], z_range: range) -> str:
    """As ``Contents.sha256``, of fewer slices.

    Raises
    ------
    VolumeError
        One of them cannot be read.
    """
    return _hash(volumes, _spread(z_range, _HASHED))


def _hash(volumes: Sequence[Volume], positions: Sequence[int]) -> str:
    found = hashlib.sha256()
    for z in positions:
        bands = (np.ascontiguousarray(_band(volume, z), dtype="<f4") for volume in volumes)
        found.update(b"".join(sorted(hashlib.sha256(band.tobytes()).digest() for band in bands)))
    return found.hexdigest()


def _spread(z_range: range, most: int) -> list[int]:
    """At most so many of these, evenly; the first and (of more than one) the last among them."""
    count = min(most, len(z_range))
    return [z_range[i * (len(z_range) - 1) // max(1, count - 1)] for i in range(count)]


def _band(volume: Volume, z: int) -> Float32Array:
    """The middle rows of a slice."""
    _, rows, columns = volume.shape
    count = min(_ROWS, rows)
    band: Float32Array = volume.read(Region((z, (rows - count) // 2, 0), (1, count, columns)))[0]
    return band


def _picture(bands: Sequence[Float32Array]) -> Float32Array:
    """Block means of the mean of some bands; what is not finite counts as 0."""
    finite = [np.nan_to_num(band, nan=0.0, posinf=0.0, neginf=0.0) for band in bands]
    mean: NDArray[np.float64] = np.mean(finite, axis=0, dtype=np.float64)
    for axis, most in enumerate(_PICTURE):
        count = min(most, mean.shape[axis])
        edges = np.arange(count + 1) * mean.shape[axis] // count
        sums = np.add.reduceat(mean, edges[:-1], axis=axis)
        mean = sums / np.diff(edges).reshape([-1, 1] if axis == 0 else [1, -1])
    return np.asarray(mean, np.float32)


def _standardised(pictures: Float32Array) -> Float32Array:
    values = pictures.astype(np.float64)
    mean, deviation = float(values.mean()), float(values.std())
    return ((values - mean) / (deviation or 1.0)).astype(np.float32)


def _centred(pictures: Float32Array) -> Float32Array:
    """Without the mean of each: scans have its course along z in common too."""
    means: Float32Array = pictures.mean((1, 2), keepdims=True)
    return pictures - means


def _correlation(one: Float32Array, other: Float32Array) -> float | None:
    """Of two arrays whose values all count alike; None where one of them is constant."""
    a, b = (values.astype(np.float64) - float(values.mean()) for values in (one, other))
    norm = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else None
