# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory that changes, is slow or goes while requests are in flight; nobody else notices."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doorbelld.devices.blk import Blk
from doorbelld.ring.driver import DriverQueue
from doorbelld.vhost.backend import Backend
from doorbelld.vhost.events import State
from doorbelld.vhost.frontend import GUEST_BASE, USER_BASE, Frontend
from doorbelld.wire.vhost_messages import MemoryRegion, MemoryTable, ProtocolFeature, SingleMemoryRegion, VringState
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.absent import PAGE, AbsentPage, absent_page
from support.devicesite import DeviceSite
from support.fdcount import mapped_memory

IN, OUT = 0, 1
SIZE = 1 << 20
NO_SLOTS = ~int(ProtocolFeature.CONFIGURE_MEM_SLOTS)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"disk" * 4096)
    return path


def disk_request(f: Frontend, queue: DriverQueue, kind: int, data: int) -> int:
    """Ask to move a page between the beginning of the disk and *data*; the guest address of the status byte."""
    header, status = f.take(16, 16), f.take(1, 1)
    f.memory.write(header, struct.pack("<IIQ", kind, 0, 0))
    f.memory.write(status, b"\xee")
    inward, outward = [(header, 16)], [(status, 1)]
    queue.add(inward + [(data, PAGE)] * (kind == OUT), [(data, PAGE)] * (kind == IN) + outward)
    queue.kick()
    return status


@contextmanager
def slow_page(backend: Backend, addr: int) -> Iterator[AbsentPage]:
    """Have the device wait when it touches the page at *addr*, as for a disk that is slow."""
    (view,) = backend._engine.memory.views(addr, PAGE)
    with absent_page(view) as page:
        del view
        yield page


def disk(site: DeviceSite, image: Path, inline: bool, queues: int = 1) -> tuple[Backend, Frontend]:
    """Make a disk that serves requests in the worker's thread, or has io_uring (or threads) do it."""
    backend, f = site.started("blk", queues, path=str(image))
    assert isinstance(backend.device, Blk)
    backend.device.disk.inline = inline
    for queue in f.queues.values():
        os.eventfd_write(queue.kick_fd, 1)
    site.wait(lambda: all(backend.queue(index).started for index in f.queues))
    return backend, f


