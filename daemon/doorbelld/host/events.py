# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host tells those who listen: the events of what it has themselves, and its coming and going.

Flat devices are clients here: what happens to a `HostFlat` is a `ClientEvent` too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..ivshmem.client_events import (
    ClientChanged,
    ClientEvent,
    ClientPeerAdded,
    ClientPeerRemoved,
    ClientRung,
    ClientStateChanged,
    ClientUnkept,
)
from ..ivshmem.events import (
    AbsentGivenUp,
    MemoryCleared,
    PeerAdded,
    PeerRefused,
    PeerRemoved,
    RegionChanged,
    RegionEvent,
    Rung,
    Unkept,
)
from ..vhost.events import (
    CodeFailed,
    ConfigChanged,
    DeviceChanged,
    DeviceEvent,
    ErrorChanged,
    FaultChanged,
    FrontendAttached,
    FrontendDetached,
    FrontendRefused,
    FrontendSilent,
    Negotiated,
    QueueChanged,
    RequestRefused,
    StateChanged,
)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The configuration was read again, and these *changes* (action, kind and name) were made for it."""

    changes: tuple[tuple[str, str, str], ...]


HostEvent: TypeAlias = RegionEvent | DeviceEvent | ClientEvent | Reloaded


@dataclass(frozen=True, slots=True)
class RegionAdded(RegionEvent):
    """*region* serves now; again, if it was *revived* after a restart."""

    revived: bool = False


@dataclass(frozen=True, slots=True)
class RegionRemoved(RegionEvent):
    """*region* is gone."""


@dataclass(frozen=True, slots=True)
class DeviceAdded(DeviceEvent):
    """*device* serves now."""


@dataclass(frozen=True, slots=True)
class DeviceRemoved(DeviceEvent):
    """*device* is gone."""


@dataclass(frozen=True, slots=True)
class ClientAdded(ClientEvent):
    """*client* looks for its server now; it goes on with it, if it was *revived* after a restart."""

    revived: bool = False


@dataclass(frozen=True, slots=True)
class ClientRemoved(ClientEvent):
    """*client* is gone."""


__all__ = [
    "AbsentGivenUp",
    "ClientAdded",
    "ClientChanged",
    "ClientEvent",
    "ClientPeerAdded",
    "ClientPeerRemoved",
    "ClientRemoved",
    "ClientRung",
    "ClientStateChanged",
    "ClientUnkept",
    "CodeFailed",
    "ConfigChanged",
    "DeviceAdded",
    "DeviceChanged",
    "DeviceEvent",
    "DeviceRemoved",
    "ErrorChanged",
    "FaultChanged",
    "FrontendAttached",
    "FrontendDetached",
    "FrontendRefused",
    "FrontendSilent",
    "HostEvent",
    "MemoryCleared",
    "Negotiated",
    "PeerAdded",
    "PeerRefused",
    "PeerRemoved",
    "QueueChanged",
    "RegionAdded",
    "RegionChanged",
    "RegionEvent",
    "RegionRemoved",
    "Reloaded",
    "RequestRefused",
    "Rung",
    "StateChanged",
    "Unkept",
]
