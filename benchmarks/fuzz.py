"""Throws damaged and hostile files at everything that reads a user's files; reports what is neither read nor refused.

    python benchmarks/fuzz.py --inputs 10000                    # of each target
    python benchmarks/fuzz.py --inputs 500 --targets tiff,zarr --seed 7 --findings scratch/findings
    python benchmarks/fuzz.py --replay scratch/findings/tiff-7-000123

A quarter of the inputs is built from descriptions of each format (`fuzz_structures`), the rest are changes to small
valid files (`fuzz_mutation`), of which those that reach new lines become seeds themselves. Batches run in child
processes with a time limit and an address-space limit, so that hangs, memory bombs and crashes of native code are
findings too. A finding is a folder with the input and ``finding.txt``. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import json
import logging
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from denoise.errors import DenoiseError
from denoise.volumes import hdf5_trial
from fuzz_mutation import LineCoverage, Tree, mutated
from fuzz_structures import STRUCTURES
from fuzz_targets import TARGETS, Target, input_folder, refusal_problem

_SECONDS = 5
"""Of processor time for one input; a busy machine makes no hangs."""
_SECONDS_IN_NATIVE_CODE = 8
"""Of processor time, after which a child that does not even raise is ended."""
_SECONDS_WAITING = 120
"""By the clock: for whatever waits and does nothing."""
_ADDRESS_SPACE = 2 * 2**30
"""Beyond what the process has before its first input."""
_LARGEST_GROWTH = 600 * 2**20
"""Of resident memory by one input."""
_BATCH = 500
_TRACED_SHARE = 0.1
_MOST_SEEDS = 2000


class Hang(BaseException):
    """An input took longer than the limit."""


@dataclass
class Batch:
    """What a child tells its parent."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[Tree, str]] = field(default_factory=list)
    seeds: list[Tree] = field(default_factory=list)
    lines: set[tuple[str, int]] = field(default_factory=set)
    inputs: int = 0


class Campaign:
    """All inputs of one target."""

    def __init__(self, target: Target, number: int, findings: Path, scratch: Path) -> None:
        self.target = target
        self.number = number
        self.findings = findings
        self.place = scratch / "input"
        self.valid = target.seeds()
        self.corpus = list(self.valid)
        self.coverage = LineCoverage(target.traced)
        self.outcomes: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.inputs = 0

    def run(self, inputs: int) -> None:
        """Run batches of both kinds until there were so many inputs."""
        k = 0
        while self.inputs < inputs:
            structured = k % 4 == 3 and self.target.name in STRUCTURES
            self._batch(k, structured, min(_BATCH, inputs - self.inputs))
            k += 1

    def _batch(self, k: int, structured: bool, count: int) -> None:
        mine, theirs = multiprocessing.Pipe(duplex=False)
        child = os.fork()
        if child == 0:
            mine.close()
            _as_child(self, theirs, f"{self.number}-{self.target.name}-{k}", structured, count)
        theirs.close()
        received: list[Batch] = []
        while True:
            try:
                received.append(pickle.loads(mine.recv_bytes()))  # noqa: S301 - from our own child
            except EOFError:
                break
        _, status = os.waitpid(child, 0)
        for batch in received:
            self._take(batch)
        if os.WIFSIGNALED(status) or os.WEXITSTATUS(status):
            how = (
                signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
            )
            trace = (self.place.parent / "crash.txt").read_text(errors="replace")
            tree = pickle.loads((self.place.parent / "tree").read_bytes())  # noqa: S301 - from our own child
            self._take(Batch(Counter({f"ended by {how}": 1}), [(tree, f"ended by {how}\n{trace}")], inputs=1))

    def _take(self, batch: Batch) -> None:
        self.inputs += batch.inputs
        self.outcomes += batch.outcomes
        self.coverage.known |= batch.lines
        if len(self.corpus) < _MOST_SEEDS:
            self.corpus += batch.seeds
        for tree, report in batch.findings:
            kind = finding_kind(report)
            self.kinds[kind] += 1
            if self.kinds[kind] <= 3:
                folder = (
                    self.findings
                    / f"{self.target.name.replace(' ', '-')}-{self.number}-{self.inputs:06d}-{len(self.kinds)}"
                )
                with input_folder(tree, folder):
                    (folder / "finding.txt").write_text(f"{self.target.name}\n{report}", errors="replace")


def finding_kind(report: str) -> str:
    """The last line of the package in a traceback, with the type of the error: alike findings have one kind."""
    lines = report.rstrip().splitlines()
    last = next((line for line in reversed(lines) if line and not line[0].isspace()), "")
    ours = next((line.strip() for line in reversed(lines) if "/denoise/" in line and 'File "' in line), "")
    return f"{last.split(':')[0][:60]} {ours[-80:]}"


def _as_child(campaign: Campaign, pipe: Connection, name: str, structured: bool, count: int) -> None:
    """Run a batch and leave; never returns."""
    status = 1
    try:
        _limit(campaign.place.parent / "crash.txt")
        rng = random.Random(name)
        if structured:

            @seed(rng.getrandbits(32))
            @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
                      suppress_health_check=list(HealthCheck))  # fmt: skip
            @given(STRUCTURES[campaign.target.name])
            def examples(tree: Tree) -> None:
                _one(campaign, pipe, tree, traced=False)

            examples()
        else:
            for _ in range(count):
                # What has reached new lines is seldom valid: by itself it would lead away from all that is.
                seeds = campaign.valid if rng.random() < 0.5 else campaign.corpus
                tree = mutated(rng.choice(seeds), rng, campaign.corpus)
                _one(campaign, pipe, tree, traced=rng.random() < _TRACED_SHARE)
        status = 0
    except BaseException:  # noqa: BLE001 - told to the parent by the exit code
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)


