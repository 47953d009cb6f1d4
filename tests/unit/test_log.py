# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Logging: what strangers can cause is limited, and how much was kept back is told."""

from __future__ import annotations

import inspect
import logging
import re
import syslog
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from doorbelld.log import KEPT_BACK, LEVELS, THE_REST, UNPRINTABLE, Limiter, Where, set_up


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


def test_what_was_kept_back_of_a_region_is_told_of_it(clock: Clock, lines: Lines) -> None:
    limited = Limiter(burst=1, period=10, clock=clock)
    for _ in range(3):
        limited(lines, "demo: joins", "peer joined", region="demo")
    clock.now += 10
    limited(lines, "other", "one")
    told = {"of": "demo: joins", "lines": 2, "seconds": 10.0, "region": "demo"}
    assert lines.lines[1:] == [(KEPT_BACK, told), ("one", {})]


class Timers:
    """Stands in for the loop's call_later; `run` makes the clock go on."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, delay: float, call: Callable[[], None]) -> None:
        self.waiting.append((self.clock.now + delay, call))

    def run(self, until: float) -> None:
        while due := sorted((entry for entry in self.waiting if entry[0] <= until), key=lambda entry: entry[0]):
            self.waiting.remove(due[0])
            self.clock.now = max(self.clock.now, due[0][0])
            due[0][1]()
        self.clock.now = until


def test_with_a_timer_the_end_of_a_period_is_told_without_another_line(clock: Clock, lines: Lines) -> None:
    timers = Timers(clock)
    limited = Limiter(burst=2, period=10, clock=clock, later=timers)
    for _ in range(6):
        limited(lines, "k", "line")
        clock.now += 1
    assert len(timers.waiting) == 1
    timers.run(1009.999)
    assert len(lines.lines) == 2
    timers.run(1010)
    assert lines.lines[2:] == [(KEPT_BACK, {"of": "k", "lines": 4, "seconds": 10.0})]
    limited(lines, "k", "line")
    timers.run(1100)
    assert lines.lines[3:] == [("line", {})]


def test_no_timer_for_what_is_not_kept_back(clock: Clock, lines: Lines) -> None:
    timers = Timers(clock)
    limited = Limiter(burst=2, period=10, clock=clock, later=timers)
    for _ in range(2):
        limited(lines, "k", "line")
    assert timers.waiting == []


def test_a_timer_that_comes_after_the_next_line_tells_nothing_twice(clock: Clock, lines: Lines) -> None:
    timers = Timers(clock)
    limited = Limiter(burst=1, period=10, clock=clock, later=timers)
    for _ in range(3):
        limited(lines, "k", "line")
    clock.now += 11  # the loop was busy
    for _ in range(2):
        limited(lines, "k", "again")
    told = (KEPT_BACK, {"of": "k", "lines": 2, "seconds": 11.0})
    assert lines.lines == [("line", {}), told, ("again", {})]
    timers.run(1020.999)
    assert lines.lines[3:] == []
    timers.run(1021)
    assert lines.lines[3:] == [(KEPT_BACK, {"of": "k", "lines": 1, "seconds": 10.0})]


def test_who_makes_up_keys_gains_no_lines_and_takes_no_memory(clock: Clock, lines: Lines) -> None:
    limited = Limiter(burst=2, period=10, clock=clock, keys=3)
    for number in range(10_000):
        limited(lines, f"key {number}", "line", key=number)
    assert [values["key"] for _, values in lines.lines] == [0, 1, 2, 3, 4]  # the last two are all others' share
    assert len(limited._windows) == 4
    clock.now += 10
    limited(lines, "key 77", "line", key=77)
    assert lines.lines[5:] == [
        (KEPT_BACK, {"of": THE_REST, "lines": 9_995, "seconds": 10.0}),
        ("line", {"key": 77}),
    ]
    assert len(limited._windows) == 1


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize("level", LEVELS)
def test_levels(level: str, capfd: pytest.CaptureFixture[str], restored: None) -> None:
    set_up(level)
    log = structlog.get_logger()
    for name in LEVELS:
        getattr(log, name)(f"said at {name}", region="demo")
    out, err = capfd.readouterr()
    assert out == ""
    said = [line for line in err.splitlines() if "said at" in line]
    assert [line.split("said at ")[1].split()[0] for line in said] == list(LEVELS[LEVELS.index(level) :])
    assert all("region=demo" in line and "\x1b" not in line for line in said)


def test_an_exception_is_logged_with_its_traceback(capfd: pytest.CaptureFixture[str], restored: None) -> None:
    set_up("info")
    try:
        raise RuntimeError("a reason of ours")
    except RuntimeError as error:
        structlog.get_logger().error("failed", exc_info=error)
    assert "RuntimeError: a reason of ours" in capfd.readouterr().err


class Events:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self.places: list[Where] = []

    def __call__(self, priority: int, event: str, values: dict[str, Any], where: Where) -> None:
        self.events.append((priority, event, values))
        self.places.append(where)


def line() -> int:
    """Tell the line that this is called from."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


