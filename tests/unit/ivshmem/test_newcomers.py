# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Newcomers are admitted in the order of coming, but for those who make others wait; a restart loses none of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from doorbelld.fds.identification import PidFiles
from doorbelld.fds.peercred import Credentials
from doorbelld.ivshmem import newcomers as module
from doorbelld.ivshmem.newcomers import Newcomers
from doorbelld.ivshmem.record import Record, replay
from doorbelld.ivshmem.spec import RegionSpec
from support.fdcount import no_leaks
from support.regionbench import Bench, killed_at

WHO = Credentials(1, 0, 0)
SPEC = RegionSpec("demo", socket="/nowhere", vectors=1, size=4096)


class Lookups:
    """In the place of `Lookup`: each is done when the test says so."""

    def __init__(self) -> None:
        self.pending: list[tuple[Credentials, Callable[[Credentials, PidFiles], None]]] = []

    def __call__(
        self,
        sock: socket.socket,
        who: Credentials,
        pid_files: Iterable[str],
        done: Callable[[Credentials, PidFiles], None],
    ) -> None:
        self.pending.append((who, done))

    def end(self, index: int = 0) -> None:
        """End one of those that are pending."""
        who, done = self.pending.pop(index)
        done(who, {})


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Lookups:
    made = Lookups()
    monkeypatch.setattr(module, "Lookup", made)
    return made


class Door:
    """Newcomers, and who was admitted of them, by letter."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.admitted = ""
        self.sockets: dict[socket.socket, str] = {}
        self.newcomers = Newcomers(loop, self._admit)

    def come(self, letters: str) -> None:
        for letter in letters:
            sock, other = socket.socketpair()
            other.close()
            self.sockets[sock] = letter
            self.newcomers.look_up(sock, None, WHO, SPEC)

    def _admit(self, sock: socket.socket, *_: Any) -> None:
        self.admitted += self.sockets[sock]
        sock.close()


async def test_they_are_admitted_in_the_order_of_coming(lookups: Lookups) -> None:
    with no_leaks():
        door = Door(asyncio.get_running_loop())
        door.come("abc")
        for index in (2, 1, 0):
            lookups.end(index)
        assert door.admitted == "abc"


async def test_one_that_is_slow_is_waited_for_once(lookups: Lookups, monkeypatch: pytest.MonkeyPatch) -> None:
    with no_leaks():
        door = Door(asyncio.get_running_loop())
        door.come("abc")
        lookups.end(1)
        assert door.admitted == ""
        await asyncio.sleep(2 * module.PATIENCE)
        assert door.admitted == "b"
        monkeypatch.setattr(module, "PATIENCE", 1000)
        door.come("d")
        lookups.end(1)  # c
        assert door.admitted == "bc"
        lookups.end(1)  # d
        assert door.admitted == "bcd"
        lookups.end()
        assert door.admitted == "bcda"


async def test_what_is_found_out_after_the_end_is_of_no_use(lookups: Lookups) -> None:
    with no_leaks():
        door = Door(asyncio.get_running_loop())
        door.come("abc")
        lookups.end(1)
        door.newcomers.close()
        lookups.end()
        lookups.end()
        await asyncio.sleep(2 * module.PATIENCE)
        assert door.admitted == ""


@pytest.fixture
def bench(lookups: Lookups) -> Iterator[Bench]:
    with no_leaks(), ExitStack() as stack:
        made = Bench()
        stack.callback(made.close)
        yield made


def overtaken(bench: Bench, lookups: Lookups) -> None:
    """Have somebody come whose name is not known, and somebody later who is admitted."""
    bench.knock()
    bench.knock()
    lookups.end(1)
    bench.region._newcomers._overtake()
    bench.pump()


def ids(bench: Bench) -> list[int]:
    """Greet everybody, and give the IDs of those who knocked, in that order."""
    bench.pump()
    return [client.id for client in bench.strangers]


def test_who_was_overtaken_gets_a_number_of_the_order_of_joining(bench: Bench, lookups: Lookups) -> None:
    overtaken(bench, lookups)
    lookups.end()
    assert ids(bench) == [1, 0]
    first, second = bench.peers()
    assert (first.member.seq, first.vault, second.member.seq, second.vault) == (2, "2", 3, "1")
    assert bench.plain(replay(bench.lines())) == bench.export()
    before = bench.export()
    bench.restart()
    assert bench.export() == before
    leave(bench)
    assert "r1.1" not in bench.keeper.copies


def leave(bench: Bench) -> None:
    """Have the first who knocked leave; it is the second peer."""
    bench.strangers[0].close()
    bench.region._hear(bench.region.peers[1])


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_who_waits_while_others_join_waits_on_after_a_restart(bench: Bench, lookups: Lookups, again: bool) -> None:
    overtaken(bench, lookups)
    lookups.pending.clear()
    bench.restart()
    if again:
        lookups.pending.clear()
        bench.restart()
    bench.knock()
    assert len(lookups.pending) == 2
    lookups.end()
    lookups.end()
    assert ids(bench) == [1, 0, 2]


def test_killed_while_who_was_overtaken_joins(bench: Bench, lookups: Lookups) -> None:
    overtaken(bench, lookups)
    with killed_at("joined", Record):
        lookups.end()
    bench.restart()
    lookups.end()
    assert ids(bench) == [1, 0]


def test_killed_while_who_was_overtaken_leaves(bench: Bench, lookups: Lookups) -> None:
    overtaken(bench, lookups)
    lookups.end()
    bench.pump()
    with bench.region.peers[1].sock, killed_at("drop", Record):
        leave(bench)
    bench.restart()
    assert not lookups.pending, "who has left is no newcomer"
    assert list(bench.region.peers) == [0]


def test_a_refused_one_that_was_overtaken_is_kept_no_longer(bench: Bench, lookups: Lookups) -> None:
    overtaken(bench, lookups)
    bench.region.change(replace(bench.region.spec, max_peers=1), configured=True)
    lookups.end()
    assert "r1.1" not in bench.keeper.copies
    bench.restart()
    assert not lookups.pending
