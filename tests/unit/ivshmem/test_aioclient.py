# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from doorbelld.errors import (
    DoorbellError,
    NoSuchPeer,
    NoSuchVector,
    ProtocolBroken,
    ServerClosed,
    ServerUnavailable,
)
from doorbelld.ivshmem import aioclient as module
from doorbelld.ivshmem import link as link_module
from doorbelld.ivshmem.aioclient import AsyncClient, AsyncEvent, Disconnected, Reconnected
from doorbelld.ivshmem.client import Rung
from doorbelld.ivshmem.membership import PeerJoined, PeerLeft, RemotePeer, VectorAdded, Welcomed
from doorbelld.ivshmem.receive import Backoff
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fdcount import no_leaks
from support.otherserver import LIES, OtherServer, greeting, message, play
from support.rawclient import DEADLINE, identity


@pytest.fixture
async def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setattr(link_module, "Backoff", lambda: Backoff(0.002, 0.01))
    with no_leaks():
        yield f"{tmp_path}/s"


class Reader:
    """Applies events to a model of its own."""

    def __init__(self) -> None:
        self.events: list[AsyncEvent] = []
        self.id: int | None = None
        self.peers: dict[int, tuple[RemotePeer, int]] = {}
        self.own = 0
        self.rings: dict[int, int] = {}

    def take(self, event: AsyncEvent) -> None:
        self.events.append(event)
        match event:
            case Welcomed(peer_id) | Reconnected(peer_id):
                assert self.id is None
                self.id = peer_id
            case Disconnected():
                assert self.id is not None
                self.id, self.own = None, 0
                self.peers.clear()
            case PeerJoined(peer):
                assert peer.id not in self.peers
                self.peers[peer.id] = peer, 0
            case PeerLeft(peer):
                assert self.peers.pop(peer.id)[0] is peer
            case VectorAdded(peer, vector) if peer.id == self.id:
                assert vector == self.own
                self.own += 1
            case VectorAdded(peer, vector):
                assert self.peers[peer.id] == (peer, vector)
                self.peers[peer.id] = peer, vector + 1
            case Rung(vector, count):
                self.rings[vector] = self.rings.get(vector, 0) + count

    async def read(self, client: AsyncClient, count: int) -> list[AsyncEvent]:
        del self.events[:]
        async with asyncio.timeout(DEADLINE):
            while len(self.events) < count:
                self.take(await anext(client))  # type: ignore[arg-type]
        return self.events


async def test_everything_that_a_client_does(path: str) -> None:
    notified: list[tuple[AsyncClient, int, int]] = []
    with OtherServer(path, vectors=2) as server:
        async with (
            AsyncClient(path, notified=lambda *what: notified.append(what)) as client,
            AsyncClient(path) as other,
        ):
            await client.wait_for(lambda: client.vectors == 2 and client.search_peer(other.id).vectors == 2, DEADLINE)
            await other.wait_for(lambda: other.vectors == 2, DEADLINE)
            assert (client.id, client.connected, client.reason) == (0, True, "")
            assert [peer.id for peer in client] == list(client.peers) == [1]
            assert client.search_peer(0).vectors == 2
            assert "our ID: 0" in client.dump()
            client.memory[0:5] = b"hello"
            assert other.memory[0:5] == os.pread(client.memory_fd, 5, 0) == b"hello"
            other.notify(0, 1)
            other.notify_all_vectors(0)
            other.notify_broadcast()
            await client.wait_for(lambda: client.rings == [2, 3], DEADLINE)
            assert sum(count for _, _, count in notified) == 5
            assert all(who is client for who, _, _ in notified)
            for wrong, error in (((9, 0), NoSuchPeer), ((1, 2), NoSuchVector)):
                with pytest.raises(error):
                    client.notify(*wrong)
            with pytest.raises(NoSuchPeer):
                client.search_peer(9)
        server.wait_for(lambda: not server.connections)
    with pytest.raises(ServerClosed, match="connect first"):
        client.notify(1, 0)
    with pytest.raises(ServerClosed):
        _ = client.memory
    assert client.rings == []
    client.close()


async def test_events_in_order(path: str) -> None:
    """The reader is told first what is there already."""
    with OtherServer(path, vectors=2) as server:
        reader = Reader()
        async with AsyncClient(path) as client:
            await client.wait_for(lambda: client.vectors == 2, DEADLINE)
            assert await reader.read(client, 3) == [
                Welcomed(0),
                VectorAdded(client.search_peer(0), 0),
                VectorAdded(client.search_peer(0), 1),
            ]
            async with AsyncClient(path):
                await reader.read(client, 3)
                assert reader.peers[1][1] == 2
            left = (await reader.read(client, 1))[0]
            assert isinstance(left, PeerLeft)
            os.eventfd_write(server.eventfds(0)[1], 3)
            assert await reader.read(client, 1) == [Rung(1, 3)]
            for _ in range(3):
                os.eventfd_write(server.eventfds(0)[0], 2)
                await client.wait_for(lambda n=client.rings[0]: client.rings[0] > n, DEADLINE)  # type: ignore[misc]
            assert await reader.read(client, 1) == [Rung(0, 6)]  # nobody read meanwhile
            server.kick(0)
            gone, back = (await reader.read(client, 2))[:2]
            assert isinstance(gone, Disconnected)
            assert "closed the connection" in gone.reason
            assert back == Reconnected(2)
            waiting = asyncio.ensure_future(anext(client))  # type: ignore[arg-type]
            await asyncio.sleep(0)
        with pytest.raises(StopAsyncIteration):
            while True:
                await waiting
                waiting = asyncio.ensure_future(anext(client))  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0, 3, 1000])
