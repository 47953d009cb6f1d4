# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon ends, whenever and however, and comes back: no guest notices.

The service manager is played by `support.fakesystemd`; `tests/system/test_restart.py` has the real one.
"""

from __future__ import annotations

import array
import contextlib
import json
import mmap
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from doorbelld.fds import eventfd
from doorbelld.ivshmem.record import STATE_VERSION
from support.daemon import BIN
from support.dbusclient import BusDaemon, Client, until
from support.fakesystemd import FakeSystemd
from support.loadprocess import LoadProcess
from support.rawclient import RawClient

DEMO = "/region/demo"
HOST = 65535
VECTORS = 8
MANY = 64
"""Vectors of the region that is under load: a greeting does not fit into a socket then."""
REGION = ["host", "listener", "memory", "state"]
"""What the store has of a region without peers."""
KEY = b'"version":'
LOAD_SECONDS = 50.0
ONE = struct.pack("=Q", 1)
TESTS = Path(__file__).parents[1]


class Site:
    """A daemon that a service manager of ours runs, on a bus that outlives it."""

    def __init__(self, directory: Path, bus: str, stack: contextlib.ExitStack) -> None:
        self.directory = directory
        self.bus = bus
        self._stack = stack
        self.config = directory / "doorbelld.toml"
        self.configure(f"[region.demo]\nvectors = {VECTORS}\n")
        self.systemd: FakeSystemd

    def configure(self, regions: str) -> None:
        """Replace the configuration file."""
        self.config.write_text(f'[daemon]\nruntime-directory = "{self.directory}/run"\n{regions}')

    def manage(
        self,
        *options: str,
        capacity: int = 8192,
        sockets: Mapping[str, socket.socket] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> FakeSystemd:
        """Hand the daemon to a service manager; it is not started yet."""
        command = [BIN / "doorbelld", "--config", self.config, "--bus", self.bus, "--log-level", "info", *options]
        made = FakeSystemd(self.directory, command, capacity=capacity, sockets=sockets, environment=environment)
        self.systemd = self._stack.enter_context(made)
        return made

    def path(self, region: str = "demo") -> Path:
        """Where a region listens."""
        return self.directory / "run" / region / "socket"

    def connect(self, region: str = "demo", *, keep: bool = False) -> RawClient:
        """Connect, and read nothing yet."""
        client = RawClient(str(self.path(region)), keep=keep)
        self._stack.callback(client.close)
        return client

    def join(self, region: str = "demo", *, keep: bool = False) -> RawClient:
        """Connect, and read the greeting."""
        return self.connect(region, keep=keep).greet(VECTORS)

    def client(self) -> Client:
        """Connect to the bus, and wait until the daemon is on it."""
        client = self._stack.enter_context(Client(self.bus))
        client.wait_for_daemon()
        return client

    def until_stored(self, *names: str) -> None:
        """Wait until that, and nothing else, is in the store."""
        wanted = sorted(names)
        self.systemd.until(lambda: sorted(self.systemd.names) == wanted, f"{wanted} in the store")


def of_region(number: int, *peers: int) -> list[str]:
    """Name what the store has of the region of that number with the peers of these sequence numbers."""
    return [f"r{number}.{name}" for name in (*REGION, *map(str, peers))]


def know_each_other(*clients: RawClient) -> None:
    """Wait until all were told of all, and of nobody else; none of their streams has ended."""

    def settled() -> bool:
        for client in clients:
            client.take()
            assert not client.eof, f"the stream of peer {client.id} ended"
        return all(client.doorbells == clients[0].doorbells for client in clients) and (
            clients[0].doorbells.keys() == {HOST, *(client.id for client in clients)}
        )

    until(settled, "all know each other")
    assert all(len(bells) == VECTORS for bells in clients[0].doorbells.values())


def ring(here: RawClient, there: RawClient) -> None:
    """Have one ring the other, on each vector, and see it arrive."""
    assert there.id is not None
    for vector in range(VECTORS):
        os.write(here.fds[there.id][vector], ONE)
        assert os.read(there.fds[there.id][vector], 8) == ONE


@pytest.fixture
def site(short_path: Path) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        bus = stack.enter_context(BusDaemon(short_path))
        site = Site(short_path, bus.address, stack)
        yield site
        assert "Traceback" not in site.systemd.log, site.systemd.log
        assert site.systemd.doubled == []


# Under load


@pytest.fixture
def load(site: Site) -> Iterator[LoadProcess]:
    """The load on a region of 64 vectors; `site.systemd` is to be set before it is asked for."""
    command = [sys.executable, "-m", "support.restartload", "--socket", site.path(), "--bus", site.bus]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TESTS)}
    ) as process:
        try:
            yield LoadProcess(process)
        finally:
            process.kill()


@pytest.fixture
def chance() -> random.Random:
    """A generator whose seed is in the output of a test that fails."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def busy_site(site: Site) -> Site:
    site.configure(f"[region.demo]\nvectors = {MANY}\n")
    site.manage().start()
    return site


