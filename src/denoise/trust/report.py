"""Everything that is known of a result, joined: the headline, curves, tests and verdict; as values, and as plain JSON.

In goes an ``Evidence``, out comes a ``Report``. Where the numbers were taken, from which files and by which software is
for the caller to add (``denoise.commands.report``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise.projections.angles import SplitAngles
from denoise.trust.after import judge
from denoise.trust.errors import ErrorSums, error_sums
from denoise.trust.evidence import Evidence, Frame
from denoise.trust.greys import GreyShift, Histograms, Material, grey_shift, histograms, materials
from denoise.trust.interval import Interval
from denoise.trust.pictures import Profile, edge_profiles
from denoise.trust.scores import RESOLVED, Scores, scores_of
from denoise.trust.seams import Seams, find_seams
from denoise.trust.spectra import RingSums, ring_sums
from denoise.trust.streaks import ENOUGH_ANGLES, StreakFacts, judge_streaks, measure_streaks, not_simulated
from denoise.trust.support import BandSupport, support_of
from denoise.trust.verdict import Finding, Severity, Verdict, finite

Float64Array = NDArray[np.float64]

FORMAT = "ct-denoise report"
FORMAT_VERSION = 2

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Report:
    """What the held-out slices say of a model."""

    scores: Scores
    rings: RingSums
    histograms: Histograms
    materials: tuple[Material, ...]
    greys: GreyShift
    bands: tuple[BandSupport, ...]
    seams: Seams | None
    streaks: StreakFacts | None
    profiles: tuple[Profile, ...]
    verdict: Verdict
    history: tuple[dict[str, Any], ...]
    voxel_size_um: float | None

    @classmethod
    def of(
        cls,
        evidence: Evidence,
        *,
        frame: Frame | None = None,
        borders: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
        history: Sequence[dict[str, Any]] = (),
        inputs: Verdict | None = None,
        angles: SplitAngles | None = None,
        voxel_size_um: float | None = None,
    ) -> Report:
        """Judge a model by its evidence.

        Parameters
        ----------
        frame
            Where the held-out part lies in the volume; None: places are counted from its first voxel.
        borders
            Rows and columns of tile borders, see ``denoise.trust.seams``; None: seams are not looked for.
        history
            Records of the training run, as ``history.jsonl`` holds them.
        inputs
            What was found on the splits (``denoise.trust.before``): the estimates rest on it.
        angles
            Of the whole scan, where the slices are square, whole, and turned about their middle. With fewer than 1.5
            directions for each column in a split, the errors are corrected for its streaks. None: not known.
        voxel_size_um
            In the plane, micrometres.
        """
        errors, rings = error_sums(evidence), ring_sums(evidence)
        scores, streaks, disturbed = _scored(evidence, errors, rings, inputs, angles)
        frame = frame or Frame(range(evidence.shape[0]), 0, 0)
        bands = tuple(band.within(frame) for band in support_of(evidence))
        greys = grey_shift(evidence, errors)
        seams = None if borders is None else find_seams(evidence.delivered, borders, evidence.mask)
        low, high = (float(v) for v in np.percentile(evidence.delivered[:, evidence.mask], (0.05, 99.95)))
        return cls(
            scores=scores,
            rings=rings,
            histograms=histograms(evidence, low, high),
            materials=materials(evidence),
            greys=greys,
            bands=bands,
            seams=seams,
            streaks=streaks,
            profiles=tuple(profile.within(frame) for profile in edge_profiles(evidence)),
            verdict=Verdict.of(
                (*judge(scores, rings, bands, greys, seams, history), *disturbed, *(inputs.findings if inputs else ()))
            ),
            history=tuple(history),
            voxel_size_um=voxel_size_um,
        )

    @property
    def headline(self) -> tuple[str, ...]:
        """Gain, dose, resolution and verdict, one sentence each."""
        scores = self.scores
        gain, dose = scores.gain, scores.equivalent_dose
        fine = self.as_length(scores.resolution_after)
        bound = " or finer" if scores.resolution_is_bound and fine != _UNKNOWN else ""
        most = scores.error_is_bound
        told = _said(dose, " times", most)
        return (
            f"Gain: {_said(gain, ' dB', most)}; PSNR {_said(scores.psnr_before, ' dB')} before, "
            f"{_said(scores.psnr_after, ' dB', most)} after.",
            "Equivalent dose: unknown."
            if told == _UNKNOWN
            else f"Equivalent dose: the plain reconstruction would have this squared error if exposed {told} as long.",
            f"Resolution (correlation with the truth 0.5): {self.as_length(scores.resolution_before)} before, "
            f"{fine}{bound} after.",
            self.verdict.sentence,
        )

    def as_length(self, resolution: Interval) -> str:
        """A frequency as the period that it stands for, in voxels and micrometres."""
        if math.isinf(resolution.value):
            return "2 voxels (the finest there is)"
        if math.isnan(resolution.value):
            return _UNKNOWN
        period = 1 / resolution.value
        size = "" if self.voxel_size_um is None else f" = {period * self.voxel_size_um:.3g} um"
        return f"{period:.1f} voxels{size}"

    def as_plain(self) -> dict[str, Any]:
        """For JSON: numbers, text, lists and objects; what is not known is null."""
        rings, weight = self.rings, self.rings.weight * len(self.rings.noise)
        return {
            "headline": list(self.headline),
            **self.verdict.as_plain(),
            "scores": self.scores.as_plain(),
            "voxel_size_um": self.voxel_size_um,
            "correlation": {
                "frequency_per_voxel": _plain(rings.frequencies),
                "before": _plain(rings.correlation_before()),
                "after": _plain(rings.correlation_after()),
                "after_standard_error": _plain(rings.error_after()),
                "after_for_one_view": _plain(rings.correlation_of_view()),
                "threshold": RESOLVED,
            },
            "power_spectra": {
                "frequency_per_voxel": _plain(rings.frequencies),
                "noise_before": _plain(rings.noise.sum(0) / weight),
                "noise_after": _plain(rings.passed.sum(0) / weight),
                "object": _plain(rings.signal.sum(0) / weight),
                "result": _plain(rings.delivered.sum(0) / weight),
            },
            "histograms": {
                "edges": _plain(self.histograms.edges),
                "before": self.histograms.before.tolist(),
                "after": self.histograms.after.tolist(),
            },
            "materials": [asdict(m) for m in self.materials],
            "grey_values": {"result": _plain(self.greys.grey), "unseen": _plain(self.greys.unseen)},
            "bands": [asdict(b) for b in self.bands],
            "profiles": [
                {
                    "place_zyx": [p.z, p.y, p.x],
                    "direction_yx": list(p.direction),
                    **{n: _plain(getattr(p, n)) for n in ("distance", "noisy", "denoised", "other")},
                }
                for p in self.profiles
            ],
            "seams": None if self.seams is None else asdict(self.seams),
            "streaks": None if self.streaks is None else asdict(self.streaks),
            "history": list(self.history),
        }


def _plain(values: Float64Array) -> list[float | None]:
    return [finite(float(f"{v:.6g}")) for v in values]


def _scored(
    evidence: Evidence, errors: ErrorSums, rings: RingSums, inputs: Verdict | None, angles: SplitAngles | None
) -> tuple[Scores, StreakFacts | None, tuple[Finding, ...]]:
    """The headline, corrected for streaks where that is needed and possible, or as bounds; and what is to be said."""
    columns = evidence.shape[2]
    if angles is not None and angles.fewest_directions >= ENOUGH_ANGLES * columns:
        return scores_of(evidence, errors, rings), None, ()
    if angles is not None and evidence.shape[1] == columns and len(evidence.splits) == 2:
        streaks = measure_streaks(evidence, rings, angles)
        scores = scores_of(evidence, errors, rings, streaks if streaks.can_be_told else None)
        return (scores if streaks.can_be_told else scores.as_bounds()), streaks, (judge_streaks(streaks),)
    few = inputs is not None and any(
        f.name == "enough_angles" and f.severity >= Severity.RESERVATION for f in inputs.findings
    )
    scores = scores_of(evidence, errors, rings)
    if not few:
        return scores, None, ()
    if len(evidence.splits) > 2:
        reason = "there are more than two splits"
    elif evidence.shape[1] < columns:
        reason = "only parts of slices were held out"
    else:
        reason = "the angles are not known"
    return scores.as_bounds(), None, (not_simulated(reason),)


def _said(interval: Interval, unit: str, is_bound: bool = False) -> str:
    """A value with the ends of its interval, as far as they are known; of a bound, its upper end."""
    if is_bound and math.isfinite(interval.high):
        return f"at most {interval.high:.1f}{unit}"
    if is_bound or not math.isfinite(interval.value):
        return _UNKNOWN
    return f"{interval.value:.1f}{unit} ({interval.ends(unit)})"
