# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The host peer: the daemon's own place in a region, so that guests can ring host processes.

Its doorbells are eventfds like any other's, read here. A guest may ring as fast as it likes: after each sweep over
the doorbells they are left alone for a moment, in which the kernel adds the rings up. None is lost, the first is
reported at once, and a storm costs a bounded number of events a second. A client's own doorbells (`link`) are read in
the same way, by `DoorbellReader`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..fds import native
from ..fds.owned import FdSet
from .roster import Member

QUIET_SECONDS = 0.001


class DoorbellReader:
    """Reads *eventfds*, which stay the caller's, and calls ``rung(vector, count)`` for each that was rung.

    ``slot(vector)`` gives the memory that the kernel puts the count into, if it is to outlive us (`record`). *totals*
    are counted on, if given. *quiet* is how long they are left alone, in seconds, if not `QUIET_SECONDS`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        eventfds: FdSet,
        rung: Callable[[int, int], None],
        slot: Callable[[int], memoryview | None],
        totals: list[int] | None = None,
        quiet: float | None = None,
    ) -> None:
        self.totals = [] if totals is None else totals
        """Rings taken so far, by vector."""
        self._eventfds = eventfds
        self._loop = loop
        self._rung = rung
        self._slot = slot
        self._quiet = quiet
        self._pause: asyncio.TimerHandle | None = None
        self._heard: set[int] = set()  # the vectors that we listen to
        self._closed = False
        self.grown()

    def grown(self) -> None:
        """Take in the eventfds that were added."""
        self.totals += [0] * (len(self._eventfds) - len(self.totals))
        if self._pause is None:
            self._listen()

    def close(self) -> None:
        """Stop reading; the doorbells stay whose they are."""
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._deafen(range(len(self._eventfds)))

    def took(self, vector: int, count: int) -> None:
        """Add *count* rings to *vector*'s total and tell of them."""
        self.totals[vector] += count
        self._rung(vector, count)

    def sweep(self) -> list[int]:
        """Take what was rung up to now; gives the vectors that were."""
        found = []
        for vector, fd in enumerate(self._eventfds):
            count, _ = native.drain(fd, self._slot(vector))
            if count:
                found.append(vector)
                self.took(vector, count)
            if self._closed:  # by who heard of it
                break
        return found

    def _listen(self) -> None:
        self._pause = None
        for vector, fd in enumerate(self._eventfds):
            if vector not in self._heard:
                self._loop.add_reader(fd, self._wake, vector)
                self._heard.add(vector)

    def _deafen(self, vectors: range | list[int]) -> None:
        for vector in vectors:
            if vector in self._heard:
                self._heard.discard(vector)
                self._loop.remove_reader(self._eventfds[vector])

    def _wake(self, vector: int) -> None:
        if self._pause is not None:  # it was swept already, or waits for the next time
            self._deafen([vector])
        else:
            self._sweep()

    def _sweep(self) -> None:
        quiet = QUIET_SECONDS if self._quiet is None else self._quiet
        swept = self.sweep()
        if quiet and not self._closed:
            self._deafen(swept)
            self._pause = self._loop.call_later(quiet, self._listen)


class HostPeer(DoorbellReader):
    """Reads the doorbells of *member*."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        member: Member,
        rung: Callable[[int, int], None],
        slot: Callable[[int], memoryview | None],
    ) -> None:
        self.member = member
        super().__init__(loop, member.eventfds, rung, slot)
