# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells what happens in regions in lines that a person reads. What guests can cause at will is rate-limited."""

from __future__ import annotations

import structlog

from ..host.events import (
    PeerAdded,
    PeerRefused,
    PeerRemoved,
    RegionAdded,
    RegionChanged,
    RegionEvent,
    RegionRemoved,
    Unkept,
)
from ..ivshmem.revival import LOST
from ..log import Later, Limiter

log = structlog.get_logger()


class Chronicle:
    """A listener of the host that logs.

    With *later* (the event loop's ``call_later``) what was kept back is told even if nothing more happens.
    """

    def __init__(self, later: Later | None = None) -> None:
        self._limited = Limiter(later=later)

    def hear(self, event: RegionEvent) -> None:
        """Log *event*, if it is worth a line."""
        region = event.region.name
        match event:
            case RegionAdded(region=there, revived=True):
                log.info("region restored", region=region, peers=len(there.peers))
            case RegionAdded(region=there):
                log.info("region serves", region=region, socket=there.spec.socket, size=there.spec.size)
            case RegionChanged():
                log.info("region changed", region=region)
            case RegionRemoved():
                log.info("region removed", region=region)
            case PeerAdded(peer=peer):
                who = peer.who
                details = {"vm": who.vm_name or None, "pid": who.pid, "uid": who.uid, "unit": who.unit}
                known = {key: value for key, value in details.items() if value not in (None, "")}
                self._limited(log.info, f"{region}: joins", "peer joined", region=region, peer=peer.id, **known)
            case PeerRemoved(peer=peer, reason=reason) if reason == LOST:
                text = "connection ended while the daemon was away"
                self._limited(log.info, f"{region}: leaves", text, region=region, peer=peer.id)
            case PeerRemoved(peer=peer, reason=reason):
                self._limited(log.info, f"{region}: leaves", "peer left", region=region, peer=peer.id, reason=reason)
            case PeerRefused(reason=reason):
                self._limited(log.warning, f"{region}: refusals", "connection refused", region=region, reason=reason)
            case Unkept(reason=reason):
                text = "not everything of a region can be kept over a restart"
                self._limited(log.warning, f"{region}: unkept", text, region=region, reason=reason)
