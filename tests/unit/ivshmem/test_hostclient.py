# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from doorbelld.errors import InvalidRegister, MemoryUnavailable, NoSuchPeer, NoSuchVector, ServerClosed
from doorbelld.fds import eventfd, limits
from doorbelld.ivshmem import link as link_module
from doorbelld.ivshmem.client_events import (
    ClientEvent,
    ClientPeerAdded,
    ClientPeerRemoved,
    ClientRung,
    ClientStateChanged,
)
from doorbelld.ivshmem.clientspec import ClientSpec, FlatSpec
from doorbelld.ivshmem.hostclient import HostClient, HostFlat
from doorbelld.ivshmem.link import ClientState
from doorbelld.ivshmem.receive import Backoff
from support.fdcount import no_leaks
from support.otherserver import LIES, OtherServer, greeting, message
from support.rawclient import DEADLINE, RawClient, identity


class Place:
    """Clients of the daemon, and what they told."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.events: list[ClientEvent] = []
        self.clients: list[HostClient] = []

    def open(self, make: type[HostClient] = HostClient, **options: Any) -> Any:
        spec = make.SPEC(f"demo{len(self.clients)}", self.path, **options)
        client = make.open(spec, asyncio.get_running_loop(), self.events.append)
        self.clients.append(client)
        return client

    async def until(self, happened: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not happened():
                await asyncio.sleep(0.001)

    async def joined(self, make: type[HostClient] = HostClient, **options: Any) -> Any:
        client = self.open(make, **options)
        await self.until(lambda: client.vectors == 2)
        return client


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(link_module, "Backoff", lambda: Backoff(0.002, 0.01))
    with no_leaks():
        made = Place(f"{tmp_path}/s")
        yield made
        for client in made.clients:
            client.close()
        made.events.clear()
        made.clients.clear()


async def test_a_server_that_sends_ever_more_doorbells(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left before the others in this process lack descriptors; what it had sent is theirs again."""
    monkeypatch.setattr(limits, "for_other_servers", lambda: limits.in_use() + 100)
    told = [message(peer, "eventfd") for peer in range(1, 200)]
    with OtherServer(place.path, script=[*greeting(), *told]):
        client = place.open(reconnect=False)
        await place.until(lambda: client.state is ClientState.BROKEN)
        assert "few descriptors are left for others; raise LimitNOFILE=" in client.reason
        came = [event for event in place.events if isinstance(event, ClientPeerAdded)]
        assert 50 < len(came) < 100
        assert client.peers == {}


async def test_what_there_is_and_what_is_told(place: Place) -> None:
    client = place.open()
    assert place.events == []  # it is there before anything is told of it
    assert (client.state, client.id, client.vectors, client.since, client.memory_size) == (
        ClientState.CONNECTING,
        None,
        0,
        0,
        0,
    )
    with OtherServer(place.path, vectors=2) as server:
        await place.until(lambda: client.vectors == 2)
        now = time.time_ns() // 1000
        assert (client.name, client.state, client.reason, client.id) == ("demo0", ClientState.CONNECTED, "", 0)
        assert now - 60_000_000 < client.since <= now
        other = await place.joined()
        await place.until(lambda: 1 in client.peers and client.peers[1].vectors == 2)
        assert client.since <= client.seen(1) <= time.time_ns() // 1000
        with pytest.raises(NoSuchPeer):
            client.seen(9)
        os.eventfd_write(server.eventfds(0)[1], 3)
        await place.until(lambda: client.interrupts == 3)
        assert client.rings == [0, 3]
        client.notify(1, 0)
        client.notify_peer(1)
        client.broadcast()
        client.notify_many([(1, 1), (0, 0)])
        await place.until(lambda: (other.rings, client.rings) == ([3, 3], [1, 3]))
        assert identity(client.doorbell(1, 1)) == identity(server.eventfds(1)[1])
        for call in (client.notify, client.doorbell, lambda *pair: client.notify_many([(1, 0), pair])):
            with pytest.raises(NoSuchPeer):
                call(9, 0)
            with pytest.raises(NoSuchVector):
                call(1, 2)
        with pytest.raises(NoSuchPeer):
            client.notify_peer(9)
        assert eventfd.pending(server.eventfds(1)[0]) == 0
        other.close("enough")
        await place.until(lambda: not client.peers)
    await place.until(lambda: client.state is ClientState.CONNECTING)
    told = [type(event) for event in place.events if event.client is client]
    assert told.count(ClientPeerAdded) == told.count(ClientPeerRemoved) == 1
    assert 2 <= told.count(ClientRung) <= 3
    for call in (
        lambda: client.notify(1, 0),
        client.broadcast,
        lambda: client.notify_peer(1),
        lambda: client.notify_many([(1, 0)]),
        lambda: client.read_memory(0, 1),
        lambda: client.write_memory(0, b"x"),
        lambda: client.seen(1),
    ):
        with pytest.raises(ServerClosed, match=f'"demo0" is not connected to {place.path}: '):
            call()
    assert client.rings == [1, 3]


