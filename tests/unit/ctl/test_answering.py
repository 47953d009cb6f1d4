# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A command goes on as long as the daemon answers pings, and no longer."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from doorbelld.bus.client import CallFailed
from doorbelld.ctl import answering
from doorbelld.ctl.bus_choice import NoDaemon


class Fake:
    """Stands in for the client: answers the first pings, then raises *then*."""

    def __init__(self, pings: int, then: Exception) -> None:
        self.left, self.then = pings, then
        self.pinged = asyncio.Event()

    async def call(self, path: str, interface: str, member: str, timeout: float) -> list[Any]:
        assert member == "Ping" and timeout == answering.ANSWER_SECONDS
        if not self.left:
            self.pinged.set()
            raise self.then
        self.left -= 1
        return []

    async def call_bus(self, member: str, *_: object) -> int:
        return os.getpid()


TIMEOUT = CallFailed("org.freedesktop.DBus.Error.Timeout", "no answer")


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "PING_AFTER", 0.001)


async def test_work_is_done_while_the_daemon_answers() -> None:
    client = Fake(20, CallFailed("org.freedesktop.DBus.Error.ServiceUnknown", "gone"))

    async def work() -> str:
        await client.pinged.wait()  # after twenty answers; one that went away is the work's own affair
        return "done"

    assert await answering.while_answering(client, work()) == "done"  # type: ignore[arg-type]


async def test_work_that_fails_fails_as_it_is() -> None:
    async def work() -> None:
        raise KeyError("why")

    with pytest.raises(KeyError, match="why"):
        await answering.while_answering(Fake(9, TIMEOUT), work())  # type: ignore[arg-type]


async def test_work_is_cancelled_and_cleans_up_when_the_daemon_does_not_answer() -> None:
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned = True

    with pytest.raises(NoDaemon, match=rf"doorbelld \(PID {os.getpid()}\) has not answered for 5 s: "):
        await answering.while_answering(Fake(3, TIMEOUT), work())  # type: ignore[arg-type]
    assert cleaned


async def test_work_that_does_not_clean_up_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_GIVE_UP_SECONDS", 0.01)
    release = asyncio.Event()

    async def work() -> None:
        try:
            await release.wait()
        finally:
            await release.wait()

    with pytest.raises(NoDaemon):
        await answering.while_answering(Fake(0, TIMEOUT), work())  # type: ignore[arg-type]
    release.set()
