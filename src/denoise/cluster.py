"""Several machines: what the user asked for, and what Slurm or torchrun say about this process. Loads nothing heavy.

In go option values and environment variables, out come a ``Spread`` (start processes here, one command per machine)
or a ``Place`` (this process is one of many that somebody else has started).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from denoise.errors import ClusterError

#: Step ids from here on are no steps of ``srun``: the batch script, the interactive shell, the prolog.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
_FIRST_PORT, _PORTS = 20000, 10000
#: One host, or several that differ in numbers; the comma within brackets does not end it.
_HOSTS = r"(?:[^,\[\]\s]|\[[\d,-]+\])+"


@dataclass(frozen=True)
class Spread:
    """How one run is spread over machines, each of which is given the same command.

    Attributes
    ----------
    nodes
        Number of machines; 1: this one only, whatever Slurm or torchrun say; None: as they say.
    node_rank
        Which of them this is, from 0.
    rendezvous
        "HOST:PORT" on machine 0, where the others find it; the port must be free there.
    max_restarts
        How often the processes are started again after one of them was lost.

    Raises
    ------
    ClusterError
        The values contradict each other.
    """

    nodes: int | None = None
    node_rank: int | None = None
    rendezvous: str | None = None
    max_restarts: int = 0

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ClusterError(f"--max-restarts is {self.max_restarts}; expected 0 or more")
        if self.nodes is None or self.nodes == 1:
            given = "--node-rank" if self.node_rank else "--rendezvous" if self.rendezvous else None
            if given:
                raise ClusterError(f"{given} is of use with several machines only; say how many with --nodes")
            return
        if self.nodes < 1:
            raise ClusterError(f"--nodes is {self.nodes}; expected the number of machines, 1 or more")
        if self.rendezvous is None:
            raise ClusterError(
                f"--nodes {self.nodes} needs --rendezvous HOST:PORT, the same on every machine: the name of the one "
                "with --node-rank 0 and a port that is free there, e.g. node01:29500"
            )
        if self.node_rank is None or not 0 <= self.node_rank < self.nodes:
            found = "is missing" if self.node_rank is None else f"is {self.node_rank}"
            raise ClusterError(
                f"--node-rank {found}; with --nodes {self.nodes} each machine needs another one of 0 to "
                f"{self.nodes - 1}, and 0 is the one that --rendezvous names"
            )
        self.meeting_point  # noqa: B018 - refuses what is no HOST:PORT

    @property
    def meeting_point(self) -> tuple[str, int]:
        """Host and port of the rendezvous."""
        host, _, port = (self.rendezvous or "").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ClusterError(f"--rendezvous {self.rendezvous} is not HOST:PORT; expected e.g. node01:29500")
        return host.removeprefix("[").removesuffix("]"), int(port)

    def leads(self, environ: Mapping[str, str]) -> bool:
        """Whether this command is the first of those that work together: it says where the results are."""
        return self.node_rank in (None, 0) and (self.nodes is not None or speaks(environ))


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that Slurm or torchrun have started. Ranks count node by node."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    port_is_open: bool
    """Whether the launcher listens on the port already (torchrun), or rank 0 has to."""
    started_by: str


def place_of(environ: Mapping[str, str]) -> Place | None:
    """Where this process stands among others that it has to join; None where it is on its own.

    Raises
    ------
    ClusterError
        Slurm's variables cannot be understood.
    """
    if _tells_a_rank(environ):
        return Place(
            rank=int(environ["RANK"]),
            size=int(environ["WORLD_SIZE"]),
            local_rank=int(environ.get("LOCAL_RANK", "0")),
            local_size=int(environ.get("LOCAL_WORLD_SIZE", "1")),
            address=environ["MASTER_ADDR"],
            port=int(environ["MASTER_PORT"]),
            port_is_open=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            started_by="torchrun" if "TORCHELASTIC_RUN_ID" in environ else "a launcher that sets RANK and WORLD_SIZE",
        )
    step = _Step.of(environ)
    if step is None or step.is_one_per_node:
        return None
    return Place(
        # Not SLURM_PROCID, which a cyclic distribution deals out over the nodes: ranks of a node follow each other.
        rank=sum(step.tasks[: step.node]) + step.local_rank,
        size=sum(step.tasks),
        local_rank=step.local_rank,
        local_size=step.tasks[step.node],
        address=step.address,
        port=step.port,
        port_is_open=False,
        started_by="srun",
    )


def spread_of(spread: Spread, environ: Mapping[str, str]) -> Spread:
    """What the user asked for, completed by Slurm where ``srun`` has started one task on each of several nodes."""
    step = None if _tells_a_rank(environ) else _Step.of(environ)
    if spread.nodes is not None or step is None or not step.is_one_per_node:
        return spread
    return replace(spread, nodes=len(step.tasks), node_rank=step.node, rendezvous=f"{step.address}:{step.port}")


def speaks(environ: Mapping[str, str]) -> bool:
    """Whether this process tells people what happens: of many that were started by one command, the first."""
    if _tells_a_rank(environ):
        return environ["RANK"] == "0"
    return environ.get("SLURM_PROCID", "0") == "0" or _Step.of(environ) is None


def was_restarted(environ: Mapping[str, str]) -> bool:
    """Whether torchrun has started this process anew after one of its partners was lost."""
    return environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def _tells_a_rank(environ: Mapping[str, str]) -> bool:
    """Whether torchrun, or another launcher of processes, has set everything that joining needs."""
    if "RANK" not in environ:
        return False
    several = {"MASTER_ADDR", "MASTER_PORT"} <= environ.keys() and environ.get("WORLD_SIZE", "1") != "1"
    return several or "TORCHELASTIC_RUN_ID" in environ


@dataclass(frozen=True)
class _Step:
    """A step of ``srun`` with several tasks."""

    tasks: tuple[int, ...]
    """On each node of the step."""
    node: int
    local_rank: int
    address: str
    port: int

    @property
    def is_one_per_node(self) -> bool:
        """Whether each task is to start the processes of its node."""
        return len(self.tasks) > 1 and set(self.tasks) == {1}

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> _Step | None:
        # A batch script and the shell of salloc see SLURM_NTASKS and SLURM_PROCID=0 too, although nobody else was
        # started: only what belongs to a step counts. (salloc may open its shell in a step of a special number.)
        step_id = environ.get("SLURM_STEP_ID", "")
        if not step_id.isdecimal() or int(step_id) >= _FIRST_SPECIAL_STEP:
            return None
        if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
            return None
        hosts = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
        per_node = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or ""
        tasks = tasks_per_node(per_node)
        node, local_rank = int(environ.get("SLURM_NODEID", "0")), int(environ.get("SLURM_LOCALID", "0"))
        if node >= len(tasks) or local_rank >= tasks[node]:
            raise ClusterError(
                f"Slurm says that this is task {local_rank} of node {node}, but also that the nodes have {per_node} "
                "tasks (SLURM_LOCALID, SLURM_NODEID, SLURM_STEP_TASKS_PER_NODE); start without srun, or with --nodes"
            )
        # Two jobs on a node, or two steps of a job, must not meet at the same port; 131 has no divisor in common
        # with the number of ports.
        number = 131 * int(environ.get("SLURM_JOB_ID", "0")) + int(step_id)
        return cls(
            tasks,
            node,
            local_rank,
            environ.get("MASTER_ADDR") or host_names(hosts)[0],
            int(environ.get("MASTER_PORT") or _FIRST_PORT + number % _PORTS),
        )


def host_names(listed: str) -> list[str]:
    """The hosts of a Slurm node list.

    >>> host_names("node[01-03,7],gpu1")
    ['node01', 'node02', 'node03', 'node7', 'gpu1']

    Raises
    ------
    ClusterError
        It is not one.
    """
    if not re.fullmatch(rf"{_HOSTS}(?:,{_HOSTS})*", listed):
        raise _not_understood(listed)
    return [name for part in re.findall(_HOSTS, listed) for name in _expanded(part, listed)]


def _expanded(part: str, listed: str) -> list[str]:
    before, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    inside, _, after = rest.partition("]")
    names: list[str] = []
    for span in inside.split(","):
        first, _, last = span.partition("-")
        last = last or first
        if not first.isdecimal() or not last.isdecimal() or not 0 <= int(last) - int(first) < 100_000:
            raise _not_understood(listed)
        numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
        names.extend(before + number + end for number in numbers for end in _expanded(after, listed))
    return names


def _not_understood(listed: str) -> ClusterError:
    return ClusterError(
        f"Slurm's list of nodes {listed!r:.200} is not understood; set MASTER_ADDR to the name of the first node, or "
        "start with --nodes, --node-rank and --rendezvous"
    )


def tasks_per_node(listed: str) -> tuple[int, ...]:
    """Slurm's numbers of tasks, node by node.

    >>> tasks_per_node("2(x3),1")
    (2, 2, 2, 1)

    Raises
    ------
    ClusterError
        It is not such a list.
    """
    counts: list[int] = []
    for part in listed.split(","):
        found = re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", part)
        if found is None:
            raise ClusterError(
                f"Slurm's number of tasks per node {listed!r:.200} is not understood (expected e.g. 2(x3),1); start "
                "with --nodes, --node-rank and --rendezvous"
            )
        counts.extend([int(found[1])] * int(found[2] or 1))
    return tuple(counts)