async def test_who_was_there_has_left_when_the_connection_ends(place: Place) -> None:
    with OtherServer(place.path, vectors=2):
        client = await place.joined()
        await place.joined()
        await place.until(lambda: client.peers)
        place.events.clear()
        client.close("it is enough")
        assert [event for event in place.events if event.client is client] == [
            ClientPeerRemoved(client, 1),
            ClientStateChanged(client, ClientState.CONNECTED, ClientState.CLOSED),
        ]
        assert client.reason == "it is enough"
        place.events.clear()
        client.close()
        assert place.events == []


async def test_the_memory(place: Place) -> None:
    with OtherServer(place.path, vectors=2) as server:
        client = await place.joined()
        assert client.memory_size == 65536
        client.write_memory(100, b"hello")
        assert os.pread(server.memory, 5, 100) == client.read_memory(100, 5) == b"hello"
        os.ftruncate(server.memory, 50)
        assert client.read_memory(100, 5) == b""  # and no SIGBUS
        client.memory.close()
        client.link.membership.memory = None


async def test_memory_that_knows_no_write(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is mapped instead (huge pages), but not where its owner could cut it off meanwhile."""

    def pwrite(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with OtherServer(place.path, vectors=2):
        client = await place.joined()
        sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(sealed, client.memory_size)
        monkeypatch.setattr("doorbelld.ivshmem.hostclient.os.pwrite", pwrite)
        with pytest.raises(MemoryUnavailable, match="can't be written: Invalid argument"):
            client.write_memory(0, b"y")
        fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        os.dup2(sealed, client.memory.fileno(), inheritable=False)
        client.write_memory(100, b"hello")
        assert os.pread(sealed, 6, 100) == b"hello\0"
        os.close(sealed)


async def test_memory_that_can_not_be_written(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 4096)
    with OtherServer(place.path, vectors=2):
        client = await place.joined()
        with open(tmp_path / "file", "rb") as file:
            os.dup2(file.fileno(), client.memory.fileno())
        with pytest.raises(MemoryUnavailable, match="can't be written: Bad file descriptor"):
            client.write_memory(0, b"y")
        fcntl.fcntl(client.memory.fileno(), fcntl.F_GETFD)


@pytest.mark.parametrize("lie", ["version 1", "-1 without fd", "id 70000", "1,000 vectors", "own vector is a file"])
async def test_a_server_that_lies_harms_nobody_else(place: Place, lie: str, tmp_path: Path) -> None:
    with OtherServer(place.path, vectors=2) as server, OtherServer(f"{tmp_path}/liar", script=LIES[lie]):
        good = await place.joined()
        liar = HostClient.open(
            ClientSpec("liar", f"{tmp_path}/liar", reconnect=False), asyncio.get_running_loop(), place.events.append
        )
        place.clients.append(liar)
        await place.until(lambda: liar.state is ClientState.BROKEN)
        assert liar.spec.socket in liar.reason
        assert not liar.peers
        os.eventfd_write(server.eventfds(0)[0], 1)
        await place.until(lambda: good.rings == [1, 0])
        assert good.state is ClientState.CONNECTED


async def test_change(place: Place) -> None:
    client = place.open(reconnect=False, vectors_max=1)
    await place.until(lambda: client.state is ClientState.BROKEN)
    with OtherServer(place.path, vectors=2):
        client.change(ClientSpec("demo0", place.path, 1, True), configured=True)
        assert client.configured
        await place.until(lambda: "more than 1 vectors" in client.reason)
        client.change(ClientSpec("demo0", place.path, 2, True), configured=True)
        await place.until(lambda: client.vectors == 2)


# Flat devices


async def test_a_flat_device_is_a_guest(place: Place) -> None:
    with OtherServer(place.path, vectors=2) as server:
        flat = await place.joined(HostFlat, memory_size=65536)
        raw = RawClient(place.path, keep=True)
        while raw.messages < 7:
            assert raw.message() is not None
        await place.until(lambda: 1 in flat.peers and flat.peers[1].vectors == 2)
        assert [flat.read(offset) for offset in (0, 4, 8, 12)] == [0, 0, 0, 0]
        flat.write(12, 1 << 16 | 1)
        assert eventfd.pending(server.eventfds(1)[1]) == 1
        flat.write(0, 5)
        for wrong in (lambda: flat.read(16), lambda: flat.write(8, 1)):
            with pytest.raises(InvalidRegister):
                wrong()
        with pytest.raises(NoSuchVector):
            flat.write(12, 1 << 16 | 99)
        with pytest.raises(NoSuchPeer):
            flat.write(12, 70 << 16)
        place.events.clear()
        os.eventfd_write(raw.fds[0][1], 2)
        await place.until(lambda: place.events)
        assert place.events == [ClientRung(flat, 1, 2)]
        assert flat.device.interrupts == {1: 2}
        assert flat.rings == [0, 2]
        raw.close()
    await place.until(lambda: flat.state is ClientState.CONNECTING)
    with pytest.raises(ServerClosed):
        flat.write(12, 1 << 16)


async def test_a_flat_device_wants_its_very_size(place: Place) -> None:
    with OtherServer(place.path, vectors=2):
        flat = place.open(HostFlat, memory_size=4096)
        await place.until(lambda: flat.state is ClientState.BROKEN)
        assert "the server's memory has 65536 bytes, the device 4096" in flat.reason
        assert flat.memory is None
        assert isinstance(flat.spec, FlatSpec)
