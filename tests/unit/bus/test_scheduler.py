# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""When calls begin: at once while there are few, by turns among users and callers, in order, within bounds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from doorbelld.bus import scheduler
from doorbelld.bus.scheduler import Scheduler
from doorbelld.bus.transport.call import MethodCall
from hypothesis import given, settings
from hypothesis import strategies as st


class FakeLoop:
    """A loop whose time a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, function: Any) -> Any:
        return self.call_at(self.now, function)

    def call_at(self, when: float, function: Any) -> Any:
        self.calls.append((when, function))
        return self

    def cancel(self) -> None:
        self.calls.clear()

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for when, function in calls:
            self.now = max(self.now, when)
            function()


class Stage:
    """Calls that take *cost* seconds each."""

    def __init__(self, cost: float = 0.001) -> None:
        self.loop = FakeLoop()
        self.cost = cost
        self.begun: list[MethodCall] = []
        self.refused: list[tuple[MethodCall, str]] = []
        self.users: dict[str, int] = {}
        self.scheduler = Scheduler(
            self.loop,  # type: ignore[arg-type]
            self._begin,
            lambda call, why: self.refused.append((call, why)),
            self.users.get,
            clock=self.loop.time,
        )
        self._serial = 0

    def _begin(self, call: MethodCall) -> None:
        self.begun.append(call)
        self.loop.now += self.cost

    def read(self, *senders: str, size: int = 0) -> None:
        """Have calls of *senders* come together."""
        self.scheduler.turn()
        for sender in senders:
            self._serial += 1
            self.scheduler.take(MethodCall("/", None, "M", sender, "", 0, self._serial, bytes(size)))

    def order(self) -> str:
        return " ".join(call.sender for call in self.begun)

    def finish(self) -> None:
        while self.loop.calls:
            self.loop.turn()


def test_a_call_begins_as_soon_as_it_is_read() -> None:
    stage = Stage()
    stage.read("a", "b")
    assert (stage.order(), stage.loop.calls) == ("a b", [])


def test_a_turn_takes_a_few_milliseconds_and_others_come_in_between() -> None:
    stage = Stage()
    stage.read(*["a"] * 100)
    assert 1 <= len(stage.begun) <= 4
    while stage.loop.calls:
        before = len(stage.begun)
        stage.loop.turn()
        assert 1 <= len(stage.begun) - before <= 4
    assert [call.serial for call in stage.begun] == list(range(1, 101))


def test_callers_take_turns_and_so_do_users() -> None:
    stage = Stage()
    stage.users |= {"a1": 1, "a2": 1, "a3": 1, "b": 2}
    stage.scheduler.press(True)
    stage.read(*["a1"] * 3, *["a2"] * 2, "a3", *["b"] * 3)
    stage.scheduler.press(False)
    stage.finish()
    assert stage.order() == "a1 b a2 b a3 b a1 a2 a1"


def test_after_a_call_that_takes_long_the_loop_has_as_long_for_others() -> None:
    stage = Stage(cost=0.05)
    stage.read("a")
    stage.read("b")
    assert stage.order() == "a"
    ((when, _),) = stage.loop.calls
    assert when == pytest.approx(100.1)
    stage.finish()
    assert stage.order() == "a b"


def test_too_many_calls_of_one_caller_are_refused_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "CALLS_MAX", 10)
    stage = Stage()
    stage.scheduler.press(True)
    stage.read(*["a"] * 12, "b")
    assert [call.serial for call, _ in stage.refused] == [11, 12]
    assert "wait for their answers" in stage.refused[0][1]
    stage.scheduler.press(False)
    stage.finish()
    assert Counter(stage.order().split()) == {"a": 10, "b": 1}


def test_too_many_bytes_are_refused_and_who_has_few_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "BYTES_MAX", 10_000)
    monkeypatch.setattr(scheduler, "TOTAL_MAX", 20_000)
    monkeypatch.setattr(scheduler, "_FEW", 2)
    stage = Stage()
    stage.scheduler.press(True)
    for sender in "abc":
        stage.read(*[sender] * 8, size=1000)
    assert Counter(call.sender for call, _ in stage.refused) == {"a": 2, "b": 2, "c": 6}
    stage.scheduler.clear()
    stage.read("a")
    assert stage.order() == "a"


def test_while_the_bus_takes_nothing_no_call_begins() -> None:
    stage = Stage()
    stage.scheduler.press(True)
    stage.read("a", "b")
    stage.finish()
    assert stage.begun == []
    stage.scheduler.press(False)
    stage.finish()
    assert stage.order() == "a b"


@given(
    st.lists(
        st.one_of(
            st.lists(st.sampled_from("abcd"), min_size=1, max_size=30).map(tuple),
            st.sampled_from(["turn", "press", "release"]),
        ),
        max_size=20,
    ),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 1)),
    st.sampled_from([0.0001, 0.001, 0.02]),
)
@settings(deadline=None, max_examples=100)
def test_every_call_begins_once_and_those_of_one_caller_in_order(
    steps: list[Any], users: dict[str, int], cost: float
) -> None:
    stage = Stage(cost)
    stage.users |= users
    for step in steps:
        match step:
            case "turn":
                stage.loop.turn()
            case "press" | "release":
                stage.scheduler.press(step == "press")
            case _:
                stage.read(*step)
    stage.scheduler.press(False)
    stage.finish()
    assert stage.refused == []
    assert sorted(call.serial for call in stage.begun) == list(range(1, stage._serial + 1))
    for sender in "abcd":
        serials = [call.serial for call in stage.begun if call.sender == sender]
        assert serials == sorted(serials)
    assert not (stage.scheduler._homes or stage.scheduler._users or stage.scheduler._size)
