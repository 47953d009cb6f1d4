# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a client knows, against a simple model of it; without a socket."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest
from doorbelld.fds.owned import Fd
from doorbelld.ivshmem.membership import (
    Change,
    Membership,
    PeerJoined,
    PeerLeft,
    RemotePeer,
    StrayLeave,
    VectorAdded,
    Welcomed,
)
from doorbelld.wire.ivshmem import OutOfPlace, ProtocolError, TooManyVectors, WrongVersion, encode
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fdcount import no_leaks
from support.rawclient import identity

OWN = 2
Tail = list[tuple[int, bool]]
ids = st.integers(0, 4)
tails = st.lists(st.tuples(ids, st.integers(0, 3).map(bool)), max_size=30)


def eventfd() -> Fd:
    return Fd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))


def memory() -> Fd:
    return Fd(os.memfd_create("memory"))


def greeted(own: int = OWN, **options: int) -> Membership:
    made = Membership(**options)
    assert list(made.feed(encode(0) + encode(own))) == []
    assert list(made.feed(encode(-1), [memory()])) == [Welcomed(own)]
    return made


def feed(membership: Membership, tail: Tail, step: int = 8) -> list[Change]:
    changes: list[Change] = []
    for value, has_fd in tail:
        raw = encode(value)
        for place in range(0, 8, step):
            changes += membership.feed(raw[place : place + step], [eventfd()] if has_fd and not place else [])
    return changes


def told(changes: Iterable[Change]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for change in changes:
        match change:
            case VectorAdded(peer, vector):
                rows.append(("vector", peer.id, vector))
            case PeerJoined(peer):
                rows.append(("joined", peer.id))
            case PeerLeft(peer):
                rows.append(("left", peer.id))
            case StrayLeave(peer_id):
                rows.append(("stray", peer_id))
    return rows


def model(tail: Tail, most: int) -> tuple[list[tuple[Any, ...]], dict[int, int], int, bool]:
    """Say what there is to tell, the others' vectors, our own, and whether the last message is one too many."""
    rows: list[tuple[Any, ...]] = []
    others: dict[int, int] = {}
    own = 0
    for value, has_fd in tail:
        count = own if value == OWN else others.get(value, 0)
        if has_fd and count == most:
            return rows, others, own, True
        if has_fd and value == OWN:
            own += 1
        elif has_fd:
            if not count:
                rows.append(("joined", value))
            others[value] = count + 1
        elif value == OWN:
            return rows, others, own, True
        else:
            rows.append(("left" if value in others else "stray", value))
            others.pop(value, None)
        if has_fd:
            rows.append(("vector", value, count))
    return rows, others, own, False


@settings(max_examples=200, deadline=None)
@given(tails, st.sampled_from([1, 3, 8]))
def test_joins_leaves_and_vectors_in_any_order(tail: Tail, step: int) -> None:
    want, others, own, bad = model(tail, most=3)
    with no_leaks():
        membership = greeted(vectors_max=3)
        changes: list[Change] = []
        failed = False
        try:
            for message in tail:
                changes += feed(membership, [message], step)
        except ProtocolError:
            failed = True
        assert failed == bad
        assert told(changes) == want
        assert {peer.id: peer.vectors for peer in membership.peers.values()} == others
        assert list(membership.peers) == list(others)
        assert membership.own.vectors == own
        assert OWN not in membership.peers
        doorbells = {OWN: own, **others} if own else others
        assert {peer_id: len(of) for peer_id, of in membership.doorbells.items()} == doorbells
        membership.close()


def test_vectors_are_positional_and_belong_to_their_peer() -> None:
    with no_leaks():
        membership = greeted()
        sent: dict[int, list[int]] = {}
        for value in (7, 9, 7, OWN, 9, OWN, 7):
            fd = eventfd()
            sent.setdefault(value, []).append(identity(fd.fileno()))
            list(membership.feed(encode(value), [fd]))
        for peer_id, want in sent.items():
            peer = membership.search(peer_id)
            assert peer is not None
            assert [identity(fd) for fd in peer.eventfds] == want
            assert membership.doorbells[peer_id] is peer.eventfds.array
        membership.close()


def test_search_finds_the_others_and_ourselves() -> None:
    """ivshmem_client_search_peer: the local peer too."""
    with no_leaks():
        membership = greeted()
        feed(membership, [(7, True)])
        assert membership.search(7) is membership.peers[7]
        assert membership.search(OWN) is membership.own
        assert membership.search(8) is None
        membership.close()
        assert membership.search(OWN) is None


def test_a_peer_that_left_has_its_doorbells_until_the_change_is_handled() -> None:
    with no_leaks():
        membership = greeted()
        feed(membership, [(7, True), (7, True)])
        known = membership.peers[7]
        for change in membership.feed(encode(7)):
            assert isinstance(change, PeerLeft)
            assert change.peer is known
            assert [identity(fd) for fd in known.eventfds]
            assert not membership.peers
            assert 7 not in membership.doorbells
        assert known.vectors == 0
        membership.close()


def test_who_leaves_and_comes_again_is_somebody_new() -> None:
    with no_leaks():
        membership = greeted()
        feed(membership, [(7, True), (7, True)])
        old = membership.peers[7]
        assert told(feed(membership, [(7, False), (7, True)])) == [("left", 7), ("joined", 7), ("vector", 7, 0)]
        assert membership.peers[7] is not old
        assert membership.peers[7].vectors == 1
        membership.close()


def test_a_stray_leave_changes_nothing() -> None:
    with no_leaks():
        membership = greeted()
        feed(membership, [(7, True)])
        assert feed(membership, [(8, False)]) == [StrayLeave(8)]
        assert list(membership.peers) == [7]
        membership.close()


def test_the_id_is_there_before_the_welcome() -> None:
    with no_leaks():
        membership = Membership()
        assert membership.id is None
        assert list(membership.feed(encode(0))) == []
        assert (membership.id, membership.welcome) == (None, False)
        assert list(membership.feed(encode(5))) == []
        assert (membership.id, membership.welcome) == (5, False)
        assert list(membership.feed(encode(-1), [memory()])) == [Welcomed(5)]
        assert membership.welcome
        assert membership.memory is not None
        membership.close()
        assert membership.id is None
        assert not membership.welcome


@pytest.mark.parametrize("peer", [OWN, 7])
@pytest.mark.parametrize("most", [64, 3])
def test_one_vector_more_than_are_taken(peer: int, most: int) -> None:
    """IVSHMEM_CLIENT_MAX_VECTORS: 64 are taken, the 65th is an error."""
    with no_leaks():
        membership = greeted(**({} if most == 64 else {"vectors_max": most}))
        feed(membership, [(peer, True)] * most)
        found = membership.search(peer)
        assert found is not None
        assert found.vectors == most
        with pytest.raises(TooManyVectors, match=f"peer {peer} has more than {most} vectors"):
            feed(membership, [(peer, True)])
        membership.close()


def test_more_than_64_vectors_where_they_are_wanted() -> None:
    with no_leaks():
        membership = greeted(vectors_max=100)
        feed(membership, [(7, True)] * 100)
        assert membership.peers[7].vectors == 100
        membership.close()


@pytest.mark.parametrize("path", ["/dev/null", "/", "/proc/self/status"])
@pytest.mark.parametrize("peer", [OWN, 7])
def test_a_file_is_no_doorbell(peer: int, path: str) -> None:
    with no_leaks():
        membership = greeted()
        with pytest.raises(OutOfPlace, match=f"a doorbell of peer {peer} is no eventfd"):
            list(membership.feed(encode(peer), [Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC))]))
        assert not membership.peers
        assert not membership.doorbells
        membership.close()


