# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a region tells those who listen: typed, immutable, in the order in which it happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .absent import AbsentPeer
    from .peer import Peer
    from .region import Region


@dataclass(frozen=True, slots=True)
class RegionEvent:
    """Something happened in *region*."""

    region: Region


@dataclass(frozen=True, slots=True)
class PeerAdded(RegionEvent):
    """*peer* connected and is being greeted."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class PeerRemoved(RegionEvent):
    """*peer* is gone, for *reason*."""

    peer: Peer
    reason: str


@dataclass(frozen=True, slots=True)
class AbsentGivenUp(RegionEvent):
    """The ID of an absent peer is kept for it no longer, for *reason*; those who remember it are told its leave."""

    absent: AbsentPeer
    reason: str


@dataclass(frozen=True, slots=True)
class MemoryCleared(RegionEvent):
    """The shared memory is all zero now; or it could not be cleared, for *failure*."""

    failure: str = ""


@dataclass(frozen=True, slots=True)
class PeerRefused(RegionEvent):
    """Somebody connected and was turned away, for *reason*."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rung(RegionEvent):
    """The host peer's *vector* was rung *count* times since the last such event."""

    vector: int
    count: int


@dataclass(frozen=True, slots=True)
class Unkept(RegionEvent):
    """A peer, or the region, would not survive a restart of the daemon, for *reason*."""

    reason: str


@dataclass(frozen=True, slots=True)
class RegionChanged(RegionEvent):
    """*region* goes by another spec now."""
