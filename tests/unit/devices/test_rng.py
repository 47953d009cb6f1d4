# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The entropy device."""

from __future__ import annotations

import time

from doorbelld.devices.rng_io import PIECE_MAX
from doorbelld.vhost.frontend import GUEST_BASE
from support.devicesite import DeviceSite


def test_it_fills_what_the_driver_leaves_room_for(site: DeviceSite) -> None:
    backend, f = site.started("rng")
    (queue,) = f.queues.values()
    seen = {f.request(queue, room=32) for _ in range(50)}
    assert len(seen) == 50 and {len(each) for each in seen} == {32}
    assert backend.queue(0).errors == 0


def test_buffers_in_pieces_are_filled_and_nothing_else(site: DeviceSite) -> None:
    _, f = site.started("rng")
    (queue,) = f.queues.values()
    start = f.take(4096)
    queue.add([], [(start, 1), (start + 100, 33), (start + 200, 300)])
    queue.kick()
    assert f.wait(queue)[0][1] == 334
    memory = f.memory.read(start, 600)
    assert memory[1:100] == bytes(99) and memory[133:200] == bytes(67) and memory[500:] == bytes(100)
    assert memory[100:133] != bytes(33) and memory[480:500] != bytes(20)


def test_a_request_for_much_gets_some(site: DeviceSite) -> None:
    backend = site.open("rng")
    f = site.connect(backend, memory_size=1 << 22)
    (queue,) = f.start()
    assert len(f.request(queue, room=1 << 21)) == PIECE_MAX


def test_a_request_without_room_is_an_error_and_done(site: DeviceSite) -> None:
    backend, f = site.started("rng")
    (queue,) = f.queues.values()
    assert f.request(queue, b"data") == b""
    queue.add([], [(GUEST_BASE + f.size, 8)])  # not in memory
    queue.kick()
    assert f.wait(queue)[0][1] == 0
    assert backend.queue(0).errors == 2


def test_a_rate_is_kept(site: DeviceSite) -> None:
    _, f = site.started("rng", rate=80_000)
    (queue,) = f.queues.values()
    began = time.monotonic()
    got = 0
    while got < 20_000:
        got += len(f.request(queue, room=1000))
    least = (got - 80_000 / 8) / 80_000  # the bucket was full
    assert time.monotonic() - began >= least * 0.99


def test_the_smallest_rate_gives_something(site: DeviceSite) -> None:
    _, f = site.started("rng", rate=8)
    (queue,) = f.queues.values()
    assert len(f.request(queue, room=100)) == 1
    assert len(f.request(queue, room=100)) == 1


def test_a_queue_that_waits_for_its_rate_can_be_stopped(site: DeviceSite) -> None:
    backend, f = site.started("rng", rate=8)
    (queue,) = f.queues.values()
    f.request(queue, room=100)
    queue.add([], [(f.take(64), 64)])
    queue.kick()
    base = f.stop(0)
    assert base == 1 + len(queue.reap())  # the request that waits is not lost: it is still the next
    assert backend.queue(0).in_flight == 0
