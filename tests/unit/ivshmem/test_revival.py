# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from doorbelld.errors import SocketInUse, SocketUnavailable, StateMismatch
from doorbelld.fds import eventfd
from doorbelld.fds.keeper import Satchel
from doorbelld.fds.ledger import Ledger
from doorbelld.fds.owned import Fd
from doorbelld.fds.peercred import identify
from doorbelld.fds.vault import Vault
from doorbelld.ivshmem import region as region_module
from doorbelld.ivshmem.courier import Courier
from doorbelld.ivshmem.events import PeerAdded, PeerRefused, PeerRemoved, Rung
from doorbelld.ivshmem.record import Record
from doorbelld.ivshmem.revival import LOST
from doorbelld.ivshmem.rules import Match, PeerRule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fdcount import no_leaks
from support.rawclient import DEADLINE, RawClient
from support.regionbench import Bench, killed_at

from .conftest import Site, membership


@pytest.mark.parametrize("read", [0, 1, 2, 3, 60, 100, 250])
def test_restart_in_the_middle_of_a_greeting(site: Site, read: int) -> None:
    """The same client sockets go on: no end of stream, and exactly the rest."""
    region = site.open(kept=True, vectors=64, host_peer=True)
    others = [site.join(region) for _ in range(6)]
    client = site.connect(region)
    site.wait(lambda: len(site.of(PeerAdded)) == 7)
    assert client.take(read, DEADLINE) == read
    others.pop(2).close()
    site.gone(1)
    seqs = [member.seq for member in region.roster.ordered]
    bells = membership(region)
    since = {peer.id: (peer.since, peer.who) for peer in region.peers.values()}
    region = site.restart(region)
    assert membership(region) == bells
    assert [member.seq for member in region.roster.ordered] == seqs
    assert {peer.id: (peer.since, peer.who) for peer in region.peers.values()} == since
    late = site.join(region)
    assert late.id in (2, 7)  # 2, unless somebody is still to be told of its leave
    site.settle(region, [client, late, *others])
    want = membership(region)
    for each in (client, late, *others):
        assert not each.eof
        assert each.doorbells == want
    assert client.memory is not None
    assert not region.admission.ids._held
    os.pwrite(client.memory, b"still there", 0)
    assert os.pread(region.memory.fileno(), 11, 0) == b"still there"


def test_restart_again_and_again_while_peers_come_and_go(site: Site) -> None:
    region = site.open(kept=True, vectors=32)
    clients = [site.join(region) for _ in range(8)]
    silent = site.connect(region)
    site.wait(lambda: len(site.of(PeerAdded)) == 9)
    for turn in range(10):
        site.events.clear()
        clients.pop(0).close()
        site.gone(1)
        clients.append(site.join(region))
        silent.take(7 * (turn % 3))
        region = site.restart(region)
    site.settle(region, [*clients, silent])
    want = membership(region)
    assert len(want) == 9
    assert all(client.doorbells == want for client in (*clients, silent))
    assert not region.admission.ids._held


