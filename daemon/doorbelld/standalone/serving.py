# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One device in a process of its own, from its start to a signal.

Theory of operation
-------------------
The socket is one that we make, or one that whoever started us made: then it is either a listening one, or leads to a
front-end already, and the kernel says which (`Inherited.listens`). A device on a listening socket serves one front-end
after the other until SIGTERM or SIGINT; on a connected one, or with *once*, it ends with its front-end.

To end means: no front-end is let in, the socket that we made is removed, requests in flight are finished, and the
front-end sees the end of the connection. If a disk is so slow that this takes long, the process ends without them: who
waits for it would kill it anyway, and to the guest they are not done.

Readiness is told to systemd, or to whoever else listens at ``$NOTIFY_SOCKET``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import sys

from ..errors import DoorbellError
from ..fds import limits
from ..fds.owned import Fd
from ..fds.spare import Spare
from ..host.events import DeviceAdded, DeviceEvent, FrontendDetached, StateChanged
from ..log import get_logger
from ..service.chronicle import Chronicle
from ..service.readiness import Readiness, notifier
from ..vhost.backend import Backend
from ..vhost.events import State
from ..vhost.spec import DeviceSpec

log = get_logger()

PATIENCE = 3.0
"""Seconds that requests in flight may take at the end."""


class Unusable(DoorbellError):
    """The descriptor that we were given is not the socket that we need."""


class Inherited:
    """A socket that whoever started the process made for it."""

    def __init__(self, number: int) -> None:
        """Take over descriptor *number*.

        Raises:
            Unusable: it is no UNIX stream socket that listens or is connected; it stays open then.
        """
        cure = "pass a UNIX stream socket that listens or is connected"
        try:
            sock = socket.socket(fileno=number)
        except (OSError, ValueError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise Unusable(f"descriptor {number} is no socket ({why}); {cure}") from error
        try:
            if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
                raise Unusable(f"descriptor {number} is another kind of socket; {cure}")
            self.listens = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            """Whether front-ends connect to it; else it is the connection to one."""
            if not self.listens:
                sock.getpeername()
        except OSError as error:
            sock.detach()
            raise Unusable(f"descriptor {number} neither listens nor is connected; {cure}") from error
        except Unusable:
            sock.detach()
            raise
        sock.set_inheritable(False)
        self.sock = sock
        name = sock.getsockname() if self.listens else ""
        self.name: str = name if isinstance(name, str) and name else f"fd:{number}"
        """Its path, or what else it may be called in the log."""


class Service:
    """The device of *spec*, served by this process; on a socket that was *given*, or else on one of our own."""

    def __init__(self, spec: DeviceSpec, given: Inherited | None = None, *, once: bool = False) -> None:
        """Prepare for `run`, on whose event loop this is called."""
        self._spec = spec if given is None else dataclasses.replace(spec, socket=given.name)
        self._given = given
        self._once = once
        self._broken = False
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._spare = Spare()
        self._chronicle = Chronicle(self._loop.call_later)

    async def run(self) -> int:
        """Serve until the end; gives the exit status.

        Raises:
            DoorbellError: the device or its socket can't be had.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._over.set)
        limits.raise_to_hard()
        backend = self._open()
        self._loop.add_signal_handler(signal.SIGHUP, self._refresh, backend)
        self._chronicle.hear(DeviceAdded(backend))
        readiness = Readiness(self._loop, notifier(), lambda: f"{self._spec.type} on {self._spec.socket}")
        readiness.ready()
        await self._over.wait()
        readiness.stopping()
        log.info("stopping")
        await self._close(backend)
        return os.EX_PROTOCOL if self._broken else os.EX_OK

    def _open(self) -> Backend:
        listening = connection = None
        if self._given is not None and self._given.listens:
            listening = Fd(self._given.sock.detach())
        elif self._given is not None:
            connection = self._given.sock
        return Backend.open(
            self._spec, self._loop, self._hear, self._spare, socket_given=listening, connection=connection
        )

    def _hear(self, event: DeviceEvent) -> None:
        self._chronicle.hear(event)
        match event:
            case FrontendDetached(broken=broken) if self._once or not (self._given is None or self._given.listens):
                self._broken = broken and not self._over.is_set()
                self._over.set()
            case StateChanged(new=State.STOPPED):  # it went away before it was attached
                self._over.set()

    def _refresh(self, backend: Backend) -> None:
        try:
            backend.refresh()
        except (DoorbellError, OSError) as error:
            log.error("device not refreshed", device=backend.name, reason=str(error))

    async def _close(self, backend: Backend) -> None:
        closing = self._loop.create_task(backend.close("the program stops"))
        if closing not in (await asyncio.wait({closing}, timeout=PATIENCE))[0]:
            reason = f"requests in flight take more than {PATIENCE:g} s; they are given up"
            log.warning("stopping", reason=reason)
            sys.stderr.flush()
            os._exit(os.EX_OK)  # the threads that wait for the disk can't be ended
        closing.result()
        self._spare.close()


def serve(spec: DeviceSpec, given: Inherited | None = None, *, once: bool = False) -> int:
    """Serve the device of *spec* until the end; gives the exit status (see `Service`).

    Raises:
        DoorbellError: the device or its socket can't be had.
    """

    async def run() -> int:
        return await Service(spec, given, once=once).run()

    return asyncio.run(run())
