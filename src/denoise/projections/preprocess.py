"""From detector counts to line integrals of attenuation, and stripes (the cause of rings) taken out of sinograms.

In: ``RawRows``. Out: float32 (angles, rows, columns), dimensionless: attenuation per pixel times pixels. Whatever had
to be repaired on the way is counted and handed back, never silent.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from denoise.errors import ScanError
from denoise.projections.scan import RawRows
from denoise.volumes.volume import Float32Array

# Where the file holds whole counts, a ray that left none is taken for half a count, as is usual for Poisson data. Where
# it holds floats the size of a count is unknown, and 1e-4 is the dynamic range of a 14-bit detector: a line integral
# of 9.2 instead of infinity.
_LEAST_COUNT = 0.5
_LEAST_TRANSMISSION = 1e-4
#: How much the logarithm of no photons is lowered below that of half a one. 0.25 leaves the least error from 1.5
#: photons on; more makes it noisier (0.5: 0.05 off, and a standard deviation of 0.94 instead of 0.82 with one photon).
_LOWERED = 0.25
#: Narrower than any detector; with two columns the smoothing fits a line through one point.
_FEWEST_COLUMNS = 5


@dataclass(frozen=True)
class Repairs:
    """What had to be made up because it was not measured.

    Attributes
    ----------
    dead_pixels
        Detector pixels whose mean flat is not above their mean dark; interpolated from live neighbours in their row.
    clipped_rays
        Rays that transmitted less than can be measured (often: not more than the dark); raised to that least value, or
        half a photon.
    rays
        How many rays there were.
    """

    dead_pixels: int = 0
    clipped_rays: int = 0
    rays: int = 0

    def __add__(self, other: Repairs) -> Repairs:
        return Repairs(
            self.dead_pixels + other.dead_pixels, self.clipped_rays + other.clipped_rays, self.rays + other.rays
        )

    @property
    def sentence(self) -> str | None:
        """What to tell the user; None where nothing was repaired."""
        parts = []
        if self.dead_pixels:
            parts.append(f"{self.dead_pixels} dead pixels (flat not above dark) were filled in from their neighbours")
        if self.clipped_rays:
            share = 100 * self.clipped_rays / self.rays
            parts.append(
                f"{self.clipped_rays} of {self.rays} rays ({share:.2g} %) transmitted less than can be measured and "
                "were raised to what can"
            )
        return "; ".join(parts) or None


def line_integrals(raw: RawRows, counts_per_photon: float = 0.0) -> tuple[Float32Array, Repairs]:
    """Flat- and dark-correct counts and take the logarithm: -log((data - dark) / (white - dark)).

    Flats and darks are averaged over their frames first. All angles share that average, so its noise is common to all
    splits: it counts as signal (rings), which is why scans have many flats.

    The logarithm of counts N with mean m and variance g m, g counts for each photon, is log m - g / (2 m) on average:
    rays that few photons pass seem more attenuated than they are, by 1 / (2 photons), in all splits alike. The average
    of log(N + g / 2) is log m up to terms of 1 / photons^2 (Haldane 1956, Ann. Hum. Genet. 20:309, doi
    10.1111/j.1469-1809.1955.tb01285.x). Below 3 photons it is too high; counts of less than one photon are lowered for
    that, by 0.25 at none. So it is right to 0.011 from 1.5 photons on, where log N is up to 0.19 off; with 1 photon it
    is 0.08 too high, with half a photon 0.33.

    Parameters
    ----------
    counts_per_photon
        g, from ``photon_transfer``; 0: the logarithm of the counts as they are.

    Returns
    -------
    float32 array, (angles, rows, columns), all finite; and what had to be repaired.

    Raises
    ------
    ScanError
        A detector row has no pixel whose flat is above its dark.
    """
    dark = raw.dark.mean(axis=0, dtype=np.float64)
    beam = raw.white.mean(axis=0, dtype=np.float64) - dark
    dead = beam <= 0
    if dead.all(axis=1).any():
        row = int(np.flatnonzero(dead.all(axis=1))[0])
        raise ScanError(
            f"no pixel of detector row {raw.first_row + row} of {raw.source} has flats above its darks (mean flat "
            f"{raw.white[:, row].mean():.6g}, mean dark {raw.dark[:, row].mean():.6g}); expected more light with the "
            "beam than without: were the two exchanged, or was the shutter closed? Record them again"
        )
    beam[dead] = 1.0
    least = np.full(beam.shape, _LEAST_TRANSMISSION) if not raw.whole_counts else _LEAST_COUNT / beam

    values = raw.data - dark.astype(np.float32)
    values *= (1.0 / beam).astype(np.float32)
    floor = least.astype(np.float32)
    clipped = int(np.count_nonzero((values < floor) & ~dead))
    if counts_per_photon:
        _expect_photons(values, (counts_per_photon / beam).astype(np.float32))
        floor *= np.float32(math.exp(-_LOWERED))
    np.maximum(values, floor, out=values)
    np.log(values, out=values)
    np.negative(values, out=values)
    for damaged in np.flatnonzero(dead.any(axis=1)):
        _fill(values[:, damaged], ~dead[damaged])
    return values, Repairs(int(dead.sum()), clipped, values.size)


def _expect_photons(values: Float32Array, photon: Float32Array) -> None:
    """Turn transmissions into such whose logarithm is right on average; ``photon``, (rows, columns), is that of one.

    Below none there is the detector's noise alone, and its logarithm would be a long tail.
    """
    np.maximum(values, 0, out=values)
    for frame in values:  # one by one: what this takes beside them is small
        lowered = np.exp(_LOWERED * np.minimum(frame / photon - 1, 0)) if (frame < photon).any() else None
        frame += photon / 2
        if lowered is not None:
            frame *= lowered


def remove_stripes(sinograms: Float32Array) -> Float32Array:
    """Take stripes of every kind out of each row's sinogram.

    Vo, Atwood, Drakopoulos 2018, Opt. Express 26:28396, doi 10.1364/OE.26.028396, algorithms 3 to 6 combined, as in
    algotom, on the transmission. We depart in the windows: the published 51 and 21 columns are meant for detectors of
    2560 and shrink here with the width. With 51 on 256 columns a centred cylinder lost a quarter of its grey value.

    Whatever is symmetric about the rotation axis looks like a stripe, real or not: a centred tube is changed as well.

    The method sorts every column over the angles and takes medians of neighbours in the sorted order, so noise of one
    angle ends up in others: call it on each split by itself, never before splitting. (Foam of 512 angles, windows 51
    and 21: called before splitting, it gave the noise of two splits a correlation of -0.008; after, none.)

    Parameters
    ----------
    sinograms
        (angles, rows, columns) line integrals.

    Returns
    -------
    float32 array of the same shape.

    Raises
    ------
    ScanError
        Fewer than 5 columns: a stripe has no neighbours there.
    """
    from algotom.prep.removal import remove_all_stripe

    columns = sinograms.shape[2]
    if columns < _FEWEST_COLUMNS:
        raise ScanError(
            f"stripes cannot be removed from {columns} detector columns, there must be {_FEWEST_COLUMNS} at least; "
            "leave --remove-stripes out"
        )
    large = int(np.clip(51 * columns / 2560, 11, 51)) | 1
    small = int(np.clip(21 * columns / 2560, 5, 21)) | 1
    result = np.empty_like(sinograms)

    def correct(row: int) -> None:
        transmission = np.exp(-sinograms[:, row])
        try:
            with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 where columns are constant over the angles
                transmission = remove_all_stripe(transmission, la_size=large, sm_size=small)
        except ValueError as error:
            # algotom refuses to judge columns that differ by less than 1e-5: then there are no stripes.
            if "noise-free" not in str(error):
                raise
        result[:, row] = -np.log(transmission)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(correct, range(sinograms.shape[1])))
    return result


def _fill(sinogram: Float32Array, alive: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
    """Interpolate the dead columns of a sinogram (angles, columns) from the nearest live ones, in place."""
    live, dead = np.flatnonzero(alive), np.flatnonzero(~alive)
    right = np.searchsorted(live, dead).clip(0, live.size - 1)
    left = (np.searchsorted(live, dead) - 1).clip(0)
    distance = np.maximum(live[right] - live[left], 1)
    share = ((dead - live[left]) / distance).clip(0, 1).astype(np.float32)
    sinogram[:, dead] = (1 - share) * sinogram[:, live[left]] + share * sinogram[:, live[right]]