@pytest.mark.parametrize("restarted", [False, True])
def test_nobody_else_gets_an_id_until_everybody_was_told_of_the_leave(
    site: Site, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = site.open(kept=True, vectors=64)
    readers = [site.join(region) for _ in range(6)]
    silent = site.connect(region)
    assert silent.take(3, DEADLINE) == 3  # the first batch is on its way, and tells it of 0
    readers.pop(0).close()
    site.gone(1)
    if restarted:
        region = site.restart(region)
    monkeypatch.setattr(region_module, "identify", lambda sock: replace(identify(sock), vm_name="another"))
    readers.append(site.join(region))
    assert readers[-1].id == 7  # not 0: the silent one knows somebody else by that
    site.settle(region, [*readers, silent])
    assert ("left", 0) in silent.log
    assert site.join(region).id == 0


def test_numbers_of_who_left_before_a_restart_are_not_used_again(site: Site) -> None:
    region = site.open(kept=True)
    one, two = site.join(region), site.join(region)
    site.settle(region, [one, two])
    two.close()
    site.gone(1)
    site.settle(region, [one])
    region = site.restart(region)
    three = site.join(region)
    site.settle(region, [one, three])
    assert one.log[-3:] == [("join", 1), ("left", 1), ("join", 1)]
    assert one.doorbells == three.doorbells == membership(region)


def test_rings_during_a_restart_are_not_lost(site: Site) -> None:
    region = site.open(kept=True, vectors=2, host_peer=True)
    client = site.join(region, keep=True)
    os.eventfd_write(client.fds[65535][1], 3)
    site.wait(lambda: site.of(Rung))

    new = site.restart(region, lambda: os.eventfd_write(client.fds[65535][1], 4))
    site.wait(lambda: site.of(Rung))
    assert [(event.vector, event.count) for event in site.of(Rung)] == [(1, 4)]
    assert new.host is not None
    assert new.host.totals == [0, 7]


def test_who_left_during_a_restart_is_missed(site: Site) -> None:
    region = site.open(kept=True)
    one, two = site.join(region), site.join(region)

    new = site.restart(region, two.close)
    site.wait(lambda: any(event.region is new for event in site.of(PeerRemoved)))
    site.settle(new, [one])
    assert one.doorbells == membership(new)
    assert list(one.doorbells) == [0]


def test_a_peer_whose_descriptors_are_missing_has_left(site: Site) -> None:
    region = site.open(kept=True)
    one, two = site.join(region), site.join(region)
    site.settle(region, [one, two])
    site.keeper.drop("r0.1")
    region = site.restart(region)
    assert [(event.peer.id, event.reason) for event in site.of(PeerRemoved)] == [(1, LOST)]
    two.until_eof()
    site.settle(region, [one])
    assert one.doorbells == membership(region)
    assert list(one.doorbells) == [0]


def test_restored_with_another_first_id(site: Site) -> None:
    """Who was there keeps its ID; below the new first one nothing is given out any more."""
    region = site.open(kept=True)
    old = site.join(region)
    site.call(region.change, replace(region.spec, first_id=1), True)
    region = site.restart(region)
    old.close()
    site.gone(1)
    assert site.join(region).id == 1


# The end of the process between any two steps; a region step by step


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def agree(bench: Bench, *clients: RawClient) -> None:
    """Let everything be told, and see that all of these know the same, each message once (see `RawClient`)."""
    bench.pump()
    want = membership(bench.region)
    for client in clients:
        assert not client.eof
        assert client.doorbells == want


ARRIVING = [(Record, "joined"), (Courier, "wake"), (Record, "begin_sending"), (Record, "told"), (None, "_emit")]


@pytest.mark.parametrize(("of", "step"), ARRIVING, ids=[step for _, step in ARRIVING])
def test_killed_while_somebody_arrives(bench: Bench, of: Any, step: str) -> None:
    witness = bench.knock()
    agree(bench, witness)
    with killed_at(step, of or bench.region):
        bench.knock()
        bench.pump()
    bench.restart()
    late = bench.knock()
    agree(bench, *bench.strangers)
    assert [client.id for client in bench.strangers] == [0, 1, 2]
    assert witness.log == [("join", 65535), ("join", 0), ("join", 1), ("join", 2)]
    assert [member.seq for member in bench.region.roster.ordered] == [0, 1, 2, 3]
    assert late.messages == 3 + 4 * 3
    bench.restart()
    agree(bench, *bench.strangers)


def test_killed_before_a_connection_could_be_kept(bench: Bench) -> None:
    """It has heard nothing yet, and sees the end: no system call accepts and stores at once (docs/decisions/0007)."""
    witness = bench.knock()
    with killed_at("put", Satchel):
        bench.knock()
    bench.restart()
    bench.strangers[1].until_eof()
    assert bench.strangers[1].messages == 0
    third = bench.knock()
    agree(bench, witness, third)
    assert third.id == 1


@pytest.mark.parametrize("others", [0, 1])
def test_killed_while_somebody_is_turned_away(others: int) -> None:
    """They are looked at once more if they came last, and are dropped if the state knows of somebody later."""
    bench = Bench(max_peers=1)
    first = bench.knock()
    with killed_at("drop"):
        bench.knock()
    assert sorted(bench.keeper.copies)[:2] == ["r1.1", "r1.2"]
    if others:
        with pytest.MonkeyPatch.context() as patch:  # the message to drop it never reached who keeps
            patch.setattr(Record, "drop", lambda *_: None)
            bench.knock()
        bench.region.change(replace(bench.region.spec, max_peers=2), configured=True)
        bench.knock()
    bench.restart()
    refused = [event for event in bench.events if isinstance(event, PeerRefused)]
    assert len(refused) == (0 if others else 1)
    assert not {"r1.2", "r1.3"} & set(bench.keeper.copies)
    bench.strangers[1].until_eof()
    agree(bench, first, *bench.strangers[3:])
    bench.close()


def test_who_was_turned_away_may_find_room_after_a_restart(bench: Bench) -> None:
    first = bench.knock()
    bench.region.change(replace(bench.region.spec, max_peers=1), configured=True)
    with killed_at("drop"):
        bench.knock()
    first.close()
    bench.restart()
    agree(bench, bench.strangers[1])
    assert [type(event) for event in bench.events] == [PeerRemoved, PeerAdded]
    assert bench.strangers[1].id == 0


LEAVING = [(Record, "left"), (Record, "drop"), (region_module, "end_connection"), (Courier, "wake"), (None, "_emit")]


@pytest.mark.parametrize("shown_out", [False, True])
@pytest.mark.parametrize(("of", "step"), LEAVING, ids=[step for _, step in LEAVING])
def test_killed_while_somebody_leaves(bench: Bench, of: Any, step: str, shown_out: bool) -> None:
    first, leaver, third = bench.knock(), bench.knock(), bench.knock()
    bench.pump()
    for client in (first, third):
        client.log.clear()
    gone = bench.region.peers[1]
    with killed_at(step, of or bench.region):
        if shown_out:
            bench.region.remove(gone, "shown out")
        else:
            leaver.close()
            bench.pump()
    gone.sock.close()
    gone.member.eventfds.close()
    bench.restart()
    bench.pump()
    if shown_out and step == "left":  # as if nothing had been asked for
        agree(bench, first, leaver, third)
        assert first.log == third.log == []
        return
    if shown_out:
        leaver.until_eof()
    agree(bench, first, third)
    assert first.log == third.log == [("left", 1)]
    assert not bench.region.admission.ids._held
    assert "r1.2" not in bench.keeper.copies


@pytest.mark.parametrize("count", range(0, 13))
def test_killed_in_the_middle_of_a_greeting_with_no_line_of_it(bench: Bench, count: int) -> None:
    first, second = bench.knock(), bench.knock()
    peer = bench.region.peers[1]
    values, fds = peer.outbox.batch(64)
    assert len(values) == 3 + 3 * 3
    with killed_at("told"):
        bench.region._post(peer, values[:count], fds[:count])
    assert second.take() == count
    bench.restart()
    assert bench.region.peers[1].backlog == len(values) - count
    agree(bench, first, second)


def test_killed_again_before_it_served(bench: Bench) -> None:
    """What is unfinished is told of once, however often nobody gets to tell."""
    client = bench.knock()
    client.keep = True
    bench.pump()
    with killed_at("rung"):
        os.eventfd_write(client.fds[65535][1], 3)
        bench.sweep()
    bench.region.let_go()
    for _ in range(2):
        with killed_at("renew"):
            bench.revive()
    bench.region = bench.revive()
    assert bench.region.host is not None
    assert bench.region.host.totals == [0, 3, 0]
    agree(bench, client)


# What is missing, too much, or no longer as it was


def hand_over(bench: Bench, *names: str) -> None:
    """End the region, and lose some of what was kept of it."""
    bench.region.let_go()
    bench.events.clear()
    for name in names:
        bench.keeper.drop(f"r1.{name}")


def refused(bench: Bench, kind: type[Exception], said: str, **how: Any) -> None:
    """See that the region can't be made anew, and that this leaves nothing open."""
    with no_leaks():
        given = how["given"].dup() if "given" in how else None
        with pytest.raises(kind, match=said) as caught:
            bench.revive(**{**how, "given": given})
        del caught


@pytest.mark.parametrize(
    ("name", "said"), [("memory", "its memory is missing"), ("host", "the host peer's doorbells are missing")]
)
def test_what_a_region_can_not_do_without(bench: Bench, name: str, said: str) -> None:
    client = bench.knock()
    bench.pump()
    with bench.keeper.copies[f"r1.{name}"].dup() as copy:
        hand_over(bench, name)
        refused(bench, StateMismatch, said)
        bench.keeper.put(f"r1.{name}", copy.fileno())
    bench.region = bench.revive()
    agree(bench, client)


def stow(bench: Bench, name: str, fds: list[int]) -> None:
    """Have something else kept under *name*."""
    bench.keeper.drop(f"r1.{name}")
    vault = Vault()
    vault.fill(fds)
    bench.keeper.put(f"r1.{name}", vault.door.fileno())
    vault.close()


def test_doorbells_of_the_host_peer_that_are_not_all_there(bench: Bench) -> None:
    bells = [os.dup(fd) for fd in bench.region.member(65535).eventfds]
    hand_over(bench)
    for wrong in (bells[:2], [*bells, bells[0]], []):
        stow(bench, "host", wrong)
        refused(bench, StateMismatch, "doorbells are missing")
    stow(bench, "host", bells)
    bench.region = bench.revive()
    for fd in bells:
        os.close(fd)


def test_a_listening_socket_that_is_missing_is_made_anew(bench: Bench) -> None:
    client = bench.knock()
    hand_over(bench, "listener")
    bench.region = bench.revive()
    assert "r1.listener" in bench.keeper.copies
    agree(bench, client, bench.knock())
    bench.restart()
    agree(bench, client, bench.strangers[1], bench.knock())


def test_a_listening_socket_that_can_not_be_made_anew(bench: Bench) -> None:
    hand_over(bench, "listener")
    path = bench.region.spec.socket
    os.unlink(path)
    with open(path, "w", encoding="ascii") as file:
        file.write("mine")
    refused(bench, SocketInUse, "something that is no socket is there")
    os.unlink(path)
    bench.region = bench.revive()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_listening_socket_from_somebody_else_takes_the_place_of_ours(bench: Bench, damaged: bool) -> None:
    client = bench.knock()
    bench.pump()
    path = bench.region.spec.socket
    hand_over(bench, *(["memory"] if damaged else []))
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(path)
        given.listen()
        if damaged:
            with Fd(os.dup(given.fileno())) as original:
                refused(bench, StateMismatch, "memory", given=original)
            memory = bench.strangers[0].memory
            assert memory is not None
            bench.keeper.put("r1.memory", memory)
        bench.region = bench.revive(given=Fd(os.dup(given.fileno())))
    assert "r1.listener" not in bench.keeper.copies
    agree(bench, client, bench.knock())
    bench.region.close()
    assert os.path.exists(path)  # not ours to remove


@pytest.mark.parametrize("spoil", ["gone", "empty", "few", "many", "no socket", "no vault"])
def test_a_peer_of_whom_not_all_is_there_has_left(bench: Bench, spoil: str) -> None:
    first, second = bench.knock(), bench.knock()
    bench.pump()
    peer = bench.region.peers[1]
    fds = [os.dup(fd) for fd in (peer.sock.fileno(), *peer.member.eventfds)]
    hand_over(bench, "2")
    if spoil == "no vault":
        bench.keeper.put("r1.2", fds[1])
    elif spoil != "gone":
        stow(bench, "2", {"empty": [], "few": fds[:3], "many": [*fds, fds[1]], "no socket": [*fds[1:], fds[0]]}[spoil])
    for fd in fds:
        os.close(fd)
    bench.region = bench.revive()
    removed = [event for event in bench.events if isinstance(event, PeerRemoved)]
    assert [(event.peer.id, event.reason) for event in removed] == [(1, LOST)]
    second.until_eof()
    agree(bench, first)
    assert first.log == [("join", 65535), ("join", 0), ("join", 1), ("left", 1)]
    assert "r1.2" not in bench.keeper.copies


def test_what_nobody_knows_is_dropped(bench: Bench) -> None:
    client, gone = bench.knock(), bench.knock()
    bench.pump()
    bench.region.remove(bench.region.peers[1], "shown out")
    gone.until_eof()
    hand_over(bench)
    bells = eventfd.make(1)
    for name in ("2", "0", "99", "x", "", "-1", "007", "\u0661", "state2"):
        bench.keeper.put(f"r1.{name}", bells[0])
    bells.close()
    bench.region = bench.revive()
    assert sorted(bench.keeper.copies) == ["r1.1", "r1.host", "r1.listener", "r1.memory", "r1.state"]
    agree(bench, client)


def test_several_that_wait_are_admitted_in_the_order_of_coming(bench: Bench) -> None:
    """More than one can't be, as it is; but whoever is found is served."""
    clients = []
    hand_over(bench)
    for number in (11, 9, 10):
        ours, theirs = socket.socketpair()
        bells = eventfd.make(3)
        stow(bench, str(number), [ours.fileno(), *bells])
        bells.close()
        ours.close()
        clients.append(RawClient(sock=theirs))
    bench.strangers += clients
    bench.region = bench.revive()
    agree(bench, *clients)
    assert [client.id for client in clients] == [2, 0, 1]
    agree(bench, bench.knock())
    assert bench.strangers[-1].id == 3
    assert bench.region.roster.next_seq == 13


def test_of_a_region_whose_options_do_not_hold_any_more(bench: Bench) -> None:
    hand_over(bench)
    for options in ({"size": 3}, {"vectors": "many"}, {"owner": "somebody-who-was-deleted"}, {"peer": 3}):
        refused(
            bench,
            StateMismatch,
            "it was asked for as it can't be now: region.demo",
            spoil=lambda state, options=options: state["spec"].update(options),
        )
    bench.region = bench.revive()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Walk all places in a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield from places(below, (*path, key))


JUNK = st.sampled_from([None, -1, 0, 1, 3, 1 << 70, 0.5, "", "x", [], [0], {}, {"seq": 1}, True])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), junk=JUNK, how=st.sampled_from(["put", "remove"]))
@pytest.mark.parametrize("relay", [False, True])
def test_a_damaged_state_is_refused_or_read_and_leaves_nothing(
    relay: bool, data: st.DataObject, junk: Any, how: str
) -> None:
    bench = Bench(peer=(PeerRule(Match(vm="a"), may_ring=("host",)), PeerRule(Match())), relay=relay)
    bench.join("a")
    bench.join("b")
    bench.post(bench.region.peers[1], 64, 5)
    good = json.dumps(bench.region.export())
    bench.region.let_go()
    bad = json.loads(good)
    *way, last = data.draw(st.sampled_from(list(places(bad))))
    place: Any = bad
    for key in way:
        place = place[key]
    if how == "put":
        place[last] = junk
    else:
        del place[last]
    keep_state(bench, json.dumps(bad))
    try:
        bench.region = bench.revive()
    except (StateMismatch, SocketUnavailable) as error:
        assert str(error)
        keep_state(bench, good)
        bench.region = bench.revive()
    else:  # not so that anybody could see it; the clients may
        for _ in range(2):
            for peer in bench.peers():
                while (batch := peer.outbox.batch(64))[0] and bench.region._post(peer, *batch)[0]:
                    pass
            bench.restart()
    bench.abandon()


