# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""All interleavings of joins, leaves, partial sends and restarts: does each client end up with the truth?"""

from __future__ import annotations

import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from doorbelld.ivshmem.outbox import Leave, Outbox
from doorbelld.ivshmem.roster import Member, Roster
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

MEMORY = 1_000_000
IDS = 6
RETURNING = (4, 5)  # IDs given by a rule: their owner may be back while others are still owed the leave


class Tokens:
    """Stands in for an `FdSet`, with numbers that are no descriptors."""

    _next = itertools.count(1000)

    def __init__(self, count: int) -> None:
        self.array = array("i", itertools.islice(Tokens._next, count))

    def __len__(self) -> int:
        return len(self.array)


class Client:
    """Replays a stream and complains of whatever a client must never see."""

    def __init__(self, own: Member, whole: dict[int, list[int]]) -> None:
        self.own = own
        self.first = whole
        """Who was there before, and is to be told of before our own doorbells."""
        self.view: dict[int, list[int]] = {}
        self.count = 0
        self.run: int | None = None
        self.freed: set[int] = set()
        """IDs that left: a QEMU has freed what it knew of them."""

    def message(self, value: int, fd: int) -> None:
        self.count += 1
        if self.count <= 3:
            assert (value, fd) == [(0, -1), (self.own.id, -1), (-1, MEMORY)][self.count - 1]
        elif fd == -1:
            assert value in self.view, f"leave of {value}, who was never told of"
            del self.view[value]
            self.freed.add(value)
            self.run = None
        else:
            if value != self.run:
                assert value not in self.view, f"{value} told of twice, or not in one piece"
                self.begin(value)
            self.run = value
            self.view.setdefault(value, []).append(fd)

    def begin(self, peer_id: int) -> None:
        if peer_id == self.own.id:
            assert self.view == self.first, "own doorbells come before those of somebody who was there first"
        elif self.own.id not in self.view:
            assert peer_id in self.first, "somebody who came later is told of before the greeting is over"


class Qemu(Client):
    """A client that must never be told of an ID that it was told of before."""

    def begin(self, peer_id: int) -> None:
        assert peer_id not in self.freed, f"{peer_id} joins after its leave, which corrupts a QEMU's memory"
        super().begin(peer_id)


class Peer:
    def __init__(self, client: Client, outbox: Outbox, visible: Callable[[Member], bool] | None) -> None:
        self.client = client
        self.outbox = outbox
        self.visible = visible

    def sees(self, member: Member) -> bool:
        return self.visible is None or member is self.client.own or self.visible(member)


