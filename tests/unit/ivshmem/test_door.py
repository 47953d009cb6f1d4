# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The door: who may come in, when, and that it neither spins nor stays shut."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from doorbelld.fds.spare import Spare
from doorbelld.ivshmem import door as module
from doorbelld.ivshmem.door import Door
from support.fdcount import no_leaks

DEADLINE = 20.0


class Entrance:
    """A door, who came, and who knocks."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.setblocking(False)
        self.listening.bind(self.path)
        self.listening.listen(100)
        self.spare = Spare()
        self.log: list[str] = []
        self.inside: list[socket.socket] = []
        self.outside: list[socket.socket] = []
        self.is_prepared = True
        self.again: Callable[[], None] = lambda: None
        self.news = asyncio.Event()
        self.door = Door(
            asyncio.get_running_loop(),
            self.listening,
            self.spare,
            arrived=self.arrived,
            refuse=self.refuse,
            prepared=self.prepared,
            rested=lambda: self.note("rested"),
        )

    def note(self, what: str) -> None:
        self.log.append(what)
        self.news.set()

    def arrived(self, sock: socket.socket) -> None:
        self.inside.append(sock)
        self.note("arrived")

    def refuse(self, reason: str, sock: socket.socket | None, in_words: bool) -> None:
        if sock is not None:
            sock.close()
        self.note(f"refused{' in words' if in_words else ''}: {reason}")

    def prepared(self, again: Callable[[], None]) -> bool:
        self.again = again
        self.note("asked")
        return self.is_prepared

    def knock(self, count: int = 1) -> None:
        for _ in range(count):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(self.path)
            self.outside.append(sock)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self.news.clear()
                await self.news.wait()

    def close(self) -> None:
        self.door.shut()
        for sock in (*self.inside, *self.outside, self.listening):
            sock.close()
        self.spare.close()


@pytest.fixture
async def entrance(short_path: Path) -> AsyncIterator[Entrance]:
    with no_leaks():
        made = Entrance(short_path / "s")
        yield made
        made.close()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_everybody_is_let_in_a_burst_at_a_time(entrance: Entrance) -> None:
    entrance.knock(40)
    entrance.door.open()
    await entrance.until(lambda: len(entrance.inside) == 40 and entrance.log[-1] == "rested")
    assert entrance.log.count("asked") in (40, 41)
    first = entrance.log.index("rested")
    assert entrance.log[:first].count("arrived") == module._BURST


async def test_nobody_is_let_in_unprepared_and_nothing_spins(entrance: Entrance) -> None:
    entrance.is_prepared = False
    entrance.door.open()
    entrance.knock(3)
    await entrance.until(lambda: "rested" in entrance.log)
    await turns()
    assert entrance.log == ["asked", "rested"]
    entrance.is_prepared = True
    entrance.again()
    entrance.again()  # twice does no harm
    await entrance.until(lambda: len(entrance.inside) == 3)


async def test_one_that_was_shut_meanwhile_stays_shut(entrance: Entrance) -> None:
    entrance.is_prepared = False
    entrance.door.open()
    entrance.knock()
    await entrance.until(lambda: "rested" in entrance.log)
    entrance.door.shut()
    entrance.is_prepared = True
    entrance.again()
    await turns()
    assert entrance.inside == []
    entrance.door.open()
    await entrance.until(lambda: entrance.inside)


async def test_shut_before_anybody_came(entrance: Entrance) -> None:
    entrance.door.open()
    entrance.door.shut()
    entrance.door.shut()
    entrance.knock()
    await turns()
    assert entrance.log == []


class Failing:
    """A listening socket whose accept fails as told."""

    def __init__(self, sock: socket.socket, errors: list[int]) -> None:
        self.sock = sock
        self.errors = errors

    def fileno(self) -> int:
        return self.sock.fileno()

    def accept(self) -> Any:
        if self.errors and (number := self.errors.pop(0)):
            raise BlockingIOError(number, "") if number == errno.EAGAIN else OSError(number, os.strerror(number))
        return self.sock.accept()


def failing(entrance: Entrance, *errors: int) -> None:
    entrance.door._sock = Failing(entrance.listening, list(errors))  # type: ignore[assignment]


async def test_who_went_away_while_waiting_keeps_nobody_out(entrance: Entrance) -> None:
    failing(entrance, errno.ECONNABORTED)
    entrance.knock()
    entrance.door.open()
    await entrance.until(lambda: entrance.inside)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_without_a_descriptor_they_are_turned_away_in_words(entrance: Entrance, number: int) -> None:
    failing(entrance, number)
    entrance.knock(2)
    entrance.door.open()
    await entrance.until(lambda: entrance.inside)
    (refusal,) = [line for line in entrance.log if line.startswith("refused")]
    assert refusal.startswith("refused in words: no descriptor left (")
    assert refusal.endswith("raise LimitNOFILE= or the hard limit")
    assert entrance.outside[0].recv(1) == b""


@pytest.mark.parametrize("errors", [(errno.EMFILE, errno.EMFILE), (errno.ENOMEM,), (errno.EPERM,)])
async def test_when_not_even_that_works_it_rests(
    entrance: Entrance, monkeypatch: pytest.MonkeyPatch, errors: tuple[int, ...]
) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.01)
    failing(entrance, *errors)
    entrance.knock()
    entrance.door.open()
    await entrance.until(lambda: entrance.inside)
    refusals = [line for line in entrance.log if line.startswith("refused")]
    assert refusals == [f"refused: accept: {os.strerror(errors[0])}"]


async def test_shut_while_it_rests(entrance: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    failing(entrance, errno.ENOMEM)
    entrance.knock()
    entrance.door.open()
    await entrance.until(lambda: any(line.startswith("refused") for line in entrance.log))
    entrance.door.shut()
    await turns()
    assert entrance.inside == []


async def test_full_and_nobody_waits(entrance: Entrance) -> None:
    """accept(2) wants a descriptor before it looks who is there."""
    failing(entrance, errno.EMFILE, errno.EAGAIN)
    entrance.door.open()
    entrance.door._accept()
    assert entrance.log == ["asked", "rested"]
