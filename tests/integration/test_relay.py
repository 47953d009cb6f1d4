# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A relayed region in a real daemon: rings pass it, are counted, limited and forbidden, and outlive it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doorbelld.fds import eventfd
from support.daemon import BIN, Daemon
from support.dbusclient import BusDaemon, Client, ErrorReply, until
from support.fakesystemd import FakeSystemd
from support.rawclient import RawClient

from .test_ctl import Ctl

HOST = 65535
VECTORS = 2
DEMO = "/region/demo"
CONFIGURATION = f"[region.demo]\nvectors = {VECTORS}\nrelay = true\n"
KILLS = 15


def know_each_other(*clients: RawClient) -> None:
    """Wait until all were told of all."""

    def told() -> bool:
        for client in clients:
            client.take()
            assert not client.eof
        wanted = {HOST, *(client.id for client in clients)}
        return all(client.fds.keys() == wanted for client in clients) and all(
            len(fds) == VECTORS for client in clients for fds in client.fds.values()
        )

    until(told, "all know each other")


def ring(sender: RawClient, target: int | None, vector: int = 0, count: int = 1) -> None:
    assert target is not None
    os.eventfd_write(sender.fds[target][vector], count)


def heard(client: RawClient) -> int:
    """Take all that came to *client*."""
    assert client.id is not None
    return sum(os.eventfd_read(fd) for fd in client.fds[client.id] if eventfd.pending(fd))


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    directory = Path(tempfile.mkdtemp(prefix="db"))
    with Daemon(directory, CONFIGURATION) as running:
        yield running
    shutil.rmtree(directory)


@pytest.fixture
def bus(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.bus) as client:
        yield client
        daemon.write_config(CONFIGURATION)
        client.call("", "Manager", "Reload")


@pytest.fixture
def three(daemon: Daemon) -> Iterator[list[RawClient]]:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(str(daemon.socket()), keep=True)) for _ in range(3)]
        know_each_other(*clients)
        yield clients
    with Client(daemon.bus) as client:
        until(lambda: client.get(DEMO, "Region", "PeerCount") == 0)


def pairs(bus: Client) -> dict[tuple[int, int], tuple[Any, ...]]:
    return {(sender, target): tuple(rest) for sender, target, *rest in bus.call(DEMO, "Region", "ListPairs")[0]}


def test_a_peer_rung_a_million_times_loses_none(bus: Client, three: list[RawClient]) -> None:
    one, two, three_ = three
    came = 0
    for turn in range(1000):
        for _ in range(1000):
            os.eventfd_write(one.fds[two.id or 0][turn & 1], 1)
        if turn % 7 == 0:
            ring(three_, one.id)
            came += heard(two)

    def all_came() -> bool:
        nonlocal came
        came += heard(two)
        return came == 1_000_000

    until(all_came, "a million rings")
    assert one.id is not None and two.id is not None
    rings, deliveries, refused, *terms = pairs(bus)[one.id, two.id]
    assert (rings, refused, terms) == (1_000_000, 0, [0, True])
    assert 0 < deliveries <= rings
    assert bus.get(f"{DEMO}/peer/{one.id}", "Peer", "RingsSent") == 1_000_000
    assert bus.get(f"{DEMO}/peer/{two.id}", "Peer", "RingsReceived") == 1_000_000
    until(lambda: heard(one) == 143, "the other's rings")


def test_limits_and_permission_over_dbus(bus: Client, three: list[RawClient]) -> None:
    one, two, other = three
    assert one.id is not None and two.id is not None and other.id is not None
    assert bus.get(DEMO, "Region", "Relay") is True
    bus.call(DEMO, "Region", "LimitPair", "qqu", one.id, two.id, 1)
    for _ in range(500):
        ring(one, two.id)
        ring(other, two.id)
    until(lambda: pairs(bus)[other.id, two.id][0] == 500, "the unlimited pair's rings")
    assert pairs(bus)[one.id, two.id][1] <= 3  # deliveries: a token a second, and this takes a fraction of one
    bus.call(DEMO, "Region", "LimitPair", "qqu", one.id, two.id, 0)
    until(lambda: pairs(bus)[one.id, two.id][0] == 500, "what waited")
    bus.call(DEMO, "Region", "PermitPair", "qqb", one.id, HOST, False)
    ring(one, HOST, 1, 9)
    ring(two, HOST, 1, 5)
    until(lambda: pairs(bus)[one.id, HOST][2] == 9, "refusal")
    until(lambda: bus.get(DEMO, "Region", "HostRings") == [0, 5], "the other's rings")
    for body, kind in (((one.id, 77, 1), "NoSuchPeer"), ((one.id, two.id, 4_000_000_000), "InvalidOptions")):
        with pytest.raises(ErrorReply) as caught:
            bus.call(DEMO, "Region", "LimitPair", "qqu", *body)
        assert caught.value.kind == kind


