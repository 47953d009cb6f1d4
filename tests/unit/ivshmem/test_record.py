# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The record: what its lines say is how the region stands, at every moment, and whoever comes next goes on there."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from unittest import mock

import pytest
from doorbelld.errors import StateMismatch
from doorbelld.fds import eventfd
from doorbelld.fds import ledger as ledger_module
from doorbelld.fds.keeper import Kept, Satchel
from doorbelld.fds.ledger import Ledger, NewerState
from doorbelld.fds.owned import FdSet
from doorbelld.ivshmem import record as module
from doorbelld.ivshmem.events import Unkept
from doorbelld.ivshmem.peer import Peer
from doorbelld.ivshmem.record import STATE_VERSION, doorbells_of, proxies_of, region_of, replay
from doorbelld.ivshmem.revival import read_state, revive, spec_of
from doorbelld.ivshmem.rules import Match, PeerRule
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.fdcount import no_leaks
from support.regionbench import Bench, killed_at

ANYBODY = PeerRule(Match())
RULES = (
    (),
    (PeerRule(Match(vm="a"), may_ring=("b", "host")), PeerRule(Match(vm="b"), may_ring=("a",)), ANYBODY),
    (PeerRule(Match(vm="a"), id=7), PeerRule(Match(vm="b"), may_ring=("7",)), PeerRule(Match(vm="c"), may_ring=())),
    (PeerRule(Match(vm="[bc]"), id=7), PeerRule(Match(vm="x"), id=0), PeerRule(Match(vm="a"), may_ring=("a", "b"))),
    (PeerRule(Match(vm="x"), id=1), PeerRule(Match(vm="b"), id=0), ANYBODY),
)


