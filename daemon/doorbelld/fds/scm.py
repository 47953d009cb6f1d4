# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sending and receiving with descriptors (SCM_RIGHTS): the one place that does.

What the receiver of a message has no room for, the kernel closes in the thread that receives. So there is always room
for as many descriptors as one message can carry, and what comes is a `ForeignFd`, which the closer closes.

Where only bytes are expected, `peek` looks at them and leaves them in the queue, with descriptors that may have come
with them: nothing is received and nothing closed, and `foreign.hang_up` has it closed with the connection.

An urgent byte (MSG_OOB) is not in the queue like others, unless the socket is put `in_line`: whoever receives what
comes behind it has the kernel drop it, and close its descriptors, in this thread; and for `peek` it is not there,
though the socket is ready all the time.
"""

from __future__ import annotations

import errno
import socket
from array import array

from .foreign import ForeignFd

FDS_MAX = 253
"""What one message of the kernel's can carry (SCM_MAX_FD)."""
_SPACE = socket.CMSG_SPACE(FDS_MAX * array("i").itemsize)
_CLOEXEC, _CUT_OFF = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)  # as flags they take longer than the call
_DONTWAIT, _PEEK = int(socket.MSG_DONTWAIT), int(socket.MSG_PEEK)
_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def receive(
    sock: socket.socket, size: int, uid: int | None = None, flags: int = _DONTWAIT
) -> tuple[bytes, list[ForeignFd], bool]:
    """Take what is there, with all descriptors, owned, which user *uid* sent; no bytes at the end of the stream.

    Returns:
        the bytes, the descriptors, and whether the kernel dropped some because our table is full.

    Raises:
        BlockingIOError: nothing is there.
        OSError: the connection broke.
    """
    data, controls, told, _ = sock.recvmsg(size, _SPACE, flags | _CLOEXEC)
    fds: list[ForeignFd] = []
    for level, kind, raw in controls:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array("i")
            numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
            fds += [ForeignFd(number, uid) for number in numbers]
    return data, fds, bool(told & _CUT_OFF)


def receive_all(
    sock: socket.socket, size: int, uid: int | None = None, flags: int = _DONTWAIT
) -> tuple[bytes, list[ForeignFd]]:
    """Like `receive`, where nothing may be missing.

    Raises:
        OSError: EMFILE, if the kernel dropped descriptors; those that came are closed.
    """
    data, fds, cut_off = receive(sock, size, uid, flags)
    if cut_off:
        for fd in fds:
            fd.close()
        raise OSError(
            errno.EMFILE, "no descriptor is left for those that it sent; raise LimitNOFILE= or the hard limit"
        )
    return data, fds


def in_line(sock: socket.socket) -> None:
    """Have urgent bytes come like all others, with their descriptors; to be called before anything is received."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def peek(sock: socket.socket, size: int) -> bytes:
    """Look at the bytes that are there, and leave them and their descriptors; no bytes at the end of the stream.

    Raises:
        BlockingIOError: nothing is there.
        OSError: the connection broke.
    """
    return sock.recv(size, _PEEK | _DONTWAIT)


def send(sock: socket.socket, data: bytes, fds: list[int]) -> int:
    """Send as much as goes, the descriptors with the first byte; they stay the caller's.

    Raises:
        BlockingIOError: nothing goes just now.
        OSError: the connection broke.
    """
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    return sock.sendmsg([data], control, _SEND)