def test_a_reload_forbids_who_is_connected(bus: Client, daemon: Daemon, three: list[RawClient]) -> None:
    one, two, _ = three
    assert one.id is not None and two.id is not None
    daemon.write_config(
        f'{CONFIGURATION}relay-rate = 100\n[[region.demo.peer]]\nmatch = {{}}\nmay-ring = ["{one.id}", "host"]\n'
    )
    bus.call("", "Manager", "Reload")
    assert bus.get(DEMO, "Region", "RelayRate") == 100
    ring(one, two.id, 0, 3)
    ring(two, one.id, 0, 4)
    until(lambda: pairs(bus)[one.id, two.id][2] == 3, "refusal")
    assert {tuple(pair[3:]) for ends, pair in pairs(bus).items() if ends[1] in (one.id, HOST)} == {(100, True)}
    until(lambda: heard(one) == 4, "the permitted ring")


def test_what_doorbellctl_shows_and_sets(daemon: Daemon, bus: Client, three: list[RawClient]) -> None:
    ctl = Ctl(daemon.bus)
    one, two, _ = three
    said = ctl("limit", "demo", one.id, two.id, "--rate", 5000)
    assert said == f"peer {one.id} interrupts peer {two.id} in demo at most 5,000 times a second\n"
    ctl("limit", "demo", one.id, two.id, "--rate", 50)
    assert ctl("limit", "demo", two.id, "host", "--forbid") == f"peer {two.id} may not ring peer 65535 in demo\n"
    made = {(pair["sender"], pair["target"]): pair for pair in ctl.json("pairs", "demo", "--json")}
    assert len(made) == 3 * 3
    assert made[one.id, two.id]["rate"] == 50
    assert not made[two.id, HOST]["permitted"]
    rows = [line.split() for line in ctl("pairs", "demo").splitlines()]
    assert rows[0][0] == "SENDER"
    program = "(python3)"
    assert [str(one.id), program, str(two.id), program, "0", "0", "0", "50/s", "yes"] in rows
    assert [str(two.id), program, str(HOST), "host", "0", "0", "0", "-", "no"] in rows
    said = ctl.json("limit", "demo", one.id, two.id, "--rate", 0, "--permit", "--json")
    assert said == {"region": "demo", "sender": one.id, "target": two.id, "rate": 0, "permitted": True}
    assert "say what should hold" in ctl.refused("limit", "demo", one.id, two.id, status=2)
    assert "may-ring leaves it out" in ctl.refused("limit", "demo", "host", one.id, "--forbid")
    known = ctl.json("describe")["regions"]["demo"]
    assert len(known["pairs"]) == 9 and known["peers"][0]["rings-sent"] == 0
    ctl("create", "plain", "--size", "64K")
    assert "relay = true" in ctl.refused("pairs", "plain")
    assert ctl.json("describe")["regions"]["plain"]["pairs"] is None
    ctl("remove", "plain", "--yes")
    ctl("create", "another", "--size", "64K", "--relay", "--relay-rate", 7)
    assert "nobody can ring anybody" in ctl("pairs", "another")
    ctl("remove", "another", "--yes")


def test_top_shows_rings_between_peers(daemon: Daemon, bus: Client, three: list[RawClient]) -> None:
    ctl = Ctl(daemon.bus)
    one, two, _ = three
    ring(one, two.id, 0, 30)
    until(lambda: heard(two) == 30)
    frames = [json.loads(line) for line in ctl("top", "--json", "-n", 2, "-d", 0.05).splitlines()]
    first, second = ({p["id"]: p for p in frame["regions"]["demo"]["peers"]} for frame in frames)
    assert (first[one.id]["rings-sent"], first[one.id]["sent-per-second"]) == (30, None)
    assert (second[two.id]["rings-received"], second[two.id]["received-per-second"]) == (30, 0.0)
    plain = ctl("top", "-n", 2, "-d", 0.05)
    assert "SENT/S" in plain and "RECEIVED/S" in plain


