# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A device from the outside: states, events, what it shows of itself, and what can be done to it."""

from __future__ import annotations

import dataclasses
import os
import select
import socket
import stat
from typing import Any

import pytest
from doorbelld.errors import LimitExceeded, SocketInUse, SocketUnavailable
from doorbelld.fds.owned import Fd
from doorbelld.vhost import backend as backend_module
from doorbelld.vhost.access import parse_rules
from doorbelld.vhost.backend import Backend
from doorbelld.vhost.device import Device
from doorbelld.vhost.errors import NoSuchQueue, NotConnected, NotRunning
from doorbelld.vhost.events import (
    ConfigChanged,
    DeviceChanged,
    FrontendAttached,
    FrontendDetached,
    FrontendRefused,
    Negotiated,
    QueueChanged,
    State,
    StateChanged,
)
from doorbelld.vhost.frontend import GUEST_BASE, BackendFailed, Frontend
from doorbelld.vhost.spec import DeviceSpec
from doorbelld.wire.vhost_messages import ProtocolFeature, VringFd
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.devicesite import DEADLINE, DeviceSite, Echo


def test_a_life(site: DeviceSite) -> None:
    backend, f = site.started()
    assert f.request(f.queues[0], b"a", 1) == b"a"
    f.close()
    site.farewell()
    site.wait_state(backend, State.LISTENING)
    site.run(backend.close())
    changes = [(event.new, event.reason) for event in site.of(StateChanged)]
    assert changes == [
        (State.CONNECTED, ""),
        (State.RUNNING, ""),
        (State.LISTENING, "it closed its connection"),
        (State.STOPPED, "the device is removed"),
    ]
    (attached,), (detached,) = site.of(FrontendAttached), site.of(FrontendDetached)
    assert attached.who == detached.who and attached.who.pid == os.getpid()
    assert (detached.reason, detached.broken) == ("it closed its connection", False)
    assert site.of(Negotiated) and site.of(QueueChanged)
    device = backend.device
    assert isinstance(device, Echo)
    assert [name for name, _ in device.hooks] == ["ack", "start", "stop", "reset", "close"]
    assert not os.path.exists(backend.spec.socket)


def test_what_it_shows_of_itself(site: DeviceSite) -> None:
    backend = site.open()
    assert (backend.name, backend.virtio_id, backend.queue_count, backend.since) == ("dev0", 42, 2, 0)
    assert backend.who is None and backend.accepted_features == 0 and backend.memory_regions == []
    assert backend.queue(1).size == 0
    assert "ECHO_F_LOUD" in backend.feature_names(backend.offered_features)
    f = site.connect()
    f.start(2)
    for _ in range(3):
        f.request(f.queues[1], b"four", 4)
    assert backend.accepted_features == f.features and f.features >> 5 & 1
    assert backend.accepted_protocol_features == f.protocol_features
    assert "REPLY_ACK" in backend.protocol_feature_names(backend.accepted_protocol_features)
    assert backend.who is not None and backend.who.uid == os.getuid() and backend.since > 0
    assert [(r.guest_addr, r.size) for r in backend.memory_regions] == [(GUEST_BASE, f.size)]
    assert backend.config == Echo.config
    queue = backend.queues()[1]
    assert (queue.index, queue.size, queue.enabled, queue.started) == (1, 64, True, True)
    assert (queue.available_index, queue.used_index, queue.in_flight, queue.broken) == (3, 3, 0, "")
    assert (queue.requests, queue.errors) == (3, 0) and queue.kicks and queue.calls and queue.bytes == 24


def test_counters_outlive_front_ends(site: DeviceSite) -> None:
    backend, f = site.started()
    f.request(f.queues[0], b"a", 1)
    f.close()
    site.wait_state(backend, State.LISTENING)
    f = site.connect()
    f.start()
    f.request(f.queues[0], b"a", 1)
    assert backend.queue(0).requests == 2


