"""A result that is not whole yet: the hidden folder beside its final name, and the journal of what is done.

``.NAME.unfinished/`` holds the partial result, a description of the run that makes it (``run.json``), the lock of that
run, and one journal per process. Whatever ends the run, the next one knows from it which slices need not be made again.
"""

from __future__ import annotations

import json
import os
import re
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise import files
from denoise.errors import OutputError
from denoise.locking import only_run
from denoise.volumes.units import rounded
from denoise.volumes.volume import describe_numbers

_RUN, _LOCK, _REPLACED, _NAMED = "run.json", "lock", "replaced", "named"
#: In the description of a run: whether what it has done is to be kept for another.
KEPT = "kept for --resume"
#: Facts that runs of earlier versions do not state.
_NEW = {"grey values", "splits", "tta", "dataset", "mean and deviation", "tiles that were asked for"}
#: Where the input is known by its grey values, its files may have moved.
_KNOWN_BY, _PLACES = "grey values", "inputs"
#: Which runs of earlier versions state with all digits.
_SIZE = "voxel size"
#: Facts that are known by a hash, which tells nobody anything.
_IN_WORDS = {
    "grey values": "other grey values in the input",
    "splits": "other grey values in the splits",
    "model": "another model",
}


@dataclass(frozen=True)
class Unfinished:
    """The unfinished state of one output."""

    final: Path

    @property
    def folder(self) -> Path:
        """Where everything lies; on the disk of the final name, so that publishing is a rename."""
        return self.final.with_name(f".{self.final.name}.unfinished")

    @property
    def result(self) -> Path:
        """The partial result; it keeps the suffix, by which libraries choose a format."""
        return self.folder / f"result{self.final.suffix}"

    @property
    def exists(self) -> bool:
        """Whether a run began a result here that can be continued."""
        # A run may die after it has given the result its final name, and before it has removed this folder.
        was_named = (self.folder / _NAMED).exists() and not os.path.lexists(self.result)
        return (self.folder / _RUN).is_file() and not was_named

    @property
    def facts(self) -> dict[str, Any]:
        """What the run that began it said that it is made from.

        Raises
        ------
        OutputError
            The description is damaged.
        """
        return _facts(self.folder / _RUN)

    @property
    def is_kept(self) -> bool:
        """Whether the run that began it meant it to be continued: another may not clear it away unasked."""
        return self.exists and bool(self.facts.get(KEPT))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only run that makes this result; the lock ends with the process, however it ends.

        Raises
        ------
        OutputError
            Another run holds it; says which.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with only_run(self.folder / _LOCK, str(self.final)):
            yield

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Note that the partial result has its final form and size, and what it is made from."""
        partial = self.folder / f"{_RUN}.partial"
        partial.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        files.sync(partial)
        partial.replace(self.folder / _RUN)
        files.sync(self.folder)

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Refuse to continue what was begun from something else.

        Raises
        ------
        OutputError
            Names the first difference.
        """
        then = self.facts
        now = json.loads(json.dumps(facts))
        begun, asked = _slices(then), _slices(now)
        if begun and asked and begun != asked:
            raise self._other(f"slices {describe_numbers(begun)}, this run has {describe_numbers(asked)}")
        untold = _NEW - then.keys() | ({_PLACES} if _KNOWN_BY in then and _KNOWN_BY in now else set())
        for name in sorted({*then, *now} - untold):
            if then.get(name) != now.get(name) and not (name == _SIZE and _rounded(then.get(name)) == now.get(name)):
                plain = f"{name} = {then.get(name)!r}, this run has {now.get(name)!r}"
                raise self._other(f"{_IN_WORDS[name]} than this run has" if name in _IN_WORDS else plain)

    def _other(self, how: str) -> OutputError:
        return OutputError(
            f"the unfinished {self.final} was begun with {how}; set it back to resume, or begin anew with --overwrite"
        )

    @property
    def progress(self) -> str:
        """How many slices are done, of which; empty where there are none.

        Raises
        ------
        OutputError
            The description is damaged.
        """
        begun = _slices(self.facts)
        done = int(self.done(len(begun)).sum()) if begun else 0
        return f"{done} of its slices {describe_numbers(begun)} are done" if begun and done else ""

    def done(self, depth: int) -> NDArray[np.bool_]:
        """Which of the slices are stored, by the journals of all processes so far; (depth,)."""
        done = np.zeros(depth, dtype=bool)
        for journal in sorted(self.folder.glob("done-*.txt")):
            # A line that the death of its process has cut short, or that of the machine damaged, is not believed.
            for line in journal.read_text(encoding="ascii", errors="replace").split("\n")[:-1]:
                if found := re.fullmatch(r"(\d{1,18}) (\d{1,18})", line):
                    done[int(found[1]) : int(found[2])] = True
        return done

    def journal(self) -> Journal:
        """A new journal, for one process."""
        host = socket.gethostname().split(".")[0]
        return Journal(self.folder / f"done-{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}.txt")

    def publish(self, *, overwrite: bool) -> None:
        """Give the whole result its final name, and remove the rest; inside ``locked``."""
        (self.folder / _NAMED).touch()
        files.publish(self.result, self.final, aside=self.folder / _REPLACED, overwrite=overwrite)
        self.discard()

    def restore_replaced(self) -> None:
        """Bring back an earlier result, where a run died between moving it aside and putting its own in place."""
        aside = self.folder / _REPLACED
        if os.path.lexists(aside) and not os.path.lexists(self.final):
            aside.rename(self.final)

    def clear(self) -> None:
        """Remove what an earlier run left, but the lock; nothing counts as done before anything is removed."""
        self.restore_replaced()
        if self.folder.is_dir():
            (self.folder / _RUN).unlink(missing_ok=True)
            for path in self.folder.iterdir():
                if path.name != _LOCK:
                    files.discard(path)

    def discard(self) -> None:
        """Remove the folder."""
        self.clear()
        files.discard(self.folder)


@dataclass(frozen=True)
class Journal:
    """Runs of slices that one process has stored, a line each; appended only after their data is on the disk."""

    path: Path

    def append(self, runs: list[tuple[int, int]]) -> None:
        """Add runs of slices, (start, stop) counted from 0 in the output, and wait for the disk."""
        with self.path.open("a", encoding="ascii") as file:
            file.writelines(f"{start} {stop}\n" for start, stop in runs)
            file.flush()
            os.fsync(file.fileno())


def _facts(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} is damaged ({error}); begin anew with --overwrite") from error
    if not isinstance(found, dict):
        raise OutputError(f"{path} is damaged (no table); begin anew with --overwrite")
    return found


def _slices(facts: Mapping[str, Any]) -> range | None:
    """Numbers of the slices that a run makes, by its facts; None where they do not say."""
    shape, first, step = (facts.get(name) for name in ("shape", "first slice", "slice step"))
    depth = shape[0] if isinstance(shape, list) and shape else None
    if not (type(depth) is type(first) is type(step) is int and depth > 0 and step > 0):
        return None
    return range(first, first + depth * step, step)


def _rounded(size: object) -> list[float] | None:
    return [rounded(n) for n in size if isinstance(n, float)] if isinstance(size, list) else None


def runs_of(wanted: NDArray[np.bool_]) -> list[range]:
    """The runs of True in a row of booleans."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    return [range(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