class RecordMachine(RuleBasedStateMachine):
    """Whatever happens to a region: its ledger says the same as the region itself."""

    @initialize(lines_max=st.sampled_from([4096, 4096, 20, 1, 0]), rules=st.sampled_from(RULES), relay=st.booleans())
    def start(self, lines_max: int, rules: tuple[PeerRule, ...], relay: bool) -> None:
        gc.freeze()  # each kill collects garbage, which is ten times as fast so
        self.patch = mock.patch.object(module, "_LINES_MAX", lines_max)
        self.patch.start()
        self.bench = Bench(peer=rules, relay=relay)
        self.killed = False

    def pick(self, data: st.DataObject) -> Peer:
        peers = self.bench.region.peers
        return peers[data.draw(st.sampled_from(sorted(peers)))]

    def anybody(self) -> bool:
        return hasattr(self, "bench") and bool(self.bench.region.peers)

    @rule(name=st.sampled_from("abcx"), keeps=st.booleans())
    def join(self, name: str, keeps: bool) -> None:
        self.bench.join(name, keeps)

    @precondition(anybody)
    @rule(data=st.data(), by_itself=st.booleans())
    def leave(self, data: st.DataObject, by_itself: bool) -> None:
        self.bench.leave(self.pick(data), by_itself)

    @precondition(anybody)
    @rule(data=st.data(), limit=st.integers(1, 15), count=st.integers(0, 15))
    def send(self, data: st.DataObject, limit: int, count: int) -> None:
        self.bench.post(self.pick(data), limit, count)

    @precondition(anybody)
    @rule()
    def everybody_is_told_everything(self) -> None:
        self.bench.pump()

    @rule(vector=st.integers(0, 2), count=st.integers(1, 9))
    def ring(self, vector: int, count: int) -> None:
        os.eventfd_write(self.bench.region.doorbell(65535, vector), count)
        self.bench.sweep()

    @rule(rules=st.sampled_from(RULES), max_peers=st.integers(1, 9), max_absent=st.sampled_from([0, 1, 2, 256]))
    def change(self, rules: tuple[PeerRule, ...], max_peers: int, max_absent: int) -> None:
        spec = replace(self.bench.region.spec, peer=rules, max_peers=max_peers, max_absent=max_absent)
        self.bench.region.change(spec, configured=True)

    @rule()
    def restart(self) -> None:
        before = self.bench.export()
        self.bench.restart()
        assert self.bench.export() == before

    @precondition(anybody)
    @rule(data=st.data(), limit=st.integers(1, 15), count=st.integers(0, 15))
    def killed_after_sending(self, data: st.DataObject, limit: int, count: int) -> None:
        with killed_at("told"):
            self.bench.post(self.pick(data), limit, count)
        self.restart()

    @rule(vector=st.integers(0, 2), count=st.integers(1, 9))
    def killed_after_taking_a_counter(self, vector: int, count: int) -> None:
        with killed_at("rung"):
            self.ring(vector, count)
        self.bench.events.clear()
        self.restart()
        assert [(event.vector, event.count) for event in self.bench.events] == [(vector, count)]  # type: ignore[attr-defined]

    @precondition(anybody)
    @rule(data=st.data())
    def killed_before_what_was_kept_of_who_left_was_dropped(self, data: st.DataObject) -> None:
        peer = self.pick(data)
        with killed_at("drop"):
            self.bench.leave(peer)
        peer.sock.close()  # as the end of the process would
        peer.member.eventfds.close()
        if self.bench.region.admission.absent.excess() is None:
            self.restart()
        else:  # the successor gives up what is too much, which we did not come to
            self.bench.restart()

    @rule(
        name=st.sampled_from("abcx"),
        keeps=st.booleans(),
        step=st.sampled_from(["stow", "keep", "joined", "drop"]),
        after=st.integers(0, 3),
    )
    def killed_while_somebody_joins(self, name: str, keeps: bool, step: str, after: int) -> None:
        self.bench.knock_as(name, keeps, step, after)
        self.killed = True

    @rule(name=st.sampled_from("abcx"), keeps=st.booleans(), good=st.integers(0, 5), bad=st.integers(1, 3))
    def join_when_descriptors_run_out(self, name: str, keeps: bool, good: int, bad: int) -> None:
        make, times = eventfd.make, itertools.count()

        def scarce(count: int) -> FdSet:
            if good <= next(times) < good + bad:
                raise OSError(errno.EMFILE, "Too many open files")
            return make(count)

        with mock.patch.object(eventfd, "make", scarce):
            self.bench.join(name, keeps)

    @rule(name=st.sampled_from("abcx"), keeps=st.booleans())
    def join_when_the_store_is_full(self, name: str, keeps: bool) -> None:
        self.bench.keeper.full = True
        peer = self.bench.join(name, keeps)
        self.bench.keeper.full = False
        self.bench.restart()
        if peer is not None:
            assert peer.member.seq not in {other.member.seq for other in self.bench.peers()}
            self.bench.clients.pop(peer.member.seq).close()

    @precondition(anybody)
    @rule(data=st.data())
    def leave_when_the_store_is_full(self, data: st.DataObject) -> None:
        self.bench.keeper.full = True
        self.bench.leave(self.pick(data))
        self.bench.keeper.full = False
        self.bench.restart()
        assert not self.bench.region.admission.absent.excess()

    @invariant()
    def the_lines_say_how_it_stands(self) -> None:
        if hasattr(self, "bench"):
            assert self.bench.plain(replay(self.bench.lines())) == self.bench.export()
            region = self.bench.region
            names = {peer.vault for peer in region.peers.values()}
            names |= {doorbells_of(member.id) for member in region.admission.absent.doorbells()}
            kept = {name.removeprefix("r1.") for name in self.bench.keeper.copies}
            proxies = {name for name in kept if name.endswith("p")}
            relay = set() if region.relay is None else {"relay"}
            assert kept - proxies == {*names, *relay, "state", "memory", "listener", "host"}

    @invariant()
    def the_pairs_are_those_of_who_is_there_and_of_whom_they_remember(self) -> None:
        if not hasattr(self, "bench") or (relay := self.bench.region.relay) is None:
            return
        region = self.bench.region
        absent = region.admission.absent.doorbells()
        want = {
            (peer.id, member.id)
            for peer in region.peers.values()
            for member in region.roster.ordered
            if member is not peer.member and not peer.outbox.blind_to(member)
        }
        want |= {(peer.id, m.id) for peer in region.peers.values() for m in absent if m.id in peer.outbox.kept}
        cut_off = {ends for ends in relay._pairs if ends[1] in self.bench.cut_off}
        assert relay._pairs.keys() - cut_off == {ends for ends in want if ends[1] not in self.bench.cut_off}
        assert relay._own.keys() == {member.id for member in (*region.roster.ordered, *absent)}
        places = (relay._forwarder.read(pair.index) for pair in relay._pairs.values())
        needed = {proxies_of(place[2] >> 24) for place in places if place}
        kept = {name.removeprefix("r1.") for name in self.bench.keeper.copies if name.endswith("p")}
        assert needed <= kept
        vaults = {proxies_of(member.vault) for member in (*region.roster.ordered, *absent)}
        assert self.killed or kept <= needed | vaults

    @invariant()
    def an_id_that_is_remembered_waits_for_its_owner(self) -> None:
        if hasattr(self, "bench"):
            region = self.bench.region
            for peer in region.peers.values():
                for peer_id in peer.outbox.kept:
                    assert region.admission.ids.is_remembered(peer_id)
                    away = region.admission.absent.get(peer_id)
                    assert peer_id in region.peers or away is not None or peer_id in self.bench.cut_off

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.close()
            self.patch.stop()
            gc.unfreeze()