async def test_who_reads_late_is_told_the_difference(path: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHANGES_MAX", limit)
    with OtherServer(path, vectors=2) as server:
        reader = Reader()
        async with AsyncClient(path) as client:

            async def agree() -> None:
                async with asyncio.timeout(DEADLINE):
                    while (
                        reader.id != client.own_id
                        or {i: n for i, (_, n) in reader.peers.items()} != {p.id: p.vectors for p in client}
                        or reader.own != client.vectors
                    ):
                        reader.take(await anext(client))  # type: ignore[arg-type]
                assert all(client.search_peer(i) is peer for i, (peer, _) in reader.peers.items())

            await client.wait_for(lambda: client.vectors == 2, DEADLINE)
            await agree()
            others = [await AsyncClient(path).connect() for _ in range(4)]
            await client.wait_for(lambda: len(client.peers) == 4, DEADLINE)
            await agree()
            others.pop().close()
            others.append(await AsyncClient(path).connect())
            os.eventfd_write(server.eventfds(0)[0], 2)
            await client.wait_for(lambda: 5 in client.peers and client.peers[5].vectors == 2, DEADLINE)
            await client.wait_for(lambda: client.rings == [2, 0], DEADLINE)
            await agree()
            server.kick(0)
            await client.wait_for(lambda: client.own_id not in (None, 0), DEADLINE)
            server.kick(client.id)
            await client.wait_for(lambda: client.own_id not in (None, 0, 6) and client.vectors == 2, DEADLINE)
            await agree()
            assert reader.rings == {0: 2}
            assert len([event for event in reader.events if isinstance(event, Disconnected)]) in (1, 2)
            for other in others:
                other.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 3), st.integers(-4, -1), st.just("read")), max_size=40), st.integers(0, 6))
def test_any_story_read_at_any_pace(story: list[int | str], limit: int) -> None:
    """A reader knows in the end what the client knows, whatever it missed."""

    async def tell() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            play(theirs, greeting(7))
            client = await AsyncClient.adopt(ours)
            reader, there = Reader(), set()
            for step in story:
                if step == "read":
                    while (event := client._next()) is not None:
                        reader.take(event)
                elif isinstance(step, int) and step >= 0:
                    play(theirs, [message(step, "eventfd")])
                    there.add(step)
                elif isinstance(step, int) and ~step in there:
                    play(theirs, [message(~step)])
                    there.discard(~step)
                assert client._link is not None
                client._link._readable()
            while (event := client._next()) is not None:
                reader.take(event)
            assert {i: n for i, (_, n) in reader.peers.items()} == {p.id: p.vectors for p in client}
            assert set(reader.peers) == there
            client.close()

    with no_leaks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHANGES_MAX", limit)
        asyncio.run(tell())


async def test_adopt(path: str) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        play(theirs, [*greeting(5), message(5, "eventfd"), message(6, "eventfd")])
        client = await AsyncClient.adopt(ours)
        await client.wait_for(lambda: 6 in client.peers, DEADLINE)
        assert client.id == 5
    events = [event async for event in client]
    assert isinstance(events[-1], Disconnected)
    with pytest.raises(ServerClosed, match="closed the connection"):
        await client.wait_for(lambda: client.peers, DEADLINE)
    client.close()


@pytest.mark.parametrize("lie", ["version 1", "end at once", "memory is empty", "silence"])
@pytest.mark.parametrize("reconnect", [False, True])
async def test_servers_that_are_none(path: str, lie: str, reconnect: bool) -> None:
    kinds: dict[str, type[DoorbellError]] = {"end at once": ServerClosed, "silence": ServerUnavailable}
    with OtherServer(path, script=LIES[lie]), pytest.raises(kinds.get(lie, ProtocolBroken)):
        await AsyncClient(path, reconnect=reconnect).connect(0.1 if reconnect or lie == "silence" else DEADLINE)
    with pytest.raises(ServerUnavailable, match="no ivshmem server"):
        await AsyncClient(path, reconnect=reconnect).connect(0.05)


async def test_waiting_in_vain(path: str) -> None:
    with OtherServer(path, vectors=1):
        async with AsyncClient(path) as client:
            with pytest.raises(TimeoutError, match=r"did not happen within 0\.01 s"):
                await client.wait_for(lambda: client.peers, 0.01)

            def fail() -> bool:
                raise TimeoutError("mine")

            with pytest.raises(TimeoutError, match="mine"):
                await client.wait_for(fail)
        with pytest.raises(ServerClosed):
            await client.wait_for(lambda: client.peers, 0.01)


async def test_memory_that_somebody_looks_at_stays(path: str) -> None:
    with OtherServer(path, vectors=1) as server:
        client = await AsyncClient(path, reconnect=False).connect()
        view = memoryview(client.memory)
        os.pwrite(server.memory, b"x", 0)
        client.close()
        assert view[0] == ord("x")
        view.release()


async def test_the_same_client_again(path: str) -> None:
    with OtherServer(path, vectors=1) as server:
        client = await AsyncClient(path).connect()
        await client.connect()
        server.wait_for(lambda: server.ids == [1])
        await client.wait_for(lambda: client.vectors == 1, DEADLINE)
        assert client.id == 1
        assert identity(client.doorbells[1][0]) == identity(server.eventfds(1)[0])
        client.close()
