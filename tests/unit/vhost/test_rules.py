# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules that back-ends break, one by one: what a front-end sees of ours.

Rules on packed rings, tracking of requests in flight, the dirty log, postcopy and the IOTLB have no test: none of that
is offered, and `test_rule_08` asks for all of it.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading

import pytest
from doorbelld.errors import InvalidOptions
from doorbelld.ring.queue import RING_FEATURES
from doorbelld.vhost.backend import _hung_up
from doorbelld.vhost.events import FrontendRefused, Negotiated, RequestRefused, State
from doorbelld.vhost.frontend import GUEST_BASE, USER_BASE, BackendFailed
from doorbelld.wire.vhost_messages import (
    U64,
    Config,
    Empty,
    Feature,
    Flags,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    SingleMemoryRegion,
    VhostSetConfigType,
    VringAddr,
    VringFd,
    VringState,
)
from doorbelld.wire.vhost_requests import BackendRequest, FrontendRequest
from support.devicesite import DEADLINE, DeviceSite, Echo

R = FrontendRequest
HEADER = struct.Struct("=III")
NO_ACKS = ~int(ProtocolFeature.REPLY_ACK)
VERSION_1 = 1 << 32


class Inband(Echo):
    protocol_features = ProtocolFeature.INBAND_NOTIFICATIONS


def pending(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], DEADLINE)[0])


def bytes_of(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, "the back-end ended the connection"
        data += more
    return data


def test_rule_01_reply_flags_are_exactly_5(site: DeviceSite) -> None:
    site.open()
    f = site.connect()
    f.send_raw(HEADER.pack(R.GET_FEATURES, Flags.VERSION | Flags.NEED_REPLY, 0))
    assert HEADER.unpack(bytes_of(f.sock, 20)[:12]) == (R.GET_FEATURES, 5, 8)
    f.send_raw(HEADER.pack(R.SET_OWNER, Flags.VERSION | Flags.NEED_REPLY, 0))
    assert HEADER.unpack(bytes_of(f.sock, 20)[:12]) == (R.SET_OWNER, 5, 8)


def test_rule_02_replies_have_exactly_their_size(site: DeviceSite) -> None:
    _, f = site.started()
    f.send(R.GET_VRING_BASE, VringState(0, 0))
    assert HEADER.unpack(bytes_of(f.sock, 20)[:12]) == (R.GET_VRING_BASE, 5, 8)
    f.send(R.GET_QUEUE_NUM)
    assert HEADER.unpack(bytes_of(f.sock, 20)[:12]) == (R.GET_QUEUE_NUM, 5, 8)


def test_rule_03_a_reply_is_the_only_ack_and_a_failure_is_not_0(site: DeviceSite) -> None:
    site.open()
    f = site.connect()
    f.send(R.GET_FEATURES, need_reply=True)
    f.send(R.GET_QUEUE_NUM, need_reply=True)
    assert [f.answer().request for _ in range(2)] == [R.GET_FEATURES, R.GET_QUEUE_NUM]
    assert f.try_to_tell(R.SET_VRING_NUM, VringState(0, 100)) != 0
    assert "power of two" in site.of(RequestRefused)[0].reason
    assert f.try_to_tell(R.SET_VRING_NUM, VringState(0, 128)) == 0


def test_rule_04_the_request_that_negotiates_acks_is_acked(site: DeviceSite) -> None:
    site.open()
    f = site.connect()
    assert f.try_to_tell(R.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.REPLY_ACK)) == 0


