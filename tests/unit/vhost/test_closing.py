# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a device, or of its front-end, in the middle of something; and descriptors are not inherited."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from doorbelld.fds.owned import Fd
from doorbelld.ring.queue import VirtQueue
from doorbelld.ring.worker import Worker
from doorbelld.vhost import backend as backend_module
from doorbelld.vhost.backend import Backend
from doorbelld.vhost.events import FrontendRefused, State
from doorbelld.vhost.frontend import BackendFailed, Frontend
from doorbelld.wire.vhost_messages import MemoryTable, ProtocolFeature, VringFd
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.devicesite import DEADLINE, DeviceSite, Echo
from support.fdcount import mapped_memory, no_descriptor_left, open_fds

NO_SLOTS = ~int(ProtocolFeature.CONFIGURE_MEM_SLOTS)


def busy(site: DeviceSite, **options: Any) -> tuple[Backend, Frontend, threading.Event]:
    """Make a device that is in the middle of a request until the event is set."""
    backend, f = site.started(**options)
    device = backend.device
    assert isinstance(device, Echo)
    device.gate = threading.Event()
    queue = f.queues[0]
    queue.add([(f.take(16), 1)], [])
    queue.kick()
    site.wait(lambda: backend.queue(0).in_flight)
    return backend, f, device.gate


def gone(f: Frontend) -> bool:
    with pytest.raises(BackendFailed, match="ended the connection"):
        f.answer()
    return True


@pytest.mark.parametrize("how", ["idle", "half a message", "answers that nobody reads"])
def test_closing_while_a_front_end(site: DeviceSite, how: str) -> None:
    backend = site.open()
    f = site.connect()
    f.negotiate()
    if how == "half a message":
        f.send_raw(b"\5\0\0\0\1\0", [f.memfd.fileno()])
    elif how != "idle":
        f.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                f.sock.send(b"\1\0\0\0\1\0\0\0\0\0\0\0" * 64)
        f.sock.settimeout(DEADLINE)
    site.run(backend.close())
    assert site.farewell().reason == "the device is removed" and backend.state is State.STOPPED


def test_closing_while_memory_is_being_changed(site: DeviceSite) -> None:
    backend, f, gate = busy(site)
    f.send(R.SET_MEM_TABLE, MemoryTable(()))
    site.wait(lambda: site.call(lambda: backend._engine._lock.locked()))
    closing = site.begin(backend.close())
    assert not closing.done() and len(backend.memory_regions) == 1
    gate.set()
    closing.result(DEADLINE)
    assert gone(f) and backend.state is State.STOPPED and not mapped_memory_of(f)


def mapped_memory_of(f: Frontend) -> int:
    """Count the mappings of its memory that are not its own."""
    inode = os.fstat(f.memfd.fileno()).st_ino
    return sum(count for file, count in mapped_memory().items() if file.endswith(f" {inode}")) - 1


def test_closing_twice_at_once_waits_for_the_end_both_times(site: DeviceSite) -> None:
    backend, _, gate = busy(site)
    closings = [site.begin(backend.close()) for _ in range(2)]
    site.call(lambda: None)
    assert not any(closing.done() for closing in closings)
    gate.set()
    for closing in closings:
        closing.result(DEADLINE)
    assert backend.state is State.STOPPED
    device = backend.device
    assert isinstance(device, Echo) and device.hooks.count(("close", None)) == 1


def test_a_closing_that_is_cancelled_goes_on(site: DeviceSite) -> None:
    """Whoever called may have lost its patience: a device half closed is of use to nobody."""
    backend, f, gate = busy(site)

    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(backend.close(), 0.01)

    site.run(impatient())
    assert not os.path.exists(backend.spec.socket)
    gate.set()
    assert gone(f)
    site.run(backend.close())
    assert backend.state is State.STOPPED and not mapped_memory_of(f)


def test_closing_while_it_looks_for_a_front_end(site: DeviceSite) -> None:
    backend = site.open(connect=True, socket=f"{site.folder}/nobody")
    site.wait(lambda: site.of(FrontendRefused))
    site.run(backend.close())
    assert backend.state is State.STOPPED