def _limit(crash: Path) -> None:
    """Make hangs, memory bombs and native crashes of this process visible to its parent."""
    log = crash.open("w")
    faulthandler.enable(log)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _hang)
    signal.signal(signal.SIGVTALRM, _hang)
    faulthandler.register(signal.SIGPROF, file=log, chain=True)
    hdf5_trial.SECONDS = 2  # of a process that others wait for by the clock
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # libraries in C speak there


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang(f"no end: {signal.Signals(number).name}")


def _one(campaign: Campaign, pipe: Connection, tree: Tree, *, traced: bool) -> None:
    """Run one input and tell the parent."""
    place = campaign.place
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        context = input_folder(tree, place)
        context.__enter__()
    except (OSError, ValueError):
        return  # names that cannot lie on a disk together
    (place.parent / "tree").write_bytes(pickle.dumps(tree))
    batch = Batch(inputs=1)
    signal.setitimer(signal.ITIMER_PROF, _SECONDS_IN_NATIVE_CODE)  # its default action ends the process
    outcome, report = observed(campaign.target, place, campaign.coverage if traced else None)
    signal.setitimer(signal.ITIMER_PROF, 0)
    batch.outcomes[outcome] += 1
    if report:
        batch.findings.append((tree, report))
    elif traced and campaign.coverage.new:
        batch.seeds.append(tree)
        batch.lines = campaign.coverage.new
        campaign.coverage.known |= campaign.coverage.new
        campaign.corpus.append(tree)
    pipe.send_bytes(pickle.dumps(batch))


def observed(target: Target, place: Path, coverage: LineCoverage | None) -> tuple[str, str]:
    """A word for what happened, and a report where that must not happen."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _start_clocks(_SECONDS_WAITING, _SECONDS)
    try:
        with coverage.watching() if coverage else nullcontext():
            outcome = target.run(place)
        report = ""
    except DenoiseError as error:
        _start_clocks(0, 0)
        # Numbers and names differ from input to input; what was wrong is told by the words.
        words = [w for w in str(error).replace(str(place), "").split() if w.isalpha()]
        outcome, report = f"{type(error).__name__}: {' '.join(words)[:60]}", refusal_problem(error) or ""
        report = f"{report}\n{str(error)[:3000]}" if report else ""
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is a finding
        _start_clocks(0, 0)
        outcome, report = f"FINDING {type(error).__name__}", traceback.format_exc()
    finally:
        _start_clocks(0, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if not report and grown > _LARGEST_GROWTH:
        outcome, report = "FINDING memory", f"took {grown / 1e6:.0f} MB"
    return outcome, report


def _start_clocks(waiting: float, working: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, waiting)
    signal.setitimer(signal.ITIMER_VIRTUAL, working)


def replay(folder: Path) -> None:
    """Run one finding again, without limits, and show what happens."""
    name = (folder / "finding.txt").read_text(errors="replace").splitlines()[0]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "input"
        shutil.copytree(folder, place)
        (place / "finding.txt").unlink()
        try:
            print(TARGETS[name].run(place))
        except DenoiseError as error:
            print(f"refused: {error}")


def table(campaigns: list[tuple[Campaign, float]]) -> str:
    """Markdown: inputs, distinct outcomes, share that was read, kinds of finding, inputs per second."""
    rows = ["| target | inputs | read | distinct outcomes | findings (kinds) | inputs/s |", "|---|---|---|---|---|---|"]
    for campaign, seconds in campaigns:
        read = sum(n for word, n in campaign.outcomes.items() if word.startswith(("read", "done")))
        findings = f"{sum(campaign.kinds.values())} ({len(campaign.kinds)})"
        rows.append(
            f"| {campaign.target.name} | {campaign.inputs:,} | {100 * read / max(campaign.inputs, 1):.0f} % | "
            f"{len(campaign.outcomes)} | {findings} | {campaign.inputs / max(seconds, 1e-9):.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Run the campaigns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--inputs", type=int, default=1000, help="of each target")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path)
    arguments = parser.parse_args()
    if arguments.replay:
        replay(arguments.replay)
        return
    gc.freeze()  # children then copy fewer pages
    ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX: arenas of many threads would fill the address space
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    arguments.findings.mkdir(parents=True, exist_ok=True)
    done: list[tuple[Campaign, float]] = []
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        for name in arguments.targets.split(","):
            campaign = Campaign(TARGETS[name], arguments.seed, arguments.findings, Path(scratch))
            begun = time.monotonic()
            campaign.run(arguments.inputs)
            done.append((campaign, time.monotonic() - begun))
            print(table(done[-1:]).splitlines()[-1], flush=True)
            for kind, count in campaign.kinds.most_common():
                print(f"    {count} x {kind}", flush=True)
            record: dict[str, Any] = {"target": name, "inputs": campaign.inputs, "outcomes": campaign.outcomes}
            with (arguments.findings / "campaigns.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
    print("\n" + table(done))


if __name__ == "__main__":
    main()