@pytest.mark.parametrize("kind", [IN, OUT])
@pytest.mark.parametrize("inline", [True, False])
def test_memory_goes_while_a_disk_request_is_in_flight(
    watched: DeviceSite, image: Path, inline: bool, kind: int
) -> None:
    backend, f = disk(watched, image, inline)
    data = GUEST_BASE + SIZE // 2
    with slow_page(backend, data) as page:
        disk_request(f, f.queues[0], kind, data)
        page.wait_for_touch()  # whoever serves it is in the middle of that
        os.ftruncate(f.memfd.fileno(), SIZE // 2)
    watched.told_off(backend, "truncated")


@pytest.mark.parametrize("inline", [True, False])
def test_memory_goes_while_many_disk_requests_are_in_flight(watched: DeviceSite, image: Path, inline: bool) -> None:
    backend, f = disk(watched, image, inline, queues=2)
    for number in range(32):
        disk_request(f, f.queues[number % 2], number % 2, f.take(PAGE))
        if number == 16:
            os.ftruncate(f.memfd.fileno(), PAGE)
    watched.told_off(backend, "truncated")


@pytest.mark.parametrize("inline", [True, False])
def test_rule_15_get_vring_base_waits_for_a_slow_disk_request(watched: DeviceSite, image: Path, inline: bool) -> None:
    backend, f = disk(watched, image, inline, queues=2)
    data = f.take(PAGE)
    with slow_page(backend, data) as page:
        status = disk_request(f, f.queues[1], IN, data)
        page.wait_for_touch()
        f.send(R.GET_VRING_BASE, VringState(1, 0))
        other = watched.open()
        assert watched.connect(other).ask_number(R.GET_FEATURES)  # the event loop goes on meanwhile
        assert not select.select([f.sock], [], [], 0)[0] and f.memory.read(status, 1) == b"\xee"
        page.fill(b"")
    assert f.answer().payload == VringState(1, 1)
    assert f.memory.read(status, 1) == b"\0" and f.memory.read(data, 4) == b"disk"


@pytest.mark.parametrize("how", ["disconnect", "close", "shutdown"])
def test_a_front_end_is_let_go_after_its_slow_request(watched: DeviceSite, image: Path, how: str) -> None:
    """Rule 30: only then is its memory its own again."""
    backend, f = disk(watched, image, inline=False)
    data = f.take(PAGE)
    with slow_page(backend, data) as page:
        status = disk_request(f, f.queues[0], IN, data)
        page.wait_for_touch()
        f.sock.settimeout(None)
        if how == "disconnect":
            watched.call(backend.disconnect, "somebody wants it")
        elif how == "close":
            closing = watched.begin(backend.close())
        else:
            os.eventfd_write(f.queues[0].kick_fd, 1)
            f.sock.shutdown(1)
        assert watched.call(lambda: backend.session is not None)
        assert len(backend.memory_regions) == 1 and f.memory.read(status, 1) == b"\xee"
        page.fill(b"")
    assert f.sock.recv(1) == b""
    assert f.memory.read(status, 1) == b"\0"
    if how == "close":
        closing.result()
        assert backend.state is State.STOPPED
    else:
        watched.wait_state(backend, State.LISTENING)


def test_memory_tables_of_eight_regions_again_and_again(watched: DeviceSite) -> None:
    """While its ring runs; what was mapped before goes each time."""
    backend = watched.open()
    f = watched.connect(backend)
    (queue,) = f.start(protocol=NO_SLOTS)
    eighth = f.size // 8
    for turn in range(100):
        regions = tuple(
            MemoryRegion(GUEST_BASE + at, eighth, USER_BASE + at, at)
            for at in range(0, f.size, eighth)[:: -1 if turn % 2 else 1]
        )
        queue.add([], [(f.take(16, 16), 16)])
        queue.kick()
        f.tell(R.SET_MEM_TABLE, MemoryTable(regions), [f.memfd.fileno()] * 8)
        assert f.wait(queue)
    inode = os.fstat(f.memfd.fileno()).st_ino
    ours = sum(count for file, count in mapped_memory().items() if file.endswith(f" {inode}"))
    assert ours <= 8 + 1  # and the front-end's own; neighbours may be one mapping for the kernel
    assert not backend.queue(0).broken


def test_a_ring_whose_memory_is_taken_from_under_it_for_good(watched: DeviceSite) -> None:
    backend, f = watched.started()
    f.request(f.queues[0], b"a", 1)
    f.tell(R.SET_VRING_NUM, VringState(1, 64))
    f.tell(R.REM_MEM_REG, SingleMemoryRegion(MemoryRegion(GUEST_BASE, f.size, USER_BASE, 0)))
    for _ in range(10):
        os.eventfd_write(f.queues[0].kick_fd, 1)
        watched.call(backend.kick, 0)
    assert f.ask_number(R.GET_FEATURES) and backend.queue(0).started and not backend.queue(0).broken
    assert f.stop(0) == 1


def test_one_memory_behind_two_devices(watched: DeviceSite) -> None:
    """A machine's devices all have its memory: each notices for itself."""
    first, f = watched.started()
    second = watched.open("rng")
    g = watched.connect(second)
    g.memfd.close()
    g.memfd = f.memfd.dup()
    g.memory.set_table([(GUEST_BASE, g.size, USER_BASE, 0, g.memfd.fileno())])
    g._used = f.size // 2
    g.start()
    assert f.request(f.queues[0], b"a", 1) == b"a" and len(g.request(g.queues[0], room=8)) == 8
    os.ftruncate(f.memfd.fileno(), 0)
    for frontend in (f, g):
        os.eventfd_write(frontend.queues[0].kick_fd, 1)
    assert all(watched.farewell(count).broken for count in (1, 2))
    assert "truncated" in first.reason and "truncated" in second.reason


def test_used_and_available_areas_that_are_the_same(watched: DeviceSite) -> None:
    """Rings may lie anywhere, also on each other: what comes of that is the driver's, and a reason."""
    backend = watched.open()
    f = watched.connect(backend)
    f.negotiate()
    f.share()
    queue = f.make_queue(0)
    f.place(0)
    areas = f.addresses(0)
    f.tell(R.SET_VRING_ADDR, type(areas)(0, areas.flags, areas.desc, areas.avail & ~3, areas.avail & ~3, 0))
    f.connect_fds(0)
    f.enable(0)
    source = f.take(16)
    for _ in range(8):
        queue.add([(source, 4)], [])
    os.eventfd_write(queue.kick_fd, 1)
    watched.wait(lambda: backend.queue(0).started)
    f.stop(0)
    assert f.ask_number(R.GET_FEATURES)
