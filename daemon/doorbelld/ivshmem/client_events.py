# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a client of the daemon tells those who listen: typed, immutable, in the order in which it happened.

A flat device (`hostclient.HostFlat`) is a client too, and tells the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .hostclient import HostClient
    from .link import ClientState


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """Something happened to *client*."""

    client: HostClient


@dataclass(frozen=True, slots=True)
class ClientStateChanged(ClientEvent):
    """*client* went from one state to another, or has another reason to be in it."""

    old: ClientState
    new: ClientState


@dataclass(frozen=True, slots=True)
class ClientPeerAdded(ClientEvent):
    """The server told of another peer; its doorbells come one by one, and the first is there."""

    peer_id: int


@dataclass(frozen=True, slots=True)
class ClientPeerRemoved(ClientEvent):
    """A peer left, or the connection to the server ended."""

    peer_id: int


@dataclass(frozen=True, slots=True)
class ClientRung(ClientEvent):
    """Our *vector* was rung *count* times since the last such event; of a flat device: its line was pulsed."""

    vector: int
    count: int


@dataclass(frozen=True, slots=True)
class ClientUnkept(ClientEvent):
    """*client* would not survive a restart of the daemon, for *reason*."""

    reason: str


@dataclass(frozen=True, slots=True)
class ClientChanged(ClientEvent):
    """*client* goes by another spec now."""