TestRecord = RecordMachine.TestCase
TestRecord.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("leaver", [0, 1, 3])
@pytest.mark.parametrize("viewer", ["a", "x"])
@pytest.mark.parametrize("again", [False, True])
def test_every_place_at_which_somebody_may_leave(viewer: str, leaver: int, again: bool) -> None:
    """Peer 2 is told of the host, b, c (if it may know of that one), itself and d; one leaves after any message."""
    for cut in range(3 + 5 * 3 + 1):
        with closing(Bench(peer=RULES[1])) as bench:
            assert all(map(bench.join, ("b", "c", viewer, "d")))
            peer = bench.region.peers[2]
            bench.post(peer, 64, cut)
            bench.leave(bench.region.peers[leaver])
            assert len(bench.lines()) >= 6  # it is not all in the snapshot
            assert bench.plain(replay(bench.lines())) == bench.export()
            if again:
                late = bench.join("b")
                assert late
                bench.post(peer, 64, 2)
                bench.leave(late)
                assert bench.plain(replay(bench.lines())) == bench.export()
            before = bench.export()
            bench.restart()
            assert bench.export() == before


# Older, newer and damaged states


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.abandon()


VERSION_1 = (
    b'{"version":1,"next_seq":7,"host":{"id":65535,"totals":[4,0,7]},"members":['
    b'{"id":65535,"seq":0,"vectors":3},'
    b'{"id":0,"seq":2,"vectors":3,"who":{"pid":4711,"uid":107,"gid":108,"vm_name":"web1","unit":"","program":"qemu"},'
    b'"since":1763694000000000,"outbox":{"preamble":3,"cursor":5,"offset":1,"leaves":[]}},'
    b'{"id":1,"seq":5,"vectors":3,"who":{"pid":4712,"uid":107,"gid":108,"vm_name":"","unit":"x.service","program":""},'
    b'"since":1763694000000001,"outbox":{"preamble":1,"cursor":0,"offset":0,"leaves":[]}}]}\n'
)
"""What version 1 wrote of a region with a host peer and two others, the first of them told of the second in part."""


