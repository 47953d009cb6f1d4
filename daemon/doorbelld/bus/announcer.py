# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Turns what happens in the model into D-Bus signals.

A `Rung` is sent at once: somebody waits for it. Comings and goings are sent in order, a few milliseconds' worth per
loop turn, so that a storm of joins does not hold up the greetings that caused it; `PropertiesChanged` for a count is
sent once per turn, however often the count changed. While the bus takes nothing, doorbells of host peers would be the
one thing that could grow without bound: their sums are kept here and sent when it takes something again.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from ..host.events import PeerAdded, PeerRemoved, RegionAdded, RegionChanged, RegionEvent, RegionRemoved, Rung
from . import paths
from .library import Variant
from .names import OBJECT_MANAGER, PEER, PROPERTIES, REGION, ROOT
from .objects import Tree
from .router import Router

TURN_SECONDS = 0.002


class Announcer:
    """Listens to the host (`hear`) and sends through *router*."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tree: Tree, router: Router) -> None:
        self._loop = loop
        self._tree = tree
        self._router = router
        self._waiting: deque[RegionEvent] = deque()
        self._counts: dict[str, int] = {}
        self._rings: Counter[tuple[str, int]] = Counter()
        self._pressed = False
        self._turn: asyncio.Handle | None = None

    def hear(self, event: RegionEvent) -> None:
        """Take an event of the model."""
        path = paths.region(event.region.name)
        match event:
            case Rung(vector=vector, count=count):
                if self._pressed:
                    self._rings[path, vector] += count
                else:
                    self._ring(path, vector, count)
                return
            case PeerRemoved(peer=peer):
                self._tree.drop(paths.peer(event.region.name, peer.id))
            case RegionRemoved():
                self._tree.drop_region(path)
        self._waiting.append(event)
        if self._turn is None:
            self._turn = self._loop.call_soon(self._run)

    def press(self, pressed: bool) -> None:
        """Learn whether the bus is slow to take what we write."""
        self._pressed = pressed
        if not pressed:
            rings, self._rings = self._rings, Counter()
            for (path, vector), count in rings.items():
                self._ring(path, vector, count)

    def _ring(self, path: str, vector: int, count: int) -> None:
        self._router.signal(path, REGION, "Rung", "qt", [vector, min(count, (1 << 64) - 1)])

    def _run(self) -> None:
        self._turn = None
        deadline = self._loop.time() + TURN_SECONDS
        while self._waiting:
            self._announce(self._waiting.popleft())
            if self._loop.time() > deadline:
                break
        counts, self._counts = self._counts, {}
        for path, count in counts.items():
            changed = {"PeerCount": Variant("u", count)}
            self._router.signal(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", [REGION, changed, []])
        if self._waiting:
            self._turn = self._loop.call_soon(self._run)

    def _announce(self, event: RegionEvent) -> None:
        region = paths.region(event.region.name)
        match event:
            case RegionAdded():
                self._added(region)
            case RegionRemoved():
                self._counts.pop(region, None)
                self._removed(region, REGION)
            case RegionChanged():
                if (view := self._tree.find(region)) is not None:
                    properties = view.interface.properties.items()
                    changed = {name: view.get(name) for name, declared in properties if declared.emits == "true"}
                    self._router.signal(region, PROPERTIES, "PropertiesChanged", "sa{sv}as", [REGION, changed, []])
            case PeerAdded(peer=peer):
                path = paths.peer(event.region.name, peer.id)
                self._added(path)
                self._router.signal(region, REGION, "PeerAdded", "qo", [peer.id, path])
                self._counts[region] = len(event.region.peers)
            case PeerRemoved(peer=peer, reason=reason):
                self._router.signal(region, REGION, "PeerRemoved", "qs", [peer.id, reason])
                self._removed(paths.peer(event.region.name, peer.id), PEER)
                self._counts[region] = len(event.region.peers)

    def _added(self, path: str) -> None:
        if (view := self._tree.find(path)) is not None:  # else it is gone again already
            self._router.signal(
                ROOT, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", [path, self._router.describe(view)]
            )

    def _removed(self, path: str, interface: str) -> None:
        self._router.signal(ROOT, OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, [interface]])
