"""What ``denoise prepare`` leaves in a folder: the names, and in each volume what it was made from."""

from __future__ import annotations

import glob
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoise.errors import ConfigError, OutputError
from denoise.projections.angles import SplitAngles
from denoise.projections.lost import runs_of
from denoise.projections.scan import Scan
from denoise.volumes import describe_numbers, is_whole, open_volume, stored_description
from denoise.volumes.unfinished import Unfinished

_MADE_FROM = "denoise prepare "
#: Stated where it is not what it always was until 2026-11-28.
_LEFT_OUT, _DEALT, _WEIGHTS, _COUNTS = "projections left out", "projections dealt", "weights", "counts per photon"
_FORMULA = "counts below one photon"
_BEFORE: Mapping[str, Any] = {
    _LEFT_OUT: "none",
    _DEALT: "in turn",
    _WEIGHTS: "of each part",
    _COUNTS: 0.0,
    _FORMULA: "as others",
}
#: Facts that change where the scan is copied.
_OF_THE_FILE = ("scan", "scan of")
#: Which of the volumes it is.
_PART = "part"
#: Of the splits alone: what the full reconstruction is made from does not depend on it.
_OF_SPLITS = {"splits", _DEALT, _WEIGHTS}


@dataclass(frozen=True)
class Layout:
    """The names of everything that ``prepare`` writes for a sample."""

    folder: Path
    sample: str
    splits: int

    @property
    def full(self) -> str:
        """The reconstruction from all angles."""
        return f"{self.sample}_full"

    def split(self, k: int) -> str:
        """The reconstruction from the projections of split k."""
        return f"{self.sample}_split{k}"

    @property
    def volumes(self) -> list[str]:
        """The full reconstruction and the splits."""
        return [self.full, *(self.split(k) for k in range(self.splits))]

    @property
    def angles(self) -> Path:
        """The angles of all projections that are used, in degrees, one a line, and which split each belongs to."""
        return self.folder / f"{self.sample}_angles.txt"

    @property
    def config(self) -> Path:
        """The config to train from."""
        return self.folder / f"{self.sample}_config.yaml"

    @property
    def trainings(self) -> list[Path]:
        """Folders of runs on these volumes, under the names that they have by default."""
        return sorted(self.folder.glob(f"{glob.escape(self.sample)}_training_*/"))

    def dataset(self) -> dict[str, Any]:
        """The section ``dataset`` of that config."""
        return {
            "folder": ".",
            "splits": [self.split(k) for k in range(self.splits)],
            "full": self.full,
            "sample": self.sample,
        }


def made_from(
    scan: Scan, dealt: SplitAngles, *, stripes: bool, center: float | None, counts_per_photon: float
) -> dict[str, Any]:
    """What makes a reconstruction another one; without a centre where it is not known yet."""
    return {
        "scan": str(scan.path.resolve()),
        "scan of": scan.path.stat().st_mtime_ns,
        "splits": dealt.count,
        **({} if dealt.is_in_turn else {_DEALT: "by direction"}),
        **({} if dealt.is_weighted_as_before else {_WEIGHTS: "of the whole scan"}),
        **({} if center is None else {"centre": float(center)}),
        "stripes removed": stripes,
        **({_COUNTS: counts_per_photon, _FORMULA: "lowered"} if counts_per_photon else {}),
        **({_LEFT_OUT: ", ".join(runs_of(scan.left_out))} if scan.left_out else {}),
        **({} if scan.is_whole else {"rows": [scan.rows[0], scan.rows[-1] + 1]}),
    }


