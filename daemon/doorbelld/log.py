# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One way to log: structlog, a line per event, to standard error.

Modules take ``structlog.get_logger()`` and give a sentence and key-value pairs. `limited` is for what strangers can
cause at will: it lets a burst through and then counts.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import structlog

LEVELS = ("debug", "info", "warning", "error")


def set_up(level: str) -> None:
    """Log to standard error from *level* up; in colour if that is a terminal."""
    number = getattr(logging, level.upper())
    colors = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if colors else "iso"),
            structlog.dev.ConsoleRenderer(
                colors=colors, pad_event_to=0, pad_level=False, exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(number, logging.WARNING), format="%(levelname)s %(name)s: %(message)s", force=True)


class Limiter:
    """Lets *burst* lines through per *period* seconds and key, and says how many it kept back."""

    def __init__(self, burst: int = 50, period: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._period = period
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}

    def __call__(self, emit: Callable[..., Any], key: str, event: str, **values: Any) -> None:
        """Call ``emit(event, **values)`` if *key* has not had its share."""
        now = self._clock()
        start, count = self._windows.get(key, (now, 0))
        if now - start >= self._period:
            if count > self._burst:
                emit("kept back lines of the log", of=key, lines=count - self._burst, seconds=round(now - start, 1))
            start, count = now, 0
        self._windows[key] = (start, count + 1)
        if count < self._burst:
            emit(event, **values)