def test_a_pipe_is_no_doorbell() -> None:
    with no_leaks():
        membership = greeted()
        here, there = map(Fd, os.pipe())
        with here, pytest.raises(OutOfPlace, match="no eventfd"):
            list(membership.feed(encode(7), [there]))
        membership.close()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encode(1), WrongVersion),
        (encode(-2), WrongVersion),
        (encode(0) + encode(70000), OutOfPlace),
        (encode(0) + encode(0) + encode(-1), OutOfPlace),
    ],
)
def test_the_type_says_what_is_wrong(data: bytes, kind: type[ProtocolError]) -> None:
    membership = Membership()
    with pytest.raises(kind):
        list(membership.feed(data))
    membership.close()


def test_the_server_can_not_say_that_we_left() -> None:
    with no_leaks():
        membership = greeted()
        feed(membership, [(OWN, True)])
        with pytest.raises(OutOfPlace, match="that we, peer 2, left"):
            feed(membership, [(OWN, False)])
        membership.close()


def test_closing_closes_what_no_message_carried_out() -> None:
    with no_leaks():
        membership = greeted()
        feed(membership, [(7, True), (OWN, True)])
        list(membership.feed(encode(9)[:3], [eventfd()]))
        membership.close()
        membership.close()
        assert not membership.peers
        assert membership.own.vectors == 0
        assert not membership.doorbells


def test_a_peer_can_be_printed() -> None:
    assert repr(RemotePeer(7)) == "RemotePeer(id=7, vectors=0)"
