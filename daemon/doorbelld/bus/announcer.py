# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Turns what happens in the model into D-Bus signals.

A `Rung` is sent at once: somebody waits for it. Comings and goings are sent in order, a few milliseconds' worth per
loop turn, so that a storm of joins does not hold up the greetings that caused it. Properties that changed are told
together at the end of a turn, with the values that they have then, however often they changed. Peers of our clients
come and go as fast as another server says; one that is gone before its coming was told is not told of at all, so there
is never more to tell than there are peers.

While the bus takes nothing, rings of host peers, clients and flat devices, and what front-ends negotiate, would be what
could grow without bound: sums of the ones and the names of changed properties are kept here, and sent when it takes
something again.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter, deque
from collections.abc import Callable, Collection

from ..host.events import (
    ClientAdded,
    ClientChanged,
    ClientEvent,
    ClientPeerAdded,
    ClientPeerRemoved,
    ClientRemoved,
    ClientRung,
    ClientStateChanged,
    ConfigChanged,
    DeviceAdded,
    DeviceChanged,
    DeviceEvent,
    DeviceRemoved,
    ErrorChanged,
    FaultChanged,
    FrontendAttached,
    FrontendDetached,
    HostEvent,
    Negotiated,
    PeerAdded,
    PeerRemoved,
    RegionAdded,
    RegionChanged,
    RegionRemoved,
    Reloaded,
    Rung,
    StateChanged,
)
from ..ivshmem.hostclient import HostClient, HostFlat
from . import interfaces, paths
from .library import text
from .names import CLIENT, DEVICE, FLAT, MANAGER, OBJECT_MANAGER, PEER, PROPERTIES, QUEUE, REGION, ROOT
from .router import Router
from .tree import Tree, device_paths

TURN_SECONDS = 0.002

_STATE = ("State", "Reason", "Fault")
_FRONTEND = ("FrontendPid", "FrontendUid", "FrontendGid", "FrontendVmName", "FrontendUnit", "FrontendSince")
_NEGOTIATED = (
    "AckedFeatures",
    "AckedFeatureNames",
    "AckedProtocolFeatures",
    "AckedProtocolFeatureNames",
    "MemoryRegions",
    "ConfigSpace",
)


_JOINED = ("State", "Reason", "Id", "IvPosition", "Size", "MemorySize", "PeerCount", "Since")
"""What another state of a client or a flat device changes."""


def _place(client: HostClient) -> tuple[str, str]:
    """Give path and interface of a client or a flat device."""
    if isinstance(client, HostFlat):
        return paths.flat(client.name), FLAT
    return paths.client(client.name), CLIENT


