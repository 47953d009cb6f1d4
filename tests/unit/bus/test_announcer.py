# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals: in the order in which things happened, from the right path, and no storm of them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from doorbelld.bus import announcer as module
from doorbelld.bus.announcer import Announcer
from doorbelld.bus.names import OBJECT_MANAGER, PEER, PROPERTIES, REGION, ROOT
from doorbelld.host.events import PeerAdded, PeerRefused, PeerRemoved, RegionAdded, RegionRemoved, Rung

DEMO = f"{ROOT}/region/demo"


class FakeTree:
    def __init__(self) -> None:
        self.there: set[str] = set()
        self.dropped: list[str] = []

    def find(self, path: str) -> object | None:
        return SimpleNamespace(path=path) if path in self.there else None

    def drop(self, path: str) -> None:
        self.dropped.append(path)

    def drop_region(self, path: str) -> None:
        self.dropped.append(path + "/*")


class FakeRouter:
    def __init__(self) -> None:
        self.signals: list[tuple[str, str, Any]] = []

    def describe(self, view: Any) -> dict[str, Any]:
        return {"of": view.path}

    def signal(self, path: str, interface: str, member: str, signature: str, body: list[Any]) -> None:
        full = {OBJECT_MANAGER: "ObjectManager", PROPERTIES: "Properties", REGION: "Region"}[interface]
        self.signals.append((path, f"{full}.{member}", body))


class Stage:
    def __init__(self) -> None:
        self.tree, self.router = FakeTree(), FakeRouter()
        self.region: Any = SimpleNamespace(name="demo", peers={})
        self.announcer = Announcer(asyncio.get_running_loop(), self.tree, self.router)  # type: ignore[arg-type]

    def join(self, number: int) -> Any:
        peer = SimpleNamespace(id=number)
        self.region.peers[number] = peer
        self.tree.there.add(f"{DEMO}/peer/{number}")
        self.announcer.hear(PeerAdded(self.region, peer))
        return peer

    def leave(self, number: int, reason: str = "gone") -> None:
        peer = self.region.peers.pop(number)
        self.tree.there.discard(f"{DEMO}/peer/{number}")
        self.announcer.hear(PeerRemoved(self.region, peer, reason))

    async def settle(self) -> None:
        async with asyncio.timeout(20):
            while self.announcer._turn is not None:
                await asyncio.sleep(0)

    def counts(self) -> list[int]:
        return [body[1]["PeerCount"].value for _, member, body in self.router.signals if "Properties" in member]

    def members(self) -> list[str]:
        return [member for _, member, _ in self.router.signals]


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def test_a_life(stage: Stage) -> None:
    stage.tree.there.add(DEMO)
    stage.announcer.hear(RegionAdded(stage.region))
    await stage.settle()
    stage.join(0)
    await stage.settle()
    stage.leave(0, "it closed its connection")
    await stage.settle()
    stage.announcer.hear(RegionRemoved(stage.region))
    await stage.settle()
    peer = f"{DEMO}/peer/0"
    said = [(p, m, b if "Properties" not in m else [b[0], b[1]["PeerCount"].value]) for p, m, b in stage.router.signals]
    assert said == [
        (ROOT, "ObjectManager.InterfacesAdded", [DEMO, {"of": DEMO}]),
        (ROOT, "ObjectManager.InterfacesAdded", [peer, {"of": peer}]),
        (DEMO, "Region.PeerAdded", [0, peer]),
        (DEMO, "Properties.PropertiesChanged", [REGION, 1]),
        (DEMO, "Region.PeerRemoved", [0, "it closed its connection"]),
        (ROOT, "ObjectManager.InterfacesRemoved", [peer, [PEER]]),
        (DEMO, "Properties.PropertiesChanged", [REGION, 0]),
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
    assert stage.counts()[-1] == 30
    assert len(stage.counts()) < 70


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
    assert stage.counts()[-1] == 9


async def test_a_peer_that_went_at_once_is_not_added_but_told_of(stage: Stage) -> None:
    stage.join(0)
    stage.leave(0)
    await stage.settle()
    assert stage.members()[:-1] == ["Region.PeerAdded", "Region.PeerRemoved", "ObjectManager.InterfacesRemoved"]
    assert stage.counts() == [0]


async def test_a_region_that_is_removed_tells_no_count_after_it(stage: Stage) -> None:
    stage.join(0)
    stage.leave(0, "the region is removed")
    stage.announcer.hear(RegionRemoved(stage.region))
    await stage.settle()
    assert stage.counts() == []
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
