# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The blocking client, against our own server and against one with none of our code in it.

A test named ``test_ivshmem_client_...`` proves the meaning of that function of the seed's header.
"""

from __future__ import annotations

import doctest
import inspect
import itertools
import os
import pydoc
import select
import selectors
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from doorbelld.errors import (
    DoorbellError,
    LimitExceeded,
    NoSuchPeer,
    NoSuchVector,
    ProtocolBroken,
    ServerClosed,
    ServerUnavailable,
)
from doorbelld.fds.bells import Bells
from doorbelld.ivshmem import client as module
from doorbelld.ivshmem.client import Client, Rung
from doorbelld.ivshmem.events import PeerRefused, PeerRemoved
from doorbelld.ivshmem.membership import StrayLeave
from doorbelld.ivshmem.rules import Match, PeerRule
from doorbelld.wire.ivshmem import OutOfPlace, ProtocolError, TooManyVectors, WrongVersion
from hypothesis import given, settings
from support.fdcount import no_descriptor_left, no_leaks, open_fds
from support.otherserver import HANG_UP, LIES, OtherServer, Piece, cut, end_after, greeting, message, play
from support.rawclient import DEADLINE, RawClient, identity

from .conftest import Site
from .test_membership import OWN, Tail, model, tails, told

VECTORS = 4


@dataclass
class Setting:
    """A server of one kind, and the clients of a test."""

    path: str
    stack: ExitStack

    def client(self, **options: Any) -> Client:
        """Connect, and wait until all that is ours has come."""
        client = self.stack.enter_context(Client(self.path, **options).connect(DEADLINE))
        client.wait_for(lambda: client.vectors == VECTORS, DEADLINE)
        return client

    def two(self, **options: Any) -> tuple[Client, Client]:
        """Connect two that know each other; *options* are the first one's."""
        one = self.client(**options)
        two = self.client()
        one.wait_for(lambda: two.id in one.peers and one.peers[two.id].vectors == VECTORS, DEADLINE)
        return one, two


@pytest.fixture(params=["ours", "other"])
def place(request: pytest.FixtureRequest, folder: str) -> Iterator[Setting]:
    """Somebody's server with `VECTORS` vectors."""
    with ExitStack() as stack:
        if request.param == "ours":
            site: Site = request.getfixturevalue("site")
            path = site.open(vectors=VECTORS).spec.socket
        else:
            stack.enter_context(no_leaks())
            path = stack.enter_context(OtherServer(f"{folder}/other.sock", vectors=VECTORS)).path
        yield Setting(path, stack)


@pytest.fixture
def other(folder: str) -> Iterator[OtherServer]:
    with no_leaks(), OtherServer(f"{folder}/other.sock", vectors=VECTORS) as server:
        yield server


def adopt(script: list[Piece], **options: Any) -> Client:
    """Be the client of a server that says *script* and goes."""
    ours, theirs = socket.socketpair()
    with theirs:
        play(theirs, script)
    return Client.adopt(ours, **options)


def rings(events: list[Any]) -> dict[int, int]:
    return {event.vector: event.count for event in events if isinstance(event, Rung)}


def poll_rings(client: Client, count: int) -> dict[int, int]:
    """Poll until so many rings have come."""
    got: dict[int, int] = {}
    while sum(got.values()) < count:
        events = client.poll(DEADLINE)
        assert events, "no ring came"
        for vector, more in rings(events).items():
            got[vector] = got.get(vector, 0) + more
    return got


# The seed's functions


def test_ivshmem_client_init_connects_to_nothing() -> None:
    with no_leaks():
        client = Client("/nowhere/socket")
        assert not client.connected
        assert client.fds() == []
        assert dict(client.peers) == {}
        assert list(client) == []
        assert client.vectors == 0
        assert client.dump() == "not connected to /nowhere/socket"
        uses: list[Callable[[], Any]] = [
            lambda: client.id,
            lambda: client.memory,
            lambda: client.memory_fd,
            client.fileno,
            client.handle_fds,
            client.poll,
            client.notify_broadcast,
            lambda: client.notify(1, 0),
            lambda: client.notify_all_vectors(1),
            lambda: client.search_peer(1),
        ]
        for use in uses:
            with pytest.raises(ServerClosed, match=r"not connected to .*; connect first"):
                use()


