# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Each message looks as the specification has it, and each rule about that holds."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from uuid import UUID

import pytest
from doorbelld.wire.vhost import HEADER, Decoder, Message, ProtocolError, encode
from doorbelld.wire.vhost_messages import (
    CONFIG_MAX,
    PAYLOAD_MAX,
    U64,
    VRING_NOFD,
    Config,
    DeviceState,
    Empty,
    Feature,
    HostNotifierArea,
    Inflight,
    Iotlb,
    IotlbPerm,
    IotlbType,
    Log,
    MemoryRegion,
    MemoryTable,
    Opaque,
    ProtocolFeature,
    SharedObject,
    SingleMemoryRegion,
    TransferDirection,
    VhostSetConfigType,
    VringAddr,
    VringAddrFlag,
    VringFd,
    VringState,
)
from doorbelld.wire.vhost_requests import Answer, BackendRequest, FrontendRequest, Request, Unknown, Vocabulary
from hypothesis import assume, given
from hypothesis import strategies as st
from support.vhostwire import (
    ASK,
    ASK_ACK,
    EVERY,
    REGION,
    REPLY,
    B,
    F,
    all_closed,
    close_all,
    fresh,
    raw_of,
    refused,
    run,
    several,
    tables,
    u64s,
)

# The layout, by hand from the specification (little-endian)

REGION_HEX = "0010000000000000 0020000000000000 00000000007f0000 0030000000000000"
GOLDEN: list[tuple[str, Message, int]] = [
    ("01000000 01000000 00000000", Message(F.GET_FEATURES), 0),
    ("01000000 05000000 08000000 0000004400000000", Message(F.GET_FEATURES, U64(0x44000000), (), REPLY), 0),
    ("10000000 09000000 08000000 2982000000000000", Message(F.SET_PROTOCOL_FEATURES, U64(0x8229), (), ASK_ACK), 0),
    ("08000000 01000000 08000000 02000000 00010000", Message(F.SET_VRING_NUM, VringState(2, 256)), 0),
    (
        "09000000 01000000 28000000 01000000 01000000"
        "1100000000000000 2200000000000000 3300000000000000 4400000000000000",
        Message(F.SET_VRING_ADDR, VringAddr(1, VringAddrFlag.LOG, 0x11, 0x22, 0x33, 0x44)),
        0,
    ),
    ("0c000000 01000000 08000000 0300000000000000", Message(F.SET_VRING_KICK, VringFd(3)), 1),
    ("0d000000 01000000 08000000 0301000000000000", Message(F.SET_VRING_CALL, VringFd(3, nofd=True)), 0),
    ("05000000 01000000 28000000 01000000 00000000" + REGION_HEX, Message(F.SET_MEM_TABLE, MemoryTable((REGION,))), 1),
    ("25000000 09000000 28000000 0000000000000000" + REGION_HEX,
     Message(F.ADD_MEM_REG, SingleMemoryRegion(REGION), (), ASK_ACK), 1),
    ("06000000 01000000 10000000 0008000000000000 0010000000000000", Message(F.SET_LOG_BASE, Log(0x800, 0x1000)), 1),
    (
        "16000000 09000000 20000000 0010000000000000 0020000000000000 0030000000000000 03 02 000000000000",
        Message(F.IOTLB_MSG, Iotlb(0x1000, 0x2000, 0x3000, IotlbPerm.RW, IotlbType.UPDATE), (), ASK_ACK),
        0,
    ),
    ("18000000 01000000 10000000 14000000 04000000 01000000 deadbeef",
     Message(F.GET_CONFIG, Config(20, bytes.fromhex("deadbeef"), 1)), 0),
    ("18000000 05000000 00000000", Message(F.GET_CONFIG, Empty(), (), REPLY), 0),
    ("1c000000 05000000 00000000", Message(F.POSTCOPY_ADVISE, Empty(), (), REPLY), 1),
    ("1f000000 05000000 18000000 0000010000000000 0010000000000000 0400 8000 00000000",
     Message(F.GET_INFLIGHT_FD, Inflight(0x10000, 0x1000, 4, 128), (), REPLY), 1),
    ("29000000 01000000 10000000 00112233445566778899aabbccddeeff",
     Message(F.GET_SHARED_OBJECT, SharedObject(UUID("00112233-4455-6677-8899-aabbccddeeff"))), 0),
    ("2a000000 01000000 08000000 01000000 00000000",
     Message(F.SET_DEVICE_STATE_FD, DeviceState(TransferDirection.LOAD)), 1),
    ("2a000000 05000000 08000000 0001000000000000", Message(F.SET_DEVICE_STATE_FD, U64(VRING_NOFD), (), REPLY), 0),
    ("27000000 01000000 08000000 0f00000000000000", Message(F.SET_STATUS, U64(15)), 0),
    ("02000000 09000000 00000000", Message(B.CONFIG_CHANGE_MSG, Empty(), (), ASK_ACK), 0),
    ("03000000 01000000 18000000 0200000000000000 0010000000000000 0040000000000000",
     Message(B.VRING_HOST_NOTIFIER_MSG, HostNotifierArea(2, False, 0x1000, 0x4000)), 1),
    ("04000000 09000000 08000000 07000000 00000000", Message(B.VRING_CALL, VringState(7, 0), (), ASK_ACK), 0),
    ("08000000 05000000 08000000 0000000000000000", Message(B.SHARED_OBJECT_LOOKUP, U64(0), (), REPLY), 1),
    ("e7030000 09000000 03000000 616263", Message(Unknown(999), Opaque(b"abc"), (), ASK_ACK), 2),
]  # fmt: skip


