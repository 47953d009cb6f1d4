# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon is killed at any moment while servers tell its clients and flat devices of peers, and others ring them.

The service manager is played by `support.fakesystemd`; `tests/system/test_client_restart.py` has the real one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doorbelld.fds import eventfd
from support.dbusclient import BusDaemon, Client, until
from support.otherserver import OtherServer
from support.rawclient import RawClient

from .test_restart import Site

HOST = 65535
VECTORS = 4
KILLS = 30
VISITORS = 8
PLACES = {"lab": "/client/lab", "near": "/client/near", "mcu": "/flat/mcu", "lane": "/flat/lane"}
CONFIG = """
[region.demo]
vectors = {vectors}
[region.lane]
vectors = {vectors}
relay = true
max-peers = 16
[client.lab]
socket = "{far}"
[flat.mcu]
socket = "{far}"
[client.near]
socket = "{run}/demo/socket"
[flat.lane]
socket = "{run}/lane/socket"
"""


class Stage:
    """A daemon with a client and a flat device in the region of another server, and in regions of its own."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.server = stack.enter_context(OtherServer(str(directory / "far"), vectors=VECTORS))
        bus = stack.enter_context(BusDaemon(directory))
        self.site = Site(directory, bus.address, stack)
        self.site.configure(CONFIG.format(vectors=VECTORS, far=self.server.path, run=directory / "run"))
        self.systemd = self.site.manage().start()
        seed = random.SystemRandom().getrandbits(32)
        print(f"seed {seed}")
        self.chance = random.Random(seed)
        self.visitors: dict[str, list[RawClient]] = {self.server.path: [], str(self.site.path("demo")): []}
        self.visits = 0
        self.rung: dict[str, list[int]] = {name: [0] * VECTORS for name in PLACES}
        self.moments: Counter[str] = Counter()
        with Client(bus.address) as client:
            client.wait_for_daemon()
            until(lambda: all(len(self.look(client, name)["Rings"]) == VECTORS for name in PLACES), "all doorbells")
            self.before = {name: self.look(client, name) for name in PLACES}
        self.ids = {name: there.get("Id", there.get("IvPosition")) for name, there in self.before.items()}
        self.residents = {name: self.join(str(self.site.path(name))).greet(VECTORS) for name in ("demo", "lane")}
        self.bells = {
            **{name: self.server.eventfds(self.ids[name]) for name in ("lab", "mcu")},
            "near": self.residents["demo"].fds[self.ids["near"]],
            "lane": self.residents["lane"].fds[self.ids["lane"]],
        }

    @staticmethod
    def look(client: Client, name: str) -> dict[str, Any]:
        """Give all properties of a client or a flat device."""
        return client.get_all(PLACES[name], "FlatDevice" if PLACES[name].startswith("/flat") else "Client")

    def join(self, path: str) -> RawClient:
        return self.stack.enter_context(RawClient(path, keep=True))

    @staticmethod
    def admitted(peer: RawClient) -> bool:
        """Read a greeting; False if there was not a byte, as the daemon was killed just when it accepted."""
        if peer.message() is None and peer.eof:
            peer.close()
            return False
        peer.greet(VECTORS)
        return True

    # What goes on, whether or not the daemon is there

    def ring(self) -> None:
        """Ring each of them, somewhere, a few times."""
        for name, bells in self.bells.items():
            vector, count = self.chance.randrange(VECTORS), self.chance.randrange(1, 100)
            self.rung[name][vector] += count
            os.eventfd_write(bells[vector], count)

    def visit(self) -> None:
        """Have somebody come, or go."""
        path = self.chance.choice(list(self.visitors))
        there = self.visitors[path]
        if len(there) < VISITORS and self.chance.random() < 0.6:
            there.append(self.join(path))
            self.visits += 1
        elif there:
            there.pop(self.chance.randrange(len(there))).close()

    def bustle(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.ring()
            self.visit()
            time.sleep(self.chance.random() * 0.004)

    # Moments to be killed at

    def any_time(self) -> None:
        self.bustle(self.chance.random() * 0.2)

    def being_told(self) -> None:
        """While it is told of joins and leaves."""
        for _ in range(2 * VISITORS):
            self.visit()
        self.spin(0.004)

    def taking(self) -> None:
        """While it takes rings, one doorbell after the other."""
        for _ in range(VECTORS):
            self.ring()
        deadline = time.monotonic() + 20.0
        while not any(self.pending()):
            self.ring()
        while all(self.pending()):
            assert time.monotonic() < deadline, "nobody hears"
        self.spin(0.0005)

    def pending(self) -> Iterator[bool]:
        return (eventfd.pending(fd) > 0 for name in ("lab", "mcu", "near") for fd in self.bells[name])

    def spin(self, seconds: float) -> None:
        """Wait for up to so long, without giving the processor away."""
        end = time.monotonic() + self.chance.random() * seconds
        while time.monotonic() < end:
            pass

    def await_moment(self) -> None:
        moment = self.chance.choice((self.any_time, self.starting, self.being_told, self.taking))
        self.moments[moment.__name__] += 1
        if moment != self.starting:
            self.systemd.wait_ready()
        moment()

    def starting(self) -> None:
        self.bustle(self.chance.random() * 0.25)

    # At the end

    def account(self, client: Client) -> None:
        """Hold what the daemon says of its places against what there is."""
        far = {peer.id for peer in self.visitors[self.server.path]} | {self.ids["lab"], self.ids["mcu"]}
        demo = {peer.id for peer in self.visitors[str(self.site.path("demo"))]}
        demo |= {HOST, self.residents["demo"].id, self.ids["near"]}
        members = {"lab": far, "mcu": far, "near": demo, "lane": {HOST, self.residents["lane"].id, self.ids["lane"]}}
        assert set(self.server.ids) == far

        def told(name: str) -> set[int]:
            return {
                peer for peer, vectors, _ in client.call(PLACES[name], "Client", "ListPeers")[0] if vectors == VECTORS
            }

        for name in ("lab", "near"):
            until(lambda name=name: told(name) == members[name] - {self.ids[name]}, f"who {name} knows")
        for name, there in members.items():
            until(
                lambda name=name, there=there: self.look(client, name)["PeerCount"] == len(there) - 1,
                f"who {name} knows",
            )
            until(lambda name=name: sum(self.look(client, name)["Rings"]) >= sum(self.rung[name]), f"rings of {name}")
        rings = {name: self.look(client, name)["Rings"] for name in PLACES}
        twice = sum(rings["lane"]) - sum(self.rung["lane"])  # a relay that is killed delivers twice rather than never
        assert rings | {"lane": []} == self.rung | {"lane": []}
        print(f"{sum(map(sum, self.rung.values()))} rings, {twice} twice; {self.visits} visits; {dict(self.moments)}")
        same = ("State", "Reason", "Id", "IvPosition", "Vectors", "Since")
        for name in PLACES:
            now = self.look(client, name)
            assert {key: now.get(key) for key in same} == {key: self.before[name].get(key) for key in same}

    def ring_back(self, client: Client) -> None:
        """See that the doorbells that it has are those of who is there."""
        for name in ("lab", "near"):
            path = self.server.path if name == "lab" else str(self.site.path("demo"))
            for peer in self.visitors[path]:
                assert peer.id is not None
                assert not any(eventfd.pending(fd) for fd in peer.fds[peer.id])
                client.call(PLACES[name], "Client", "NotifyPeer", "q", peer.id)
                assert [os.eventfd_read(fd) for fd in peer.fds[peer.id]] == [1] * VECTORS


@pytest.fixture
def stage(short_path: Path) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        yield Stage(short_path, stack)


def test_killed_at_random_moments_they_stay_where_they_are(stage: Stage) -> None:
    systemd = stage.systemd
    for turn in range(KILLS):
        stage.await_moment()
        if systemd.is_dead:  # SIGTERM before it is handled ends it as SIGKILL does
            systemd.reap()
        else:
            systemd.end((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)[turn % 3])
        if turn % 2:
            stage.bustle(0.02)
        systemd.start(wait=False)
    systemd.wait_ready()
    for peers in stage.visitors.values():
        peers[:] = filter(stage.admitted, peers)
    with stage.site.client() as client:
        stage.account(client)
        stage.ring_back(client)
        assert len(stage.moments) == 4
        # the socket and the state of each, and few vaults: those of like size are put together
        until(lambda: len([name for name in systemd.names if name[0] in "cf"]) <= 4 * 8, "few entries in the store")
        assert systemd.doubled == []
        for trouble in ("Traceback", "lost its region", "can't join", "can't be used", "can't be kept", "nobody knows"):
            assert trouble not in systemd.log, systemd.log
        for peers in stage.visitors.values():
            while peers:
                peers.pop().close()
        until(
            lambda: stage.look(client, "lab")["PeerCount"] == stage.look(client, "near")["PeerCount"] - 1 == 1, "leaves"
        )


def test_a_connection_that_was_not_kept_is_told_and_made_anew(stage: Stage) -> None:
    systemd, server = stage.systemd, stage.server
    systemd.end(signal.SIGKILL)
    for name in ("c1.s1", "f1.s1"):
        systemd.lose(name)
    server.wait_for(lambda: server.ids == [])
    systemd.start()
    server.wait_for(lambda: sorted(server.ids) == [2, 3])
    for who in ("client lost its region client=lab", "flat device lost its region flat=mcu"):
        assert f"{who} reason='a part of its connection was not kept: the socket is missing'" in systemd.log
    assert "region client=near" not in systemd.log.partition("restored")[2]