class Reconciliation(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.roster = Roster()
        self.peers: dict[int, Peer] = {}
        self.held: Counter[int] = Counter()
        self.absent: dict[int, Member] = {}
        self.retired: dict[int, set[int]] = {}
        """IDs that were given up, and who was there then and keeps IDs."""
        self.cut_off: set[int] = set()
        """IDs that had other doorbells when those who keep them were told of them."""

    def told(self, peer_id: int) -> None:
        self.held[peer_id] -= 1
        assert self.held[peer_id] >= 0, f"{peer_id} released more often than held"

    def box(
        self, own: Member, visible: Callable[[Member], bool] | None, told: Callable[[int], None], keeps: bool
    ) -> Outbox:
        return Outbox(self.roster, own, MEMORY, visible, told, keeps=keeps)

    def remembered(self, peer_id: int) -> bool:
        return any(peer_id in peer.outbox.kept for peer in self.peers.values())

    @rule(
        peer_id=st.integers(0, IDS - 1),
        vectors=st.integers(1, 4),
        seen=st.none() | st.frozensets(st.integers(0, IDS - 1)),
        keeps=st.booleans(),
        owner=st.booleans(),
    )
    def join(self, peer_id: int, vectors: int, seen: frozenset[int] | None, keeps: bool, owner: bool) -> None:
        """Somebody joins; if a peer remembers the ID, it is its *owner*, or whom a rule gives it to."""
        if peer_id in self.peers or (self.held[peer_id] and peer_id not in RETURNING) or peer_id in self.retired:
            return
        visible = None if seen is None else lambda member: member.id in seen
        absent = self.absent.pop(peer_id, None)
        if absent is not None and self.remembered(peer_id):
            if owner:
                vectors = len(absent.eventfds)
            else:
                for other in self.peers.values():
                    other.outbox.cut_off(peer_id)
                    if peer_id in other.client.first:  # what it was told so far is all that it will be told
                        other.client.first[peer_id] = other.client.view.get(peer_id, [])
                self.cut_off.add(peer_id)
        own = Member(peer_id, absent.eventfds if absent is not None and owner else Tokens(vectors))
        there = {m.id: list(m.eventfds.array) for m in self.roster.ordered if visible is None or visible(m)}
        self.roster.add(own)
        client = (Qemu if keeps else Client)(own, there)
        self.peers[peer_id] = Peer(client, self.box(own, visible, self.told, keeps), visible)

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        peer = self.peers.pop(data.draw(st.sampled_from(sorted(self.peers))))
        own = peer.client.own
        peer.outbox.abandon()
        for other in self.peers.values():
            # an owner that is back has the doorbells that it had: who is still owed its leave knows the earlier one
            owed = own.id in other.outbox.export()["leaves"]
            known = not owed and bool(other.client.view.get(own.id)) and self.knows(other, own)
            kept = own.id in other.outbox.kept
            left = other.outbox.leave(own)
            if not known or kept:
                assert left is Leave.NOTHING
            else:
                assert left is (Leave.KEPT if other.outbox.keeps else Leave.OWED)
            self.held[own.id] += left is Leave.OWED
            if left is not Leave.KEPT:
                other.client.first.pop(own.id, None)
        self.roster.remove(own)
        self.absent[own.id] = own
        self.retired = {k: there & self.peers.keys() for k, there in self.retired.items() if there & self.peers.keys()}

    @precondition(lambda self: self.absent)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """The ID of an absent peer is kept for it no longer, and given to nobody who could be mistaken for it."""
        gone = self.absent.pop(data.draw(st.sampled_from(sorted(self.absent))))
        for peer in self.peers.values():
            kept = gone.id in peer.outbox.kept
            assert peer.outbox.give_up(gone.id) is kept
            self.held[gone.id] += kept
            peer.client.first.pop(gone.id, None)
        self.cut_off.discard(gone.id)
        if there := {peer_id for peer_id, peer in self.peers.items() if peer.outbox.keeps}:
            self.retired[gone.id] = there

    @staticmethod
    def knows(peer: Peer, member: Member) -> bool:
        """Whether the client was told of this very member, not of an earlier one of that ID."""
        return peer.client.view[member.id][0] == member.eventfds.array[0]

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), limit=st.integers(1, 12))
    def send(self, data: st.DataObject, limit: int) -> None:
        peer = self.peers[data.draw(st.sampled_from(sorted(self.peers)))]
        values, fds = peer.outbox.batch(limit)
        assert len(values) == len(fds)
        again = peer.outbox.batch(limit)
        assert again == (values, fds), "to propose must not change anything"
        count = data.draw(st.integers(0, len(values)))
        for value, fd in zip(values[:count], fds[:count], strict=True):
            peer.client.message(value, fd)
        peer.outbox.sent(count)

    @rule()
    def restart(self) -> None:
        """Take everything apart into JSON and put it together in new objects."""
        state = json.loads(json.dumps({peer_id: peer.outbox.export() for peer_id, peer in self.peers.items()}))
        next_seq, members = self.roster.next_seq, [(m.id, m.eventfds, m.seq, m.key) for m in self.roster.ordered]
        self.roster = Roster()
        for member in members:
            own = Member(*member)
            self.roster.add(own)
            peer = self.peers[own.id]
            peer.client.own = own
            peer.outbox = self.box(own, peer.visible, self.told, peer.outbox.keeps)
        for peer_id, peer in self.peers.items():
            peer.outbox.restore(state[str(peer_id)], self.absent.values())
        self.roster.next_seq = next_seq

    @invariant()
    def backlog_is_what_a_drain_would_send(self) -> None:
        for peer in self.peers.values():
            twin = self.box(peer.client.own, peer.visible, lambda _: None, peer.outbox.keeps)
            twin.restore(peer.outbox.export(), self.absent.values())
            assert peer.outbox.backlog == twin.backlog == drain(twin, 5, lambda *_: None)
            assert twin.backlog == 0

    @invariant()
    def the_list_of_leaves_is_bounded_by_the_ids(self) -> None:
        leaves: Counter[int] = Counter()
        for peer in self.peers.values():
            owed: list[Any] = peer.outbox.export()["leaves"]
            assert len(owed) == len(set(owed))
            leaves.update(owed)
        assert leaves == +self.held

    def teardown(self) -> None:
        for peer in self.peers.values():
            drain(peer.outbox, 3, peer.client.message)
            want = {m.id: list(m.eventfds.array) for m in self.roster.ordered if peer.sees(m)}
            for peer_id in peer.outbox.kept:
                known = peer.client.view.get(peer_id, [])
                there = self.roster.by_id.get(peer_id) or self.absent.get(peer_id)
                assert peer_id in self.cut_off or (there is not None and known == list(there.eventfds.array))
                want[peer_id] = known
            assert {peer_id: known for peer_id, known in peer.client.view.items() if known} == {
                peer_id: known for peer_id, known in want.items() if known
            }
        assert not +self.held


