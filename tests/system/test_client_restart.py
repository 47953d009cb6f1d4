# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd restarts the daemon, and nobody notices: its clients, its flat devices, who is attached, who is relayed.

The daemon has a place in two regions of its own and two in that of another server, which is a program that the machine
knows nothing of. All the time somebody rings each of them, one ring after the other, so sums can be held against sums.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from support.attached import Attached
from support.dbusclient import until
from support.machine.container import Machine
from support.machine.service import UNIT, Service
from support.otherserver import OtherServer
from support.rawclient import RawClient

from .test_failures import drop_in, said

HOST = 65535
VECTORS = 4
ORDERLY, KILLS = 3, 15
FAR = "/srv/other/socket"
CONFIG = f"""
[region.plain]
vectors = {VECTORS}
[region.relayed]
vectors = {VECTORS}
relay = true
max-peers = 16
[client.near]
socket = "/run/doorbelld/plain/socket"
[client.far]
socket = "{FAR}"
[flat.near]
socket = "/run/doorbelld/relayed/socket"
[flat.far]
socket = "{FAR}"
"""
TIMED = {"rings", "host-rings", "rings-sent", "rings-received", "interrupts", "backlog", "pairs"}
"""What `Describe` says that changes while everybody stays."""
SUPPORT = Path(__file__).parents[1] / "support"


def server_at(machine: Machine, path: str) -> OtherServer:
    """Make a server that listens in the machine, and lets everybody in."""
    machine.path(path).parent.mkdir(exist_ok=True)
    server = OtherServer(str(machine.path(path)), vectors=VECTORS)
    machine.path(path).chmod(0o666)
    return server


def attach(machine: Machine, region: str, *words: str) -> Attached:
    """Have a program in the machine that is attached to a region, by ``doorbellctl attach`` with *words*."""
    folder = machine.path("/opt/attached")
    folder.mkdir(exist_ok=True)
    (folder / "attached.py").write_text((SUPPORT / "attached.py").read_text())
    python = machine.path("/usr/bin/doorbelld").read_text().partition("\n")[0].removeprefix("#!").split()[0]
    command = ["doorbellctl", "attach", region, *words, "--exec", "env", "PYTHONPATH=/usr/lib/doorbelld/python"]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    return Attached(machine.popen(*command, python, "/opt/attached/attached.py", "client", **pipes)).greet()


def lasting(value: Any) -> Any:
    """Give that part of what `Describe` says which stays as it is while everybody stays."""
    if isinstance(value, dict):
        return {key: lasting(one) for key, one in value.items() if key not in TIMED}
    return [lasting(one) for one in value] if isinstance(value, list) else value


