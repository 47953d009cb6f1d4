# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from doorbelld.errors import ServerClosed, StateMismatch
from doorbelld.fds.keeper import Kept, Satchel
from doorbelld.fds.ledger import NewerState
from doorbelld.fds.owned import Fd
from doorbelld.ivshmem import clientjournal as journal_module
from doorbelld.ivshmem.client_events import ClientEvent, ClientPeerAdded, ClientRung, ClientUnkept
from doorbelld.ivshmem.clientrevival import read_state, replay, revive_client
from doorbelld.ivshmem.clientspec import ClientSpec
from doorbelld.ivshmem.hostclient import HostClient, HostFlat
from doorbelld.ivshmem.link import ClientState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.clientbench import ClientBench
from support.crash import doomed, spin
from support.fdcount import no_leaks
from support.otherserver import OtherServer
from support.rawclient import identity

WAYS = ["before", "after", "half"]
OTHERS = st.sampled_from([0, 1, 2, 65535])
CUTS = st.sampled_from([0, 0, 0, 1, 7])
KILL = st.tuples(st.just("kill"), st.integers(0, 12), st.sampled_from(WAYS))
ACTIONS = st.one_of(
    st.tuples(st.just("add"), OTHERS, CUTS),
    st.tuples(st.just("add"), OTHERS, CUTS),
    st.tuples(st.just("add"), st.just(7), CUTS),
    st.tuples(st.just("leave"), OTHERS, CUTS),
    st.tuples(st.just("ring"), st.integers(0, 3), st.integers(1, 9)),
    st.tuples(st.just("deliver"), st.integers(1, 12)),
    st.tuples(st.just("turn"), st.integers(1, 3)),
    KILL,
    KILL,
    st.tuples(st.just("restart")),
)


@pytest.fixture
def bench() -> Iterator[ClientBench]:
    made = ClientBench()
    yield made
    made.close()


def populate(bench: ClientBench, peers: int = 3, vectors: int = 3) -> None:
    """Have some others there, and our own doorbells."""
    for peer_id in range(peers):
        for _ in range(vectors):
            bench.add(peer_id)
    for _ in range(vectors):
        bench.add(7)


# The end of the process at any instant


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ACTIONS, max_size=60), st.integers(0, 8))
def test_killed_anywhere_among_any_messages(actions: list[tuple[object, ...]], at_first: int) -> None:
    """Wherever the process ends, the client knows exactly what it was told, and the server has noticed nothing."""
    bench = ClientBench()
    try:
        bench.trap.left = at_first
        bench.accept()
        for action in actions:
            match action:
                case ("add", int(peer_id), int(cut)):
                    bench.add(peer_id, cut)
                case ("leave", int(peer_id), int(cut)):
                    bench.leave(peer_id, cut)
                case ("ring", int(vector), int(count)):
                    bench.ring(vector, count)
                case ("deliver", int(count)):
                    bench.deliver(count)
                case ("turn", int(count)):
                    bench.turn(count)
                case ("kill", int(left), str(how)):
                    bench.trap.left, bench.trap.how = left, how
                    bench.turn(2)
                case ("restart",):
                    bench.restart()
            if bench.trap.dead:
                bench.restart()
        bench.trap.left = -1
        bench.settle()
    finally:
        bench.close()


@pytest.mark.parametrize("how", WAYS)
def test_killed_at_each_step(how: str) -> None:
    """Of one life with everything in it: the first message to a vault put together of two, a leave, rings."""
    for left in itertools.count():
        bench = ClientBench()
        bench.trap.left, bench.trap.how = left, how
        bench.accept()
        populate(bench)
        bench.settle()
        for peer_id in (10, 11, 12):
            bench.add(peer_id, cut=3)
            bench.settle()
        bench.ring(1, 5)
        bench.leave(1)
        bench.settle()
        unharmed = bench.trap.left >= 0
        bench.trap.left = -1
        bench.restart()
        bench.settle()
        bench.close()
        if unharmed:
            assert left > 20
            return


