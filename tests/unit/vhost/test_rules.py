# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules that back-ends break, one by one: what a front-end sees of ours. Messages (1 to 11), rings (12 to 22).

Each rule is a test with its number in the name, here or beside; `test_each_rule_has_a_test_or_waits` keeps count. Those
on packed rings, tracking of requests in flight, the dirty log, postcopy and the IOTLB wait: none of that is offered,
and `test_rule_08` asks for all of it.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
from pathlib import Path

import pytest
from doorbelld.ring.chain import Chain
from doorbelld.ring.errors import QueueError
from doorbelld.ring.queue import F_NOTIFY_ON_EMPTY, RING_FEATURES, VirtQueue
from doorbelld.vhost.device import Device
from doorbelld.vhost.errors import NotRunning
from doorbelld.vhost.events import RequestRefused, State
from doorbelld.vhost.frontend import GUEST_BASE, USER_BASE
from doorbelld.wire.vhost_messages import (
    U64,
    Feature,
    Flags,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    SingleMemoryRegion,
    VringAddr,
    VringFd,
    VringState,
)
from doorbelld.wire.vhost_requests import BackendRequest, FrontendRequest
from support.devicesite import DeviceSite, Echo, pending, readable

R = FrontendRequest
HEADER = struct.Struct("=III")
NO_ACKS = ~int(ProtocolFeature.REPLY_ACK)
VERSION_1 = 1 << 32


class Inband(Echo):
    protocol_features = ProtocolFeature.INBAND_NOTIFICATIONS


