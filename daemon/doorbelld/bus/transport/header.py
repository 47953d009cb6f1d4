# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading the header of a message, without its body (D-Bus Specification, "Message Format").

Theory of operation
-------------------
Anybody on the bus may send us a message of many megabytes, and the libraries parse a message whole or not at all. What
becomes of a message can be told from its header: what it calls, with arguments of which signature, and who sends it.
So the header is read here, and the body is kept only if what it is for takes a body of that size; what parses a body is
the library, once it is known that the caller may make that call.

The bus has checked the header. It is checked here again as far as reading it must end and stay within its bytes; fields
with an unknown code are skipped, as the specification demands, whatever their type is.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

FIXED = 16
"""Bytes before the header fields; the last four of them are the length of the fields."""
LITTLE, BIG = ord("l"), ord("B")
MESSAGE_MAX = 128 << 20  # D-Bus Specification, "Message Format"
_DEPTH_MAX = 64
_LITTLE, _BIG = struct.Struct("<III"), struct.Struct(">III")
_FIXED_SIZES = {"y": 1, "b": 4, "n": 2, "q": 2, "i": 4, "u": 4, "x": 8, "t": 8, "d": 8, "h": 4}
_ALIGNMENTS = {**_FIXED_SIZES, "s": 4, "o": 4, "g": 1, "v": 1, "a": 4, "(": 8, "{": 8}
_NAMES = {1: "o", 2: "s", 3: "s", 4: "s", 6: "s", 7: "s", 8: "g"}
_REPLY_SERIAL = 5


class Sizes(NamedTuple):
    """The fixed part of a header: where things are, and the serial."""

    header: int
    """Bytes before the body."""
    fields: int
    """Bytes of the header fields."""
    body: int
    """Bytes of the body."""
    serial: int


class Header(NamedTuple):
    """What a header says; empty where it does not."""

    kind: int
    """The type of the message, as in `library.MessageType`, or another number."""
    flags: int
    path: str
    interface: str | None
    member: str
    sender: str
    signature: str
    reply_serial: int


def sizes(data: bytes, start: int) -> Sizes:
    """Read the fixed part of the header at *start*: `FIXED` bytes.

    Raises:
        ValueError: no message begins so, or it is larger than any.
    """
    order = data[start]
    if order not in (LITTLE, BIG):
        raise ValueError(f"a message begins with byte {order}")
    body, serial, fields = (_LITTLE if order == LITTLE else _BIG).unpack_from(data, start + 4)
    size = FIXED + fields + -fields % 8
    if size + body > MESSAGE_MAX:
        raise ValueError(f"a message of {size + body} bytes")
    return Sizes(size, fields, body, serial)


def read(data: bytes, start: int, end: int) -> Header:
    """Read the header at *start*, whose fields end at *end*.

    Raises:
        ValueError: it is not well-formed.
    """
    order = "<" if data[start] == LITTLE else ">"
    found: dict[int, str] = {}
    reply_serial = 0
    at = start + FIXED
    try:
        while at < end:
            at += -(at - start) % 8
            code = data[at]
            signature, at = _signature(data, at + 1)
            if code in _NAMES and signature == _NAMES[code]:
                if signature == "g":
                    found[code], at = _signature(data, at)
                else:
                    at += -(at - start) % 4
                    (size,) = struct.unpack_from(f"{order}I", data, at)
                    if at + 5 + size > end:
                        raise ValueError("a header field ends after the header")
                    found[code] = str(data[at + 4 : at + 4 + size], "utf-8")
                    at += size + 5
            elif code == _REPLY_SERIAL and signature == "u":
                at += -(at - start) % 4
                (reply_serial,) = struct.unpack_from(f"{order}I", data, at)
                at += 4
            else:
                at, left = _skip(data, start, at, end, order, signature, 0)
                if left:
                    raise ValueError("a header field has more than one value")
    except (struct.error, IndexError) as error:
        raise ValueError("a header ends within a field") from error
    if at != end:
        raise ValueError("a header field ends after the header")
    return Header(
        data[start + 1],
        data[start + 2],
        found.get(1, ""),
        found.get(2),
        found.get(3, ""),
        found.get(7, ""),
        found.get(8, ""),
        reply_serial,
    )


def _signature(data: bytes, at: int) -> tuple[str, int]:
    """Read a signature at *at*; gives it and where it ends."""
    end = at + 1 + data[at]
    return str(data[at + 1 : end], "ascii"), end + 1


def _skip(data: bytes, start: int, at: int, end: int, order: str, signature: str, depth: int) -> tuple[int, str]:
    """Skip the value at *at* of the first type in *signature*; gives where it ends, and the other types."""
    if not signature or depth > _DEPTH_MAX or at > end:
        raise ValueError("a header field that is not well-formed")
    kind, rest = signature[0], signature[1:]
    if kind not in _ALIGNMENTS:
        raise ValueError(f'a header field of type "{kind}"')
    at += -(at - start) % _ALIGNMENTS[kind]
    if kind in _FIXED_SIZES:
        return at + _FIXED_SIZES[kind], rest
    if kind in "so":
        return at + 5 + int(struct.unpack_from(f"{order}I", data, at)[0]), rest
    if kind == "g":
        return _signature(data, at)[1], rest
    if kind == "v":
        inner, at = _signature(data, at)
        at, left = _skip(data, start, at, end, order, inner, depth + 1)
        if left:
            raise ValueError("a header field's variant has more than one value")
        return at, rest
    if kind == "a":
        (size,) = struct.unpack_from(f"{order}I", data, at)
        element, rest = _one(rest, depth)
        at += 4
        at += -(at - start) % _ALIGNMENTS[element[0]]
        return at + int(size), rest
    while rest[:1] not in (")", "}"):
        at, rest = _skip(data, start, at, end, order, rest, depth + 1)
    return at, rest[1:]


def _one(signature: str, depth: int) -> tuple[str, str]:
    """Cut the first complete type off *signature*; gives it and the others."""
    if not signature or depth > _DEPTH_MAX or signature[0] not in _ALIGNMENTS:
        raise ValueError("a header field with a signature that is not well-formed")
    if signature[0] == "a":
        element, rest = _one(signature[1:], depth + 1)
        return "a" + element, rest
    if signature[0] not in "({":
        return signature[0], signature[1:]
    rest = signature[1:]
    while rest[:1] not in (")", "}"):
        _, rest = _one(rest, depth + 1)
    return signature[: len(signature) - len(rest) + 1], rest[1:]


# How large a body may be

TEXT_MAX = 1024
"""Bytes of a string, an object path, or a variant among a method's arguments."""
ARRAY_MAX = 64 << 10
"""Bytes of an array among them, and of options, unless the method says otherwise."""


def body_max(signature: str, array_max: int = ARRAY_MAX) -> int:
    """Tell how many bytes arguments of *signature* may take together, where an array may take *array_max*."""
    total = 0
    while signature:
        first, signature = _one(signature, 0)
        total += _most(first, array_max)
    return total


def _most(kind: str, array_max: int) -> int:
    """Bytes that one value may take, with the padding before it."""
    first = kind[0]
    if first in _FIXED_SIZES:
        return 2 * _FIXED_SIZES[first] - 1
    if first in "sov":
        return TEXT_MAX + 8
    if first == "g":
        return 257
    if first == "a":
        return array_max + 16
    return 7 + body_max(kind[1:-1], array_max)