class Stage:
    """The service, and all who are there; ``rung`` says how often whom."""

    def __init__(self, service: Service, server: OtherServer, stack: ExitStack) -> None:
        self.service, self.machine, self.server = service, service.machine, server
        self.stack = stack
        self.rung: Counter[str] = Counter()
        self.heard: Counter[str] = Counter()
        self.restarts = 0
        service.configure(CONFIG)
        self.mark = service.machine.journal_end()
        service.start()
        until(lambda: {one["id"] for one in self.places.values()} == {0, 1}, "all to be in their regions")
        self.plain = self.join("plain")
        self.one, self.two = self.join("relayed"), self.join("relayed")
        self.child = stack.enter_context(attach(service.machine, "plain"))
        self.heir = stack.enter_context(attach(service.machine, "relayed", "--hand-over"))
        self.friend = stack.enter_context(RawClient(server.path, keep=True)).greet(VECTORS)
        for peer, others in ((self.plain, 4), (self.one, 5), (self.two, 5), (self.friend, 3)):
            until(lambda peer=peer, others=others: peer.take() or self.complete(peer, others), "all to know each other")
        known = {"clients near": 3, "clients far": 2, "flats near": 4, "flats far": 2}
        until(lambda: self.known() == known, "them to know all")
        self.ids = {name: one["id"] for name, one in self.places.items()}

    def join(self, region: str) -> RawClient:
        path = str(self.service.socket(region))
        return self.stack.enter_context(RawClient(path, keep=True)).greet(VECTORS)

    @staticmethod
    def complete(peer: RawClient, count: int) -> bool:
        return len(peer.fds) == count and all(len(fds) == VECTORS for fds in peer.fds.values())

    def describe(self) -> Any:
        return json.loads(self.service.bus.call("", "Manager", "Describe")[0])

    @property
    def places(self) -> dict[str, Any]:
        """What there is to say of clients and flat devices."""
        there = self.describe()
        return {f"{kind} {name}": one for kind in ("clients", "flats") for name, one in there[kind].items()}

    def known(self) -> dict[str, int]:
        """Say of how many others each place has all doorbells, once it has its own."""
        return {
            name: sum(peer["vectors"] == VECTORS for peer in one["peers"])
            for name, one in self.places.items()
            if one["vectors"] == VECTORS
        }

    @property
    def entries(self) -> int:
        """How many descriptors are in the store."""
        return int(self.service.show("NFileDescriptorStore"))

    def ring(self) -> None:
        """Ring each of them once, whether or not the daemon is there."""
        vector = self.rung.total() % VECTORS
        bells = {
            "host": self.plain.fds[HOST],
            "clients near": self.plain.fds[self.ids["clients near"]],
            "clients far": self.server.eventfds(self.ids["clients far"]),
            "flats near": self.one.fds[self.ids["flats near"]],
            "flats far": self.friend.fds[self.ids["flats far"]],
            "child": self.plain.fds[self.child.id],
            "heir": self.one.fds[self.heir.id],
            "two": self.one.fds[self.two.id or 0],
            "limited": self.two.fds[self.one.id or 0],
        }
        for name, fds in bells.items():
            os.eventfd_write(fds[vector], 1)
            self.rung[name] += 1
        time.sleep(0.001)  # so that rings are apart

    def meanwhile(self, pool: ThreadPoolExecutor, *command: str) -> None:
        """Give systemctl's *command*, and ring until the daemon is back."""
        pid = self.service.pid

        def restart() -> None:
            self.machine.systemctl(*command)
            self.service.until_back(pid)

        working = pool.submit(restart)
        while not working.done():
            self.ring()
        working.result()
        self.restarts += 1

    def taken(self) -> Counter[str]:
        """Say how often each was found rung."""
        there = self.describe()
        found = {f"{kind} {name}": sum(there[kind][name]["rings"]) for kind, name in map(str.split, self.ids)}
        found["host"] = sum(there["regions"]["plain"]["host-rings"])
        for name, attached in (("child", self.child), ("heir", self.heir)):
            found[name] = sum(attached.ask("heard", self.rung[name]))
        for name, peer in (("two", self.two), ("limited", self.one)):
            for fd in peer.fds[peer.id or 0]:
                os.set_blocking(fd, False)
                with suppress(BlockingIOError):
                    self.heard[name] += os.eventfd_read(fd)
            found[name] = self.heard[name]
        return Counter(found)

    def nobody_was_told(self) -> None:
        """See that no stream of theirs said anything, or ended."""
        for peer in (self.plain, self.one, self.two, self.friend):
            assert (peer.take(), peer.eof) == (0, False), peer.log
        assert (self.server.accepted, self.server.connections) == (3, 3)

    def warnings(self) -> list[str]:
        """Give all that the daemon complained of."""
        entries = self.machine.journal(f"_SYSTEMD_UNIT={UNIT}", "--priority=warning", after=self.mark)
        return [str(entry["MESSAGE"]) for entry in entries]


@pytest.fixture
def stage(service: Service) -> Iterator[Stage]:
    with ExitStack() as stack:
        server = stack.enter_context(server_at(service.machine, FAR))
        yield Stage(service, server, stack)


