# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections to a region of which it is not known yet whose they are: see `fds.identification`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ..fds import foreign
from ..fds.identification import Lookup, PidFiles
from ..fds.peercred import Credentials
from .peer import Arrival
from .rules import pid_files
from .spec import RegionSpec


class Newcomers:
    """They, and what was made ready for each; ``known(sock, arrival, who, pids)`` takes both over."""

    def __init__(self, known: Callable[[socket.socket, Arrival | None, Credentials, PidFiles], None]) -> None:
        self._known = known
        self._arrivals: dict[socket.socket, Arrival | None] = {}
        self._held: list[tuple[socket.socket, Arrival | None]] = []

    def look_up(self, sock: socket.socket, arrival: Arrival | None, who: Credentials, spec: RegionSpec) -> None:
        """Find out the rest about *who*, and call *known*, maybe before this returns; takes over *sock* and *arrival*.

        As many as may be peers are waited for; who comes beyond that has no name.
        """
        self._arrivals[sock] = arrival
        if len(self._arrivals) > spec.max_peers:
            who = replace(who, unread=False)
        Lookup(sock, who, pid_files(rule.match for rule in spec.peer), partial(self._found, sock))

    def _found(self, sock: socket.socket, who: Credentials, pids: PidFiles) -> None:
        if sock in self._arrivals:  # else we were closed
            self._known(sock, self._arrivals.pop(sock), who, pids)

    def hold(self, sock: socket.socket, arrival: Arrival | None) -> None:
        """Take a connection over that came when it was found that the memory is to be cleared first."""
        self._held.append((sock, arrival))

    def take_held(self) -> list[tuple[socket.socket, Arrival | None]]:
        """Give those that were held."""
        held, self._held = self._held, []
        return held

    def close(self) -> None:
        """Close all."""
        for sock, arrival in (*self._arrivals.items(), *self.take_held()):
            foreign.let_go(sock)
            if arrival is not None:
                arrival.eventfds.close()
        self._arrivals.clear()