@pytest.mark.skipif(sys.byteorder == "big", reason="the bytes are those of a little-endian machine")
@pytest.mark.parametrize(("text", "message", "count"), GOLDEN, ids=lambda part: getattr(part, "request", None))
def test_golden_bytes(text: str, message: Message, count: int) -> None:
    message = replace(message, fds=several(count))
    raw = bytes.fromhex(text)
    assert encode(message)[0] == raw
    vocabulary: Vocabulary = B if isinstance(message.request, BackendRequest) else F
    assert list(Decoder(vocabulary, replies=message.is_reply).feed(raw, message.fds)) == [message]
    message.close()


def test_the_numbers_are_those_of_the_specification() -> None:
    assert list(F) == list(range(1, 44))
    assert list(B) == list(range(1, 9))
    assert (F.GET_PROTOCOL_FEATURES, F.NET_SET_MTU, F.POSTCOPY_END, F.VRING_KICK) == (15, 20, 30, 35)
    assert (ProtocolFeature.REPLY_ACK, ProtocolFeature.DEVICE_STATE) == (8, 1 << 19)
    assert (ProtocolFeature.RESET_DEVICE, ProtocolFeature.STATUS) == (1 << 13, 1 << 16)
    assert (Feature.LOG_ALL, Feature.PROTOCOL_FEATURES) == (0x04000000, 0x40000000)
    assert (VhostSetConfigType.FRONTEND, VhostSetConfigType.MIGRATION) == (0, 1)


def test_requests_of_both_channels_are_told_apart() -> None:
    """They share numbers, not what they look like."""
    assert F(3).exchange is not B(3).exchange
    assert {type(form.payload) for form in B(3).exchange.request} == {type(HostNotifierArea)}
    assert isinstance(next(Decoder(F).feed(raw_of(22, 9, bytes(24) + bytes([0, 3])))).payload, Iotlb)
    assert next(Decoder(B).feed(raw_of(22, 9, b""))).request.name == "request 22"


# The rules


@given(st.sampled_from(EVERY), st.booleans(), u64s)
def test_rule_1_reply_flags_are_exactly_5(request: Request, need_reply: bool, result: int) -> None:
    """An echoed NEED_REPLY is fatal to QEMU and Linux."""
    asked = Message(request, flags=ASK_ACK if need_reply else ASK)
    assert asked.need_reply is need_reply
    assert asked.ack(result).flags == asked.reply().flags == 5
    assert asked.ack(result).is_reply
    assert not asked.is_reply


