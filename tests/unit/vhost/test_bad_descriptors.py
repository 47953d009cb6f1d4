# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Front-ends whose descriptors are not what they should be, or more than there is room for; nobody else notices."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from doorbelld.vhost.events import FrontendDetached, RequestRefused, State
from doorbelld.vhost.frontend import GUEST_BASE, USER_BASE, BackendFailed
from doorbelld.wire.vhost_messages import MemoryRegion, ProtocolFeature, SingleMemoryRegion, VringFd, VringState
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.devicesite import DeviceSite
from support.fdcount import no_descriptor_left
from support.fullfd import KINDS, full

SIZE = 1 << 20
F_ADD_SEALS, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE = 1033, 0x8, 0x10
RINGS = [R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR]


def memory_file(size: int = SIZE, seals: int = 0) -> int:
    fd = os.memfd_create("memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


def opened_anew(flags: int) -> int:
    fd = memory_file()
    again = os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
    os.close(fd)
    return again


def epoll_set() -> int:
    with select.epoll() as made:
        return os.dup(made.fileno())


def one_end(ends: tuple[int, int]) -> int:
    os.close(ends[1])
    return ends[0]


def unix_socket() -> int:
    return socket.socket(socket.AF_UNIX).detach()


@contextmanager
def made(make: Callable[[], int]) -> Iterator[int]:
    fd = make()
    try:
        yield fd
    finally:
        os.close(fd)


NO_SIGNALS: dict[str, Callable[[], int]] = {
    "a file": memory_file,
    "a directory": lambda: os.open("/", os.O_RDONLY),
    "an epoll set": epoll_set,
    "a device": lambda: os.open("/dev/zero", os.O_RDWR),
    "a terminal's master": lambda: os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY),
    "a path": lambda: os.open("/", os.O_PATH),
    "a process": lambda: os.pidfd_open(os.getpid()),
}


@pytest.mark.parametrize("request_", RINGS, ids=str)
@pytest.mark.parametrize("what", NO_SIGNALS)
def test_what_can_not_signal_is_refused_and_the_ring_goes_on(watched: DeviceSite, request_: R, what: str) -> None:
    backend, f = watched.started()
    assert f.request(f.queues[0], b"a", 1) == b"a"
    with made(NO_SIGNALS[what]) as fd:
        assert f.try_to_tell(request_, VringFd(0), [fd]) != 0
    assert "neither an eventfd" in watched.of(RequestRefused)[0].reason
    assert f.request(f.queues[0], b"b", 1) == b"b" and not backend.queue(0).broken


