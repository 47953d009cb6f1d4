# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import socket
import struct
from dataclasses import replace

import pytest
from doorbelld.fds.owned import Fd
from doorbelld.wire.vhost import HEADER, Decoder, Message, ProtocolError, encode
from doorbelld.wire.vhost_messages import (
    FDS_MAX,
    PAYLOAD_MAX,
    U64,
    Config,
    Flags,
    MemoryTable,
    VringFd,
)
from doorbelld.wire.vhost_requests import Request, Vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from support.vhostwire import (
    EVERY,
    REGION,
    REPLY,
    STREAMS,
    F,
    all_closed,
    close_all,
    fresh,
    is_open,
    messages,
    pieces,
    raw_of,
    run,
    several,
    u32s,
    with_fds,
)

# Every message there and back


@pytest.mark.parametrize("replies", [False, True], ids=["request", "reply"])
@pytest.mark.parametrize("request_", EVERY, ids=lambda request: f"{type(request).__name__}-{request.name}")
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_round_trip_of_every_message(request_: Request, replies: bool, data: st.DataObject) -> None:
    with all_closed():
        vocabulary = type(request_)
        message = with_fds(data, data.draw(messages(vocabulary, replies, request_)))
        raw, borrowed = encode(message)
        assert borrowed == [fd.fileno() for fd in message.fds]
        assert HEADER.unpack_from(raw) == (request_, message.flags, len(raw) - HEADER.size)
        decoder = Decoder(vocabulary, replies=replies)
        (got,) = decoder.feed(raw, message.fds)
        assert got == message
        assert type(got.payload) is type(message.payload)
        assert type(got.request) is vocabulary
        assert decoder.pending == 0
        decoder.close()
        assert all(fd.fileno() >= 0 for fd in got.fds)  # carried out, so not closed
        got.close()


@pytest.mark.parametrize(("requests", "replies"), STREAMS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_streams_cut_anywhere_with_descriptors_anywhere(
    requests: Vocabulary, replies: bool, data: st.DataObject
) -> None:
    with all_closed():
        script = data.draw(st.lists(messages(requests, replies), max_size=6))
        script = [with_fds(data, message) for message in script]
        decoder = Decoder(requests, replies=replies)
        got = run(decoder, pieces(data, script))
        assert got == script
        assert decoder.pending == 0
        close_all(got)


@pytest.mark.parametrize(("requests", "replies"), STREAMS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_byte_by_byte_and_cut_off_at_each(requests: Vocabulary, replies: bool, data: st.DataObject) -> None:
    """Rule 7: whatever no message carried out is closed."""
    with all_closed():
        message = with_fds(data, data.draw(messages(requests, replies)))
        raw, _ = encode(message)
        cut, place = data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, len(raw) - 1))
        decoder = Decoder(requests, replies=replies)
        got = run(decoder, [(raw[i : i + 1], message.fds if i == place else ()) for i in range(cut)])
        assert got == ([message] if cut == len(raw) else [])
        assert decoder.pending == cut % len(raw)
        decoder.close()
        decoder.close()
        fed, carried = place < cut, cut == len(raw)
        assert all(is_open(fd) is (carried or not fed) for fd in message.fds)
        message.close()


