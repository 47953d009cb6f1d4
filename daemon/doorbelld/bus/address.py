# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a message bus is: ``system``, ``session``, or an address as D-Bus writes it."""

from __future__ import annotations

import os
import string
import urllib.parse

from ..errors import BusUnavailable

SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
_PLAIN = frozenset(f"-_/.{string.ascii_letters}{string.digits}")


def of_socket(path: str) -> str:
    """Write the address of the bus that listens at *path* (D-Bus Specification, "Server Addresses")."""
    return "unix:path=" + "".join(
        chr(byte) if chr(byte) in _PLAIN else f"%{byte:02x}" for byte in path.encode(errors="surrogateescape")
    )


def socket_of(address: str) -> str:
    """Give the path of the socket that *address* names; empty if it names none, or more than one place."""
    transport, _, values = address.partition(":")
    path = dict(value.partition("=")[::2] for value in values.split(",")).get("path", "")
    return urllib.parse.unquote(path, errors="surrogateescape") if transport == "unix" and ";" not in values else ""


def resolve(bus: str) -> str:
    """Turn the word of a ``--bus`` flag into an address.

    Raises:
        BusUnavailable: no session bus, or a word that is none.
    """
    if bus == "system":
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
    if bus == "session":
        if address := os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
            return address
        socket = os.path.join(os.environ.get("XDG_RUNTIME_DIR", ""), "bus")
        if os.path.isabs(socket) and os.path.exists(socket):
            return of_socket(socket)
        raise BusUnavailable("no session bus: DBUS_SESSION_BUS_ADDRESS is not set; use --bus private")
    if ":" in bus:
        return bus
    raise BusUnavailable(f'"{bus}" is no bus; use system, session, private or an address such as unix:path=/run/bus')
