# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Views of devices and queues, over real ones with a front-end of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from doorbelld.bus.device_objects import NOBODY, DeviceView, QueueView
from doorbelld.ring.chain import Chain
from doorbelld.ring.queue import F_EVENT_IDX, F_NOTIFY_ON_EMPTY, VirtQueue
from doorbelld.vhost.backend import Backend
from doorbelld.vhost.errors import NotConnected, NotRunning
from doorbelld.vhost.events import State
from doorbelld.vhost.frontend import GUEST_BASE, USER_BASE, Frontend
from doorbelld.wire.vhost_messages import ProtocolFeature
from support.devicesite import DeviceSite, Echo, device_site

ALONE = {
    "State": "listening",
    "Reason": "",
    "Fault": "",
    "FrontendPid": 0,
    "FrontendUid": NOBODY,
    "FrontendGid": NOBODY,
    "FrontendVmName": "",
    "FrontendUnit": "",
    "FrontendSince": 0,
    "AckedFeatures": 0,
    "AckedFeatureNames": [],
    "AckedProtocolFeatures": 0,
    "AckedProtocolFeatureNames": [],
    "Status": 0,
    "MemoryRegions": [],
}


@pytest.fixture
def site() -> Iterator[DeviceSite]:
    with device_site() as made:
        yield made


def look(site: DeviceSite, view: DeviceView | QueueView) -> dict[str, Any]:
    return {name: value.value for name, value in site.call(view.get_all).items()}


def test_a_device_without_a_front_end(site: DeviceSite) -> None:
    backend = site.open(Echo, **{"poll-us": 7})
    found = look(site, DeviceView(backend))
    assert found.items() >= ALONE.items()
    features = found.pop("OfferedFeatures")
    assert features & (1 << 32) and features & (1 << 5) and features & (1 << 30)
    assert {"ECHO_F_LOUD", "VIRTIO_F_VERSION_1"} <= set(found.pop("OfferedFeatureNames"))
    protocol = found.pop("OfferedProtocolFeatures")
    assert protocol & ProtocolFeature.CONFIG and protocol & ProtocolFeature.MQ
    assert {"CONFIG", "MQ", "REPLY_ACK"} <= set(found.pop("OfferedProtocolFeatureNames"))
    assert found == ALONE | {
        "Error": "",
        "Name": "dev0",
        "Type": "echo",
        "VirtioId": 42,
        "Socket": backend.spec.socket,
        "Connect": False,
        "QueueCount": 2,
        "PollUSec": 7,
        "ConfigSpace": bytes(range(24)),
        "Requests": 0,
        "Bytes": 0,
        "Errors": 0,
    }


def test_a_front_end_is_seen_and_then_why_it_went(site: DeviceSite) -> None:
    backend, frontend = site.started(Echo, 2)
    for queue in frontend.queues.values():
        assert frontend.request(queue, b"abcd", 4) == b"abcd"
    view = DeviceView(backend)
    found = look(site, view)
    assert (found["State"], found["Reason"]) == ("running", "")
    assert (found["FrontendPid"], found["FrontendUid"]) == (os.getpid(), os.geteuid())
    assert (found["FrontendGid"], found["FrontendSince"]) == (os.getegid(), backend.since)
    assert found["AckedFeatures"] == frontend.features & ~(1 << 30) or found["AckedFeatures"] == frontend.features
    assert "ECHO_F_LOUD" in found["AckedFeatureNames"]
    assert found["AckedProtocolFeatures"] == frontend.protocol_features
    assert "REPLY_ACK" in found["AckedProtocolFeatureNames"]
    assert found["MemoryRegions"] == [[GUEST_BASE, frontend.size, USER_BASE, 0, ""]]
    assert (found["Requests"], found["Bytes"], found["Errors"]) == (2, 16, 0)
    frontend.close()
    site.farewell()
    site.wait_state(backend, State.LISTENING)
    found = look(site, view)
    assert found.items() >= (ALONE | {"Reason": "it closed its connection", "Requests": 2}).items()