def test_a_state_of_version_1_is_understood() -> None:
    state = replay([VERSION_1.strip(), b'["=",5,3,0,2,0]', b'["-",2,[]]', b'["!",1,5]'], "demo")
    assert state == {
        "version": STATE_VERSION,
        "name": "demo",
        "spec": None,
        "configured": True,
        "next_seq": 7,
        "host": {"id": 65535, "totals": [4, 5, 7]},
        "members": [
            {"id": 65535, "seq": 0, "vectors": 3},
            {
                "id": 1,
                "seq": 5,
                "vectors": 3,
                "who": {"pid": 4712, "uid": 107, "gid": 108, "vm_name": "", "unit": "x.service", "program": ""},
                "since": 1763694000000001,
                "rule": None,
                "keeps": True,
                "outbox": {"preamble": 3, "cursor": 0, "offset": 2, "part": 65535, "leaves": [], "kept": []},
            },
        ],
        "absent": [
            {
                "id": 0,
                "who": {"pid": 4711, "uid": 107, "gid": 108, "vm_name": "web1", "unit": "", "program": "qemu"},
                "fixed": False,
                "left": 0,
                "doorbells": None,
            }
        ],
        "retired": [],
        "dirty": False,
    }


def test_a_state_of_version_2_is_understood() -> None:
    assert replay([line({**GOOD, "version": 2})]) == replay([line(GOOD)]) == GOOD


def as_version_1(bench: Bench, name: str = "doorbelld:demo:state") -> None:
    """Have the ledger that is kept be one of version 1, of the very same region, up to its last word."""
    state = bench.region.export()
    for key in ("name", "spec", "configured", "absent", "retired", "dirty"):
        del state[key]
    for member in state["members"]:
        member.pop("rule", None)
        member.pop("keeps", None)
        member.get("outbox", {}).pop("kept", None)
    state["version"] = 1
    assert json.loads(VERSION_1).keys() == state.keys()
    old = Ledger.create(name)
    old.rewrite(json.dumps(state).encode() + b"\n")
    bench.keeper.drop("r1.state")
    bench.keeper.put("r1.state", old.fd.fileno())
    old.close()


def test_a_region_that_version_1_left_goes_on(bench: Bench) -> None:
    peers = [bench.join(name) for name in "xyz"]
    assert peers[0] and peers[1] and peers[2]
    bench.post(peers[0], 100, 100)
    bench.post(peers[1], 100, 5)
    spec, before = bench.region.spec, bench.export()
    as_version_1(bench)
    bench.region.let_go()
    fd = Kept({"state": bench.keeper.copies["r1.state"].dup()}).take("state")
    assert fd is not None
    ledger, state = read_state(fd)
    with pytest.raises(StateMismatch, match="did not say how it was asked for, nor is it configured"):
        spec_of(state, {"other": spec})
    assert spec_of(state, {"demo": spec}) is spec
    kept = Kept({name: fd.dup() for name, fd in bench.keeper.copies.items()}).below("r1.")
    keeping = bench.keeper, "r1."
    found = kept.take("state")
    assert found is not None
    found.close()
    bench.region = revive(spec, state, ledger, kept, keeping, bench.loop, bench.events.append, bench.spare)
    before["configured"] = True
    for member in before["members"][1:]:
        member["keeps"] = True  # of a program that nobody knows
    assert bench.export() == before  # in our version from now on
    assert b'"version":%d' % STATE_VERSION in bench.lines()[0]
    bench.restart()
    assert bench.export() == before
    for peer in bench.region.peers.values():
        while bench.post(peer, 100, 100):
            pass
    assert all(list(client.doorbells) == [65535, 0, 1, 2] for client in bench.clients.values())


def test_of_which_region_a_ledger_is_its_name_says() -> None:
    with no_leaks():
        for name, region in (("doorbelld:a.b-c_d:state", "a.b-c_d"), ("doorbelld::state", ""), ("x", ""), ("", "")):
            book = Ledger.create(name)
            assert region_of(book) == region
            book.close()