def test_clients_flat_devices_attached_and_relayed_live_through_restarts(stage: Stage) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    run = stage.machine.run
    run("doorbellctl", "limit", "relayed", str(stage.two.id), str(stage.one.id), "--rate", "2000")
    before, entries = lasting(stage.describe()), 0
    position = run("doorbellctl", "flat", "far", "read", "ivposition").stdout

    with ThreadPoolExecutor(1) as pool:
        for turn in range(ORDERLY + KILLS):
            moment = time.monotonic() + chance.random() * 0.2
            while time.monotonic() < moment:
                stage.ring()
            orderly = turn < ORDERLY
            stage.meanwhile(pool, *(("restart", UNIT) if orderly else ("kill", "--signal=KILL", UNIT)))
            assert lasting(stage.describe()) == before
            stage.nobody_was_told()
            entries = entries or stage.entries
            until(lambda most=entries: stage.entries <= most, f"{entries} entries in the store at most")
            if turn == ORDERLY - 1:
                until(lambda: stage.taken() == stage.rung, "each ring once")
    assert run("doorbellctl", "flat", "far", "read", "ivposition").stdout == position

    # a relay delivers twice rather than never what it was about to deliver when it was killed; nobody else does
    until(lambda: stage.taken() >= stage.rung, "each ring")
    twice = stage.taken() - stage.rung
    print(f"{stage.rung.total()} rings, twice {dict(twice)}")
    assert set(twice) <= {"flats near", "heir", "two", "limited"}
    assert twice.total() < stage.rung.total() / 4
    one, two, heir, near = stage.one.id, stage.two.id, stage.heir.id, stage.ids["flats near"]
    (listed,) = stage.service.bus.call("/region/relayed", "Region", "ListPairs")
    pairs = {(sender, target): rest for sender, target, *rest in listed}
    wanted = {(one, two): "two", (one, heir): "heir", (one, near): "flats near", (two, one): "limited"}
    assert {ends: pairs[ends][0] for ends in wanted} == {ends: stage.rung[name] for ends, name in wanted.items()}
    assert pairs[two, one][3:] == [2000, True]

    # who comes now is told to all, and so is who goes
    with RawClient(stage.server.path) as late:
        late.greet(VECTORS)
        until(lambda: len(stage.places["clients far"]["peers"]) == 3, "who came late")
    until(lambda: lasting(stage.describe()) == before, "who left")
    until(lambda: stage.entries <= entries, f"{entries} entries in the store at most")
    for what in ("client restored", "flat device restored", "region restored"):
        assert len(stage.machine.journal(said(what), after=stage.mark)) == 2 * stage.restarts
    assert stage.warnings() == []


def test_a_server_that_the_sandbox_hides_is_told_with_the_cure(service: Service) -> None:
    """PrivateTmp: there is something at the path, and the daemon does not see it."""
    machine, path = service.machine, "/tmp/far/socket"
    service.configure(f'[client.far]\nsocket = "{path}"\n')
    with server_at(machine, path) as server:
        mark = machine.journal_end()
        service.start()
        told = machine.await_journal("client", said("client can't join its region"), after=mark)
        cause = f"no ivshmem server at {path}: No such file or directory; the sandbox of our unit hides /tmp: "
        assert told["DOORBELLD_REASON"].startswith(f"{cause}systemctl edit it, BindPaths=/tmp/far below [Service]")
        advice = machine.run("doorbellctl", "doctor", check=False).stdout
        assert "the sandbox of the unit hides it: systemctl edit doorbelld: BindPaths=/tmp/far, below" in advice
        with drop_in(machine, "[Service]\nBindPaths=/tmp/far\n"):
            machine.systemctl("restart", UNIT)
            server.wait_for(lambda: server.ids == [0])
            until(lambda: service.bus.get("/client/far", "Client", "State") == "connected", "it to be connected")