@pytest.mark.parametrize("flags", [0x0, 0x1, 0x4, 0x6, 0x9, 0xD, 0x15, 0x80000005])
def test_rule_1_a_reply_with_other_flags_is_refused(flags: int) -> None:
    refused(F, raw_of(1, flags, bytes(8)), f"GET_FEATURES: flags {flags:#x}, must be 0x5", replies=True)


@pytest.mark.parametrize("flags", [0x0, 0x2, 0x3, 0x5, 0xD, 0x11, 0xFFFFFFFF])
def test_a_request_with_other_flags_is_refused(flags: int) -> None:
    refused(F, raw_of(2, flags, bytes(8)), f"SET_FEATURES: flags {flags:#x}, must be 0x1 or 0x9")
    refused(B, raw_of(2, flags, b""), f"CONFIG_CHANGE_MSG: flags {flags:#x}, must be 0x1 or 0x9")


@pytest.mark.parametrize("size", [0, 7, 9, 40])
def test_rule_2_u64_and_vring_state_replies_have_their_size(size: int) -> None:
    refused(F, raw_of(F.GET_FEATURES, 5, bytes(size)), "GET_FEATURES: payload of .* must be 8", replies=True)
    refused(F, raw_of(F.GET_VRING_BASE, 5, bytes(size)), "GET_VRING_BASE: payload of .* must be 8", replies=True)


@given(tables())
def test_rule_2_a_postcopy_answer_is_as_long_as_its_request(table: MemoryTable) -> None:
    assume(table.regions)
    asked = Message(F.SET_MEM_TABLE, table)
    moved = tuple(replace(region, user_addr=0x5000) for region in table.regions)
    raw, _ = encode(asked.reply(replace(table, regions=moved)))
    assert len(raw) == HEADER.size + len(table.pack())
    (got,) = Decoder(F, replies=True).feed(raw)
    assert got.payload == MemoryTable(moved, table.slack)


def test_rule_3_what_has_a_reply_gets_no_acknowledgement() -> None:
    """Those that "Communication" lists, and those with a reply payload."""
    own = {
        F.GET_FEATURES, F.SET_LOG_BASE, F.GET_VRING_BASE, F.GET_PROTOCOL_FEATURES, F.GET_QUEUE_NUM, F.IOTLB_MSG,
        F.GET_CONFIG, F.CREATE_CRYPTO_SESSION, F.POSTCOPY_ADVISE, F.POSTCOPY_END, F.GET_INFLIGHT_FD,
        F.GET_MAX_MEM_SLOTS, F.GET_STATUS, F.GET_SHARED_OBJECT, F.SET_DEVICE_STATE_FD, F.CHECK_DEVICE_STATE,
    }  # fmt: skip
    assert {request for request in F if request.exchange.answer is Answer.ALWAYS} == own
    assert {request for request in F if Message(request).awaits_answer} == own
    assert [request for request in B if Message(request).awaits_answer] == [B.SHARED_OBJECT_LOOKUP]
    assert all(Message(request, flags=ASK_ACK).awaits_answer for request in EVERY)


def test_rule_4_set_protocol_features_may_ask_for_an_acknowledgement() -> None:
    (asked,) = Decoder(F).feed(raw_of(16, 9, bytes(8)))
    assert asked.awaits_answer
    assert encode(asked.ack())[0] == raw_of(16, 5, bytes(8))


@pytest.mark.parametrize("request_", [F.POSTCOPY_LISTEN, F.POSTCOPY_END])
def test_rule_5_postcopy_asks_for_acknowledgements(request_: FrontendRequest) -> None:
    (asked,) = Decoder(F).feed(raw_of(request_, 9, b""))
    assert asked.awaits_answer
    assert encode(asked.ack(1))[0] == raw_of(request_, 5, struct.pack("=Q", 1))


