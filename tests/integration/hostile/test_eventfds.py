# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Eventfds that make the daemon wait which writes to them, or closes them: everybody else is served as before."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import select
import signal
import socket
import struct
import time
from array import array
from pathlib import Path

import pytest
from doorbelld.fds import native
from support.dbusclient import Client, ErrorReply
from support.heartbeat import Attack, Watched, under_way, watched
from support.needs import require
from support.rawclient import RawClient

VECTORS = 512
FULL = struct.pack("=Q", (1 << 64) - 2)
ROUNDS = 100
NOBODY = 65534
WATCHES = 900_000
"""How many epoll instances and descriptors watch one eventfd: its last close takes that many steps."""
SECONDS = 4.0
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
CONFIG = """
[region.attacked]
mode = "0666"
[device.attacked-rng]
type = "rng"
mode = "0666"
"""


def fill_while_they_are_rung(path: str) -> None:
    """Win the race between a look at a doorbell and the write to it once, and meanwhile fill all others."""
    with RawClient(path, keep=True) as peer:
        peer.greet(VECTORS)
        assert peer.id is not None
        first, *others = peer.fds[peer.id]
        toggled = others[31:63]

        def fill(bells: list[int]) -> None:
            for bell in bells:  # where a ring came in between, it is not us who shall wait
                signal.signal(signal.SIGALRM, lambda *_: native.drain(bell))  # noqa: B023
                os.write(bell, FULL)

        every = select.poll()
        for bell in others:
            every.register(bell, select.POLLIN)
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        under_way(str(peer.id))
        while True:
            for bell in (first, *others):
                os.set_blocking(bell, False)
                with contextlib.suppress(BlockingIOError):
                    os.read(bell, 8)
            for bell in others:
                os.set_blocking(bell, True)
            looks = select.poll()
            looks.register(first, select.POLLIN)
            while not looks.poll(0):
                fill(toggled)
                for bell in toggled:
                    native.drain(bell)
            busy = {bell for bell, _ in every.poll(0)}
            fill([bell for bell in others if bell not in busy])
            os.read(first, 8)
            looks.poll()  # the second call of the test: the first one is over


def test_doorbells_that_fill_while_they_are_rung_hold_up_nobody(short_path: Path) -> None:
    require("dbus-daemon", "dbus-daemon")
    config = f"[region.demo]\nvectors = {VECTORS}\nmany-vectors = true\n"
    with (
        watched(short_path, config) as site,
        Attack(fill_while_they_are_rung, str(site.daemon.socket())) as attack,
        Client(site.daemon.bus) as client,
    ):
        for _ in range(2 * ROUNDS):
            try:
                client.call("/region/demo", "Region", "NotifyPeer", "q", int(attack.first))
            except ErrorReply as error:
                assert "not all doorbells were rung" in str(error)


def watch_often(bell: int) -> list[select.epoll]:
    """Have *bell* watched `WATCHES` times, and keep no descriptor of it but that."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    copies = [os.dup(bell) for _ in range(min(limit // 2, 15_000))]
    watching = [select.epoll() for _ in range(WATCHES // len(copies))]
    for poll, copy in itertools.product(watching, copies):
        poll.register(copy, 0)
    for copy in copies:
        os.close(copy)
    return watching


def give_to_a_device(path: str, request: int) -> None:
    """Have a device hold an eventfd that is watched often, as the last one, and let go of it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        message = struct.pack("=IIIQ", request, 1, 8, 0)
        while True:
            bell = os.eventfd(0)
            kept = watch_often(bell)
            sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [bell]))])
            time.sleep(0.1)
            os.close(bell)
            under_way()
            other = os.eventfd(0)
            sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [other]))])
            os.close(other)
            time.sleep(0.5)
            del kept


def watch_own_doorbells(path: str) -> None:
    """Join a region, watch a doorbell of one's own often, and leave, so that the daemon has it last."""
    while True:
        with RawClient(path, keep=True) as peer:
            peer.greet(4)
            assert peer.id is not None
            first, *others = peer.fds.pop(peer.id)
            kept = watch_often(first)
            for bell in (first, *others):
                os.close(bell)
        under_way()
        time.sleep(0.5)
        del kept


def wait(site: Watched) -> None:
    """Let the attack go on."""
    time.sleep(SECONDS)
    assert site.daemon.alive


@pytest.mark.parametrize("request_", [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR])
def test_eventfd_that_takes_long_to_close_delays_nobody(short_path: Path, request_: int) -> None:
    require("dbus-daemon", "dbus-daemon")
    short_path.chmod(0o755)
    with (
        watched(short_path, CONFIG) as site,
        Attack(give_to_a_device, str(site.daemon.socket("attacked-rng")), request_, uid=NOBODY),
    ):
        wait(site)


def test_doorbell_that_takes_long_to_close_delays_nobody(short_path: Path) -> None:
    require("dbus-daemon", "dbus-daemon")
    short_path.chmod(0o755)
    with (
        watched(short_path, CONFIG) as site,
        Attack(watch_own_doorbells, str(site.daemon.socket("attacked")), uid=NOBODY),
    ):
        wait(site)
