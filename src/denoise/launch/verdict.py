"""Why a run ended: from the reports of its processes and the exit codes that their launcher saw, one sentence."""

from __future__ import annotations

import json
import signal
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from denoise import errors
from denoise.errors import DenoiseError, WorkerError
from denoise.files import write_text


@dataclass(frozen=True)
class Verdict:
    """Why the processes of one machine ended before they were done."""

    sentence: str
    is_loss: bool
    """A process was killed or crashed: another attempt may succeed. Otherwise it is for the user to mend."""
    is_consequence: bool
    """Somebody else was lost, and this one noticed."""
    exit_code: int
    time: float

    @property
    def summary(self) -> str:
        """One line, also of a traceback."""
        first, *others = self.sentence.splitlines()
        return f"{first} {others[-1].strip()}" if others else first

    def error(self, *, hint: str = "") -> WorkerError:
        """As the launcher raises it; a traceback is left without the hint."""
        return WorkerError(self.sentence + (hint if self.is_loss and "\n" not in self.sentence else ""), self.exit_code)

    def to_json(self) -> str:
        """For the other machines."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        """From another machine."""
        return cls(**json.loads(text))


def follows_from_a_loss(error: Exception) -> bool:
    """Whether an error says that a partner has gone: gloo tells of connections, nccl has errors of its own."""
    return isinstance(error, dist.DistError) or "onnection" in str(error)


def write_report(folder: Path, rank: int, local_rank: int, error: Exception) -> None:
    """What a process leaves for its launcher before it ends."""
    report = {
        "time": time.time(),
        "rank": rank,
        "kind": type(error).__name__,
        "message": str(error),
        "trace": "".join(traceback.format_exception(error)),
        "is_consequence": follows_from_a_loss(error),
    }
    write_text(folder / f"rank{local_rank}.json", json.dumps(report))


def first_failure(folder: Path, rank: int, exit_code: int, host: str) -> Verdict:
    """The error of the process that failed first, in its own words.

    Parameters
    ----------
    folder
        With the reports.
    rank, exit_code
        Of the process that the launcher saw end first.
    host
        " on node02" where there are several machines.
    """
    now = time.time()
    if exit_code < 0:
        sentence = (
            f"process {rank}{host} was killed by {signal.Signals(-exit_code).name} (by the system when memory "
            "ran out, or by somebody)"
        )
        return Verdict(sentence, True, False, 1, now)
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("rank*.json")]
    if not reports:
        sentence = (
            f"process {rank}{host} ended with exit code {exit_code} and left no message; "
            "a script that trains on several devices must call denoise under `if __name__ == '__main__':`"
        )
        return Verdict(sentence, True, False, 1, now)
    first = min(reports, key=lambda report: (report["is_consequence"], float(report["time"])))
    known = getattr(errors, first["kind"], None)
    when = float(first["time"])
    if isinstance(known, type) and issubclass(known, DenoiseError):
        return Verdict(first["message"], False, False, known.exit_code, when)
    sentence = f"process {first['rank']}{host} failed:\n{first['trace']}".rstrip()
    return Verdict(sentence, True, bool(first["is_consequence"]), 1, when)


def root_cause(verdicts: list[Verdict]) -> Verdict:
    """What happened first, rather than what followed from it; the same choice on every machine."""
    return min(verdicts, key=lambda verdict: (verdict.is_consequence, verdict.time))