def test_rule_06_messages_are_handled_strictly_in_order(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.start(protocol=NO_ACKS & ~int(ProtocolFeature.CONFIGURE_MEM_SLOTS))
    for base in range(1, 50):  # each answer tells whether all before it was done
        f.send(R.SET_VRING_ENABLE, VringState(1, base % 2))
        assert f.ask_number(R.GET_FEATURES)
        assert backend.queue(1).enabled == bool(base % 2)


def test_rule_07_messages_come_in_pieces_and_descriptors_with_any_of_them(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.negotiate()
    table = MemoryTable((MemoryRegion(GUEST_BASE, f.size, USER_BASE, 0),)).pack()
    data = HEADER.pack(R.SET_MEM_TABLE, Flags.VERSION | Flags.NEED_REPLY, len(table)) + table
    for place in range(len(data)):
        f.send_raw(data[place : place + 1], [f.memfd.fileno()] if place == len(data) // 2 else [])
    assert f.answer().payload == U64(0)
    assert [(r.guest_addr, r.error) for r in backend.memory_regions] == [(GUEST_BASE, "")]


@pytest.mark.parametrize("count", [2, 9, 100])
def test_rule_07_surplus_descriptors_are_closed(site: DeviceSite, count: int) -> None:
    site.open()
    f = site.connect()
    data = HEADER.pack(R.SET_VRING_ERR, Flags.VERSION, 8) + bytes(8)
    f.send_raw(data, [f.memfd.fileno()] * count)
    assert "descriptors" in site.farewell().reason  # and the site's end finds no leak


def test_rule_07_a_size_is_bounded(site: DeviceSite) -> None:
    site.open()
    f = site.connect()
    f.send_raw(HEADER.pack(R.SET_MEM_TABLE, Flags.VERSION, 0xFFFFFFFF))
    end = site.farewell()
    assert end.broken and "SET_MEM_TABLE: payload of 4294967295 bytes" in end.reason


@pytest.mark.parametrize(
    ("number", "said"), [(0, "request 0"), (99, "request 99"), (R.SET_VRING_ENDIAN, "SET_VRING_ENDIAN")]
)
def test_rule_08_what_is_unknown_or_not_offered_ends_the_connection_only(
    site: DeviceSite, number: int, said: str
) -> None:
    backend = site.open()
    f = site.connect()
    f.send_raw(HEADER.pack(number, Flags.VERSION, 8) + bytes(8))
    end = site.farewell()
    assert end.broken and said in end.reason
    assert site.connect(backend).ask_number(R.GET_FEATURES)


@pytest.mark.parametrize(
    "request_",
    [R.SET_LOG_FD, R.SET_VRING_ENDIAN, R.POSTCOPY_LISTEN, R.SET_INFLIGHT_FD, R.SEND_RARP, R.NET_SET_MTU],
    ids=str,
)
def test_rule_08_what_is_not_offered_is_refused_if_an_ack_is_asked_for(site: DeviceSite, request_: R) -> None:
    site.open()
    f = site.connect()
    form = request_.exchange.request[0]
    payload = form.payload.unpack(bytes(form.payload.sizes()[-1]))
    fds = [f.memfd.fileno()] * form.allowed(payload)[-1]
    assert f.try_to_tell(request_, payload, fds) != 0
    assert f.ask_number(R.GET_FEATURES)


@pytest.mark.parametrize("request_", [R.SET_LOG_BASE, R.POSTCOPY_ADVISE, R.GET_INFLIGHT_FD, R.IOTLB_MSG], ids=str)
def test_rule_08_what_is_not_offered_and_has_a_reply_ends_the_connection(site: DeviceSite, request_: R) -> None:
    site.open()
    f = site.connect()
    size = request_.exchange.request[0].payload.sizes()[-1]
    raw = bytes(size) if request_ is not R.IOTLB_MSG else bytes(24) + bytes([3, 2]) + bytes(6)
    f.send_raw(HEADER.pack(request_, Flags.VERSION | Flags.NEED_REPLY, size) + raw)
    assert request_.name in site.farewell().reason


def test_rule_08_missing_descriptors_and_wrong_sizes(site: DeviceSite) -> None:
    backend = site.open()
    for number, size in ((R.SET_VRING_CALL, 8), (R.SET_VRING_CALL, 7), (R.SET_BACKEND_REQ_FD, 0), (R.SET_FEATURES, 4)):
        f = site.connect(backend)
        f.send_raw(HEADER.pack(number, Flags.VERSION, size) + bytes(size))
        end = site.farewell(len(site.frontends))
        assert end.broken and number.name in end.reason


def test_rule_09_a_memory_table_may_have_slack(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.negotiate()
    table = MemoryTable((MemoryRegion(GUEST_BASE, f.size, USER_BASE, 0),), slack=32)
    f.tell(R.SET_MEM_TABLE, table, [f.memfd.fileno()])
    assert len(backend.memory_regions) == 1


def test_rule_10_features_are_masked_with_what_was_offered(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.negotiate(protocol=0)
    f.tell(R.SET_FEATURES, U64(2**64 - 1))
    f.send(R.SET_PROTOCOL_FEATURES, U64(2**64 - 1))
    assert f.ask_number(R.GET_FEATURES) == backend.offered_features
    assert backend.accepted_features == backend.offered_features
    assert backend.accepted_protocol_features == backend.offered_protocol_features
    never = ProtocolFeature.LOG_SHMFD | ProtocolFeature.PAGEFAULT | ProtocolFeature.INFLIGHT_SHMFD
    never |= ProtocolFeature.CROSS_ENDIAN | ProtocolFeature.XEN_MMAP | ProtocolFeature.INBAND_NOTIFICATIONS
    assert not backend.offered_protocol_features & never
    assert not backend.offered_features & Feature.LOG_ALL


def test_rule_10_inband_is_offered_where_asked_for(site: DeviceSite) -> None:
    backend = site.open(Inband)
    assert backend.offered_protocol_features & ProtocolFeature.INBAND_NOTIFICATIONS


@pytest.mark.parametrize("missing", [ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK])
def test_rule_11_inband_needs_the_back_end_channel_and_acks(site: DeviceSite, missing: ProtocolFeature) -> None:
    site.open(Inband)
    f = site.connect()
    accepted = ProtocolFeature(f.ask_number(R.GET_PROTOCOL_FEATURES) & sum(ProtocolFeature) & ~missing)
    f.send(R.SET_PROTOCOL_FEATURES, U64(accepted))
    end = site.farewell()
    assert end.broken and "INBAND_NOTIFICATIONS" in end.reason


def test_rule_12_a_ring_starts_on_the_first_kick_and_stops_on_get_vring_base(site: DeviceSite) -> None:
    backend, f = site.started()
    assert backend.queue(0).enabled and not backend.queue(0).started
    assert f.request(f.queues[0], b"hello", 9) == b"hello"
    assert backend.queue(0).started and backend.state is State.RUNNING
    assert f.stop(0) == 1
    assert not backend.queue(0).started and backend.queue(0).enabled
    site.wait_state(backend, State.CONNECTED)


def test_rule_12_a_ring_without_a_kick_descriptor_starts_at_once_and_is_polled(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.negotiate()
    f.share()
    queue = f.make_queue(0)
    f.place(0)
    f.tell(R.SET_VRING_CALL, VringFd(0), [queue.call_fd])
    f.tell(R.SET_VRING_KICK, VringFd(0, nofd=True))
    f.enable(0)
    assert backend.queue(0).started
    target = f.take(16)
    queue.add([], [(target, 16)])  # and no kick
    assert f.wait(queue)


def test_rule_12_in_band_kicks_start_a_ring_and_calls_come_in_band(site: DeviceSite) -> None:
    backend = site.open(Inband)
    f = site.connect()
    f.negotiate()
    f.open_channel()
    f.share()
    queue = f.make_queue(0)
    f.place(0)  # like Linux: neither SET_VRING_KICK nor SET_VRING_CALL
    f.enable(0)
    for _ in range(3):
        head = queue.add([], [(f.take(16), 16)])
        f.tell(R.VRING_KICK, VringState(0, 0))
        while not (done := queue.reap()):
            message = f.hear()
            assert (message.request, message.payload) == (BackendRequest.VRING_CALL, VringState(0, 0))
            assert message.need_reply
            f.acknowledge(message)
        assert done == [(head, 0)]
    assert backend.queue(0).started and backend.queue(0).kicks


def test_rule_13_without_protocol_features_rings_are_enabled_from_the_start(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.start(features=RING_FEATURES | VERSION_1)
    assert f.request(f.queues[0], b"x", 1) == b"x"
    assert backend.queue(1).enabled


def test_rule_13_with_them_a_ring_waits_for_enable(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.start()
    f.enable(0, False)
    queue = f.queues[0]
    source = f.take(16)
    queue.add([(source, 1)], [])
    queue.kick()
    site.wait(lambda: backend.queue(0).started)
    assert backend.queue(0).in_flight == 0 and not queue.reap()
    f.enable(0)  # serves what waited, with no further kick
    assert f.wait(queue)


def test_rule_14_enable_and_kick_may_come_before_memory_and_addresses(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.negotiate()
    queue = f.make_queue(0)
    f.enable(0)
    f.connect_fds(0)
    os.eventfd_write(queue.kick_fd, 1)  # nothing is there yet
    assert f.ask_number(R.GET_FEATURES) and not backend.queue(0).started
    f.share()
    queue.add([(f.take(16), 1)], [])
    f.place(0)
    assert f.wait(queue)


def test_rule_15_get_vring_base_answers_after_the_ring_is_drained(site: DeviceSite) -> None:
    backend, f = site.started()
    device = backend.device
    assert isinstance(device, Echo)
    f.request(f.queues[0], b"first", 5)
    device.gate = threading.Event()
    queue = f.queues[0]
    source = f.take(16)
    heads = [queue.add([(source, 1)], []) for _ in range(4)]
    queue.kick()
    site.wait(lambda: backend.queue(0).in_flight)
    f.send(R.GET_VRING_BASE, VringState(0, 0))
    other = site.open()  # the loop is not held up meanwhile
    assert site.connect(other).ask_number(R.GET_FEATURES)
    assert not pending(f.sock.fileno())
    device.gate.set()
    reply = f.answer().payload
    assert isinstance(reply, VringState)
    done = queue.reap()
    assert reply.num == 1 + len(done)  # all that was popped was pushed
    while pending(queue.call_fd):
        os.eventfd_read(queue.call_fd)
    queue.kick()
    os.eventfd_write(queue.kick_fd, 1)
    assert f.ask_number(R.GET_FEATURES)
    assert not queue.reap() and not pending(queue.call_fd)
    # it stopped and was not reset: the same ring goes on
    f.place(0, base=reply.num)
    f.connect_fds(0)
    while len(done) < len(heads):
        done += f.wait(queue)
    assert [head for head, _ in done] == heads
    assert ("stop", 0) in device.hooks


def test_rule_16_call_descriptors_are_swapped_live_and_signalled_once(site: DeviceSite) -> None:
    _, f = site.started()
    queue = f.queues[0]
    f.request(queue, b"x", 1)
    fresh = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        f.tell(R.SET_VRING_CALL, VringFd(0), [fresh])
        assert os.eventfd_read(fresh)
        while pending(queue.call_fd):
            os.eventfd_read(queue.call_fd)
        queue.set_calls(True)
        queue.add([(f.take(16), 1)], [])
        queue.kick()
        assert readable(fresh) and not pending(queue.call_fd)
    finally:
        os.close(fresh)


def test_rule_17_an_index_has_8_bits_and_a_flag(site: DeviceSite) -> None:
    site.open()
    f = site.connect()
    assert f.try_to_tell(R.SET_VRING_CALL, VringFd(7, nofd=True)) != 0  # there are two
    f.send_raw(HEADER.pack(R.SET_VRING_CALL, Flags.VERSION, 8) + struct.pack("=Q", 1 << 9))
    assert "vring index" in site.farewell().reason


def test_rule_17_descriptors_are_ours_to_close(site: DeviceSite) -> None:
    _, f = site.started(queues=2)
    for request in (R.SET_VRING_ERR, R.SET_VRING_CALL, R.SET_VRING_KICK):
        for _ in range(50):
            f.tell(request, VringFd(0), [f.queues[1].kick_fd])
    assert f.try_to_tell(R.SET_MEM_TABLE, MemoryTable(()), []) == 0  # and the site's end finds no leak


def test_rule_18_the_used_index_is_read_from_memory(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.negotiate()
    f.share()
    queue = f.make_queue(0)
    queue.set_used_index(77)
    f.place(0, base=77)
    assert backend.queue(0).used_index == 77


@pytest.mark.parametrize("size", [0, 3, 96, 2048, 1 << 16])
def test_rule_19_sizes(site: DeviceSite, size: int) -> None:
    site.open(**{"queue-size": 1024})
    f = site.connect()
    assert f.try_to_tell(R.SET_VRING_NUM, VringState(0, size)) != 0


@pytest.mark.parametrize(
    ("desc", "used", "avail", "said"),
    [
        (USER_BASE + 8, USER_BASE + 4096, USER_BASE + 8192, "aligned to 16"),
        (USER_BASE, USER_BASE + 4098, USER_BASE + 8192, "aligned to 4"),
        (USER_BASE, USER_BASE + 4096, USER_BASE + 8193, "aligned to 2"),
        (USER_BASE + (1 << 20) - 16, USER_BASE, USER_BASE, "descriptors area"),
        (USER_BASE, 0, USER_BASE, "used area"),
        (USER_BASE, USER_BASE, 2**64 - 2, "available area"),
    ],
)
def test_rule_19_places(site: DeviceSite, desc: int, used: int, avail: int, said: str) -> None:
    site.open()
    f = site.connect()
    f.negotiate()
    f.share()
    f.tell(R.SET_VRING_NUM, VringState(0, 64))
    areas = VringAddr(0, VringAddr.unpack(bytes(40)).flags, desc, used, avail, 0)
    assert f.try_to_tell(R.SET_VRING_ADDR, areas) != 0
    assert said in site.of(RequestRefused)[0].reason


def test_rule_20_addresses_may_be_set_while_the_ring_runs(site: DeviceSite) -> None:
    _, f = site.started()
    assert f.request(f.queues[0], b"a", 1) == b"a"
    f.tell(R.SET_VRING_ADDR, f.addresses(0))
    assert f.request(f.queues[0], b"b", 1) == b"b"


def test_rule_21_the_first_notification_after_a_start_is_unconditional(site: DeviceSite) -> None:
    _, f = site.started()
    queue = f.queues[0]
    f.request(queue, b"a", 1)
    base = f.stop(0)
    f.place(0, base)
    f.connect_fds(0)
    while pending(queue.call_fd):
        os.eventfd_read(queue.call_fd)
    queue.set_calls(False)  # the event index stays where it was, far behind
    queue.add([(f.take(16), 1)], [])
    queue.kick()
    assert readable(queue.call_fd)


def test_rule_22_an_indirect_chain_may_be_longer_than_the_queue(site: DeviceSite) -> None:
    _, f = site.started()
    queue = f.queues[0]
    data = f.take(4096)
    table = f.take(515 * 16)
    head = queue.add([(data + i, 1) for i in range(515)], [], table=table)
    queue.kick()
    assert f.wait(queue) == [(head, 0)]


def test_rule_23_memory_may_change_while_rings_run(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.start(protocol=~int(ProtocolFeature.CONFIGURE_MEM_SLOTS))
    queue = f.queues[0]
    count = 0
    source, target = f.take(64), f.take(64)
    f.memory.write(source, b"again")
    for _ in range(50):
        heads = [queue.add([(source, 5)], [(target, 5)]) for _ in range(8)]
        queue.kick()
        f.share()  # acked: the old memory is not touched any more
        done: list[tuple[int, int]] = []
        while len(done) < len(heads):
            done += f.wait(queue)
        count += len(done)
    assert count == 400 and backend.queue(0).requests == 400 and not backend.queue(0).broken


def test_rule_24_a_live_ring_may_lose_its_memory_for_a_moment(site: DeviceSite) -> None:
    backend, f = site.started()
    assert f.request(f.queues[0], b"a", 1) == b"a"
    region = MemoryRegion(GUEST_BASE, f.size, USER_BASE, 0)
    f.tell(R.REM_MEM_REG, SingleMemoryRegion(region), [f.memfd.fileno()])  # the descriptor is closed
    os.eventfd_write(f.queues[0].kick_fd, 1)
    assert backend.memory_regions == [] and backend.queue(0).started
    f.share()
    assert f.request(f.queues[0], b"b", 1) == b"b"
    for wrong in (
        MemoryRegion(GUEST_BASE + 1, f.size, USER_BASE, 0),
        MemoryRegion(GUEST_BASE, f.size - 1, USER_BASE, 0),
        MemoryRegion(GUEST_BASE, f.size, USER_BASE + 1, 0),
    ):
        assert f.try_to_tell(R.REM_MEM_REG, SingleMemoryRegion(wrong)) != 0


def test_rule_25_buffers_may_cross_regions_and_regions_may_not_overlap(site: DeviceSite) -> None:
    site.open()
    f = site.connect()
    f.negotiate()
    half = f.size // 2
    fd = f.memfd.fileno()
    for start in (0, half):
        region = MemoryRegion(GUEST_BASE + start, half, USER_BASE + start, start)
        f.tell(R.ADD_MEM_REG, SingleMemoryRegion(region), [fd])
    overlapping = MemoryRegion(GUEST_BASE + half - 4096, 8192, USER_BASE + (1 << 40), 0)
    assert f.try_to_tell(R.ADD_MEM_REG, SingleMemoryRegion(overlapping), [fd]) != 0
    queue = f.make_queue(0)
    f.place(0)
    f.connect_fds(0)
    f.enable(0)
    start = GUEST_BASE + half - 3
    f.memory.write(start, b"across")
    queue.add([(start, 6)], [(start + 16, 6)])
    queue.kick()
    assert f.wait(queue)[0][1] == 6
    assert f.memory.read(start + 16, 6) == b"across"


def test_rule_26_a_buffer_outside_of_memory_fails_that_request_only(site: DeviceSite) -> None:
    backend, f = site.started()
    queue = f.queues[0]
    queue.add([(GUEST_BASE + f.size, 1)], [])
    queue.kick()
    assert f.wait(queue)[0][1] == 0
    assert f.request(queue, b"good", 4) == b"good"
    assert isinstance(backend.device, Echo) and backend.device.handled == 1  # it never saw the other


def test_rule_26_what_cannot_be_mapped_is_tolerated_until_it_is_touched(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.negotiate()
    pipe = os.pipe()
    try:
        region = MemoryRegion(GUEST_BASE, f.size, USER_BASE, 0)
        f.tell(R.ADD_MEM_REG, SingleMemoryRegion(region), [pipe[0]])
    finally:
        for fd in pipe:
            os.close(fd)
    assert backend.memory_regions[0].error
    f.make_queue(0)
    f.tell(R.SET_VRING_NUM, VringState(0, 64))
    assert f.try_to_tell(R.SET_VRING_ADDR, f.addresses(0)) != 0
    assert "share=on missing?" in site.of(RequestRefused)[0].reason


def test_rule_27_memory_slots_do_not_shrink_across_reconnects(site: DeviceSite) -> None:
    backend, f = site.started()
    slots = f.ask_number(R.GET_MAX_MEM_SLOTS)
    f.close()
    assert site.connect(backend).ask_number(R.GET_MAX_MEM_SLOTS) == slots == 509


def test_rule_28_truncated_memory_breaks_the_device_and_nothing_else(site: DeviceSite) -> None:
    other, peer = site.started()
    backend, f = site.started()
    assert f.request(f.queues[0], b"a", 1) == b"a"
    os.ftruncate(f.memfd.fileno(), 0)
    os.eventfd_write(f.queues[0].kick_fd, 1)
    end = site.farewell()
    assert end.device is backend and end.broken and "truncated" in end.reason
    site.wait_state(backend, State.LISTENING)
    assert State.BROKEN in site.states() and "truncated" in backend.reason
    assert peer.request(peer.queues[0], b"still", 5) == b"still" and other.state is State.RUNNING
    fresh = site.connect(backend)
    fresh.start()
    assert fresh.request(fresh.queues[0], b"b", 1) == b"b" and backend.reason == ""


def test_rule_30_one_front_end_at_a_time(site: DeviceSite) -> None:
    backend, f = site.started()
    second = site.connect(backend)
    with pytest.raises(BackendFailed):
        second.ask_number(R.GET_FEATURES)
    site.wait(lambda: site.of(FrontendRefused))
    assert f"pid {os.getpid()} has the device" in site.of(FrontendRefused)[0].reason
    assert f.request(f.queues[0], b"a", 1) == b"a"
    f.close()
    third = site.connect(backend)
    third.start()
    assert third.request(third.queues[0], b"b", 1) == b"b"


def test_rule_30_the_socket_closes_last(site: DeviceSite) -> None:
    backend, f = site.started()
    device = backend.device
    assert isinstance(device, Echo)
    f.request(f.queues[0], b"first", 5)
    device.gate = threading.Event()
    queue = f.queues[0]
    target = f.take(16)
    queue.add([(target, 1)], [])
    queue.kick()
    site.wait(lambda: backend.queue(0).in_flight)
    site.call(backend.disconnect, "somebody wants it")
    early = site.connect(backend)  # comes back before the old connection is closed: is neither refused nor served yet
    early.send(R.GET_FEATURES)
    assert not _hung_up(f.sock) and not pending(early.sock.fileno())
    device.gate.set()
    assert readable(f.sock.fileno()) and f.sock.recv(1) == b""
    assert site.farewell().reason == "somebody wants it"
    assert early.answer().request is R.GET_FEATURES


def test_rule_35_config_honours_offset_and_size(site: DeviceSite) -> None:
    site.open()
    f = site.connect()
    assert f.config(0, 24) == Echo.config
    assert f.config(20, 8) == Echo.config[20:] + bytes(4)
    assert len(f.config()) == 256
    for offset, size in ((1, 256), (256, 1), (2**32 - 1, 1)):
        assert f.ask(R.GET_CONFIG, Config(offset, bytes(size))) == Empty()
    f.send_raw(HEADER.pack(R.GET_CONFIG, Flags.VERSION, 12 + 257) + struct.pack("=III", 0, 257, 0) + bytes(257))
    assert "GET_CONFIG" in site.farewell().reason


def test_rule_35_set_config_has_flags(site: DeviceSite) -> None:
    backend = site.open("loopback")
    f = site.connect()
    assert f.try_to_tell(R.SET_CONFIG, Config(4, b"word", VhostSetConfigType.MIGRATION)) == 0
    assert backend.config[4:8] == b"word"
    assert site.of(Negotiated), "whoever watches the device is told"
    assert f.try_to_tell(R.SET_CONFIG, Config(4, b"word", 7)) != 0
    assert f.try_to_tell(R.SET_CONFIG, Config(14, b"word")) != 0
    site.open(Echo)
    assert site.connect().try_to_tell(R.SET_CONFIG, Config(0, b"x")) != 0  # it takes none


def test_rule_36_a_config_change_is_told_and_not_waited_for(site: DeviceSite) -> None:
    backend, f = site.started()
    f.open_channel()
    backend.device.config_changed()  # while stopped: told again after the start
    f.request(f.queues[0], b"a", 1)
    message = f.hear()
    assert message.request is BackendRequest.CONFIG_CHANGE_MSG and message.need_reply
    assert f.config(0, 4) == Echo.config[:4]  # on the main socket, before the ack
    backend.device.config_changed()
    backend.device.config_changed()
    assert f.request(f.queues[0], b"b", 1) == b"b"
    f.acknowledge(message)
    f.acknowledge(f.hear())  # the two of before are one


def test_rule_36_without_the_config_feature_nothing_is_told(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.start(protocol=~int(ProtocolFeature.CONFIG))
    f.open_channel()
    f.request(f.queues[0], b"a", 1)
    backend.device.config_changed()
    assert f.ask_number(R.GET_FEATURES)
    assert f.channel is not None and not pending(f.channel.fileno())


def test_rule_37_status_gates_nothing_and_reset_needs_no_reply(site: DeviceSite) -> None:
    backend, f = site.started()
    device = backend.device
    assert isinstance(device, Echo)
    assert f.ask_number(R.GET_STATUS) == 0
    assert f.request(f.queues[0], b"a", 1) == b"a"  # without DRIVER_OK
    f.tell(R.SET_STATUS, U64(0x0F))
    assert f.ask_number(R.GET_STATUS) == backend.status == 0x0F
    f.send(R.RESET_DEVICE)
    assert f.ask_number(R.GET_STATUS) == 0
    assert not backend.queue(0).started and not backend.queue(0).enabled
    assert device.hooks[-2:] == [("stop", 0), ("reset", None)]
    assert len(backend.memory_regions) == 1  # QEMU believes that slots live as long as the connection
    f.tell(R.SET_FEATURES, U64(f.features))
    assert [name for name, _ in device.hooks].count("ack") == 2  # the device forgot it, and is told again
    f.place(0, base=1)
    f.connect_fds(0)
    f.enable(0)
    assert f.request(f.queues[0], b"b", 1) == b"b"
    f.tell(R.RESET_OWNER)  # is ignored
    assert f.request(f.queues[0], b"c", 1) == b"c"


def test_rule_37_status_0_resets(site: DeviceSite) -> None:
    backend, f = site.started()
    f.request(f.queues[0], b"a", 1)
    f.tell(R.SET_STATUS, U64(1))
    before = len(site.of(Negotiated))
    f.tell(R.SET_STATUS, U64(0))
    assert not backend.queue(0).started
    assert (backend.accepted_features, len(site.of(Negotiated))) == (0, before + 1)
    device = backend.device
    assert isinstance(device, Echo) and device.hooks[-1] == ("reset", None)


def test_rule_38_as_many_queues_as_there_are(site: DeviceSite) -> None:
    site.open(queues=8)
    assert site.connect().ask_number(R.GET_QUEUE_NUM) == 8
    with pytest.raises(InvalidOptions, match="at most 8"):
        site.open(queues=9)