def test_rule_7_descriptors_of_a_message_come_with_any_of_its_bytes() -> None:
    with all_closed():
        table = MemoryTable((REGION,) * 8)
        fds = several(8)
        raw, _ = encode(Message(F.SET_MEM_TABLE, table, fds))
        decoder, owner = Decoder(F), encode(Message(F.SET_OWNER))[0]
        got = run(decoder, [(owner + raw[:1], fds[:1]), (raw[1:20], fds[1:5]), (raw[20:], fds[5:]), (owner, ())])
        assert [message.request for message in got] == [F.SET_OWNER, F.SET_MEM_TABLE, F.SET_OWNER]
        assert got[1].fds == fds
        close_all(got)


@pytest.mark.parametrize(
    ("raw", "fds", "complaint"),
    [
        (raw_of(F.SET_OWNER, 1, b"")[:5], 9, "a header: 9 descriptors so far, at most 8"),
        (raw_of(F.SET_MEM_TABLE, 1, bytes(8))[:19], 9, "9 descriptors so far"),
        (raw_of(F.SET_MEM_TABLE, 1, bytes(8)), 9, "9 descriptors"),
        (raw_of(99, 1, b""), 9, "9 descriptors"),
        (raw_of(F.SET_MEM_TABLE, 1, bytes(8)), 1, "SET_MEM_TABLE: comes with 1 descriptors, must be 0"),
        (raw_of(F.SET_OWNER, 1, b""), 1, "SET_OWNER: comes with 1 descriptors, must be 0"),
        (raw_of(F.SET_VRING_KICK, 1, bytes(8)), 2, "SET_VRING_KICK: comes with 2 descriptors, must be 1"),
        (raw_of(F.SET_LOG_BASE, 1, bytes(16)), 2, r"SET_LOG_BASE: comes with 2 descriptors, must be 0\.\.1"),
        (raw_of(F.REM_MEM_REG, 1, bytes(40)), 2, r"REM_MEM_REG: comes with 2 descriptors, must be 0\.\.1"),
    ],
)
def test_rule_7_surplus_descriptors_are_closed(raw: bytes, fds: int, complaint: str) -> None:
    refused(F, raw, complaint, fds=fds)


def test_rule_7_a_flood_of_descriptors_without_bytes_to_go_with_is_stopped() -> None:
    with all_closed():
        decoder, kept = Decoder(F), []
        with pytest.raises(ProtocolError, match="9 descriptors so far"):
            for byte in raw_of(99, 1, bytes(PAYLOAD_MAX)):
                kept.append(several(3))
                close_all(list(decoder.feed(bytes([byte]), kept[-1])))


@pytest.mark.parametrize("request_", EVERY, ids=lambda request: request.name)
@pytest.mark.parametrize("replies", [False, True])
def test_rule_7_size_is_bounded_before_the_payload_comes(request_: Request, replies: bool) -> None:
    for size in (PAYLOAD_MAX + 1, 2**31, 2**32 - 1):
        with pytest.raises(ProtocolError, match=f"{request_.name}: payload of {size} bytes"):
            list(Decoder(type(request_), replies=replies).feed(raw_of(request_, 5 if replies else 1, b"", size)))


@pytest.mark.parametrize("number", [0, 44, 999, 2**32 - 1])
@pytest.mark.parametrize("requests", [F, B])
def test_rule_8_unknown_requests_come_out_and_can_be_refused(requests: Vocabulary, number: int) -> None:
    with all_closed():
        decoder = Decoder(requests)
        fds = several(8)
        (asked,) = decoder.feed(raw_of(number, 9, b"what?"), fds)
        assert (asked.request, asked.request.name) == (number, f"request {number}")
        assert (asked.payload, asked.fds, asked.awaits_answer) == (Opaque(b"what?"), fds, True)
        asked.close()
        refusal, _ = encode(asked.ack(1))
        assert refusal == raw_of(number, 5, struct.pack("=Q", 1))
        (answer,) = Decoder(requests, replies=True).feed(refusal)
        assert answer.payload == Opaque(struct.pack("=Q", 1))
        assert next(decoder.feed(raw_of(2, 1, bytes(8) if requests is F else b""))).request == 2  # it goes on


