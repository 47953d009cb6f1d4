# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing to a bus that is slow, full, or gone: nothing is lost, reordered or leaked, and nobody blocks."""

from __future__ import annotations

import array
import asyncio
import errno
import io
import os
import socket
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import dbus_fast
import dbus_fast._private.unmarshaller
import dbus_next
import dbus_next._private.unmarshaller
import pytest
from doorbelld.bus import writer as module
from doorbelld.bus.writer import Writer, empty_return
from doorbelld.fds.owned import Fd
from hypothesis import given
from hypothesis import strategies as st
from support.fdcount import no_leaks

DEADLINE = 20.0


class Ends:
    """A writer on one end of a socket, and the other end."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        for end in (self.ours, self.theirs):
            end.setblocking(False)
        self.failures: list[Exception] = []
        self.pressures: list[bool] = []
        self.writer = Writer(
            self.ours, asyncio.get_running_loop(), self.failures.append, lambda pressed: self.pressures.append(pressed)
        )

    async def read(self, count: int) -> bytes:
        """Read exactly *count* bytes."""
        got = b""
        async with asyncio.timeout(DEADLINE):
            while len(got) < count:
                piece = await asyncio.get_running_loop().sock_recv(self.theirs, min(1 << 16, count - len(got)))
                assert piece, f"the end after {len(got)} of {count} bytes"
                got += piece
        return got

    def nothing_more(self) -> bool:
        try:
            return not self.theirs.recv(1)
        except BlockingIOError:
            return True


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    with no_leaks():
        made = Ends()
        yield made
        made.writer.close()
        made.ours.close()
        made.theirs.close()


def pipe() -> tuple[Fd, int]:
    read, write = os.pipe()
    return Fd(read), write


async def test_the_first_message_of_a_turn_goes_at_once(ends: Ends) -> None:
    ends.writer.write(b"first", [])
    assert ends.theirs.recv(100) == b"first"
    ends.writer.write(b"second ", [])
    ends.writer.write(b"third", [])
    assert ends.nothing_more()  # gathered: they go together when the turn ends
    assert await ends.read(12) == b"second third"


async def test_a_full_socket_delays_but_neither_loses_nor_reorders(ends: Ends) -> None:
    messages = [f"{number:06d}".encode() * (1 + number % 50) for number in range(2000)]
    whole = b"".join(messages)
    for message in messages:
        ends.writer.write(message, [])
    await asyncio.sleep(0)
    assert await ends.read(len(whole)) == whole
    ends.writer.write(b"after", [])
    assert await ends.read(5) == b"after"
    assert ends.failures == []


async def test_messages_larger_than_any_buffer(ends: Ends) -> None:
    large = os.urandom(300_000)
    ends.writer.write(b"a", [])
    ends.writer.write(large, [])
    ends.writer.write(b"z", [])
    assert await ends.read(len(large) + 2) == b"a" + large + b"z"


async def test_descriptors_go_with_their_message_and_are_closed(ends: Ends) -> None:
    handed = []
    for number in range(3):
        fd, write = pipe()
        os.write(write, f"pipe {number}".encode())
        os.close(write)
        handed.append(fd)
    ends.writer.write(b"plain", [])
    for number, fd in enumerate(handed):
        ends.writer.write(f"with {number}".encode(), [fd])
    ends.writer.write(b"plain", [])
    await asyncio.sleep(0)  # the turn ends
    for fd in handed:
        with pytest.raises(ValueError, match="closed"):
            fd.fileno()
    got = b""
    said = []
    while len(got) < 28:
        data, control, _, _ = ends.theirs.recvmsg(100, socket.CMSG_SPACE(16))
        for _, _, raw in control:  # a read stops after the bytes that a descriptor is with
            (fd,) = array.array("i", raw)
            said.append((data[-6:], os.read(fd, 100)))
            os.close(fd)
        got += data
    assert got == b"plainwith 0with 1with 2plain"
    assert said == [(f"with {number}".encode(), f"pipe {number}".encode()) for number in range(3)]


async def test_descriptors_wait_while_the_socket_is_full(ends: Ends) -> None:
    fd, write = pipe()
    os.close(write)
    filler = b"x" * 200_000
    ends.writer.write(filler, [])
    ends.writer.write(b"y" * 50_000, [fd])
    await asyncio.sleep(0)
    assert fd.fileno() >= 0, "not sent yet, so still ours"
    got, received = b"", []
    async with asyncio.timeout(DEADLINE):
        while len(got) < 250_000:
            try:
                data, control, _, _ = ends.theirs.recvmsg(1 << 16, socket.CMSG_SPACE(16))
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            for _, _, raw in control:
                received += array.array("i", raw).tolist()
            got += data
    assert got == filler + b"y" * 50_000
    assert len(received) == 1
    os.close(received[0])
    with pytest.raises(ValueError, match="closed"):
        fd.fileno()


async def test_pressure_goes_on_once_and_off_once(ends: Ends) -> None:
    piece = b"p" * 1000
    count = module.HIGH_WATER // 1000 + 100
    for _ in range(count):
        ends.writer.write(piece, [])
    assert ends.pressures == [True]
    await asyncio.sleep(0)
    await ends.read(1000 * count)
    await asyncio.sleep(0)
    assert ends.pressures == [True, False]


async def test_pressure_stays_on_until_half_is_gone(ends: Ends) -> None:
    total = module.HIGH_WATER + 100_000
    ends.writer.write(b"p", [])
    ends.writer.write(b"p" * total, [])
    await ends.read(module.HIGH_WATER // 4)
    assert ends.pressures == [True]
    await ends.read(total + 1 - module.HIGH_WATER // 4)
    await asyncio.sleep(0)
    assert ends.pressures == [True, False]


class Hungry:
    """A socket that takes whatever it is given, as one does whose reader keeps up."""

    def __init__(self) -> None:
        self.taken = 0

    def fileno(self) -> int:
        return 1_000_000

    def send(self, data: bytes, flags: int) -> int:
        self.taken += len(data)
        return len(data)


async def test_pressure_goes_off_when_all_is_taken_in_the_same_turn() -> None:
    pressures: list[bool] = []
    hungry = Hungry()
    writer = Writer(hungry, asyncio.get_running_loop(), pytest.fail, pressures.append)  # type: ignore[arg-type]
    for _ in range(3):
        writer.write(b"x" * module.HIGH_WATER, [])
    assert pressures == [True]
    await asyncio.sleep(0)
    assert hungry.taken == 3 * module.HIGH_WATER
    assert pressures == [True, False]


async def test_the_limit_gives_the_connection_up(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 1 << 20)
    fd, write = pipe()
    os.close(write)
    ends.writer.write(b"x" * 600_000, [])
    ends.writer.write(b"x", [fd])
    assert ends.failures == []
    ends.writer.write(b"x" * 600_000, [])
    (failure,) = ends.failures
    assert "takes nothing" in str(failure)
    with pytest.raises(ValueError, match="closed"):
        fd.fileno()
    fd, write = pipe()
    os.close(write)
    ends.writer.write(b"late", [fd])  # dropped, with what it carries
    fd.close()
    assert len(ends.failures) == 1


async def test_a_bus_that_is_gone_is_told_once(ends: Ends) -> None:
    ends.theirs.close()
    ends.writer.write(b"x", [])
    ends.writer.write(b"x", [])
    await asyncio.sleep(0)
    assert [type(failure) for failure in ends.failures] == [BrokenPipeError]


async def test_closing_drops_what_waits_and_settles_who_waits(ends: Ends) -> None:
    fd, write = pipe()
    os.close(write)
    loop = asyncio.get_running_loop()
    sent, dropped, late = loop.create_future(), loop.create_future(), loop.create_future()
    ends.writer.write(b"x", [], sent)
    assert sent.done()
    ends.writer.write(b"x" * 100_000, [])
    ends.writer.write(b"x", [fd], dropped)
    assert not dropped.done()
    ends.writer.close()
    assert dropped.done()
    with pytest.raises(ValueError, match="closed"):
        fd.fileno()
    ends.writer.write(b"x", [], late)
    assert late.done()
    ends.writer.close()


async def test_it_serves_the_library_in_place_of_its_own(ends: Ends) -> None:
    message = dbus_next.Message(destination="a.b", path="/", interface="a.b", member="C", serial=7)
    future = asyncio.get_running_loop().create_future()
    ends.writer.schedule_write(message, future)
    ends.writer.schedule_write()
    raw = message._marshall(True)
    assert await ends.read(len(raw)) == raw
    assert future.done()


def unmarshal(library: ModuleType, raw: bytes) -> Any:
    parser = library._private.unmarshaller.Unmarshaller(io.BytesIO(raw))
    message = parser.unmarshall()
    return parser.message if library is dbus_next else message


SERIALS = st.integers(1, (1 << 32) - 1)


@pytest.mark.parametrize("library", [dbus_next, dbus_fast], ids=lambda library: library.__name__)
@given(serial=SERIALS, reply_serial=SERIALS, number=st.integers(0, 10**12))
def test_an_empty_return_is_what_the_libraries_read(
    library: ModuleType, serial: int, reply_serial: int, number: int
) -> None:
    raw = empty_return(serial, reply_serial, f":1.{number}")
    message = unmarshal(library, raw)
    assert message.message_type is library.MessageType.METHOD_RETURN
    assert message.flags == library.MessageFlag.NO_REPLY_EXPECTED
    assert (message.serial, message.reply_serial, message.destination) == (serial, reply_serial, f":1.{number}")
    assert (message.signature, message.body, message.sender) == ("", [], None)
    assert len(raw) % 8 == 0, "a message without a body ends with its header, which is padded"


@given(serial=SERIALS, reply_serial=SERIALS, number=st.integers(0, 10**12))
def test_an_empty_return_says_what_the_libraries_write(serial: int, reply_serial: int, number: int) -> None:
    theirs = dbus_next.Message(
        message_type=dbus_next.MessageType.METHOD_RETURN,
        flags=dbus_next.MessageFlag.NO_REPLY_EXPECTED,
        destination=f":1.{number}",
        reply_serial=reply_serial,
        serial=serial,
    )
    assert len(theirs._marshall(True)) == len(empty_return(serial, reply_serial, f":1.{number}"))


async def test_too_many_descriptors_in_flight_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    failures: list[Exception] = []
    with ours, theirs:

        class Full:
            """A socket that has no room for descriptors twice."""

            left = 2

            def fileno(self) -> int:
                return ours.fileno()

            def sendmsg(self, *arguments: object) -> int:
                if self.left:
                    self.left -= 1
                    raise OSError(errno.ETOOMANYREFS, "Too many references")
                return ours.sendmsg(*arguments)  # type: ignore[arg-type]

        writer = Writer(Full(), asyncio.get_running_loop(), failures.append, lambda _: None)  # type: ignore[arg-type]
        sent = asyncio.get_running_loop().create_future()
        writer.write(b"hello", [Fd(os.open("/dev/null", os.O_RDONLY))], sent)
        await asyncio.wait_for(sent, 20)
        data, fds, _, _ = socket.recv_fds(theirs, 100, 4)
        assert (data, len(fds), failures) == (b"hello", 1, [])
        os.close(fds[0])
        writer.close()


async def test_descriptors_written_after_the_end_are_closed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = Writer(ours, asyncio.get_running_loop(), lambda _: None, lambda _: None)
        writer.close()
        fd = Fd(os.open("/dev/null", os.O_RDONLY))
        writer.write(b"x", [fd])
        with pytest.raises(ValueError, match="closed"):
            fd.fileno()
