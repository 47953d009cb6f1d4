# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Vaults: many descriptors in one.

A vault is a socket whose receive queue holds a message with descriptors, and whose other end is closed. Whoever keeps
the vault keeps what is in it; looking with MSG_PEEK gives copies and leaves the originals, so a vault can be opened any
number of times. A peer with its V doorbells is one entry of systemd's descriptor store instead of V + 1: the store
compares each new entry with all that it has, and the names of all must fit one environment variable
(docs/decisions/0007).

What is in a vault counts as in flight: together with all other descriptors that this user has in flight, it is bounded
by RLIMIT_NOFILE unless CAP_SYS_RESOURCE says otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from array import array
from collections.abc import Sequence

from .owned import Fd, FdSet

_FDS_MAX = 253  # SCM_MAX_FD: descriptors in one message
SO_PEEK_OFF = 42
"""asm-generic/socket.h; Python has no name for it."""
_SPACE = socket.CMSG_SPACE(_FDS_MAX * array("i").itemsize)


class Vault:
    """A vault being filled; `door` is what is to be kept."""

    def __init__(self) -> None:
        """Make an empty vault.

        Raises:
            OSError: there is no descriptor left.
        """
        self._slit, self.door = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)

    def fill(self, fds: Sequence[int]) -> None:
        """Put copies of *fds* in, in order.

        Raises:
            OSError: ETOOMANYREFS when too many are in flight.
        """
        for start in range(0, len(fds), _FDS_MAX):
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds[start : start + _FDS_MAX]))
            self._slit.sendmsg([b"."], [rights], socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Close our ends; what a keeper has stays."""
        self._slit.close()
        self.door.close()


def found_behind(door: Fd | None) -> FdSet | None:
    """Copy what is in the vault behind *door*, which is taken over; None if there is none, or it is no vault."""
    if door is None:
        return None
    with door, contextlib.suppress(OSError):
        return look_into(door)
    return None


def look_into(door: Fd) -> FdSet:
    """Copy what is in the vault behind *door*, in order.

    Raises:
        OSError: it is no vault, or there are too few descriptors left; none is left open then.
    """
    found = FdSet()
    # the end of the queue is the end of the stream: nobody writes any more, or, of ourselves, does not just now
    with door.dup() as copy, socket.socket(fileno=copy.fileno()) as sock:
        copy.steal()
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            while True:
                try:
                    data, controls, said, _ = sock.recvmsg(1, _SPACE, flags)
                except BlockingIOError:
                    return found
                for level, kind, content in controls:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        found.array.frombytes(content[: len(content) // 4 * 4])
                if said & socket.MSG_CTRUNC:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                if not data:
                    return found
        except BaseException:
            found.close()
            raise