@pytest.mark.parametrize(("requests", "replies"), STREAMS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_over_a_socket_each_descriptor_goes_to_its_own_message(
    requests: Vocabulary, replies: bool, data: st.DataObject, sizes: list[int]
) -> None:
    """The kernel itself decides which bytes come with descriptors."""
    with all_closed():
        drawn = data.draw(st.lists(messages(requests, replies), max_size=8))
        script = [with_fds(data, message) for message in drawn]
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            marks = []
            for message in script:
                named = replace(message, fds=tuple(Fd(os.memfd_create("piece")) for _ in message.fds))
                marks.append([os.fstat(fd.fileno()).st_ino for fd in named.fds])
                raw, fds = encode(named)
                assert socket.send_fds(ours, [raw], fds) == len(raw)
                named.close()
                message.close()
            ours.shutdown(socket.SHUT_WR)
            decoder, got, turn = Decoder(requests, replies=replies), [], 0
            while True:
                raw, fds, _, _ = socket.recv_fds(theirs, sizes[turn % len(sizes)], FDS_MAX, socket.MSG_CMSG_CLOEXEC)
                if not raw:
                    break
                turn += 1
                got += decoder.feed(raw, [Fd(fd) for fd in fds])
        assert [replace(message, fds=()) for message in got] == [replace(message, fds=()) for message in script]
        assert [[os.fstat(fd.fileno()).st_ino for fd in message.fds] for message in got] == marks
        close_all(got)


def test_what_is_left_in_the_iterator_comes_with_the_next() -> None:
    decoder = Decoder(F)
    first, second = encode(Message(F.SET_OWNER))[0], encode(Message(F.GET_FEATURES))[0]
    with all_closed(), fresh() as fd:
        assert next(decoder.feed(first + second)).request is F.SET_OWNER
        decoder.feed(second[:5])
        got = list(decoder.feed(second[5:] + encode(Message(F.SET_LOG_FD, fds=(fd,)))[0], [fd]))
        assert [message.request for message in got] == [F.GET_FEATURES, F.GET_FEATURES, F.SET_LOG_FD]
        assert got[2].fd is fd


# Hostile streams


def test_what_came_before_an_error_comes_out_and_nothing_after_it() -> None:
    with all_closed():
        decoder = Decoder(F)
        good, bad = raw_of(F.SET_OWNER, 1, b""), raw_of(F.SET_FEATURES, 1, b"")
        got = decoder.feed(good + bad + good, several(1))
        assert next(got).request is F.SET_OWNER
        with pytest.raises(ProtocolError, match="SET_FEATURES"):
            next(got)
        assert decoder.pending == 0
        with pytest.raises(ProtocolError, match="SET_FEATURES"):
            list(decoder.feed(good, several(1)))


headers = st.builds(
    lambda request, flags, size, payload: struct.pack("=III", request, flags, size) + payload,
    st.integers(0, 50) | u32s,
    st.sampled_from([1, 5, 9]) | u32s,
    st.integers(0, 48) | st.integers(0, 5000) | u32s,
    st.binary(max_size=64),
)


@pytest.mark.parametrize(("requests", "replies"), STREAMS)
@settings(max_examples=150, deadline=None)
@given(chunks=st.lists(st.tuples(st.binary(max_size=30) | headers, st.integers(0, 9)), max_size=8))
def test_garbage_never_leaks_and_never_breaks_out(
    requests: Vocabulary, replies: bool, chunks: list[tuple[bytes, int]]
) -> None:
    with all_closed():
        decoder = Decoder(requests, replies=replies)
        kept = []  # so that it is not the collector that closes them
        for raw, count in chunks:
            kept.append(several(count))
            try:
                for message in decoder.feed(raw, kept[-1]):
                    message.close()
            except ProtocolError:
                assert decoder.pending == 0
        assert decoder.pending < HEADER.size + PAYLOAD_MAX
        decoder.close()


@pytest.mark.parametrize(("requests", "replies"), STREAMS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_good_messages_with_a_byte_changed(requests: Vocabulary, replies: bool, data: st.DataObject) -> None:
    """What still comes out can be sent on, and means the same."""
    with all_closed():
        message = with_fds(data, data.draw(messages(requests, replies)))
        raw = bytearray(encode(message)[0])
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        decoder = Decoder(requests, replies=replies)
        try:
            for got in decoder.feed(bytes(raw), message.fds):
                again, fds = encode(got)
                assert fds == [fd.fileno() for fd in got.fds]
                assert list(Decoder(requests, replies=replies).feed(again, got.fds)) == [got]
                got.close()
        except ProtocolError as error:
            assert ": " in str(error)
        decoder.close()


# What we would send


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (Message(F.SET_FEATURES), "SET_FEATURES: payload Empty, must be U64"),
        (Message(F.GET_CONFIG, U64(0), (), REPLY), "GET_CONFIG: payload U64, must be Config or Empty"),
        (Message(F.GET_CONFIG, Config(0, bytes(257)), (), REPLY), "GET_CONFIG: payload of 269 bytes"),
        (Message(F.SET_OWNER, flags=Flags.REPLY), "SET_OWNER: flags 0x4, must be 0x5"),
        (Message(F.SET_OWNER, flags=Flags(0)), "SET_OWNER: flags 0x0, must be 0x1 or 0x9"),
        (Message(F.SET_LOG_FD), "SET_LOG_FD: comes with 0 descriptors, must be 1"),
        (Message(F.SET_MEM_TABLE, MemoryTable((REGION,))), "SET_MEM_TABLE: comes with 0 descriptors, must be 1"),
        (Message(F.SET_MEM_TABLE, MemoryTable((REGION,) * 9)), "SET_MEM_TABLE: payload of 296 bytes"),
        (Message(F.SET_VRING_CALL, VringFd(256, nofd=True)), r"SET_VRING_CALL: vring 256 is not within 0\.\.255"),
        (Message(F.SET_FEATURES, U64(1 << 64)), "SET_FEATURES: "),
        (Message(F.GET_FEATURES, Config(0, b""), (), REPLY), "GET_FEATURES: payload Config, must be U64"),
    ],
)
def test_we_send_nothing_that_is_no_message(message: Message, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        encode(message)


def test_what_is_encoded_stays_open() -> None:
    with all_closed(), fresh() as fd:
        _, fds = encode(Message(F.SET_BACKEND_REQ_FD, fds=(fd,)))
        assert fds == [fd.fileno()]
        os.fstat(fds[0])
