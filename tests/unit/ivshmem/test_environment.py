# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A place in a region, said in variables: what comes out is what went in, and what is not there is told."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from doorbelld.errors import NoSuchPeer, ProtocolBroken, ServerClosed, ServerUnavailable
from doorbelld.ivshmem.client import Client, Rung
from doorbelld.ivshmem.environment import PREFIX, Place
from doorbelld.ivshmem.membership import PeerJoined, PeerLeft, VectorAdded
from doorbelld.wire.ivshmem import encode
from hypothesis import given
from hypothesis import strategies as st
from support.fdcount import no_leaks

SIZE = 4096
FDS = st.lists(st.integers(3, 4000), max_size=4)
PLACES = st.builds(
    Place,
    id=st.integers(0, 65535),
    memory=st.integers(3, 99),
    size=st.integers(1, 1 << 40),
    own=FDS,
    peers=st.dictionaries(st.integers(0, 65535), FDS, max_size=4),
    link=st.integers(3, 99),
    live=st.booleans(),
)


@given(PLACES, st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_what_is_written_is_read(place: Place, region: str) -> None:
    variables = place.variables(region)
    assert Place.read({"HOME": "/", **variables}) == place
    assert all(name.startswith(PREFIX) for name in variables)
    assert variables["DOORBELL_REGION"] == region
    assert variables["DOORBELL_VECTORS"] == str(len(place.own))
    assert ("DOORBELL_SOCKET_FD" in variables) is place.live is not ("DOORBELL_GONE_FD" in variables)


@given(PLACES, st.data())
def test_a_variable_that_is_missing_or_wrong_is_named(place: Place, data: st.DataObject) -> None:
    variables = place.variables("demo")
    needed = sorted(set(variables) - {"DOORBELL_REGION", "DOORBELL_VECTORS"})
    name = data.draw(st.sampled_from(needed))
    if data.draw(st.booleans()):
        variables[name] = "3 x"
    else:
        del variables[name]
    with pytest.raises(ServerUnavailable, match="doorbellctl attach") as caught:
        Place.read(variables)
    assert name in str(caught.value) or name == "DOORBELL_SOCKET_FD"


@contextmanager
def placed(*, live: bool = True, own_id: int = 1) -> Iterator[tuple[dict[str, str], socket.socket, Place]]:
    """Make a place with two vectors and a peer 0, its variables, and the server's end of its connection.

    The descriptors are those of who takes the place.
    """
    memory = os.memfd_create("region")
    os.truncate(memory, SIZE)
    bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    theirs, ours = socket.socketpair()
    place = Place(own_id, memory, SIZE, bells[:2], {0: bells[2:]}, ours.detach(), live)
    with theirs:
        yield {"HOME": "/", **place.variables("demo")}, theirs, place


@pytest.mark.parametrize("live", [True, False])
def test_a_client_takes_the_place(live: bool) -> None:
    with no_leaks(), placed(live=live) as (environment, server, place):
        for fd in place.fds:
            os.set_inheritable(fd, True)
        with Client.from_environment(environment) as client:
            assert environment == {"HOME": "/"}
            assert not any(map(os.get_inheritable, place.fds))
            assert (client.id, client.vectors, list(client.peers), len(client.memory)) == (1, 2, [0], SIZE)
            assert client.memory_fd == place.memory
            client.memory[:2] = b"hi"
            assert os.pread(place.memory, 2, 0) == b"hi"
            client.notify(0, 1)
            assert os.eventfd_read(place.peers[0][1]) == 1
            os.eventfd_write(place.own[1], 3)
            assert client.poll(5) == [Rung(1, 3)]
            server.close()
            with pytest.raises(ServerClosed):
                client.poll(5)
            assert not client.connected


def test_what_the_server_says_goes_on() -> None:
    with no_leaks(), placed() as (environment, server, _), Client.from_environment(environment) as client:
        bell = os.eventfd(0)
        for peer_id in (7, 0):
            socket.send_fds(server, [encode(peer_id)], [bell])
        server.send(encode(0))
        seen = client.wait_for(lambda: 0 not in client.peers, 5)
        os.close(bell)
        kinds = [type(event) for event in seen]
        assert kinds == [PeerJoined, VectorAdded, VectorAdded, PeerLeft]
        assert list(client.peers) == [7]
        client.notify(7, 0)
        with pytest.raises(NoSuchPeer):
            client.notify(0, 0)


def test_rings_call_back() -> None:
    heard = []
    with no_leaks(), placed() as (environment, _, place):
        with Client.from_environment(environment, notified=lambda *said: heard.append(said[1:])) as client:
            os.eventfd_write(place.own[0], 1)
            client.poll(5)
        assert heard == [(0, 1)]


def test_a_second_time_there_is_none() -> None:
    with placed() as (environment, _, _):
        Client.from_environment(environment).close()
        with pytest.raises(ServerUnavailable, match="DOORBELL_ID is not in the environment"):
            Client.from_environment(environment)


def test_of_this_process() -> None:
    with pytest.raises(ServerUnavailable, match="doorbellctl attach REGION --exec"):
        Client.from_environment()


def close(place: Place) -> None:
    for fd in place.fds:
        os.close(fd)


@pytest.mark.parametrize("which", range(6))
def test_a_descriptor_that_was_closed_is_noticed(which: int) -> None:
    """Or leads elsewhere by now; nothing is touched then."""
    with no_leaks(), placed() as (environment, _, place):
        before = dict(environment)
        fd = place.fds[which]
        spare = os.dup(fd)
        os.close(fd)
        with pytest.raises(ServerUnavailable, match="pass_fds"):
            Client.from_environment(environment)
        with open("/dev/null", "rb") as other:
            os.dup2(other.fileno(), fd)
        with pytest.raises(ServerUnavailable, match="pass_fds"):
            Client.from_environment(environment)
        assert environment == before
        os.dup2(spare, fd)
        os.close(spare)
        close(place)


def test_a_descriptor_that_is_named_twice_is_not_taken_twice() -> None:
    with no_leaks(), placed() as (environment, _, place):
        environment["DOORBELL_FDS"] = f"{place.own[0]} {place.own[0]}"
        with pytest.raises(ServerUnavailable, match="twice"):
            Client.from_environment(environment)
        close(place)


def test_a_place_that_can_not_be() -> None:
    with no_leaks(), placed(own_id=70_000) as (environment, _, _), pytest.raises(ProtocolBroken, match="70000"):
        Client.from_environment(environment)
