# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading from the bus: instead of the libraries' own readers.

Theory of operation
-------------------
The libraries leave descriptors that a caller sends open, and not close-on-exec. Here the closer
(`fds.foreign`) closes them as they come: no method of ours takes any.

Of a message the header is read first (`transport.header`). *limit* says how large the body of such a call may be; one
that is larger is dropped while it comes, and the call handed on without it, for its error. Replies that we wait for
have a limit too, and become an error beyond it; of signals only those are kept that somebody here wants to hear. So
what is kept of one message is never more than `_BODY_MAX` bytes. A header that is larger than `_HEADER_MAX` names no
object of ours: that message is dropped whole.

A caller that rings repeats itself: of two calls to one method, the headers differ in the serial only. So what a header
says is kept under its bytes, and the next message with the same bytes needs a dictionary lookup and, if its body is of
a simple kind (`_DECODERS`), one ``struct`` call. That makes the calls that matter cost the same with either library.
Other bodies the library parses, when they are asked for.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from ..fds import scm
from ..log import Limiter, get_logger
from .library import Message, MessageType, parse
from .transport import header
from .transport.call import MethodCall

log = get_logger()

_CHUNK = 1 << 16
_HEADER_MAX = 1 << 16
_KEPT_HEADER_MAX = 512
_CACHE_MAX = 1024
_REPLY_MAX = 512 << 10
"""Bytes of a reply; the largest that we wait for says who a caller is, with 65,536 groups at most."""
_SIGNAL_MAX = 4 << 10
_TWO, _PAIR = struct.Struct("<HH"), struct.Struct("<HH4x")
_METHOD_CALL, _METHOD_RETURN, _ERROR, _SIGNAL = 1, 2, 3, 4


def _nothing(raw: bytes) -> list[Any] | None:
    return None if raw else []


def _one(raw: bytes) -> list[Any] | None:
    return list(struct.unpack("<H", raw)) if len(raw) == 2 else None


def _two(raw: bytes) -> list[Any] | None:
    return list(_TWO.unpack(raw)) if len(raw) == 4 else None


def _pairs(raw: bytes) -> list[Any] | None:
    """An array of structs of two: its length, padding to 8, and 8 bytes each but the last, which has no padding."""
    size = int.from_bytes(raw[:4], "little")
    if len(raw) != 8 + size or (size and size % 8 != 4):
        return None
    return [list(_PAIR.iter_unpack(raw[8:] + b"\0\0\0\0" if size else b""))]


_DECODERS: dict[str, Callable[[bytes], list[Any] | None]] = {"": _nothing, "q": _one, "qq": _two, "a(qq)": _pairs}
"""From a body's signature to what reads it; None if the body is not as the signature says."""


class _Known(NamedTuple):
    """What is known of the calls whose headers have certain bytes."""

    header: header.Header
    size_max: int


