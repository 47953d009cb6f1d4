# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells systemd how we are (sd_notify(3)): ready, what we serve, reloading, stopping, and that we make progress.

sdnotify sends text and says nothing when that fails, which is right for all of this; descriptors go through its socket
(`store`). Without systemd it does nothing.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..log import get_logger

log = get_logger()

_STATUS_SECONDS = 1.0


def notifier() -> Any:
    """Make an sdnotify.SystemdNotifier, or None if nobody wants to be notified."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return None
    import sdnotify

    made = sdnotify.SystemdNotifier()
    if made.socket is not None:
        made.socket.set_inheritable(False)
    return made if made.socket is not None else None


class Readiness:
    """The service manager's view of us; *status* gives the line that ``systemctl status`` shows."""

    def __init__(self, loop: asyncio.AbstractEventLoop, notifier: Any, status: Callable[[], str]) -> None:
        self._loop = loop
        self._notifier = notifier
        self._status = status
        self._timer: asyncio.TimerHandle | None = None
        self._told = ""
        self._poll = select.poll()
        if notifier is not None:
            self._poll.register(notifier.socket, select.POLLOUT)

    def _tell(self, *state: str) -> None:
        if self._notifier is not None:
            self._notifier.notify("\n".join(state))

    @property
    def _room(self) -> bool:
        """Whether systemd's queue has room; if not, to tell would be to wait."""
        return bool(self._poll.poll(0))

    def ready(self) -> None:
        """Sockets listen and the bus name is ours."""
        self._told = self._status()
        self._tell("READY=1", f"STATUS={self._told}")

    def reloading(self) -> None:
        """The configuration is being read; `ready` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=reading the configuration again")

    def stopping(self) -> None:
        """We are on our way out."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell("STOPPING=1", "STATUS=stopping")

    def changed(self) -> None:
        """Tell the status, if it is another, before long."""
        if self._timer is None and self._notifier is not None:
            self._timer = self._loop.call_later(_STATUS_SECONDS, self._tell_status)

    def _tell_status(self) -> None:
        self._timer = None
        if not self._room:
            self.changed()
        elif (status := self._status()) != self._told:
            self._told = status
            self._tell(f"STATUS={status}")

    def progress(self) -> None:
        """Feed the watchdog; one time that systemd is too busy does no harm."""
        if self._room:
            self._tell("WATCHDOG=1")


class Watchdog:
    """Feeds systemd's watchdog while the daemon makes progress: its loop turns, and nobody in *stuck()* waits in vain.

    It looks four times in the period that systemd allows. Looking from within the loop is half of the proof: a loop
    that does not turn looks at nothing. What is stuck once may be busy; only what is stuck twice in a row stops the
    food.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, readiness: Readiness, stuck: Callable[[], Sequence[str]]
    ) -> None:
        self._loop = loop
        self._readiness = readiness
        self._stuck = stuck
        self._suspects: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._period = _watchdog_seconds() / 4

    def start(self) -> None:
        """Begin, if systemd wants it."""
        if self._period:
            log.debug("watchdog is on", seconds=self._period * 4)
            self._look()

    def stop(self) -> None:
        """Feed no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        suspects = set(self._stuck())
        if still := suspects & self._suspects:
            reason = f"nobody in region {', '.join(sorted(still))} gets a turn"
            log.error("the data plane makes no progress", reason=reason)
        else:
            self._readiness.progress()
        self._suspects = suspects
        self._timer = self._loop.call_later(self._period, self._look)


def _watchdog_seconds() -> float:
    """Say how often systemd wants to hear of us; 0 for never (sd_watchdog_enabled(3))."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    microseconds = os.environ.get("WATCHDOG_USEC", "0")
    return int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0
