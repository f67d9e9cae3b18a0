"""Powers and cross-powers of held-out slices on Fourier rings, slice by slice, and what follows from them.

In goes an ``Evidence``; out come sums per slice and ring, which can be resampled (``bootstrap``), and curves:
correlation with the unknown truth before and after, noise power, support of the result by the other split.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from denoise.resolution import Rings
from denoise.trust.evidence import Evidence

Float64Array = NDArray[np.float64]

#: Standard deviations by which the signal of a ring must stand out from chance before anything is said of it.
CERTAINTY = 3.0


_COLUMNS = ("noise", "signal", "delivered", "delivered_signal", "view", "view_signal", "passed")
#: Rings are joined over this share of their frequency: the curves of small images would be ragged.
_JOINED = 0.08
_FEWEST_SLICES = 4


@dataclass(frozen=True)
class RingSums:
    """Sums over Fourier rings; arrays are float64 (slices, rings), squared grey values.

    S is the unknown truth, Y the full reconstruction, F the delivered image, f the output of one view.

    Attributes
    ----------
    count
        K, the number of splits.
    frequencies, modes, weight
        (rings,): cycles per voxel; independent modes of one slice; and what to divide sums by for the power per voxel
        and mode, in squared grey values: a white spectrum has the variance everywhere.
    noise
        |N|^2 of the full reconstruction.
    signal
        |S|^2, from the cross-powers of the splits: unbiased, negative by chance where there is none.
    delivered, delivered_signal
        |F|^2 and Re(F S*), unbiased.
    view, view_signal
        |f|^2 and Re(f S*), unbiased, means over the views.
    passed
        |N'|^2, the noise that is left in the delivered image: its answer to the probe, or half the scatter of the
        outputs.
    """

    count: int
    frequencies: Float64Array
    modes: Float64Array
    weight: Float64Array
    noise: Float64Array
    signal: Float64Array
    delivered: Float64Array
    delivered_signal: Float64Array
    view: Float64Array
    view_signal: Float64Array
    passed: Float64Array

    def of(self, slices: NDArray[np.int64]) -> RingSums:
        """The same of some slices, drawn with repetition."""
        return replace(self, **{name: getattr(self, name)[slices] for name in _COLUMNS})

    @property
    def known(self) -> NDArray[np.bool_]:
        """(rings,): whether the truth's power stands out from chance."""
        return np.asarray(self.signal.sum(0) > CERTAINTY * self.deviation)

    @property
    def deviation(self) -> Float64Array:
        """(rings,): standard deviation of the summed ``signal`` where there is none.

        Re(N0 N1*) has the variance |N0|^2 |N1|^2 / 2 in each mode; there are K(K-1)/2 pairs, whose products are
        uncorrelated, and both half-planes are summed.
        """
        pairs = self.count * (self.count - 1) / 2
        of_split = self.count * self.noise.sum(0)
        return np.asarray(of_split / np.sqrt(2 * self.modes * pairs * len(self.noise)))

    def correlation_before(self) -> Float64Array:
        """Correlation of the full reconstruction with the truth: sqrt(S / (S + N)); NaN where nothing is known."""
        signal, noise = self.signal.sum(0), self.noise.sum(0)
        ratio = np.clip(signal, 0, None) / np.maximum(signal + noise, 1e-300)
        return np.where(self.known, np.sqrt(ratio), np.nan)

    def correlation_after(self) -> Float64Array:
        """Correlation of the delivered image with the truth; NaN where nothing is known."""
        return self._correlation(self.delivered_signal, self.delivered)

    def correlation_of_view(self) -> Float64Array:
        """As ``correlation_after``, of the output of one view: cross-FRC."""
        return self._correlation(self.view_signal, self.view)

    def error_after(self, draws: int = 100) -> Float64Array:
        """Standard error of ``correlation_after``, from slices drawn with repetition; NaN where slices are few."""
        count = len(self.noise)
        if count < _FEWEST_SLICES:
            return np.full(len(self.frequencies), np.nan)
        rng = np.random.default_rng(0)
        curves = [self._curve_of(rng.integers(0, count, count)) for _ in range(draws)]
        return np.where(self.known, np.std(curves, axis=0), np.nan)

    def _curve_of(self, slices: NDArray[np.int64]) -> Float64Array:
        drawn = self.of(slices)
        signal = np.maximum(drawn.signal.sum(0), 1e-300)
        norm = np.sqrt(np.maximum(drawn.delivered.sum(0), 1e-300)) * np.sqrt(signal)
        return np.asarray(drawn.delivered_signal.sum(0) / norm)

    def _correlation(self, cross: Float64Array, power: Float64Array) -> Float64Array:
        signal = np.clip(self.signal.sum(0), 1e-300, None)
        norm = np.sqrt(np.maximum(power.sum(0), 1e-300)) * np.sqrt(signal)
        return np.where(self.known, cross.sum(0) / norm, np.nan)


