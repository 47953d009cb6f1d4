# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading from the bus: in whatever pieces it comes, once each, as the library reads it; no descriptor is left."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from doorbelld.bus.library import Message, MessageFlag, MessageType, Variant, parse
from doorbelld.bus.reader import Reader
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fdcount import no_leaks

DEADLINE = 20.0


class Ends:
    """A reader on one end of a socket, and the other end."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.messages: list[Any] = []
        self.failures: list[Exception] = []
        self._changed = asyncio.Event()
        self.reader = Reader(
            self.ours, asyncio.get_running_loop(), self._got, self._got, lambda error: self._failed(error)
        )

    def _got(self, message: Any) -> None:
        self.messages.append(message)
        self._changed.set()

    def _failed(self, error: Exception) -> None:
        self.failures.append(error)
        self._changed.set()

    async def until(self, messages: int = 0, failures: int = 0) -> None:
        async with asyncio.timeout(DEADLINE):
            while len(self.messages) < messages or len(self.failures) < failures:
                self._changed.clear()
                await self._changed.wait()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.theirs, data)

    def close(self) -> None:
        self.reader.close()
        self.ours.close()
        self.theirs.close()


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    with no_leaks():
        made = Ends()
        yield made
        made.close()


def call(serial: int, signature: str = "", *body: Any, **more: Any) -> Any:
    fields = {"path": "/a", "interface": "a.b", "member": "C", "destination": "d.e", "sender": ":1.3", **more}
    return Message(signature=signature, body=list(body), serial=serial, **fields)


def same(message: Any, other: Any) -> bool:
    names = ("message_type", "path", "interface", "member", "sender", "signature", "serial")
    return (
        all(getattr(message, name) == getattr(other, name) for name in names)
        and list(map(str, _plain(message.body))) == list(map(str, _plain(other.body)))
        and int(message.flags) == int(other.flags)
    )


def _plain(value: Any) -> list[Any]:
    return [list(map(tuple, item)) if isinstance(item, list) else item for item in value]


ARGUMENTS = st.one_of(
    st.just(("", ())),
    st.tuples(st.just("q"), st.tuples(st.integers(0, 65535))),
    st.tuples(st.just("qq"), st.tuples(st.integers(0, 65535), st.integers(0, 65535))),
    st.tuples(
        st.just("a(qq)"),
        st.tuples(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(list), max_size=5)),
    ),
    st.tuples(st.just("s"), st.tuples(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))),
    st.tuples(st.just("sqq"), st.tuples(st.just("demo"), st.integers(0, 9), st.integers(0, 9))),
)
CALLS = st.tuples(
    ARGUMENTS,
    st.sampled_from(["/a", "/a/b"]),
    st.sampled_from([None, "a.b", "c.d"]),
    st.sampled_from(["C", "D"]),
    st.sampled_from([":1.3", ":1.4"]),
    st.booleans(),
    st.sampled_from([MessageType.METHOD_CALL, MessageType.SIGNAL]),
)


@given(st.lists(CALLS, min_size=1, max_size=20), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=150)
def test_every_message_once_in_order_as_the_library_reads_it(calls: list[Any], random: Any) -> None:
    made = [
        call(
            number,
            signature,
            *body,
            path=path,
            interface=interface or ("x.y" if kind is MessageType.SIGNAL else None),
            member=member,
            sender=sender,
            message_type=kind,
            flags=MessageFlag.NO_REPLY_EXPECTED if quiet else MessageFlag.NONE,
        )
        for number, ((signature, body), path, interface, member, sender, quiet, kind) in enumerate(calls, 1)
    ]
    raw = [message._marshall(False) for message in made]

    async def run() -> None:
        ends = Ends()
        try:
            stream = b"".join(raw)
            while stream:
                size = random.choice([1, 7, 16, 100, 5000])
                await ends.send(stream[:size])
                stream = stream[size:]
                if random.random() < 0.3:
                    await asyncio.sleep(0)
            await ends.until(messages=len(made))
            expected = [parse(piece) for piece in raw]
            assert len(ends.messages) == len(expected)
            for found, right in zip(ends.messages, expected, strict=True):
                assert same(found, right), (found, right)
        finally:
            ends.close()

    asyncio.run(run())


async def test_descriptors_are_closed_as_they_come(ends: Ends) -> None:
    raw = call(1, "q", 1)._marshall(False)
    with open(os.devnull, "rb") as null:
        rights = array.array("i", [null.fileno()] * 16)
        for _ in range(20):
            ends.theirs.sendmsg([raw], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    await ends.until(messages=20)


async def test_the_end_of_the_stream_is_told_once(ends: Ends) -> None:
    await ends.send(call(1)._marshall(False) + call(2)._marshall(False)[:-1])
    ends.theirs.shutdown(socket.SHUT_WR)
    await ends.until(messages=1, failures=1)
    assert [type(error) for error in ends.failures] == [EOFError]
    assert len(ends.messages) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\n",
        b"l\1\0\1" + b"\xff" * 12,
        b"l\1\0\1" + b"\0" * 4 + b"\1\0\0\0" + b"\x08\0\0\0" + b"\xff" * 8,
    ],
)
async def test_what_is_no_message_ends_the_connection(ends: Ends, raw: bytes) -> None:
    await ends.send(raw)
    await ends.until(failures=1)
    assert ends.messages == []


async def test_a_repeated_call_whose_body_lies_is_not_taken_from_the_cache(ends: Ends) -> None:
    first = call(1, "q", 1)._marshall(False)
    lie = bytearray(call(2, "q", 1)._marshall(False) + b"\0\0")
    lie[4:8] = (4).to_bytes(4, "little")  # a body of four bytes, though the signature has two
    await ends.send(first + bytes(lie) + call(3, "q", 3)._marshall(False))
    await ends.until(messages=1)
    async with asyncio.timeout(DEADLINE):
        while len(ends.messages) < 2 and not ends.failures:
            await asyncio.sleep(0)
    for message in ends.messages:
        assert len(message.body) == 1


async def test_a_large_message(ends: Ends) -> None:
    large = call(1, "ay", os.urandom(3 << 20))
    sending = asyncio.create_task(ends.send(large._marshall(False) + call(2)._marshall(False)))
    await ends.until(messages=2)
    await sending
    assert bytes(ends.messages[0].body[0]) == bytes(large.body[0])


async def test_a_handler_may_close_it(ends: Ends) -> None:
    taken: list[Any] = []

    def once(message: Any) -> None:
        taken.append(message)
        ends.reader.close()

    ends.reader._other = ends.reader._call = once
    await ends.send(call(1)._marshall(False) * 3)
    async with asyncio.timeout(DEADLINE):
        while not taken:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(taken) == 1
    ends.reader.close()


def test_parse_gives_variants() -> None:
    raw = call(1, "a{sv}", {"x": Variant("s", "y")})._marshall(False)
    message = parse(raw)
    assert message.body[0]["x"].value == "y"
    with pytest.raises(Exception):  # noqa: B017
        parse(raw[:-3])
