# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's devices: they come and go whole, or not at all, and every change is told in order."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from doorbelld import devices
from doorbelld.errors import DeviceExists, NoSuchDevice, SocketInUse
from doorbelld.host.events import DeviceAdded, DeviceChanged, DeviceRemoved, HostEvent, StateChanged
from doorbelld.host.host import Host
from doorbelld.vhost.events import State
from doorbelld.vhost.frontend import Frontend
from doorbelld.vhost.spec import DeviceSpec


def spec_of(name: str, **options: object) -> DeviceSpec:
    return DeviceSpec.parse(name, {"type": "loopback", **options}, f"device.{name}", devices.find)


@pytest.fixture
def heard(host: Host) -> list[HostEvent]:
    events: list[HostEvent] = []
    host.listen(events.append)
    return events


def attach(path: str) -> tuple[Frontend, bytes]:
    """Be a front-end whose driver sends a request."""
    frontend = Frontend.connect(path)
    (queue,) = frontend.start()
    return frontend, frontend.request(queue, b"ping", room=4)


async def test_a_device_is_made_told_found_served_and_removed(
    host: Host, heard: list[HostEvent], short_path: Path
) -> None:
    device = await host.create_device(spec_of("a"))
    assert heard == [DeviceAdded(device)]
    assert host.device("a") is device
    assert device.spec.socket == str(short_path / "run" / "a" / "socket")
    frontend, answer = await asyncio.to_thread(attach, device.spec.socket)
    assert answer == b"ping"
    described = json.loads(json.dumps(host.describe()["devices"]))["a"]
    assert (described["state"], described["type"], described["virtio-id"]) == ("running", "loopback", 63)
    assert described["front-end"]["pid"] == os.getpid()
    assert "REPLY_ACK" in described["front-end"]["protocol-features"]
    assert [queue["requests"] for queue in described["queues"]] == [1]
    assert described["counters"] == {}
    assert [region["size"] for region in described["memory"]] == [1 << 20]
    assert not [key for part in (described, *described["memory"], *described["queues"]) for key in part if "_" in key]
    await host.remove_device("a")
    assert isinstance(heard[-1], DeviceRemoved)
    changes = [(event.old.value, event.new.value) for event in heard if isinstance(event, StateChanged)]
    assert changes[0] == ("listening", "connected")
    assert changes[-1][1] == State.STOPPED.value
    assert not os.path.exists(device.spec.socket)
    assert host.describe()["devices"] == {}
    frontend.close()


async def test_a_device_that_is_not_there_is_named_with_those_that_are(host: Host) -> None:
    with pytest.raises(NoSuchDevice, match='no device "x"; there is: none; make one with CreateDevice'):
        host.device("x")
    await host.create_device(spec_of("b"))
    await host.create_device(spec_of("a"))
    with pytest.raises(NoSuchDevice, match=r'no device "x"; there is: a, b$'):
        await host.remove_device("x")


async def test_the_same_name_or_the_same_socket_twice(host: Host, heard: list[HostEvent]) -> None:
    first = await host.create_device(spec_of("a"))
    with pytest.raises(DeviceExists, match='"a" is there already; remove it first'):
        await host.create_device(spec_of("a"))
    with pytest.raises(SocketInUse):
        await host.create_device(spec_of("b", socket=first.spec.socket))
    assert len(heard) == 1
    assert list(host.devices) == ["a"]


async def test_a_device_that_is_going_can_not_be_removed_again(host: Host, heard: list[HostEvent]) -> None:
    device = await host.create_device(spec_of("a"))
    frontend, _ = await asyncio.to_thread(attach, device.spec.socket)  # so that it takes its time
    ends = await asyncio.gather(host.remove_device("a"), host.remove_device("a"), return_exceptions=True)
    assert [str(end) for end in ends] == ["None", 'device "a" is being removed already']
    assert isinstance(ends[1], NoSuchDevice)
    frontend.close()
    assert sum(isinstance(event, DeviceRemoved) for event in heard) == 1
    await host.create_device(spec_of("a"))


async def test_a_device_changes(host: Host, heard: list[HostEvent]) -> None:
    device = await host.create_device(spec_of("a"))
    host.change_device(host.with_defaults(spec_of("a", mode="0600", **{"poll-us": 7})), configured=True)
    assert heard[-1] == DeviceChanged(device)
    assert device.configured
    assert os.stat(device.spec.socket).st_mode & 0o777 == 0o600
    with pytest.raises(NoSuchDevice):
        host.change_device(spec_of("b"), configured=True)


async def test_a_change_that_can_not_be_made_changes_nothing(host: Host) -> None:
    device = await host.create_device(spec_of("a"))
    before = device.spec
    os.unlink(before.socket)
    with pytest.raises(Exception, match="socket"):
        host.change_device(host.with_defaults(spec_of("a", mode="0600")), configured=True)
    assert device.spec == before


async def test_closing_ends_every_front_end(host: Host, heard: list[HostEvent]) -> None:
    device = await host.create_device(spec_of("a"))
    frontend, _ = await asyncio.to_thread(attach, device.spec.socket)
    await host.close()
    assert host.devices == {}
    assert device.state is State.STOPPED
    assert device.reason == "the daemon stops"
    assert frontend.sock.recv(1) == b""
    frontend.close()


async def test_the_options_of_its_type_are_described(host: Host) -> None:
    raw = {"type": "rng", "rate": "1M"}
    await host.create_device(DeviceSpec.parse("e", raw, "device.e", devices.find))
    assert host.describe()["devices"]["e"]["rate"] == 1 << 20
