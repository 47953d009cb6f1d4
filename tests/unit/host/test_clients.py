# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's clients and flat devices: they come, go, and come back after a restart, both by the same rules."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from doorbelld.errors import ClientExists, FlatDeviceExists, NoSuchClient, NoSuchFlatDevice
from doorbelld.fds.keeper import Kept, Satchel
from doorbelld.fds.ledger import Ledger, NewerState
from doorbelld.host.events import (
    ClientAdded,
    ClientChanged,
    ClientEvent,
    ClientPeerAdded,
    ClientRemoved,
    ClientRung,
    ClientStateChanged,
    HostEvent,
    PeerRemoved,
)
from doorbelld.host.host import Host
from doorbelld.host.remains import Unusable
from doorbelld.ivshmem.clientspec import ClientSpec, FlatSpec
from doorbelld.ivshmem.link import ClientState
from doorbelld.ivshmem.spec import RegionSpec

DEADLINE = 20.0


class Side:
    """Clients, or flat devices, of a host, by the same names."""

    def __init__(self, host: Host, kind: str) -> None:
        self.host, self.kind = host, kind
        self.word = "flat device" if kind == "flat" else "client"
        self.spec: Any = FlatSpec if kind == "flat" else ClientSpec
        self.missing = NoSuchFlatDevice if kind == "flat" else NoSuchClient
        self.exists = FlatDeviceExists if kind == "flat" else ClientExists
        self.there: dict[str, Any] = host.flats if kind == "flat" else host.clients

    def __getattr__(self, verb: str) -> Any:
        return getattr(self.host, self.kind if verb == "find" else f"{verb}_{self.kind}")


@pytest.fixture(params=["client", "flat"])
def side(request: pytest.FixtureRequest, host: Host) -> Side:
    return Side(host, request.param)


@pytest.fixture
def heard(host: Host) -> list[HostEvent]:
    events: list[HostEvent] = []
    host.listen(events.append)
    return events


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0)


def of(heard: list[HostEvent], one: Any) -> list[str]:
    return [type(event).__name__ for event in heard if isinstance(event, ClientEvent) and event.client is one]


async def test_one_is_made_told_found_connected_and_removed(side: Side, heard: list[HostEvent]) -> None:
    region = await side.host.create_region(RegionSpec("demo", size=8192, vectors=2))
    one = side.create(side.spec("a", region.spec.socket))
    assert side.there == {"a": one}
    assert side.find("a") is one
    await until(lambda: one.vectors == 2 and one.peers)
    assert one.state is ClientState.CONNECTED
    assert of(heard, one)[0] == "ClientAdded", "before anything else is told of it"
    assert ClientPeerAdded(one, 65535) in heard
    described = json.loads(json.dumps(side.host.describe()))[f"{side.kind}s"]["a"]
    assert described.items() >= {"state": "connected", "reason": "", "id": 0, "vectors": 2, "size": 8192}.items()
    assert described["rings"] == [0, 0]
    assert [(peer["id"], peer["vectors"]) for peer in described["peers"]] == [(65535, 2)]
    assert ("iv-position" in described, "interrupts" in described) == (side.kind == "flat",) * 2
    assert not [key for part in (described, *described["peers"]) for key in part if "_" in key]
    region.notify(0, 1)
    await until(lambda: ClientRung(one, 1, 1) in heard)
    side.remove("a")
    assert heard[-1] == ClientRemoved(one)
    assert side.there == {}
    assert isinstance(heard[-2], ClientStateChanged)
    assert "is removed" in one.reason
    await until(lambda: any(isinstance(event, PeerRemoved) for event in heard))


async def test_what_is_not_there_is_named_with_what_is(side: Side, short_path: Path) -> None:
    with pytest.raises(side.missing, match=f'no {side.word} "x"; there is: none; make one with Create'):
        side.find("x")
    for name in ("b", "a"):
        side.create(side.spec(name, str(short_path / "nowhere")))
    with pytest.raises(side.missing, match=f'no {side.word} "x"; there is: a, b$'):
        side.remove("x")
    with pytest.raises(side.missing):
        side.change(side.spec("x", "/x"), configured=True)


async def test_the_same_name_twice(side: Side, heard: list[HostEvent], short_path: Path) -> None:
    one = side.create(side.spec("a", str(short_path / "nowhere")), configured=True)
    with pytest.raises(side.exists, match=f'{side.word} "a" is there already; remove it first'):
        side.create(side.spec("a", "/else"))
    assert side.there == {"a": one}
    assert one.configured
    assert sum(isinstance(event, ClientAdded) for event in heard) == 1


async def test_the_four_kinds_share_no_names(host: Host, short_path: Path) -> None:
    await host.create_region(RegionSpec("a"))
    client = host.create_client(ClientSpec("a", str(short_path / "nowhere")))
    flat = host.create_flat(FlatSpec("a", str(short_path / "nowhere")))
    assert (host.client("a"), host.flat("a")) == (client, flat)
    host.remove_client("a")
    assert host.flat("a") is flat


async def test_one_changes(side: Side, heard: list[HostEvent], short_path: Path) -> None:
    one = side.create(side.spec("a", str(short_path / "nowhere")))
    changed = side.spec("a", str(short_path / "nowhere"), reconnect=False)
    side.change(changed, configured=True)
    assert (one.spec, one.configured) == (changed, True)
    assert heard.count(ClientChanged(one)) == 1


# Restart