def test_the_room_for_a_relayed_region_is_told(daemon: Daemon) -> None:
    assert f"peers of {VECTORS} vectors, relayed" in daemon.log


# The daemon ends, and comes back


class Site:
    """A daemon that a service manager of ours runs, and peers that ring each other all the time."""

    def __init__(self, directory: Path, bus: str, stack: contextlib.ExitStack, *options: str, capacity: int) -> None:
        config = directory / "doorbelld.toml"
        config.write_text(f'[daemon]\nruntime-directory = "{directory}/run"\n{CONFIGURATION}')
        command = [BIN / "doorbelld", "--config", config, "--bus", bus, "--log-level", "info", *options]
        self.systemd = stack.enter_context(FakeSystemd(directory, command, capacity=capacity)).start()
        self.socket = str(directory / "run" / "demo" / "socket")
        self.stack = stack
        self.clients = [self.connect() for _ in range(4)]
        know_each_other(*self.clients)
        self.rung: Counter[tuple[int, int]] = Counter()
        self.heard: Counter[int] = Counter()
        seed = random.SystemRandom().getrandbits(32)
        print(f"seed {seed}")
        self.chance = random.Random(seed)

    def connect(self) -> RawClient:
        return self.stack.enter_context(RawClient(self.socket, keep=True))

    def ring_for(self, seconds: float) -> None:
        """Have everybody ring everybody, and read now and then, for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sender, target = self.chance.sample(self.clients, 2)
            assert sender.id is not None and target.id is not None
            ring(sender, target.id, self.chance.randrange(VECTORS))
            self.rung[sender.id, target.id] += 1
            if self.chance.random() < 0.01:
                self.heard[target.id] += heard(target)

    def settle(self, bus: str) -> int:
        """See that nothing is missing; gives how many rings came twice."""
        with Client(bus) as client:
            client.wait_for_daemon()
            until(lambda: {ends: pairs(client)[ends][0] for ends in self.rung} == self.rung, "all rings were taken")
        twice = 0
        for target in self.clients:
            assert target.id is not None
            owed = sum(count for (_, to), count in self.rung.items() if to == target.id)

            def arrived(target: RawClient = target, owed: int = owed) -> bool:
                assert target.id is not None
                self.heard[target.id] += heard(target)
                return self.heard[target.id] >= owed

            until(arrived, f"{owed} rings of {target.id}")
            twice += self.heard[target.id] - owed
        return twice


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_killed_at_random_moments_nothing_is_lost(short_path: Path, number: int) -> None:
    with contextlib.ExitStack() as stack:
        bus = stack.enter_context(BusDaemon(short_path))
        site = Site(short_path, bus.address, stack, capacity=8192)
        for turn in range(KILLS):
            site.ring_for(site.chance.random() * 0.2)
            if turn % 3 == 0:
                site.systemd.wait_ready()
            if not site.systemd.is_dead:  # SIGTERM before it is handled
                site.systemd.end(number)
            else:
                site.systemd.reap()
            site.ring_for(0.01)
            site.systemd.start(wait=False)
            if turn == KILLS // 2:
                site.clients.append(site.connect())
                site.systemd.wait_ready()
                know_each_other(*site.clients)
        site.systemd.wait_ready()
        twice = site.settle(bus.address)
        print(f"{site.rung.total()} rings, {twice} came twice")
        most = max(site.rung.values())
        assert twice < most
        leaver = site.clients.pop(1)
        leaver.close()
        know_each_other(*site.clients)
        assert "Traceback" not in site.systemd.log, site.systemd.log
        assert site.systemd.doubled == []
        assert len(site.systemd.names) == len(["host", "listener", "memory", "relay", "state"]) + 2 * 4


def test_executed_anew_nothing_is_lost(short_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        bus = stack.enter_context(BusDaemon(short_path))
        site = Site(short_path, bus.address, stack, "--exec-restart", capacity=0)
        pid = site.systemd.pid
        for _ in range(5):
            os.kill(pid, signal.SIGUSR2)
            site.ring_for(0.3)
            site.systemd.send(signal.SIGUSR2)
        site.settle(bus.address)
        assert site.systemd.pid == pid
        assert site.systemd.log.count("executing anew") >= 5
        assert "Traceback" not in site.systemd.log
