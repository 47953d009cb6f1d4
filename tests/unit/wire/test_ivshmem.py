# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import socket

import pytest
from doorbelld.fds.owned import Fd
from doorbelld.wire.ivshmem import ID_MAX, Decoder, Kind, Message, ProtocolError, encode
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fdcount import no_leaks

MEMORY = -1
ids = st.integers(0, ID_MAX)
tails = st.lists(st.tuples(ids, st.booleans()), max_size=12)


def stream(own: int, tail: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
    return [(0, False), (own, False), (MEMORY, True), *tail]


def kinds(script: list[tuple[int, bool]]) -> list[tuple[Kind, int, bool]]:
    head = [Kind.VERSION, Kind.OWN_ID, Kind.MEMORY]
    rest = [Kind.VECTOR if has_fd else Kind.LEFT for _, has_fd in script[3:]]
    return [(kind, value, has_fd) for kind, (value, has_fd) in zip(head + rest, script, strict=True)]


def fresh() -> Fd:
    return Fd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


def result(messages: list[Message]) -> list[tuple[Kind, int, bool]]:
    got = [(message.kind, message.value, message.fd is not None) for message in messages]
    for message in messages:
        if message.fd is not None:
            message.fd.close()
    return got


@given(ids | st.integers(-(1 << 63), (1 << 63) - 1))
def test_encode_is_little_endian_and_signed(value: int) -> None:
    assert encode(value) == value.to_bytes(8, "little", signed=True)


@settings(max_examples=150, deadline=None)
@given(ids, tails, st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_round_trip_over_a_socket_split_anywhere(own: int, tail: list[tuple[int, bool]], sizes: list[int]) -> None:
    """The kernel itself decides which bytes come with a descriptor."""
    script = stream(own, tail)
    with no_leaks():
        ours, theirs = socket.socketpair()
        with ours, theirs, fresh() as something:
            want = os.fstat(something.fileno())
            for value, has_fd in script:
                if has_fd:
                    socket.send_fds(ours, [encode(value)], [something.fileno()])
                else:
                    ours.send(encode(value))
            ours.shutdown(socket.SHUT_WR)
            decoder, got, turn = Decoder(), [], 0
            while True:
                data, fds, _, _ = socket.recv_fds(theirs, sizes[turn % len(sizes)], 4, socket.MSG_CMSG_CLOEXEC)
                if not data:
                    break
                turn += 1
                got += decoder.feed(data, [Fd(fd) for fd in fds])
            assert all(m.fd is None or os.fstat(m.fd.fileno()).st_rdev == want.st_rdev for m in got)
            assert result(got) == kinds(script)
            decoder.close()


def test_each_descriptor_goes_to_its_own_message() -> None:
    """A read that takes several messages ends with the one that has the descriptor."""
    with no_leaks():
        ours, theirs = socket.socketpair()
        with ours, theirs:
            made = [os.eventfd(0), os.eventfd(0), os.eventfd(0)]
            os.eventfd_write(made[1], 11)
            os.eventfd_write(made[2], 22)
            ours.send(encode(0) + encode(7))
            socket.send_fds(ours, [encode(MEMORY)], made[:1])
            socket.send_fds(ours, [encode(3)], made[1:2])
            ours.send(encode(9))
            socket.send_fds(ours, [encode(3)], made[2:])
            for fd in made:
                os.close(fd)
            decoder, got = Decoder(), []
            while len(got) < 6:
                data, fds, _, _ = socket.recv_fds(theirs, 4096, 4)
                got += decoder.feed(data, [Fd(fd) for fd in fds])
            rung = [os.eventfd_read(got[index].fd.fileno()) for index in (3, 5)]
        assert rung == [11, 22]
        assert got[4].kind is Kind.LEFT
        result(got)


@settings(deadline=None)
@given(ids, tails, st.data())
def test_byte_by_byte_and_whatever_is_not_taken_is_closed(own: int, tail: list, data: st.DataObject) -> None:
    script = stream(own, tail)
    raw = b"".join(encode(value) for value, _ in script)
    cut = data.draw(st.integers(0, len(raw)))
    with no_leaks():
        decoder, got = Decoder(), []
        for place in range(cut):
            index, first = divmod(place, 8)
            fds = [fresh()] if script[index][1] and not first else []
            got += decoder.feed(raw[place : place + 1], fds)
        assert result(got) == kinds(script)[: cut // 8]
        decoder.close()
        decoder.close()


GOOD = stream(5, [])


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ([(1, 0)], "version 1, we speak 0"),
        ([(0, 1)], "VERSION message comes with a descriptor"),
        ([(0, 0), (-1, 0)], "peer ID -1 is not within"),
        ([(0, 0), (ID_MAX + 1, 0)], "peer ID 65536 is not within"),
        ([(0, 0), (5, 1)], "OWN_ID message comes with a descriptor"),
        ([(0, 0), (5, 0), (-1, 0)], "MEMORY message comes without a descriptor"),
        ([(0, 0), (5, 0), (0, 1)], r"expected the shared memory \(-1\), got 0"),
        ([*GOOD, (-1, 1)], "peer ID -1"),
        ([*GOOD, (-1, 0)], "peer ID -1"),
        ([*GOOD, (1 << 40, 1)], "peer ID"),
        ([*GOOD, (3, 2)], "message 3 carries more than one descriptor"),
        ([*GOOD, (3, 1), (3, 3)], "message 4 carries more than one descriptor"),
    ],
)
@pytest.mark.parametrize("step", [1, 8])
def test_protocol_errors(script: list[tuple[int, int]], complaint: str, step: int) -> None:
    with no_leaks():
        decoder = Decoder()

        def feed_all() -> None:
            for value, count in script:
                raw = encode(value)
                for place in range(0, 8, step):
                    result(
                        list(decoder.feed(raw[place : place + step], [fresh() for _ in range(0 if place else count)]))
                    )

        with pytest.raises(ProtocolError, match=complaint) as caught:
            feed_all()
        decoder.close()
    assert caught.tb  # whatever hung on to it is still there: nothing was left to the collector


def test_two_descriptors_in_one_message_in_two_pieces() -> None:
    with no_leaks():
        decoder = Decoder()
        for value, has_fd in GOOD:
            result(list(decoder.feed(encode(value), [fresh()] if has_fd else [])))
        raw = encode(1)
        assert list(decoder.feed(raw[:3], [fresh()])) == []
        with pytest.raises(ProtocolError, match="more than one"):
            list(decoder.feed(raw[3:], [fresh()]))
        decoder.close()


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=20), st.integers(0, 3)), max_size=8))
def test_garbage_never_leaks_and_never_breaks_out(pieces: list[tuple[bytes, int]]) -> None:
    with no_leaks():
        decoder = Decoder()
        for data, count in pieces:
            try:
                result(list(decoder.feed(data, [fresh() for _ in range(count)])))
            except ProtocolError:
                break
        decoder.close()