def keep_state(bench: Bench, state: str) -> None:
    """Have a ledger kept that says *state*."""
    bench.keeper.drop("r1.state")
    book = Ledger.create("doorbelld:demo:state")
    book.rewrite(state.encode() + b"\n")
    bench.keeper.put("r1.state", book.fd.fileno())
    book.close()


@pytest.mark.parametrize("cut", range(3 + 3 * 3 + 1))
def test_who_may_ring_whom_is_as_it_was_when_they_came(cut: int) -> None:
    """Rules that changed meanwhile hold for newcomers; a greeting that was cut off goes on under the old one."""
    old = (PeerRule(Match(vm="a"), may_ring=("b", "host")), PeerRule(Match()))
    bench = Bench(peer=old)
    first, second, third = bench.join("b"), bench.join("c"), bench.join("a")
    assert first and second and third
    assert third.backlog == 3 + 3 * 3  # the host peer, b, and its own
    assert bench.post(third, 64, cut) == cut
    bench.region.change(replace(bench.region.spec, peer=(PeerRule(Match(), may_ring=()),)), configured=True)
    bench.restart()
    third = bench.region.peers[2]
    assert third.backlog == 3 + 3 * 3 - cut
    late = bench.join("b")
    assert late
    bench.restart()
    bench.pump()
    assert list(bench.clients[third.member.seq].doorbells) == [65535, 0, 2, 3]
    assert list(bench.clients[late.member.seq].doorbells) == [3]
    assert sorted(bench.clients[1].doorbells) == [0, 1, 2, 3, 65535]
    bench.leave(bench.region.peers[1])
    bench.restart()
    bench.pump()
    assert ("left", 1) not in bench.clients[third.member.seq].log
    bench.close()
