# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Object paths: how names become elements of a path, and back.

Bytes outside [A-Za-z0-9] become ``_xx`` (hex), and so does a leading digit of a name; an empty name is ``_``.
"""

from __future__ import annotations

import re

from .names import ROOT

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_DIGITS = frozenset(b"0123456789")
_ESCAPE = re.compile(r"_([0-9a-f]{2})")


def escape(name: str) -> str:
    """Make a path element of *name*."""
    raw = name.encode()
    return (
        "".join(
            chr(byte) if byte in _PLAIN and not (index == 0 and byte in _DIGITS) else f"_{byte:02x}"
            for index, byte in enumerate(raw)
        )
        or "_"
    )


def unescape(element: str) -> str:
    """Undo `escape`."""
    if element == "_":
        return ""
    raw = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), element)
    return raw.encode("latin-1").decode(errors="replace")


def region(name: str) -> str:
    """Give the path of a region."""
    return f"{ROOT}/region/{escape(name)}"


def peer(region_name: str, peer_id: int) -> str:
    """Give the path of a peer."""
    return f"{region(region_name)}/peer/{peer_id}"


def device(name: str) -> str:
    """Give the path of a vhost-user device."""
    return f"{ROOT}/device/{escape(name)}"


def queue(device_name: str, index: int) -> str:
    """Give the path of a queue."""
    return f"{device(device_name)}/queue/{index}"


def client(name: str) -> str:
    """Give the path of a client."""
    return f"{ROOT}/client/{escape(name)}"


def client_peer(client_name: str, peer_id: int) -> str:
    """Give the path of a peer in the region that a client joined."""
    return f"{client(client_name)}/peer/{peer_id}"


def flat(name: str) -> str:
    """Give the path of a flat device."""
    return f"{ROOT}/flat/{escape(name)}"
