# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The caller's side of D-Bus, against a real bus and a real daemon."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from doorbelld.bus.client import OWNER_CHANGED, CallFailed, Client, Match, Signal, options, variant
from doorbelld.bus.library import unwrap
from doorbelld.bus.names import BUS_NAME, MANAGER, PEER, REGION, ROOT
from doorbelld.bus.private import PrivateBus
from doorbelld.errors import BusUnavailable
from doorbelld.fds.owned import Fd
from support.busctl import Busctl
from support.daemon import Daemon
from support.rawclient import RawClient

DEMO = f"{ROOT}/region/demo"
SECONDS = 20


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    with Daemon(short_path) as running:
        yield running


@pytest.fixture
async def client(daemon: Daemon) -> AsyncIterator[Client]:
    async with await Client.connect(daemon.bus) as connected:
        yield connected


async def test_nobody_listens(short_path: Path) -> None:
    with pytest.raises(BusUnavailable, match=f"no message bus at unix:path={short_path}/bus: No such file"):
        await Client.connect(f"unix:path={short_path}/bus")


async def test_a_call_gives_the_body(client: Client) -> None:
    assert await client.call(ROOT, MANAGER, "ListRegions") == [[["demo", DEMO]]]
    assert await client.call(DEMO, REGION, "Broadcast") == []


async def test_a_refusal_has_name_and_text(client: Client) -> None:
    with pytest.raises(CallFailed, match='region "demo" has no peer 3') as caught:
        await client.call(ROOT, MANAGER, "Notify", "sqq", ["demo", 3, 0])
    assert (caught.value.name, caught.value.kind) == (f"{BUS_NAME}.Error.NoSuchPeer", "NoSuchPeer")
    assert caught.value.ours
    assert not caught.value.nobody_there
    with pytest.raises(CallFailed) as caught:
        await client.call("/x", "x.y", "Z", destination="org.example.Nobody")
    assert caught.value.nobody_there


async def test_properties_and_objects_come_without_variants(client: Client, daemon: Daemon) -> None:
    assert await client.get(DEMO, REGION, "Size") == 4 << 20
    assert (await client.get_all(DEMO, REGION))["Socket"] == str(daemon.socket())
    with RawClient(str(daemon.socket())).greet(4):
        objects = await client.managed_objects()
    assert objects[DEMO][REGION]["HostRings"] == [0, 0, 0, 0]
    assert objects[f"{DEMO}/peer/0"][PEER]["Pid"] == os.getpid()


async def test_plain_values_go_as_options(client: Client) -> None:
    given = {"size": "64K", "vectors": 2, "host-peer": False, "stall-timeout": 1.5}
    given |= {"peer": [{"match": {"vm": "x"}, "id": 7, "may-ring": ["*"]}]}
    (path,) = await client.call(ROOT, MANAGER, "CreateRegion", "sa{sv}", ["two", options(given)])
    assert await client.get(path, REGION, "StallTimeoutUSec") == 1_500_000
    assert unwrap(variant(given)) == given
    with pytest.raises(TypeError, match="can't go over D-Bus"):
        variant(None)


async def test_a_received_descriptor_is_owned_and_close_on_exec(client: Client) -> None:
    (memory,) = await client.call(DEMO, REGION, "OpenMemory")
    assert isinstance(memory, Fd)
    with memory:
        assert not os.get_inheritable(memory.fileno())
        assert os.fstat(memory.fileno()).st_size == 4 << 20
        os.pwrite(memory.fileno(), b"seen", 0)
    assert (await client.call(DEMO, REGION, "ReadMemory", "tu", [0, 4]))[0] == b"seen"


async def test_descriptors_of_replies_that_nobody_takes_are_closed(client: Client, daemon: Daemon) -> None:
    await client.call(DEMO, REGION, "Broadcast")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        await client.call(DEMO, REGION, "OpenMemory")
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        for _ in range(5):
            with pytest.raises(CallFailed, match="OpenMemory: no answer in") as caught:
                await client.call(DEMO, REGION, "OpenMemory", timeout=0.01)
        assert caught.value.kind == "Timeout"
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    await client.call(DEMO, REGION, "Broadcast")  # the late replies have come before this one
    assert len(os.listdir("/proc/self/fd")) == before


async def test_many_calls_at_once_outrun_the_socket(client: Client) -> None:
    data = b"x" * 2000
    writes = (client.call(DEMO, REGION, "WriteMemory", "tay", [n * 2000, data]) for n in range(1500))
    async with asyncio.timeout(SECONDS):
        assert await asyncio.gather(*writes) == [[]] * 1500


