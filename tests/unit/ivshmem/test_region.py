# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A region and its clients over real sockets."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doorbelld.errors import AccessDenied, LimitExceeded, MemoryUnavailable, NoSuchPeer, NoSuchVector, SocketUnavailable
from doorbelld.fds import eventfd
from doorbelld.fds.peercred import Credentials
from doorbelld.ivshmem.events import PeerAdded, PeerRefused, PeerRemoved, Rung, Unkept
from doorbelld.ivshmem.memory import Backing
from doorbelld.ivshmem.region import Region
from doorbelld.ivshmem.rules import Match, PeerRule
from support.busykeeper import Store
from support.fdcount import no_leaks, open_fds
from support.rawclient import DEADLINE, RawClient, identity

from .conftest import Site, membership

SERVER = Path(__file__).parents[2] / "support" / "regionserver.py"
FULL = (1 << 64) - 2


def vm(name: str) -> Credentials:
    return Credentials(os.getpid(), os.getuid(), os.getgid(), name)


def attach(site: Site, region: Region, name: str, **options: Any) -> RawClient:
    fd = site.call(region.attach, vm(name))
    client = RawClient(sock=socket.socket(fileno=fd.steal()), **options)
    site.clients.append(client)
    return client.greet(region.spec.vectors)


# Greeting


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("first", [0, 1, 500])
def test_greeting_exactly_as_the_protocol_says(site: Site, host: bool, first: int) -> None:
    region = site.open(vectors=3, host_peer=host, first_id=first)
    one = site.join(region)
    two = site.connect(region)
    got = [two.message() for _ in range(3 + 3 * (2 + host))]
    host_part = [(65535, True)] * 3 if host else []
    assert got == [
        (0, False),
        (first + 1, False),
        (-1, True),
        *host_part,
        *[(first, True)] * 3,
        *[(first + 1, True)] * 3,
    ]
    site.settle(region, [one, two])
    assert two.take() == 0
    assert one.doorbells == two.doorbells == membership(region)
    assert one.log == [*([("join", 65535)] if host else []), ("join", first), ("join", first + 1)]


def test_a_client_that_reads_byte_by_byte(site: Site) -> None:
    region = site.open(host_peer=True)
    one, two = site.join(region, step=1), site.join(region, step=3)
    site.settle(region, [one, two])
    assert one.doorbells == two.doorbells == membership(region)


def test_join_and_leave_are_told(site: Site) -> None:
    region = site.open()
    one, two = site.join(region), site.join(region)
    three = site.join(region)
    two.close()
    site.gone(1)
    site.settle(region, [one, three])
    assert one.log == [("join", 0), ("join", 1), ("join", 2), ("left", 1)]
    assert one.doorbells == three.doorbells == membership(region)
    assert site.of(PeerRemoved)[0].reason == "it closed its connection"
    four = site.join(region)
    assert four.id == 1  # the lowest that is free


def test_memory_is_shared(site: Site) -> None:
    region = site.open(size=1 << 16)
    one, two = site.join(region), site.join(region)
    assert one.memory is not None and two.memory is not None
    assert os.fstat(one.memory).st_size == 1 << 16
    os.pwrite(one.memory, b"hello", 100)
    assert os.pread(two.memory, 5, 100) == b"hello"
    site.call(region.write_memory, 200, b"daemon")
    assert os.pread(two.memory, 6, 200) == b"daemon"


def test_peers_know_who_they_are(site: Site) -> None:
    region = site.open()
    site.join(region)
    (added,) = site.of(PeerAdded)
    assert (added.region, added.peer.id, added.peer.vectors) == (region, 0, 4)
    who = added.peer.who
    assert (who.pid, who.uid, who.gid) == (os.getpid(), os.getuid(), os.getgid())


# Never lose