def test_rule_8_unknown_requests_are_bounded_too() -> None:
    assert next(Decoder(F).feed(raw_of(99, 1, bytes(PAYLOAD_MAX)))).payload == Opaque(bytes(PAYLOAD_MAX))
    refused(F, raw_of(99, 1, b"", PAYLOAD_MAX + 1), r"request 99: payload of 4097 bytes, must be 0\.\.4096")


@pytest.mark.parametrize(
    ("request_", "payload", "fds", "complaint"),
    [
        (F.GET_FEATURES, bytes(8), 0, "GET_FEATURES: payload of 8 bytes, must be 0"),
        (F.SET_FEATURES, b"", 0, "SET_FEATURES: payload of 0 bytes, must be 8"),
        (F.SET_VRING_NUM, bytes(12), 0, "SET_VRING_NUM: payload of 12 bytes, must be 8"),
        (F.SET_VRING_ADDR, bytes(39), 0, "SET_VRING_ADDR: payload of 39 bytes, must be 40"),
        (F.SET_LOG_BASE, bytes(12), 1, "SET_LOG_BASE: payload of 12 bytes, must be 16 or 8"),
        (F.SET_MEM_TABLE, bytes(5), 0, r"SET_MEM_TABLE: payload of 5 bytes, must be 8\.\.264"),
        (F.SET_MEM_TABLE, struct.pack("=II", 1, 0) + bytes(31), 1, "39 bytes of payload are too few for a table of 1"),
        (F.SET_MEM_TABLE, struct.pack("=II", 2**32 - 1, 0) + bytes(32), 1, "too few for a table of 4294967295 regions"),
        (F.SET_MEM_TABLE, struct.pack("=II", 9, 0) + bytes(9 * 32), 8, r"payload of 296 bytes, must be 8\.\.264"),
        (F.SET_MEM_TABLE, struct.pack("=II", 2, 0) + bytes(64), 1, "comes with 1 descriptors, must be 2"),
        (F.ADD_MEM_REG, bytes(40), 0, "ADD_MEM_REG: comes with 0 descriptors, must be 1"),
        (F.ADD_MEM_REG, bytes(32), 1, "ADD_MEM_REG: payload of 32 bytes, must be 40 or 8"),
        (F.SET_VRING_KICK, bytes(8), 0, "SET_VRING_KICK: comes with 0 descriptors, must be 1"),
        (F.SET_VRING_CALL, struct.pack("=Q", 0x100), 1, "SET_VRING_CALL: comes with 1 descriptors, must be 0"),
        (F.SET_VRING_ERR, struct.pack("=Q", 0x200), 1, "SET_VRING_ERR: 0x200 is no vring index of 8 bits"),
        (F.SET_LOG_FD, b"", 0, "SET_LOG_FD: comes with 0 descriptors, must be 1"),
        (F.SET_BACKEND_REQ_FD, b"", 0, "SET_BACKEND_REQ_FD: comes with 0 descriptors"),
        (F.SET_INFLIGHT_FD, bytes(24), 0, "SET_INFLIGHT_FD: comes with 0 descriptors"),
        (F.SET_INFLIGHT_FD, bytes(19), 1, r"SET_INFLIGHT_FD: payload of 19 bytes, must be 20\.\.24"),
        (F.GPU_SET_SOCKET, b"", 0, "GPU_SET_SOCKET: comes with 0 descriptors"),
        (F.SET_DEVICE_STATE_FD, bytes(8), 0, "SET_DEVICE_STATE_FD: comes with 0 descriptors"),
        (F.SET_DEVICE_STATE_FD, struct.pack("=II", 2, 0), 1, "SET_DEVICE_STATE_FD: 2 is not a valid TransferDirection"),
        (F.IOTLB_MSG, bytes(24) + b"\0\5" + bytes(6), 0, "IOTLB_MSG: 5 is not a valid IotlbType"),
        (F.IOTLB_MSG, bytes(24) + b"\4\2" + bytes(6), 0, "IOTLB_MSG: 4 is not a valid IotlbPerm"),
        (F.SET_CONFIG, struct.pack("=III", 0, 5, 0) + bytes(4), 0, "SET_CONFIG: it is about 5 bytes .* and brings 4"),
        (F.GET_SHARED_OBJECT, bytes(15), 0, "GET_SHARED_OBJECT: payload of 15 bytes, must be 16"),
        (B.VRING_HOST_NOTIFIER_MSG, bytes(24), 0, "VRING_HOST_NOTIFIER_MSG: comes with 0 descriptors, must be 1"),
        (B.VRING_HOST_NOTIFIER_MSG, struct.pack("=3Q", 0x100, 0, 0), 1, "comes with 1 descriptors, must be 0"),
        (B.CONFIG_CHANGE_MSG, bytes(8), 0, "CONFIG_CHANGE_MSG: payload of 8 bytes, must be 0"),
    ],
)  # fmt: skip
def test_rule_8_wrong_sizes_values_and_missing_descriptors_are_refused(
    request_: Request, payload: bytes, fds: int, complaint: str
) -> None:
    refused(type(request_), raw_of(request_, 1, payload), complaint, fds=fds)