def ring_sums(evidence: Evidence) -> RingSums:
    """Sums of an evidence; the field of view is tapered as the resolution's is (``denoise.resolution``)."""
    y, x = evidence.shape[1:]
    rings = Rings.of(y, x)
    columns: list[list[NDArray[np.float64]]] = [[] for _ in _COLUMNS]

    def power(one: torch.Tensor, other: torch.Tensor) -> NDArray[np.float64]:
        return np.asarray(rings.sums(one, other).numpy())

    independent = np.array_equal(evidence.views[0][:1], evidence.splits[0][:1])
    for part in evidence.slices():
        splits, others, outputs = (
            [rings.transform(torch.from_numpy(v[0])) for v in stacks]
            for stacks in (part.splits, part.others, part.outputs)
        )
        count = len(splits)
        full = sum(splits[1:], splits[0]) / count
        noise = sum(power(s - full, s - full) for s in splits) / (count * (count - 1))
        delivered = rings.transform(torch.from_numpy(part.delivered[0]))
        view_signal = sum(power(f, t) for f, t in zip(outputs, others, strict=True)) / len(outputs)
        if part.response is None:
            cross = view_signal
            # Views without one split each differ by that one over all others.
            apart = 1 if independent else (count - 1) ** 2
            passed = apart * sum(power(f - delivered, f - delivered) for f in outputs) / (count * (count - 1))
        else:
            probe, response = (rings.transform(torch.from_numpy(v[0])) for v in (part.probe, part.response))
            cross = power(delivered, full) - power(probe, response)
            passed = power(response, response)
        row = (
            noise,
            power(full, full) - noise,
            power(delivered, delivered),
            cross,
            sum(power(f, f) for f in outputs) / len(outputs),
            view_signal,
            passed,
        )
        for column, values in zip(columns, row, strict=True):
            column.append(np.asarray(values))
    sums = RingSums(
        len(evidence.splits),
        rings.frequencies.numpy(),
        rings.modes.numpy(),
        rings.weight(torch.from_numpy(evidence.mask)).numpy(),
        *(np.array(column) for column in columns),
    )
    return joined(sums)


def joined(sums: RingSums) -> RingSums:
    """The same with neighbouring rings joined, the more the higher their frequency; the first ones stay single."""
    starts = ring_starts(len(sums.frequencies))
    modes = np.add.reduceat(sums.modes, starts)
    frequencies = np.add.reduceat(sums.frequencies * sums.modes, starts) / modes
    columns = [np.add.reduceat(getattr(sums, name), starts, axis=1) for name in _COLUMNS]
    return RingSums(sums.count, frequencies, modes, np.add.reduceat(sums.weight, starts), *columns)


def ring_starts(count: int) -> list[int]:
    """The first ring of each group of ``joined``."""
    starts, ring = [], 0
    while ring < count:
        starts.append(ring)
        ring += max(1, round(_JOINED * (ring + 1)))
    return starts