def test_ivshmem_client_connect_gives_id_and_memory(place: Setting) -> None:
    with Client(place.path) as client:
        assert client.connected
        assert client.id == 0
        assert len(client.memory) == 1 << 16
        assert os.fstat(client.memory_fd).st_size == 1 << 16
        assert client.vectors == 0
        assert not client.peers
        events = client.wait_for(lambda: client.vectors == VECTORS, DEADLINE)
        assert told(events) == [("vector", 0, vector) for vector in range(VECTORS)]
    assert not client.connected


def test_all_that_comes_after_the_greeting_is_told_as_events(place: Setting) -> None:
    """Nothing is swallowed by connect, however early it came."""
    one = place.client()
    two = place.stack.enter_context(Client(place.path).connect())
    events = two.wait_for(lambda: two.vectors == VECTORS, DEADLINE)
    all_of = [("vector", one.id, vector) for vector in range(VECTORS)]
    assert told(events) == [("joined", one.id), *all_of, *(("vector", two.id, v) for v in range(VECTORS))]
    assert told(one.wait_for(lambda: one.peers and one.peers[two.id].vectors == VECTORS, DEADLINE))[0] == (
        "joined",
        two.id,
    )


def test_ivshmem_client_close_is_a_leave(place: Setting) -> None:
    one, two = place.two()
    gone = two.id
    two.connect(DEADLINE)  # leaves, and comes again
    got: list[Any] = []
    while not {("joined", two.id), ("left", gone)} <= set(got):  # a server may hear of them in any order
        got += told(one.poll(DEADLINE))
    two.close()
    two.close()
    assert not two.connected
    assert two.fds() == []
    one.wait_for(lambda: not one.peers, DEADLINE)
    with pytest.raises(NoSuchPeer, match=f"no peer {gone}; there is: nobody else"):
        one.notify(gone, 0)


def test_ivshmem_client_get_fds_for_a_loop_of_ones_own(place: Setting) -> None:
    one, two = place.two()
    assert len(one.fds()) == 1 + VECTORS
    two.notify(one.id, 3)
    poll = select.poll()
    for fd in one.fds():
        poll.register(fd, select.POLLIN)
    ready = [fd for fd, _ in poll.poll(DEADLINE * 1000)]
    assert len(ready) == 1
    assert one.handle_fds(ready) == [Rung(3, 1)]
    assert not poll.poll(0)
    third = place.client()
    ready = [fd for fd, _ in poll.poll(DEADLINE * 1000)]
    assert ready == [one.fds()[0]]
    assert told(one.handle_fds(ready))[0] == ("joined", third.id)


def test_one_descriptor_for_a_loop_of_ones_own(place: Setting) -> None:
    one, two = place.two()
    number = one.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ)
        assert not selector.select(0)
        two.notify_all_vectors(one.id)
        got: dict[int, int] = {}
        while len(got) < VECTORS:
            assert selector.select(DEADLINE)
            got |= rings(one.handle_fds())
        assert got == dict.fromkeys(range(VECTORS), 1)
        place.client()
        assert selector.select(DEADLINE)
        assert one.handle_fds()
        assert one.fileno() == number
    assert select.select([one], [], [], 0) is not None


def test_ivshmem_client_handle_fds_leaves_other_descriptors_alone(place: Setting) -> None:
    one, two = place.two()
    foreign = os.eventfd(7)
    here, there = os.pipe()
    try:
        os.write(there, b"x")
        two.notify(one.id, 1)
        two.notify(one.id, 1)
        assert one.handle_fds([foreign, here, 10**6, -1]) == []
        assert one.handle_fds(iter([foreign, *one.fds(), here])) == [Rung(1, 2)]
        assert one.handle_fds(one.fds()) == []  # readable or not
        assert os.eventfd_read(foreign) == 7
        assert os.read(here, 9) == b"x"
    finally:
        for fd in (foreign, here, there):
            os.close(fd)