@pytest.mark.parametrize(("count", "vectors"), [(100, 8), (20, 64)])
def test_nothing_is_lost_with_one_that_never_reads(site: Site, count: int, vectors: int) -> None:
    region = site.open(vectors=vectors, host_peer=True)
    readers = [site.join(region) for _ in range(count // 2)]
    silent = site.connect(region)
    site.wait(lambda: len(site.of(PeerAdded)) == count // 2 + 1)
    silent_id = site.of(PeerAdded)[-1].peer.id
    for _ in range(count // 2 - 1):
        readers.append(site.join(region))
        site.call(lambda: None)
    for client in readers[: count // 8]:  # half of these the silent one was told of, or not: it must come out right
        client.close()
    readers = readers[count // 8 :]
    site.gone(count // 8)
    site.settle(region, readers, silent_id)
    want = membership(region)
    assert len(want) == count - count // 8 + 1
    for client in readers:
        assert client.doorbells == want
    assert region.peers[silent_id].backlog > 0
    site.settle(region, [*readers, silent])
    assert silent.doorbells == want
    assert all(client.doorbells == want for client in readers)


def test_churn_while_somebody_reads_slowly(site: Site) -> None:
    """The backlog of a silent peer is bounded by who is there, whatever came and went; and its IDs are not reused."""
    region = site.open(vectors=16)
    stayer = site.join(region)
    silent = site.connect(region)
    site.wait(lambda: len(site.of(PeerAdded)) == 2)
    for turn in range(60):
        guest = site.join(region)
        guest.close()
        site.gone(turn + 1)
        stayer.take()
    peer = region.peers[1]
    assert site.call(lambda: peer.backlog) <= len(region.admission.ids._held) + 16 * 3
    site.settle(region, [stayer, silent])
    assert silent.doorbells == stayer.doorbells == membership(region)
    assert not region.admission.ids._held
    assert site.join(region).id == 2


def test_stalled_is_dropped_and_slow_is_not(site: Site) -> None:
    region = site.open(vectors=64, stall_timeout=1.5)
    others = [site.join(region) for _ in range(14)]
    slow = site.connect(region)
    site.wait(lambda: len(site.of(PeerAdded)) == 15)
    keep_up = lambda: [slow.take(1), *(client.take() for client in others)]  # noqa: E731
    for turn in range(2):
        silent = site.connect(region)
        site.wait(lambda turn=turn: len(site.of(PeerAdded)) == 16 + turn, keep_up, 0.02)
        site.wait(lambda turn=turn: len(site.of(PeerRemoved)) == turn + 1, keep_up, 0.02)
        removed = site.of(PeerRemoved)[turn]
        assert removed.peer.id == 15
        assert removed.reason.startswith("it took nothing for 1.5 s while ")
        assert removed.reason.endswith("messages waited (stall-timeout)")
        silent.until_eof()
    assert site.call(lambda: region.peers[14].backlog) > 0  # it was behind all the time
    site.settle(region, [slow, *others])
    assert slow.doorbells == membership(region)


# Hostile clients


def test_who_speaks_or_half_closes_is_shown_out(site: Site) -> None:
    region = site.open()
    good = site.join(region)
    talker, closer = site.join(region), site.join(region)
    talker.sock.send(b"x" * 100)
    talker.until_eof()
    closer.sock.shutdown(socket.SHUT_WR)
    closer.until_eof()
    site.gone(2)
    assert [event.reason for event in site.of(PeerRemoved)] == [
        "it sent 100 bytes, and an ivshmem client never sends",
        "it closed its connection",
    ]
    site.settle(region, [good])
    assert good.doorbells == membership(region)
    assert list(good.doorbells) == [0]


def test_closing_in_the_middle_of_a_greeting(site: Site) -> None:
    region = site.open(vectors=64)
    good = [site.join(region) for _ in range(6)]
    for step, read in enumerate((0, 1, 3, 40, 200)):
        client = site.connect(region)
        assert client.take(read, DEADLINE) == read
        client.close()
        site.gone(step + 1)
    site.settle(region, good)
    want = membership(region)
    assert len(want) == 6
    assert all(client.doorbells == want for client in good)
    assert not region.admission.ids._held


def test_two_thousand_connections_in_a_row_leave_nothing(site: Site) -> None:
    region = site.open()
    good = site.join(region)

    def storm(count: int) -> None:
        for _ in range(count):
            RawClient(region.spec.socket).close()
            good.take()
        came = lambda: len(site.of(PeerAdded)) + len(site.of(PeerRefused))  # noqa: E731
        site.wait(lambda: came() >= count and len(site.of(PeerRemoved)) == len(site.of(PeerAdded)), good.take, 0.05)
        site.settle(region, [good])
        site.events.clear()
        good.log.clear()
        gc.collect()

    site.events.clear()
    tracemalloc.start()
    try:
        storm(300)
        fds, before = open_fds(), tracemalloc.get_traced_memory()[0]
        storm(2000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert open_fds() == fds
    assert grown < 100_000
    assert good.doorbells == membership(region)
    assert site.join(region).id == 1
    assert len(region.admission.ids._free) < 2300 // 4


def test_filling_a_doorbell_and_making_it_block_stops_nobody(site: Site) -> None:
    region = site.open(host_peer=True)
    hostile, good = site.join(region, keep=True), site.join(region)
    site.settle(region, [hostile, good])
    for fds in hostile.fds.values():
        for fd in fds:
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    for fd in hostile.fds[0]:
        os.eventfd_write(fd, FULL)
    site.call(region.notify, 0, 1)
    site.call(region.notify_peer, 0)
    site.call(region.broadcast)
    assert [eventfd.pending(fd) for fd in hostile.fds[1]] == [1] * 4
    assert [eventfd.pending(fd) for fd in hostile.fds[0]] == [FULL] * 4
    os.eventfd_write(hostile.fds[65535][2], 5)  # the host's own, all of them blocking
    site.wait(lambda: site.of(Rung))
    assert [(event.vector, event.count) for event in site.of(Rung)] == [(2, 5)]


# Ringing


def test_ringing(site: Site) -> None:
    region = site.open(vectors=3, host_peer=True)
    one, two = site.join(region, keep=True), site.join(region)
    site.settle(region, [one, two])
    pending = lambda: {i: [eventfd.pending(fd) for fd in fds] for i, fds in one.fds.items() if i != 65535}  # noqa: E731
    site.call(region.notify, 1, 2)
    assert pending() == {0: [0, 0, 0], 1: [0, 0, 1]}
    site.call(region.notify_peer, 0)
    assert pending() == {0: [1, 1, 1], 1: [0, 0, 1]}
    site.call(region.broadcast)
    assert pending() == {0: [2, 2, 2], 1: [1, 1, 2]}
    site.call(region.notify_many, [(0, 0), (1, 1), (1, 1)])
    assert pending() == {0: [3, 2, 2], 1: [1, 3, 2]}
    assert not site.of(Rung)  # a broadcast does not ring the host
    site.call(region.notify, 65535, 1)
    site.wait(lambda: [(event.vector, event.count) for event in site.of(Rung)] == [(1, 1)])


def test_ringing_who_is_not_there(site: Site) -> None:
    region = site.open(vectors=3, host_peer=True)
    with pytest.raises(NoSuchPeer, match=rf'region "demo" has no peer 7; nobody is connected.*{region.spec.socket}'):
        site.call(region.notify, 7, 0)
    clients = [site.join(region, keep=True) for _ in range(10)]
    for peer_id in (10, -1, 65536, 1 << 70):
        with pytest.raises(NoSuchPeer, match=r"connected: 0, 1, 2, 3, 4, 5, 6, 7 \.\.\."):
            site.call(region.notify, peer_id, 0)
        with pytest.raises(NoSuchPeer):
            site.call(region.notify_peer, peer_id)
    for vector in (3, -1, 1 << 70):
        with pytest.raises(NoSuchVector, match='peer 4 of region "demo" has vectors 0 to 2, not'):
            site.call(region.notify, 4, vector)
    for bad, kind in (([(0, 0), (4, 3)], NoSuchVector), ([(0, 0), (99, 0)], NoSuchPeer)):
        with pytest.raises(kind):
            site.call(region.notify_many, bad)
    assert eventfd.pending(clients[0].fds[0][0]) == 0  # all are looked up before the first is rung
    with pytest.raises(NoSuchPeer, match="no connected peer 65535"):
        site.call(region.disconnect, 65535, "x")


# Admission


def test_disconnect(site: Site) -> None:
    region = site.open()
    client = site.join(region)
    site.call(region.disconnect, 0, "the administrator said so")
    client.until_eof()
    assert site.of(PeerRemoved)[0].reason == "the administrator said so"
    assert not region.peers and not region.roster.by_id


def test_max_peers_and_room_again(site: Site) -> None:
    region = site.open(max_peers=2)
    one, _ = site.join(region), site.join(region)
    third = site.connect(region)
    third.until_eof()
    assert third.messages == 0
    site.wait(lambda: site.of(PeerRefused))
    assert site.of(PeerRefused)[0].reason == 'region "demo" has its 2 peers; raise max-peers'
    with pytest.raises(LimitExceeded, match="raise max-peers"):
        site.call(region.attach, vm("x"))
    one.close()
    site.gone(1)
    assert site.join(region).id == 0


def test_room_left_by_one_whose_farewell_was_not_read_yet(site: Site) -> None:
    region = site.open(max_peers=1)
    first = attach(site, region, "web1")

    def reboot() -> Any:
        first.close()
        return region.attach(vm("web1"))

    with site.call(reboot) as end:
        assert end.fileno() >= 0
        assert [event.reason for event in site.of(PeerRemoved)] == ["it closed its connection"]
    site.gone(2)


def test_fixed_ids_by_name(site: Site) -> None:
    rules = (PeerRule(Match(vm="web*"), id=7), PeerRule(Match(vm="db"), id=1), PeerRule(Match(vm="any*")))
    region = site.open(peer=rules)
    assert attach(site, region, "any1").id == 0
    assert attach(site, region, "any2").id == 2  # 1 and 7 are reserved
    assert attach(site, region, "web1").id == 7
    with pytest.raises(LimitExceeded, match=rf'ID 7 of region "demo" is in use by pid {os.getpid()}; disconnect'):
        site.call(region.attach, vm("web2"))
    with pytest.raises(AccessDenied, match=r'no rule of region "demo" admits .* VM "evil", unit unknown; add a'):
        site.call(region.attach, vm("evil"))
    with pytest.raises(AccessDenied, match="VM unknown"):
        site.call(region.attach, vm(""))
    refused = site.connect(region)
    refused.until_eof()
    assert refused.messages == 0
    site.wait(lambda: len(site.of(PeerRefused)) == 1)
    assert sorted(region.peers) == [0, 2, 7]


def test_a_rebooted_vm_is_back_before_its_farewell_was_read(site: Site) -> None:
    region = site.open(vectors=64, peer=(PeerRule(Match(vm="web1"), id=7), PeerRule(Match())))
    witness = attach(site, region, "w")
    others = [attach(site, region, "w") for _ in range(5)]
    silent = RawClient(sock=socket.socket(fileno=site.call(region.attach, vm("w")).steal()))
    site.clients.append(silent)
    clients = [witness, *others]
    for turn in range(3):
        old = attach(site, region, "web1")
        site.settle(region, clients, 6)

        def reboot(old: RawClient = old) -> Any:
            old.close()
            return region.attach(vm("web1"))

        new = RawClient(sock=socket.socket(fileno=site.call(reboot).steal()))
        site.clients.append(new)
        assert new.greet(64).id == 7
        site.settle(region, [*clients, new], 6)
        assert witness.log[-3:] == [("join", 7), ("left", 7), ("join", 7)]
        assert witness.doorbells == new.doorbells == membership(region)
        new.close()
        site.gone(2 * (turn + 1))
        site.settle(region, clients, 6)
    site.settle(region, [*clients, silent])
    assert silent.doorbells == membership(region)
    assert not region.admission.ids._held


def test_who_may_not_ring_is_given_no_doorbell(site: Site) -> None:
    rules = (
        PeerRule(Match(vm="lonely"), may_ring=()),
        PeerRule(Match(vm="web*"), may_ring=("db", "host")),
        PeerRule(Match(vm="by-id"), may_ring=("1",)),
        PeerRule(Match()),
    )
    region = site.open(host_peer=True, peer=rules)
    names = ["lonely", "db", "web1", "web2", "by-id", "db"]
    clients = [attach(site, region, name) for name in names]
    site.settle(region, clients)
    everything = membership(region)
    seen = [{0}, {*range(6), 65535}, {1, 2, 5, 65535}, {1, 3, 5, 65535}, {1, 4}, {*range(6), 65535}]
    for client, ids in zip(clients, seen, strict=True):
        assert client.doorbells == {peer_id: everything[peer_id] for peer_id in ids}
    clients[5].close()
    clients[3].close()
    site.gone(2)
    left = [clients[index] for index in (0, 1, 2, 4)]
    site.settle(region, left)
    everything = membership(region)
    for client, ids in zip(left, [{0}, {0, 1, 2, 4, 65535}, {1, 2, 65535}, {1, 4}], strict=True):
        assert client.doorbells == {peer_id: everything[peer_id] for peer_id in ids}
    assert ("left", 3) not in clients[2].log
    assert not region.admission.ids._held


# Limits of the system


@contextmanager
def server(folder: str, **options: Any) -> Iterator[Any]:
    spec = {"name": "demo", "size": 1 << 16, "socket": f"{folder}/s", "mode": 0o666, "host_peer": False}
    spec |= {"stall_timeout": 0.0, **options.pop("spec")}
    process = subprocess.Popen(
        [sys.executable, SERVER, json.dumps({"spec": spec, **options})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    assert process.stdout.readline()

    def ask(what: str) -> dict[str, Any]:
        process.stdin.write(what + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    try:
        yield ask
    finally:
        process.stdin.close()
        process.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(DEADLINE)
        process.kill()
        assert process.wait() == 0


@pytest.mark.parametrize(("nofile", "relay"), [(60, False), (61, False), *((nofile, True) for nofile in (200, 203))])
def test_out_of_descriptors(folder: str, nofile: int, relay: bool) -> None:
    """Whoever is there is served on, newcomers are turned away, nothing spins, and there is room again later.

    A peer takes two descriptors, so with one of the two limits there is none left even for accept(2). Relayed, it takes
    two more for each that is there already.
    """
    with no_leaks(), server(folder, nofile=nofile, spec={"vectors": 1, "relay": relay}) as ask:
        peers: list[RawClient] = []
        refused = 0
        while refused < 20:
            client = RawClient(f"{folder}/s")
            client.message()
            if client.version != 0:  # turned away, without or with the version that nobody knows
                client.until_eof()
                assert client.messages <= 1 and client.version in (None, -2)
                refused += 1
                client.close()
            else:
                peers.append(client.greet(1))
        stats = ask("stats")
        assert (stats["PeerAdded"], stats["PeerRefused"], stats["PeerRemoved"]) == (len(peers), 20, 0)
        assert all("LimitNOFILE=" in reason for reason in stats["reasons"])
        assert ask("turns")["turns"] < 50
        peers.pop().close()
        assert peers[0].take(len(peers), DEADLINE) > 0
        while ask("stats")["PeerRemoved"] < 1:
            pass
        late = RawClient(f"{folder}/s").greet(1)
        assert late.id == len(peers)
        for client in (late, *peers):
            client.close()


def test_too_many_descriptors_in_flight(folder: str) -> None:
    """Two that do not read use up what an unprivileged sender may have in flight; the others wait, without a spin."""
    limit, vectors = 256, 8
    options = {"uid": 54321} if os.getuid() == 0 else {}
    with no_leaks(), server(folder, nofile=limit, spec={"vectors": vectors}, **options) as ask:
        readers: list[RawClient] = []
        for _ in range(18):
            readers.append(RawClient(f"{folder}/s").greet(vectors))
            while ask("stats")["backlog"] or sum(client.take() for client in readers):
                pass
        silent = [RawClient(f"{folder}/s") for _ in range(2)]
        while "THROTTLED" not in (stats := ask("stats"))["states"].values():
            for client in readers:
                client.take()
            assert stats["PeerAdded"] <= 20
        late = RawClient(f"{folder}/s")
        while ask("stats")["PeerAdded"] < 21:
            pass
        assert ask("turns")["turns"] < 2000  # each of 21 looks every 10 ms at most; a spin makes far more
        clients = [*readers, *silent, late]
        while ask("stats")["backlog"]:
            for client in clients:
                client.take()
        for client in clients:
            client.take()
        assert [client.id for client in clients] == list(range(21))
        want = late.doorbells
        assert sorted(want) == list(range(21))
        assert all(client.doorbells == want for client in clients)
        assert all(len(doorbells) == len(set(doorbells)) == vectors for doorbells in want.values())
        stats = ask("stats")
        assert (stats["PeerRemoved"], stats["PeerRefused"]) == (0, 0)
        for client in clients:
            client.close()


# Life and death of a region


def test_attach_gives_a_blocking_close_on_exec_end(site: Site) -> None:
    region = site.open()
    with site.call(region.attach, vm("me")) as end:
        assert not fcntl.fcntl(end.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
        assert fcntl.fcntl(end.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    site.gone(1)
    client = attach(site, region, "me")
    assert (client.id, client.doorbells) == (0, membership(region))


def test_close_says_goodbye(site: Site) -> None:
    region = site.open()
    clients = [site.join(region), site.join(region)]
    site.call(region.close)
    for client in clients:
        client.until_eof()
    assert [event.reason for event in site.of(PeerRemoved)] == ["the region is removed"] * 2
    assert not os.path.lexists(region.spec.socket)


def test_a_region_that_can_not_be_made_leaves_nothing(site: Site, folder: str) -> None:
    with pytest.raises(MemoryUnavailable):
        site.open(backing=Backing("file", f"{folder}/no/such/folder"))
    assert os.listdir(folder) == []


def test_identity_tells_eventfds_apart() -> None:
    made = eventfd.make(2)
    assert identity(made[0]) != identity(made[1])
    made.close()


# Kept with somebody


@pytest.fixture
def store(site: Site) -> Store:
    site.keeper = made = Store()
    return made


def test_where_there_is_no_room_a_peer_is_served_all_the_same(site: Site, store: Store) -> None:
    region = site.open(kept=True)
    store.room = len(store.copies) + 1
    one, two = site.join(region), site.join(region)
    assert [(event.region, event.reason) for event in site.of(Unkept)] == [
        (region, "there is no room for its descriptors (FileDescriptorStoreMax=, LimitNOFILE=)")
    ]
    site.settle(region, [one, two])
    assert one.doorbells == two.doorbells == membership(region)
    region = site.restart(region)
    two.until_eof()  # that was said
    site.settle(region, [one])
    assert list(one.doorbells) == [0]
    store.room += 1
    three = site.join(region)
    assert three.id == 1
    region = site.restart(region)
    site.settle(region, [one, three])
    assert one.doorbells == three.doorbells == membership(region)


def test_where_there_is_no_room_for_a_region_it_is_served_all_the_same(site: Site, store: Store) -> None:
    store.room = 2
    region = site.open(kept=True)
    assert not region.kept
    assert [event.reason for event in site.of(Unkept)] == [
        "there is no room for the region's descriptors (FileDescriptorStoreMax=)"
    ]
    assert store.copies == {}
    client = site.join(region)
    site.settle(region, [client])
    assert len(site.of(Unkept)) == 1


def test_nobody_is_let_in_while_the_keeper_is_busy(site: Site, store: Store) -> None:
    """Else a crash would cut off who is in already; they can wait where they are."""
    region = site.open(kept=True)
    first = site.join(region)
    store.busy = True
    waiting = [site.connect(region) for _ in range(20)]
    site.call(region.notify_peer, 0)  # the loop has come round
    assert len(region.peers) == 1
    assert all(client.message(0) is None for client in waiting)
    before = open_fds()
    site.call(region._door._watch)
    site.call(lambda: None)
    assert open_fds() == before  # nothing is held ready for who can't come
    site.call(store.rest)
    for client in waiting:
        client.greet(4)
    site.settle(region, [first, *waiting])
    assert {f"r0.{seq}" for seq in range(21)} <= set(store.copies)


def test_a_region_that_goes_away_while_the_keeper_is_busy(site: Site, store: Store) -> None:
    region = site.open(kept=True)
    store.busy = True
    client = site.connect(region)
    site.wait(lambda: store.waiting, tick=0.01)
    site.call(region.close)
    site.call(store.rest)
    client.until_eof()
    assert client.messages == 0


def test_closing_gives_up_all_that_is_kept(site: Site, store: Store) -> None:
    region = site.open(kept=True, host_peer=True)
    clients = [site.join(region) for _ in range(3)]
    clients[1].close()
    site.gone(1)
    assert set(store.copies) == {f"r0.{name}" for name in ("1", "3", "host", "listener", "memory", "state")}
    site.call(region.close)
    assert store.copies == {}
    for client in (clients[0], clients[2]):
        client.until_eof()


@pytest.mark.parametrize("how", ["disconnect", "close", "speak"])
def test_the_end_is_the_end_though_a_copy_is_kept_elsewhere(site: Site, how: str) -> None:
    region = site.open(kept=True)
    client = site.join(region)
    with site.keeper.copies["r0.0"].dup():  # what systemd has until it hears of it
        if how == "disconnect":
            site.call(region.disconnect, 0, "shown out")
        elif how == "close":
            site.call(region.close)
        else:
            client.sock.send(b"x")
        client.until_eof()


def test_who_is_refused_sees_the_end_and_is_not_kept(site: Site) -> None:
    region = site.open(kept=True, max_peers=1)
    site.join(region)
    for _ in range(3):
        site.connect(region).until_eof()
    site.wait(lambda: len(site.of(PeerRefused)) == 3)
    assert set(site.keeper.copies) == {f"r0.{name}" for name in ("0", "listener", "memory", "state")}
    assert region.roster.next_seq == 4


# Changed while it serves


def test_what_can_change_changes_at_once(site: Site) -> None:
    region = site.open(kept=True, max_peers=1)
    first = site.join(region)
    site.call(region.change, replace(region.spec, max_peers=2, peer=(PeerRule(Match(vm="a")),)), True)
    assert region.configured
    site.connect(region).until_eof()
    site.wait(lambda: site.of(PeerRefused))
    assert "no rule of region" in site.of(PeerRefused)[0].reason
    second = attach(site, region, "a")
    site.settle(region, [first, second])  # who was there is there, whatever the rules say
    with pytest.raises(LimitExceeded, match="has its 2 peers"):
        site.call(region.attach, vm("a"))
    site.call(region.change, replace(region.spec, max_peers=3, peer=()), True)
    third = site.join(region)
    region = site.restart(region)
    assert (region.spec.max_peers, region.spec.peer, region.configured) == (3, (), True)
    site.settle(region, [first, second, third])
    assert first.doorbells == third.doorbells == membership(region)


def test_an_id_that_a_new_rule_names_is_for_that_one(site: Site) -> None:
    region = site.open()
    holder, rules = site.join(region), (PeerRule(Match(vm="a"), id=0), PeerRule(Match(vm="b"), id=1), PeerRule(Match()))
    site.call(region.change, replace(region.spec, peer=rules), True)
    with pytest.raises(LimitExceeded, match='ID 0 of region "demo" is in use by pid'):
        site.call(region.attach, vm("a"))
    assert site.join(region).id == 2
    assert attach(site, region, "b").id == 1
    holder.close()
    site.gone(1)
    assert site.join(region).id == 3
    assert attach(site, region, "a").id == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a socket away")
def test_the_socket_goes_to_another_owner(site: Site) -> None:
    region = site.open(mode=0o660)
    site.call(region.change, replace(region.spec, owner="54321", group="54322", mode=0o600), False)
    status = os.stat(region.spec.socket)
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (54321, 54322, 0o600)
    site.join(region)


@pytest.mark.parametrize("broken", ["chown", "chmod"])
def test_what_can_not_be_changed_changes_nothing(site: Site, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    region = site.open(mode=0o660)
    before, spec = os.stat(region.spec.socket), region.spec

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    wanted = replace(spec, mode=0o600, group=str(os.getgid()), max_peers=1, peer=(PeerRule(Match(vm="x")),))
    with monkeypatch.context() as patch:
        patch.setattr(os, broken, refuse)
        with pytest.raises(SocketUnavailable, match="only root may give a socket"):
            site.call(region.change, wanted, True)
    after = os.stat(spec.socket)
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert (region.spec, region.configured) == (spec, False)
    site.join(region)
    site.join(region)


def test_patience_can_change_too(site: Site) -> None:
    """Nobody is given up any more once there is no limit; and with a new one also who waits since before."""
    region = site.open(vectors=64, stall_timeout=0.8)
    others = [site.join(region) for _ in range(6)]
    silent = site.connect(region)
    site.wait(lambda: len(site.of(PeerAdded)) == 7)
    site.settle(region, others, 6)
    assert site.call(lambda: region._courier._patrol) is not None
    site.call(region.change, replace(region.spec, stall_timeout=0.0), True)
    assert site.call(lambda: region._courier._patrol) is None
    assert not site.of(PeerRemoved)
    site.call(region.change, replace(region.spec, stall_timeout=0.4), True)
    keep_up = lambda: [client.take() for client in others]  # noqa: E731
    site.wait(lambda: site.of(PeerRemoved), keep_up, 0.02)
    assert site.of(PeerRemoved)[0].reason.startswith("it took nothing for 0.4 s while ")
    silent.until_eof()
