# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from doorbelld.errors import LimitExceeded, NoSuchPeer, NotRelayed, StateMismatch
from doorbelld.fds import eventfd
from doorbelld.fds.keeper import Satchel
from doorbelld.fds.owned import Fd
from doorbelld.fds.vault import Vault, look_into
from doorbelld.ivshmem import relay as relay_module
from doorbelld.ivshmem.events import PeerRefused, PeerRemoved, Rung
from doorbelld.ivshmem.peer import Peer
from doorbelld.ivshmem.record import Record
from doorbelld.ivshmem.region import Region
from doorbelld.ivshmem.relay import PairState, Relay
from doorbelld.ivshmem.revival import LOST
from doorbelld.ivshmem.roster import Member
from doorbelld.ivshmem.rules import Match, PeerRule
from doorbelld.ivshmem.terms import Terms
from hypothesis import given, settings
from hypothesis import strategies as st
from support.crash import watch
from support.fdcount import no_leaks
from support.rawclient import identity
from support.regionbench import Bench, killed_at

from .conftest import Site

HOST = 65535
VECTORS = 3


class Relayed(Bench):
    """A relayed region step by step; only rings happen by themselves."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"keep": True, "relay": True, "vectors": VECTORS, **options})

    def enter(self, *names: str) -> list[Peer]:
        """Have some join, and tell everybody everything."""
        peers = [self.join(name) for name in names]
        self.pump()
        assert all(peers)
        return [peer for peer in peers if peer]

    def bell(self, sender: Peer, target: int, vector: int = 0) -> int:
        """Give what *sender* was given to ring somebody."""
        return self.clients[sender.member.seq].fds[target][vector]

    def ring(self, sender: Peer, target: int, vector: int = 0, count: int = 1) -> None:
        os.eventfd_write(self.bell(sender, target, vector), count)

    def heard(self, peer: Peer, vector: int = 0) -> int:
        """Take what came to a peer."""
        own = self.clients[peer.member.seq].fds[peer.id][vector]
        return os.eventfd_read(own) if eventfd.pending(own) else 0

    def state(self, sender: int, target: int) -> PairState:
        return next(pair for pair in self.region.relayed().pairs() if (pair.sender, pair.target) == (sender, target))

    def wait(self, sender: int, target: int, taken: int) -> PairState:
        """Wait until so many rings were taken and delivered, or refused, and say how it is then."""

        def done() -> bool:
            _, _, refused, passed = self.counts(sender, target)
            return refused + passed == taken

        watch(done)
        return self.state(sender, target)

    def counts(self, sender: int, target: int) -> tuple[int, int, int, int]:
        relay = self.region.relayed()
        return relay._forwarder.counts(relay._pair(sender, target).index)

    def pairs(self) -> list[tuple[int, int]]:
        return [(pair.sender, pair.target) for pair in self.region.relayed().pairs()]

    def change(self, **options: Any) -> None:
        self.region.change(replace(self.region.spec, **options), configured=True)


@pytest.fixture
def bench() -> Iterator[Relayed]:
    made = Relayed()
    yield made
    made.close()


def test_everybody_rings_by_eventfds_of_their_own(bench: Relayed) -> None:
    one, two, three = bench.enter("one", "two", "three")
    bells = [identity(bench.bell(one, target.id, v)) for target in (two, three) for v in range(VECTORS)]
    bells += [identity(bench.bell(two, target.id, v)) for target in (one, three) for v in range(VECTORS)]
    bells += [identity(bench.bell(peer, HOST, v)) for peer in (one, two, three) for v in range(VECTORS)]
    bells += [identity(fd) for member in bench.region.roster.ordered for fd in member.eventfds]
    assert len(set(bells)) == len(bells)
    assert bench.pairs() == [(s, t) for s in (0, 1, 2) for t in (0, 1, 2, HOST) if s != t]


def test_rings_arrive_where_they_should(bench: Relayed) -> None:
    one, two, three = bench.enter("one", "two", "three")
    for vector in range(VECTORS):
        bench.ring(one, two.id, vector, 1 + vector)
    bench.ring(three, two.id, 0, 10)
    assert bench.wait(0, 1, 6).deliveries == VECTORS
    bench.wait(2, 1, 10)
    assert [bench.heard(two, vector) for vector in range(VECTORS)] == [11, 2, 3]
    assert [bench.heard(one), bench.heard(three)] == [0, 0]
    bench.ring(two, HOST, 2, 7)
    bench.wait(1, HOST, 7)
    bench.sweep()
    assert [(event.vector, event.count) for event in bench.events if isinstance(event, Rung)] == [(2, 7)]
    relay = bench.region.relayed()
    assert [relay.totals(peer_id) for peer_id in (0, 1, 2, HOST)] == [(6, 0), (7, 16), (10, 0), (0, 7)]


def test_the_daemon_rings_directly(bench: Relayed) -> None:
    (one,) = bench.enter("one")
    bench.region.notify(one.id, 1)
    bench.region.broadcast()
    assert [bench.heard(one, vector) for vector in range(VECTORS)] == [1, 2, 1]


def test_rings_through_the_loop(site: Site) -> None:
    region = site.open(relay=True, host_peer=True)
    client = site.join(region, keep=True)
    site.settle(region, [client])
    for vector in range(4):
        os.eventfd_write(client.fds[HOST][vector], 5)
    site.wait(lambda: sum(event.count for event in site.of(Rung)) == 20)
    assert region.relay and not region.stuck


# Who may ring whom, and how often

RULES = (
    PeerRule(Match(vm="deaf"), may_ring=()),
    PeerRule(Match(vm="slow"), rate=1),
    PeerRule(Match(vm="hostonly"), may_ring=("host",)),
    PeerRule(Match()),
)


def test_rules_say_which_pairs_there_are_and_on_which_terms() -> None:
    bench = Relayed(peer=RULES, relay_rate=50)
    bench.enter("deaf", "slow", "hostonly", "any")
    assert bench.pairs() == [(1, 0), (1, 2), (1, 3), (1, HOST), (2, HOST), (3, 0), (3, 1), (3, 2), (3, HOST)]
    assert {pair.sender: pair.rate for pair in bench.region.relayed().pairs()} == {1: 1, 2: 50, 3: 50}
    assert all(pair.permitted for pair in bench.region.relayed().pairs())
    with pytest.raises(NoSuchPeer, match="was never given its doorbells"):
        bench.region.relayed().change(0, 1, Terms(0, True))
    bench.close()


def test_a_reload_reaches_pairs_that_exist() -> None:
    bench = Relayed(relay_rate=50)
    one, two = bench.enter("one", "two")
    relay = bench.region.relayed()
    rules = (PeerRule(Match(vm="one"), may_ring=("host",)), PeerRule(Match(vm="two"), rate=7))
    bench.change(peer=rules, relay_poll_us=20)
    assert bench.pairs() == [(0, 1), (0, HOST), (1, 0), (1, HOST)]
    assert [relay.terms(*ends) for ends in bench.pairs()] == [
        Terms(50, False),
        Terms(50, True),
        Terms(7, True),
        Terms(7, True),
    ]
    assert relay._forwarder.poll_us == 20
    bench.ring(one, two.id, 0, 3)
    assert bench.wait(0, 1, 3) == PairState(0, 1, 3, 0, 3, 50, False)
    relay.change(1, 0, Terms(0, False))  # what a call says
    bench.change(max_peers=7)
    bench.change(peer=(PeerRule(Match(vm="one")), rules[1]))
    assert relay.terms(0, 1) == Terms(50, True)
    assert relay.terms(1, 0) == Terms(0, False)  # holds until the configuration says something else
    bench.change(peer=(), relay_rate=9)
    assert {relay.terms(*ends) for ends in bench.pairs()} == {Terms(9, True), Terms(9, False)}
    assert relay.terms(1, 0) == Terms(9, False)
    bench.change(peer=(PeerRule(Match(vm="nobody")),))  # who would not be admitted any more
    assert not any(relay.terms(*ends).permitted for ends in bench.pairs())
    bench.close()


def test_permission_withdrawn_and_limits_set_live(bench: Relayed) -> None:
    one, two = bench.enter("one", "two")
    relay = bench.region.relayed()
    relay.change(0, 1, Terms(0, False))
    bench.ring(one, two.id, 0, 4)
    assert bench.wait(0, 1, 4) == PairState(0, 1, 4, 0, 4, 0, False)
    relay.change(0, 1, Terms(1, True))
    for _ in range(5):
        bench.ring(one, two.id, 1)
    bench.ring(two, one.id)
    bench.wait(1, 0, 1)
    assert bench.heard(two) == 0
    relay.change(0, 1, Terms(0, True))
    assert bench.wait(0, 1, 9).rings == 9
    assert bench.heard(two, 1) == 5


def test_who_is_no_pair(bench: Relayed) -> None:
    bench.enter("one")
    relay = bench.region.relayed()
    with pytest.raises(NoSuchPeer, match='region "demo" has no peer 5; it has 0, 65535'):
        relay.change(0, 5, Terms(0, True))
    for ends in ((HOST, 0), (0, 0)):
        with pytest.raises(NoSuchPeer, match="was never given its doorbells"):
            relay.change(*ends, Terms(0, True))


def test_a_region_without_a_relay(site: Site) -> None:
    plain = site.open()
    with pytest.raises(NotRelayed, match="make it with relay = true"):
        plain.relayed()


# Coming and going


def test_what_waits_when_its_sender_leaves_is_delivered_first(bench: Relayed) -> None:
    one, two, three = bench.enter("one", "two", "three")
    bench.region.relayed().change(0, 1, Terms(1, True))
    bench.region.relayed().change(0, 2, Terms(0, False))
    for _ in range(10):
        bench.ring(one, two.id, 2, 3)
    bench.ring(one, HOST, 1)
    bench.ring(one, three.id, 1)
    bench.leave(one)
    assert bench.heard(two, 2) == 30
    assert [eventfd.pending(fd) for fd in bench.region.member(HOST).eventfds] == [0, 1, 0]
    assert bench.heard(three, 1) == 0
    relay = bench.region.relayed()
    assert [relay.totals(peer_id) for peer_id in (1, 2, HOST)] == [(0, 30), (0, 0), (0, 1)]  # it is not forgotten
    assert bench.pairs() == [(1, 2), (1, HOST), (2, 1), (2, HOST)]


def test_an_id_that_is_given_again_begins_anew(bench: Relayed) -> None:
    one, two = bench.enter("one", "two")
    bench.ring(one, two.id, 0, 5)
    bench.wait(0, 1, 5)
    bench.region.relayed().change(0, 1, Terms(3, False))
    bench.leave(one)
    bench.pump()
    while bench.enter("again")[0].id != one.id:
        pass
    assert bench.state(one.id, two.id) == PairState(one.id, 1, 0, 0, 0, 0, True)


def test_records_are_used_again(bench: Relayed) -> None:
    bench.enter("one", "two")
    high = bench.region.relayed()._head[relay_module._HIGH]
    for _ in range(5):
        (peer,) = bench.enter("three")
        bench.leave(peer)
        bench.restart()
    most = bench.region.relayed()._head[relay_module._HIGH]
    assert most == high + 1 + 5


@pytest.mark.parametrize("room", range(6))
@pytest.mark.parametrize("why", [errno.EMFILE, errno.ENOSPC])
def test_no_descriptors_for_proxies(bench: Relayed, room: int, why: int) -> None:
    one, two = bench.enter("one", "two")
    make, left = eventfd.make, room

    def scarce(count: int) -> Any:
        nonlocal left
        if not left:
            raise OSError(why, os.strerror(why))
        left -= 1
        return make(count)

    with mock.patch.object(relay_module, "eventfd", SimpleNamespace(make=scarce)):
        assert (bench.join("three") is None) == (room < 5)
        if room < 5:
            left = room
            stranger = bench.knock()
            stranger.until_eof()
            cure = {errno.EMFILE: "raise LimitNOFILE=", errno.ENOSPC: "raise fs.epoll.max_user_watches"}[why]
            assert cure in next(event.reason for event in bench.events if isinstance(event, PeerRefused))
    if room < 5:
        assert bench.pairs() == [(0, 1), (0, HOST), (1, 0), (1, HOST)]
        assert {name.split(".")[1] for name in bench.keeper.copies} >= {"1", "1p", "2", "2p"}
        assert len(bench.keeper.copies) == 9
    bench.ring(one, two.id)
    bench.wait(0, 1, 1)
    bench.restart()
    bench.enter("four")


def test_a_table_that_is_full() -> None:
    with mock.patch.object(relay_module, "CHANNELS_MAX", VECTORS * 10):
        bench = Relayed(host_peer=False)
        bench.enter("one", "two", "three")  # 3 for themselves, 6 pairs
        assert bench.join("four") is None
        bench.restart()
        bench.leave(bench.peers()[0])
        bench.enter("four")
        bench.close()


def test_a_region_that_can_not_have_a_relay(site: Site) -> None:
    with (
        mock.patch("os.memfd_create", side_effect=OSError(errno.EMFILE, "too many")),
        pytest.raises(LimitExceeded, match="no room for the relay"),
        closing(Relay.create("demo", 1)),
    ):
        pass
    with (
        mock.patch("threading.Thread.start", side_effect=RuntimeError),
        pytest.raises(LimitExceeded, match="TasksMax") as caught,
    ):
        site.open(relay=True)
    del caught


def test_a_thread_that_died_is_noticed(site: Site) -> None:
    region = site.open(relay=True)
    assert not region.stuck
    region.relayed()._forwarder.end()
    watch(lambda: region.stuck)


# Restart


def test_everything_is_as_it_was_after_a_restart(bench: Relayed) -> None:
    one, two, three = bench.enter("one", "two", "three")
    bench.ring(one, two.id, 0, 5)
    bench.wait(0, 1, 5)
    relay = bench.region.relayed()
    relay.change(1, 0, Terms(0, False))
    relay.change(2, 0, Terms(1000, True))
    bench.leave(three)
    (four,) = bench.enter("four")
    before = [*relay.pairs()], {peer_id: relay.totals(peer_id) for peer_id in (0, 1, four.id, HOST)}
    for _ in range(3):
        bench.restart()
        relay = bench.region.relayed()
        assert ([*relay.pairs()], {peer_id: relay.totals(peer_id) for peer_id in (0, 1, four.id, HOST)}) == before
    bench.ring(one, four.id, 1)
    bench.wait(0, four.id, 1)
    bench.ring(two, one.id)
    assert bench.wait(1, 0, 1).refused == 1
    assert [bench.heard(peer, vector) for peer, vector in ((two, 0), (four, 1), (one, 0))] == [5, 1, 0]


def test_rings_made_while_the_daemon_is_away_arrive(bench: Relayed) -> None:
    one, two = bench.enter("one", "two")
    bench.region.relayed().change(1, 0, Terms(1, True))
    for _ in range(4):
        bench.ring(two, one.id)
    bench.region.let_go()
    bench.ring(one, two.id, 2, 9)
    bench.ring(two, HOST, 1, 4)
    bench.ring(two, one.id)
    bench.region = bench.revive()
    assert bench.wait(0, 1, 9).rings == 9
    bench.wait(1, HOST, 4)
    bench.region.relayed().change(1, 0, Terms(0, True))
    bench.wait(1, 0, 5)
    assert (bench.heard(two, 2), bench.heard(one)) == (9, 5)


def test_who_leaves_while_the_daemon_is_away(bench: Relayed) -> None:
    one, two = bench.enter("one", "two")
    bench.region.let_go()
    bench.ring(one, two.id, 0, 3)
    bench.clients.pop(one.member.seq).close()
    bench.region = bench.revive()
    bench.pump()
    assert bench.heard(two) == 3
    assert bench.pairs() == [(1, HOST)]
    bench.restart()
    assert bench.pairs() == [(1, HOST)]


def test_a_greeting_that_is_cut_off_goes_on_with_the_same_proxies() -> None:
    for cut in range(3 + 3 * VECTORS + 1):
        bench = Relayed()
        bench.enter("one")
        peer = bench.join("two")
        assert peer and bench.post(peer, 64, cut) == cut
        bench.restart()
        bench.close()


STEPS = [
    (Region, "_stow_proxies"),
    (Record, "joined"),
    (Record, "left"),
    (Record, "drop"),
    (Relay, "join"),
    (Relay, "_make"),
    (Relay, "packed"),
    (Relay, "silence"),
    (Relay, "forget"),
    (Relay, "_erase"),
]


@pytest.mark.parametrize(("of", "step"), STEPS, ids=[step for _, step in STEPS])
@pytest.mark.parametrize("leaves", [0, 1], ids=["older", "newer"])
def test_killed_at_any_step(of: type, step: str, leaves: int) -> None:
    bench = Relayed()
    bench.enter("one", "two", "three")
    bench.ring(bench.region.peers[0], 2, 0, 2)
    bench.wait(0, 2, 2)
    with killed_at(step, of):
        bench.knock()
    bench.restart()
    bench.pump()
    assert bench.strangers[0].id == 3
    assert len(bench.pairs()) == 4 * 4
    with killed_at(step, of):
        bench.leave(bench.region.peers[leaves])
    bench.restart()
    bench.pump()
    assert len(bench.pairs()) == 3 * 3
    assert bench.region.relayed().totals(2) == (0, 2)
    bench.ring(bench.region.peers[2], HOST)
    bench.wait(2, HOST, 1)
    bench.close()


@pytest.mark.parametrize(("leaves", "totals"), [(0, (0, 3)), (1, (3, 0))])
def test_killed_before_who_left_is_forgotten(bench: Relayed, leaves: int, totals: tuple[int, int]) -> None:
    """What the other sent or got counts on."""
    bench.enter("one", "two")
    bench.ring(bench.region.peers[0], 1, 0, 3)
    bench.wait(0, 1, 3)
    bench.events.clear()  # they know the peers, whose sockets are to end with the process
    with killed_at("forget", Relay):
        bench.leave(bench.region.peers[leaves])
    bench.restart()
    bench.pump()
    assert bench.region.relayed().totals(1 - leaves) == totals


def test_nothing_is_kept_of_who_left(bench: Relayed) -> None:
    bench.enter("one")
    before = set(bench.keeper.copies)
    bench.leave(bench.enter("two")[0])
    assert set(bench.keeper.copies) == before


def test_executed_anew_after_somebody_left(bench: Relayed) -> None:
    """What another keeper gets is packed anew: who left has left no gap."""
    one, two, three, four = bench.enter("one", "two", "three", "four")
    bench.leave(two)
    bench.region.unkeep()
    assert not bench.keeper.copies
    bench.keeper = Satchel()
    assert bench.region.keep(bench.keeper, "r1.")
    with bench.keeper.copies[f"r1.{four.member.seq}p"].dup() as door:
        contents = look_into(door)
        assert len(contents) == VECTORS * (1 + 2 + 2)
        contents.close()
    bench.ring(one, three.id, 0, 3)
    bench.wait(0, 2, 3)
    bench.restart()
    bench.ring(four, one.id, 1)
    bench.wait(3, 0, 1)
    assert (bench.heard(three), bench.heard(one, 1)) == (3, 1)


@pytest.mark.parametrize("spoil", ["gone", "empty", "few", "no vault"])
def test_a_peer_whose_proxies_are_not_all_there_has_left(bench: Relayed, spoil: str) -> None:
    one, two = bench.enter("one", "two")
    name = f"r1.{two.member.seq}p"
    bench.region.let_go()
    bench.events.clear()
    old = bench.keeper.copies.pop(name)
    if spoil == "no vault":
        with open("/dev/null") as null:
            bench.keeper.put(name, null.fileno())
    elif spoil != "gone":
        fds = look_into(old)
        vault = Vault()
        vault.fill(list(fds)[: {"empty": 0, "few": 2 * VECTORS + 1}[spoil]])
        bench.keeper.put(name, vault.door.fileno())
        vault.close()
        fds.close()
    old.close()
    bench.region = bench.revive()
    assert [(e.peer.id, e.reason) for e in bench.events if isinstance(e, PeerRemoved)] == [(two.id, LOST)]
    client = bench.clients.pop(two.member.seq)
    client.until_eof()
    client.close()
    bench.pump()
    assert bench.pairs() == [(0, HOST)]
    bench.ring(one, HOST)
    bench.wait(0, HOST, 1)


@pytest.mark.parametrize(
    ("word", "value", "error", "said"),
    [
        (0, 1, StateMismatch, "none of doorbelld's"),
        (1, 2, StateMismatch, "damaged"),
        (2, 4, StateMismatch, "damaged"),
        (3, 1 << 40, StateMismatch, "damaged"),
        (None, 0, StateMismatch, "damaged"),
        (None, 1 << 12, StateMismatch, "damaged"),
    ],
)
def test_a_table_that_is_none(word: int | None, value: int, error: type[Exception], said: str) -> None:
    with no_leaks(), closing(Relay.create("demo", VECTORS)) as relay:
        if word is None:
            os.ftruncate(relay.fd.fileno(), relay_module._size(VECTORS) - value if value else 4096)
        else:
            relay._head[word] = value
        with pytest.raises(error, match=said):
            Relay.adopt("demo", relay.fd.dup(), VECTORS)


def test_a_region_whose_table_is_missing(bench: Relayed) -> None:
    bench.enter("one")
    bench.region.let_go()
    with bench.keeper.copies["r1.relay"].dup() as table:
        bench.keeper.drop("r1.relay")
        with pytest.raises(StateMismatch, match="the table of its relay is missing") as caught:
            bench.revive()
        del caught
        bench.keeper.put("r1.relay", table.fileno())
    bench.region = bench.revive()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_table_is_refused_or_read_and_leaves_nothing(data: st.DataObject) -> None:
    bench = Relayed(vectors=1)
    bench.join("one")
    bench.join("two")
    relay = bench.region.relayed()
    records = relay._head[relay_module._HIGH]
    table = Fd(os.dup(relay.fd.fileno()))
    bench.region.let_go()
    size = relay_module.record_size(1)
    at = 4096 + data.draw(st.integers(0, records - 1)) * size + data.draw(st.integers(0, size // 8 - 1)) * 8
    good = os.pread(table.fileno(), size * records, 4096)
    bad = data.draw(st.sampled_from([0, 1, 2, 3, 1 << 63, (1 << 64) - 1]))
    os.pwrite(table.fileno(), bad.to_bytes(8, "little"), at)
    try:
        bench.region = bench.revive()
    except StateMismatch as error:
        assert "damaged" in str(error)
        os.pwrite(table.fileno(), good, 4096)
        bench.region = bench.revive()
    table.close()
    bench.abandon()


# Any course of events

NAMES = ("one", "two", "three")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ring"), st.integers(0, 2), st.integers(0, 2), st.integers(1, 5)),
            st.tuples(st.sampled_from(["leave", "restart", "forbid", "limit"]), st.integers(0, 2), st.integers(0, 2)),
        ),
        max_size=25,
    )
)
def test_nothing_is_lost_in_any_course_of_events(course: list[tuple[Any, ...]]) -> None:
    """What was rung arrived, was refused, or, where a target left, is nobody's."""
    bench = Relayed(vectors=1)
    peers = dict(zip(NAMES, bench.enter(*NAMES), strict=True))
    owed = dict.fromkeys(NAMES, 0)
    heard = dict.fromkeys(NAMES, 0)
    forbidden: set[tuple[int, int]] = set()

    def settle() -> None:
        for sender, target in permutations(peers.values(), 2):
            ends = sender.id, target.id
            bench.region.relayed().change(*ends, Terms(0, ends not in forbidden))
            proxy = bench.bell(sender, target.id)
            watch(lambda proxy=proxy, ends=ends: not eventfd.pending(proxy) and _settled(bench.counts(*ends)))
        for name, peer in peers.items():
            heard[name] += bench.heard(peer)

    for what, *rest in course:
        sender, target = peers[NAMES[rest[0]]], peers[NAMES[rest[1]]]
        if what == "restart":
            bench.restart()
            peers = {name: bench.region.peers[peer.id] for name, peer in peers.items()}
        elif sender is target:
            continue
        elif what == "ring":
            bench.ring(sender, target.id, 0, rest[2])
            if (sender.id, target.id) not in forbidden:
                owed[NAMES[rest[1]]] += rest[2]
        elif what == "limit" and (sender.id, target.id) not in forbidden:
            bench.region.relayed().change(sender.id, target.id, Terms(1, True))
        elif what == "forbid":
            settle()
            forbidden.add((sender.id, target.id))
            bench.region.relayed().change(sender.id, target.id, Terms(0, False))
        elif what == "leave":
            name = NAMES[rest[0]]
            settle_to = [peer for peer in peers.values() if peer is not sender]
            heard[name] = owed[name] = 0  # what it was owed is nobody's now
            bench.leave(sender)
            assert len(settle_to) == 2
            peers[name] = bench.enter(name)[0]
            forbidden = {ends for ends in forbidden if sender.id not in ends}
    settle()
    assert heard == owed
    bench.close()


def _settled(counts: tuple[int, int, int, int]) -> bool:
    rings, _, refused, passed = counts
    return rings == refused + passed


def test_members_of_the_relay_alone() -> None:
    """Without a region, and at times that the test says."""
    with no_leaks(), closing(Relay.create("demo", 1)) as relay:
        members = [Member(number, eventfd.make(1), number) for number in range(3)]
        relay.join(members[0], ())
        relay.join(members[1], [(members[0], members[1], Terms(1, True)), (members[1], members[0], Terms(0, True))])
        for _ in range(3):
            os.eventfd_write(relay.bells(members[0], members[1])[0], 1)
            os.eventfd_write(relay.bells(members[1], members[0])[0], 1)
            relay.turn(10**9)
        assert [(pair.rings, pair.deliveries) for pair in relay.pairs()] == [(1, 1), (3, 3)]
        relay.turn(2 * 10**9)
        assert [(pair.rings, pair.deliveries) for pair in relay.pairs()] == [(3, 2), (3, 3)]
        assert not relay.dead
        for member in members:
            member.eventfds.close()
