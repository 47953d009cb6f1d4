# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The host peer: the daemon's own place in a region, so that guests can ring host processes.

Its doorbells are eventfds like any other's, read here. A guest may ring as fast as it likes: after each sweep over
the doorbells they are left alone for a moment, in which the kernel adds the rings up. None is lost, the first is
reported at once, and a storm costs a bounded number of events a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..fds import native
from .roster import Member

QUIET_SECONDS = 0.001


class HostPeer:
    """Reads the doorbells of *member* and calls ``rung(vector, count)`` for each that was rung.

    ``slot(vector)`` gives the memory that the kernel puts the count into, if it is to outlive us (`record`).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        member: Member,
        rung: Callable[[int, int], None],
        slot: Callable[[int], memoryview | None],
    ) -> None:
        self.member = member
        self.totals = [0] * len(member.eventfds)
        """Rings taken so far, by vector."""
        self._loop = loop
        self._rung = rung
        self._slot = slot
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Stop reading; the doorbells stay whose they are."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        else:
            self._deafen()

    def took(self, vector: int, count: int) -> None:
        """Add *count* rings to *vector*'s total and tell of them."""
        self.totals[vector] += count
        self._rung(vector, count)

    def _listen(self) -> None:
        self._pause = None
        for fd in self.member.eventfds:
            self._loop.add_reader(fd, self._sweep)

    def _deafen(self) -> None:
        for fd in self.member.eventfds:
            self._loop.remove_reader(fd)

    def _sweep(self) -> None:
        if self._pause is not None:  # a second doorbell of the same loop turn: the first has swept it
            return
        for vector, fd in enumerate(self.member.eventfds):
            count, _ = native.drain(fd, self._slot(vector))
            if count:
                self.took(vector, count)
        self._deafen()
        self._pause = self._loop.call_later(QUIET_SECONDS, self._listen)
