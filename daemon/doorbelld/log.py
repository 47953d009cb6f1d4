# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Logging: structlog's loggers, one event at a time, into a sink. Logging never raises and never blocks.

Modules take `get_logger` and give a sentence and key-value pairs. `Limiter` is for what strangers can cause at will:
it lets a burst through and then counts.

A `Sink` gets each event unrendered, with the place in the source that it comes from: the stack is walked past the
frames of structlog and of this module, so that a line that went through a `Limiter` comes from its caller. There are
two: `Console`, which writes lines to standard error (see `stdio`), and ``service.journal``. `set_up` chooses one.
`catch_all` sends there what Python itself would write to standard error: warnings, and exceptions that nobody caught.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import syslog
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from . import stdio

if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from types import TracebackType


def _import_structlog() -> None:
    """Import structlog without rich, which it imports where it is installed (6 MB, 66 modules).

    It needs rich for coloured tracebacks only, and goes without it if the import fails.
    """
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]


_import_structlog()

import structlog  # noqa: E402

LEVELS = ("debug", "info", "warning", "error")

KEPT_BACK = "kept back lines of the log"
"""What a `Limiter` says when it kept lines back."""
LOST = "log lines were lost"
"""What a sink says when it could not write lines."""
UNPRINTABLE = "an event could not be logged"
"""What is logged in place of an event that a sink could not take, such as one with a value that can't be printed."""
THE_REST = "everything else"
"""The key under which a `Limiter` counts what it has no room to tell apart."""

Where = tuple[str, int, str]
"""File, line and function."""
Sink = Callable[[int, str, dict[str, Any], Where], None]
"""Takes an event: its priority (a number of syslog(3)), its sentence, its values, and where it comes from."""
Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after some seconds, as the event loop's ``call_later`` does."""

get_logger = structlog.get_logger


def set_up(level: str, sink: Sink | None = None) -> None:
    """Log from *level* up: into *sink*, or without one to standard error, in colour if that is a terminal."""
    number = getattr(logging, level.upper())
    feeder = _Feeder(sink or Console(stdio.stderr()))
    structlog.configure(
        processors=[],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: feeder,
        cache_logger_on_first_use=False,  # saves less than a microsecond, and what is cached can't be set up again
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[_Handler(feeder)], force=True)


def catch_all() -> None:
    """Log what Python would write to standard error by itself, from now until the process ends."""
    log = get_logger()

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        log.critical("uncaught exception", exc_info=(kind, error, trace))

    def uncaught_in_thread(given: threading.ExceptHookArgs) -> None:
        if given.exc_type is not SystemExit:
            name = given.thread.name if given.thread is not None else "unknown"
            exc_info = (given.exc_type, given.exc_value, given.exc_traceback)
            log.critical("uncaught exception", thread=name, exc_info=exc_info)

    def unraisable(given: UnraisableHookArgs) -> None:
        exc_info = (given.exc_type, given.exc_value, given.exc_traceback)
        log.error("exception ignored", at=_shown(given.object), reason=given.err_msg or "", exc_info=exc_info)

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
    sys.unraisablehook = unraisable
    logging.captureWarnings(True)
    if faulthandler.is_enabled():
        faulthandler.enable(stdio.stderr().writing_fd)


