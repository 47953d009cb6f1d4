# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals: in the order in which things happened, from the right path, and no storm of them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
from doorbelld.bus import announcer as module
from doorbelld.bus.announcer import Announcer
from doorbelld.bus.interfaces import load
from doorbelld.bus.names import CLIENT, DEVICE, FLAT, PEER, QUEUE, REGION, ROOT
from doorbelld.host.events import (
    ClientAdded,
    ClientChanged,
    ClientPeerAdded,
    ClientPeerRemoved,
    ClientRemoved,
    ClientRung,
    ClientStateChanged,
    ClientUnkept,
    ConfigChanged,
    DeviceAdded,
    DeviceChanged,
    DeviceRemoved,
    FaultChanged,
    FrontendAttached,
    FrontendDetached,
    FrontendRefused,
    Negotiated,
    PeerAdded,
    PeerRefused,
    PeerRemoved,
    QueueChanged,
    RegionAdded,
    RegionChanged,
    RegionRemoved,
    RequestRefused,
    Rung,
    StateChanged,
)
from doorbelld.ivshmem.clientspec import ClientSpec, FlatSpec
from doorbelld.ivshmem.hostclient import HostClient, HostFlat
from doorbelld.ivshmem.link import ClientState
from doorbelld.vhost.events import State

DEMO = f"{ROOT}/region/demo"


class FakeView:
    """Shows, as the new value of whatever changed, how often it was asked."""

    def __init__(self, path: str) -> None:
        self.path = path
        kinds = {"/queue/": QUEUE, "/device/": DEVICE, "/client/": CLIENT, "/flat/": FLAT, "": REGION}
        self.interface = load(next(name for part, name in kinds.items() if part in path))
        self.asked = 0

    def changed(self, names: Collection[str]) -> list[Any]:
        self.asked += 1
        return [sorted(names), self.asked]


class FakeTree:
    def __init__(self) -> None:
        self.there: dict[str, FakeView] = {}
        self.dropped: list[str] = []

    def add(self, path: str) -> None:
        self.there[path] = FakeView(path)

    def find(self, path: str) -> FakeView | None:
        return self.there.get(path)

    def drop(self, path: str) -> None:
        self.dropped.append(path)

    def drop_tree(self, path: str) -> None:
        self.dropped.append(path + "/*")


class FakeRouter:
    def __init__(self) -> None:
        self.signals: list[tuple[str, str, Any]] = []

    def describe(self, view: Any) -> dict[str, Any]:
        return {"of": view.path}

    def signal(self, path: str, interface: str, member: str, signature: str, body: list[Any]) -> None:
        full = interface.rpartition(".")[2]
        self.signals.append((path, f"{full}.{member}", body))


class Stage:
    def __init__(self) -> None:
        self.tree, self.router = FakeTree(), FakeRouter()
        self.region: Any = SimpleNamespace(name="demo", peers={})
        self.tree.add(DEMO)
        self.device: Any = SimpleNamespace(name="disk", queue_count=2)
        self.announcer = Announcer(asyncio.get_running_loop(), self.tree, self.router)  # type: ignore[arg-type]

    def join(self, number: int) -> Any:
        peer = SimpleNamespace(id=number)
        self.region.peers[number] = peer
        self.tree.add(f"{DEMO}/peer/{number}")
        self.announcer.hear(PeerAdded(self.region, peer))
        return peer

    def leave(self, number: int, reason: str = "gone") -> None:
        peer = self.region.peers.pop(number)
        self.tree.there.pop(f"{DEMO}/peer/{number}", None)
        self.announcer.hear(PeerRemoved(self.region, peer, reason))

    async def settle(self) -> None:
        async with asyncio.timeout(20):
            while self.announcer._turn is not None:
                await asyncio.sleep(0)

    def changes(self) -> list[Any]:
        return [body for _, member, body in self.router.signals if "Properties" in member]

    def members(self) -> list[str]:
        return [member for _, member, _ in self.router.signals]


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def test_a_life(stage: Stage) -> None:
    stage.announcer.hear(RegionAdded(stage.region))
    await stage.settle()
    stage.join(0)
    await stage.settle()
    stage.leave(0, "it closed its connection")
    await stage.settle()
    stage.announcer.hear(RegionRemoved(stage.region))
    await stage.settle()
    peer = f"{DEMO}/peer/0"
    assert stage.router.signals == [
        (ROOT, "ObjectManager.InterfacesAdded", [DEMO, {"of": DEMO}]),
        (ROOT, "ObjectManager.InterfacesAdded", [peer, {"of": peer}]),
        (DEMO, "Region.PeerAdded", [0, peer]),
        (DEMO, "Properties.PropertiesChanged", [REGION, ["PeerCount"], 1]),
        (DEMO, "Region.PeerRemoved", [0, "it closed its connection"]),
        (ROOT, "ObjectManager.InterfacesRemoved", [peer, [PEER]]),
        (DEMO, "Properties.PropertiesChanged", [REGION, ["PeerCount"], 2]),
        (ROOT, "ObjectManager.InterfacesRemoved", [DEMO, [REGION]]),
    ]
    assert stage.tree.dropped == [peer, DEMO + "/*"]