@pytest.mark.parametrize("version", [STATE_VERSION + 1, 99, 1 << 70])
def test_a_newer_state_is_told_apart(version: int) -> None:
    line = json.dumps({"version": version, "of": "things that nobody knows yet"}).encode()
    said = f"the state has version {version}, and this doorbelld knows up to {STATE_VERSION}; start the version that"
    with pytest.raises(NewerState, match=said):
        replay([line, b"[more of it]"])


GOOD = {
    **{"version": STATE_VERSION, "name": "demo", "spec": None, "configured": True, "next_seq": 3},
    **{"host": None, "members": [], "absent": [], "retired": [], "dirty": False},
}
PEER = {"id": 0, "seq": 1, "vectors": 1, "who": {}, "since": 0, "rule": None}


def line(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b""],
        [b"{"],
        [b"[]"],
        [b"3"],
        [b"null"],
        [b"\xff\xfe"],
        [line({**GOOD, "version": 0})],
        [line({**GOOD, "version": -1})],
        [line({**GOOD, "version": "2"})],
        [line({**GOOD, "version": None})],
        [line({**GOOD, "version": 1.5})],
        *([line({key: value for key, value in GOOD.items() if key != missing})] for missing in GOOD),
        [line({**GOOD, "members": 3})],
        [line({**GOOD, "members": [{}]})],
        [line(GOOD), b""],
        [line(GOOD), b"{}"],
        [line(GOOD), b"3"],
        [line(GOOD), b'["=",1,0,0,0,0]'],
        [line(GOOD), b'["=",1]'],
        [line(GOOD), b'["+"]'],
        [line(GOOD), b'["+",{}]'],
        [line(GOOD), b'["+",null]'],
        [line(GOOD), b'["-",1,[]]'],
        [line(GOOD), b'["!",0,1]'],
        [line({**GOOD, "host": {"id": 1, "totals": [0]}}), b'["!",1,1]'],
        [line({**GOOD, "host": {"id": 1, "totals": [0]}}), b'["!",0,"x"]'],
        [line(GOOD), b'["?",1]'],
        [line(GOOD), line(["+", PEER]), b'["-",1,3]', b'["=",1,0,0,0,0]'],
        [line(GOOD), line(["+", PEER]), b'["=",1,0,0,0,"x"]'],
        [line(GOOD), b'["+",{"seq":'],
    ],
)
def test_what_is_damaged_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(StateMismatch, match=r"the state is damaged \(\w+: ") as caught:
        replay(lines)
    assert type(caught.value) is StateMismatch


def test_reading_what_is_damaged_leaves_nothing_open() -> None:
    with no_leaks():
        book = Ledger.create("doorbelld:demo:state")
        book.rewrite(b"nonsense\n")
        with pytest.raises(StateMismatch):
            read_state(book.fd.dup())
        book.close()


# Room