class RemoteKeeper:
    """A keeper in another process: what it has is what came through *sock*, in order."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def put(self, name: str, fd: int) -> bool:
        socket.send_fds(self.sock, [f"+{name}".encode()], [fd])
        return True

    def drop(self, name: str) -> None:
        self.sock.send(f"-{name}".encode())

    def ready(self, resume: object) -> bool:
        return True

    @staticmethod
    def collect(sock: socket.socket, into: Satchel) -> None:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                data, fds, _, _ = socket.recv_fds(sock, 4096, 1)
                if data[:1] == b"+":
                    into.copies[data[1:].decode()] = Fd(fds[0])
                elif data:
                    into.drop(data[1:].decode())
                else:
                    return


@pytest.mark.parametrize("turns", range(12))
def test_a_process_that_is_really_killed(tmp_path: Any, turns: int) -> None:
    """SIGKILL at some moment of a greeting of 242 messages with others coming; the next process goes on."""
    spec = ClientSpec("demo", f"{tmp_path}/s")
    with no_leaks(), OtherServer(spec.socket, vectors=8) as server:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        others = [socket.socket(socket.AF_UNIX) for _ in range(30)]
        for other in others:
            other.connect(spec.socket)
        server.wait_for(lambda: len(server.ids) == 30)

        def live() -> None:
            loop = asyncio.new_event_loop()
            HostClient.open(spec, loop, lambda _: None, keeping=(RemoteKeeper(theirs), "c1."))
            loop.run_forever()

        with doomed(live):
            server.wait_for(lambda: 30 in server.ids)
            spin(turns * 20_000)
        others.pop().close()
        server.wait_for(lambda: len(server.ids) == 30)
        for vector, fd in enumerate(server.eventfds(30)):
            os.eventfd_write(fd, vector + 1)
        kept = Satchel()
        RemoteKeeper.collect(ours, kept)
        names = Kept({name: fd.dup() for name, fd in kept.copies.items()}).below("c1.")
        state = names.take("state")
        assert state is not None
        loop = asyncio.new_event_loop()
        ledger, found = read_state(state)
        client = revive_client(HostClient, found, ledger, names, (kept, "c1."), loop, lambda _: None)

        async def come_round() -> None:
            async with asyncio.timeout(20):
                while client.vectors < 8 or client.interrupts < 36 or len(client.peers) != 29:
                    await asyncio.sleep(0.001)

        loop.run_until_complete(come_round())
        assert client.id == 30
        assert server.accepted == 31
        assert client.rings == [1, 2, 3, 4, 5, 6, 7, 8]
        for peer in (*client.peers.values(), client.link.membership.own):
            assert [*map(identity, peer.eventfds)] == [*map(identity, server.eventfds(peer.id))]
        client.close()
        loop.close()
        assert not kept.copies
        for sock in (ours, theirs, *others):
            sock.close()


# What is kept


def test_everything_is_as_it_was(bench: ClientBench) -> None:
    bench.accept()
    populate(bench)
    bench.ring(2, 9)
    bench.settle()
    before = bench.client
    since, seen = before.since, {peer_id: before.seen(peer_id) for peer_id in before.peers}
    after = bench.restart()
    assert bench.events == []
    assert after is not before
    assert (after.spec, after.configured, after.since, after.memory_size) == (bench.spec, False, since, 4096)
    assert {peer_id: after.seen(peer_id) for peer_id in after.peers} == seen
    assert after.kept
    bench.settle()


def test_many_who_come_and_go_are_few_entries(bench: ClientBench) -> None:
    """Doorbells of who left don't pile up, and those who stay are not moved for each who comes."""
    bench.accept()
    populate(bench, peers=5)
    bench.settle()
    stayed = []
    for turn in range(60):
        peer_id = 100 + turn
        for _ in range(4):
            bench.add(peer_id)
        bench.settle()
        if turn % 10:
            bench.leave(peer_id)
        else:
            stayed.append(peer_id)
        bench.settle()
        assert len(bench.keeper.copies) <= 2 + 8
    assert list(bench.client.peers) == [0, 1, 2, 3, 4, *stayed]
    vaults = bench.client._journal._vaults  # type: ignore[union-attr]
    live = 1 + 3 * 6 + 4 * len(stayed)
    assert sum(map(len, vaults.values())) <= 3 * live + 16
    bench.restart()
    bench.settle()


def test_a_snapshot_in_the_middle_of_a_message(bench: ClientBench) -> None:
    """Kept from then on, as for an upgrade, with half a message and its descriptor taken."""
    bench.accept()
    populate(bench)
    bench.settle()
    bench.client.unkeep()
    assert not bench.keeper.copies
    bench.add(3, cut=3)
    bench.deliver(1)
    bench.turn(5)
    assert [len(data) for data, _ in bench.client.link.tail] == [3]
    assert bench.client.keep(bench.keeper, "c1.")
    bench.restart()
    bench.restart()
    bench.settle()
    assert 3 in bench.client.peers


