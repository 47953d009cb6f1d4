# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Strangers who take all they can get: they come to the end of their budget, and everybody else goes on."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import support.daemon
from doorbelld.vhost.frontend import BackendFailed, Frontend
from doorbelld.wire.vhost_messages import MemoryRegion, SingleMemoryRegion, VringFd
from doorbelld.wire.vhost_requests import FrontendRequest
from support.daemon import BIN, Daemon
from support.dbusclient import Client, until
from support.heartbeat import Attack, under_way, watched
from support.needs import require
from support.rawclient import RawClient

NOBODY = 65534
STRANGER = 65533
TIB = 1 << 40
SLOT = 1 << 47
"""Guest addresses from one region of the attacker to the next."""
OPEN = 'mode = "0666"\n'

Start = Callable[[str], None]


@pytest.fixture(autouse=True)
def strangers(short_path: Path) -> None:
    """Let other users find the sockets."""
    if os.getuid():
        pytest.skip("only root can become somebody else")
    short_path.chmod(0o755)


@pytest.fixture
def started_by(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Have `Daemon` start doorbelld through the shell code that is given, the last word of it an exec."""
    folder = short_path / "bin"
    folder.mkdir()

    def start(line: str) -> None:
        (folder / "doorbelld").write_text(f'#!/bin/sh\n{line} {shlex.quote(str(BIN / "doorbelld"))} "$@"\n')
        (folder / "doorbelld").chmod(0o755)

    monkeypatch.setattr(support.daemon, "BIN", folder)
    return start


def limits(daemon: Daemon) -> dict[str, list[int]]:
    """Ask for used, limit and refused of each budget."""
    with Client(daemon.bus) as client:
        return {name: list(numbers) for name, numbers in client.get("", "Manager", "Limits").items()}


def sit() -> NoReturn:
    """Keep all until killed."""
    while True:
        time.sleep(60)


# Guest memory


def fill_the_address_space(*paths: str) -> None:
    """Share sparse files of all sizes, the largest first, until nothing fits any more, and hold on to them."""
    memfd = os.memfd_create("sparse")
    os.ftruncate(memfd, 64 * TIB)
    slots, refused, fronts = 0, 0, []
    for path in paths:
        front = Frontend.connect(path)
        fronts.append(front)
        front.negotiate()
        for shift in range(46, 13, -1):
            for _ in range(12):
                slots += 1
                region = MemoryRegion(slots % 500 * SLOT, 1 << shift, slots % 500 * SLOT, 0)
                refused += front.try_to_tell(FrontendRequest.ADD_MEM_REG, SingleMemoryRegion(region), [memfd]) != 0
    under_way(f"{refused} of {slots} refused")
    sit()


def test_sparse_memory_of_one_front_end_leaves_room_for_others(short_path: Path) -> None:
    config = "".join(f'[device.{name}]\ntype = "rng"\n{OPEN}' for name in ("greedy", "other"))
    with watched(short_path, config) as site:
        before = limits(site.daemon)["guest-memory"]
        with Attack(fill_the_address_space, str(site.daemon.socket("greedy")), uid=NOBODY) as attack:
            with Frontend.connect(str(site.daemon.socket("other")), memory_size=1 << 30) as front:
                (queue,) = front.start(1)
                assert len(front.request(queue, room=64)) == 64
            used, limit, refused = limits(site.daemon)["guest-memory"]
            assert 4 * TIB <= used < 5 * TIB and limit == 64 * TIB
            assert refused == int(attack.first.split()[0]) > 0
        until(lambda: limits(site.daemon)["guest-memory"][0] == before[0], "its memory to be given back")
        assert site.daemon.times("a budget is used up") == 1
        assert "raise limits.device-memory" in site.daemon.log


def test_sparse_memory_of_one_user_leaves_some_for_others(short_path: Path) -> None:
    names = ["greedy0", "greedy1", "greedy2"]
    config = '[limits]\nguest-memory = "10T"\n' + "".join(
        f'[device.{name}]\ntype = "rng"\n{OPEN}' for name in [*names, "other"]
    )
    with watched(short_path, config) as site:
        paths = [str(site.daemon.socket(name)) for name in names]
        with Attack(fill_the_address_space, *paths, uid=NOBODY):
            assert 8 * TIB < limits(site.daemon)["guest-memory"][0] <= 9 * TIB + (2 << 20)
            assert "limits.user-share" in site.daemon.log and f"uid {NOBODY} has" in site.daemon.log
            with Frontend.connect(str(site.daemon.socket("other")), memory_size=1 << 36) as front:
                front.start(1)
        until(lambda: limits(site.daemon)["guest-memory"][0] < TIB, "its memory to be given back")


def test_a_reload_raises_a_limit_and_disturbs_nobody(short_path: Path) -> None:
    device = '[device.big]\ntype = "rng"\n'
    with Daemon(short_path, f'[limits]\ndevice-memory = "1G"\n{device}') as daemon, Client(daemon.bus) as client:

        def start() -> Frontend:
            front = Frontend.connect(str(daemon.socket("big")), memory_size=1 << 31)
            try:
                front.start(1)
            except BaseException:
                front.close()
                raise
            return front

        with pytest.raises(BackendFailed):
            start()
        daemon.write_config(f'[limits]\ndevice-memory = "2G"\n{device}')
        client.call("", "Manager", "Reload")
        with start() as front:
            daemon.write_config(f'[limits]\ndevice-memory = "1G"\n{device}')
            client.call("", "Manager", "Reload")
            assert len(front.request(front.queues[0], room=64)) == 64
            assert limits(daemon)["guest-memory"] == [1 << 31, 64 * TIB, 1]


# Descriptors


def fill_regions(*paths: str) -> None:
    """Join one region after the other until there is no room in it, and read everything."""
    peers = []
    for path in paths:
        while True:
            peer = RawClient(path)
            first = peer.message()
            if first is None or first[0] != 0:
                break
            peers.append(peer)
            for other in peers:
                other.take(timeout=0)
    under_way(str(len(peers)))
    sit()


FULL = (
    f"[region.greedy]\nvectors = 8\nrelay = true\n{OPEN}[region.small]\nvectors = 1\n{OPEN}"
    '[device.disk]\ntype = "loopback"\n'
)


def renew(front: Frontend) -> None:
    """Give the device other descriptors for queue 0, over and over, as a guest does that masks its interrupts."""
    queue = front.queues[0]
    for _ in range(100):
        front.tell(FrontendRequest.SET_VRING_CALL, VringFd(0), [queue.call_fd])
        front.tell(FrontendRequest.SET_VRING_ERR, VringFd(0), [queue.call_fd])
        front.tell(FrontendRequest.SET_VRING_KICK, VringFd(0), [queue.kick_fd])
        front.request(queue, b"1234", room=4)


def test_a_user_that_fills_regions_leaves_descriptors_to_others(short_path: Path, started_by: Start) -> None:
    started_by("ulimit -n 600; exec")
    with watched(short_path, FULL) as site, Frontend.connect(str(site.daemon.socket("disk"))) as front:
        front.start(1)
        with Attack(fill_regions, *(str(site.daemon.socket(name)) for name in ("greedy", "small")), uid=NOBODY):
            renew(front)
            assert limits(site.daemon)["descriptors"][2] >= 2
            assert f"descriptors: uid {NOBODY} has" in site.daemon.log
        until(lambda: limits(site.daemon)["connections"][0] <= 4, "its connections to be given back")


def test_when_newcomers_are_refused_an_attached_vm_still_renews_its_descriptors(
    short_path: Path, started_by: Start
) -> None:
    """Even root, which has no share, comes to an end before what devices may need is gone."""
    started_by("ulimit -n 600; exec")
    with Daemon(short_path, FULL) as daemon, Frontend.connect(str(daemon.socket("disk"))) as front:
        front.start(1)
        with Attack(fill_regions, *(str(daemon.socket(name)) for name in ("greedy", "small"))):
            renew(front)
            with Frontend.connect(str(daemon.socket("disk"))):
                renew(front)
            used, limit, refused = limits(daemon)["descriptors"]
            assert limit - 4 <= used <= limit and refused >= 2
        until(lambda: limits(daemon)["connections"][0] == 1, "its connections to be given back")
        assert "raise LimitNOFILE=" in daemon.log


def test_descriptors_of_one_user_leave_some_for_others(short_path: Path, started_by: Start) -> None:
    started_by("ulimit -n 600; exec")
    config = f"[region.greedy]\nvectors = 8\n{OPEN}[region.other]\nvectors = 8\n"
    with watched(short_path, config) as site:
        with Attack(fill_regions, str(site.daemon.socket("greedy")), uid=NOBODY) as attack:
            assert int(attack.first) > 30
            with RawClient(str(site.daemon.socket("other"))) as peer:
                peer.greet(8)
            assert limits(site.daemon)["descriptors"][2] >= 1
            assert f"descriptors: uid {NOBODY} has" in site.daemon.log
        until(lambda: limits(site.daemon)["connections"][0] <= 4, "its connections to be given back")


# Descriptors in flight


def sit_idle(path: str, count: int) -> None:
    """Connect *count* times, and read nothing."""
    socks = []
    for _ in range(count):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        socks.append(sock)
    under_way()
    sit()


def test_connections_that_never_read_do_not_starve_another_region(short_path: Path, started_by: Start) -> None:
    require("setpriv", "util-linux")
    reads = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search"  # Python may be in a folder of root's
    as_nobody = f"exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups {reads} --"
    started_by(f"ulimit -n 1024; umask 022; {as_nobody}")
    config = f"[region.greedy]\nvectors = 8\n{OPEN}"
    with watched(short_path, config, owner=NOBODY) as site:
        assert os.stat(f"/proc/{site.daemon.pid}").st_uid == NOBODY
        with Attack(sit_idle, str(site.daemon.socket("greedy")), 400, uid=STRANGER):
            until(
                lambda: limits(site.daemon)["connections"][2] + limits(site.daemon)["descriptors"][2] > 100, "refusals"
            )
            used, limit, _ = limits(site.daemon)["in-flight"]
            assert 0 < used <= limit == 1024
            for _ in range(20):
                with RawClient(str(site.daemon.socket("beaten"))) as newcomer:
                    newcomer.greet(2)
        until(lambda: limits(site.daemon)["connections"][0] <= 4, "its connections to be given back")


# Connections


def test_a_region_that_one_user_fills_has_room_for_root(short_path: Path) -> None:
    config = f"[region.greedy]\nvectors = 1\nmax-peers = 40\n{OPEN}"
    with watched(short_path, config) as site:
        with Attack(fill_regions, str(site.daemon.socket("greedy")), uid=NOBODY) as attack:
            assert attack.first == "36"
            until(lambda: "limits.user-share" in site.daemon.log, "the refusal in the log")
            with contextlib.ExitStack() as stack:
                for _ in range(4):
                    stack.enter_context(RawClient(str(site.daemon.socket("greedy")))).greet(1)
        until(lambda: limits(site.daemon)["connections"][0] <= 4, "its connections to be given back")


def flood(path: str) -> None:
    """Connect over and over, but leave the processor to others."""
    os.nice(19)
    kept: list[socket.socket] = []
    for count in range(1 << 30):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        kept.append(sock)
        if len(kept) > 200:
            kept.pop(0).close()
        if count == 1000:
            under_way()


@pytest.mark.parametrize("target", ["region", "device"])
def test_a_flood_of_connections_stops_nobody(short_path: Path, target: str) -> None:
    kind = "vectors = 2\nmax-peers = 50\n" if target == "region" else 'type = "rng"\n'
    with watched(short_path, f"[{target}.greedy]\n{kind}{OPEN}") as site:
        with Attack(flood, str(site.daemon.socket("greedy")), uid=NOBODY):
            for _ in range(20):
                with RawClient(str(site.daemon.socket("beaten"))) as newcomer:
                    newcomer.greet(2)
        until(lambda: limits(site.daemon)["connections"][0] <= 4, "its connections to be given back")


# Lines of the log


def come_and_go(paths: list[str], count: int) -> None:
    """Attach to devices by turns, and leave each before the next."""
    for number in range(count):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(paths[number % len(paths)])
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                sock.recv(1)
    under_way()


def test_a_user_that_reconnects_in_a_loop_fills_no_log(short_path: Path) -> None:
    names = [f"greedy{number}" for number in range(8)]
    config = "[limits]\nlog-lines = 60\n" + "".join(f'[device.{name}]\ntype = "rng"\n{OPEN}' for name in names)
    with watched(short_path, config, log_level="info") as site:
        begun = time.monotonic()
        with Attack(come_and_go, [str(site.daemon.socket(name)) for name in names], 2000, uid=NOBODY):
            pass
        windows = math.ceil((time.monotonic() - begun) / 10) + 1
        told = re.findall(r"front-end (?:at|de)tached device=greedy\d", site.daemon.log)
        assert 60 <= len(told) <= 60 * windows
        until(lambda: f"uid {NOBODY}" in site.daemon.log.partition("kept back lines")[2], "what was kept back")
