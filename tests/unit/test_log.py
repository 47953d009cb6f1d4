# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Logging: what strangers can cause is limited, and how much was kept back is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from doorbelld.log import LEVELS, Limiter, set_up


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Lines:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, **values: Any) -> None:
        self.lines.append((event, values))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> Lines:
    return Lines()


def test_a_burst_goes_through_and_the_rest_is_counted(clock: Clock, lines: Lines) -> None:
    limited = Limiter(burst=3, period=10, clock=clock)
    for number in range(8):
        limited(lines, "demo: joins", "peer joined", peer=number)
    assert lines.lines == [("peer joined", {"peer": number}) for number in range(3)]
    clock.now += 10
    limited(lines, "demo: joins", "peer joined", peer=8)
    assert lines.lines[3:] == [
        ("kept back lines of the log", {"of": "demo: joins", "lines": 5, "seconds": 10.0}),
        ("peer joined", {"peer": 8}),
    ]


def test_a_window_ends_only_after_its_period(clock: Clock, lines: Lines) -> None:
    limited = Limiter(burst=1, period=10, clock=clock)
    limited(lines, "k", "one")
    clock.now += 9.999
    limited(lines, "k", "two")
    assert [event for event, _ in lines.lines] == ["one"]
    clock.now += 0.001
    limited(lines, "k", "three")
    assert [event for event, _ in lines.lines] == ["one", "kept back lines of the log", "three"]


def test_exactly_the_burst_keeps_nothing_back(clock: Clock, lines: Lines) -> None:
    limited = Limiter(burst=2, period=10, clock=clock)
    for event in ("one", "two"):
        limited(lines, "k", event)
    clock.now += 60
    limited(lines, "k", "three")
    assert [event for event, _ in lines.lines] == ["one", "two", "three"]


def test_keys_have_windows_of_their_own(clock: Clock, lines: Lines) -> None:
    limited = Limiter(burst=1, period=10, clock=clock)
    for key in ("a", "b", "a", "b"):
        limited(lines, key, key)
    assert [event for event, _ in lines.lines] == ["a", "b"]


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize("level", LEVELS)
def test_levels(level: str, capsys: pytest.CaptureFixture[str], restored: None) -> None:
    set_up(level)
    log = structlog.get_logger()
    for name in LEVELS:
        getattr(log, name)(f"said at {name}", region="demo")
    out, err = capsys.readouterr()
    assert out == ""
    said = [line for line in err.splitlines() if "said at" in line]
    assert [line.split("said at ")[1].split()[0] for line in said] == list(LEVELS[LEVELS.index(level) :])
    assert all("region=demo" in line and "\x1b" not in line for line in said)


def test_an_exception_is_logged_with_its_traceback(capsys: pytest.CaptureFixture[str], restored: None) -> None:
    set_up("info")
    try:
        raise RuntimeError("a reason of ours")
    except RuntimeError as error:
        structlog.get_logger().error("failed", exc_info=error)
    assert "RuntimeError: a reason of ours" in capsys.readouterr().err