def test_ivshmem_client_notif_cb_is_called_for_each_vector(place: Setting) -> None:
    heard: list[tuple[Client, int, int]] = []
    one, two = place.two(notified=lambda *what: heard.append(what))
    two.notify(one.id, 2)
    two.notify(one.id, 2)
    two.notify(one.id, 0)
    assert poll_rings(one, 3) == {0: 1, 2: 2}
    assert sorted(heard, key=lambda row: row[1]) == [(one, 0, 1), (one, 2, 2)]


def test_ivshmem_client_notify_rings_one_vector(place: Setting) -> None:
    one, two = place.two()
    for vector in range(VECTORS):
        one.notify(two.id, vector)
        assert two.poll(DEADLINE) == [Rung(vector, 1)]
    one.notify(one.id, 1)  # ourselves
    assert one.poll(DEADLINE) == [Rung(1, 1)]
    assert not two.poll(0)


def test_ivshmem_client_notify_all_vects(place: Setting) -> None:
    one, two = place.two()
    one.notify_all_vectors(two.id)
    assert poll_rings(two, VECTORS) == dict.fromkeys(range(VECTORS), 1)
    assert not one.poll(0)


def test_ivshmem_client_notify_broadcast_rings_all_but_us(place: Setting) -> None:
    one, two = place.two()
    three = place.client()
    one.wait_for(lambda: three.id in one.peers and one.peers[three.id].vectors == VECTORS, DEADLINE)
    one.notify_broadcast()
    for each in (two, three):
        assert poll_rings(each, VECTORS) == dict.fromkeys(range(VECTORS), 1)
    assert not rings(one.poll(0))


def test_ivshmem_client_search_peer(place: Setting) -> None:
    one, two = place.two()
    assert one.search_peer(two.id) is one.peers[two.id]
    assert one.search_peer(one.id).id == one.id
    assert [peer.id for peer in one] == [two.id]
    with pytest.raises(NoSuchPeer, match=rf"^no peer 9; there is: {two.id} \(and we are {one.id}\)$"):
        one.search_peer(9)


def test_ivshmem_client_dump_names_everybody(place: Setting) -> None:
    one, two = place.two()
    lines = one.dump().splitlines()
    assert lines[:2] == [f"our ID: {one.id}", "memory: 65536 bytes"]
    assert lines[2 + VECTORS] == f"peer {two.id}"
    fds = [*one.search_peer(one.id).eventfds, *one.peers[two.id].eventfds]
    assert [line for line in lines if "vector" in line] == [
        f"  vector {place % VECTORS}: eventfd {fd}" for place, fd in enumerate(fds)
    ]


# What it promises besides


def test_a_missing_peer_or_vector_is_an_error_that_says_what_is_there(place: Setting) -> None:
    one, two = place.two()
    for vector in (VECTORS, -1, 1 << 70):
        with pytest.raises(NoSuchVector, match=rf"^peer {two.id} has vectors 0 to 3, not {vector}$"):
            one.notify(two.id, vector)
    for ring in (lambda: one.notify(9, 0), lambda: one.notify_all_vectors(9)):
        with pytest.raises(NoSuchPeer, match=rf"^no peer 9; there is: {two.id} \(and we are {one.id}\)$"):
            ring()
    assert isinstance(one, Bells)


def test_only_some_of_many_are_named() -> None:
    with no_leaks(), adopt([*greeting(5), *(message(n, "eventfd") for n in range(12) if n != 5)]) as client:
        client.poll(DEADLINE)
        with pytest.raises(NoSuchPeer, match=r"there is: 0, 1, 2, 3, 4, 6, 7, 8 \.\.\. \(and we are 5\)$"):
            client.notify(99, 0)
        with pytest.raises(NoSuchVector, match=r"^we, peer 5, have no vector yet"):
            client.notify(5, 0)


def test_the_memory_is_shared(place: Setting) -> None:
    one, two = place.two()
    one.memory[100:105] = b"hello"
    assert two.memory[100:105] == b"hello"


def test_a_view_of_the_memory_outlives_the_client(place: Setting) -> None:
    one, two = place.two()
    with memoryview(one.memory) as view:
        one.close()
        view[0:2] = b"ok"
        assert two.memory[0:2] == b"ok"
    with pytest.raises(ServerClosed):
        _ = one.memory


