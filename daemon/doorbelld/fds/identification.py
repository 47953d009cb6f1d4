# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding out the rest about somebody who connected, while everybody else is served.

`identify` tells what the kernel vouches for. A VM name on a command line and PID files are read in helper threads, with
a deadline: the owners of a process or of a file can make the reader wait for ever. Then only this newcomer waits, and
after `TIMEOUT` it is let in or refused without the name. Processes of root and of the daemon's own user are read at
once: a thread costs as much as the rest of a join.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from . import helpers
from .helpers import HelperTimeout
from .owned import Fd
from .peercred import Credentials, process_of, said_name

T = TypeVar("T")

TIMEOUT = 2.0
"""Seconds that a newcomer waits for its own name, or for a PID file, at most."""

PidFiles = Mapping[str, int]
"""The process ID in each PID file; -1 where there is none."""


class Lookup:
    """What is not known yet of *who*, behind *sock*; ``done(who, pids)`` is called once, maybe before this returns."""

    def __init__(
        self,
        sock: socket.socket,
        who: Credentials,
        pid_files: Iterable[str],
        done: Callable[[Credentials, PidFiles], None],
    ) -> None:
        self._who = who
        self._pids: dict[str, int] = {}
        self._done = done
        self._left = 1
        if who.unread and not who.vm_name and who.pid > 0:
            self._ask_name(sock)
        for path in set(pid_files):
            self._ask(("PID file", path), partial(pid_in, path), partial(self._pids.__setitem__, path))
        self._one_less()

    def _ask_name(self, sock: socket.socket) -> None:
        try:
            process = process_of(sock)
        except ProcessLookupError:
            return
        pid = self._who.pid
        if self._who.uid in (0, os.geteuid()):  # they may do to us what they like
            self._take_name(said_name(pid, process))
            return
        unbegun = process.close if process is not None else lambda: None
        self._ask(("command line", self._who.uid), partial(said_name, pid, process), self._take_name, unbegun)

    def _take_name(self, name: str) -> None:
        self._who = replace(self._who, vm_name=name, unread=False)

    def _ask(
        self,
        owner: tuple[str, str | int],
        work: Callable[[], T],
        take: Callable[[T], None],
        unbegun: Callable[[], None] = lambda: None,
    ) -> None:
        """Have *work* done, whose result *take* gets if it comes in time; see `helpers.Helpers.submit`."""

        def done(result: T | None, error: BaseException | None) -> None:
            if error is None:
                take(result)  # type: ignore[arg-type]  # with no error it is a result
            self._one_less()

        with contextlib.suppress(HelperTimeout):
            helpers.shared.submit(owner, work, TIMEOUT, done, unbegun=unbegun)
            self._left += 1

    def _one_less(self) -> None:
        self._left -= 1
        if not self._left:
            self._done(self._who, self._pids)


async def look_up(sock: socket.socket, who: Credentials, pid_files: Iterable[str]) -> tuple[Credentials, PidFiles]:
    """Complete *who*, behind *sock*, and read *pid_files*."""
    found: asyncio.Future[tuple[Credentials, PidFiles]] = asyncio.get_running_loop().create_future()
    Lookup(sock, who, pid_files, lambda who, pids: None if found.done() else found.set_result((who, pids)))
    return await found


def pid_in(path: str) -> int:
    """Read the process ID in a PID file; -1 if there is none, or it is no regular file, or a link."""
    try:
        with Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return -1
            return int(os.read(file.fileno(), 32))
    except (OSError, ValueError):
        return -1