class Announcer:
    """Listens to the host (`hear`) and sends through *router*."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tree: Tree, router: Router) -> None:
        self._loop = loop
        self._tree = tree
        self._router = router
        self._waiting: deque[Callable[[], None]] = deque()
        self._untold: dict[tuple[HostClient, int], ClientPeerAdded] = {}
        """Peers of clients and flat devices, by ID, whose coming waits to be told."""
        self._changed: dict[str, set[str]] = {}
        """Names of properties that changed, by object."""
        self._rings: Counter[tuple[str, str, str, int]] = Counter()
        self._pressed = False
        self._turn: asyncio.Handle | None = None

    def hear(self, event: HostEvent) -> None:
        """Take an event of the model."""
        match event:
            case Reloaded(changes=changes):  # at once, so that it comes before the reply to who asked for it
                self._router.signal(ROOT, MANAGER, "Reloaded", "a(sss)", [[list(change) for change in changes]])
                return
            case Rung(region=region, vector=vector, count=count):
                self._ring((paths.region(region.name), REGION, "Rung", vector), count)
                return
            case ClientRung(client=client, vector=vector, count=count):
                path, interface = _place(client)
                self._ring((path, interface, "Interrupt" if interface == FLAT else "Rung", vector), count)
                return
            case PeerRemoved(peer=peer):
                self._tree.drop(paths.peer(event.region.name, peer.id))
            case RegionRemoved():
                self._tree.drop_tree(paths.region(event.region.name))
            case ClientPeerAdded(client=client, peer_id=peer_id):
                self._untold[client, peer_id] = event
            case ClientPeerRemoved(client=client, peer_id=peer_id):
                self._tree.drop(paths.client_peer(client.name, peer_id))
                if self._untold.pop((client, peer_id), None) is not None:
                    return
            case ClientAdded() | ClientRemoved():
                self._tree.drop_tree(_place(event.client)[0])
            case DeviceAdded() | DeviceRemoved():  # another one may have had the name, and gone without a word
                self._tree.drop_tree(paths.device(event.device.name))
        if isinstance(event, DeviceEvent):
            self._hear_device(event)
        else:
            self._waiting.append(functools.partial(self._announce, event))
        self._go_on()

    def press(self, pressed: bool) -> None:
        """Learn whether the bus is slow to take what we write."""
        self._pressed = pressed
        if not pressed:
            rings, self._rings = self._rings, Counter()
            for where, count in rings.items():
                self._ring(where, count)
            self._go_on()

    def _ring(self, where: tuple[str, str, str, int], count: int) -> None:
        if self._pressed:
            self._rings[where] += count
        else:
            path, interface, member, vector = where
            self._router.signal(path, interface, member, "qt", [vector, min(count, (1 << 64) - 1)])

    def _go_on(self) -> None:
        if self._turn is None and (self._waiting or self._changed):
            self._turn = self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._turn = None
        deadline = self._loop.time() + TURN_SECONDS
        while self._waiting:
            self._waiting.popleft()()
            if self._loop.time() > deadline:
                break
        if not self._pressed:
            changed, self._changed = self._changed, {}
            for path, names in changed.items():
                self._tell(path, names)
        if self._waiting:
            self._go_on()

    def _tell(self, path: str, names: Collection[str]) -> None:
        if (view := self._tree.find(path)) is not None:  # else it is gone, which is told, or will be
            body = [view.interface.name, *view.changed(names)]
            self._router.signal(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", body)

    def _change(self, path: str, names: Collection[str]) -> None:
        self._changed.setdefault(path, set()).update(names)

    # Regions

    def _announce(self, event: HostEvent) -> None:
        match event:
            case RegionAdded(region=region):
                self._added(paths.region(region.name))
            case RegionRemoved(region=region):
                self._removed(paths.region(region.name), REGION)
            case RegionChanged(region=region):
                self._change(paths.region(region.name), interfaces.load(REGION).properties)
            case PeerAdded(region=region, peer=peer):
                path = paths.peer(region.name, peer.id)
                self._added(path)
                self._router.signal(paths.region(region.name), REGION, "PeerAdded", "qo", [peer.id, path])
                self._change(paths.region(region.name), ("PeerCount",))
            case PeerRemoved(region=region, peer=peer, reason=reason):
                self._router.signal(paths.region(region.name), REGION, "PeerRemoved", "qs", [peer.id, reason])
                self._removed(paths.peer(region.name, peer.id), PEER)
                self._change(paths.region(region.name), ("PeerCount",))
            case ClientEvent():
                self._announce_client(event)

    # Clients and flat devices

    def _announce_client(self, event: ClientEvent) -> None:
        path, interface = _place(event.client)
        match event:
            case ClientAdded():
                self._added(path)
            case ClientRemoved():
                self._removed(path, interface)
            case ClientStateChanged():
                self._change(path, _JOINED)
            case ClientChanged():
                self._change(path, interfaces.load(interface).properties)
            case ClientPeerAdded() | ClientPeerRemoved():
                if isinstance(event, ClientPeerAdded) and not self._to_tell(event):
                    return
                if interface == CLIENT:
                    self._announce_remote(event, path)
                self._change(path, ("PeerCount",))

    def _to_tell(self, event: ClientPeerAdded) -> bool:
        """Tell whether who came is there still; if so, it is being told of now."""
        waiting = self._untold.get((event.client, event.peer_id)) is event
        if waiting:
            del self._untold[event.client, event.peer_id]
        return waiting

    def _announce_remote(self, event: ClientPeerAdded | ClientPeerRemoved, path: str) -> None:
        peer = paths.client_peer(event.client.name, event.peer_id)
        if isinstance(event, ClientPeerAdded):
            self._added(peer)
            self._router.signal(path, CLIENT, "PeerAdded", "qo", [event.peer_id, peer])
        else:
            self._router.signal(path, CLIENT, "PeerRemoved", "q", [event.peer_id])
            self._removed(peer, PEER)

    # Devices

    def _hear_device(self, event: DeviceEvent) -> None:
        """Have *event* announced, in pieces if it is about many objects."""
        match event:
            case DeviceAdded(device=device):
                self._waiting += [functools.partial(self._added, path) for path in device_paths(device)]
            case DeviceRemoved(device=device):
                path, *queues = device_paths(device)
                self._waiting += [functools.partial(self._removed, queue, QUEUE) for queue in queues]
                self._waiting.append(functools.partial(self._removed, path, DEVICE))
            case (
                StateChanged()
                | FrontendAttached()
                | FrontendDetached()
                | FaultChanged()
                | Negotiated()
                | ConfigChanged()
                | ErrorChanged()
                | DeviceChanged()
            ):  # not QueueChanged: queues don't tell of their changes
                self._waiting.append(functools.partial(self._announce_device, event))

    def _announce_device(self, event: DeviceEvent) -> None:
        path = paths.device(event.device.name)
        match event:
            case StateChanged() | FaultChanged():
                self._change(path, _STATE)
            case FrontendAttached(who=who):
                self._router.signal(path, DEVICE, "FrontendAttached", "u", [who.pid])
                self._change(path, (*_STATE, *_FRONTEND))
            case FrontendDetached(reason=reason, broken=broken):
                self._router.signal(path, DEVICE, "FrontendDetached", "sb", [text(reason), broken])
                self._change(path, (*_STATE, *_FRONTEND, *_NEGOTIATED))
            case Negotiated():
                self._change(path, _NEGOTIATED)
            case ConfigChanged():
                self._change(path, ("ConfigSpace",))
            case ErrorChanged():
                self._change(path, ("Error",))
            case DeviceChanged():
                self._change(path, interfaces.load(DEVICE).properties)

    # Objects

    def _added(self, path: str) -> None:
        if (view := self._tree.find(path)) is not None:  # else it is gone again already
            self._router.signal(
                ROOT, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", [path, self._router.describe(view)]
            )

    def _removed(self, path: str, interface: str) -> None:
        self._changed.pop(path, None)
        self._router.signal(ROOT, OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, [interface]])
