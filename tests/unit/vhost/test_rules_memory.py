# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules that back-ends break: on guest memory (23 to 28), and on who has the device (30)."""

from __future__ import annotations

import os
import struct
import threading

import pytest
from doorbelld.vhost.backend import _hung_up
from doorbelld.vhost.events import FrontendRefused, RequestRefused, State
from doorbelld.vhost.frontend import GUEST_BASE, USER_BASE, BackendFailed
from doorbelld.wire.vhost_messages import (
    MemoryRegion,
    ProtocolFeature,
    SingleMemoryRegion,
    VringState,
)
from doorbelld.wire.vhost_requests import FrontendRequest
from support.devicesite import DeviceSite, Echo, pending, readable

R = FrontendRequest
HEADER = struct.Struct("=III")
NO_ACKS = ~int(ProtocolFeature.REPLY_ACK)
VERSION_1 = 1 << 32


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
