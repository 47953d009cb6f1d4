# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors that can't be closed in a moment, sent to the daemon wherever it receives any: nobody else notices."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from pathlib import Path

from support.daemon import Daemon
from support.dbusclient import until
from support.heartbeat import Attack, under_way, watched

NOBODY = 65534
LINGER = 20
"""Seconds for which a close waits: longer than a beat may take, shorter than a test."""


def lingering() -> socket.socket:
    """Give a TCP socket whose last close waits: its peer never reads, and its buffer is full."""
    listening = socket.create_server(("127.0.0.1", 0))
    mine = socket.create_connection(listening.getsockname())
    peer, _ = listening.accept()
    KEPT.append(peer)
    mine.setblocking(False)
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER))
    try:
        while True:
            mine.send(bytes(1 << 16))
    except BlockingIOError:
        return mine


KEPT: list[socket.socket] = []
"""What must stay open while an attack goes on."""


def linger_on_bus(address: str) -> None:
    """Send lingering sockets with calls on the bus at *address*."""
    from jeepney import DBusAddress, new_method_call
    from jeepney.io.blocking import open_dbus_connection
    from support.busctl import NAME, ROOT

    connection = open_dbus_connection(address, enable_fds=True)
    root = DBusAddress(ROOT, NAME, "org.freedesktop.DBus.Peer")
    for _ in range(4):
        mine = lingering()
        connection.send(new_method_call(root, "Ping", "h", (mine,)), serial=next(connection.outgoing_serial))
        mine.close()
    under_way()
    time.sleep(LINGER)


def test_lingering_socket_in_a_bus_call_delays_nobody(short_path: Path) -> None:
    with watched(short_path) as site, Attack(linger_on_bus, site.daemon.bus, uid=None):
        time.sleep(1)
