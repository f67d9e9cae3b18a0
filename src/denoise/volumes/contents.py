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
#: Bytes that are read at once at most.
_TOGETHER = 64_000_000
#: Of a picture, (Y, X): coarse, as another rotation centre moves what is seen by some voxels.
_PICTURE = (4, 32)
#: Correlation of pictures of many slices, without what most of them show, from where on it is one object; of one slice
#: three times as much. Measured on 10 simulated scans (5 kinds, 16 slices): one scan with the axis moved by 0.5 and by
#: 2 voxels of 128, 0.90 to 0.99 and 0.43 to 0.85; another object of the same kind at most 0.16, in one slice 0.30.
_ALIKE = 0.2
#: Of a picture whose standard deviation is 1.
_LARGEST = 1e4
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
        bands = _bands(volumes, chosen)
        numbers = tuple(volumes[0].slice_numbers[z] for z in chosen)
        return cls(_hash(bands), numbers, rows, columns, _standardised(np.stack([_picture(each) for each in bands])))

    def are_those_of(self, volumes: Sequence[Volume], first: int | None = None, step: int = 1) -> bool:
        """Whether other volumes hold the same grey values in the slices that were looked at.

        Parameters
        ----------
        first, step
            Numbers to give to their slices; None: those that they have.
        """
        depth, *plane = volumes[0].shape
        numbers = volumes[0].slice_numbers if first is None else range(first, first + depth * step, step)
        if [self.rows, self.columns] != plane or not all(n in numbers for n in self.numbers):
            return False
        return _hash(_bands(volumes, [numbers.index(number) for number in self.numbers])) == self.sha256

    def show_one_object(self, volumes: Sequence[Volume]) -> bool | None:
        """Whether other volumes seem to be reconstructed from the same scan, as far as the pictures tell.

        None where the slices that were looked at are not among theirs, or nothing can be told from them.
        """
        numbers = volumes[0].slice_numbers
        common = [i for i, number in enumerate(self.numbers) if number in numbers]
        if (self.rows, self.columns) != volumes[0].shape[1:] or not common:
            return None
        bands = _bands(volumes, [numbers.index(self.numbers[i]) for i in common])
        theirs = _standardised(np.stack([_picture(each) for each in bands]))
        ours, many = self.pictures[common], len(self.numbers) >= _MANY
        if many:
            # Samples have outlines, and holders, in common: what counts is where slices differ from what most show.
            # That of a few is the object itself; then outlines count, and in doubt it is the same.
            common_look = _median(self.pictures)
            theirs = theirs - (_median(theirs) if len(common) >= _MANY else common_look)
            ours = ours - common_look
        correlation = _correlation(_tamed(ours), _tamed(theirs))
        together = len(common) if many else 1
        # Inverted contrast is the same object too.
        return None if correlation is None else abs(correlation) > _ALIKE * (1 + 2 / together)

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
        if not isinstance(pictures, list) or not all(type(v) is float and abs(v) < _LARGEST for v in pictures):
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
    return _hash(_bands(volumes, _spread(z_range, _HASHED)))


def _hash(bands: Sequence[Sequence[Float32Array]]) -> str:
    found = hashlib.sha256()
    for each in bands:
        values = (np.ascontiguousarray(band, dtype="<f4") for band in each)
        found.update(b"".join(sorted(hashlib.sha256(band.tobytes()).digest() for band in values)))
    return found.hexdigest()


def _spread(z_range: range, most: int) -> list[int]:
    """At most so many of these, evenly; the first and (of more than one) the last among them."""
    count = min(most, len(z_range))
    return [z_range[i * (len(z_range) - 1) // max(1, count - 1)] for i in range(count)]


def _bands(volumes: Sequence[Volume], positions: Sequence[int]) -> list[list[Float32Array]]:
    """The middle rows of some slices, of each volume; slices that are stored together are decoded together."""
    _, rows, columns = volumes[0].shape
    count = min(_ROWS, rows)
    most = max(1, _TOGETHER // (4 * count * columns))
    found: list[list[Float32Array]] = [[] for _ in positions]
    for volume in volumes:
        layer = volume.chunk_zyx[0]
        at = 0
        while at < len(positions):
            first, stop = positions[at], at + 1
            while (
                stop < len(positions)
                and positions[stop] // layer == first // layer
                and 0 < positions[stop] - first < most
            ):
                stop += 1
            last = positions[stop - 1]
            read = volume.read(Region((first, (rows - count) // 2, 0), (last - first + 1, count, columns)))
            for i in range(at, stop):
                found[i].append(read[positions[i] - first].copy())
            at = stop
    return found


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


def _median(pictures: Float32Array) -> Float32Array:
    return np.asarray(np.median(pictures, axis=0), np.float32)


def _tamed(pictures: Float32Array) -> Float32Array:
    """Without the mean of each, as scans have their course along z in common; a bad one counts as three good ones."""
    values = pictures - pictures.mean((1, 2), keepdims=True)
    norms = np.sqrt(np.square(values, dtype=np.float64).sum((1, 2), keepdims=True))
    most = 3 * float(np.median(norms))
    tamed: Float32Array = (values * np.minimum(1, most / np.maximum(norms, 1e-30))).astype(np.float32)
    return tamed


def _correlation(one: Float32Array, other: Float32Array) -> float | None:
    """Of two arrays whose values all count alike; None where one of them is constant."""
    a, b = (values.astype(np.float64) - float(values.mean()) for values in (one, other))
    norm = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else None