async def test_views_are_dropped_at_once_not_when_it_is_told(stage: Stage) -> None:
    stage.join(0)
    stage.leave(0)
    assert stage.tree.dropped == [f"{DEMO}/peer/0"]
    assert stage.router.signals == []


async def test_one_change_of_the_count_a_turn(stage: Stage) -> None:
    for number in range(50):
        stage.join(number)
    for number in range(20):
        stage.leave(number)
    await stage.settle()
    assert stage.members().count("Region.PeerAdded") == 50
    assert 0 < len(stage.changes()) < 70
    assert stage.members()[-1] == "Properties.PropertiesChanged", "with the count as it is then"


async def test_a_storm_is_told_in_order_over_many_turns(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_SECONDS", -1.0)  # one event a turn
    for number in range(10):
        stage.join(number)
    stage.leave(3)
    await asyncio.sleep(0)
    assert stage.members().count("Region.PeerAdded") < 10
    await stage.settle()
    told = [(member, body[0]) for path, member, body in stage.router.signals if path == DEMO and "Region." in member]
    assert told == [*(("Region.PeerAdded", number) for number in range(10)), ("Region.PeerRemoved", 3)]
    assert stage.members()[-1] == "Properties.PropertiesChanged"


async def test_a_peer_that_went_at_once_is_not_added_but_told_of(stage: Stage) -> None:
    stage.join(0)
    stage.leave(0)
    await stage.settle()
    assert stage.members()[:-1] == ["Region.PeerAdded", "Region.PeerRemoved", "ObjectManager.InterfacesRemoved"]
    assert stage.changes() == [[REGION, ["PeerCount"], 1]]


async def test_a_region_that_is_removed_tells_no_count_after_it(stage: Stage) -> None:
    stage.join(0)
    stage.leave(0, "the region is removed")
    stage.announcer.hear(RegionRemoved(stage.region))
    await stage.settle()
    assert stage.changes() == []
    assert stage.router.signals[-1] == (ROOT, "ObjectManager.InterfacesRemoved", [DEMO, [REGION]])


async def test_a_ring_is_sent_at_once(stage: Stage) -> None:
    stage.announcer.hear(Rung(stage.region, 2, 5))
    assert stage.router.signals == [(DEMO, "Region.Rung", [2, 5])]


async def test_rings_under_pressure_are_added_up_and_sent_when_it_is_over(stage: Stage) -> None:
    stage.announcer.press(True)
    for vector, count in ((0, 1), (1, 10), (0, 2), (0, (1 << 64) - 1)):
        stage.announcer.hear(Rung(stage.region, vector, count))
    assert stage.router.signals == []
    stage.announcer.press(False)
    assert stage.router.signals == [
        (DEMO, "Region.Rung", [0, (1 << 64) - 1]),
        (DEMO, "Region.Rung", [1, 10]),
    ]
    stage.announcer.press(False)
    assert len(stage.router.signals) == 2
    stage.announcer.hear(Rung(stage.region, 0, 1))
    assert len(stage.router.signals) == 3


async def test_a_refusal_is_no_signal(stage: Stage) -> None:
    stage.announcer.hear(PeerRefused(stage.region, "no"))
    await stage.settle()
    assert stage.router.signals == []


async def test_odd_names(stage: Stage) -> None:
    stage.region.name = "a.b-1"
    stage.announcer.hear(Rung(stage.region, 0, 1))
    assert stage.router.signals[0][0] == f"{ROOT}/region/a_2eb_2d1"


async def test_a_region_that_goes_by_another_spec_tells_of_what_can_change(stage: Stage) -> None:
    stage.announcer.hear(RegionChanged(stage.region))
    await stage.settle()
    assert stage.changes() == [[REGION, sorted(load(REGION).properties), 1]]


# Devices

DISK = f"{ROOT}/device/disk"
QUEUES = [f"{DISK}/queue/0", f"{DISK}/queue/1"]
WHO: Any = SimpleNamespace(pid=42)
STATE = ["Fault", "Reason", "State"]
FRONTEND = [f"Frontend{what}" for what in ("Gid", "Pid", "Since", "Uid", "Unit", "VmName")]
NEGOTIATED = [
    *("AckedFeatureNames", "AckedFeatures", "AckedProtocolFeatureNames", "AckedProtocolFeatures"),
    *("ConfigSpace", "MemoryRegions"),
]


@pytest.fixture
async def disk(stage: Stage) -> Any:
    for path in (DISK, *QUEUES):
        stage.tree.add(path)
    return stage.device


async def test_a_device_comes_before_its_queues_and_goes_after_them(stage: Stage, disk: Any) -> None:
    stage.announcer.hear(DeviceAdded(disk))
    await stage.settle()
    stage.announcer.hear(DeviceRemoved(disk))
    assert stage.tree.dropped == [f"{DISK}/*"] * 2
    await stage.settle()
    assert stage.router.signals == [
        *((ROOT, "ObjectManager.InterfacesAdded", [path, {"of": path}]) for path in (DISK, *QUEUES)),
        *((ROOT, "ObjectManager.InterfacesRemoved", [path, [QUEUE]]) for path in QUEUES),
        (ROOT, "ObjectManager.InterfacesRemoved", [DISK, [DEVICE]]),
    ]


async def test_many_queues_are_told_of_over_many_turns(
    stage: Stage, disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN_SECONDS", -1.0)  # one object a turn
    stage.announcer.hear(DeviceAdded(disk))
    await asyncio.sleep(0)
    assert len(stage.router.signals) == 1
    await stage.settle()
    assert len(stage.router.signals) == 3


async def test_a_front_ends_life(stage: Stage, disk: Any) -> None:
    hear = stage.announcer.hear
    hear(FrontendAttached(disk, WHO))
    hear(StateChanged(disk, State.LISTENING, State.CONNECTED, ""))
    await stage.settle()
    for _ in range(30):
        hear(Negotiated(disk))
        hear(QueueChanged(disk, 0))
    hear(StateChanged(disk, State.CONNECTED, State.RUNNING, ""))
    await stage.settle()
    hear(StateChanged(disk, State.RUNNING, State.BROKEN, "a loop\0"))
    hear(FrontendDetached(disk, WHO, "a loop\0", True))
    hear(StateChanged(disk, State.BROKEN, State.LISTENING, "a loop\0"))
    await stage.settle()
    changed = "Properties.PropertiesChanged"
    assert stage.router.signals == [
        (DISK, "Device.FrontendAttached", [42]),
        (DISK, changed, [DEVICE, sorted([*STATE, *FRONTEND]), 1]),
        (DISK, changed, [DEVICE, sorted([*STATE, *NEGOTIATED]), 2]),
        (DISK, "Device.FrontendDetached", ["a loop\ufffd", True]),
        (DISK, changed, [DEVICE, sorted([*STATE, *FRONTEND, *NEGOTIATED]), 3]),
    ]


async def test_what_changes_in_a_device_itself(stage: Stage, disk: Any) -> None:
    for event in (ConfigChanged(disk), FaultChanged(disk), DeviceChanged(disk)):
        stage.announcer.hear(event)
        await stage.settle()
    assert stage.changes() == [
        [DEVICE, ["ConfigSpace"], 1],
        [DEVICE, STATE, 2],
        [DEVICE, sorted(load(DEVICE).properties), 3],
    ]


async def test_what_does_not_show_is_no_signal(stage: Stage, disk: Any) -> None:
    for _ in range(1000):
        stage.announcer.hear(QueueChanged(disk, 1))
    stage.announcer.hear(FrontendRefused(disk, "no"))
    stage.announcer.hear(RequestRefused(disk, "GET_CONFIG", "no"))
    assert not stage.announcer._waiting
    await stage.settle()
    assert stage.router.signals == []


async def test_a_device_that_is_removed_tells_no_changes_after_it(stage: Stage, disk: Any) -> None:
    stage.announcer.hear(StateChanged(disk, State.LISTENING, State.STOPPED, "the device is removed"))
    stage.announcer.hear(DeviceRemoved(disk))
    await stage.settle()
    assert stage.changes() == []


async def test_one_that_is_gone_without_a_word_tells_nothing(stage: Stage, disk: Any) -> None:
    stage.announcer.hear(StateChanged(disk, State.LISTENING, State.STOPPED, "to be executed anew"))
    del stage.tree.there[DISK]
    await stage.settle()
    assert stage.router.signals == []


async def test_under_pressure_changes_wait_and_are_told_once(stage: Stage, disk: Any) -> None:
    """A front-end that negotiates anew all the time does not fill our memory while the bus stands still."""
    stage.announcer.press(True)
    for _ in range(500):
        stage.announcer.hear(Negotiated(disk))
        await stage.settle()
    assert stage.router.signals == []
    assert not stage.announcer._waiting
    stage.announcer.press(False)
    await stage.settle()
    assert stage.changes() == [[DEVICE, NEGOTIATED, 1]]
    stage.announcer.press(False)
    await stage.settle()
    assert len(stage.router.signals) == 1


# Clients and flat devices

LAB, MCU = f"{ROOT}/client/lab", f"{ROOT}/flat/mcu"


@pytest.fixture
async def lab(stage: Stage) -> HostClient:
    stage.tree.add(LAB)
    return HostClient(ClientSpec("lab", "/s"), asyncio.get_running_loop(), stage.announcer.hear)


@pytest.fixture
async def mcu(stage: Stage) -> HostFlat:
    stage.tree.add(MCU)
    return HostFlat(FlatSpec("mcu", "/s"), asyncio.get_running_loop(), stage.announcer.hear)


async def test_a_clients_life(stage: Stage, lab: HostClient) -> None:
    hear, peer = stage.announcer.hear, f"{LAB}/peer/7"
    hear(ClientAdded(lab))
    await stage.settle()
    stage.tree.add(peer)
    hear(ClientStateChanged(lab, ClientState.CONNECTING, ClientState.CONNECTED))
    hear(ClientPeerAdded(lab, 7))
    await stage.settle()
    hear(ClientPeerRemoved(lab, 7))
    hear(ClientStateChanged(lab, ClientState.CONNECTED, ClientState.CONNECTING))
    assert stage.tree.dropped == [f"{LAB}/*", peer], "at once, not when it is told"
    await stage.settle()
    hear(ClientRemoved(lab))
    await stage.settle()
    changed = "Properties.PropertiesChanged"
    joined = ["Id", "IvPosition", "MemorySize", "PeerCount", "Reason", "Since", "Size", "State"]
    assert stage.router.signals == [
        (ROOT, "ObjectManager.InterfacesAdded", [LAB, {"of": LAB}]),
        (ROOT, "ObjectManager.InterfacesAdded", [peer, {"of": peer}]),
        (LAB, "Client.PeerAdded", [7, peer]),
        (LAB, changed, [CLIENT, joined, 1]),
        (LAB, "Client.PeerRemoved", [7]),
        (ROOT, "ObjectManager.InterfacesRemoved", [peer, [PEER]]),
        (LAB, changed, [CLIENT, joined, 2]),
        (ROOT, "ObjectManager.InterfacesRemoved", [LAB, [CLIENT]]),
    ]


async def test_peers_that_come_and_go_faster_than_is_told(stage: Stage, lab: HostClient, mcu: HostFlat) -> None:
    """A server that says so all the time does not fill our memory: there is no more to tell than there are peers."""
    hear, peer = stage.announcer.hear, f"{LAB}/peer/7"
    stage.tree.add(peer)
    for _ in range(500):
        for client in (lab, mcu):
            hear(ClientPeerAdded(client, 7))
            hear(ClientPeerRemoved(client, 7))
    await stage.settle()
    assert stage.router.signals == []
    hear(ClientPeerAdded(lab, 7))
    hear(ClientPeerRemoved(mcu, 7))
    await stage.settle()
    for _ in range(500):
        hear(ClientPeerRemoved(lab, 7))
        hear(ClientPeerAdded(lab, 7))
    await stage.settle()
    told = [member.partition(".")[2] for _, member, _ in stage.router.signals]
    come, gone = ["InterfacesAdded", "PeerAdded"], ["PeerRemoved", "InterfacesRemoved"]
    assert [member for member in told if member != "PropertiesChanged"] == [*come, *gone, *come]
    assert not stage.announcer._waiting and not stage.announcer._untold


async def test_a_flat_device_has_no_peers_on_the_bus(stage: Stage, mcu: HostFlat) -> None:
    hear = stage.announcer.hear
    hear(ClientAdded(mcu))
    for number in range(30):
        hear(ClientPeerAdded(mcu, number))
    hear(ClientPeerRemoved(mcu, 0))
    await stage.settle()
    hear(ClientRemoved(mcu))
    await stage.settle()
    assert stage.router.signals == [
        (ROOT, "ObjectManager.InterfacesAdded", [MCU, {"of": MCU}]),
        (MCU, "Properties.PropertiesChanged", [FLAT, ["PeerCount"], 1]),
        (ROOT, "ObjectManager.InterfacesRemoved", [MCU, [FLAT]]),
    ]


async def test_rings_of_both_are_sent_at_once_and_added_up_under_pressure(
    stage: Stage, lab: HostClient, mcu: HostFlat
) -> None:
    hear = stage.announcer.hear
    hear(ClientRung(lab, 2, 5))
    hear(ClientRung(mcu, 2, 6))
    assert stage.router.signals == [(LAB, "Client.Rung", [2, 5]), (MCU, "FlatDevice.Interrupt", [2, 6])]
    stage.router.signals.clear()
    stage.announcer.press(True)
    for _ in range(100):
        hear(ClientRung(lab, 0, 1))
        hear(ClientRung(mcu, 1, (1 << 64) - 1))
    assert stage.router.signals == []
    stage.announcer.press(False)
    assert stage.router.signals == [(LAB, "Client.Rung", [0, 100]), (MCU, "FlatDevice.Interrupt", [1, (1 << 64) - 1])]


async def test_states_that_change_all_the_time_are_one_change_a_turn(stage: Stage, lab: HostClient) -> None:
    for _ in range(100):
        stage.announcer.hear(ClientStateChanged(lab, ClientState.CONNECTING, ClientState.CONNECTING))
        stage.announcer.hear(ClientUnkept(lab, "no room"))
    await stage.settle()
    assert 0 < len(stage.changes()) < 10
    stage.announcer.hear(ClientChanged(lab))
    await stage.settle()
    assert stage.changes()[-1][1] == sorted(load(CLIENT).properties)
