# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host tells those who listen: the events of regions and devices themselves, and their coming and going."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..ivshmem.events import PeerAdded, PeerRefused, PeerRemoved, RegionChanged, RegionEvent, Rung, Unkept
from ..vhost.events import (
    ConfigChanged,
    DeviceChanged,
    DeviceEvent,
    FrontendAttached,
    FrontendDetached,
    FrontendRefused,
    Negotiated,
    QueueChanged,
    RequestRefused,
    StateChanged,
)

HostEvent: TypeAlias = RegionEvent | DeviceEvent


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


__all__ = [
    "ConfigChanged",
    "DeviceAdded",
    "DeviceChanged",
    "DeviceEvent",
    "DeviceRemoved",
    "FrontendAttached",
    "FrontendDetached",
    "FrontendRefused",
    "HostEvent",
    "Negotiated",
    "PeerAdded",
    "PeerRefused",
    "PeerRemoved",
    "QueueChanged",
    "RegionAdded",
    "RegionChanged",
    "RegionEvent",
    "RegionRemoved",
    "RequestRefused",
    "Rung",
    "StateChanged",
    "Unkept",
]
