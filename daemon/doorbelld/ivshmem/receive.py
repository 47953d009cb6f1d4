# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What every client does with its socket: connect to a server, and read what it sends.

A message without its descriptor would mean something else ("left" rather than "one more vector"), so a descriptor that
the kernel could not give us ends the connection.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import socket
from array import array
from dataclasses import dataclass, field

from ..errors import LimitExceeded, ProtocolBroken, ServerClosed, ServerUnavailable
from ..fds.owned import Fd
from ..wire.ivshmem import OutOfPlace, ProtocolError, WrongVersion

CONNECT_SECONDS = 10.0
"""How long a server may take to greet."""
CHUNK = 4096
"""Bytes to ask for: the kernel stops after the first message with a descriptor anyway."""
_FDS_MAX = 253  # SCM_MAX_FD: a server that lies may send as many
_SPACE = socket.CMSG_SPACE(_FDS_MAX * array("i").itemsize)
_MOUNTS = "/proc/self/mountinfo"
_CLOEXEC, _CUT_OFF = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)  # as flags they take longer than the call


def receive(sock: socket.socket, size: int = CHUNK, flags: int = 0) -> tuple[bytes, list[Fd]]:
    """Read from *sock* what ``Membership.feed`` takes; no bytes are the end of the stream. *flags* are recvmsg(2)'s.

    Raises:
        BlockingIOError: nothing is there now.
        OSError: the connection broke.
        LimitExceeded: a descriptor came for which there was no room; the connection is of no use any more.
    """
    data, controls, said, _ = sock.recvmsg(size, _SPACE, flags | _CLOEXEC)
    fds: list[Fd] = []
    for level, kind, content in controls:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array("i")
            numbers.frombytes(content[: len(content) // 4 * 4])
            fds += map(Fd, numbers)
    if said & _CUT_OFF:
        for fd in fds:
            fd.close()
        raise LimitExceeded("no descriptor left for a doorbell; raise LimitNOFILE= (ulimit -n)")
    return data, fds


def unavailable(path: str, error: OSError) -> ServerUnavailable:
    """Put in words why the server at *path* can't be reached."""
    cures = {
        FileNotFoundError: "start the server, or name its socket",
        ConnectionRefusedError: "nobody listens there; start the server",
        PermissionError: "ask for permission to write to the socket, by its owner, group and mode",
    }
    cure = next((cure for kind, cure in cures.items() if isinstance(error, kind)), "is it an ivshmem server's socket?")
    if isinstance(error, FileNotFoundError | PermissionError) and (place := _hidden(path)):
        where = f"BindPaths={os.path.dirname(path)} below [Service]"
        cure = f"the sandbox of our unit hides {place}: systemctl edit it, {where}, or have the server elsewhere"
    return ServerUnavailable(f"no ivshmem server at {path}: {error.strerror or error}; {cure}")


def _hidden(path: str) -> str:
    """Name the directory above *path* that PrivateTmp= or ProtectHome= of a unit hides from us; "" if none does.

    They are known by what systemd puts there. Should that ever change, the cure is the ordinary one.
    """
    found = root = ""
    with contextlib.suppress(OSError, ValueError), open(_MOUNTS, errors="surrogateescape") as mounts:
        for line in mounts:  # the last of those on top of each other counts
            _, _, _, of, place, _ = line.split(" ", 5)
            if len(place) >= len(found) and path.startswith(f"{place.rstrip('/')}/"):
                found, root = place, of
    return found if "/systemd-private-" in root or root.endswith("/inaccessible/dir") else ""


def silent(server: str) -> ServerUnavailable:
    """Say that *server* has not greeted us in time."""
    return ServerUnavailable(f"the server at {server} accepts and says nothing")


def closed(server: str, greeted: bool = True) -> ServerClosed:
    """Say that *server* closed the connection, before it had greeted us or later."""
    when = "" if greeted else " before it greeted us: it refuses us or is full, its log says why"
    return ServerClosed(f"the server at {server} closed the connection{when}")


def lost(server: str, error: OSError) -> ServerClosed:
    """Say that the connection to *server* broke."""
    return ServerClosed(f"the connection to {server} broke: {error.strerror}")


def broken(server: str, error: ProtocolError) -> ProtocolBroken:
    """Say how *server* breaks the protocol."""
    verdict = "can't be used" if isinstance(error, WrongVersion) else "breaks the protocol"
    failure = ProtocolBroken(f"the server at {server} {verdict}: {error}")
    failure.__cause__ = error
    return failure


def map_memory(memory: Fd) -> mmap.mmap:
    """Map the memory that a server sent.

    Raises:
        OutOfPlace: it can't be mapped.
        LimitExceeded: there is no descriptor left to map it with.
    """
    try:
        return mmap.mmap(memory.fileno(), os.fstat(memory.fileno()).st_size)
    except (OSError, ValueError, OverflowError) as error:
        if getattr(error, "errno", 0) in (errno.EMFILE, errno.ENFILE):
            raise LimitExceeded("no descriptor left to map the memory; raise LimitNOFILE= (ulimit -n)") from error
        raise OutOfPlace(f"what it sent as memory can't be mapped: {error}") from error


@dataclass(slots=True)
class Backoff:
    """Waits between tries, in seconds: twice as long each time, less up to a quarter so that many come apart."""

    first: float = 0.1
    most: float = 5.0
    _next: float = field(default=0.0, init=False)

    def next(self) -> float:
        """Give the next wait."""
        self._next = min(self.most, self._next * 2 or self.first)
        return self._next * (1 - random.random() / 4)

    def reset(self) -> None:
        """Begin anew: a try worked."""
        self._next = 0.0