def test_waiting_in_vain_loses_nothing(place: Setting) -> None:
    one, two = place.two()
    two.notify(one.id, 1)
    with pytest.raises(TimeoutError, match=r"did not happen within 0\.05 s"):
        one.wait_for(lambda: False, 0.05)
    assert one.poll(0) == [Rung(1, 1)]
    assert one.poll(0) == []


def test_a_callback_that_fails_loses_no_ring(place: Setting) -> None:
    def fail(client: Client, vector: int, count: int) -> None:
        raise RuntimeError(f"{vector}")

    one, two = place.two(notified=fail)
    two.notify(one.id, 1)
    with pytest.raises(RuntimeError, match="1"):
        one.poll(DEADLINE)
    assert one.poll(0) == [Rung(1, 1)]


def test_a_callback_may_close_the_client(place: Setting) -> None:
    one, two = place.two(notified=lambda client, vector, count: client.close())
    two.notify_all_vectors(one.id)
    assert len(one.poll(DEADLINE)) == 1
    assert not one.connected


def test_two_threads_ring_and_wait(place: Setting) -> None:
    """A client that polls in one thread is rung from another; nothing is lost."""
    one, two = place.two()

    def ring() -> None:
        for _ in range(5000):
            two.notify(one.id, 0)

    thread = threading.Thread(target=ring)
    thread.start()
    assert poll_rings(one, 5000) == {0: 5000}
    thread.join(DEADLINE)


# Messages in pieces, and in any order


@pytest.mark.parametrize("split", range(1, 8))
def test_messages_split_at_every_byte(folder: str, split: int) -> None:
    with (
        no_leaks(),
        OtherServer(f"{folder}/s", vectors=2, split=split, delay=0.0005) as server,
        RawClient(server.path).greet(2),
        Client(server.path) as client,
    ):
        client.wait_for(lambda: client.vectors == 2, DEADLINE)
        for peer_id in (0, 1):
            found = client.search_peer(peer_id)
            assert list(map(identity, found.eventfds)) == list(map(identity, server.eventfds(peer_id)))
        server.kick(0)
        client.wait_for(lambda: not client.peers, DEADLINE)


@settings(max_examples=60, deadline=None)
@given(tails)
def test_orders_of_messages_over_a_socket(tail: Tail) -> None:
    """The kernel decides which messages are read together."""
    want, others, own, bad = model(tail, most=3)
    script = [*greeting(OWN), *(message(value, *["eventfd"] * has_fd) for value, has_fd in tail)]
    with no_leaks():
        client = adopt(script, vectors_max=3)
        got = []
        with pytest.raises(ProtocolBroken if bad else ServerClosed):
            while True:
                events = client.poll(DEADLINE)
                got += told(events)
                assert {peer.id: peer.vectors for peer in client} == others
                assert client.vectors == own
        assert got == want
        assert not client.connected
        assert not client.peers


SCRIPT = [*greeting(OWN), message(1, "eventfd"), message(OWN, "eventfd"), message(1), message(3, "eventfd")]
SAID = [("joined", 1), ("vector", 1, 0), ("vector", OWN, 0), ("left", 1), ("joined", 3), ("vector", 3, 0)]


