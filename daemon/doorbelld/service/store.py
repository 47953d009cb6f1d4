# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd's file descriptor store (``FileDescriptorStoreMax=`` in systemd.service(5)), and what systemd hands us.

Messages to systemd are datagrams, in order. Its queue is short, and it may be busy: nothing here waits. What does not
fit is queued and goes out when there is room; `ready` lets callers wait before they begin something that must be kept.
systemd does not say whether it had room, so entries are counted here.

``FDPOLL=0`` everywhere: by default systemd drops an entry whose other end hangs up, and a listening socket at its first
error; we want to see a hang-up that happens while we are away, and to drop entries by ourselves.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..fds.keeper import Kept
from ..fds.owned import Fd

_FIRST = 3  # SD_LISTEN_FDS_START


@dataclass(frozen=True, slots=True)
class Sockets:
    """Listening sockets that systemd made, with ``FileDescriptorName=region-NAME`` or ``device-NAME``, by name."""

    regions: Kept = field(default_factory=Kept)
    devices: Kept = field(default_factory=Kept)


def take_over() -> tuple[Kept, Sockets]:
    """Take what systemd gave us (sd_listen_fds(3)): what was in the store, and listening sockets.

    A second call gives nothing: the environment variables are gone then. Where a name comes twice, the first counts.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return Kept(), Sockets()
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    del os.environ["LISTEN_PID"]
    found: dict[str, Fd] = {}
    for number, name in zip(range(_FIRST, _FIRST + count), [*names, *[""] * count], strict=False):
        os.set_inheritable(number, False)
        found.setdefault(name, Fd(number))
    kept = Kept(found)
    return kept, Sockets(kept.below("region-"), kept.below("device-"))


def room() -> int:
    """Say how many entries our unit's store has room for; 0 if it has no store.

    systemd says so from version 254 on; for those before, our unit does.
    """
    said = os.environ.get("FDSTORE") or os.environ.get("DOORBELLD_FDSTORE_MAX") or ""
    return int(said) if said.isdecimal() else 0


class DescriptorStore:
    """A keeper (`fds.keeper`) that is systemd; *notifier* is an sdnotify.SystemdNotifier."""

    def __init__(self, loop: asyncio.AbstractEventLoop, notifier: Any, room: int) -> None:
        self._loop = loop
        self._sock: socket.socket = notifier.socket
        self._room = room
        self._names: set[str] = set()
        self._queue: deque[tuple[bytes, Fd | None]] = deque()
        self._resume: list[Callable[[], None]] = []
        self._watching = False
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLOUT)

    def came_back(self, name: str) -> None:
        """Learn that *name* is in the store since before we were."""
        self._names.add(name)

    def put(self, name: str, fd: int) -> bool:
        """Store *fd*; see `Keeper.put`."""
        if len(self._names) >= self._room or not self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0".encode(), fd):
            return False
        self._names.add(name)
        return True

    def drop(self, name: str) -> None:
        """Take *name* out of the store; see `Keeper.drop`."""
        self._names.discard(name)
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}".encode(), None)

    def ready(self, resume: Callable[[], None]) -> bool:
        """Tell whether systemd takes another message right now; see `Keeper.ready`."""
        if not self._queue and self._poll.poll(0):
            return True
        if resume not in self._resume:
            self._resume.append(resume)
        self._watch()
        return False

    def __len__(self) -> int:
        """Entries that we have in the store."""
        return len(self._names)

    def flush(self) -> None:
        """Send what is queued, waiting for systemd if need be: for the end, when nobody comes back to do it."""
        self._sock.settimeout(1.0)
        try:
            while self._queue:
                message, fd = self._queue.popleft()
                self._now(message, fd.fileno() if fd is not None else None, 0)
        except OSError:
            pass
        finally:
            self._sock.setblocking(True)

    def _send(self, message: bytes, fd: int | None) -> bool:
        """Send or queue; False if it can't be sent: systemd is gone, or too many descriptors are in flight."""
        if not self._queue:
            try:
                self._now(message, fd, socket.MSG_DONTWAIT)
                return True
            except BlockingIOError:
                pass
            except OSError:
                return False
        self._queue.append((message, Fd(os.dup(fd)) if fd is not None else None))
        self._watch()
        return True

    def _now(self, message: bytes, fd: int | None, flags: int) -> None:
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, "little"))]
        self._sock.sendmsg([message], rights, flags)

    def _watch(self) -> None:
        if not self._watching:
            self._loop.add_writer(self._sock.fileno(), self._writable)
            self._watching = True

    def _writable(self) -> None:
        while self._queue:
            message, fd = self._queue[0]
            try:
                self._now(message, fd.fileno() if fd is not None else None, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                pass
            self._queue.popleft()
            if fd is not None:
                fd.close()
        self._loop.remove_writer(self._sock.fileno())
        self._watching = False
        resume, self._resume = self._resume, []
        for call in resume:
            call()