def test_the_socket_has_its_owner_and_mode(site: DeviceSite) -> None:
    backend = site.open(mode="0600")
    assert stat.S_IMODE(os.stat(backend.spec.socket).st_mode) == 0o600
    spec = dataclasses.replace(backend.spec, mode=0o620, poll_us=50)
    site.call(backend.change, spec, True)
    assert stat.S_IMODE(os.stat(backend.spec.socket).st_mode) == 0o620
    assert backend.configured and site.of(DeviceChanged)
    with pytest.raises(SocketInUse):
        site.open(socket=backend.spec.socket)
    with pytest.raises(SocketUnavailable):
        site.open(socket="/proc/no/socket")


def test_a_connection_that_is_given(site: DeviceSite) -> None:
    ours, theirs = socket.socketpair()
    spec = DeviceSpec.parse("given", {"type": "echo"}, "device.given", lambda _: Echo)
    backend = site.call(lambda: Backend.open(spec, site.loop, site.emit, site.spare, connection=theirs))
    site.backends.append(backend)
    with Frontend(ours) as f:
        (queue,) = f.start()
        assert f.request(queue, b"a", 1) == b"a"
    site.wait_state(backend, State.STOPPED)
    assert site.states() == [State.CONNECTED, State.RUNNING, State.STOPPED]
    site.run(backend.close())
    assert len(site.of(StateChanged)) == 3


def test_a_connection_that_is_given_goes_with_what_can_not_be_made(site: DeviceSite) -> None:
    class Broken(Echo):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise LimitExceeded("no room")

    ours, theirs = socket.socketpair()
    spec = DeviceSpec.parse("given", {"type": "echo"}, "device.given", lambda _: Broken)
    with ours, pytest.raises(LimitExceeded):
        site.call(lambda: Backend.open(spec, site.loop, site.emit, site.spare, connection=theirs))
    assert theirs.fileno() == -1


def test_a_socket_that_is_given(site: DeviceSite) -> None:
    path = f"{site.folder}/given"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        given = Fd(os.dup(listening.fileno()))
    spec = DeviceSpec.parse("given", {"type": "echo", "socket": path}, "device.given", lambda _: Echo)
    backend = site.call(lambda: Backend.open(spec, site.loop, site.emit, site.spare, socket_given=given))
    site.backends.append(backend)
    assert site.connect(backend).ask_number(R.GET_QUEUE_NUM) == 2
    site.run(backend.close())
    assert os.path.exists(path)  # it is not ours to remove


def test_nothing_is_left_behind_when_there_is_no_room(site: DeviceSite, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, *_: Any) -> None:
            raise OSError(24, "Too many open files")

    monkeypatch.setattr(backend_module, "Engine", Full)
    with pytest.raises(LimitExceeded, match="LimitNOFILE"):
        site.open()
    assert os.listdir(site.folder) == []


def test_notify_kick_disconnect_reset(site: DeviceSite) -> None:
    backend, f = site.started()
    (queue,) = f.queues.values()
    with pytest.raises(NoSuchQueue, match="queues 0 to 1, not 2"):
        site.call(backend.notify, 2)
    for what in (backend.notify, backend.kick):
        with pytest.raises(NotRunning):
            site.call(what, 1)
    f.request(queue, b"a", 1)
    while select.select([queue.call_fd], [], [], 0)[0]:
        os.eventfd_read(queue.call_fd)
    site.call(backend.notify, 0)
    assert select.select([queue.call_fd], [], [], DEADLINE)[0]
    queue.add([(f.take(16), 1)], [])  # without a kick
    site.call(backend.kick, 0)
    assert f.wait(queue)
    site.call(backend.reset)
    site.wait(lambda: not backend.queue(0).started)
    assert f.ask_number(R.GET_STATUS) == 64
    with pytest.raises(NotRunning):
        site.call(backend.notify, 0)
    site.call(backend.disconnect, "enough")
    assert site.farewell().reason == "enough" and not site.farewell().broken
    site.wait_state(backend, State.LISTENING)
    for done in (lambda: backend.disconnect("again"), backend.reset):
        with pytest.raises(NotConnected):
            site.call(done)


def test_a_queue_without_a_call_descriptor_can_not_be_notified(site: DeviceSite) -> None:
    backend, f = site.started()
    f.request(f.queues[0], b"a", 1)
    f.tell(R.SET_VRING_CALL, VringFd(0, nofd=True))
    with pytest.raises(NotRunning, match="no call descriptor"):
        site.call(backend.notify, 0)


