# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers: read as the libraries read them, in either byte order; whatever else comes is a ValueError at worst."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from doorbelld.bus.library import Message, MessageFlag, MessageType, Variant
from doorbelld.bus.transport import header
from hypothesis import given
from hypothesis import strategies as st
from jeepney import Endianness, HeaderFields
from jeepney import Message as OtherMessage
from jeepney.low_level import Header as OtherHeader
from jeepney.low_level import MessageFlag as OtherFlag
from jeepney.low_level import MessageType as OtherType

ELEMENT = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
PATH = st.lists(ELEMENT, max_size=5).map(lambda parts: "/" + "/".join(parts))
NAME = st.lists(ELEMENT, min_size=2, max_size=4).map(".".join)
BODIES: list[tuple[str, tuple[Any, ...]]] = [
    ("", ()),
    ("qq", (1, 2)),
    ("s", ("x",)),
    ("a(qq)", ([(1, 2)],)),
    ("sa{sv}", ("n", {"k": ("u", 1)})),
]


def read(raw: bytes) -> header.Header:
    return header.read(raw, 0, header.FIXED + header.sizes(raw, 0).fields)


@given(PATH, st.none() | NAME, ELEMENT, st.sampled_from(BODIES), st.integers(1, (1 << 32) - 1), st.booleans())
def test_a_call_reads_as_the_library_wrote_it(
    path: str, interface: str | None, member: str, body: tuple[str, tuple[Any, ...]], serial: int, quiet: bool
) -> None:
    signature, values = body
    if signature == "sa{sv}":
        values = ("n", {"k": Variant("u", 1)})
    flags = MessageFlag.NO_REPLY_EXPECTED if quiet else MessageFlag.NONE
    message = Message(
        destination="d.e",
        path=path,
        interface=interface,
        member=member,
        signature=signature,
        body=[[list(pair) for pair in value] if isinstance(value, list) else value for value in values],
        sender=":1.3",
        serial=serial,
        flags=flags,
    )
    raw = bytes(message._marshall(False))
    sizes = header.sizes(raw, 0)
    assert (sizes.header + sizes.body, sizes.serial) == (len(raw), serial)
    found = read(raw)._replace(sender="")  # which dbus-fast leaves to the bus
    assert found == (1, int(quiet), path, interface, member, "", signature, 0)


@given(
    st.sampled_from(list(Endianness)),
    PATH,
    NAME,
    ELEMENT,
    st.sampled_from(BODIES),
    st.sampled_from(list(OtherType)),
    st.integers(1, (1 << 32) - 1),
)
def test_either_byte_order_and_every_kind_reads_as_another_library_wrote_it(
    order: Endianness,
    path: str,
    interface: str,
    member: str,
    body: tuple[str, tuple[Any, ...]],
    kind: OtherType,
    number: int,
) -> None:
    fields = {
        HeaderFields.path: path,
        HeaderFields.interface: interface,
        HeaderFields.member: member,
        HeaderFields.sender: ":1.99",
        HeaderFields.reply_serial: number,
    }
    if body[0]:
        fields[HeaderFields.signature] = body[0]
    raw = OtherMessage(OtherHeader(order, kind, OtherFlag(0), 1, -1, -1, fields), body[1]).serialise(serial=7)
    sizes = header.sizes(raw, 0)
    assert (sizes.header + sizes.body, sizes.serial) == (len(raw), 7)
    assert read(raw) == (kind.value, 0, path, interface, member, ":1.99", body[0], number)


def raw_field(code: int, signature: bytes, value: bytes, alignment: int = 1) -> bytes:
    field = bytes([code, len(signature)]) + signature + b"\0"
    field += bytes(-len(field) % alignment) + value
    return struct.pack("<4BIII", ord("l"), 1, 0, 1, 0, 1, len(field)) + field


@pytest.mark.parametrize(
    ("signature", "alignment", "value"),
    [
        (b"y", 1, b"\1"),
        (b"(yy)", 8, b"\1\2"),
        (b"(ayq)", 8, b"\1\0\0\0x\0\2\0"),
        (b"ay", 4, b"\2\0\0\0ab"),
        (b"aas", 4, b"\4\0\0\0\0\0\0\0"),
        (b"v", 1, b"\1y\0\5"),
        (b"a{sv}", 8, b"\0\0\0\0" + b"\0\0\0\0"),
        (b"g", 1, b"\1y\0"),
        (b"t", 8, b"\0" * 8),
    ],
)
def test_an_unknown_field_is_skipped_whatever_its_type_is(signature: bytes, alignment: int, value: bytes) -> None:
    assert read(raw_field(42, signature, value, alignment)).member == ""


@given(st.binary(max_size=200), st.sampled_from([b"l", b"B"]))
def test_no_bytes_raise_anything_but_a_value_error(junk: bytes, order: bytes) -> None:
    data = order + b"\1\0\1" + junk
    with contextlib.suppress(ValueError):
        if len(data) >= header.FIXED:
            sizes = header.sizes(data, 0)
            if header.FIXED + sizes.fields <= len(data):
                header.read(data, 0, header.FIXED + sizes.fields)
    padded = struct.pack("<4BIII", ord("l"), 1, 0, 1, 0, 1, len(junk)) + junk
    with contextlib.suppress(ValueError):
        header.read(padded, 0, len(padded))


@pytest.mark.parametrize("signature", [b"a" * 200 + b"y", b"(" * 200, b"{", b"a", b"(y", b"yy", b"", b"z"])
def test_signatures_that_never_end_or_nest_are_refused(signature: bytes) -> None:
    with pytest.raises(ValueError, match="header"):
        read(raw_field(42, signature, bytes(512)))


@pytest.mark.parametrize(
    ("signature", "least", "most"),
    [("", 0, 0), ("q", 2, 8), ("qq", 4, 8), ("s", 256, 2048), ("a{sv}", 1 << 16, (1 << 16) + 64), ("(qt)", 16, 32)],
)
def test_the_largest_body_follows_from_the_signature(signature: str, least: int, most: int) -> None:
    assert least <= header.body_max(signature) <= most


def test_a_call_message_type_is_the_librarys() -> None:
    assert MessageType.METHOD_CALL.value == 1
