"""Finding partners, agreeing with them, and noticing that one is gone; participants are threads here."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import TCPStore

from denoise.errors import ClusterError, DenoiseError, OutputError
from denoise.launch import elastic, meeting, watch
from denoise.launch.elastic import _Launcher
from denoise.launch.meeting import MACHINES, PROCESSES, Meeting, interface_between, own_address
from denoise.launch.verdict import Verdict
from denoise.launch.watch import Watch


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr(watch, "_BEAT_SECONDS", 0.05)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(meeting, "_SILENT_SECONDS", 0.2)


def each(*works: Callable[[], Any]) -> list[Any]:
    """Everybody at once; what each returned or raised."""

    def outcome(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except DenoiseError as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(outcome, works))


def come(port: int, rank: int, size: int, **said: Any) -> Meeting:
    found = Meeting.open("localhost", port, rank, size, MACHINES)
    found.roll_call({"output": "run", "max_restarts": 0, **said})
    return found


def met(port: int, size: int = 2) -> list[Meeting]:
    return each(*(lambda rank=rank: come(port, rank, size) for rank in range(size)))


# Coming together. ----------------------------------------------------------------------------------------------------


def test_all_hear_what_each_has_said(port: int) -> None:
    def come_and_tell(rank: int) -> list[str]:
        return [
            found["mine"]
            for found in Meeting.open("localhost", port, rank, 3, MACHINES).roll_call({"mine": "abc"[rank]})
        ]

    # The others' store is the first one's: it must not go before they have read it.
    places = [Meeting.open("localhost", port, 0, 3, MACHINES)]
    first = threading.Thread(target=places[0].roll_call, args=({"mine": "a"},))
    first.start()
    assert each(lambda: come_and_tell(1), lambda: come_and_tell(2)) == [["a", "b", "c"]] * 2
    first.join()


@pytest.mark.usefixtures("impatient")
def test_a_machine_that_does_not_come_is_named_with_how_long_and_what_to_do(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="denoise"):
        missing = each(lambda: come(port, 0, 4), lambda: come(port, 2, 4))
    message = rf"machine 1, 3 of 0 to 3 did not come to localhost:{port} within 0 minutes; start the same command there"
    assert any(isinstance(error, ClusterError) and str(error).startswith(message) for error in missing), missing
    assert all(isinstance(error, ClusterError) for error in missing)
    assert f"waiting up to 0 minutes for machine 1, 3 of 0 to 3 at localhost:{port}" in caplog.text


@pytest.mark.usefixtures("impatient")
def test_a_first_machine_that_is_not_there_is_named(port: int) -> None:
    with pytest.raises(
        ClusterError, match=rf"machine 0 could not be reached at localhost:{port} \(.*refused; tried for"
    ):
        come(port, 1, 2)


def test_a_name_that_does_not_exist_is_refused_at_once(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(meeting, "PATIENCE_SECONDS", 1e6)
    monkeypatch.setattr(socket, "create_connection", unknown)
    with pytest.raises(ClusterError, match="Name or service not known"):
        come(port, 1, 2)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"port {taken} of this machine \(.*\) is taken"):
            come(taken, 0, 2)


def test_the_first_machine_under_the_name_of_another_is_refused(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    # 192.0.2.0/24 is kept free for examples (RFC 5737).
    with pytest.raises(ClusterError, match=rf"192\.0\.2\.1:{port} does not lead to this machine"):
        Meeting.open("192.0.2.1", port, 0, 2, MACHINES)


@pytest.mark.usefixtures("impatient")
def test_two_machines_with_one_number_are_refused(port: int) -> None:
    outcomes = each(*(lambda rank=rank: come(port, rank, 3) for rank in (0, 1, 1)))
    assert any("there is a machine 1 at" in str(error) and "--node-rank" in str(error) for error in outcomes), outcomes


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"output": "other"}, "has output = other, but machine 0 on"),
        ({"max_restarts": 3}, "has max_restarts = 3, but machine 0 on"),
    ],
)
def test_those_who_were_told_different_things_part_again(port: int, said: dict[str, Any], words: str) -> None:
    outcomes = each(lambda: come(port, 0, 2), lambda: come(port, 1, 2, **said))
    for error in outcomes:
        assert isinstance(error, ClusterError)
        assert words in str(error)
        assert "--nodes 1" in str(error)


def test_a_store_that_has_seen_an_earlier_attempt_does_not_confuse_the_next(port: int) -> None:
    """torchrun keeps its store when it starts processes again, and these come in any order."""

    def come_again(rank: int, word: str, after: float) -> list[str]:
        time.sleep(after)
        found = Meeting.open("localhost", port, rank, 2, PROCESSES, port_is_open=True)
        words = [each["mine"] for each in found.roll_call({"mine": word})]
        found.store.set(f"of {rank}", word)
        return words

    launcher = TCPStore("localhost", port, None, True, timedelta(seconds=30), wait_for_workers=False)
    assert each(lambda: come_again(0, "a", 0.0), lambda: come_again(1, "b", 0.0)) == [["a", "b"]] * 2
    assert each(lambda: come_again(0, "c", 0.5), lambda: come_again(1, "d", 0.0)) == [["c", "d"]] * 2
    assert launcher.get("round1/of 0") == b"a"
    assert launcher.get("round2/of 0") == b"c"


# The guard. ----------------------------------------------------------------------------------------------------------


def test_the_guard_is_held_by_the_first_only_and_until_its_end(port: int) -> None:
    held: list[str] = []

    @contextmanager
    def guard() -> Iterator[None]:
        held.append("taken")
        yield
        held.append("given back")

    def work(found: Meeting) -> list[str]:
        with found.guarded(guard):
            return held[:1]

    assert each(*(lambda found=found: work(found) for found in met(port))) == [["taken"], ["taken"]]
    assert held == ["taken", "given back"]


def test_what_the_guard_refuses_is_refused_to_all_in_its_words(port: int) -> None:
    def guard() -> Any:
        raise OutputError("in use by process 7")

    def work(found: Meeting) -> None:
        with found.guarded(guard):
            pytest.fail("not refused")

    for error in each(*(lambda found=found: work(found) for found in met(port))):
        assert isinstance(error, OutputError)
        assert str(error) == "in use by process 7"


# Watching. -----------------------------------------------------------------------------------------------------------


def test_a_partner_that_falls_silent_is_a_loss_and_one_that_beats_is_none(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LONGEST_SILENCE_SECONDS", 2.0)
    lost = threading.Event()
    watches = [Watch(found, lambda _: lost.set()) for found in met(port)]
    for each_watch in watches:
        each_watch.start()
    with watches[0].judging():
        assert not lost.wait(0.5), watches[0].loss
        watches[1].close()
        assert lost.wait(30.0)
        assert "machine 1 on" in str(watches[0].loss)
        assert "was lost (nothing was heard of it for" in str(watches[0].loss)
    watches[0].close()


def test_what_a_partner_says_of_its_failure_ends_the_same_attempt_only(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_GRACE_SECONDS", 0.2)
    lost = threading.Event()
    watches = [Watch(found, lambda _: lost.set()) for found in met(port)]
    for each_watch in watches:
        each_watch.start()
    watches[1].tell_failure("process 1 was killed")
    with watches[0].judging(attempt=1):
        assert not lost.wait(1.0), "that was an attempt ago"
    with watches[1].judging(attempt=1), watches[0].judging(attempt=1):
        watches[1].tell_failure("process 1 was killed again")
        assert lost.wait(30.0)
        assert watches[0].loss == watches[0].failure_of_others() == "process 1 was killed again"
    for each_watch in watches:
        each_watch.close()


def test_machines_agree_on_what_came_first(port: int) -> None:
    cause = Verdict("killed", True, False, 1, 5.0)
    consequence = Verdict("connection lost", True, True, 1, 4.0)
    launchers = [_Launcher(found) for found in met(port)]
    agreed = each(
        *(lambda pair=pair: pair[0]._agreed(0, pair[1]) for pair in zip(launchers, (consequence, cause), strict=True))
    )
    assert agreed == [cause, cause]
    for launcher in launchers:
        launcher.close()


def test_without_a_word_from_a_machine_it_is_what_was_lost_and_there_is_no_other_attempt(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elastic, "_SILENT_SECONDS", 0.5)
    launchers = [_Launcher(found) for found in met(port)]
    launchers[1].close()
    begun = time.monotonic()
    verdict = launchers[0]._agreed(0, Verdict("connection lost", True, True, 1, 4.0))
    assert verdict.sentence.startswith("machine 1 on")
    assert "--resume" in verdict.sentence
    assert not verdict.is_loss
    assert time.monotonic() - begun < 30
    launchers[0].close()


def test_a_store_that_went_away_with_the_first_machine_is_waited_for_until_the_watch_has_noticed_too(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launchers = [_Launcher(found) for found in met(port)]
    second = launchers[1]
    second.close()
    monkeypatch.setattr(_Launcher, "_exchange", lambda *_: None)  # as after an error of the connection

    def notice() -> None:
        second._watch._round = -math.inf

    threading.Timer(0.5, notice).start()
    verdict = second._agreed(0, Verdict("connection lost", True, True, 1, 4.0))
    assert verdict.sentence.startswith("machine 0 on")
    assert "its connection broke" in verdict.sentence
    launchers[0].close()


# Interfaces. ---------------------------------------------------------------------------------------------------------


def test_one_machine_needs_no_interface_and_one_of_several_takes_that_of_its_address() -> None:
    own = own_address("localhost")
    assert interface_between([own, own], 1) is None
    assert interface_between(["192.0.2.1", own], 1) == "lo"


def test_a_first_machine_whose_name_is_its_loopback_takes_the_interface_towards_another() -> None:
    loopback, other = "127.0.1.1", own_address("localhost")
    assert interface_between([loopback, other], 0) == "lo", "the way to the other, who is here in this test"


def test_a_port_that_a_former_store_had_is_shared_again(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """As torch's launcher shares it; torch 2.13 does not where it has chosen the port itself."""
    monkeypatch.setattr(meeting, "_free_port", lambda: port)
    for _ in range(2):
        ours = meeting._listening(0)
        theirs = TCPStore(
            "localhost", ours.port, None, True, timedelta(seconds=5), wait_for_workers=False, multi_tenant=True
        )
        theirs.set("said", "here")
        assert ours.get("said") == b"here"
        del ours, theirs
