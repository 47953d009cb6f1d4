# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A command that is started with a peer's place in a region, and what `attach` does for as long as it runs.

Theory of operation
-------------------
*Hand over.* The command takes our place in every sense: execve puts it where we were, with the connection and all
doorbells. It reads on where we stopped.

*Stay.* A shell script can't read the connection, and can't wait for an eventfd that does not block. To make ours block
would not last: O_NONBLOCK belongs to the open file, which everybody shares who may ring us, and who rings sets it
whenever they like (`native`, `bells`). So we stay between: the command gets eventfds that nobody else has, and we add
to them what comes in at the real ones. We read the connection, so that the daemon never finds us stalled; when it ends,
the command finds the end of a socket that it has for that, and is rung once where it waits, since it can't poll.

Signals that were sent to us go on to the command. What the terminal sends (Ctrl-C) goes to both of us by itself, so it
is not sent on; the kernel says which is which.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import click

from ..errors import DoorbellError
from ..fds import eventfd
from ..fds.owned import Fd
from ..ivshmem.client import Client, Rung
from ..ivshmem.environment import PREFIX, Place
from .bus_choice import VARIABLE
from .joining import Attachment
from .session import Failure

CANNOT_RUN = 126
NOT_FOUND = 127
"""Exit statuses as env(1) has them."""
SIGNALLED = 128
_FORWARDED = tuple(getattr(signal, f"SIG{name}") for name in ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2"))
_OF_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores, and a command should not."""
_FROM_KERNEL = 0x80  # SI_KERNEL: the terminal sent it
_FULL = (1 << 64) - 2
"""What an eventfd holds at most."""


class CannotRun(Failure):
    """The command can't be started."""

    exit_code = CANNOT_RUN


class NotFound(CannotRun):
    """There is no such command."""

    exit_code = NOT_FOUND


def cannot_run(program: str, error: OSError) -> CannotRun:
    """Put in words why *program* can't be started."""
    cure = "look at what it needs"
    if any(char in program for char in " ;|&<>$"):
        cure = f"for a shell's command line write: --exec bash -c '{program}'"
    elif isinstance(error, FileNotFoundError):
        cure = "check the name, and $PATH"
    elif isinstance(error, PermissionError):
        cure = "is it a program, and may you run it (chmod +x)?"
    kind = NotFound if isinstance(error, FileNotFoundError) else CannotRun
    return kind(f"can't run {program}: {error.strerror}; {cure}")


def place_of(client: Client) -> Place:
    """Describe the place that *client* has."""
    return Place(
        id=client.id,
        memory=client.memory_fd,
        size=len(client.memory),
        own=list(client.doorbells[client.id]),
        peers={peer.id: list(peer.eventfds) for peer in client},
        link=client.fds()[0],
        live=True,
    )


def environment_of(place: Place, joined: Attachment, before: Mapping[str, str]) -> dict[str, str]:
    """Make the command's environment of ours; what an outer `attach` left there is not in it."""
    kept = {name: value for name, value in before.items() if not name.startswith(PREFIX)}
    return {**kept, VARIABLE: joined.bus, **place.variables(joined.region)}


def hand_over(joined: Attachment, command: Sequence[str], soft_limit: int) -> None:
    """Become *command*; returns never.

    Raises:
        CannotRun: it can't be executed; we still are who we were.
    """
    place = place_of(joined.client)
    for fd in place.fds:
        os.set_inheritable(fd, True)
    os.set_blocking(place.link, True)  # who reads it sets it as they like; nobody shares this one
    for number in _OF_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    before = limit_descriptors(soft_limit)
    try:
        os.execvpe(command[0], list(command), environment_of(place, joined, os.environ))
    except OSError as error:
        limit_descriptors(before)
        raise cannot_run(command[0], error) from None


def limit_descriptors(soft: int) -> int:
    """Set the soft limit on descriptors, and give what it was; those above it stay open."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return before


class Child:
    """*command*, which has the place of *joined* while we read the connection; started by `run`.

    With *kill*, SIGTERM is sent to it when the connection ends; *soft_limit* is its limit on descriptors.
    """

    def __init__(self, joined: Attachment, command: Sequence[str], *, kill: bool, soft_limit: int) -> None:
        self._joined = joined
        self._client = joined.client
        self._command = list(command)
        self._kill = kill
        self._soft_limit = soft_limit
        self._bells = eventfd.make(self._client.vectors)
        for fd in self._bells:
            os.set_blocking(fd, True)
        self._connected, self._theirs = socket.socketpair()

    def run(self) -> int:
        """Start it, do what is to be done while it runs, and give its exit status (128 + N for signal N).

        Raises:
            CannotRun: it can't be started.
        """
        with self._connected, self._theirs:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it is told no exit status
            pid = self._start(before)
            self._theirs.close()
            with Fd(os.pidfd_open(pid)) as pidfd:
                number = pidfd.fileno()
                threading.Thread(target=forward_signals, args=(number,), name="signals", daemon=True).start()
                self._keep(number)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                pidfd.steal()  # the thread still looks at it, until our end, which is near
        return status if status >= 0 else SIGNALLED - status

    def _start(self, mask: Iterable[int]) -> int:
        place = replace(place_of(self._client), own=list(self._bells), link=self._theirs.fileno(), live=False)
        for fd in place.fds:
            os.set_inheritable(fd, True)
        before = limit_descriptors(self._soft_limit)
        try:
            return os.posix_spawnp(
                self._command[0],
                self._command,
                environment_of(place, self._joined, os.environ),
                setsigmask=mask,
                setsigdef=_OF_PYTHON,
            )
        except OSError as error:
            raise cannot_run(self._command[0], error) from None
        finally:
            limit_descriptors(before)

    def _keep(self, pidfd: int) -> None:
        """Move rings, and read what the server says, until the process ends."""
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        region = self._client.fileno()
        poll.register(region, select.POLLIN)
        while pidfd not in dict(poll.poll()):
            try:
                for event in self._client.handle_fds():
                    if isinstance(event, Rung):
                        self._add(event)
            except (DoorbellError, OSError) as error:
                poll.unregister(region)
                self._lose(pidfd, error)

    def _add(self, rung: Rung) -> None:
        """Pass a ring on. A count that a peer made up, to fill the eventfd, must not block us."""
        bell = self._bells[rung.vector]
        if count := min(rung.count, _FULL - eventfd.pending(bell)):
            os.eventfd_write(bell, count)

    def _lose(self, pidfd: int, error: Exception) -> None:
        """Tell the command that it is over: at the socket that it has for that, and by ringing it where it waits."""
        self._client.close()
        self._connected.close()
        for bell in self._bells:
            if not eventfd.pending(bell):
                os.eventfd_write(bell, 1)
        then = "so it gets SIGTERM" if self._kill else "it keeps the memory, but nobody rings it any more"
        click.echo(f"doorbellctl: {self._joined.region}: {error}; {self._command[0]} runs, {then}", err=True)
        if self._kill:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)


def forward_signals(pidfd: int, wait: Callable[..., signal.struct_siginfo] = signal.sigwaitinfo) -> None:
    """Send on to a process what is sent to us, until it ends; all threads have these signals blocked."""
    while True:
        info = wait(_FORWARDED)
        if info.si_code != _FROM_KERNEL:
            try:
                signal.pidfd_send_signal(pidfd, info.si_signo)
            except ProcessLookupError:
                return