def test_closing_a_connection_of_its_own(site: DeviceSite) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{site.folder}/front")
        listening.listen()
        listening.settimeout(DEADLINE)
        backend = site.open(connect=True, socket=f"{site.folder}/front")
        with Frontend(listening.accept()[0], timeout=DEADLINE) as f:
            f.start()
            assert f.request(f.queues[0], b"a", 1) == b"a"
            site.run(backend.close())
            assert gone(f)
        assert len(site.farewell().reason) and backend.state is State.STOPPED


def test_looking_for_a_front_end_goes_on_after_there_was_no_descriptor(
    site: DeviceSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "_RETRY_MIN", 0.01)
    monkeypatch.setattr(backend_module, "_RETRY_MAX", 0.01)
    backend = site.open(connect=True, socket=f"{site.folder}/front")
    with no_descriptor_left():
        site.wait(lambda: any("Too many open files" in event.reason for event in site.of(FrontendRefused)))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{site.folder}/front")
        listening.listen()
        listening.settimeout(DEADLINE)
        with Frontend(listening.accept()[0], timeout=DEADLINE) as f:
            assert f.ask_number(R.GET_FEATURES) == backend.offered_features


@pytest.mark.parametrize("hook", ["stop", "reset", "detach", "attach"])
def test_a_hook_that_fails_does_not_keep_the_memory(site: DeviceSite, hook: str) -> None:
    """When the connection is closed, nothing touches the front-end's memory any more: whatever the device does."""

    class Bad(Echo):
        bad = True

        def fail(self, name: str) -> None:
            if name == hook and self.bad:
                raise OSError(12, "out of luck")

        def attach(self, worker: Worker, queue: VirtQueue) -> None:
            super().attach(worker, queue)
            if queue.index:
                self.fail("attach")

        def detach(self, worker: Worker, queue: VirtQueue) -> None:
            self.fail("detach")
            super().detach(worker, queue)

        def stop(self, queue: VirtQueue) -> None:
            super().stop(queue)
            self.fail("stop")

        def reset(self) -> None:
            self.fail("reset")

    backend = site.open(Bad)
    f = site.connect()
    device = backend.device
    assert isinstance(device, Bad)
    if hook == "attach":
        with pytest.raises(BackendFailed):
            f.start(2)
    else:
        f.start(2)
        f.request(f.queues[0], b"a", 1)
        f.request(f.queues[1], b"b", 1)
        site.call(backend.disconnect, "enough")
    end = site.farewell()
    assert "out of luck" in end.reason and ("enough" in end.reason) is (hook != "attach")
    assert not mapped_memory_of(f) and not any(queue.started for queue in backend.queues())
    device.bad = False
    fresh = site.connect(backend)
    fresh.start(2)
    for index in range(2):
        assert fresh.request(fresh.queues[index], b"c", 1) == b"c"


class Inband(Echo):
    protocol_features = ProtocolFeature.INBAND_NOTIFICATIONS | ProtocolFeature.HOST_NOTIFIER

    def start(self, queue: VirtQueue) -> None:
        assert self.host_notifier(queue, (Fd(os.memfd_create("page")), 4096, 0))


KINDS: dict[str, tuple[type[Echo] | str, dict[str, Any]]] = {
    "a Python device": (Inband, {}),
    "rng with a timer": ("rng", {"rate": "1M"}),
    "blk": ("blk", {"path": "disk"}),
    "blk with threads": ("blk", {"path": "disk", "aio": "threads"}),
}


@pytest.mark.parametrize("what", KINDS)
def test_no_descriptor_is_inherited(site: DeviceSite, what: str) -> None:
    """Whatever the daemon executes: a helper, or itself anew."""
    kind, options = KINDS[what]
    if "path" in options:
        options = {**options, "path": f"{site.folder}/disk"}
        Path(options["path"]).write_bytes(bytes(1 << 16))
    before = open_fds()
    backend = site.open(kind, **options)
    f = site.connect()
    f.negotiate()
    f.open_channel()
    f.start()
    err = os.eventfd(0)
    f.tell(R.SET_VRING_ERR, VringFd(0), [err])
    os.close(err)
    assert backend.queue(0).started
    fresh = {fd: target for fd, target in open_fds().items() if fd not in before}
    assert len(fresh) > 10
    assert not [target for fd, target in fresh.items() if not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC]
