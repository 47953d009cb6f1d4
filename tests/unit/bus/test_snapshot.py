# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""GetManagedObjects: the same as the library would make it, in pieces, and as things are when it is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from doorbelld.bus import snapshot as module
from doorbelld.bus.library import Message, Variant, parse, unwrap
from doorbelld.bus.snapshot import Snapshot
from doorbelld.bus.writer import prefixed_return
from hypothesis import given, settings
from hypothesis import strategies as st


class FakeTree:
    """Objects are strings by path."""

    def __init__(self, count: int = 0) -> None:
        self.there = {f"/o{number}": "new" for number in range(count)}

    def listed(self) -> list[str]:
        return list(self.there)

    def find(self, path: str) -> Any:
        return self.there.get(path)


class Stage:
    def __init__(self, count: int) -> None:
        self.tree = FakeTree(count)
        self.described = 0
        self.answers: list[tuple[str, dict[str, Any]]] = []
        self.snapshot = Snapshot(self.tree, self._describe)  # type: ignore[arg-type]

    def _describe(self, view: Any) -> dict[str, dict[str, Any]]:
        self.described += 1
        return {"a.b": {"State": Variant("s", str(view))}}

    def ask(self, sender: str = ":1.1") -> bool:
        return self.snapshot.ask(sender, lambda body: self.answers.append((sender, opened(body))))

    async def settle(self) -> None:
        async with asyncio.timeout(20):
            while self.snapshot._turn is not None:
                await asyncio.sleep(0)

    def said(self, number: int) -> dict[str, str]:
        return {path: interfaces["a.b"]["State"] for path, interfaces in self.answers[number][1].items()}


def opened(body: bytes) -> dict[str, Any]:
    raw = prefixed_return(1, 2, ":1.1", "a{oa{sa{sv}}}", len(body)) + body
    return dict(unwrap(parse(raw).body[0]))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object a turn."""
    monkeypatch.setattr(module, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.0)


@given(st.dictionaries(st.from_regex(r"(/[a-z]{1,9}){1,3}", fullmatch=True), st.text("abc", max_size=9), max_size=8))
@settings(deadline=None)
def test_it_is_what_the_library_makes_of_all_together(objects: dict[str, str]) -> None:
    whole = {path: {"a.b": {"State": Variant("s", state)}} for path, state in objects.items()}
    message = Message(path="/", interface="a.b", member="C", signature="a{oa{sa{sv}}}", body=[whole], serial=1)
    raw = bytes(message._marshall(False))
    tree, bodies = FakeTree(), list[bytes]()
    tree.there = objects
    snapshot = Snapshot(tree, lambda view: {"a.b": {"State": Variant("s", str(view))}})  # type: ignore[arg-type]

    async def ask() -> None:
        assert snapshot.ask(":1.1", bodies.append)
        while not bodies:  # a slow machine takes more than one turn
            await asyncio.sleep(0)

    asyncio.run(ask())
    assert bodies == [raw[len(raw) - int.from_bytes(raw[4:8], "little") :]]


async def test_a_small_answer_is_given_at_once() -> None:
    stage = Stage(3)
    assert stage.ask()
    await stage.settle()  # on a slow machine
    assert stage.said(0) == {"/o0": "new", "/o1": "new", "/o2": "new"}


@pytest.mark.usefixtures("slow")
async def test_a_large_one_takes_turns_and_who_asks_meanwhile_is_given_the_next() -> None:
    stage = Stage(50)
    for number in range(100):
        assert stage.ask(f":1.{number % 7}")
    assert stage.answers == []
    assert stage.described < 5
    await stage.settle()
    assert len(stage.answers) == 100
    assert stage.described <= 110, "two answers were made, not a hundred"


@pytest.mark.usefixtures("slow")
async def test_it_shows_what_is_there_when_it_is_sent() -> None:
    stage = Stage(50)
    stage.ask()
    await asyncio.sleep(0)
    del stage.tree.there["/o0"], stage.tree.there["/o49"]
    stage.tree.there["/o1"] = "changed"
    stage.snapshot.changed("/o1")
    stage.tree.there["/late"] = "late"
    await stage.settle()
    said = stage.said(0)
    assert set(said) == set(stage.tree.there)
    assert (said["/o1"], said["/late"], said["/o2"]) == ("changed", "late", "new")


@pytest.mark.usefixtures("slow")
async def test_objects_that_change_all_the_time_do_not_keep_it_from_being_sent() -> None:
    stage = Stage(200)
    stage.ask()
    async with asyncio.timeout(20):
        while not stage.answers:
            for path in stage.tree.there:
                stage.snapshot.changed(path)
            await asyncio.sleep(0)
    assert len(stage.said(0)) == 200


@pytest.mark.usefixtures("slow")
async def test_while_the_bus_takes_nothing_nobody_is_answered_and_callers_take_turns() -> None:
    stage = Stage(5)
    for sender in (":1.1", ":1.1", ":1.2"):
        stage.ask(sender)
    stage.ask(":1.1")
    stage.snapshot.press(True)
    await asyncio.sleep(0.01)
    assert stage.answers == []
    stage.snapshot.press(False)
    await stage.settle()
    assert sorted(sender for sender, _ in stage.answers) == [":1.1"] * 3 + [":1.2"]
    assert [sender for sender, _ in stage.answers[1:3]] == [":1.1", ":1.2"]


@pytest.mark.usefixtures("slow")
async def test_a_caller_may_wait_for_so_many_and_a_bus_that_is_gone_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_MAX", 3)
    stage = Stage(5)
    assert [stage.ask() for _ in range(5)] == [True] * 3 + [False] * 2
    assert stage.ask(":1.2")
    stage.snapshot.clear()
    await stage.settle()
    assert stage.answers == []
    assert stage.ask()
    await stage.settle()
    assert len(stage.answers) == 1


@pytest.mark.usefixtures("slow")
async def test_under_pressure_the_same_answer_serves_until_a_signal_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST", 1)
    stage = Stage(2)
    stage.ask(":1.0")  # and the others ask for the next one
    for number in range(1, 5):
        stage.ask(f":1.{number}")

    while len(stage.answers) < 2:
        await asyncio.sleep(0)
    made = stage.described
    stage.snapshot.press(True)
    await stage.settle()
    stage.snapshot.changed("/o0")
    stage.snapshot.press(False)
    await stage.settle()
    assert len(stage.answers) == 5
    assert stage.described <= made + 2


async def test_a_view_that_fails_is_an_answer_too() -> None:
    stage, bodies = Stage(3), list[bytes]()

    def fail(view: Any) -> Any:
        raise OSError("a view")

    stage.snapshot._describe = fail
    assert stage.snapshot.ask(":1.1", bodies.append)
    assert bodies == [b""]
    stage.snapshot._describe = stage._describe
    stage.ask()
    await stage.settle()
    assert len(stage.answers) == 1