PRIORITIES = {
    "debug": syslog.LOG_DEBUG,
    "info": syslog.LOG_INFO,
    "warning": syslog.LOG_WARNING,
    "error": syslog.LOG_ERR,
}


@pytest.mark.parametrize("level", LEVELS)
def test_a_sink_gets_events_as_they_are(level: str, capfd: pytest.CaptureFixture[str], restored: None) -> None:
    sink = Events()
    set_up(level, sink)
    log = structlog.get_logger()
    for name in LEVELS:
        getattr(log, name)("said", region="demo", peer=3, level=name)
    assert sink.events == [
        (PRIORITIES[name], "said", {"region": "demo", "peer": 3, "level": name})
        for name in LEVELS[LEVELS.index(level) :]
    ]
    assert capfd.readouterr() == ("", "")


def test_critical_and_exception_and_bound_values(restored: None) -> None:
    sink = Events()
    set_up("info", sink)
    log = structlog.get_logger().bind(region="demo")
    log.critical("one")
    log.exception("two")
    assert sink.events == [
        (syslog.LOG_CRIT, "one", {"region": "demo"}),
        (syslog.LOG_ERR, "two", {"region": "demo", "exc_info": True}),
    ]


def test_a_sink_learns_where_an_event_comes_from(restored: None) -> None:
    sink = Events()
    set_up("info", sink)
    log = structlog.get_logger()
    limited = Limiter(burst=10)
    here = line()
    log.info("at once")
    log.bind(a=1).exception("by a way round")
    limited(log.info, "k", "limited")
    function = "test_a_sink_learns_where_an_event_comes_from"
    assert sink.places == [(__file__, here + more, function) for more in (1, 2, 3)]


def test_what_libraries_log_goes_into_the_sink(capfd: pytest.CaptureFixture[str], restored: None) -> None:
    sink = Events()
    set_up("info", sink)
    logger = logging.getLogger("asyncio")
    error = RuntimeError("why")
    logger.info("not for us: %d", 0)
    here = line()
    logger.warning("took %.3f s", 0.5)
    logger.error("failed", exc_info=error)
    logger.critical("worse")
    logger.log(35, "between")
    assert sink.events == [
        (syslog.LOG_WARNING, "took 0.500 s", {"logger": "asyncio"}),
        (syslog.LOG_ERR, "failed", {"logger": "asyncio", "exc_info": (RuntimeError, error, None)}),
        (syslog.LOG_CRIT, "worse", {"logger": "asyncio"}),
        (syslog.LOG_WARNING, "between", {"logger": "asyncio"}),
    ]
    assert sink.places[0] == (__file__, here + 1, "test_what_libraries_log_goes_into_the_sink")
    assert capfd.readouterr() == ("", "")


def test_library_that_logs_nonsense_is_told_of(restored: None) -> None:
    sink = Events()
    set_up("info", sink)
    logging.getLogger("library").warning("%d", "not a number")
    values = {"logger": "library", "of": "'%d'", "args": "('not a number',)", "reason": "TypeError"}
    assert sink.events == [(syslog.LOG_WARNING, UNPRINTABLE, values)]


class NoText:
    """A value that can't be printed."""

    def __repr__(self) -> str:
        raise KeyError("boom")


def test_value_without_text_is_told_of_and_raises_nothing(capfd: pytest.CaptureFixture[str], restored: None) -> None:
    set_up("info")
    structlog.get_logger().info("device", value=NoText())
    structlog.get_logger().info("next")
    first, second = capfd.readouterr().err.splitlines()
    assert f"[error] {UNPRINTABLE} of=\"'device'\" reason=KeyError" in first
    assert second.endswith("[info] next")


def test_sink_that_always_fails_raises_nothing(restored: None) -> None:
    def broken(*_: object) -> None:
        raise OSError("gone")

    set_up("info", broken)
    structlog.get_logger().error("said")
    logging.getLogger("library").error("said")


def test_line_has_level_sentence_and_values_by_their_keys(capfd: pytest.CaptureFixture[str], restored: None) -> None:
    set_up("info")
    structlog.get_logger().warning("sentence", b=1, a="two words", path="/x", n=None, s="a=b", esc="\x1b[2J")
    (line,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.split(" ")[0])
    assert line.split(" ", 1)[1] == (r"[warning] sentence a='two words' b=1 esc='\x1b[2J' n=None path=/x s='a=b'")


def test_traceback_reaches_terminal_without_control_characters(
    capfd: pytest.CaptureFixture[str], restored: None
) -> None:
    set_up("info")
    structlog.get_logger().error("failed", exc_info=ValueError("\x1b[2J"))
    assert capfd.readouterr().err.endswith("ValueError: \\x1b[2J\n")


def test_tests_can_still_listen_when_there_is_a_sink(restored: None) -> None:
    sink = Events()
    set_up("info", sink)
    with structlog.testing.capture_logs() as lines:
        structlog.get_logger().info("heard")
    structlog.get_logger().info("sunk")
    assert [entry["event"] for entry in lines] == ["heard"]
    assert [event for _, event, _ in sink.events] == ["sunk"]