def bytes_of(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, "the back-end ended the connection"
        data += more
    return data


WAITING = {
    29: "postcopy",
    31: "in-flight recovery",
    32: "in-flight recovery",
    33: "restart of live sessions",
    34: "migration logging",
}
"""Rules about what is not offered yet, and when they will apply."""


@pytest.mark.parametrize("number", range(1, 39))
def test_each_rule_has_a_test_or_waits(number: int) -> None:
    names = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    tested = re.search(rf"^def test_rule_{number:02}_", names, re.M) is not None
    assert tested is not (number in WAITING)


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


@pytest.mark.parametrize("request_", [R.POSTCOPY_LISTEN, R.SET_INFLIGHT_FD, R.SET_VRING_ENDIAN], ids=str)
def test_rule_05_who_asks_for_an_ack_gets_one_whatever_was_negotiated(site: DeviceSite, request_: R) -> None:
    """QEMU asks for some without REPLY_ACK: no answer, and it waits for ever."""
    site.open()
    f = site.connect()
    f.negotiate(protocol=NO_ACKS)
    form = request_.exchange.request[0]
    payload = form.payload.unpack(bytes(form.payload.sizes()[-1]))
    assert f.try_to_tell(request_, payload, [f.memfd.fileno()] * form.allowed(payload)[-1]) != 0
    assert f.try_to_tell(R.SET_OWNER) == 0


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


@pytest.mark.parametrize(("bit", "option"), [(33, "iommu_platform=on"), (34, "packed=on")])
def test_rule_10_what_fails_after_a_feature_that_was_not_offered_names_it(
    site: DeviceSite, bit: int, option: str
) -> None:
    """QEMU 7.2's vhost-user-rng accepts them when it is told so, offered or not."""
    site.open()
    f = site.connect()
    f.negotiate(protocol=NO_ACKS)
    f.share()
    f.make_queue(0)
    f.tell(R.SET_FEATURES, U64(f.features | 1 << bit))
    f.send(R.SET_VRING_BASE, VringState(0, 0x80008000))  # of a packed ring
    reason = site.farewell().reason
    assert re.fullmatch(
        rf"SET_VRING_BASE: .*VIRTIO_F_\w+ was accepted and is not offered: leave {option} out .*", reason
    )


def test_rule_10_a_type_of_device_has_no_say_in_what_is_not_its_own(site: DeviceSite) -> None:
    """Nothing is offered before it works: not by a mistake of who writes a device either."""

    class Greedy(Echo):
        features = 2**64 - 1
        protocol_features = ~ProtocolFeature(0)

    backend = site.open(Greedy)
    own = sum(1 << bit for bit in (*range(24), *range(50, 64)))
    assert backend.offered_features == own | RING_FEATURES | VERSION_1 | Feature.PROTOCOL_FEATURES
    assert not backend.offered_features & (1 << 33 | 1 << 34 | 1 << 40)  # IOMMU, packed rings, reset of a ring
    for later in ("LOG_SHMFD", "PAGEFAULT", "INFLIGHT_SHMFD", "CROSS_ENDIAN", "SHARED_OBJECT", "DEVICE_STATE"):
        assert not backend.offered_protocol_features & ProtocolFeature[later]


def test_rule_10_features_of_rings_stay_while_one_runs(site: DeviceSite) -> None:
    backend, f = site.started(queues=2)
    assert f.request(f.queues[1], b"a", 1) == b"a"  # and the other is not started
    assert f.try_to_tell(R.SET_FEATURES, U64(f.features & ~RING_FEATURES)) != 0
    assert backend.accepted_features == f.features
    for index in (0, 1):  # neither has lost its event index
        assert f.request(f.queues[index], b"b", 1) == b"b"
    f.tell(R.SET_FEATURES, U64(f.features & ~(1 << 5)))
    assert f.request(f.queues[0], b"c", 1) == b"c"


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


def test_rule_12_ring_starts_at_set_vring_kick_and_stops_at_get_vring_base(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.negotiate()
    f.share()
    f.make_queue(0)
    f.place(0)
    f.enable(0)
    assert backend.queue(0).enabled and not backend.queue(0).started
    f.connect_fds(0)
    assert backend.queue(0).started and backend.state is State.RUNNING
    assert f.request(f.queues[0], b"hello", 9) == b"hello"
    assert f.stop(0) == 1
    assert not backend.queue(0).started and backend.queue(0).enabled
    site.wait_state(backend, State.CONNECTED)


@pytest.mark.parametrize("last", ["kick", "enable", "address"])
@pytest.mark.parametrize("kind", [Echo, "rng"])
def test_rule_12_what_is_available_is_served_without_a_kick(
    site: DeviceSite, kind: type[Device] | str, last: str
) -> None:
    """Neither the start nor the enabling waits for a kick, whichever message comes last."""
    backend = site.open(kind)
    f = site.connect()
    f.negotiate()
    f.share()
    queue = f.make_queue(0)
    head = queue.add([], [(f.take(16), 16)])
    steps = {"address": f.place, "kick": f.connect_fds, "enable": f.enable}
    for name, step in steps.items():
        if name != last:
            step(0)
    assert f.ask_number(R.GET_FEATURES) and not queue.reap()
    steps[last](0)
    assert [done for done, _ in f.wait(queue)] == [head]
    assert backend.queue(0).kicks == 0


@pytest.mark.parametrize("kind", [Echo, "rng"])
def test_rule_12_ring_restarts_with_the_same_descriptors_without_a_kick(
    site: DeviceSite, kind: type[Device] | str
) -> None:
    """GET_VRING_BASE and SET_VRING_KICK is all that a front-end sends for a pause; the addresses stay."""
    backend, f = site.started(kind)
    (queue,) = f.queues.values()
    for base in range(3):
        assert f.stop(0) == base
        head = queue.add([], [(f.take(16), 16)])
        f.tell(R.SET_VRING_KICK, VringFd(0), [queue.kick_fd])
        assert [done for done, _ in f.wait(queue)] == [head]
    assert backend.queue(0).kicks == 0


def test_rule_12_ring_that_can_not_start_is_refused(site: DeviceSite) -> None:
    _, f = site.started()
    f.stop(0)
    f.tell(R.SET_MEM_TABLE, MemoryTable(()))  # now its areas are not in memory
    assert f.try_to_tell(R.SET_VRING_KICK, VringFd(0), [f.queues[0].kick_fd]) != 0
    assert "not in one region of guest memory" in site.of(RequestRefused)[0].reason
    f.share()
    f.connect_fds(0)
    assert f.request(f.queues[0], b"a", 1) == b"a"


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


def test_rule_12_in_band_set_vring_kick_without_descriptor_starts_a_ring(site: DeviceSite) -> None:
    site.open(Inband)
    f = site.connect()
    f.negotiate()
    f.open_channel()
    f.share()
    queue = f.make_queue(0)
    head = queue.add([], [(f.take(16), 16)])
    f.place(0)
    f.enable(0)
    f.tell(R.SET_VRING_KICK, VringFd(0, nofd=True))
    f.acknowledge(f.hear())
    assert [done for done, _ in f.wait(queue)] == [head]


def test_rule_12_stopped_ring_stays_so_however_often_it_is_kicked(site: DeviceSite) -> None:
    backend, f = site.started()
    f.request(f.queues[0], b"a", 1)
    f.stop(0)
    f.queues[0].add([(f.take(16), 1)], [])
    os.eventfd_write(f.queues[0].kick_fd, 1)
    assert f.ask_number(R.GET_FEATURES)
    assert not backend.queue(0).started and f.queues[0].used_index == 1
    f.connect_fds(0)  # the same ring starts again
    assert f.wait(f.queues[0])


def test_rule_12_a_kick_in_band_is_one_beside_descriptors(site: DeviceSite) -> None:
    site.open(Inband)
    f = site.connect()
    (queue,) = f.start()
    for _ in range(3):
        queue.add([(f.take(16), 1)], [])
        f.tell(R.VRING_KICK, VringState(0, 0))
        assert f.wait(queue)


def test_rule_13_without_protocol_features_rings_are_enabled_from_the_start(site: DeviceSite) -> None:
    class Low(Echo):
        features = 30  # the bits that who tests for 30 instead of bit 30 finds

    backend = site.open(Low)
    f = site.connect()
    f.start(features=RING_FEATURES | VERSION_1 | Low.features)
    assert f.request(f.queues[0], b"x", 1) == b"x"
    assert backend.queue(1).enabled


def test_rule_13_with_them_a_ring_waits_for_enable(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.start()
    assert not backend.queue(1).enabled
    f.enable(0, False)
    queue = f.queues[0]
    source = f.take(16)
    queue.add([(source, 1)], [])
    queue.kick()
    site.wait(lambda: backend.queue(0).started)
    with pytest.raises(NotRunning):  # nobody serves it
        site.call(backend.kick, 0)
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


@pytest.mark.parametrize("pushed", [[], [2], [1, 2], [2, 3]])
def test_rule_15_what_a_device_keeps_comes_again_after_a_stop(site: DeviceSite, pushed: list[int]) -> None:
    """A console has a driver's buffers for as long as there is nothing to say: a pause must not lose them."""

    class Keeper(Echo):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            self.kept: list[Chain] = []

        def handle(self, queue: VirtQueue, chain: Chain) -> None:
            self.kept.append(chain)
            if len(self.kept) == 4:
                for place in pushed:
                    queue.push(self.kept[place])

    backend = site.open(Keeper)
    device = backend.device
    assert isinstance(device, Keeper)
    f = site.connect()
    (queue,) = f.start()
    heads = [queue.add([], [(f.take(16), 1)], publish=place == 3) for place in range(4)]
    queue.kick()
    site.wait(lambda: len(device.kept) == 4)
    site.wait(lambda: queue.used_index == len(pushed))
    kept = device.kept[:]
    back = 4 if not pushed else 3 - max(pushed)  # those that were popped after the last that was pushed
    assert f.stop(0) == 4 - back
    with pytest.raises(QueueError):
        kept[0].write(b"x")
    device.kept.clear()
    f.connect_fds(0)
    os.eventfd_write(queue.kick_fd, 1)
    site.wait(lambda: len(device.kept) == back)
    assert [chain.head for chain in device.kept] == heads[4 - back :]


def test_rule_16_call_descriptors_are_swapped_live_and_signalled_once(site: DeviceSite) -> None:
    site.open()
    f = site.connect()
    (queue,) = f.start(features=~F_NOTIFY_ON_EMPTY)  # which calls again whenever there is nothing to do
    f.request(queue, b"x", 1)
    f.enable(1)  # the worker paused for that, so it is done with the request, calls and all
    fresh = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        f.tell(R.SET_VRING_CALL, VringFd(0), [fresh])
        assert os.eventfd_read(fresh) == 1
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


def test_rule_19_an_area_lies_in_one_region(site: DeviceSite) -> None:
    site.open()
    f = site.connect()
    f.negotiate()
    half = f.size // 2
    for start in (0, half):  # neighbours, for the guest and for the front-end
        region = MemoryRegion(GUEST_BASE + start, half, USER_BASE + start, start)
        f.tell(R.ADD_MEM_REG, SingleMemoryRegion(region), [f.memfd.fileno()])
    f.tell(R.SET_VRING_NUM, VringState(0, 64))
    flags = VringAddr.unpack(bytes(40)).flags
    edge = USER_BASE + half
    for areas in ((edge - 16, edge, edge), (edge, edge - 4, edge), (edge, edge, edge - 2)):
        assert f.try_to_tell(R.SET_VRING_ADDR, VringAddr(0, flags, *areas, 0)) != 0
    f.tell(R.SET_VRING_ADDR, VringAddr(0, flags, edge - 1024, edge, edge + 4096, 0))


def test_rule_20_addresses_may_be_set_while_the_ring_runs(site: DeviceSite) -> None:
    _, f = site.started()
    assert f.request(f.queues[0], b"a", 1) == b"a"
    f.tell(R.SET_VRING_ADDR, f.addresses(0))
    assert f.request(f.queues[0], b"b", 1) == b"b"


def test_rule_21_the_first_notification_after_a_start_is_unconditional(site: DeviceSite) -> None:
    site.open()
    f = site.connect()
    (queue,) = f.start(features=~F_NOTIFY_ON_EMPTY)  # which would call for another reason
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
    os.eventfd_read(queue.call_fd)
    queue.add([(f.take(16), 1)], [])
    os.eventfd_write(queue.kick_fd, 1)
    site.wait(lambda: queue.used_index == 3)
    assert f.stop(0) == 3 and not pending(queue.call_fd)  # and the second one is not


def test_rule_22_an_indirect_chain_may_be_longer_than_the_queue(site: DeviceSite) -> None:
    _, f = site.started()
    queue = f.queues[0]
    data = f.take(4096)
    table = f.take(515 * 16)
    head = queue.add([(data + i, 1) for i in range(515)], [], table=table)
    queue.kick()
    assert f.wait(queue) == [(head, 0)]