async def test_signals_come_in_order_to_those_whom_they_match(client: Client, daemon: Daemon) -> None:
    heard: list[Signal] = []
    everything = await client.subscribe(Match(path_namespace=ROOT), callback=heard.append)
    async with await client.subscribe(Match(path=DEMO, interface=REGION)) as region, asyncio.timeout(SECONDS):
        with RawClient(str(daemon.socket())).greet(4) as peer:
            peer.sock.send(b"x")
            assert (await anext(region)).body == [0, f"{DEMO}/peer/0"]
            removed = await anext(region)
        assert (removed.member, removed.path) == ("PeerRemoved", DEMO)
        assert removed.body == [0, "it sent 1 bytes, and an ivshmem client never sends"]
    members = [one.member for one in heard]
    assert members[:2] == ["InterfacesAdded", "PeerAdded"]
    assert heard[0].body[1][PEER]["Id"] == 0
    await everything.close()
    await everything.close()


async def test_a_closed_subscription_ends_and_hears_no_more(client: Client, daemon: Daemon) -> None:
    subscription = await client.subscribe(Match(path=DEMO))
    await subscription.close()
    with RawClient(str(daemon.socket())).greet(4):
        assert [one async for one in subscription] == []


async def test_what_a_slow_reader_loses_is_counted(
    client: Client, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doorbelld.bus.client.BACKLOG_MAX", 3)
    async with await client.subscribe(Match(path=DEMO, member="Rung")) as signals:
        for _ in range(5):
            async with await client.subscribe(Match(path=DEMO, member="Rung")) as one, asyncio.timeout(SECONDS):
                await client.call(ROOT, MANAGER, "Notify", "sqq", ["demo", 65535, 0])
                await anext(one)
        assert [(await anext(signals)).body for _ in range(3)] == [[0, 1]] * 3
        assert signals.lost == 2


async def test_strangers_do_not_speak_for_the_daemon(client: Client, daemon: Daemon) -> None:
    async with await client.subscribe(Match(path=DEMO), Match(sender="", member="Done")) as signals:
        bus = Busctl(daemon.bus)
        await asyncio.to_thread(bus.run, "emit", DEMO, REGION, "Rung", "qt", "0", "1")
        await asyncio.to_thread(bus.run, "emit", "/x", "org.example.X", "Done")
        async with asyncio.timeout(SECONDS):
            assert (await anext(signals)).member == "Done"


async def test_the_owner_comes_and_goes(short_path: Path) -> None:
    bus = PrivateBus(str(short_path / "bus"))
    address = await bus.ensure()
    try:
        async with await Client.connect(address) as client, asyncio.timeout(SECONDS):
            assert await client.owner() == ""
            async with await client.subscribe(OWNER_CHANGED) as changes:
                coming = asyncio.create_task(client.wait_for_owner())
                daemon = Daemon(short_path, bus=address)
                await asyncio.to_thread(daemon.start)
                owner = await coming
                assert (await anext(changes)).body == [BUS_NAME, "", owner]
                assert owner == await client.owner() == client.known_owner
                going = asyncio.create_task(client.wait_for_owner(False))
                assert await asyncio.to_thread(daemon.stop) == 0
                assert await going == ""
                assert (await anext(changes)).body == [BUS_NAME, owner, ""]
            with pytest.raises(CallFailed) as caught:
                await client.call(ROOT, MANAGER, "ListRegions")
            assert caught.value.nobody_there
    finally:
        await bus.stop()


async def test_nothing_hangs_when_the_bus_goes_away(short_path: Path) -> None:
    daemon = Daemon(short_path).start()
    client = await Client.connect(daemon.bus)
    subscription = await client.subscribe(Match(path=DEMO))
    os.kill(daemon.pid, signal.SIGSTOP)
    waiting = [
        asyncio.create_task(client.call(DEMO, REGION, "Broadcast")),
        asyncio.create_task(anext(subscription)),
        asyncio.create_task(client.wait_for_owner(False)),
    ]
    await client.call_bus("GetId")  # they are all under way
    os.kill(daemon.pid, signal.SIGCONT)
    daemon_stopped = asyncio.create_task(asyncio.to_thread(daemon.stop))
    async with asyncio.timeout(SECONDS):
        results = await asyncio.gather(*waiting, return_exceptions=True)
        await daemon_stopped
        # the daemon may have answered, or gone before its bus did
        assert isinstance(results[1], BusUnavailable)
        assert results[0] == [] or isinstance(results[0], CallFailed | BusUnavailable)
        assert results[2] == "" or isinstance(results[2], BusUnavailable)
        with pytest.raises(BusUnavailable, match=f"the message bus at {daemon.bus} is gone"):
            await client.call(DEMO, REGION, "Broadcast")
    await subscription.close()
    await client.close()
    await client.close()


async def test_a_closed_client_says_so(daemon: Daemon) -> None:
    client = await Client.connect(daemon.bus)
    await client.close()
    with pytest.raises(BusUnavailable, match="was closed"):
        await client.call(DEMO, REGION, "Broadcast")