class Relay:
    """A host whose objects are kept, and the one that comes after it; both join regions of a third, `server`."""

    def __init__(self, server: Host, directory: Path) -> None:
        self.server = server
        self.keeper = Satchel()
        loop = asyncio.get_running_loop()
        self.first, self.second = (Host(loop, str(directory / "run"), 4096, self.keeper) for _ in range(2))

    def kept(self) -> Kept:
        """Give what the keeper would give back."""
        return Kept({name: fd.dup() for name, fd in self.keeper.copies.items()})

    def keep_line(self, name: str, line: bytes) -> None:
        """Have a ledger kept that says *line*."""
        self.keeper.drop(name)
        book = Ledger.create("doorbelld:x:state")
        book.rewrite(line + b"\n")
        self.keeper.put(name, book.fd.fileno())
        book.close()

    async def close(self) -> None:
        await self.second.close()
        await self.first.close()
        self.keeper.close()


@pytest.fixture
async def relay(host: Host, short_path: Path) -> AsyncIterator[Relay]:
    made = Relay(host, short_path)
    yield made
    await made.close()


@pytest.mark.parametrize("kind", ["client", "flat"])
async def test_one_survives_its_host(relay: Relay, kind: str) -> None:
    region = await relay.server.create_region(RegionSpec("demo", vectors=2))
    before, after = Side(relay.first, kind), Side(relay.second, kind)
    one = before.create(before.spec("a", region.spec.socket), configured=True)
    await until(lambda: one.vectors == 2 and one.peers)
    since = one.since
    assert one.kept
    await relay.first.close()
    region.notify(0, 1)
    heard: list[HostEvent] = []
    relay.second.listen(heard.append)
    assert relay.second.revive(relay.kept(), {}, Kept()) == []
    again = after.find("a")
    assert heard[0] == ClientAdded(again, revived=True)
    assert (again.id, again.since, again.configured, again.state) == (0, since, True, ClientState.CONNECTED)
    await until(lambda: ClientRung(again, 1, 1) in heard)
    assert list(region.peers) == [0], "the server notices nothing"
    letter = "f" if kind == "flat" else "c"
    after.create(after.spec("b", region.spec.socket))
    assert {name.split(".")[0] for name in relay.keeper.copies} == {f"{letter}1", f"{letter}2"}
    after.remove("a")
    after.remove("b")
    assert relay.keeper.copies == {}


async def test_what_can_not_come_back_is_let_go_of(relay: Relay, short_path: Path) -> None:
    nowhere = str(short_path / "nowhere")
    await relay.first.create_region(RegionSpec("demo"))
    for name in ("a", "b", "c"):
        relay.first.create_client(ClientSpec(name, nowhere))
        relay.first.create_flat(FlatSpec(name, nowhere))
    await relay.first.close()
    relay.keep_line("c1.state", b"nonsense")
    relay.keeper.drop("f2.state")
    relay.keeper.put("f2.s7", relay.keeper.copies["c2.state"].fileno())
    relay.keep_line("f3.state", b'{"version":1,"name":"c"}')
    kept = relay.kept()
    unusable = relay.second.revive(kept, {}, Kept())
    assert [(each.name, each.kind) for each in unusable] == [("c1", "client"), ("f2", "flat"), ("f3", "flat")]
    assert unusable[1] == Unusable("f2", "its state is missing", "flat")
    assert (list(relay.second.clients), list(relay.second.flats)) == (["b", "c"], ["a"])
    assert len(kept) == 0
    assert {name.split(".")[0] for name in relay.keeper.copies} == {"r1", "c2", "c3", "f1"}
    relay.second.create_client(ClientSpec("a", nowhere))
    assert "c4.state" in relay.keeper.copies, "a number is never used again"


async def test_two_of_one_name_are_one(relay: Relay, short_path: Path) -> None:
    for _ in range(2):
        relay.first.create_client(ClientSpec("a", str(short_path / "nowhere")))
        relay.first.clients.pop("a").let_go()
    (unusable,) = relay.second.revive(relay.kept(), {}, Kept())
    assert unusable == Unusable("a", "another client of that name is there", "client")
    assert {name.split(".")[0] for name in relay.keeper.copies} == {"c1"}


async def test_what_a_newer_version_left_is_not_touched(relay: Relay, short_path: Path) -> None:
    await relay.first.create_region(RegionSpec("demo"))
    relay.first.create_flat(FlatSpec("a", str(short_path / "nowhere")))
    await relay.first.close()
    relay.keep_line("f1.state", b'{"version":99}')
    before = {name: fd.fileno() for name, fd in relay.keeper.copies.items()}
    with pytest.raises(NewerState, match="version 99"):
        relay.second.revive(relay.kept(), {}, Kept())
    assert {name: fd.fileno() for name, fd in relay.keeper.copies.items()} == before
    assert (relay.second.regions, relay.second.flats) == ({}, {})


async def test_keeping_for_a_while(side: Side, short_path: Path) -> None:
    side.create(side.spec("a", str(short_path / "nowhere")))
    satchel = Satchel()
    assert side.host.keep(satchel)
    side.create(side.spec("b", str(short_path / "nowhere")))
    assert [one.kept for one in side.there.values()] == [True, True]
    side.host.unkeep()
    assert [one.kept for one in side.there.values()] == [False, False]
    assert satchel.copies == {}


async def test_keeping_that_does_not_work_is_said(
    side: Side, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side.create(side.spec("a", str(short_path / "nowhere")))
    satchel = Satchel()
    monkeypatch.setattr(satchel, "put", lambda *_: False)
    assert not side.host.keep(satchel)
    side.host.unkeep()
    satchel.close()