@pytest.mark.parametrize("split", [0, 3])
def test_the_end_at_every_byte_comes_after_what_came_before(split: int) -> None:
    told_by = [0, 2, 3, 4, 6]  # how much of SAID is told by so many whole messages after the greeting
    with no_leaks():
        for size in range(8 * len(SCRIPT) + 1):
            script = end_after(cut(SCRIPT, split), size)
            if size < 24:
                with pytest.raises(
                    ServerClosed, match=r"^the server at the other end of .* closed the connection before"
                ):
                    adopt(script)
                continue
            client = adopt(script)
            got = told(client.poll(DEADLINE)) if size >= 32 else []
            with pytest.raises(ServerClosed, match=r"closed the connection$"):
                client.poll(DEADLINE)
            assert got == SAID[: told_by[size // 8 - 3]]
            assert not client.connected


# Servers that lie

COMPLAINTS: dict[str, tuple[type[DoorbellError], type[ProtocolError] | None, str]] = {
    "version 1": (ProtocolBroken, WrongVersion, "version 1, we speak 0"),
    "refused": (ProtocolBroken, WrongVersion, "refuses us"),
    "version with a descriptor": (ProtocolBroken, OutOfPlace, "VERSION message comes with a descriptor"),
    "id 70000": (ProtocolBroken, OutOfPlace, "peer ID 70000 is not within 0..65535"),
    "id -1": (ProtocolBroken, OutOfPlace, "peer ID -1 is not within"),
    "-1 without fd": (ProtocolBroken, OutOfPlace, "MEMORY message comes without a descriptor"),
    "memory is 0": (ProtocolBroken, OutOfPlace, r"expected the shared memory \(-1\), got 0"),
    "memory is a pipe": (ProtocolBroken, OutOfPlace, "what it sent as memory can't be mapped"),
    "memory is empty": (ProtocolBroken, OutOfPlace, "can't be mapped: cannot mmap an empty file"),
    "two memories": (ProtocolBroken, OutOfPlace, "message 2 carries more than one descriptor"),
    "-1 again": (ProtocolBroken, OutOfPlace, "peer ID -1 is not within"),
    "peer 70000": (ProtocolBroken, OutOfPlace, "peer ID 70000 is not within"),
    "1,000 vectors": (ProtocolBroken, TooManyVectors, "peer 1 has more than 64 vectors"),
    "1,000 own vectors": (ProtocolBroken, TooManyVectors, "peer 0 has more than 64 vectors"),
    "two fds": (ProtocolBroken, OutOfPlace, "message 3 carries more than one descriptor"),
    "200 fds": (ProtocolBroken, OutOfPlace, "message 3 carries more than one descriptor"),
    "fd twice in a message": (ProtocolBroken, OutOfPlace, "message 3 carries more than one descriptor"),
    "own vector is a file": (ProtocolBroken, OutOfPlace, "a doorbell of peer 0 is no eventfd"),
    "vector is a pipe": (ProtocolBroken, OutOfPlace, "a doorbell of peer 1 is no eventfd"),
    "we left": (ProtocolBroken, OutOfPlace, "the server says that we, peer 0, left"),
    "-1 left": (ProtocolBroken, OutOfPlace, "peer ID -1 is not within"),
    "silence": (ServerUnavailable, None, "accepts and says nothing"),
    "half a version": (ServerUnavailable, None, "accepts and says nothing"),
    "end at once": (ServerClosed, None, "closed the connection before it greeted us: it refuses us or is full"),
}


def test_each_lie_has_its_complaint() -> None:
    assert sorted(COMPLAINTS) == sorted(LIES)


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies(folder: str, lie: str) -> None:
    kind, cause, said = COMPLAINTS[lie]
    silent = kind is ServerUnavailable
    with no_leaks(), OtherServer(f"{folder}/s", script=LIES[lie]) as server:
        before = open_fds()
        client = Client(server.path)
        with pytest.raises(kind, match=f"^the server at {server.path} .*{said}") as caught:
            client.connect(0.05 if silent else DEADLINE)
            client.wait_for(lambda: False, DEADLINE)
        assert (type(caught.value.__cause__) if cause else caught.value.__cause__) is cause
        assert not client.connected
        assert not client.peers
        server.wait_for(lambda: not server.connections)
        assert open_fds() == before


def test_a_leave_of_somebody_unknown_is_no_error() -> None:
    """QEMU's own server sends them: it may have dropped the join."""
    with no_leaks(), adopt([*greeting(), message(7), message(8, "eventfd")]) as client:
        events = client.poll(DEADLINE)
        assert events[0] == StrayLeave(7)
        assert list(client.peers) == [8]


@pytest.fixture
def crowd() -> Iterator[list[RawClient]]:
    made: list[RawClient] = []
    yield made
    for client in made:
        client.close()


def test_a_server_that_drops_messages_as_qemu_does(other: OtherServer, crowd: list[RawClient]) -> None:
    """Who was slow misses joins, and is told leaves of those; it goes on."""
    other.drops, other.vectors = True, 64
    with Client(other.path) as slow:
        slow.wait_for(lambda: slow.vectors == 64, DEADLINE)
        crowd += [RawClient(other.path) for _ in range(8)]
        other.wait_for(lambda: len(other.ids) == 9)
        assert other.dropped > 100
        while slow.poll(0):
            pass
        missed = {client.id for client in slow} ^ set(range(1, 9))
        assert missed
        for peer_id in other.ids[1:]:
            other.kick(peer_id)
        strays: set[int] = set()
        while len(strays) < len(missed) or slow.peers:
            events = slow.poll(DEADLINE)
            assert events
            strays |= {event.id for event in events if isinstance(event, StrayLeave)}
        assert strays == missed


def test_a_doorbell_that_can_not_be_read_ends_the_connection(
    other: OtherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(other.path) as client:
        client.wait_for(lambda: client.vectors == VECTORS, DEADLINE)
        monkeypatch.setattr(module.native, "drain", lambda fd: (0, 22))
        os.eventfd_write(other.eventfds(0)[1], 1)
        with pytest.raises(ProtocolBroken, match="doorbell 1 can't be read: Invalid argument"):
            client.poll(DEADLINE)
        assert not client.connected


# The end


def test_rings_that_came_before_the_end_are_given_before_it(other: OtherServer) -> None:
    """Also of doorbells that the caller's loop had not found readable."""
    with Client(other.path) as client:
        client.wait_for(lambda: client.vectors == VECTORS, DEADLINE)
        for vector in (0, 2):
            os.eventfd_write(other.eventfds(0)[vector], 5)
        connection = client.fds()[0]
        other.kick(0)
        other.wait_for(lambda: not other.ids)
        assert rings(client.handle_fds([connection])) == {0: 5, 2: 5}
        with pytest.raises(ServerClosed, match=f"^the server at {other.path} closed the connection$"):
            client.handle_fds([])
        with pytest.raises(ServerClosed, match="not connected"):
            client.poll(0)


def test_who_rings_for_ever_does_not_hide_the_end(other: OtherServer) -> None:
    with Client(other.path).connect() as one, Client(other.path).connect() as two:
        two.wait_for(lambda: one.id in two.peers and two.vectors == VECTORS, DEADLINE)
        one.wait_for(lambda: one.vectors == VECTORS, DEADLINE)
        other.kick(one.id)
        other.wait_for(lambda: other.ids == [two.id])
        bell = os.dup(two.peers[one.id].eventfds[0])
        with pytest.raises(ServerClosed):
            for _ in range(8):
                os.eventfd_write(bell, 1)
                one.poll(DEADLINE)
        os.close(bell)


def test_what_was_seen_while_waiting_is_given_after_the_end(other: OtherServer) -> None:
    with Client(other.path) as client:
        client.wait_for(lambda: client.vectors == VECTORS, DEADLINE)
        other.say(0, message(9, "eventfd"), message(9), HANG_UP)
        with pytest.raises(ServerClosed):
            client.wait_for(lambda: False, DEADLINE)
        assert told(client.poll()) == [("joined", 9), ("vector", 9, 0), ("left", 9)]
        with pytest.raises(ServerClosed, match="not connected"):
            client.poll()


def test_nobody_is_there(folder: str) -> None:
    with no_leaks(), socket.socket(socket.AF_UNIX) as sock:
        with pytest.raises(ServerUnavailable, match=f"^no ivshmem server at {folder}/s: No such file or directory; "):
            Client(f"{folder}/s").connect()
        sock.bind(f"{folder}/s")
        with pytest.raises(ServerUnavailable, match="Connection refused; nobody listens there"):
            Client(f"{folder}/s").connect()
        with pytest.raises(ServerUnavailable, match="path too long"):
            Client("/" + "x" * 200).connect()


def test_a_region_that_refuses_us(site: Site) -> None:
    region = site.open(peer=(PeerRule(Match(vm="somebody-else")),))
    with pytest.raises(ServerClosed, match=f"^the server at {region.spec.socket} closed the connection before"):
        Client(region.spec.socket).connect(DEADLINE)
    site.wait(lambda: site.of(PeerRefused))


# Vectors


@pytest.mark.parametrize("whose", ["ours", "other"])
@pytest.mark.parametrize(("vectors", "most"), [(64, 64), (65, 64), (65, 65)])
def test_64_and_65_vectors(request: pytest.FixtureRequest, folder: str, whose: str, vectors: int, most: int) -> None:
    """IVSHMEM_CLIENT_MAX_VECTORS."""
    with ExitStack() as stack:
        if whose == "ours":
            site: Site = request.getfixturevalue("site")
            path = site.open(vectors=vectors, many_vectors=True).spec.socket
        else:
            stack.enter_context(no_leaks())
            path = stack.enter_context(OtherServer(f"{folder}/s", vectors=vectors)).path
        client = stack.enter_context(Client(path, vectors_max=most))
        if vectors > most:
            with pytest.raises(ProtocolBroken, match="peer 0 has more than 64 vectors") as caught:
                client.wait_for(lambda: client.vectors == vectors, DEADLINE)
            assert isinstance(caught.value.__cause__, TooManyVectors)
            return
        client.wait_for(lambda: client.vectors == vectors, DEADLINE)
        client.notify(client.id, vectors - 1)
        assert client.poll(DEADLINE) == [Rung(vectors - 1, 1)]


# Coming again


class Naps:
    """What is slept through in `Client.reconnect`."""

    def __init__(self, act: Callable[[int], Any] = lambda number: None) -> None:
        self.waits: list[float] = []
        self.act = act

    def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.act(len(self.waits))


def test_reconnect_tries_until_the_server_is_back(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with no_leaks(), ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        path = first.enter_context(OtherServer(f"{folder}/s")).path
        client = stack.enter_context(Client(path))
        client.wait_for(lambda: client.vectors == VECTORS, DEADLINE)
        first.close()
        with pytest.raises(ServerClosed):
            client.poll(DEADLINE)
        naps = Naps(lambda number: stack.enter_context(OtherServer(path)) if number == 4 else None)
        monkeypatch.setattr(module.time, "sleep", naps)
        assert client.reconnect() is client
        assert client.connected
        assert len(naps.waits) == 4
        for wait, most in zip(naps.waits, (0.1, 0.2, 0.4, 0.8), strict=True):
            assert most * 0.75 <= wait <= most
        client.wait_for(lambda: client.vectors == VECTORS, DEADLINE)
        client.close()


@pytest.mark.parametrize(("lie", "kind"), [("version 1", ProtocolBroken), ("end at once", ServerClosed)])
def test_reconnect_gives_up_with_what_the_last_try_said(
    folder: str, monkeypatch: pytest.MonkeyPatch, lie: str, kind: type[DoorbellError]
) -> None:
    naps = Naps()
    monkeypatch.setattr(module.time, "sleep", naps)
    with no_leaks():
        with OtherServer(f"{folder}/s", script=LIES[lie]) as server:
            with pytest.raises(kind):
                Client(server.path).reconnect(timeout=0.5)
            assert server.accepted == len(naps.waits) + 1
        with pytest.raises(ServerUnavailable):
            Client(server.path).reconnect(timeout=0)  # one try in any case


def test_reconnect_does_not_try_again_without_descriptors(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", Naps())
    with no_leaks(), no_descriptor_left(), pytest.raises(LimitExceeded, match="no descriptor for a connection"):
        Client(f"{folder}/s").reconnect(timeout=1)


def test_a_connection_that_was_handed_over(other: OtherServer) -> None:
    heard = []
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(other.path)
    with Client.adopt(sock, notified=lambda _, *what: heard.append(what)) as client:
        client.wait_for(lambda: client.vectors == VECTORS, DEADLINE)
        client.notify(client.id, 3)
        client.poll(DEADLINE)
        assert heard == [(3, 1)]
        with pytest.raises(ServerUnavailable, match="was handed to us and can't be made anew"):
            client.reconnect(0)


def test_adopting_a_socket_takes_it_over_even_if_that_fails() -> None:
    with no_leaks():
        ours, theirs = socket.socketpair()
        with theirs, pytest.raises(ServerUnavailable, match="accepts and says nothing"):
            Client.adopt(ours, timeout=0)


# Limits


def test_no_descriptors_left_at_any_point(other: OtherServer) -> None:
    """However many are left, it is a clear error, or works; and nothing leaks."""
    results = []
    for room in range(4 + VECTORS + 1):
        client = Client(other.path)
        other.wait_for(lambda: not other.connections)
        before = open_fds()
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(other.path)  # the server runs in this process: let it greet before there is nothing left
        other.wait_for(lambda: other.ids)
        spare = [os.dup(0) for _ in range(room)]
        with no_descriptor_left():
            for fd in spare:
                os.close(fd)
            try:
                client._begin(sock, None)
                client.wait_for(lambda client=client: client.vectors == VECTORS, DEADLINE)
                results.append("works")
            except LimitExceeded as error:
                results.append(str(error).split(";")[0])
                assert not client.connected
            client.close()
        other.wait_for(lambda: not other.connections)
        assert open_fds() == before
    assert results == [
        "no descriptor to wait with: Too many open files",
        "no descriptor left for a doorbell",
        "no descriptor left to map the memory",
        *["no descriptor left for a doorbell"] * VECTORS,
        *["works"] * 2,
    ]


# A client that dies


def test_a_client_killed_half_way_through_its_greeting(site: Site) -> None:
    """The server goes on, and the others are told."""
    region = site.open(vectors=64, max_peers=20)
    others = [site.join(region) for _ in range(6)]
    code = f"""
import socket, time
sock = socket.socket(socket.AF_UNIX)
sock.connect({region.spec.socket!r})
got = 0
while got < 24:
    got += len(sock.recv(24 - got))
print("half way", flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half way\n"
        assert site.call(lambda: region.peers[6].backlog)  # it has not been told all
        child.send_signal(signal.SIGKILL)
    site.gone(1)
    assert site.of(PeerRemoved)[0].peer.id == 6
    site.settle(region, others)
    for each in others:
        assert ("join", 6) not in each.log or each.log[-1] == ("left", 6)
    with Client(region.spec.socket) as client:
        client.wait_for(lambda: client.vectors == 64, DEADLINE)
        assert sorted(client.peers) == list(range(6))


# Teaching


def example_of_the_module() -> str:
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(module) or "")
    return "".join(example.source for example in examples)


def example_of_the_class() -> str:
    _, _, after = (inspect.getdoc(Client) or "").partition("::\n\n")
    block = itertools.takewhile(lambda line: not line or line.startswith("    "), after.splitlines())
    return textwrap.dedent("\n".join(block))


def run_example(example: str, path: str) -> None:
    written = "/run/doorbelld/demo/socket"
    assert example.count(written) == 1
    exec(example.replace(written, path), {})


def test_the_example_of_the_module_runs_as_written(place: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    """It rings the first of the others, and waits until that rings back."""
    friend = place.client()

    def answer() -> None:
        known = lambda: friend.peers and all(peer.vectors == VECTORS for peer in friend)  # noqa: E731
        if (rings(friend.wait_for(known, DEADLINE)) or poll_rings(friend, 1)) == {0: 1}:  # it may have rung already
            friend.notify(next(iter(friend)).id, 2)

    thread = threading.Thread(target=answer)
    thread.start()
    run_example(example_of_the_module(), place.path)
    thread.join(DEADLINE)
    assert capsys.readouterr().out == "Rung(vector=2, count=1)\n"
    assert friend.memory[0:5] == b"hello"


def test_the_example_of_the_class_runs_as_written(place: Setting) -> None:
    """It rings the first of the others, looks once at what has happened, and leaves."""
    friend = place.client()
    run_example(example_of_the_class(), place.path)
    assert poll_rings(friend, 1) == {0: 1}
    assert friend.memory[0:5] == b"hello"


def test_help_teaches_each_method() -> None:
    text = pydoc.plain(pydoc.render_doc(Client))
    for name, member in inspect.getmembers(Client):
        if not name.startswith("_"):
            assert inspect.getdoc(member), name
            assert name in text
    for word in ("with Client(", "client.notify(", "client.wait_for(", "client.poll(", "client.memory[", "select"):
        assert word in text
    for name in ("connect", "reconnect", "handle_fds", "poll", "wait_for", "notify", "notify_all_vectors"):
        assert "Raises:" in (inspect.getdoc(getattr(Client, name)) or ""), name
