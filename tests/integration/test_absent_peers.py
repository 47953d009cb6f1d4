# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""IDs that wait for their owner, and memory that is cleared, over D-Bus and with doorbellctl.

The peers are simple clients which the region's rules treat as it treats a QEMU (``tell-leaves = false``).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.busctl import Busctl, CallFailed
from support.daemon import BIN, DEADLINE, Daemon
from support.dbusclient import until
from support.rawclient import RawClient, identity

VECTORS = 2
RULES = "[[region.demo.peer]]\nmatch = {}\ntell-leaves = false\n"
REGION = "/region/demo"


@pytest.fixture(params=["", "relay = true\n"], ids=["plain", "relayed"])
def daemon(request: pytest.FixtureRequest, short_path: Path) -> Iterator[Daemon]:
    config = f"[region.demo]\nvectors = {VECTORS}\n{request.param}{RULES}"
    with Daemon(short_path, config, arguments=["--exec-restart"]) as running:
        yield running


def join(daemon: Daemon) -> RawClient:
    return RawClient(str(daemon.socket()), keep=True).greet(VECTORS)


def ctl(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [BIN / "doorbellctl", "--bus", daemon.bus, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


def absent(daemon: Daemon) -> list[int]:
    return [peer_id for peer_id, *_ in Busctl(daemon.bus).get(REGION, "Region", "AbsentPeers")]


def pending(fd: int) -> int:
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(text.split("eventfd-count:")[1].split()[0], 16)


def test_doorbells_of_peer_that_left_wait_for_its_return_and_are_drained(daemon: Daemon) -> None:
    with join(daemon) as stays:
        with join(daemon) as leaves:
            stays.take(VECTORS, DEADLINE)
            own = [identity(fd) for fd in leaves.fds[1]]
        until(lambda: absent(daemon) == [1], "the leave")
        daemon.restart()
        assert absent(daemon) == [1]
        os.eventfd_write(stays.fds[1][0], 3)
        with join(daemon) as back:
            assert back.id == 1
            assert [identity(fd) for fd in back.fds[1]] == own
            assert absent(daemon) == []
            until(lambda: pending(stays.fds[1][0]) == 0, "the relay, if there is one")
            if "relay" not in daemon.config.read_text():
                assert pending(back.fds[1][0]) == 0, "what was rung meanwhile is drained"
            os.eventfd_write(stays.fds[1][0], 1)
            until(lambda: pending(back.fds[1][0]) >= 1, "the ring")
        assert stays.take() == 0, "it is told neither the leave nor the return"


def test_absent_peer_is_shown_and_can_not_be_rung(daemon: Daemon) -> None:
    bus = Busctl(daemon.bus)
    with join(daemon) as stays:
        join(daemon).close()
        stays.take(VECTORS, DEADLINE)
        until(lambda: absent(daemon) == [1], "the leave")
        for method, arguments in (("Notify", (1, 0)), ("NotifyPeer", (1,)), ("OpenDoorbell", (1, 0))):
            signature = "q" * len(arguments)
            with pytest.raises(CallFailed, match=r'peer 1 of region "demo" is absent.*waits for uid 0'):
                bus.call(REGION, "Region", method, signature, *arguments)
        bus.call(REGION, "Region", "Broadcast")
        assert pending(stays.fds[1][0]) == 0
        (row,) = [line for line in ctl(daemon, "peers", "demo").stdout.splitlines() if "absent" in line]
        assert row.split()[0] == "1"
        assert "IDs that wait: 1 for uid 0" in ctl(daemon, "status", "demo").stdout
        assert "absent" in ctl(daemon, "notify", "demo", "1").stderr
    until(lambda: absent(daemon) == [], "the end of the only one that remembered")


def test_peers_that_take_leaves_are_told_them_though_others_are_not(short_path: Path) -> None:
    with Daemon(short_path, "[region.demo]\nvectors = 2\n") as daemon, join(daemon) as stays:
        join(daemon).close()
        until(lambda: stays.take() == 0 and ("left", 1) in stays.log, "the leave")
        assert absent(daemon) == [], "nobody remembers it"
        with join(daemon) as back:
            assert back.id == 1
            until(lambda: stays.take() == 0 and stays.log[-1] == ("join", 1), "the return")


def test_attach_says_whether_leaves_are_told(short_path: Path) -> None:
    with Daemon(short_path, "[region.demo]\nvectors = 2\n") as daemon, join(daemon):
        bus = Busctl(daemon.bus)
        with pytest.raises(CallFailed, match="unknown option"):
            bus.call(REGION, "Region", "Attach", "a{sv}", 1, "tell-leavs", "b", "false")
        with pytest.raises(CallFailed, match="not a boolean"):
            bus.call(REGION, "Region", "Attach", "a{sv}", 1, "tell-leaves", "s", "no")


# Memory


def content(daemon: Daemon) -> bytes:
    return bytes(Busctl(daemon.bus).call(REGION, "Region", "ReadMemory", "tu", 0, 5)[0])


@pytest.mark.parametrize("backing", ["memfd", "file"])
def test_memory_is_cleared_when_the_last_peer_left_before_the_next_one_sees_it(short_path: Path, backing: str) -> None:
    backing = f'backing = "file:{short_path}/memory"\n' if backing == "file" else ""
    config = f'[region.demo]\nvectors = {VECTORS}\nclear = "when-empty"\n{backing}'
    with Daemon(short_path, config, arguments=["--exec-restart"]) as daemon:
        for turn in range(3):
            with join(daemon) as first:
                assert first.memory is not None
                assert os.pread(first.memory, 5, 0) == bytes(5)
                with join(daemon) as second:
                    os.pwrite(first.memory, b"stale", 0)
                    if turn == 1:
                        daemon.restart()
                until(lambda: len(Busctl(daemon.bus).call("", "Manager", "ListPeers", "s", "demo")[0]) == 1, "a leave")
                assert second.id is not None
                assert content(daemon) == b"stale"
        until(lambda: daemon.times("memory cleared") == 3, "the last time")
        assert content(daemon) == bytes(5)


def test_memory_is_kept_unless_it_is_cleared_by_hand(short_path: Path) -> None:
    with Daemon(short_path, f"[region.demo]\nvectors = {VECTORS}\n") as daemon:
        with join(daemon) as peer:
            assert peer.memory is not None
            os.pwrite(peer.memory, b"stale", 0)
            refused = ctl(daemon, "clear", "demo")
            assert refused.returncode == 1
            assert "has 1 peer" in refused.stderr and "force" in refused.stderr
            assert content(daemon) == b"stale"
            assert ctl(daemon, "clear", "demo", "--force").returncode == 0
            assert os.pread(peer.memory, 5, 0) == bytes(5)
            os.pwrite(peer.memory, b"again", 0)
        until(lambda: ctl(daemon, "clear", "demo").returncode == 0, "the leave")
        assert content(daemon) == bytes(5)
        assert "no region" in ctl(daemon, "clear", "nowhere").stderr