def test_rings_that_were_taken_and_not_told(bench: ClientBench) -> None:
    bench.accept()
    populate(bench)
    bench.settle()
    bench.ring(1, 4)
    ledger = bench.client._journal._ledger  # type: ignore[union-attr]
    bench.trap.left, bench.trap.how = 3, "after"  # slot 0 begun, doorbell 0 drained, and the same for 1
    bench.until_dead()
    assert ledger.unfinished()[1] == (1, 4)
    bench.restart()
    assert bench.events == [ClientRung(bench.client, 1, 4)]
    assert bench.client.rings == [0, 4, 0]
    bench.settle()


def test_a_flat_device_goes_on(bench: ClientBench) -> None:
    flat = ClientBench(HostFlat, **{"memory-size": 4096})
    flat.accept()
    populate(flat)
    flat.ring(0, 3)
    flat.settle()
    flat.restart()
    assert isinstance(flat.client, HostFlat)
    assert flat.client.device.interrupts[0] == 3
    assert flat.client.read(8) == 7
    flat.ring(0, 2)
    flat.settle()
    assert flat.client.device.interrupts[0] == 5
    state = replay(lines(flat))
    with pytest.raises(StateMismatch, match="something else"):
        bench.revive(lambda mine: mine.update(kind=state["kind"]))
    flat.close()


@pytest.mark.parametrize("later", [False, True], ids=["in the snapshot", "and more since"])
def test_who_has_more_vectors_than_are_taken_now_stays(bench: ClientBench, later: bool) -> None:
    """They came before vectors-max was lowered, which holds for those who come."""
    bench.accept()
    populate(bench, vectors=3)
    bench.settle()
    bench.client.change(ClientSpec.from_raw("demo", {**bench.spec.raw(), "vectors-max": 2}), False)
    if later:
        bench.add(50)
        bench.settle()
    bench.restart()
    assert bench.client.state is ClientState.CONNECTED
    bench.settle()
    for _ in range(3):
        bench.add(51)
    bench.deliver()
    bench.until(lambda: bench.client.state is ClientState.BROKEN)
    assert "peer 51 has more than 2 vectors" in bench.client.reason


