"""Images and line profiles of held-out slices, for whoever draws them: plain arrays, in the volume's units."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from denoise.trust.evidence import Evidence, Frame
from denoise.volumes.volume import Float32Array

Float64Array = NDArray[np.float64]

#: Half the length of a profile, and half of how many parallel lines it is the mean of, voxels.
_REACH, _BESIDE = 16, 2
_SMOOTHED = 1.5


@dataclass(frozen=True)
class Section:
    """One section through the held-out region, float32 (rows, columns) each.

    ``residual`` is what was taken away: noisy - denoised. ``other`` and ``of_view`` are a split, and what the model
    made
    of the splits that do not contain it: both show the truth, with independent noise.
    """

    direction: str
    """"xy", "xz" or "yz"; the section lies through the middle of the region."""
    noisy: Float32Array
    denoised: Float32Array
    residual: Float32Array
    other: Float32Array
    of_view: Float32Array


@dataclass(frozen=True)
class Profile:
    """Grey values along a line across an edge, mean of five parallel lines.

    Attributes
    ----------
    z, y, x
        Its centre, voxel of the held-out region.
    direction
        Unit vector (y, x) along the line.
    distance
        (points,): voxels from the edge.
    noisy, denoised, other
        (points,) grey values; ``other`` is a split.
    """

    z: int
    y: int
    x: int
    direction: tuple[float, float]
    distance: Float64Array
    noisy: Float64Array
    denoised: Float64Array
    other: Float64Array

    def within(self, frame: Frame) -> Profile:
        """With its centre as slice number, row and column of the volume."""
        z, y, x = frame.place(self.z, self.y, self.x)
        return replace(self, z=z, y=y, x=x)


def sections(evidence: Evidence) -> tuple[Section, ...]:
    """The three sections through the middle of the held-out region."""
    middle = [n // 2 for n in evidence.shape]
    noisy = evidence.full
    stacks = (noisy, evidence.delivered, noisy - evidence.delivered, evidence.others[0], evidence.outputs[0])
    return tuple(
        Section(name, *(np.ascontiguousarray(stack.take(middle[axis], axis=axis)) for stack in stacks))
        for axis, name in enumerate(("xy", "xz", "yz"))
    )


def edge_profiles(evidence: Evidence, count: int = 3) -> tuple[Profile, ...]:
    """Profiles across the steepest edges of the delivered image, far from each other and from the border.

    Parameters
    ----------
    count
        At most so many.
    """
    depth, height, width = evidence.shape
    if min(height, width) <= 2 * _REACH + 2:
        return ()
    reach = _REACH + _BESIDE
    found: list[Profile] = []
    full = evidence.full
    for z in dict.fromkeys(np.linspace(0, depth - 1, count + 2).round().astype(int)[1:-1].tolist()):
        smooth = gaussian_filter(evidence.delivered[z].astype(np.float64), _SMOOTHED)
        gradient = np.stack(np.gradient(smooth))  # (2, Y, X)
        steepness = np.where(evidence.mask, np.hypot(*gradient), 0)
        steepness[:reach], steepness[-reach:], steepness[:, :reach], steepness[:, -reach:] = 0, 0, 0, 0
        for other in found:  # not the same edge again, slices further on
            steepness[max(other.y - reach, 0) : other.y + reach, max(other.x - reach, 0) : other.x + reach] = 0
        y, x = (int(i) for i in np.unravel_index(int(steepness.argmax()), steepness.shape))
        if steepness[y, x] == 0:
            continue
        along = gradient[:, y, x] / steepness[y, x]
        distance = np.arange(-_REACH, _REACH + 1, dtype=np.float64)
        aside = np.arange(-_BESIDE, _BESIDE + 1, dtype=np.float64)
        across = np.array([-along[1], along[0]])
        place = (
            np.array([y, x])[:, None, None] + along[:, None, None] * distance + across[:, None, None] * aside[:, None]
        )
        noisy, denoised, split = (
            map_coordinates(stack[z].astype(np.float64), place, order=1, mode="nearest").mean(axis=0)
            for stack in (full, evidence.delivered, evidence.others[0])
        )
        found.append(Profile(z, y, x, (float(along[0]), float(along[1])), distance, noisy, denoised, split))
    return tuple(found)
