"""Where the machines of a run, or its processes, find each other: a key-value store on the first of them.

In go an address and a number of participants, out comes a ``Meeting`` with everybody there, or one sentence that says
who was waited for. Waiting is done in Python, so that signals are obeyed meanwhile.
"""

from __future__ import annotations

import json
import logging
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from denoise import errors
from denoise.errors import ClusterError, DenoiseError

_log = logging.getLogger(__name__)

#: Schedulers start the parts of a job within seconds; by hand, on several machines, it takes minutes.
PATIENCE_SECONDS = 600.0
#: After so long, people are told what is waited for.
_SILENT_SECONDS = 5.0
#: How long the first participant stays, after an error of its own, to let the others read it.
_FAREWELL_SECONDS = 5.0
#: What everybody must have been told alike.
_SHARED_FACTS = ("size", "output", "torch", "max_restarts")

Guard = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Party:
    """Who meets: machines that were told of each other, or processes that a scheduler has started."""

    name: str
    advice: str


MACHINES = Party(
    "machine",
    "start the same command there with its own --node-rank, and see that nothing between the machines blocks the port",
)
PROCESSES = Party(
    "process", "see that the scheduler has started it, and that nothing between the machines blocks the port"
)


class Meeting:
    """A store that all participants are connected to, ``rank`` of ``size`` being this one."""

    def __init__(
        self, store: Store, rank: int, size: int, where: tuple[str, int], party: Party, *, port_is_open: bool
    ) -> None:
        self.store, self.rank, self.size, self.party = store, rank, size, party
        self.address, self.port = where
        self.hosts: list[str] = [socket.gethostname()] * size
        self._begun, self._has_told = time.monotonic(), False
        self._port_is_open = port_is_open

    @classmethod
    def open(
        cls, address: str, port: int, rank: int, size: int, party: Party, *, port_is_open: bool = False
    ) -> Meeting:
        """Connect to the store on the first participant, which listens unless its launcher does already.

        Raises
        ------
        ClusterError
            The port is taken, or the first participant was not to be reached in ten minutes.
        """
        listens = rank == 0 and not port_is_open
        if listens:
            store = _listening(port)
            port = store.port
            _require_own_address(address, port)
        else:
            _reach(address, port, party)
            store = _connected(address, port)
        return cls(store, rank, size, (address, port), party, port_is_open=port_is_open)

    def roll_call(self, said: dict[str, Any]) -> list[dict[str, Any]]:
        """Wait for everybody; what each has said.

        Raises
        ------
        ClusterError
            Somebody did not come, came twice, or works on something else.
        """
        name = self.party.name
        mine = {**said, "host": socket.gethostname(), "size": self.size, "torch": torch.__version__}
        with self._connection("the others came"):
            # torchrun's store has seen earlier attempts, with the same numbers.
            if not self._port_is_open and self.store.add(f"claimed/{self.rank}", 1) > 1:
                raise ClusterError(
                    f"there is a {name} {self.rank} at {self.address}:{self.port} already; each {name} needs a number "
                    "of its own" + (" (--node-rank)" if self.party is MACHINES else "")
                )
            everybody = self._gathered({**mine, "nonce": uuid.uuid4().hex})
            self.store.add("counted", int(self.rank > 0))
        self.hosts = [each["host"] for each in everybody]
        for rank, each in enumerate(everybody):
            differing = [fact for fact in _SHARED_FACTS if each.get(fact) != everybody[0].get(fact)]
            if differing:
                fact = differing[0]
                if self.rank == 0:
                    self.wait_for_readers("counted")
                raise ClusterError(
                    f"{name} {rank} on {each['host']} has {fact} = {each.get(fact)}, but {name} 0 on "
                    f"{everybody[0]['host']} has {everybody[0].get(fact)}; give all of them the same command, and "
                    "--nodes 1 to runs that have nothing to do with each other"
                )
        return everybody

    def _gathered(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        """What all have said, in a part of the store that belongs to this call alone.

        The first participant opens a round and closes it with what it has heard. The others may find the round of an
        earlier attempt: they wait for one that was closed with their own words in it.
        """
        registered = 0
        while True:
            number = self.store.add("round", int(self.rank == 0 and not registered))
            if number > registered:
                registered = number
                here = [f"round{number}/here/{rank}" for rank in range(self.size)]
                self.store.set(here[self.rank], json.dumps(mine))
            if registered and self.rank == 0 and self.store.check(here):
                self.store.set(f"round{number}/all", json.dumps([json.loads(self.store.get(key)) for key in here]))
            if registered and self.store.check([f"round{number}/all"]):
                everybody: list[dict[str, Any]] = json.loads(self.store.get(f"round{number}/all"))
                if any(each["nonce"] == mine["nonce"] for each in everybody) or self.rank >= len(everybody):
                    self.store = PrefixStore(f"round{number}", self.store)
                    return everybody
            if registered:
                self._be_patient([rank for rank, key in enumerate(here) if not self.store.check([key])] or [0])
            else:
                self._be_patient([0])

    @contextmanager
    def guarded(self, guard: Guard) -> Iterator[None]:
        """Hold the guard on the first participant while the block runs; what it refuses, it refuses to all.

        Raises
        ------
        DenoiseError
            As the guard raised it, on every participant.
        """
        if self.rank > 0:
            with self._connection("the run began"):
                while not self.store.check(["opened"]):
                    self._be_patient([0])
                refusal = json.loads(self.store.get("opened"))
                self.store.add("read", 1)
            if refusal:
                raise getattr(errors, refusal["kind"])(refusal["message"])
            yield
            return
        with ExitStack() as held:
            try:
                held.enter_context(guard())
            except DenoiseError as error:
                self.store.set("opened", json.dumps({"kind": type(error).__name__, "message": str(error)}))
                self.wait_for_readers("read")
                raise
            self.store.set("opened", "null")
            yield

    def wait_for_readers(self, key: str) -> None:
        """On the first participant, whose end is the end of the store: give the others time to read what it says."""
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while self.store.add(key, 0) < self.size - 1 and time.monotonic() < deadline:
            time.sleep(0.05)

    def _be_patient(self, missing: list[int]) -> None:
        """Wait a little for somebody, but not for ever."""
        waited = time.monotonic() - self._begun
        who = f"{self.party.name} {', '.join(map(str, missing))} of 0 to {self.size - 1}"
        if waited > PATIENCE_SECONDS:
            raise ClusterError(
                f"{who} did not come to {self.address}:{self.port} within {PATIENCE_SECONDS / 60:.0f} minutes; "
                + self.party.advice
            )
        if waited > _SILENT_SECONDS and not self._has_told:
            _log.info("waiting up to %.0f minutes for %s at %s:%d", PATIENCE_SECONDS / 60, who, self.address, self.port)
            self._has_told = True
        time.sleep(0.1)

    @contextmanager
    def _connection(self, until: str) -> Iterator[None]:
        try:
            yield
        except dist.DistError as error:
            raise ClusterError(
                f"{self.party.name} 0 at {self.address}:{self.port} went away before {until}; its own message says why"
            ) from error


def _listening(port: int) -> TCPStore:
    """A store that torch's launcher in this process shares; at port 0 at any that is free."""
    try:
        return TCPStore(
            "localhost",
            port or _free_port(),
            None,
            True,
            timedelta(seconds=PATIENCE_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except dist.DistNetworkError as error:
        raise ClusterError(
            f"port {port} of this machine ({socket.gethostname()}) is taken or may not be used; choose another one"
        ) from error


def _free_port() -> int:
    """Chosen here: torch forgets to share a store whose port it has chosen, if a former one had the same (2.13)."""
    with socket.create_server(("localhost", 0)) as server:
        return int(server.getsockname()[1])


def _connected(address: str, port: int) -> TCPStore:
    try:
        return TCPStore(address, port, None, False, timedelta(seconds=PATIENCE_SECONDS), wait_for_workers=False)
    except dist.DistError as error:
        raise ClusterError(f"what listens at {address}:{port} is not this program; choose another port") from error


def _require_own_address(address: str, port: int) -> None:
    """Refuse the name of another machine: the others would look for this one there."""
    try:
        with socket.create_connection((address, port), timeout=10.0):
            pass
    except OSError as error:
        raise ClusterError(
            f"{address}:{port} does not lead to this machine ({socket.gethostname()}), although it is the first one: "
            f"{error}; name an address of this machine that the others can reach"
        ) from error


def _reach(address: str, port: int, party: Party) -> None:
    begun, told = time.monotonic(), False
    while True:
        try:
            with socket.create_connection((address, port), timeout=5.0):
                return
        except OSError as error:
            waited = time.monotonic() - begun
            if waited > PATIENCE_SECONDS or (isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME):
                raise ClusterError(
                    f"{party.name} 0 could not be reached at {address}:{port} ({error}; tried for {waited:.0f} s); "
                    + party.advice
                ) from error
            if waited > _SILENT_SECONDS and not told:
                _log.info("waiting up to %.0f minutes for %s:%d", PATIENCE_SECONDS / 60, address, port)
                told = True
        time.sleep(0.5)


def own_address(partner: str) -> str:
    """The address of this machine that a partner sees, at the meeting point or elsewhere."""
    family, _, _, _, found = socket.getaddrinfo(partner, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(found)  # of UDP: nothing is sent
        return str(probe.getsockname()[0])


def interface_between(addresses: list[str], rank: int) -> str | None:
    """The network interface by which this machine reaches the others; None where there are no others.

    gloo takes the one that the machine's own name belongs to, which on many is the loopback.

    Parameters
    ----------
    addresses
        Of all participants, as ``own_address`` of the meeting point found them: where the first one's own name leads
        to the loopback, its address is of no use to itself, but the others' are.
    """
    mine = addresses[rank]
    others = [address for address in addresses if address != mine]
    if not others:
        return None
    if mine == addresses[0]:
        mine = own_address(others[0])
    for name, found in psutil.net_if_addrs().items():
        if any(each.address.split("%")[0] == mine for each in found):
            return str(name)
    return None
