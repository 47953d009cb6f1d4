# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator

import pytest
from doorbelld.fds import eventfd
from doorbelld.ivshmem.hostpeer import HostPeer
from doorbelld.ivshmem.roster import Member
from support.fdcount import no_leaks
from support.rawclient import DEADLINE


class Ear:
    """A host peer and what it heard."""

    def __init__(self, vectors: int) -> None:
        self.member = Member(65535, eventfd.make(vectors))
        self.heard: list[tuple[int, int]] = []
        self.news = asyncio.Event()
        self.host = HostPeer(asyncio.get_running_loop(), self.member, self.rung, lambda _: None)

    def rung(self, vector: int, count: int) -> None:
        self.heard.append((vector, count))
        self.news.set()

    def ring(self, vector: int, count: int = 1) -> None:
        os.eventfd_write(self.member.eventfds[vector], count)

    async def until(self, totals: list[int]) -> None:
        async with asyncio.timeout(DEADLINE):
            while self.host.totals != totals:
                self.news.clear()
                await self.news.wait()


@pytest.fixture
async def ear() -> AsyncIterator[Ear]:
    with no_leaks():
        made = Ear(4)
        yield made
        made.host.close()
        made.member.eventfds.close()
        del made


async def test_rings_are_taken_and_counted(ear: Ear) -> None:
    ear.ring(2)
    ear.ring(0, 5)
    await ear.until([5, 0, 1, 0])
    assert sorted(ear.heard) == [(0, 5), (2, 1)]
    assert [eventfd.pending(fd) for fd in ear.member.eventfds] == [0] * 4
    ear.ring(2, 2)
    await ear.until([5, 0, 3, 0])


async def test_a_storm_is_added_up_and_loses_nothing(ear: Ear) -> None:
    """Ringing at every turn of the loop gives one report a pause, not one a ring."""
    for _ in range(500):
        ear.ring(1)
        await asyncio.sleep(0)
    await ear.until([0, 500, 0, 0])
    assert sum(count for _, count in ear.heard) == 500


async def test_quiet_between_two_sweeps(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("doorbelld.ivshmem.hostpeer.QUIET_SECONDS", 1000.0)
    ear.ring(0)
    ear.ring(3)
    await ear.until([1, 0, 0, 1])
    for _ in range(50):
        ear.ring(1)
        await asyncio.sleep(0)
    assert ear.heard == [(0, 1), (3, 1)]
    assert eventfd.pending(ear.member.eventfds[1]) == 50  # it stays in the kernel until the pause is over


@pytest.mark.parametrize("paused", [False, True])
async def test_close_stops_listening_and_keeps_what_is_rung(ear: Ear, paused: bool) -> None:
    if paused:
        ear.ring(0)
        await ear.until([1, 0, 0, 0])
    ear.host.close()
    ear.ring(1, 3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert ear.host.totals[1] == 0
    assert eventfd.pending(ear.member.eventfds[1]) == 3
    ear.host._listen()  # for the fixture to close it


async def test_a_guest_that_makes_them_block_or_is_quicker(ear: Ear) -> None:
    for fd in ear.member.eventfds:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    ear.host._sweep()  # woken, and somebody else has taken it all
    assert ear.heard == []
    ear.ring(3, (1 << 64) - 2)
    await ear.until([0, 0, 0, (1 << 64) - 2])