class _Feeder:
    """The logger that structlog wraps: gives each event to a sink, and lets no exception out."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def debug(self, event: str, **values: Any) -> None:
        self.feed(syslog.LOG_DEBUG, event, values, _caller())

    def info(self, event: str, **values: Any) -> None:
        self.feed(syslog.LOG_INFO, event, values, _caller())

    def warning(self, event: str, **values: Any) -> None:
        self.feed(syslog.LOG_WARNING, event, values, _caller())

    def error(self, event: str, **values: Any) -> None:
        self.feed(syslog.LOG_ERR, event, values, _caller())

    def critical(self, event: str, **values: Any) -> None:
        self.feed(syslog.LOG_CRIT, event, values, _caller())

    def feed(self, priority: int, event: str, values: dict[str, Any], where: Where) -> None:
        """Give an event to the sink."""
        try:
            self._sink(priority, event, values, where)
        except Exception as error:
            with contextlib.suppress(Exception):
                reason = {"of": _shown(event), "reason": type(error).__name__}
                self._sink(min(priority, syslog.LOG_ERR), UNPRINTABLE, reason, where)


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # of a third-party class
        return f"<{type(value).__name__}>"


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

    def __init__(self, feeder: _Feeder) -> None:
        super().__init__()
        self._feeder = feeder

    def emit(self, record: logging.LogRecord) -> None:
        values: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            values["exc_info"] = record.exc_info
        try:
            text = record.getMessage()
        except Exception as error:  # the arguments do not fit the format
            text = UNPRINTABLE
            values |= {"of": _shown(record.msg), "args": _shown(record.args), "reason": type(error).__name__}
        self._feeder.feed(_priority(record.levelno), text, values, (record.pathname, record.lineno, record.funcName))


def _priority(level: int) -> int:
    if level >= logging.CRITICAL:
        return syslog.LOG_CRIT
    if level >= logging.ERROR:
        return syslog.LOG_ERR
    if level >= logging.WARNING:
        return syslog.LOG_WARNING
    return syslog.LOG_INFO if level >= logging.INFO else syslog.LOG_DEBUG


def exception_of(given: object) -> BaseException | None:
    """Find the exception in what was given as ``exc_info``: itself, what `sys.exc_info` returns, or True."""
    if isinstance(given, tuple):
        given = given[1]
    elif given is True:
        given = sys.exc_info()[1]
    return given if isinstance(given, BaseException) else None


class Console:
    """A sink that writes a line for each event to *output*: the time, [level], the sentence, KEY=VALUE by their keys.

    What *output* does not take at once is dropped and counted, and the next line that it takes is preceded by one
    that tells how many were lost.
    """

    _LEVELS = {  # noqa: RUF012  (nobody changes it)
        syslog.LOG_DEBUG: ("debug", "32"),
        syslog.LOG_INFO: ("info", "32"),
        syslog.LOG_WARNING: ("warning", "33"),
        syslog.LOG_ERR: ("error", "31"),
        syslog.LOG_CRIT: ("critical", "31"),
    }

    def __init__(self, output: stdio.Output, *, colors: bool | None = None) -> None:
        """Write in colour if *colors* says so; by default on a terminal, unless ``$NO_COLOR`` is set."""
        self._output = output
        self._colors = colors if colors is not None else _wants_colors(output)

    def __call__(self, priority: int, event: str, values: dict[str, Any], where: Where) -> None:
        """Write an event, or count it as lost."""
        output, text = self._output, self._render(priority, event, values)
        if lost := output.lost:
            text = self._render(syslog.LOG_WARNING, LOST, {"count": lost}) + text
        if output.put(text.encode(errors="backslashreplace")):
            output.lost -= lost
        else:
            output.lost += 1

    def _render(self, priority: int, event: str, values: dict[str, Any]) -> str:
        now = datetime.now(UTC)
        time = now.strftime("%H:%M:%S.%f") if self._colors else now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        level, color = self._LEVELS[priority]
        paint = self._paint
        words = [paint("2", time), f"[{paint(color, level)}]", paint("1", _printable(str(event)))]
        error = exception_of(values.get("exc_info"))
        for key in sorted(values):
            if key != "exc_info":
                words.append(f"{paint('36', key)}={paint('35', _value(values[key]))}")
        line = " ".join(words) + "\n"
        return line if error is None else line + _printable("".join(traceback.format_exception(error)))

    def _paint(self, color: str, text: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self._colors else text


def _wants_colors(output: stdio.Output) -> bool:
    return output.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _printable(text: str) -> str:
    """Escape what a terminal could take for a command; lines stay lines."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else repr(one)[1:-1] for one in text)


def _value(value: object) -> str:
    """Show a value: a text as it is if it is one plain word, else quoted, with all that is odd escaped."""
    if not isinstance(value, str):
        return _printable(repr(value))
    return value if value.isprintable() and value and not set(value) & set(" =\"'") else repr(value)


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