def test_a_queue(site: DeviceSite) -> None:
    backend = site.open(Echo)
    view = QueueView(backend, 1)
    nothing = dict.fromkeys(("Size", "AvailableIndex", "UsedIndex", "InFlight"), 0)
    counters = dict.fromkeys(("Kicks", "Calls", "Requests", "Bytes", "Errors"), 0)
    before = {"Index": 1, "Enabled": False, "Started": False, "Broken": "", **nothing, **counters}
    assert look(site, view) == before
    frontend = site.connect()
    frontend.start(2, num=32)
    waiting = before | {"Size": 32, "Enabled": True, "Started": True, "Calls": 1}  # a new call descriptor is rung once
    assert look(site, view) == waiting
    for _ in range(3):
        frontend.request(frontend.queues[1], b"ab", 3)
    found = look(site, view)
    assert found.pop("Kicks") >= 1
    assert found.pop("Calls") >= 1
    assert found == {
        **{"Index": 1, "Size": 32, "Enabled": True, "Started": True, "Broken": "", "Errors": 0},
        **{"AvailableIndex": 3, "UsedIndex": 3, "InFlight": 0, "Requests": 3, "Bytes": 12},
    }
    assert {name: site.call(view.get, name).value for name in found} == found
    assert look(site, QueueView(backend, 0))["Requests"] == 0


def test_all_of_a_queue_is_of_one_moment(site: DeviceSite, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = site.open(Echo)
    view = QueueView(backend, 0)
    looks = []
    plain = Backend.queue

    def counted(self: Backend, index: int) -> Any:
        looks.append(index)
        return plain(self, index)

    monkeypatch.setattr(Backend, "queue", counted)
    look(site, view)
    assert looks == [0]
    look(site, view)
    site.call(view.get, "Size")
    assert looks == [0] * 3, "and it is not kept"


def test_what_can_be_done_to_them(site: DeviceSite) -> None:
    backend = site.open(Echo)
    device, queue = DeviceView(backend), QueueView(backend, 0)
    for act, error in (
        (device.disconnect, NotConnected),
        (device.reset, NotConnected),
        (queue.notify, NotRunning),
        (queue.kick, NotRunning),
    ):
        with pytest.raises(error):
            site.call(act)
    frontend = site.connect()
    (ring,) = frontend.start(features=~(F_EVENT_IDX | F_NOTIFY_ON_EMPTY))
    ring.set_calls(False)  # nobody but us interrupts
    assert os.eventfd_read(ring.call_fd) == 1, "a new call descriptor is rung once"
    site.call(queue.notify)
    assert os.eventfd_read(ring.call_fd) == 1
    assert look(site, queue)["Calls"] == 2
    ring.add([], [(GUEST_BASE, 1)])  # without a kick
    site.call(queue.kick)
    assert frontend.wait(ring)
    site.call(device.reset)
    site.wait(lambda: not backend.queue(0).started)
    site.call(device.disconnect)
    assert site.farewell().reason == "disconnected over D-Bus"


def test_refresh_reaches_the_device(site: DeviceSite) -> None:
    class Looking(Echo):
        looked = 0

        def refresh(self) -> None:
            self.looked += 1

    backend = site.open(Looking)
    site.call(DeviceView(backend).refresh)
    assert isinstance(backend.device, Looking)
    assert backend.device.looked == 1


class Odd(Echo):
    """Somebody's device, with a mistake, that says what a guest tells it to."""

    mistaken = False

    def get_config(self) -> bytes:
        if self.mistaken:
            raise ZeroDivisionError
        return bytearray(b"cfg")  # type: ignore[return-value]

    def handle(self, queue: VirtQueue, chain: Chain) -> None:
        raise ValueError(chain.read().decode(errors="surrogateescape"))


def test_a_device_with_a_mistake_can_be_looked_at(site: DeviceSite) -> None:
    backend = site.open(Odd)
    assert look(site, DeviceView(backend))["ConfigSpace"] == b"cfg"
    assert isinstance(backend.device, Odd)
    backend.device.mistaken = True
    found = look(site, DeviceView(backend))
    assert (found["ConfigSpace"], found["OfferedProtocolFeatures"]) == (b"", 0)


def test_words_of_a_guest_fit_the_bus(site: DeviceSite) -> None:
    backend, frontend = site.started(Odd)
    _make(frontend, b"a\0b\xff")
    site.wait(lambda: backend.queue(0).broken)
    assert "a\ufffdb\ufffd" in look(site, QueueView(backend, 0))["Broken"]
    site.farewell()
    assert "a\ufffdb\ufffd" in look(site, DeviceView(backend))["Reason"]


def _make(frontend: Frontend, data: bytes) -> None:
    """Make one request available and kick."""
    where = frontend.take(len(data))
    frontend.memory.write(where, data)
    frontend.queues[0].add([(where, len(data))])
    frontend.queues[0].kick()
