# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Callers on D-Bus who may do nothing, and try to hold the daemon up all the same.

They are user nobody, on a bus that lets everybody in and lets everything pass, or on one with the system bus's policy.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.busctl import NAME, ROOT
from support.dbusclient import BusDaemon, Client
from support.heartbeat import Attack, Watched, under_way, watched

NOBODY = 65534
LARGE = 31 << 20
"""A body as large as dbus-daemon lets pass."""
BEATEN = f"{ROOT}/region/beaten"
REGION = f"{NAME}.Region"
LIBRARIES = ("dbus_fast", "dbus_next")
SERIALS = itertools.count(1000)


@contextmanager
def site(directory: Path, library: str, config: str = "") -> Iterator[Watched]:
    """Start two daemons, each on a bus of its own that lets everybody in."""
    with ExitStack() as stack:
        buses = {}
        for name in ("attacked", "other"):
            (place := directory / f"{name}-bus").mkdir()
            buses[name] = stack.enter_context(BusDaemon(place)).address
            place.chmod(0o755)
            (place / "bus").chmod(0o777)
        directory.chmod(0o755)
        environment = {"DOORBELLD_DBUS_LIBRARY": library}
        yield stack.enter_context(watched(directory, config, buses=buses, environment=environment, log_level="info"))


# What the attackers send


def padded(data: bytes, to: int = 8) -> bytes:
    """Fill up to an alignment."""
    return data + bytes(-len(data) % to)


def text(value: str) -> bytes:
    """Marshal a string or an object path, without what comes before it."""
    return struct.pack("<I", len(value)) + value.encode() + b"\0"


def header(path: str, interface: str, member: str, signature: str, size: int, serial: int, flags: int = 0) -> bytes:
    """Marshal a call to the daemon up to its body of *size* bytes."""
    fields = b""
    for code, kind, value in ((1, "o", path), (2, "s", interface), (3, "s", member), (6, "s", NAME)):
        if value:
            fields = padded(fields) + bytes([code, 1, ord(kind), 0]) + text(value)
    if signature:
        fields = padded(fields) + bytes([8, 1, ord("g"), 0, len(signature)]) + signature.encode() + b"\0"
    return padded(struct.pack("<4BIII", ord("l"), 1, flags, 1, size, serial, len(fields)) + fields)


def connect(address: str) -> tuple[socket.socket, Client]:
    """Connect to a bus: a socket to write on, and the client that says hello on it and reads."""
    client = Client(address)
    return client.connection.sock, client


def kind_of(client: Client, serial: int) -> str:
    """Give the last part of the name of the error that answers *serial*, or ""."""
    from support.dbusclient import ErrorReply

    try:
        client.receive(serial)
    except ErrorReply as error:
        return error.kind
    return ""


# A body of 31 MiB


def send_large(address: str, path: str, interface: str, member: str, signature: str, times: int) -> None:
    """Call with a body of empty strings, *times* times; print the kinds of the errors."""
    sock, client = connect(address)
    array = bytes(LARGE - 3)  # no padding after the last one
    body = struct.pack("<I", len(array)) + array
    under_way()
    kinds = []
    for _ in range(times):
        serial = next(SERIALS)
        sock.sendall(header(path, interface, member, signature, len(body), serial) + body)
        kinds.append(kind_of(client, serial))
    print(*kinds, flush=True)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("path", "interface", "member", "signature", "error"),
    [
        (BEATEN, REGION, "Attach", "as", "AccessDenied"),
    ],
)
def test_a_body_of_31_mib_is_not_even_kept(
    short_path: Path, library: str, path: str, interface: str, member: str, signature: str, error: str
) -> None:
    with (
        site(short_path, library) as attacked,
        Attack(send_large, attacked.daemon.bus, path, interface, member, signature, 2, uid=NOBODY) as attack,
    ):
        assert attack.line() == " ".join([error] * 2)
