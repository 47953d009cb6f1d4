# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host tells those who listen: a region's own events, and these."""

from __future__ import annotations

from dataclasses import dataclass

from ..ivshmem.events import PeerAdded, PeerRefused, PeerRemoved, RegionChanged, RegionEvent, Rung, Unkept


@dataclass(frozen=True, slots=True)
class RegionAdded(RegionEvent):
    """*region* serves now; again, if it was *revived* after a restart."""

    revived: bool = False


@dataclass(frozen=True, slots=True)
class RegionRemoved(RegionEvent):
    """*region* is gone."""


__all__ = [
    "PeerAdded",
    "PeerRefused",
    "PeerRemoved",
    "RegionAdded",
    "RegionChanged",
    "RegionEvent",
    "RegionRemoved",
    "Rung",
    "Unkept",
]
