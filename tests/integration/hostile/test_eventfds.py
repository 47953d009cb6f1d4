# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that make the daemon's writes to their doorbells wait: everybody else is served as before."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
from pathlib import Path

from doorbelld.fds import native
from support.dbusclient import Client, ErrorReply
from support.heartbeat import Attack, under_way, watched
from support.needs import require
from support.rawclient import RawClient

VECTORS = 512
FULL = struct.pack("=Q", (1 << 64) - 2)
ROUNDS = 100


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
