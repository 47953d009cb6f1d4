# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may do what, and from whom we know who is who."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from doorbelld.bus import authority
from doorbelld.bus.authority import Action, Authority
from doorbelld.errors import AccessDenied
from doorbelld.fds.peercred import Credentials

STRANGER = os.geteuid() + 4711


class Bus:
    """Answers GetConnectionCredentials."""

    def __init__(self, said: Any = None) -> None:
        self.said = said or {"ProcessID": 12, "UnixUserID": 1000, "UnixGroupIDs": [100, 4]}
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def was_asked(self, times: int) -> None:
        async with asyncio.timeout(20):
            while len(self.asked) < times:
                await asyncio.sleep(0)

    async def __call__(self, sender: str) -> dict[str, Any]:
        self.asked.append(sender)
        await self.may_answer.wait()
        if isinstance(self.said, Exception):
            raise self.said
        return dict(self.said)


async def test_the_bus_is_asked_once() -> None:
    bus = Bus()
    who = Authority(bus)
    assert who.known(":1.5") is None
    assert await who.learn(":1.5") == Credentials(12, 1000, 100)
    assert who.known(":1.5") == Credentials(12, 1000, 100)
    assert bus.asked == [":1.5"]


async def test_who_waits_for_the_same_answer_asks_once_and_goes_on_in_order() -> None:
    bus = Bus()
    who = Authority(bus)
    bus.may_answer.clear()
    order: list[int] = []

    async def learn(number: int) -> None:
        assert await who.learn(":1.5") == Credentials(12, 1000, 100)
        order.append(number)

    waiting = [asyncio.create_task(learn(number)) for number in range(50)]
    await bus.was_asked(1)
    bus.may_answer.set()
    await asyncio.gather(*waiting)
    assert bus.asked == [":1.5"]
    assert order == list(range(50))


async def test_nobody_overtakes_whoever_comes_just_when_the_answer_does() -> None:
    """Calls that come in the very turns in which the answer arrives, or while those before them go on."""
    bus = Bus()
    who = Authority(bus)
    bus.may_answer.clear()
    order: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def go_on(number: int) -> None:
        await who.learn(":1.5")
        order.append(number)

    def call(number: int) -> None:
        """What the router does with a call."""
        if who.known(":1.5") is not None:
            order.append(number)
        else:
            tasks.append(asyncio.create_task(go_on(number)))

    number = 0
    for turn in range(12):
        if turn == 2:
            await bus.was_asked(1)
            bus.may_answer.set()
        for _ in range(3):
            call(number)
            number += 1
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == list(range(number))
    assert bus.asked == [":1.5"]


async def test_a_new_bus_is_asked_though_the_old_one_has_not_answered() -> None:
    bus = Bus({"ProcessID": 1, "UnixUserID": 0})
    who = Authority(bus)
    bus.may_answer.clear()
    old = asyncio.create_task(who.learn(":1.5"))
    await bus.was_asked(1)
    who.forget()
    new = asyncio.create_task(who.learn(":1.5"))
    await bus.was_asked(2)
    bus.may_answer.set()
    with pytest.raises(AccessDenied):
        await old
    assert await new == Credentials(1, 0, -1)


async def test_another_bus_is_asked_anew() -> None:
    bus = Bus()
    who = Authority(bus)
    await who.learn(":1.5")
    who.forget()
    assert who.known(":1.5") is None
    bus.said = {"UnixUserID": 7}
    assert await who.learn(":1.5") == Credentials(0, 7, -1)


async def test_an_answer_of_the_old_bus_is_not_believed_on_the_new_one() -> None:
    bus = Bus({"ProcessID": 1, "UnixUserID": 0})
    who = Authority(bus)
    bus.may_answer.clear()
    learning = asyncio.create_task(who.learn(":1.5"))
    await bus.was_asked(1)
    who.forget()
    bus.may_answer.set()
    with pytest.raises(AccessDenied, match="is gone"):
        await learning
    assert who.known(":1.5") is None


@pytest.mark.parametrize(
    "said",
    [
        {"ProcessID": 12},
        {"UnixUserID": "root"},
        {"UnixUserID": None},
        ValueError("no such name"),
        EOFError(),
        ConnectionError("gone"),
    ],
)
async def test_a_bus_that_does_not_say(said: Any) -> None:
    who = Authority(Bus(said))
    with pytest.raises(AccessDenied, match=r"does not say who :1\.5 is"):
        await who.learn(":1.5")
    assert who.known(":1.5") is None


async def test_the_cache_has_a_bound_and_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "_CACHE_MAX", 3)
    who = Authority(Bus())
    for number in range(5):
        await who.learn(f":1.{number}")
    assert [who.known(f":1.{number}") is not None for number in range(5)] == [False, False, True, True, True]


@pytest.mark.parametrize("action", Action)
def test_root_and_ourselves_may_everything(action: Action) -> None:
    who = Authority(Bus.__call__)  # type: ignore[arg-type]
    who.check(action, Credentials(1, 0, 0))
    who.check(action, Credentials(1, os.geteuid(), 0))


@pytest.mark.parametrize("action", Action)
def test_others_may_look_only(action: Action) -> None:
    who = Authority(Bus.__call__)  # type: ignore[arg-type]
    stranger = Credentials(1, STRANGER, 0)
    if action is Action.INSPECT:
        who.check(action, stranger)
        return
    with pytest.raises(AccessDenied) as caught:
        who.check(action, stranger)
    said = str(caught.value)
    assert f"uid {STRANGER} may look, but not {action.value}" in said
    assert f"call as root or as the daemon's user (uid {os.geteuid()})" in said