class Reader:
    """The reading half of a connection to the bus.

    *limit* tells how many bytes the body of a call may have, from its interface, member and signature. *call* is given
    method calls, *other* replies and signals as the library's messages, *failed* the reason when it is over. *turn* is
    called before what came together. *signals* are those, by interface and member, that *other* wants.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        call: Callable[[Any], Any],
        other: Callable[[Any], Any],
        failed: Callable[[Exception], None],
        *,
        limit: Callable[[str | None, str, str], int],
        turn: Callable[[], None] = lambda: None,
        signals: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = loop
        self._call = call
        self._other = other
        self._failed = failed
        self._limit = limit
        self._turn = turn
        self._signals = signals
        self._paused = False
        self._limited = Limiter(burst=2, period=60.0)
        self._parts: list[bytes] = []  # of a message that is not whole yet
        self._missing = 0
        self._unwanted = 0  # bytes to drop before the next message
        self._known: dict[bytes, _Known] = {}
        loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """Stop reading."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._fd = -1

    def pause(self, paused: bool) -> None:
        """Leave what comes in the socket, or go on."""
        if self._fd >= 0 and paused != self._paused:
            self._paused = paused
            if paused:
                self._loop.remove_reader(self._fd)
            else:
                self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            data, fds, _ = scm.receive(self._sock, _CHUNK if self._unwanted < _CHUNK else 4 * _CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        for fd in fds:
            fd.close()
        if not data:
            self._fail(EOFError("the message bus closed the connection"))
            return
        self._turn()
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
        """Take whole messages off *data* and keep the rest, if it is wanted."""
        start, end, wanted = 0, len(data), header.FIXED
        while self._fd >= 0 and start < end:
            if self._unwanted:
                dropped = min(self._unwanted, end - start)
                self._unwanted -= dropped
                start += dropped
                continue
            wanted = header.FIXED
            if end - start < wanted:
                break
            sizes = header.sizes(data, start)
            wanted, fields, body, _ = sizes
            whole = wanted + body
            if wanted > _HEADER_MAX:
                self._drop(f"a header of {wanted} bytes")
                self._unwanted = whole
                continue
            if end - start < wanted:
                break
            try:
                known = self._look(data, start, start + header.FIXED + fields)
            except ValueError as error:
                self._drop(str(error))
                self._unwanted = whole
                continue
            if body > known.size_max:
                self._refuse(known, sizes)
                self._unwanted = whole
                continue
            wanted = whole
            if end - start < wanted:
                break
            self._take(known, data, start, sizes)
            start += wanted
        if start < end and self._fd >= 0:
            self._parts.append(data[start:])
            self._missing = wanted - (end - start)

    def _look(self, data: bytes, start: int, fields_end: int) -> _Known:
        """Give what the header says, and how large the body may be."""
        # all that tells a repeated call from the last but serial and body size
        key = data[start : start + 4] + data[start + 12 : fields_end]
        known = self._known.get(key)
        if known is None:
            found = header.read(data, start, fields_end)
            match found.kind:
                case 1:
                    known = _Known(found, self._limit(found.interface, found.member, found.signature))
                    if len(key) <= _KEPT_HEADER_MAX:
                        if len(self._known) >= _CACHE_MAX:
                            self._known.clear()
                        self._known[key] = known
                case 2 | 3:
                    known = _Known(found, _REPLY_MAX)
                case 4 if (found.interface, found.member) in self._signals:
                    known = _Known(found, _SIGNAL_MAX)
                case _:
                    known = _Known(found, -1)
        return known

    def _take(self, known: _Known, data: bytes, start: int, sizes: header.Sizes) -> None:
        """Hand on a whole message."""
        found, size_max = known
        before, _, size, serial = sizes
        body = start + before
        if found.kind != _METHOD_CALL:
            self._hand_on(found, data[start : body + size])
            return
        raw = data[body : body + size]
        big = data[start] == header.BIG
        _, flags, path, interface, member, sender, signature, _ = found
        decode = _DECODERS.get(signature)
        arguments = decode(raw) if decode is not None and not big else None
        self._call(
            MethodCall(path, interface, member, sender, signature, flags, serial, raw, size, size_max, big, arguments)
        )

    def _hand_on(self, found: header.Header, raw: bytes) -> None:
        """Have the library parse a reply or a signal; what it can't is as if it had not come, or an error."""
        try:
            message = parse(raw)
        except Exception as error:  # whatever the library raises
            self._fail_reply(found, f"what {found.sender or 'the bus'} sent can't be read: {error}")
            return
        self._other(message)

    def _refuse(self, known: _Known, sizes: header.Sizes) -> None:
        """Do without the body of a message: what it is, is handed on if it is a call or a reply."""
        found, size_max = known
        if found.kind == _METHOD_CALL:
            self._call(
                MethodCall(
                    *found[2:4], found.member, found.sender, found.signature, found.flags,
                    sizes.serial, None, sizes.body, size_max,
                )
            )  # fmt: skip
        else:
            self._fail_reply(found, f"{found.sender or 'the bus'} answered with {sizes.body} bytes")

    def _fail_reply(self, found: header.Header, why: str) -> None:
        if found.kind not in (_METHOD_RETURN, _ERROR):
            return
        self._drop(why)
        self._other(
            Message(
                message_type=MessageType.ERROR,
                error_name="org.freedesktop.DBus.Error.InconsistentMessage",
                reply_serial=found.reply_serial,
                sender=found.sender,
                signature="s",
                body=[why],
                serial=1,
            )
        )

    def _drop(self, what: str) -> None:
        self._limited(log.warning, "dropped", "a D-Bus message was dropped", reason=what)
