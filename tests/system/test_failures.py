# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What docs/failures.md says of journald, watchdog, polkit, bus and descriptor store, under a real systemd."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from doorbelld.service.messages import MESSAGE_IDS
from support.busctl import CallFailed
from support.machine.container import Machine
from support.machine.service import UNIT, MachineBus, Service
from support.rawclient import RawClient

VECTORS = 4
ENTRIES = 4
"""Descriptors that a region has in the store besides one a peer: state, memory, listening socket, host peer."""
JOURNALD = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")


@contextlib.contextmanager
def drop_in(machine: Machine, lines: str) -> Iterator[None]:
    """Change doorbelld.service for a while."""
    file = machine.path(f"/run/systemd/system/{UNIT}.d/test.conf")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(lines)
    machine.systemctl("daemon-reload")
    try:
        yield
    finally:
        file.unlink()
        machine.systemctl("daemon-reload")


def said(what: str) -> str:
    """Give the match that finds an event in the journal."""
    return f"MESSAGE_ID={MESSAGE_IDS[what]}"


def come_and_go(service: Service, count: int) -> None:
    """Have *count* peers join and leave, each seen out by the next one's greeting."""
    for _ in range(count):
        with RawClient(str(service.socket())) as client:
            client.greet(VECTORS)


FILL = """
import socket
filling, sent = [], 1
while sent:  # a sender may have so much on its way and no more; the queue is full when a new one can't send at all
    filling.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    sent = 0
    try:
        while True:
            filling[-1].sendto(b"MESSAGE=in the way\\n", socket.MSG_DONTWAIT, "/run/systemd/journal/socket")
            sent += 1
    except BlockingIOError:
        pass
print("full")
"""


def test_a_journal_that_does_not_read_holds_up_nobody(service: Service) -> None:
    service.start()
    mark = service.machine.journal_end()
    journald = service.machine.show(JOURNALD[0], "MainPID")
    service.machine.run("kill", "-STOP", journald)
    try:
        assert service.machine.run("python3", "-c", FILL).stdout == "full\n"
        come_and_go(service, 3)
    finally:
        service.machine.run("kill", "-CONT", journald)
    service.machine.run("journalctl", "--sync")
    come_and_go(service, 3)
    lost = service.machine.await_journal("lost", said("log lines were lost"), after=mark)
    assert int(lost["DOORBELLD_COUNT"]) > 0


def test_stopped_journald_is_used_again_once_it_is_there(service: Service) -> None:
    service.start()
    pid = service.pid
    service.machine.systemctl("stop", *JOURNALD)
    try:
        with RawClient(str(service.socket())) as client:
            client.greet(VECTORS)
    finally:
        service.machine.systemctl("start", *JOURNALD)
    mark = service.machine.journal_end()
    with RawClient(str(service.socket())) as client:
        client.greet(VECTORS)
        service.machine.await_journal("joined", said("peer joined"), after=mark)
    assert service.pid == pid


def test_a_daemon_that_hangs_is_replaced_and_no_peer_notices(service: Service) -> None:
    with drop_in(service.machine, "[Service]\nWatchdogSec=1s\nTimeoutAbortSec=1s\n"), ExitStack() as stack:
        service.start()
        peers = [stack.enter_context(RawClient(str(service.socket())).greet(VECTORS)) for _ in range(3)]
        pid = service.pid
        service.machine.run("kill", "-STOP", str(pid))
        service.until_back(pid)
        assert service.show("NRestarts") == "1"
        newcomer = stack.enter_context(RawClient(str(service.socket())).greet(VECTORS))
        for peer in peers:
            while newcomer.id not in peer.doorbells:
                assert peer.message() is not None
            assert not peer.eof


def test_without_polkit_root_goes_on_and_others_may_look(service: Service) -> None:
    service.start()
    machine = service.machine
    stranger, permitted = MachineBus(machine, "stranger"), MachineBus(machine, "permitted")
    permitted.call("/region/demo", "Region", "Broadcast")
    mark = machine.journal_end()
    machine.systemctl("mask", "--runtime", "--now", "polkit.service")
    try:
        assert stranger.call("", "Manager", "ListRegions")
        for bus in (stranger, permitted):
            with pytest.raises(CallFailed, match="may look, but not notify while polkit is not there"):
                bus.call("/region/demo", "Region", "Broadcast")
        service.bus.call("/region/demo", "Region", "Broadcast")
        machine.await_journal("^polkit can't tell", f"_SYSTEMD_UNIT={UNIT}", after=mark)
    finally:
        machine.systemctl("unmask", "--runtime", "polkit.service")
        machine.systemctl("start", "polkit.service")
    permitted.call("/region/demo", "Region", "Broadcast")


def test_a_bus_that_is_restarted_is_joined_again_and_no_peer_notices(service: Service) -> None:
    service.start()
    with RawClient(str(service.socket())).greet(VECTORS) as peer:
        mark, pid = service.machine.journal_end(), service.pid
        service.machine.systemctl("restart", "dbus.service")
        service.machine.await_journal("bus again", said("on the message bus again"), after=mark)
        assert service.bus.call("", "Manager", "ListPeers", "s", "demo")
        assert service.pid == pid
        peer.take()
        assert not peer.eof


def test_peers_beyond_the_store_are_served_and_lost_at_a_restart(service: Service) -> None:
    room = ENTRIES + 3
    lines = f"[Service]\nFileDescriptorStoreMax={room}\nEnvironment=DOORBELLD_FDSTORE_MAX={room}\n"
    with drop_in(service.machine, lines), ExitStack() as stack:
        service.start()
        mark = service.machine.journal_end()
        peers = [stack.enter_context(RawClient(str(service.socket())).greet(VECTORS)) for _ in range(5)]
        service.machine.await_journal(
            "can be kept", said("not everything of a region can be kept over a restart"), after=mark
        )
        assert service.show("NFileDescriptorStore") == str(room)
        pid = service.pid
        service.machine.run("kill", "-KILL", str(pid))
        service.until_back(pid)
        for peer in peers[3:]:
            peer.until_eof()
        for peer in peers[:3]:
            while set(peer.doorbells) != {0, 1, 2, 65535}:
                assert peer.message() is not None
        assert service.show("NFileDescriptorStore") == str(room)
