# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host tells those who listen: a region's own events, and these."""

from __future__ import annotations

from dataclasses import dataclass

from ..ivshmem.events import PeerAdded, PeerRefused, PeerRemoved, RegionEvent, Rung


@dataclass(frozen=True, slots=True)
class RegionAdded(RegionEvent):
    """*region* serves now."""


@dataclass(frozen=True, slots=True)
class RegionRemoved(RegionEvent):
    """*region* is gone."""


__all__ = ["PeerAdded", "PeerRefused", "PeerRemoved", "RegionAdded", "RegionEvent", "RegionRemoved", "Rung"]
