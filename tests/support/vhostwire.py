# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""vhost-user messages by the thousand, for the codec and for whoever speaks through it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from doorbelld.fds.owned import Fd
from doorbelld.wire.vhost import Decoder, Message, ProtocolError, encode
from doorbelld.wire.vhost_messages import (
    CONFIG_MAX,
    PAYLOAD_MAX,
    REGIONS_MAX,
    U64,
    Config,
    DeviceState,
    Empty,
    Flags,
    HostNotifierArea,
    Inflight,
    Iotlb,
    IotlbPerm,
    IotlbType,
    Log,
    MemoryRegion,
    MemoryTable,
    Opaque,
    Payload,
    SharedObject,
    SingleMemoryRegion,
    TransferDirection,
    VringAddr,
    VringAddrFlag,
    VringFd,
    VringState,
)
from doorbelld.wire.vhost_requests import BackendRequest, FrontendRequest, Request, Unknown, Vocabulary
from hypothesis import assume
from hypothesis import strategies as st

from support.fdcount import open_fds

F, B = FrontendRequest, BackendRequest
ASK, ASK_ACK, REPLY = Flags.VERSION, Flags.VERSION | Flags.NEED_REPLY, Flags.VERSION | Flags.REPLY
STREAMS: list[tuple[Vocabulary, bool]] = [(F, False), (F, True), (B, False), (B, True)]
EVERY: list[Request] = [*F, *B]
REGION = MemoryRegion(0x1000, 0x2000, 0x7F0000000000, 0x3000)

u64s, u32s, u16s = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1)
regions = st.builds(MemoryRegion, u64s, u64s, u64s, u64s)
vrings = st.integers(0, 255)


@st.composite
def tables(draw: st.DrawFn) -> MemoryTable:
    there = draw(st.lists(regions, max_size=REGIONS_MAX))
    return MemoryTable(tuple(there), draw(st.integers(0, (REGIONS_MAX - len(there)) * 32)))


PAYLOADS: dict[type[Payload], st.SearchStrategy[Payload]] = {
    Empty: st.just(Empty()),
    U64: st.builds(U64, u64s),
    VringState: st.builds(VringState, u32s, u32s),
    VringAddr: st.builds(VringAddr, u32s, u32s.map(VringAddrFlag), u64s, u64s, u64s, u64s),
    VringFd: st.builds(VringFd, vrings, st.booleans()),
    HostNotifierArea: st.builds(HostNotifierArea, vrings, st.booleans(), u64s, u64s),
    MemoryTable: tables(),
    SingleMemoryRegion: st.builds(SingleMemoryRegion, regions),
    Log: st.builds(Log, u64s, u64s),
    Iotlb: st.builds(Iotlb, u64s, u64s, u64s, st.sampled_from(IotlbPerm), st.sampled_from(IotlbType)),
    Config: st.builds(Config, u32s, st.binary(max_size=CONFIG_MAX), u32s),
    Inflight: st.builds(Inflight, u64s, u64s, u16s, u16s),
    SharedObject: st.builds(SharedObject, st.uuids()),
    DeviceState: st.builds(DeviceState, st.sampled_from(TransferDirection), u32s),
    Opaque: st.builds(Opaque, st.binary(max_size=300) | st.binary(min_size=PAYLOAD_MAX - 1, max_size=PAYLOAD_MAX)),
}


@contextmanager
def all_closed() -> Iterator[None]:
    """Fail if the body leaves a descriptor open; unlike `no_leaks` it leaves nothing to the collector, and is quick."""
    before = open_fds()
    yield
    assert open_fds() == before


def fresh() -> Fd:
    return Fd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


def several(count: int) -> tuple[Fd, ...]:
    return tuple(fresh() for _ in range(count))


def is_open(fd: Fd) -> bool:
    return repr(fd) != "Fd(-1)"


@st.composite
def messages(draw: st.DrawFn, requests: Vocabulary, replies: bool, only: Request | None = None) -> Message:
    """Draw a message without descriptors yet; `with_fds` adds as many as may come."""
    strange = u32s.filter(lambda number: number not in {*requests}).map(Unknown)
    known: list[Request] = [*requests]
    request = only or draw(st.sampled_from(known) | strange)
    exchange = request.exchange
    form = draw(st.sampled_from(exchange.reply if replies else exchange.request))
    payload = draw(PAYLOADS[form.payload])
    if replies and form.payload is MemoryTable:
        assume(payload != MemoryTable(()))  # there the eight bytes are an acknowledgement
    return Message(request, payload, (), REPLY if replies else draw(st.sampled_from([ASK, ASK_ACK])))


def with_fds(data: st.DataObject, message: Message) -> Message:
    exchange = message.request.exchange
    forms = exchange.reply if message.is_reply else exchange.request
    (form,) = (form for form in forms if form.payload is type(message.payload))
    return replace(message, fds=several(data.draw(st.sampled_from(form.allowed(message.payload)))))


def pieces(data: st.DataObject, script: list[Message]) -> list[tuple[bytes, tuple[Fd, ...]]]:
    """Cut the messages anywhere, with descriptors at any place inside each, as the kernel may hand them out."""
    cut: list[tuple[bytes, tuple[Fd, ...]]] = []
    for message in script:
        raw, _ = encode(message)
        ends = sorted({len(raw), *data.draw(st.lists(st.integers(1, len(raw)), max_size=4))})
        left, start = list(message.fds), 0
        for end in ends:
            count = len(left) if end == len(raw) else data.draw(st.integers(0, len(left)))
            cut.append((raw[start:end], tuple(left[:count])))
            left, start = left[count:], end
    merged = cut[:1]
    for raw, fds in cut[1:]:
        if not merged[-1][1] and data.draw(st.booleans()):
            merged[-1] = merged[-1][0] + raw, fds
        else:
            merged.append((raw, fds))
    return merged


def run(decoder: Decoder, chunks: list[tuple[bytes, tuple[Fd, ...]]]) -> list[Message]:
    return [message for raw, fds in chunks for message in decoder.feed(raw, fds)]


def close_all(given_out: list[Message]) -> None:
    for message in given_out:
        message.close()


def raw_of(request: int, flags: int, payload: bytes, size: int | None = None) -> bytes:
    return struct.pack("=III", request, flags, len(payload) if size is None else size) + payload


def refused(requests: Vocabulary, raw: bytes, complaint: str, *, fds: int = 0, replies: bool = False) -> None:
    """Whole and byte by byte, it is refused with these words, and nothing is left open."""
    for step in (len(raw), 1):
        with all_closed():
            decoder = Decoder(requests, replies=replies)
            chunks = [(raw[place : place + step], several(0 if place else fds)) for place in range(0, len(raw), step)]
            with pytest.raises(ProtocolError, match=complaint) as caught:
                close_all(run(decoder, chunks))
        assert caught.tb  # which still hangs on to the descriptors, as `chunks` does