def test_rule_9_user_mode_linux_sends_a_table_of_fixed_length() -> None:
    payload = struct.pack("=II", 1, 0) + REGION.pack() + bytes(32)
    with fresh() as fd:
        (got,) = Decoder(F).feed(raw_of(F.SET_MEM_TABLE, 9, payload), [fd])
        assert got.payload == MemoryTable((REGION,), slack=32)
        assert encode(got)[0] == raw_of(F.SET_MEM_TABLE, 9, payload)


def test_rule_9_what_else_real_front_ends_send() -> None:
    decoder = Decoder(F)
    packed_inflight = struct.pack("=QQHH", 1, 2, 3, 4)
    with all_closed():
        chunks = [
            (raw_of(F.GET_INFLIGHT_FD, 1, packed_inflight), ()),  # the structure without its padding
            (raw_of(F.IOTLB_MSG, 9, bytes(24) + b"\0\3"), ()),
            (raw_of(F.SET_MEM_TABLE, 1, bytes(8)), ()),  # QEMU, to acknowledge the bases in postcopy
            (raw_of(F.ADD_MEM_REG, 1, bytes(8)), ()),
            (raw_of(F.REM_MEM_REG, 1, bytes(40)), several(1)),  # an older QEMU
            (raw_of(F.SET_LOG_BASE, 1, bytes(8)), ()),  # before LOG_SHMFD
            (raw_of(F.GET_CONFIG, 1, struct.pack("=III", 0, 8, 1) + bytes(8)), ()),  # rust-vmm: flags of its own
            (raw_of(F.SET_VRING_KICK, 1, struct.pack("=Q", 0x1FF)), ()),
        ]
        got = run(decoder, chunks)
        assert [message.payload for message in got] == [
            Inflight(1, 2, 3, 4),
            Iotlb(0, 0, 0, IotlbPerm.NONE, IotlbType.INVALIDATE),
            MemoryTable(()),
            U64(0),
            SingleMemoryRegion(MemoryRegion(0, 0, 0, 0)),
            U64(0),
            Config(0, bytes(8), 1),
            VringFd(255, nofd=True),
        ]
        close_all(got)


def test_rule_35_get_config_moves_at_most_256_bytes() -> None:
    whole = Config(0, bytes(CONFIG_MAX))
    raw, _ = encode(Message(F.GET_CONFIG, whole))
    assert next(Decoder(F).feed(raw)).payload == whole
    more = struct.pack("=III", 0, 257, 0) + bytes(257)
    refused(F, raw_of(F.GET_CONFIG, 1, more), r"GET_CONFIG: payload of 269 bytes, must be 12\.\.268")
    refused(F, raw_of(F.GET_CONFIG, 5, more), r"must be 12\.\.268 or 0", replies=True)
