# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing to the bus: instead of the libraries' own writer.

Both libraries' writers take EAGAIN, which a full socket gives after some hundred queued messages, for the end of the
connection. This one waits until the socket is writable again. It also

- sends the first message of a loop turn at once (latency) and gathers the others of that turn into one ``send``
  (throughput);
- owns the descriptors that go with a message and closes them once it is sent;
- tells through *pressure* when more than `HIGH_WATER` bytes wait and when few do again, so that what can wait, does;
  and gives the connection up at `LIMIT`: a bus that takes nothing is no use, and a new connection starts from the
  state as it is then.

It has the methods that the libraries call on theirs (``schedule_write``), and is put in its place by `connection`.
"""

from __future__ import annotations

import array
import asyncio
import errno
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from ..fds.owned import Fd

HIGH_WATER = 1 << 20
LIMIT = 64 << 20
_GATHER = 1 << 16
_FULL = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)
_FULL_SECONDS = 0.01

_RETURN = struct.Struct("<4BIII4BI4BI")
_NO_REPLY_EXPECTED = 1
_METHOD_RETURN = 2
_PROTOCOL = 1
_REPLY_SERIAL = 5
_DESTINATION = 6


def empty_return(serial: int, reply_serial: int, destination: str) -> bytes:
    """Marshal a method return without a body (D-Bus Specification, "Message Format"): the answer to a ring.

    The libraries take longer for this one than for everything else that a ring needs.
    """
    name = destination.encode()
    message = _RETURN.pack(
        *(ord("l"), _METHOD_RETURN, _NO_REPLY_EXPECTED, _PROTOCOL, 0, serial, 17 + len(name)),
        *(_REPLY_SERIAL, 1, ord("u"), 0, reply_serial),
        *(_DESTINATION, 1, ord("s"), 0, len(name)),
    )
    message += name + b"\0"
    return message + bytes(-len(message) % 8)


class Writer:
    """The writing half of a connection to the bus."""

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        failed: Callable[[Exception], None],
        pressure: Callable[[bool], None],
    ) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = loop
        self._failed = failed
        self._pressure = pressure
        self._queue: deque[tuple[bytes, list[Fd], asyncio.Future[None] | None]] = deque()
        self._queued = 0
        self._gathering = False
        self._blocked = False
        self._pressed = False
        self._closed = False

    def schedule_write(self, msg: Any = None, future: asyncio.Future[None] | None = None) -> None:
        """Send a library's message (the libraries' name and signature for it)."""
        if msg is not None:
            # what the library sends for itself has no descriptors of ours
            self.write(msg._marshall(True), [], future)

    def write(self, data: bytes, fds: list[Fd], future: asyncio.Future[None] | None = None) -> None:
        """Send one marshalled message; *fds* are taken over."""
        if self._closed:
            for fd in fds:
                fd.close()
            _settle(future)
            return
        self._queue.append((data, fds, future))
        self._queued += len(data)
        if not self._gathering:
            self._gathering = True
            self._loop.call_soon(self._gathered)
            self._flush()
        if self._queued > HIGH_WATER and not self._pressed:
            self._pressed = True
            self._pressure(True)
        if self._queued > LIMIT:
            self._fail(ConnectionError(f"the message bus takes nothing; {self._queued} bytes wait"))

    def close(self) -> None:
        """Drop what was not sent."""
        self._closed = True
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._fd)
        while self._queue:
            _, fds, future = self._queue.popleft()
            for fd in fds:
                fd.close()
            _settle(future)

    def _gathered(self) -> None:
        self._gathering = False
        self._flush()

    def _flush(self) -> None:
        if self._blocked or self._closed:
            return
        try:
            while self._queue:
                self._send_some()
        except BlockingIOError:
            self._blocked = True
            self._loop.add_writer(self._fd, self._resume)
        except OSError as error:
            if error.errno in _FULL:  # of descriptors in flight, say: the socket is writable all the while
                self._blocked = True
                self._loop.call_later(_FULL_SECONDS, self._resume)
            else:
                self._fail(error)
        if self._pressed and self._queued < HIGH_WATER // 2:
            self._pressed = False
            self._pressure(False)

    def _resume(self) -> None:
        if self._closed:
            return
        self._loop.remove_writer(self._fd)
        self._blocked = False
        self._flush()

    def _send_some(self) -> None:
        data, fds, _ = self._queue[0]
        if fds:
            rights = array.array("i", [fd.fileno() for fd in fds])
            sent = self._sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_DONTWAIT)
            while fds:
                fds.pop().close()
        elif len(self._queue) == 1 or len(data) >= _GATHER:
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        else:
            chunks: list[bytes] = []
            size = 0
            for chunk, with_fds, _ in self._queue:
                if with_fds or size >= _GATHER:
                    break
                chunks.append(chunk)
                size += len(chunk)
            sent = self._sock.send(b"".join(chunks), socket.MSG_DONTWAIT)
        self._taken(sent)

    def _taken(self, sent: int) -> None:
        self._queued -= sent
        while sent:
            data, fds, future = self._queue[0]
            if sent < len(data):
                self._queue[0] = (bytes(memoryview(data)[sent:]), fds, future)
                return
            sent -= len(data)
            self._queue.popleft()
            _settle(future)

    def _fail(self, error: Exception) -> None:
        self.close()
        self._failed(error)


def _settle(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