def drain(outbox: Outbox, limit: int, message: Callable[[int, int], None]) -> int:
    total = 0
    while True:
        values, fds = outbox.batch(limit)
        if not values:
            return total
        for value, fd in zip(values, fds, strict=True):
            message(value, fd)
        outbox.sent(len(values))
        total += len(values)
        assert total < 10_000, "it proposes the same over and over"


TestReconciliation = Reconciliation.TestCase
TestReconciliation.settings = settings(max_examples=250, stateful_step_count=50, deadline=None)


def send(peer: Peer, count: int) -> None:
    """Send exactly *count* messages, if there are so many."""
    while count:
        values, fds = peer.outbox.batch(count)
        step = min(count, len(values))
        for value, fd in zip(values[:step], fds[:step], strict=True):
            peer.client.message(value, fd)
        peer.outbox.sent(step)
        count = count - step if step else 0


@pytest.mark.parametrize("seen", [None, frozenset({0, 3}), frozenset({1, 2}), frozenset()])
@pytest.mark.parametrize("leaver", [0, 1, 3])
def test_every_place_at_which_somebody_may_leave(leaver: int, seen: frozenset[int] | None) -> None:
    """Peer 2 is told of 0, 1, itself and 3; one leaves after any message, and is back after any further one."""
    visible = None if seen is None else lambda member: member.id in seen
    for cut, further in itertools.product(range(17), range(8)):
        roster, held = Roster(), Counter[int]()
        members = [Member(peer_id, Tokens(3)) for peer_id in range(4)]
        for member in members[:3]:
            roster.add(member)
        there = {m.id: list(m.eventfds.array) for m in members[:2] if visible is None or visible(m)}
        outbox = Outbox(roster, members[2], MEMORY, visible, lambda peer_id, held=held: held.subtract([peer_id]))
        peer = Peer(Client(members[2], there), outbox, visible)
        roster.add(members[3])
        send(peer, cut)
        known = bool(peer.client.view.get(leaver))
        assert outbox.leave(members[leaver]) is (Leave.OWED if known else Leave.NOTHING)
        held[leaver] += known
        peer.client.first.pop(leaver, None)
        roster.remove(members[leaver])
        send(peer, further)
        back = Member(leaver, Tokens(2))
        roster.add(back)
        drain(outbox, 2, peer.client.message)
        assert peer.client.view == {m.id: list(m.eventfds.array) for m in roster.ordered if peer.sees(m)}
        assert held[leaver] == 0


@pytest.mark.parametrize("seen", [None, frozenset({0, 3}), frozenset({1, 2}), frozenset()])
@pytest.mark.parametrize("leaver", [0, 1, 3])
def test_qemu_is_told_neither_the_leave_nor_the_return_of_an_id_that_it_has(
    leaver: int, seen: frozenset[int] | None
) -> None:
    """The same with a peer that keeps IDs: whenever a member leaves and returns, it is told of it once."""
    visible = None if seen is None else lambda member: member.id in seen
    for cut, further in itertools.product(range(17), range(8)):
        roster = Roster()
        members = [Member(peer_id, Tokens(3)) for peer_id in range(4)]
        for member in members[:3]:
            roster.add(member)
        there = {m.id: list(m.eventfds.array) for m in members[:2] if visible is None or visible(m)}
        outbox = Outbox(roster, members[2], MEMORY, visible, lambda _: pytest.fail("no leave is owed"), keeps=True)
        peer = Peer(Qemu(members[2], there), outbox, visible)
        roster.add(members[3])
        send(peer, cut)
        known = bool(peer.client.view.get(leaver))
        assert outbox.leave(members[leaver]) is (Leave.KEPT if known else Leave.NOTHING)
        if not known:
            peer.client.first.pop(leaver, None)
        roster.remove(members[leaver])
        send(peer, further)
        roster.add(Member(leaver, members[leaver].eventfds, key=members[leaver].key))
        drain(outbox, 2, peer.client.message)
        assert peer.client.view == {m.id: list(m.eventfds.array) for m in roster.ordered if peer.sees(m)}
        assert peer.client.freed == set()
