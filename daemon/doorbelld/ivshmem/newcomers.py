# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections to a region of which it is not known yet whose they are: see `fds.identification`.

They are passed on in the order of coming. But who makes us wait for a name holds up nobody else: those who came later
and are known wait for the others for `PATIENCE`, once, and overtake them then.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from ..fds import foreign
from ..fds.identification import Lookup, PidFiles
from ..fds.owned import FdSet
from ..fds.peercred import Credentials
from ..fds.vault import Vault
from .peer import Arrival
from .rules import pid_files
from .spec import RegionSpec

PATIENCE = 0.01
"""Seconds that a newcomer who is known waits for one that came before and is not."""


@dataclass(eq=False, slots=True)
class _Newcomer:
    sock: socket.socket
    arrival: Arrival | None
    known: tuple[Credentials, PidFiles] | None = None


class Newcomers:
    """They, and what was made ready for each; ``admit(sock, arrival, who, pids)`` takes both over."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        admit: Callable[[socket.socket, Arrival | None, Credentials, PidFiles], None],
    ) -> None:
        self._loop = loop
        self._admit = admit
        self._queue: deque[_Newcomer] = deque()
        """In the order of coming."""
        self._slow: dict[_Newcomer, None] = {}
        """Who is not known yet, and was overtaken."""
        self._held: list[tuple[socket.socket, Arrival | None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self.prepared: tuple[FdSet, Vault] | None = None
        """Doorbells and a vault for who comes next."""
        self.expected: set[int] = set()
        """Numbers of arrivals that the process before has kept, and that were not passed to us yet."""

    def numbers(self) -> list[int]:
        """Give the numbers of all arrivals that are kept and not admitted."""
        arrivals = [*(one.arrival for one in (*self._queue, *self._slow)), *(arrival for _, arrival in self._held)]
        return [*self.expected, *(arrival.number for arrival in arrivals if arrival is not None)]

    def unprepare(self) -> None:
        """Close what is prepared: nobody comes."""
        if self.prepared is not None:
            for part in self.prepared:
                part.close()
            self.prepared = None

    def look_up(self, sock: socket.socket, arrival: Arrival | None, who: Credentials, spec: RegionSpec) -> None:
        """Find out the rest about *who*, and call *admit*, maybe before this returns; takes over *sock* and *arrival*.

        As many as may be peers are waited for; who comes beyond that has no name.
        """
        newcomer = _Newcomer(sock, arrival)
        self._queue.append(newcomer)
        if len(self._queue) + len(self._slow) > spec.max_peers:
            who = replace(who, unread=False)
        Lookup(sock, who, pid_files(rule.match for rule in spec.peer), partial(self._found, newcomer))

    def _found(self, newcomer: _Newcomer, who: Credentials, pids: PidFiles) -> None:
        newcomer.known = who, pids
        if newcomer in self._slow:
            del self._slow[newcomer]
            self._admit(newcomer.sock, newcomer.arrival, who, pids)
        else:
            self._admit_known()

    def _admit_known(self) -> None:
        """Pass on everybody who is known, up to the first for whom the others wait."""
        while self._queue and (known := self._queue[0].known):
            newcomer = self._queue.popleft()
            self._admit(newcomer.sock, newcomer.arrival, *known)
        if self._timer is None and any(newcomer.known for newcomer in self._queue):
            self._timer = self._loop.call_later(PATIENCE, self._overtake)

    def _overtake(self) -> None:
        """Set those aside for whom somebody waits."""
        self._timer = None
        passed: list[_Newcomer] = []
        last = max((n for n, newcomer in enumerate(self._queue) if newcomer.known), default=-1)
        for newcomer in (self._queue.popleft() for _ in range(last + 1)):
            if newcomer.known:
                passed.append(newcomer)
            else:
                self._slow[newcomer] = None
        self._queue.extendleft(reversed(passed))
        self._admit_known()

    def hold(self, sock: socket.socket, arrival: Arrival | None) -> None:
        """Take a connection over that came when it was found that the memory is to be cleared first."""
        self._held.append((sock, arrival))

    def take_held(self) -> list[tuple[socket.socket, Arrival | None]]:
        """Give those that were held."""
        held, self._held = self._held, []
        return held

    def close(self) -> None:
        """Close all; who is found out about from now on is nobody's."""
        waiting = [(newcomer.sock, newcomer.arrival) for newcomer in (*self._queue, *self._slow)]
        self._queue.clear()
        self._slow.clear()
        if self._timer is not None:
            self._timer.cancel()
        for sock, arrival in (*waiting, *self.take_held()):
            foreign.let_go(sock)
            if arrival is not None:
                arrival.eventfds.close()
