# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Rings as long as a front-end likes: QEMU 10.0 takes 1024 entries for each queue, crosvm 32768."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from doorbelld.devices.blk import Blk
from doorbelld.vhost.events import FrontendDetached, State
from doorbelld.vhost.frontend import Frontend
from doorbelld.wire.vhost_messages import VringState
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.devicesite import DeviceSite

SECTOR = 512
LARGEST = 32768
MEMORY = 4 << 20


def open_device(site: DeviceSite, kind: str, folder: Path, **options: object) -> None:
    if kind == "blk":
        image = folder / "disk"
        image.write_bytes(b"".join(bytes([number]) * SECTOR for number in range(64)))
        options["path"] = str(image)
    site.open(kind, **options)


def serve_one(f: Frontend, kind: str) -> None:
    queue = f.queues[0]
    match kind:
        case "blk":
            answer = f.request(queue, struct.pack("<IIQ", 0, 0, 5), SECTOR + 1)
            assert answer == bytes([5]) * SECTOR + b"\0"
        case "rng":
            assert len(f.request(queue, room=64)) == 64
        case "loopback":
            assert f.request(queue, b"hello", 5) == b"hello"


@pytest.mark.parametrize("num", [4, 128, 1024, LARGEST])
@pytest.mark.parametrize("kind", ["blk", "rng", "loopback"])
def test_default_device_takes_ring_of_any_size(site: DeviceSite, tmp_path: Path, kind: str, num: int) -> None:
    open_device(site, kind, tmp_path)
    f = site.connect(memory_size=MEMORY)
    f.start(num=num)
    for _ in range(3):
        serve_one(f, kind)
    assert site.backends[-1].queue(0).size == num


def test_ring_that_grows_and_shrinks_between_starts_is_served(site: DeviceSite, tmp_path: Path) -> None:
    open_device(site, "blk", tmp_path)
    f = site.connect(memory_size=4 * MEMORY)
    f.start(num=4)
    for num in (LARGEST, 8, 1024):
        serve_one(f, "blk")
        f.stop(0)
        f.make_queue(0, num)
        f.tell(R.SET_VRING_BASE, VringState(0, 0))
        f.place(0)
        f.connect_fds(0)
    serve_one(f, "blk")


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_disk_with_more_requests_than_it_defers_serves_all(site: DeviceSite, tmp_path: Path, aio: str) -> None:
    open_device(site, "blk", tmp_path, aio=aio)
    device = site.backends[0].device
    assert isinstance(device, Blk)
    device.disk.inline = False  # every request has to wait
    f = site.connect(memory_size=MEMORY)
    (queue,) = f.start(num=LARGEST)
    header, room = f.take(16), f.take(SECTOR + 1)
    f.memory.write(header, struct.pack("<IIQ", 0, 0, 7))
    for _ in range(2):
        heads = {queue.add([(header, 16)], [(room, SECTOR + 1)]) for _ in range(LARGEST // 2)}
        queue.kick()
        while heads:
            for head, written in f.wait(queue):
                assert written == SECTOR + 1
                heads.remove(head)
        assert f.memory.read(room, SECTOR + 1) == bytes([7]) * SECTOR + b"\0"
    assert device.counters() == {"inline": 0, "deferred": LARGEST}
    assert f.stop(0) == LARGEST


@pytest.mark.parametrize("acknowledged", [True, False])
def test_refusal_of_long_ring_names_key_and_cure(site: DeviceSite, tmp_path: Path, acknowledged: bool) -> None:
    open_device(site, "blk", tmp_path, **{"queue-size": 256})
    (backend,) = site.backends
    said = "SET_VRING_NUM: a ring of 1024 entries is longer than queue-size = 256 allows; set queue-size = 1024"
    f = site.connect()
    f.negotiate()
    if acknowledged:
        assert f.try_to_tell(R.SET_VRING_NUM, VringState(0, 1024)) != 0
    else:
        f.send(R.SET_VRING_NUM, VringState(0, 1024))
        end = site.farewell()
        assert end.broken and said in end.reason and "or leave queue-size out" in end.reason
        site.wait_state(backend, State.LISTENING)
    assert said in backend.fault
    f.close()
    site.farewell()
    with site.connect() as again:  # and fails again: what is wrong can be seen all the while
        again.negotiate()
        assert backend.state is State.CONNECTED and said in backend.fault
    site.wait(lambda: len(site.of(FrontendDetached)) == 2)
    site.wait_state(backend, State.LISTENING)
    assert said in backend.fault
    f = site.connect()
    f.start(num=256)
    serve_one(f, "blk")
    site.wait_state(backend, State.RUNNING)
    assert backend.fault == ""
