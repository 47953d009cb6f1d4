# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One way to log: structlog, an event at a time, in lines on standard error or into a sink such as the journal.

Modules take ``structlog.get_logger()`` and give a sentence and key-value pairs. `Limiter` is for what strangers can
cause at will: it lets a burst through and then counts.

Where events go is decided once, by `set_up`. A `Sink` gets them unrendered, with the place in the source that they
come from: the stack is walked past the frames of structlog and of this module, so that a line which went through a
`Limiter` comes from whoever called it. What libraries say through the standard ``logging`` goes the same way.
"""

from __future__ import annotations

import logging
import sys
import syslog
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

LEVELS = ("debug", "info", "warning", "error")

KEPT_BACK = "kept back lines of the log"
"""What a `Limiter` says when it has held its tongue."""
THE_REST = "everything else"
"""The key under which a `Limiter` counts what it has no room to tell apart."""

Where = tuple[str, int, str]
"""File, line and function."""
Sink = Callable[[int, str, dict[str, Any], Where], None]
"""Takes an event: its priority (a number of syslog(3)), its sentence, its values, and where it comes from."""
Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after some seconds, as the event loop's ``call_later`` does."""


def set_up(level: str, sink: Sink | None = None) -> None:
    """Log from *level* up: into *sink*, or without one to standard error, in colour if that is a terminal."""
    number = getattr(logging, level.upper())
    if sink is None:
        colors = sys.stderr.isatty()
        processors: list[structlog.typing.Processor] = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if colors else "iso"),
            structlog.dev.ConsoleRenderer(
                colors=colors, pad_event_to=0, pad_level=False, exception_formatter=structlog.dev.plain_traceback
            ),
        ]
        factory: Callable[..., Any] = structlog.WriteLoggerFactory(file=sys.stderr)
        handlers = None
    else:
        feeder = _Feeder(sink)
        processors, factory, handlers = [], lambda *_: feeder, [_Handler(sink)]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=factory,
        cache_logger_on_first_use=False,  # saves less than a microsecond, and what is cached can't be set up again
    )
    logging.basicConfig(
        level=max(number, logging.WARNING),
        format="%(levelname)s %(name)s: %(message)s",
        handlers=handlers,
        force=True,
    )


class _Feeder:
    """The logger that structlog wraps: gives each event to a sink."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def debug(self, event: str, **values: Any) -> None:
        self._sink(syslog.LOG_DEBUG, event, values, _caller())

    def info(self, event: str, **values: Any) -> None:
        self._sink(syslog.LOG_INFO, event, values, _caller())

    def warning(self, event: str, **values: Any) -> None:
        self._sink(syslog.LOG_WARNING, event, values, _caller())

    def error(self, event: str, **values: Any) -> None:
        self._sink(syslog.LOG_ERR, event, values, _caller())

    def critical(self, event: str, **values: Any) -> None:
        self._sink(syslog.LOG_CRIT, event, values, _caller())


def _caller() -> Where:
    """Find who logs: the nearest frame that is neither structlog's nor ours."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        name = frame.f_globals.get("__name__", "")
        if name != __name__ and not name.startswith("structlog."):
            break
        frame = frame.f_back
    code = frame.f_code
    return code.co_filename, frame.f_lineno, code.co_name


class _Handler(logging.Handler):
    """Gives to a sink what libraries log."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            values: dict[str, Any] = {"logger": record.name}
            if record.exc_info:
                values["exc_info"] = record.exc_info
            where = (record.pathname, record.lineno, record.funcName)
            self._sink(_priority(record.levelno), record.getMessage(), values, where)
        except Exception:  # as each handler does: what can't be formatted is told on standard error, and nothing ends
            self.handleError(record)


def _priority(level: int) -> int:
    if level >= logging.CRITICAL:
        return syslog.LOG_CRIT
    if level >= logging.ERROR:
        return syslog.LOG_ERR
    if level >= logging.WARNING:
        return syslog.LOG_WARNING
    return syslog.LOG_INFO if level >= logging.INFO else syslog.LOG_DEBUG


class _Window:
    """What became of one key since *start*: how many lines there were, and who is to say what was kept back."""

    __slots__ = ("emit", "lines", "start")

    def __init__(self, start: float, emit: Callable[..., Any]) -> None:
        self.start = start
        self.emit = emit
        self.lines = 0


class Limiter:
    """Lets *burst* lines through per *period* seconds and key, and says how many it kept back.

    It says so with the next line of that key; and, if it is given *later* (the event loop's ``call_later``), at the
    end of the period, should no line come. It tells *keys* of them apart at a time; what is more shares one window,
    so that who can make up keys gains nothing by it.
    """

    def __init__(
        self,
        burst: int = 50,
        period: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        later: Later | None = None,
        keys: int = 1000,
    ) -> None:
        self._burst = burst
        self._period = period
        self._clock = clock
        self._later = later
        self._keys = keys
        self._windows: dict[str, _Window] = {}  # in the order of their starts

    def __call__(self, emit: Callable[..., Any], key: str, event: str, /, **values: Any) -> None:
        """Call ``emit(event, **values)`` if *key* has not had its share."""
        now = self._clock()
        window = self._windows.get(key)
        if window is None or now - window.start >= self._period:
            key, window = self._open(key, emit, now)
        window.lines += 1
        if window.lines <= self._burst:
            emit(event, **values)
        elif window.lines == self._burst + 1:
            shared = key == THE_REST or "region" not in values
            window.emit = emit if shared else partial(emit, region=values["region"])
            if self._later is not None:
                self._later(window.start + self._period - now, partial(self._end, key, window))

    def _open(self, key: str, emit: Callable[..., Any], now: float) -> tuple[str, _Window]:
        """Begin a window for *key*, or find the one that it has to share; ends those whose time is over."""
        while self._windows:
            first, window = next(iter(self._windows.items()))
            if now - window.start < self._period:
                break
            self._end(first, window)
        if len(self._windows) >= self._keys:
            key = THE_REST
        return key, self._windows.setdefault(key, _Window(now, emit))

    def _end(self, key: str, window: _Window) -> None:
        """End a window, unless it has been ended, and say what was kept back in it."""
        if self._windows.get(key) is not window:
            return
        del self._windows[key]
        if window.lines > self._burst:
            seconds = round(self._clock() - window.start, 1)
            window.emit(KEPT_BACK, of=key, lines=window.lines - self._burst, seconds=seconds)
