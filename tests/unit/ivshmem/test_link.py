# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from doorbelld.errors import LimitExceeded, ProtocolBroken, ServerClosed, ServerUnavailable
from doorbelld.fds.owned import Fd
from doorbelld.ivshmem import link as module
from doorbelld.ivshmem.link import ClientState, Link
from doorbelld.ivshmem.membership import Change, PeerJoined, PeerLeft, VectorAdded, Welcomed
from doorbelld.ivshmem.receive import Backoff, map_memory
from support.fdcount import no_descriptor_left, no_leaks
from support.otherserver import HANG_UP, LIES, OtherServer, Script, cut, greeting, message, play
from support.rawclient import DEADLINE, identity

PATIENT = {"silence", "half a version"}


class Ear:
    """A link and what it told."""

    def __init__(self, path: str, **options: Any) -> None:
        self.changes: list[Change] = []
        self.rings: list[tuple[int, int]] = []
        self.states: list[tuple[ClientState, str]] = []
        self.turn: Callable[[], None] = lambda: None
        options = {"vectors_max": 64, "reconnect": True, **options}
        loop = asyncio.get_running_loop()
        self.link = Link(
            path, loop, changed=self.changed, rung=self.rung, moved=self.moved, accept=self.accept, **options
        )

    def changed(self, change: Change) -> None:
        self.changes.append(change)
        self.turn()

    def rung(self, vector: int, count: int) -> None:
        self.rings.append((vector, count))

    def moved(self, _old: ClientState, new: ClientState) -> None:
        self.states.append((new, self.link.reason))

    def accept(self, memory: Fd) -> None:
        map_memory(memory).close()

    async def until(self, happened: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not happened():
                await asyncio.sleep(0.001)

    @property
    def known(self) -> dict[int, list[int]]:
        membership = self.link.membership
        return {p.id: [*map(identity, p.eventfds)] for p in (*membership.peers.values(), membership.own)}


@pytest.fixture
async def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setattr(module, "Backoff", lambda: Backoff(0.002, 0.01))
    with no_leaks():
        yield f"{tmp_path}/s"


async def test_the_way_of_a_connection(path: str) -> None:
    ear = Ear(path)
    ear.link.start()
    assert ear.states == []  # nothing is told before the loop runs
    await ear.until(lambda: ear.states)
    assert ear.states[0][0] is ClientState.CONNECTING
    assert "No such file or directory; start the server" in ear.link.reason
    with OtherServer(path, vectors=3) as server:
        await ear.until(lambda: ear.link.membership.own.vectors == 3)
        assert (ear.link.state, ear.link.reason, ear.link.failure) == (ClientState.CONNECTED, "", None)
        assert ear.changes[0] == Welcomed(0)
        other = Ear(path)
        other.link.start()
        await ear.until(lambda: len(ear.changes) == 8 and other.link.membership.own.vectors == 3)
        assert isinstance(ear.changes[4], PeerJoined)
        assert ear.known == other.known == {i: [*map(identity, server.eventfds(i))] for i in (0, 1)}
        os.eventfd_write(server.eventfds(0)[2], 4)
        await ear.until(lambda: ear.rings)
        assert (ear.rings, ear.link.totals) == ([(2, 4)], [0, 0, 4])
        other.link.close()
        await ear.until(lambda: isinstance(ear.changes[-1], PeerLeft))
        os.eventfd_write(server.eventfds(0)[0], 2)
    await ear.until(lambda: ear.link.state is ClientState.CONNECTING)
    assert "closed the connection" in ear.states[-1][1] or "No such file" in ear.link.reason
    assert ear.link.totals == [2, 0, 4]
    assert not ear.known[-1]
    with OtherServer(path, vectors=2) as server:
        await ear.until(lambda: ear.link.membership.own.vectors == 2)
        os.eventfd_write(server.eventfds(0)[0], 5)
        await ear.until(lambda: ear.link.totals == [7, 0, 4])
        ear.link.close("enough")
        server.wait_for(lambda: not server.connections)
    assert (ear.link.state, ear.link.reason) == (ClientState.CLOSED, "enough")
    ear.link.close("again")
    assert ear.link.reason == "enough"


@pytest.mark.parametrize("lie", sorted(LIES.keys() - PATIENT))
@pytest.mark.parametrize("reconnect", [False, True])
async def test_a_server_that_lies(path: str, lie: str, reconnect: bool) -> None:
    with OtherServer(path, script=LIES[lie]) as server:
        ear = Ear(path, reconnect=reconnect)
        ear.link.start()
        await ear.until(lambda: ear.link.state is ClientState.BROKEN)
        assert isinstance(ear.link.failure, ServerClosed if lie == "end at once" else ProtocolBroken)
        assert path in ear.link.reason
        assert not ear.link.membership.peers
        if reconnect:  # it is tried again, and stays broken meanwhile
            await ear.until(lambda: server.accepted >= 3)
            shown = [state for state, _ in ear.states if state is not ClientState.CONNECTED]
            assert set(shown[shown.index(ClientState.BROKEN) :]) == {ClientState.BROKEN}
        else:
            assert ear.link.over
            assert server.accepted == 1
        ear.link.close()


@pytest.mark.parametrize("lie", sorted(PATIENT))
async def test_a_server_that_is_silent(path: str, lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.02)
    with OtherServer(path, script=LIES[lie]) as server:
        ear = Ear(path)
        ear.link.start()
        await ear.until(lambda: server.accepted >= 3)
        assert {state for state, _ in ear.states} == {ClientState.CONNECTING}
        assert {reason.removesuffix(f" at {path}").split(" at ")[0] for _, reason in ear.states} == {
            "waiting for the greeting of the server",
            "the server",
        }
        assert any("accepts and says nothing" in reason for _, reason in ear.states)
        ear.link.close()


async def test_a_server_that_lets_nobody_in(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        ear = Ear(path)
        ear.link.start()
        await ear.until(lambda: ear.states)
        assert isinstance(ear.link.failure, ServerUnavailable)
        assert "lets nobody in just now" in ear.link.reason
        listener.accept()[0].close()
        await ear.until(lambda: "waiting for the greeting" in ear.link.reason)
        conn, _ = listener.accept()
        with conn:
            play(conn, greeting(5))
            await ear.until(lambda: ear.link.membership.id == 5)
            assert ear.link.state is ClientState.CONNECTED
            ear.link.close()


async def test_nobody_there_and_no_second_try(path: str) -> None:
    ear = Ear(path, reconnect=False)
    ear.link.start()
    await ear.until(lambda: ear.link.state is ClientState.BROKEN)
    assert ear.link.over
    with OtherServer(path):
        ear.link.restart(reconnect=True)
        await ear.until(lambda: ear.link.state is ClientState.CONNECTED)
        ear.link.restart(reconnect=True)  # it is connected
        ear.link.close()


async def test_waits_grow_until_there_was_a_good_connection(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lets us in and throws us out again is not asked ten times a second for ever."""
    waits: list[float] = []

    class Noted(Backoff):
        def next(self) -> float:
            super().next()
            waits.append(self._next)
            return 0.001

    monkeypatch.setattr(module, "Backoff", lambda: Noted(0.1, 5.0))
    growing = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    ear = Ear(path)
    with OtherServer(path, script=[HANG_UP]):
        ear.link.start()
        await ear.until(lambda: len(waits) >= 8)
        assert waits[:8] == growing or waits[1:8] == growing[:7]  # the first try may come too early
    with OtherServer(path, vectors=1):
        await ear.until(lambda: ear.link.membership.own.vectors)
        waits.clear()
        ear.link._begun -= 6
    await ear.until(lambda: len(waits) >= 8)
    assert waits[:8] == growing
    ear.link.close()


async def test_who_was_broken_stays_so_until_it_works(path: str) -> None:
    ear = Ear(path)
    with OtherServer(path, script=[message(1)]):
        ear.link.start()
        await ear.until(lambda: ear.link.state is ClientState.BROKEN)
    await ear.until(lambda: "start the server" in ear.link.reason)
    assert ear.link.state is ClientState.BROKEN
    with OtherServer(path, vectors=1):
        await ear.until(lambda: ear.link.state is ClientState.CONNECTED)
    ear.link.close()


async def test_vectors_are_limited_on_each_connection(path: str) -> None:
    ear = Ear(path, vectors_max=1)
    with OtherServer(path, vectors=2):
        ear.link.start()
        await ear.until(lambda: [state for state, _ in ear.states].count(ClientState.BROKEN) >= 3)
    ear.link.close()


async def test_no_descriptor_left(path: str) -> None:
    with OtherServer(path, vectors=2):
        ear = Ear(path)
        with no_descriptor_left():
            ear.link.start()
            await ear.until(lambda: ear.states)
            assert isinstance(ear.link.failure, LimitExceeded)
            assert "raise LimitNOFILE=" in ear.link.reason
        await ear.until(lambda: ear.link.membership.own.vectors == 2)
        ear.link.close()


STORY: Script = [
    *greeting(7),
    message(1, "eventfd"),
    message(1, "eventfd"),
    message(7, "eventfd"),
    message(1),
    message(2),
    message(3, "eventfd"),
]


@pytest.mark.parametrize("at", range(1, 8))
async def test_messages_in_pieces(path: str, at: int) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ear = Ear("", reconnect=False)
        ear.link.adopt(ours)
        for piece in cut(STORY, at):
            play(theirs, [piece])
            await asyncio.sleep(0)
            sizes = [len(data) for data, _ in ear.link.tail]
            assert sum(sizes) == ear.link.taken % 8
        await ear.until(lambda: 3 in ear.link.membership.peers)
        assert [type(change).__name__ for change in ear.changes] == [
            "Welcomed",
            "PeerJoined",
            "VectorAdded",
            "VectorAdded",
            "VectorAdded",
            "PeerLeft",
            "StrayLeave",
            "PeerJoined",
            "VectorAdded",
        ]
    await ear.until(lambda: ear.link.over)
    assert ear.link.state is ClientState.BROKEN


@pytest.mark.parametrize("at", range(9))
async def test_closed_by_who_hears_of_it(path: str, at: int) -> None:
    """The rest is neither told nor left open."""
    ours, theirs = socket.socketpair()
    with theirs:
        ear = Ear("", reconnect=False)

        def leave() -> None:
            if len(ear.changes) == at + 1:
                ear.link.close()

        ear.turn = leave
        ear.link.adopt(ours)
        play(theirs, STORY)
        await ear.until(lambda: ear.link.state is ClientState.CLOSED)
        assert len(ear.changes) == at + 1


async def test_a_long_story_takes_turns(path: str) -> None:
    """Who talks without end does not keep the loop."""
    ours, theirs = socket.socketpair()
    with theirs:
        ear = Ear("", reconnect=False, vectors_max=2048)
        ear.link.adopt(ours)
        await asyncio.sleep(0)
        with mock.patch.object(module, "TURN", 3):
            play(theirs, [*greeting(7), *[message(1, "eventfd")] * 100])
            seen = set()
            while len(ear.changes) < 102:
                await asyncio.sleep(0)
                seen.add(len(ear.changes))
        assert len(seen) > 30
        ear.link.close()


async def test_a_storm_of_rings_is_bounded(path: str) -> None:
    with OtherServer(path, vectors=2) as server:
        ear = Ear(path, quiet=1000.0)
        ear.link.start()
        await ear.until(lambda: ear.link.membership.own.vectors == 2)
        fds = server.eventfds(0)
        for _ in range(100):
            os.eventfd_write(fds[0], 1)
            await asyncio.sleep(0)
        os.eventfd_write(fds[1], 3)
        for _ in range(10):
            await asyncio.sleep(0)
        assert [vector for vector, _ in ear.rings] == [0]
        ear.link.close()  # what was rung until then is not lost
        assert ear.link.totals == [100, 3]


async def test_a_doorbell_that_is_no_eventfd_but_looks_like_one(path: str) -> None:
    import select

    with select.epoll() as fake, OtherServer(path, script=[*greeting(7), message(7, fake.fileno())]):
        ear = Ear(path, reconnect=False)
        ear.link.start()
        await ear.until(lambda: ear.link.state is ClientState.BROKEN)
        assert "no eventfd" in ear.link.reason


async def test_many_links_know_the_same(path: str) -> None:
    """All that is told is in the membership, once."""
    with OtherServer(path, vectors=8) as server:
        ears = [Ear(path) for _ in range(20)]
        for ear in ears:
            ear.link.start()
        await ears[0].until(lambda: all(len(ear.link.membership.peers) == 19 for ear in ears))
        await ears[0].until(lambda: all(sum(isinstance(c, VectorAdded) for c in e.changes) == 160 for e in ears))
        want = {i: [*map(identity, server.eventfds(i))] for i in range(20)}
        assert all(ear.known == want for ear in ears)
        for ear in ears:
            ear.link.close()
