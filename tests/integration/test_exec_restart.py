# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""``doorbelld --exec-restart``: SIGUSR2 puts a new program in the place of the old one, and no peer notices."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.crash import spin
from support.daemon import Daemon
from support.dbusclient import Client, until
from support.rawclient import RawClient

HOST = 65535
VECTORS = 3
REGION = f"[region.demo]\nvectors = {VECTORS}\nstall-timeout = 0\n"


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    with Daemon(short_path, REGION, arguments=["--exec-restart"]) as running:
        yield running


@pytest.fixture
def clients() -> Iterator[list[RawClient]]:
    made: list[RawClient] = []
    yield made
    for client in made:
        client.close()


def send(daemon: Daemon, number: int) -> None:
    assert daemon.process is not None
    daemon.process.send_signal(number)


def join(daemon: Daemon, clients: list[RawClient], **options: Any) -> RawClient:
    client = RawClient(str(daemon.socket()), **options)
    clients.append(client)
    return client.greet(VECTORS)


def agree(clients: list[RawClient]) -> None:
    """Wait until all of them know each other, and nobody else but the host."""
    ids = {HOST, *(client.id for client in clients)}

    def told() -> bool:
        for client in clients:
            client.take()
            assert not client.eof
        return all(
            set(client.doorbells) == ids and all(len(bells) == VECTORS for bells in client.doorbells.values())
            for client in clients
        )

    until(told, "everybody to be told of everybody")
    assert all(client.doorbells == clients[0].doorbells for client in clients)


def rings(daemon: Daemon) -> list[int]:
    """Ask over D-Bus how often the host was rung, by vector."""
    with Client(daemon.bus) as bus:
        (said,) = bus.call("", "Manager", "Describe")
    return list(json.loads(said)["regions"]["demo"]["host-rings"])


def test_nobody_notices(daemon: Daemon, clients: list[RawClient]) -> None:
    """Peers come, go, ring, and one of them reads slowly, while it is executed anew, again and again."""
    dice = random.Random(3)
    pid, rung, slow = daemon.pid, 0, RawClient(str(daemon.socket()))
    ringer, listener = (join(daemon, clients, keep=True) for _ in range(2))
    assert ringer.memory is not None
    os.pwrite(ringer.memory, b"still there", 4096)
    for turn in range(15):
        guests: list[RawClient] = []

        def meanwhile(guests: list[RawClient] = guests) -> None:
            nonlocal rung
            if dice.random() < 0.3:
                guests.append(RawClient(str(daemon.socket())))
            if guests and dice.random() < 0.3:
                guests.pop(dice.randrange(len(guests))).close()
            os.eventfd_write(ringer.fds[HOST][rung % VECTORS], 1)
            rung += 1
            for client in (ringer, listener, *guests):
                client.take()
            slow.take(1)

        daemon.restart(meanwhile)
        assert daemon.pid == pid
        clients += [guest.greet(VECTORS) for guest in guests]
        while len(clients) > 6:
            clients.pop(2).close()
        assert slow.messages > turn
    agree([*clients, slow])
    clients.append(slow)
    assert listener.memory is not None
    assert os.pread(listener.memory, 11, 4096) == b"still there"
    mine, theirs = listener.fds[listener.id or 0][0], ringer.fds[listener.id or 0][0]
    os.eventfd_write(theirs, 5)
    assert os.eventfd_read(mine) == 5
    until(lambda: sum(rings(daemon)) >= rung, "all rings to be counted")
    assert sum(rings(daemon)) == rung


def test_descriptors_do_not_pile_up(daemon: Daemon, clients: list[RawClient]) -> None:
    for _ in range(4):
        join(daemon, clients)
    agree(clients)
    counts = []
    for _ in range(20):
        daemon.restart()
        with Client(daemon.bus) as bus:
            bus.call("", "Manager", "Describe")
        until(lambda: daemon.descriptors() in counts or not counts, "the descriptors of the call to be closed")
        counts.append(daemon.descriptors())
    assert len(set(counts)) == 1
    agree(clients)


@pytest.mark.parametrize("config", ["[region.demo", "[region.demo]\nvectors = 0\n", "[regions.demo]\n"])
def test_a_broken_configuration_stops_it(daemon: Daemon, clients: list[RawClient], config: str) -> None:
    """It is better to serve on than not to come back."""
    good = join(daemon, clients)
    daemon.write_config(config)
    send(daemon, signal.SIGUSR2)
    until(lambda: daemon.times("not executed anew"), "the refusal")
    line = next(line for line in daemon.log.splitlines() if "not executed anew" in line)
    assert "doorbelld.toml" in line or "region" in line
    assert daemon.times("] ready ") == 1
    agree([good, join(daemon, clients)])
    daemon.write_config(REGION)
    daemon.restart()
    agree(clients)


def test_the_new_program_reads_the_new_configuration(daemon: Daemon, clients: list[RawClient]) -> None:
    join(daemon, clients)
    daemon.write_config(f"{REGION}max-peers = 2\n[region.other]\n")
    daemon.restart()
    assert daemon.socket("other").is_socket()
    agree(clients)
    join(daemon, clients)
    with RawClient(str(daemon.socket())) as third:
        third.until_eof()


def test_the_private_bus_is_there_again(daemon: Daemon) -> None:
    for turn in range(3):
        with Client(daemon.bus) as bus:
            bus.call("", "Manager", "CreateRegion", "sa{sv}", f"made{turn}", {})
        daemon.restart()
        with Client(daemon.bus) as bus:
            (said,) = bus.call("", "Manager", "Describe")
        assert sorted(json.loads(said)["regions"]) == ["demo", *(f"made{number}" for number in range(turn + 1))]
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    assert len(children) == 1, "only the message bus of now is left"


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGHUP])
def test_signals_right_after_it_do_no_harm(daemon: Daemon, clients: list[RawClient], number: signal.Signals) -> None:
    """Also while there is nobody yet to handle them."""
    join(daemon, clients)
    for _ in range(3):
        daemon.restart(lambda: send(daemon, number))
    until(lambda: daemon.times("] ready ") >= 4, "the last of them")
    assert daemon.alive, daemon.log
    agree(clients)
    agree(clients)


STAGES = [None, "executing anew", "region restored", "] ready "]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stage", STAGES)
def test_who_stops_it_right_after_it_succeeds(short_path: Path, stage: str | None, seed: int) -> None:
    """SIGTERM at any moment of it ends it, with status 0, and leaves no socket behind."""
    daemon = Daemon(short_path, REGION, arguments=["--exec-restart"]).start()
    before = daemon.times(stage) if stage else 0
    send(daemon, signal.SIGUSR2)
    if stage:
        until(lambda: daemon.times(stage) > before, stage)
    else:
        spin(random.Random(seed).randrange(3_000_000))
    assert daemon.stop() == 0, daemon.log
    assert not daemon.socket().exists()


def test_without_the_option_sigusr2_is_what_it_always_is(short_path: Path) -> None:
    daemon = Daemon(short_path, REGION).start()
    send(daemon, signal.SIGUSR2)
    assert daemon.process is not None
    assert daemon.process.wait(20) == -signal.SIGUSR2
    daemon.process = None
