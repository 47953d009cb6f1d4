# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that go on for long can have a person asked for a password, as the others can."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from doorbelld.bus.client import Client
from doorbelld.ctl import lasting
from doorbelld.ctl.session import Session
from doorbelld.errors import BusUnavailable


class FakeClient:
    """As much of a connection as `outlive` touches."""

    address = "unix:path=/bus"
    known_owner = ":1.1"

    def __init__(self) -> None:
        self.authenticate: Callable[[], Awaitable[None]] | None = None
        self.closed = False

    async def call(self, path: str, interface: str, member: str, *, timeout: float) -> list[Any]:
        assert member == "Ping"
        return []

    async def wait_for_owner(self) -> str:
        return self.known_owner

    async def close(self) -> None:
        self.closed = True


class FakeAgent:
    """An agent that notes what happens to it."""

    said: list[str]

    async def start(self) -> None:
        self.said.append("started")

    def stop(self) -> None:
        self.said.append("stopped")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have fake connections and a fake agent; give what is noted."""
    noted: list[str] = []

    async def connect(_: str) -> FakeClient:
        return FakeClient()

    monkeypatch.setattr(lasting, "open_bus", connect)
    monkeypatch.setattr(lasting.Client, "connect", connect)
    monkeypatch.setattr(FakeAgent, "said", noted, raising=False)
    monkeypatch.setattr(lasting, "Agent", FakeAgent)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    return noted


def outlive(session: Session, work: Callable[[Any, bool], Awaitable[Any]], said: list[str]) -> Any:
    def note(words: str) -> Callable[[], None]:
        return lambda: said.append(words)

    made = lasting.outlive(session, cast(Callable[[Client, bool], Awaitable[Any]], work), note("gone"), note("way"))
    return asyncio.run(made)


def test_a_person_may_be_asked_on_each_connection(said: list[str]) -> None:
    async def work(client: FakeClient, back: bool) -> str:
        assert client.authenticate is not None
        await client.authenticate()
        if not back:
            raise BusUnavailable("lost")
        return "done"

    assert outlive(Session(), work, said) == "done"
    assert said == ["way", "started", "gone", "way", "started", "stopped"]


@pytest.mark.parametrize(("ask", "terminal"), [(False, True), (True, False)])
def test_nobody_is_asked(said: list[str], monkeypatch: pytest.MonkeyPatch, ask: bool, terminal: bool) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal)

    async def work(client: FakeClient, back: bool) -> None:
        assert client.authenticate is None

    outlive(Session(ask_password=ask), work, said)
    assert said == ["stopped"]


def test_the_agent_ends_with_what_fails(said: list[str]) -> None:
    async def work(client: FakeClient, back: bool) -> None:
        raise ValueError

    with pytest.raises(ValueError):
        outlive(Session(), work, said)
    assert said == ["stopped"]