def test_a_config_change_is_told_upwards(site: DeviceSite) -> None:
    backend = site.open()
    backend.device.config_changed()
    site.wait(lambda: site.of(ConfigChanged))


def test_a_hook_that_fails_costs_the_front_end_only(site: DeviceSite) -> None:
    class Bad(Echo):
        def start(self, queue: object) -> None:
            raise RuntimeError("no")

    backend = site.open(Bad)
    with pytest.raises(BackendFailed):
        site.connect().start()
    end = site.farewell()
    assert end.broken and end.reason == "start() raised RuntimeError: no"
    assert site.connect(backend).ask_number(R.GET_FEATURES)


def test_more_threads_share_the_queues(site: DeviceSite) -> None:
    class Wide(Echo):
        threads = 3
        queues = 8

    backend, f = site.started(Wide, queues=8)
    for index in range(8):
        assert f.request(f.queues[index], b"x%d" % index, 2) == b"x%d" % index
    assert len(backend._engine.workers) == 3


def test_closing_while_a_front_end_is_there(site: DeviceSite) -> None:
    backend, f = site.started()
    f.request(f.queues[0], b"a", 1)
    site.run(backend.close("the configuration has it no more"))
    assert site.farewell().reason == "the configuration has it no more"
    with pytest.raises(BackendFailed):
        f.ask_number(R.GET_FEATURES)
    site.run(backend.close())  # again does nothing


# Towards a front-end that listens


def test_connecting_to_a_front_end(site: DeviceSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "_RETRY_MIN", 0.01)
    monkeypatch.setattr(backend_module, "_RETRY_MAX", 0.02)
    path = f"{site.folder}/front"
    backend = site.open(connect=True, socket=path)
    site.wait(lambda: site.of(FrontendRefused))
    assert backend.state is State.CONNECTING
    assert "No such file" in site.of(FrontendRefused)[0].reason
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        listening.settimeout(DEADLINE)
        for round_ in range(3):
            f = Frontend(listening.accept()[0], timeout=DEADLINE)
            site.frontends.append(f)
            f.start()
            assert f.request(f.queues[0], b"hello", 5) == b"hello"
            f.close()
            site.farewell(round_ + 1)
    assert len(site.of(FrontendRefused)) == 1  # said once, however often it was tried
    site.wait(lambda: len(site.of(FrontendRefused)) == 2)
    site.run(backend.close())
    assert os.path.exists(path)


def test_what_every_device_offers(site: DeviceSite) -> None:
    class Plain(Device):
        name = "plain"
        id = 40

    backend = site.open(Plain)
    offered = backend.offered_protocol_features
    for feature in (
        "MQ",
        "REPLY_ACK",
        "BACKEND_REQ",
        "BACKEND_SEND_FD",
        "RESET_DEVICE",
        "CONFIGURE_MEM_SLOTS",
        "STATUS",
    ):
        assert offered & ProtocolFeature[feature]
    assert not offered & (ProtocolFeature.CONFIG | ProtocolFeature.HOST_NOTIFIER)
    names = backend.feature_names(backend.offered_features)
    assert "VIRTIO_F_VERSION_1" in names and "VIRTIO_F_RING_PACKED" not in names
    f = site.connect()
    f.start()
    with pytest.raises(BackendFailed):
        f.config()


def test_who_may_attach(site: DeviceSite) -> None:
    backend = site.open(peer=[{"match": {"vm": "guest1"}}, {"match": {"uid": os.getuid() + 1}}])
    f = site.connect()
    with pytest.raises(BackendFailed):
        f.ask_number(R.GET_FEATURES)
    site.wait(lambda: site.of(FrontendRefused))
    assert f'no rule of device "dev0" admits pid {os.getpid()}' in site.of(FrontendRefused)[0].reason
    assert backend.state is State.LISTENING and backend.who is None and not site.of(FrontendAttached)
    assert backend.fault.startswith("a front-end was refused: no rule")
    spec = dataclasses.replace(backend.spec, peer=parse_rules([{"match": {"uid": os.getuid()}}]))
    site.call(backend.change, spec, False)
    assert site.connect().ask_number(R.GET_QUEUE_NUM) == 2