def test_a_snapshot_now_and_then(bench: ClientBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_LINES_MAX", 5)
    bench.accept()
    populate(bench)
    for count in range(1, 20):
        bench.ring(1, count)
        bench.settle()
        assert len(lines(bench)) < 10
    bench.restart()
    bench.settle()


def test_messages_are_reason_enough_for_a_snapshot(bench: ClientBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_LINES_MAX", 5)
    bench.accept()
    for _ in range(20):
        bench.add(1)
        bench.settle()
        bench.leave(1)
        bench.settle()
        assert len(lines(bench)) < 20


def test_a_snapshot_before_a_ledger_is_full(bench: ClientBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.accept()
    populate(bench)
    bench.settle()
    assert len(lines(bench)) > 1
    monkeypatch.setattr(journal_module, "AREA", 0)
    bench.add(5)
    bench.settle()
    assert [line[:4] for line in lines(bench)[1:]] == [b'["<"', b'[">"']
    bench.restart()
    bench.settle()


def test_no_snapshot_while_messages_are_handled(bench: ClientBench) -> None:
    """It would tell of some that were taken together, and not of the others, which are gone from the socket."""
    bench.accept()
    populate(bench)
    bench.settle()
    found: list[int] = []
    emit = bench.client._emit

    def hear(event: ClientEvent) -> None:
        emit(event)
        if isinstance(event, ClientPeerAdded):
            bench.client.change(bench.client.spec, True)
            found.append(len(replay(lines(bench))["batches"]))

    bench.client._emit = hear
    for peer_id in (10, 11, 12):
        bench.add(peer_id)
    bench.settle()
    assert len(found) == 3 and all(found)
    bench.restart()
    bench.settle()
    assert bench.client.configured


def test_what_was_looked_at_and_never_taken_is_dropped(bench: ClientBench) -> None:
    """The keeper took its time, and the connection ended meanwhile."""
    bench.accept()
    populate(bench)
    bench.settle()
    put = bench.keeper.put

    def slow(name: str, fd: int) -> bool:
        bench.keeper.busy = True
        return put(name, fd)

    bench.keeper.put = slow  # type: ignore[method-assign]
    bench.add(5)
    bench.deliver()
    bench.turn(3)
    assert 5 not in bench.client.peers
    bench.keeper.put = put  # type: ignore[method-assign]
    bench.client.link.fail(ServerClosed("it is gone"))
    bench.keeper.rest()
    assert set(bench.keeper.copies) == {"c1.state"}
    assert not bench.client.peers


# What ends while we are away, or is not there


def test_a_server_that_ended_while_we_were_away(bench: ClientBench) -> None:
    bench.accept()
    populate(bench)
    bench.ring(0, 2)
    bench.settle()
    bench.ring(0, 3)
    bench.hang_up()
    bench.restart()
    bench.until(lambda: bench.client.state is ClientState.CONNECTING)
    assert bench.client.rings == [5, 0, 0]  # the last ones, too
    assert not bench.client.peers
    bench.rings = [5, 0, 0]
    bench.connections = 0
    bench.accept()
    populate(bench)
    bench.rings = [5, 0, 0]
    bench.settle()
    assert len(bench.keeper.copies) == 3  # the state, a socket, a vault


def test_who_does_not_reconnect_stays_broken() -> None:
    bench = ClientBench(reconnect=False)
    bench.accept()
    bench.settle()
    bench.hang_up()
    bench.until(lambda: bench.client.state is ClientState.BROKEN)
    reason = bench.client.reason
    bench.restart()
    bench.turn(3)
    assert (bench.client.state, bench.client.reason) == (ClientState.BROKEN, reason)
    assert list(bench.keeper.copies) == ["c1.state"]
    bench.client.change(ClientSpec("demo", bench.spec.socket), True)
    bench.accept()
    bench.connections = 1
    bench.settle()
    bench.close()


def test_doorbells_that_are_missing(bench: ClientBench) -> None:
    bench.accept()
    bench.settle()
    populate(bench, peers=6)
    bench.settle()
    vaults = {name for name in bench.keeper.copies if name[3:].isdecimal()}
    for name in bench.keeper.copies.keys() & vaults:
        if bench.client._journal._where[bench.client.memory.fileno()][0] != int(name[3:]):  # type: ignore[union-attr]
            bench.keeper.drop(name)
    assert vaults - bench.keeper.copies.keys()
    bench.restart()
    assert "doorbells are missing" in bench.client.reason
    bench.hang_up()
    bench.accept()
    bench.connections = 1
    bench.settle()


@pytest.mark.parametrize("what", ["socket", "vault", "something else"])
def test_a_connection_of_which_a_part_is_missing_is_made_anew(bench: ClientBench, what: str) -> None:
    bench.accept()
    populate(bench)
    bench.settle()
    for name in set(bench.keeper.copies) - {"c1.state"}:
        if name.startswith("c1.s") == (what == "socket"):
            bench.keeper.drop(name)
            if what == "something else":
                bench.keeper.put(name, bench.own[0])
    bench.restart()
    assert "a part of its connection was not kept" in bench.client.reason
    bench.hang_up()
    bench.rings = []
    bench.accept()
    populate(bench)
    bench.connections = 1
    bench.settle()


def test_leftovers_are_dropped(bench: ClientBench) -> None:
    bench.accept()
    bench.settle()
    bench.keeper.put("c1.99", bench.listener.fileno())
    bench.keeper.put("c1.s98", bench.listener.fileno())
    bench.restart()
    assert not {"c1.99", "c1.s98"} & set(bench.keeper.copies)
    populate(bench)
    bench.settle()


# Where there is no room, or no time


def test_a_keeper_without_room_from_the_beginning(bench: ClientBench) -> None:
    bench.client.unkeep()
    bench.keeper.room = 0
    assert not bench.client.keep(bench.keeper, "c1.")
    assert [type(event) for event in bench.events] == [ClientUnkept]
    bench.accept()
    populate(bench)
    bench.settle()


@pytest.mark.parametrize("room", [1, 2])
def test_a_keeper_that_is_full(bench: ClientBench, room: int) -> None:
    """The client goes on, without being kept."""
    bench.keeper.room = room
    bench.accept()
    populate(bench)
    bench.settle()
    assert [event.reason for event in bench.events if isinstance(event, ClientUnkept)] == [journal_module.NO_ROOM]
    assert not bench.client.kept
    assert not bench.keeper.copies


def test_a_vault_that_can_not_be_put_together(bench: ClientBench) -> None:
    """No room for one more, though there would be less of them afterwards: they stay as they are."""
    bench.accept()
    bench.settle()
    for peer_id in range(5):
        bench.keeper.room = len(bench.keeper.copies) + 1
        bench.add(peer_id)
        bench.settle()
    assert bench.client.kept
    bench.restart()
    bench.settle()


def test_nothing_is_read_while_the_keeper_is_busy(bench: ClientBench) -> None:
    bench.accept()
    populate(bench)
    bench.settle()
    bench.keeper.busy = True
    bench.add(5)
    bench.deliver()
    bench.turn(5)
    assert 5 not in bench.client.peers
    assert bench.keeper.waiting
    bench.keeper.rest()
    bench.settle()
    bench.keeper.busy = True
    bench.add(5)
    bench.deliver()
    bench.turn(3)
    bench.keeper.waiting.clear()
    bench.keeper.busy = False
    bench.restart()  # what was looked at is still there
    bench.settle()


def test_a_keeper_that_becomes_busy_with_what_it_is_given(bench: ClientBench) -> None:
    """Nothing is taken before it is there."""
    bench.accept()
    bench.settle()
    put = bench.keeper.put

    def slow(name: str, fd: int) -> bool:
        bench.keeper.busy = True
        return put(name, fd)

    bench.keeper.put = slow  # type: ignore[method-assign]
    for peer_id in range(4):
        bench.add(peer_id)
        bench.deliver()
        bench.turn(3)
        assert peer_id not in bench.client.peers
        for _ in range(3):
            bench.keeper.rest()
            bench.turn(2)
        assert peer_id in bench.client.peers
    bench.keeper.rest()
    bench.restart()
    bench.keeper.rest()
    bench.settle()


# State that is damaged, or of another version


def lines(bench: ClientBench) -> list[bytes]:
    assert bench.client._journal is not None
    return bench.client._journal._ledger.lines()


def damaged(bench: ClientBench) -> list[bytes]:
    bench.accept()
    populate(bench)
    bench.settle()
    return lines(bench)


def test_a_newer_state_is_left_alone(bench: ClientBench) -> None:
    state = json.loads(damaged(bench)[0])
    with pytest.raises(NewerState, match="version 2"):
        replay([json.dumps({**state, "version": 2}).encode()])


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[",
        b"null",
        b'["?"]',
        b'["<"]',
        b'["<",1,2,[["zz",0]]]',
        b'["<",1,-2,[["00",0]]]',
        b'["<",1,2,[["00",99999999]]]',
        b'["<",1,2,[["00","a"]]]',
        b'["m",3,[[1,-2,3]]]',
        b'["m",3,[[1]]]',
        b'["!",5000,1]',
        b'["!",-1,1]',
    ],
)
def test_lines_that_no_journal_has(bench: ClientBench, line: bytes) -> None:
    there = damaged(bench)
    with pytest.raises(StateMismatch):
        replay([*there, line])
    with pytest.raises(StateMismatch):
        replay([line, *there])


SPOILT: list[tuple[str, Any]] = [
    ("version", 0),
    ("version", "1"),
    ("kind", "flat"),
    ("kind", None),
    ("name", 3),
    ("spec", None),
    ("spec", {"socket": 5}),
    ("spec", {}),
    ("configured", None),
    ("rings", None),
    ("rings", [-1]),
    ("next", "a"),
    ("connection", {}),
    ("connection", 7),
]


@pytest.mark.parametrize(("key", "value"), SPOILT)
def test_snapshots_that_no_client_gives(bench: ClientBench, key: str, value: Any) -> None:
    damaged(bench)
    bench.client._journal.renew()  # type: ignore[union-attr]
    spoilt(bench, {**json.loads(lines(bench)[0]), key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", 70000),
        ("id", None),
        ("messages", "x"),
        ("since", "x"),
        ("since", 1 << 70),
        ("socket", []),
        ("memory", [[1, 2]]),
        ("own", [["a", 0, 1]]),
        ("own", None),
        ("peers", [[0]]),
        ("peers", [[-1, 5, [[2, 0, 1]]]]),
        ("tail", [["xy", []]]),
    ],
)
def test_connections_that_can_not_be(bench: ClientBench, key: str, value: Any) -> None:
    damaged(bench)
    bench.client._journal.renew()  # type: ignore[union-attr]
    state = json.loads(lines(bench)[0])
    spoilt(bench, {**state, "connection": {**state["connection"], key: value}})


def spoilt(bench: ClientBench, state: dict[str, Any]) -> None:
    """See that no client can be made of *state*, and that nothing stays open."""
    ledger = bench.client._journal._ledger  # type: ignore[union-attr]
    ledger.rewrite(json.dumps(state).encode() + b"\n")
    with no_leaks():
        try:
            bench.revive()
        except StateMismatch as error:
            assert "damaged" in str(error) or "asked for" in str(error)
        else:
            pytest.fail("it was taken for a client")


def test_a_server_that_broke_the_protocol_in_the_last_moment(bench: ClientBench) -> None:
    """What was taken is judged by who comes after."""
    bench.accept()
    populate(bench)
    bench.settle()
    bench.say(7)  # we left
    bench.deliver()
    bench.trap.left, bench.trap.how = 2, "after"
    bench.turn(2)
    assert bench.trap.dead
    bench.restart()
    assert bench.client.state is ClientState.BROKEN
    assert "we, peer 7, left" in bench.client.reason
    assert list(bench.keeper.copies) == ["c1.state"]