@pytest.mark.parametrize("request_", RINGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_what_would_block_blocks_nobody(watched: DeviceSite, request_: R, kind: str) -> None:
    """Full, and blocking: whoever writes to it, or reads from it, would wait for ever."""
    backend, f = watched.started()
    queue = f.queues[0]
    with full(kind) as fd:
        f.request(queue, b"a", 1)
        f.tell(request_, VringFd(0), [fd])
        for index in range(2, 5):
            queue.add([(f.take(16), 1)], [])
            watched.call(backend.kick, 0)
            watched.wait(lambda index=index: queue.used_index == index)
        watched.call(backend.notify, 0)
        queue.set_available_index(1000)  # so that it breaks, and the error descriptor is told
        watched.call(backend.kick, 0)
        assert "available index" in watched.farewell().reason


@pytest.mark.parametrize("request_", RINGS, ids=str)
def test_an_index_that_no_device_of_ours_has(watched: DeviceSite, request_: R) -> None:
    backend, f = watched.started()
    eventfd = os.eventfd(0)
    try:
        assert f.try_to_tell(request_, VringFd(255), [eventfd]) != 0
        assert "no ring 255" in watched.of(RequestRefused)[0].reason
        assert f.request(f.queues[0], b"a", 1) == b"a"
        f.send(request_, VringFd(255), [eventfd])  # and if it does not ask, it is told by the end
    finally:
        os.close(eventfd)
    watched.told_off(backend, "no ring 255")


NO_MEMORY: dict[str, Callable[[], int]] = {
    "a file that is too short": lambda: memory_file(SIZE - 1),
    "a file that may not be written": lambda: memory_file(seals=F_SEAL_WRITE),
    "a file that may be written no more": lambda: memory_file(seals=F_SEAL_FUTURE_WRITE),
    "a file to be read only": lambda: opened_anew(os.O_RDONLY),
    "a path": lambda: opened_anew(os.O_PATH),
    "a directory": lambda: os.open("/", os.O_RDONLY),
    "a pipe": lambda: one_end(os.pipe()),
    "a socket": unix_socket,
    "an eventfd": lambda: os.eventfd(0),
    "an epoll set": epoll_set,
    "nothing": lambda: os.open("/dev/null", os.O_RDWR),
}


@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize("what", NO_MEMORY)
def test_what_is_no_memory_is_named_when_it_is_used(watched: DeviceSite, what: str, slots: bool) -> None:
    """Rule 26: it may be a region that no ring and no buffer is in."""
    backend = watched.open()
    f = watched.connect(backend, memory_size=SIZE)
    f.negotiate(protocol=~0 if slots else ~int(ProtocolFeature.CONFIGURE_MEM_SLOTS))
    real, f.memfd = f.memfd, type(f.memfd)(NO_MEMORY[what]())
    with real:
        f.share()
    (region,) = backend.memory_regions
    assert region.guest_addr == GUEST_BASE and region.error
    f.make_queue(0)
    f.tell(R.SET_VRING_NUM, VringState(0, 64))
    assert f.try_to_tell(R.SET_VRING_ADDR, f.addresses(0)) != 0
    assert region.error in watched.of(RequestRefused)[0].reason
    assert backend.state is State.CONNECTED


def test_memory_of_which_everybody_has_another(watched: DeviceSite) -> None:
    """A map of /dev/zero is never shared: the ring stays empty for us."""
    backend = watched.open()
    f = watched.connect(backend, memory_size=SIZE)
    real, f.memfd = f.memfd, type(f.memfd)(os.open("/dev/zero", os.O_RDWR))
    with real:
        (queue,) = f.start()
    queue.add([(f.take(16), 1)], [])
    queue.kick()
    watched.wait(lambda: backend.queue(0).started and backend.queue(0).kicks)
    assert backend.queue(0).available_index == 0 and backend.state is State.RUNNING


def test_memory_at_the_end_of_all_addresses(watched: DeviceSite) -> None:
    backend = watched.open()
    f = watched.connect(backend)
    f.negotiate()
    top = 1 << 64
    for guest, user, offset in ((top - SIZE, USER_BASE, 0), (GUEST_BASE, top - SIZE, 0), (0, 0, top - SIZE)):
        region = MemoryRegion(guest, 2 * SIZE, user, offset)
        assert f.try_to_tell(R.ADD_MEM_REG, SingleMemoryRegion(region), [f.memfd.fileno()]) != 0
    assert backend.memory_regions == []


def test_descriptors_for_which_we_have_no_room_are_not_held_against_it(watched: DeviceSite) -> None:
    backend = watched.open()
    f = watched.connect(backend)
    f.negotiate()
    watched.wait_state(backend, State.CONNECTED)
    eventfd = os.eventfd(0)
    try:
        with no_descriptor_left():
            f.send_raw(struct.pack("=IIIQ", R.SET_VRING_ERR, 1, 8, 0), [eventfd])
            end = watched.farewell()
    finally:
        os.close(eventfd)
    assert not end.broken and "no descriptor is left" in end.reason
    watched.wait_state(backend, State.LISTENING)


def test_a_front_end_that_goes_while_no_descriptor_is_left(watched: DeviceSite) -> None:
    backend, f = watched.started(queues=2)
    f.request(f.queues[0], b"a", 1)
    with no_descriptor_left():
        f.sock.shutdown(socket.SHUT_RDWR)
        watched.farewell()
        assert backend.memory_regions == [] and not backend.queue(0).started
    fresh = watched.connect(backend)
    fresh.start()
    assert fresh.request(fresh.queues[0], b"b", 1) == b"b"


def test_a_refusal_without_acks_ends_the_connection_for_that_one_only(watched: DeviceSite) -> None:
    backend = watched.open()
    f = watched.connect(backend)
    f.start(protocol=~int(ProtocolFeature.REPLY_ACK))
    with made(memory_file) as fd, pytest.raises(BackendFailed):
        f.send(R.SET_VRING_CALL, VringFd(0), [fd])
        f.ask_number(R.GET_FEATURES)
    watched.told_off(backend, "SET_VRING_CALL: its descriptor is neither")
    assert len(watched.of(FrontendDetached)) == 1