class Moments:
    """Chooses the moment of the daemon's end: by chance, or just when it does something that can't be undone."""

    def __init__(self, site: Site, chance: random.Random) -> None:
        self._site = site
        self._chance = chance
        client = site.client()
        self._bells = [
            client.call(DEMO, "Region", "OpenDoorbell", "qq", HOST, vector)[0].to_raw_fd()
            for vector in range(MANY // 2, MANY)
        ]
        self._rings = [0] * len(self._bells)
        self._callers: list[RawClient] = []
        self.counts: Counter[str] = Counter()

    def close(self) -> None:
        for bell in self._bells:
            os.close(bell)

    def wait(self) -> None:
        """Wait for the moment."""
        moment = self._chance.choice((self._any_time, self._starting, self._greeting, self._leaving, self._taking))
        self.counts[moment.__name__.strip("_").replace("_", " ")] += 1
        if moment != self._starting:
            self._site.systemd.wait_ready()
            self._callers_leave()
        moment()

    def _any_time(self) -> None:
        time.sleep(self._chance.random() * 0.4)

    def _starting(self) -> None:
        """In the middle of its start, or just after that."""
        time.sleep(self._chance.random() * 0.25)

    def _greeting(self) -> None:
        """While messages go out to somebody."""
        caller = self._site.connect()
        self._callers.append(caller)
        wanted = self._chance.randrange(1, 2 * MANY)
        assert caller.take(wanted, 20.0) == wanted

    def _leaving(self) -> None:
        """While it finds out that somebody left."""
        self._site.connect().greet(MANY).close()
        self._spin(0.001)

    def _taking(self) -> None:
        """While it takes the rings of the host peer, one doorbell after the other."""
        for index, bell in enumerate(self._bells):
            count = self._chance.randrange(1, 1000)
            self._rings[index] += count
            os.write(bell, struct.pack("=Q", count))
        deadline = time.monotonic() + 20.0
        while eventfd.pending(self._bells[0]):
            assert time.monotonic() < deadline, "the host peer does not hear"
        self._spin(0.0003)

    def _spin(self, seconds: float) -> None:
        """Wait for up to so long, without giving the processor away."""
        until = time.monotonic() + self._chance.random() * seconds
        while time.monotonic() < until:
            pass

    def _callers_leave(self) -> None:
        while self._callers:
            self._callers.pop().greet(MANY).close()

    def settle(self) -> None:
        """After the last of them, see that nothing is missing."""
        self._site.systemd.wait_ready()
        self._callers_leave()
        client = self._site.client()

        def taken() -> list[int]:
            return list(client.get(DEMO, "Region", "HostRings")[MANY // 2 :])

        with contextlib.suppress(AssertionError):  # the next line says more
            until(lambda: sum(taken()) >= sum(self._rings))
        assert taken() == self._rings


@pytest.fixture
def moments(busy_site: Site, chance: random.Random) -> Iterator[Moments]:
    moments = Moments(busy_site, chance)
    yield moments
    moments.close()


def test_nothing_is_lost_or_doubled_under_load(busy_site: Site, load: LoadProcess, moments: Moments) -> None:
    systemd = busy_site.systemd
    restarts = 0
    deadline = time.monotonic() + LOAD_SECONDS
    while time.monotonic() < deadline:
        load.check()
        moments.wait()
        restarts += 1
        systemd.end((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)[restarts % 3])
        systemd.start(wait=False)
    moments.settle()
    report = load.finish()
    print(f"{restarts} restarts: {dict(moments.counts)}; {report}")
    assert restarts >= 50
    assert report["restarts in the middle of a greeting"] > report["restarts"] / 2
    assert report["visits"] > restarts
    assert report.get("ended before the first byte", 0) <= restarts / 20
    busy_site.until_stored(*of_region(1))


def test_executing_anew_loses_nothing_under_load(site: Site, request: pytest.FixtureRequest) -> None:
    """Without a store: the same by SIGUSR2, in one process."""
    site.configure(f"[region.demo]\nvectors = {MANY}\n")
    systemd = site.manage("--exec-restart", capacity=0).start()
    load = request.getfixturevalue("load")
    pid = systemd.pid
    for _ in range(10):
        load.check()
        systemd.send(signal.SIGUSR2)
    report = load.finish()
    assert systemd.pid == pid
    assert "ended before the first byte" not in report
    assert systemd.log.count("executing anew") == 10
    assert systemd.names == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_crash_loop_loses_nothing(site: Site, chance: random.Random, number: int) -> None:
    """Ten times it does not live to be ready, while peers come, leave and wait."""
    systemd = site.manage().start()
    first, second, leaver = (site.join(keep=True) for _ in range(3))
    half = site.connect()
    assert half.take(13, 20.0) == 13
    memory = os.pwrite(first.memory or 0, b"still there", 0)
    late: list[RawClient] = []
    systemd.end(number)
    for turn in range(10):
        systemd.start(wait=False)
        if turn == 5:
            leaver.close()
        late.append(site.connect())
        os.write(first.fds[HOST][turn % VECTORS], ONE)
        time.sleep(chance.random() * 0.15)
        if not systemd.is_dead:  # SIGTERM before it is handled ends it as SIGKILL does
            systemd.end(number)
        else:
            systemd.reap()
    systemd.start()
    everybody = [first, second, half, *late]
    know_each_other(*everybody)
    ring(first, second)
    assert sum(site.client().get(DEMO, "Region", "HostRings")) == 10
    assert os.pread(second.memory or 0, memory, 0) == b"still there"
    assert len(systemd.names) == len(REGION) + len(everybody)


# What is in the store


def test_all_of_two_regions_and_of_one_made_over_dbus_come_back(site: Site) -> None:
    site.configure(f"[region.demo]\nvectors = {VECTORS}\n[region.more]\nvectors = {VECTORS}\nhost-peer = false\n")
    systemd = site.manage().start()
    client = site.client()
    client.call("", "Manager", "CreateRegion", "sa{sv}", "third", {"vectors": ("u", VECTORS), "mode": ("s", "0600")})
    names = ["demo", "more", "third"]
    peers = {name: site.join(name, keep=True) for name in names}
    before = json.loads(client.call("", "Manager", "Describe")[0])
    for number in (signal.SIGKILL, signal.SIGTERM):
        systemd.restart(number)
        client.wait_for_daemon()
        after = json.loads(client.call("", "Manager", "Describe")[0])
        assert after["regions"] == before["regions"]
        assert list(after["regions"]) == names
        for name, peer in peers.items():
            assert peer.take() == 0
            assert not peer.eof
            with site.join(name) as other:
                assert other.doorbells[peer.id or 0] == peer.doorbells[peer.id or 0]
            assert peer.take(VECTORS, 20.0) == VECTORS
            until(lambda peer=peer, other=other: peer.take() or other.id not in peer.doorbells, "the other's leave")
    client.call("", "Manager", "RemoveRegion", "s", "third")
    peers["third"].until_eof()
    stored = [name for name in of_region(1, 1) + of_region(2, 0) if name != "r2.host"]
    site.until_stored(*stored)


def test_a_region_of_systemd_s_own_socket_comes_back(site: Site) -> None:
    """Socket activation: systemd has the listening socket anyway, and the store need not have it."""
    path = site.directory / "activated"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    early = RawClient(str(path), keep=True)
    systemd = site.manage(sockets={"region-demo": listening}).start()
    early.greet(VECTORS)
    for number in (signal.SIGKILL, signal.SIGTERM):
        systemd.restart(number)
        with RawClient(str(path)) as other:
            other.greet(VECTORS)
            assert other.doorbells[early.id or 0] == early.doorbells[early.id or 0]
        until(lambda: early.take() or early.log[-1][0] == "left", "the other's leave")
    assert not early.eof
    early.close()
    site.until_stored("r1.host", "r1.memory", "r1.state")
    assert systemd.end() == 0
    assert path.exists()


@pytest.mark.parametrize("knows", [True, False], ids=["the daemon knows", "only systemd knows"])
def test_a_full_store_keeps_those_who_were_there_first(site: Site, knows: bool) -> None:
    environment = {} if knows else {"FDSTORE": "100"}
    systemd = site.manage(capacity=len(REGION) + 2, environment=environment).start()
    first, second, beyond = (site.join(keep=True) for _ in range(3))
    know_each_other(first, second, beyond)
    ring(first, beyond)
    warned = "not everything of a region can be kept over a restart" in systemd.log
    assert (warned, systemd.refused) == ((True, 0) if knows else (False, 1))
    systemd.restart(signal.SIGKILL)
    beyond.until_eof()
    until(lambda: first.take() or second.take() or ("left", beyond.id) == first.log[-1] == second.log[-1], "the leave")
    know_each_other(first, second)
    assert "connection ended while the daemon was away" in systemd.log
    third = site.join(keep=True)
    know_each_other(first, second, third)
    second.close()
    until(lambda: first.take() or third.take() or second.id not in first.doorbells, "the leave of the second")
    fourth = site.join()
    systemd.restart(signal.SIGKILL)
    if knows:  # there was room for the fourth, once the second had left
        third.until_eof()
        know_each_other(first, fourth)


def test_a_slow_store_holds_up_those_who_come_and_nobody_else(site: Site) -> None:
    systemd = site.manage().start()
    client = site.client()
    first, second = (site.join(keep=True) for _ in range(2))
    know_each_other(first, second)
    with systemd.slow():
        waiting = [site.connect() for _ in range(60)]
        counts = [client.get(DEMO, "Region", "PeerCount") for _ in range(20)]
        assert counts[-1] < 50  # a datagram socket has room for some, and then they wait
        ring(first, second)
        client.call(DEMO, "Region", "Notify", "qq", HOST, 3)
        until(lambda: client.get(DEMO, "Region", "HostRings")[3] == 1, "the host is rung")
        assert not any(newcomer.eof for newcomer in waiting)
    for newcomer in waiting:
        newcomer.greet(VECTORS)
    know_each_other(first, second, *waiting)
    assert len(systemd.names) == len(REGION) + 62
    assert first.doorbells.keys() == {HOST, *range(62)}


def test_killed_while_the_store_is_slow(site: Site) -> None:
    systemd = site.manage().start()
    client = site.client()
    first = site.join(keep=True)
    leaver = site.join()
    with systemd.slow():
        waiting = [site.connect() for _ in range(60)]
        assert 2 < client.get(DEMO, "Region", "PeerCount") < 50
        leaver.close()
        systemd.end(signal.SIGKILL)
    systemd.start()
    for newcomer in waiting:
        newcomer.greet(VECTORS)
    know_each_other(first, *waiting)
    systemd.until(lambda: len(systemd.names) == len(REGION) + 61, "an entry for each peer, and none of who left")


def test_a_lost_peer_has_left(site: Site) -> None:
    systemd = site.manage().start()
    first, second, third = (site.join(keep=True) for _ in range(3))
    know_each_other(first, second, third)
    systemd.end(signal.SIGKILL)
    systemd.lose("r1.2")
    systemd.start()
    second.until_eof()
    know_each_other(first, third)
    assert ("left", second.id) in first.log
    assert "connection ended while the daemon was away" in systemd.log
    site.until_stored(*of_region(1, 1, 3))


def test_a_lost_listening_socket_is_made_anew(site: Site) -> None:
    systemd = site.manage().start()
    first = site.join(keep=True)
    systemd.end(signal.SIGKILL)
    systemd.lose("r1.listener")
    systemd.start()
    know_each_other(first, site.join(keep=True))
    site.until_stored(*of_region(1, 1, 2))


@pytest.mark.parametrize("part", ["memory", "state", "host"])
def test_a_region_that_lost_more_is_let_go_of_and_made_anew(site: Site, part: str) -> None:
    site.configure(f"[region.demo]\nvectors = {VECTORS}\n[region.more]\nvectors = {VECTORS}\n")
    systemd = site.manage().start()
    first, other = site.join(keep=True), site.join("more")
    systemd.end(signal.SIGKILL)
    systemd.lose(f"r1.{part}")
    systemd.start()
    first.until_eof()
    assert "state of a region can't be used" in systemd.log
    know_each_other(other)
    know_each_other(site.join(keep=True))
    site.until_stored(*of_region(2, 1), *of_region(3, 1))


def test_what_nobody_knows_is_let_go_of(site: Site) -> None:
    systemd = site.manage().start()
    first = site.join(keep=True)
    systemd.end(signal.SIGKILL)
    ours, theirs = socket.socketpair()
    systemd.entries.append(("of-another-program", ours.detach()))
    systemd.start()
    assert theirs.recv(1) == b""
    theirs.close()
    know_each_other(first)
    site.until_stored(*of_region(1, 1))
    assert "descriptors that nobody knows came back from the store" in systemd.log


# State, and configuration


def set_version(systemd: FakeSystemd, version: bytes) -> None:
    """Have the state of the first region say that it is of another version (one digit), and change nothing else."""
    (fd,) = (fd for name, fd in systemd.entries if name == "r1.state")
    with mmap.mmap(fd, 0) as state:
        place = state.find(KEY)
        assert place > 0
        state[place + len(KEY) : place + len(KEY) + 1] = version


def test_a_newer_version_s_state_is_refused_and_left_alone(site: Site) -> None:
    systemd = site.manage().start()
    first = site.join(keep=True)
    half = site.connect()
    assert half.take(5, 20.0) == 5
    systemd.end(signal.SIGKILL)
    known = systemd.names
    set_version(systemd, b"9")
    for _ in range(2):
        systemd.start(wait=False)
        assert systemd.reap() == os.EX_DATAERR
        assert "state has version 9" in systemd.log
        assert systemd.names == known
    set_version(systemd, str(STATE_VERSION).encode())
    systemd.start()
    know_each_other(first, half)


def test_peers_are_served_on_when_the_configuration_has_become_invalid(site: Site) -> None:
    systemd = site.manage().start()
    first = site.join(keep=True)
    site.configure("[region.demo]\nsize = 3000\n")
    systemd.restart(signal.SIGTERM)
    assert "the configuration is wrong" in systemd.log
    assert "3000" in systemd.log
    second = site.join(keep=True)
    know_each_other(first, second)
    site.configure(f"[region.demo]\nvectors = {VECTORS}\n[region.more]\n")
    site.client().call("", "Manager", "Reload")
    assert site.path("more").is_socket()
    know_each_other(first, second)


def test_an_invalid_configuration_without_anybody_is_an_error(site: Site) -> None:
    site.configure("[region.demo]\nsize = 3000\n")
    systemd = site.manage().start(wait=False)
    assert systemd.reap() == os.EX_CONFIG


def test_configuration_that_changed_while_the_daemon_was_away(site: Site) -> None:
    keys = f"vectors = {VECTORS}\nmax-peers = 3\n"
    site.configure(f"[region.demo]\n{keys}[region.gone]\nvectors = {VECTORS}\n")
    systemd = site.manage().start()
    first, leaver = site.join(keep=True), site.join("gone")
    systemd.end(signal.SIGKILL)
    site.configure("[region.demo]\nvectors = 16\nmax-peers = 2\n[region.new]\n")
    systemd.start()
    leaver.until_eof()
    client = site.client()
    assert [name for name, _ in client.call("", "Manager", "ListRegions")[0]] == ["demo", "new"]
    assert not site.path("gone").exists()
    demo = client.get_all(DEMO, "Region")
    assert (demo["MaxPeers"], demo["Vectors"]) == (2, VECTORS)
    assert "configuration can't be applied live" in systemd.log
    assert "region.demo.vectors" in systemd.log
    know_each_other(first, site.join(keep=True))
    assert site.connect().message() is None  # the limit of now holds
    site.until_stored(*of_region(1, 1, 2), *of_region(3))


def test_a_stopped_daemon_leaves_its_socket_to_who_comes_next(site: Site) -> None:
    """Who connects while it is away waits, and is greeted by the next one."""
    systemd = site.manage().start()
    first = site.join(keep=True)
    assert systemd.end(signal.SIGTERM) == 0
    waiting = [site.connect() for _ in range(5)]
    os.write(first.fds[HOST][0], array.array("Q", [7]).tobytes())
    systemd.start()
    for newcomer in waiting:
        newcomer.greet(VECTORS)
    know_each_other(first, *waiting)
    assert site.client().get(DEMO, "Region", "HostRings")[0] == 7
