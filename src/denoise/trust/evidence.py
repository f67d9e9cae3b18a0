"""What all judgements of a model rest on: its outputs on held-out slices, from inputs whose noise is known to differ.

In go K splits, the held-out slices and a way to run the model; out come arrays (Z, Y, X). Of every output there is
something independent to compare it with: f(view k) with the splits that view k does not contain, and the delivered
image with a *probe*, a sample of the noise of the full reconstruction made from the differences of the splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise.errors import VolumeError
from denoise.tiles import Region, Triple
from denoise.volumes import Volume
from denoise.volumes.combined import CombinedVolume, mean_of
from denoise.volumes.volume import Float32Array

Run = Callable[[Volume, range], Float32Array]
"""Denoises slices (counted from 0) of a volume: float32 (Z, Y, X)."""

#: Of the probe, added to and taken from the full reconstruction. Small, so that the answer is the derivative: for
#: foam at 400 photons a tenth gave the same error as a twentieth to 0.005 dB, a quarter 0.07 dB more, a half 0.34 dB,
#: and the splits themselves, which are one whole probe away, 1.2 dB.
PROBE_STEP = 0.1


#: Voxels along rows and columns that the estimates need.
FEWEST = 16


@dataclass(frozen=True)
class Frame:
    """Where the held-out part lies: the numbers of its slices, and its first row and column in them."""

    slices: range
    row: int
    column: int

    @classmethod
    def of(cls, region: Region, numbers: range) -> Frame:
        """That of a region of a volume whose slices have these numbers."""
        z, y, x = region.start_zyx
        return cls(numbers[z : region.stop_zyx[0]], y, x)

    def place(self, z: int, y: int, x: int) -> Triple:
        """Slice number, row and column of a voxel of the part."""
        return self.slices[z], self.row + y, self.column + x


#: Of the inscribed ellipse.
_SMALLEST_CIRCLE = 0.5


@dataclass(frozen=True)
class Evidence:
    """Held-out slices, and what the model makes of them; arrays are float32 (Z, Y, X).

    Attributes
    ----------
    splits
        x_k.
    views
        What the model was given: the splits, or means of all but one of them.
    others
        For every view, the mean of the splits that it does not contain: its noise is independent of the view's.
    outputs
        f(view k). Of two splits, view k is x_k and the other is x_{1-k}.
    delivered
        What ``denoise volume`` writes: f(full), or the mean of the outputs.
    probe, response
        A sample d of the noise of the full reconstruction, and how the delivered image answers to it:
        (f(full + e d) - f(full - e d)) / 2e. The response is None where the mean of the outputs is delivered.
    mask
        Voxels that count, bool (Y, X): the field of view.
    """

    splits: tuple[Float32Array, ...]
    views: tuple[Float32Array, ...]
    others: tuple[Float32Array, ...]
    outputs: tuple[Float32Array, ...]
    delivered: Float32Array
    probe: Float32Array
    response: Float32Array | None
    mask: NDArray[np.bool_]

    @property
    def full(self) -> Float32Array:
        """The mean of the splits: the noisy image."""
        return np.asarray(np.mean(self.splits, axis=0, dtype=np.float32), np.float32)

    @property
    def shape(self) -> Triple:
        """(Z, Y, X)."""
        z, y, x = self.delivered.shape
        return z, y, x

    def slices(self) -> Iterator[Evidence]:
        """One slice after the other, in float64: what is summed needs that, the stack does not."""
        for z in range(self.shape[0]):
            yield self._of(slice(z, z + 1))

    def _of(self, rows: slice) -> Evidence:
        def part(stack: Float32Array) -> Any:
            return stack[rows].astype(np.float64)

        return Evidence(
            tuple(map(part, self.splits)),
            tuple(map(part, self.views)),
            tuple(map(part, self.others)),
            tuple(map(part, self.outputs)),
            part(self.delivered),
            part(self.probe),
            None if self.response is None else part(self.response),
            self.mask,
        )


def probe_weights(count: int) -> tuple[float, ...]:
    """Weights c of the splits with sum 0 and sum of squares 1/K: c.x has the noise of their mean and no object.

    For equal noise its covariance with the mean is zero, so that for Gaussian noise it is an independent sample.
    """
    signs = np.array([1.0 if k % 2 == 0 else -1.0 for k in range(count)])
    signs -= signs.mean()
    weights = signs / np.sqrt(count * np.square(signs).sum())
    return tuple(float(w) for w in weights)


def collect(
    splits: Sequence[Volume],
    region: Region,
    run: Run,
    *,
    strategy: str = "X:1",
    delivers: str = "full",
    seen: NDArray[np.bool_] | None = None,
) -> Evidence:
    """Run a model on a held-out region.

    Parameters
    ----------
    splits
        K volumes of independent noise.
    region
        Held-out slices, or rows of them; a model must not have been trained on what lies in it.
    run
        The model; it may read beyond the region, as it does when it denoises a volume.
    strategy
        "X:1" or "1:X": what the model was given of several splits.
    delivers
        "full": f(mean of the splits) is the result; "splits": the mean of the outputs of all views.
    seen
        The field of view, bool (Y, X) of whole slices; None: found in these slices. Places that are NaN or infinite in
        some slice of some split do not count.

    Raises
    ------
    VolumeError
        There is nothing but such places.
    """
    count = len(splits)
    shape = splits[0].shape
    z_range = range(region.start_zyx[0], region.stop_zyx[0])
    whole = Region.of_slices(z_range.start, z_range.stop, shape)
    parts = tuple(volume.read(whole) for volume in splits)
    known = np.isfinite(np.sum(parts, axis=0)).all(axis=0)
    if not known[region.slices[1:]].any():
        raise VolumeError(
            f"every voxel of the held-out part of {splits[0].name} is NaN or infinite in one of its slices; "
            "reconstruct again, or train on other slices"
        )
    if not known.all():
        parts = tuple(np.where(known, part, part[:, known].mean(dtype=np.float64)).astype(np.float32) for part in parts)
    rows = (slice(None), *region.slices[1:])

    def denoised(volume: Volume) -> Float32Array:
        return np.ascontiguousarray(run(volume, z_range)[rows])

    total = np.sum(parts, axis=0, dtype=np.float32)
    rests = [(total - part) / np.float32(count - 1) for part in parts]
    given: list[Volume] = list(splits)
    views, others = parts, tuple(rests)
    if strategy == "X:1" and count > 2:
        given = [mean_of((*splits[:k], *splits[k + 1 :])) for k in range(count)]
        views, others = others, views
    outputs = tuple(denoised(view) for view in given)
    weights = np.array(probe_weights(count))
    response = None
    if delivers == "full":
        even = np.full(count, 1 / count)
        delivered, more, less = (
            denoised(CombinedVolume(tuple(splits), tuple(even + step * weights)))
            for step in (0.0, PROBE_STEP, -PROBE_STEP)
        )
        response = (more - less) / np.float32(2 * PROBE_STEP)
    else:
        delivered = np.mean(outputs, axis=0, dtype=np.float32)
    probe = np.tensordot(weights.astype(np.float32), np.stack(parts), axes=1)
    return Evidence(
        splits=tuple(part[rows] for part in parts),
        views=tuple(part[rows] for part in views),
        others=tuple(part[rows] for part in others),
        outputs=outputs,
        delivered=delivered,
        probe=probe[rows].astype(np.float32),
        response=response,
        mask=(known & (field_of_view(parts) if seen is None else seen))[region.slices[1:]],
    )


def field_of_view(stacks: Sequence[Float32Array]) -> NDArray[np.bool_]:
    """Voxels of a slice that show something in some stack (Z, Y, X), bool (Y, X); see ``ellipse_of``."""
    return ellipse_of(shown_in(stacks))


def shown_in(stacks: Sequence[Float32Array]) -> NDArray[np.bool_]:
    """Voxels that are a number, and not what masks put outside, in some slice of some stack, bool (Y, X)."""
    return np.asarray(
        np.any([np.any((stack != _outside(stack)) & np.isfinite(stack), axis=0) for stack in stacks], axis=0)
    )


def _outside(stack: Float32Array) -> float:
    """What all corners of all slices have, as where a mask was scaled to whole numbers; otherwise zero."""
    corners = stack[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    masked = (corners == corners[0, 0]).all() and not (stack == corners[0, 0]).all()
    return float(corners[0, 0]) if masked else 0.0


def ellipse_of(shown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """An ellipse around what is not zero, bool (Y, X); all where that reaches beyond the inscribed one.

    Its outermost voxel is left out, as reconstructions fade there. It is no smaller than half of the inscribed one:
    what is zero elsewhere is air then, and no mask.
    """
    height, width = shown.shape
    y = (np.arange(height) - (height - 1) / 2) / (height / 2)
    x = (np.arange(width) - (width - 1) / 2) / (width / 2)
    radius = np.sqrt(y[:, None] ** 2 + x[None, :] ** 2)
    voxel = 2 / min(height, width)
    reach = float(radius[shown].max()) if shown.any() else 0.0
    if reach > 1 + voxel or not (radius > 1 + voxel).any():
        return np.ones((height, width), bool)
    return np.asarray(radius < (min(reach, 1.0) if reach > _SMALLEST_CIRCLE else 1.0) - voxel)
