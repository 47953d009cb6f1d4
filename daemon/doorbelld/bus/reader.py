# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading from the bus: instead of the libraries' own readers.

Theory of operation
-------------------
The libraries leave descriptors that a caller sends open, and not close-on-exec. Here they are closed as they come:
no method of ours takes any.

A caller that rings repeats itself: of two calls to one method, the headers differ in the serial only. So once the
library has parsed a header whose body is of a simple kind (`_DECODERS`), the parsed form is kept under the header's
bytes, and the next message with the same bytes needs a dictionary lookup and one ``struct`` call. That makes the calls
that matter cost the same with either library. What is not simple, or comes for the first time, or in the other byte
order, the library parses.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .library import MessageType, parse

MESSAGE_MAX = 128 << 20  # D-Bus Specification, "Message Format"
_CHUNK = 1 << 16
_FDS_MAX = 253  # the kernel's SCM_MAX_FD
_HEADER_MAX = 512
_CACHE_MAX = 1024
_FIXED = 16  # bytes before the header fields: the last four are their length
_LITTLE, _BIG = ord("l"), ord("B")
_PAIR = struct.Struct("<HH4x")


def _nothing(raw: bytes) -> list[Any] | None:
    return None if raw else []


def _one(raw: bytes) -> list[Any] | None:
    return list(struct.unpack("<H", raw)) if len(raw) == 2 else None


def _two(raw: bytes) -> list[Any] | None:
    return list(struct.unpack("<HH", raw)) if len(raw) == 4 else None


def _pairs(raw: bytes) -> list[Any] | None:
    """An array of structs of two: its length, padding to 8, and 8 bytes each but the last, which has no padding."""
    size = int.from_bytes(raw[:4], "little")
    if len(raw) != 8 + size or (size and size % 8 != 4):
        return None
    return [list(_PAIR.iter_unpack(raw[8:] + b"\0\0\0\0" if size else b""))]


_DECODERS: dict[str, Callable[[bytes], list[Any] | None]] = {"": _nothing, "q": _one, "qq": _two, "a(qq)": _pairs}
"""From a body's signature to what reads it; None if the body is not as the signature says."""


@dataclass(slots=True)
class MethodCall:
    """A method call that the library did not have to parse; as far as the router looks, like the library's message."""

    path: str
    interface: str | None
    member: str
    sender: str
    signature: str
    flags: Any
    serial: int
    body: list[Any]
    message_type: Any = MessageType.METHOD_CALL


class Reader:
    """The reading half of a connection to the bus.

    *call* is given simple method calls, *other* the library's messages, *failed* the reason when it is over.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        call: Callable[[Any], Any],
        other: Callable[[Any], Any],
        failed: Callable[[Exception], None],
    ) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = loop
        self._call = call
        self._other = other
        self._failed = failed
        self._parts: list[bytes] = []  # of a message that is not whole yet
        self._missing = 0
        self._known: dict[bytes, MethodCall] = {}
        loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """Stop reading."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._fd = -1

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(
                _CHUNK, socket.CMSG_SPACE(4 * _FDS_MAX), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        for _, kind, rights in ancillary:
            if kind == socket.SCM_RIGHTS:
                for fd in array("i", rights):
                    os.close(fd)
        if not data:
            self._fail(EOFError("the message bus closed the connection"))
            return
        try:
            if self._parts:
                self._parts.append(data)
                self._missing -= len(data)
                if self._missing > 0:
                    return
                data = b"".join(self._parts)
                self._parts.clear()
            self._split(data)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.close()
        self._failed(error)

    def _split(self, data: bytes) -> None:
        """Take whole messages off *data* and keep the rest."""
        start, end, size = 0, len(data), 0
        while self._fd >= 0 and end - start >= _FIXED:
            order = data[start]
            if order not in (_LITTLE, _BIG):
                raise ValueError(f"a message begins with byte {order}")
            endian = "<" if order == _LITTLE else ">"
            body_size, serial, fields = struct.unpack_from(f"{endian}III", data, start + 4)
            body = start + _FIXED + fields + (-fields % 8)
            size = body + body_size - start
            if size > MESSAGE_MAX:
                raise ValueError(f"a message of {size} bytes")
            if end - start < size:
                break
            self._take(data, start, start + _FIXED + fields, body, start + size, serial)
            start += size
            size = 0
        if start < end:
            self._parts.append(data[start:])
            self._missing = max(size, _FIXED) - (end - start)

    def _take(self, data: bytes, start: int, fields_end: int, body: int, end: int, serial: int) -> None:
        # all that tells a repeated call from the last but serial and body size
        header = data[start : start + 4] + data[start + 12 : fields_end]
        known = self._known.get(header)
        if known is not None and (arguments := _DECODERS[known.signature](data[body:end])) is not None:
            self._call(
                MethodCall(
                    known.path,
                    known.interface,
                    known.member,
                    known.sender,
                    known.signature,
                    known.flags,
                    serial,
                    arguments,
                )
            )
            return
        message = parse(data[start:end])
        if (
            message.message_type is MessageType.METHOD_CALL
            and message.signature in _DECODERS
            and data[start] == _LITTLE
            and len(header) <= _HEADER_MAX
        ):
            if len(self._known) >= _CACHE_MAX:
                self._known.clear()
            self._known[header] = MethodCall(
                message.path,
                message.interface,
                message.member,
                message.sender,
                message.signature,
                message.flags,
                0,
                [],
            )
        self._other(message)