def test_a_state_that_outgrows_its_ledger_is_kept_no_longer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody notices but who restarts: no peer is disconnected, nothing is raised, and it is said."""
    monkeypatch.setattr(ledger_module, "AREA", 8192)
    monkeypatch.setattr(module, "_LINES_MAX", 3)
    for _ in range(60):
        bench.join("x")
    assert [type(event) for event in bench.events].count(Unkept) == 1
    assert [event.reason for event in bench.events if isinstance(event, Unkept)] == [
        "its state has become too large to be kept; lower max-peers"
    ]
    assert not bench.region.kept
    assert not bench.keeper.copies
    assert len(bench.region.peers) == 60
    peers = list(bench.region.peers.values())
    bench.leave(peers[0])
    for peer in peers[1:3]:
        while bench.post(peer, 100, 100):
            pass
        assert len(bench.clients[peer.member.seq].doorbells) == 60
    os.eventfd_write(bench.region.doorbell(65535, 1), 2)
    bench.sweep()
    assert bench.region.host is not None
    assert bench.region.host.totals == [0, 2, 0]


@pytest.mark.parametrize("moment", ["leave", "change"])
def test_it_may_happen_at_any_step(bench: Bench, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    peers = [bench.join("x") for _ in range(3)]
    assert peers[0]
    monkeypatch.setattr(ledger_module, "AREA", 64)
    monkeypatch.setattr(module, "_LINES_MAX", 0)
    if moment == "leave":
        bench.leave(peers[0])
        assert sorted(bench.region.peers) == [1, 2]
    else:
        bench.region.change(replace(bench.region.spec, max_peers=7), configured=True)
        assert bench.region.spec.max_peers == 7
    assert not bench.region.kept
    assert not bench.keeper.copies


def test_a_full_ledger_is_only_a_reason_for_a_snapshot(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.region.unkeep()
    monkeypatch.setattr(ledger_module, "AREA", 4096)
    bench.region.keep(bench.keeper, "r1.")
    for turn in range(1000):
        os.eventfd_write(bench.region.doorbell(65535, turn % 3), 1)
        bench.sweep()
        assert replay(bench.lines()) == bench.region.export()
    assert bench.region.kept
    assert len(bench.lines()) < 1000


class Narrow(Satchel):
    """A keeper that has room for so many; it may also run out of descriptors."""

    def __init__(self, room: int, error: OSError | None = None) -> None:
        super().__init__()
        self.room = room
        self.error = error

    def put(self, name: str, fd: int) -> bool:
        if len(self.copies) < self.room:
            return super().put(name, fd)
        if self.error is not None:
            raise self.error
        return False


@pytest.mark.parametrize("error", [None, OSError(24, "Too many open files")])
@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_a_region_is_kept_whole_or_not_at_all(bench: Bench, room: int, error: OSError | None) -> None:
    bench.region.unkeep()
    keeper = Narrow(room, error)
    assert not bench.region.keep(keeper, "r1.")
    assert not bench.region.kept
    assert keeper.copies == {}
    assert [event.reason for event in bench.events if isinstance(event, Unkept)] == [
        "there is no room for the region's descriptors (FileDescriptorStoreMax=)"
    ]
    keeper.room = 4
    assert bench.region.keep(keeper, "r1.")
    assert sorted(keeper.copies) == ["r1.host", "r1.listener", "r1.memory", "r1.state"]
    bench.region.unkeep()
    assert keeper.copies == {}


@pytest.mark.parametrize("room", [4, 5, 6])
def test_that_not_every_peer_could_be_kept_is_told(bench: Bench, room: int) -> None:
    """Who is about to execute anew must know."""
    bench.join("x")
    bench.join("y")
    bench.region.unkeep()
    keeper = Narrow(room)
    assert bench.region.keep(keeper, "r1.") is (room == 6)
    assert len([event for event in bench.events if isinstance(event, Unkept)]) == 6 - room
    bench.region.unkeep()


def test_a_name_is_dropped_once_and_only_if_it_was_kept(bench: Bench) -> None:
    record = bench.region._record
    assert record is not None
    dropped: list[str] = []
    drop: Callable[[str], None] = bench.keeper.drop
    with mock.patch.object(bench.keeper, "drop", side_effect=lambda name: (dropped.append(name), drop(name))):
        record.drop("never")
        record.drop("host")
        record.drop("host")
    assert dropped == ["r1.host"]


def test_what_can_not_be_stowed_leaves_nothing_open(bench: Bench) -> None:
    record = bench.region._record
    assert record is not None
    fds = FdSet()
    with no_leaks():
        assert not record.stow("x", [1 << 20])
        with mock.patch("doorbelld.fds.shelf.Vault", side_effect=OSError(24, "Too many open files")):
            assert not record.stow("x", list(fds))
    assert "r1.x" not in bench.keeper.copies