def of_part(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same of one of the volumes."""
    return {**facts, _PART: name}


def description(facts: Mapping[str, Any]) -> str:
    """The same as a text to store with a volume."""
    return _MADE_FROM + json.dumps(facts)


def stored_center(path: Path, columns: int) -> float | None:
    """The rotation centre that a volume says it was made with; None where it does not say."""
    said = _stored_facts(path).get("centre")
    return said if type(said) is float and 0 <= said <= columns - 1 else None


def begun_counts(layout: Layout) -> float | None:
    """The counts of a photon that what is there was made with, whole or not; None where nothing is there, or says.

    Raises
    ------
    OutputError
        The description of an unfinished volume is damaged.
    """
    for path in (layout.folder / name for name in layout.volumes):
        unfinished = Unfinished(path)
        found = _stored_facts(path) if is_whole(path) else unfinished.facts if unfinished.exists else {}
        if _OF_THE_FILE[0] in found:
            said = found.get(_COUNTS, _BEFORE[_COUNTS])
            return float(said) if isinstance(said, int | float) and 0 <= said < math.inf else None
    return None


def _stored_facts(path: str | Path) -> dict[str, Any]:
    """What a volume says that it was made from; nothing where it does not say."""
    text = html.unescape(stored_description(path))
    try:
        found, _ = json.JSONDecoder().raw_decode(text, text.index(_MADE_FROM) + len(_MADE_FROM))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def require_one_division(paths: Sequence[str]) -> None:
    """Refuse splits of one scan that were not made together: parts of different divisions share projections.

    Raises
    ------
    ConfigError
        Names two of them, and the first difference.
    """
    facts = [_facts_of_folder(path) for path in paths]
    for path, said in zip(paths[1:], facts[1:], strict=True):
        if difference := _first_difference(facts[0], said, {_PART}):
            name, one, other = difference
            raise ConfigError(
                f"{paths[0]} and {path} were made from one scan, but not together: with {name} = {one!r} and "
                f"{other!r}, so that their noise is not independent or their grey values differ; name splits of "
                "one `denoise prepare`, or make them anew with --overwrite"
            )


def how_full_differs(full: str, split: str) -> str | None:
    """Why the full reconstruction of a scan does not belong to a split of it; None where it does, or does not say."""
    made, parts = (_facts_of_folder(path) for path in (full, split))
    if difference := _first_difference(made, parts, {_PART} | _OF_SPLITS):
        name, one, other = difference
        return f"was made with {name} = {one!r}, the splits with {other!r}"
    return None


def _facts_of_folder(path: str) -> dict[str, Any]:
    """What `prepare` writes are folders; it takes a while to look into others, which say nothing."""
    return _stored_facts(path) if Path(path).is_dir() else {}


def _first_difference(
    one: Mapping[str, Any], other: Mapping[str, Any], besides: set[str]
) -> tuple[str, object, object] | None:
    """Of two volumes of one scan: a fact besides these, and both values; None too where they are not of one scan."""
    if not all(name in other and other[name] == one.get(name) for name in _OF_THE_FILE):
        return None  # or not made by `prepare`
    for name in sorted((one.keys() | other.keys()) - besides):
        values = tuple(found.get(name, _BEFORE.get(name)) for found in (one, other))
        if values[0] != values[1]:
            return name, values[0], values[1]
    return None


def require_same_origin(path: Path, scan: Scan, asked: Mapping[str, Any]) -> None:
    """Refuse to go on beside a reconstruction of something else, or made in another way.

    Parameters
    ----------
    asked
        As ``made_from`` gives it. The scan may have been moved or copied since.

    Raises
    ------
    OutputError
        Names the first difference.
    """
    found, columns = open_volume(path), scan.shape[2]
    expected = (len(scan.rows), columns, columns)
    if (found.shape, found.slice_numbers) != (expected, scan.rows):
        raise OutputError(
            f"{path} has shape {found.shape} and slices {describe_numbers(found.slice_numbers)}, and this "
            f"reconstruction {expected} and {describe_numbers(scan.rows)}; it is of another scan or of other rows: "
            "choose another --out"
        )
    said = _stored_facts(path)
    for name, value in {**_BEFORE, **asked}.items():
        before = said.get(name, _BEFORE.get(name, value) if said else value)
        if name not in _OF_THE_FILE and before != value:
            raise OutputError(
                f"{path} is whole and was made with {name} = {before!r}, this run has {value!r}; set it back to "
                "resume, make all anew with --overwrite, or choose another --out"
            )
