# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which object is at which path: nothing is registered, a path is taken apart and the model asked.

Views of regions, clients, devices, and of peers and queues are kept as long as these live, so the second call to one
is a dictionary lookup. Vectors, and the host peer, answer but are not listed: a thousand peers of eight vectors are a
thousand objects, not nine thousand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from ..host.host import Host
from ..ivshmem.hostclient import HostClient, HostFlat
from ..ivshmem.membership import RemotePeer
from ..ivshmem.peer import Peer
from ..ivshmem.region import Region
from ..vhost.backend import Backend
from . import paths
from .client_objects import ClientView, FlatDeviceView, ForeignPeerView
from .device_objects import DeviceView, QueueView
from .names import ROOT
from .objects import HostAsPeer, ManagerView, PeerView, RegionView, VectorView
from .views import View


class Tree:
    """Finds views by path."""

    def __init__(self, host: Host, reload: Callable[[], Awaitable[None]]) -> None:
        self._host = host
        self._kinds: dict[str, Mapping[str, object]] = {
            "client": host.clients,
            "device": host.devices,
            "flat": host.flats,
            "region": host.regions,
        }
        self._views: dict[str, View] = {ROOT: ManagerView(host, reload)}
        self._depth = len(ROOT.split("/"))

    def find(self, path: str) -> View | None:
        """Give the view at *path*, or None: no such object."""
        if (view := self._views.get(path)) is not None:
            return view
        match self._parts(path):
            case ["region", name]:
                if region := self._region(name):
                    return self._keep(path, RegionView(region))
            case ["region", name, "peer", number]:
                if (region := self._region(name)) and (peer := self._peer(region, number)):
                    return self._keep(path, PeerView(region, peer))
            case ["region", name, "peer", number, "vector", index]:
                region = self._region(name)
                if region and (peer := self._peer(region, number)) and _number(index, peer.vectors) is not None:
                    return VectorView(region, peer.id, int(index))
            case ["client", name]:
                if client := self._client(name):
                    return self._keep(path, ClientView(client))
            case ["client", name, "peer", number]:
                if (client := self._client(name)) and (found := _remote(client, number)):
                    return self._keep(path, ForeignPeerView(client, found.id))
            case ["client", name, "peer", number, "vector", index]:
                client = self._client(name)
                if client and (found := _remote(client, number)) and _number(index, found.vectors) is not None:
                    return VectorView(client, found.id, int(index))
            case ["flat", name]:
                if flat := self._flat(name):
                    return self._keep(path, FlatDeviceView(flat))
            case ["device", name]:
                if device := self._device(name):
                    return self._keep(path, DeviceView(device))
            case ["device", name, "queue", index]:
                if (device := self._device(name)) and _number(index, device.queue_count) is not None:
                    return self._keep(path, QueueView(device, int(index)))
        return None

    def children(self, path: str) -> list[str]:
        """Name the nodes below *path*, whether or not an object is there."""
        if ROOT.startswith(path if path == "/" else path + "/"):
            return [ROOT[len(path) :].lstrip("/").split("/")[0]]
        match self._parts(path):
            case []:
                return [kind for kind, there in self._kinds.items() if there]
            case [kind] if kind in self._kinds:
                return sorted(paths.escape(name) for name in self._kinds[kind])
            case ["region", name] if (region := self._region(name)) and region.peers:
                return ["peer"]
            case ["region", name, "peer"] if region := self._region(name):
                return [str(peer_id) for peer_id in sorted(region.peers)]
            case ["region", name, "peer", number] if (r := self._region(name)) and self._peer(r, number):
                return ["vector"]
            case ["region", name, "peer", number, "vector"] if (r := self._region(name)) and (
                peer := self._peer(r, number)
            ):
                return [str(index) for index in range(peer.vectors)]
            case ["client", name] if (client := self._client(name)) and client.peers:
                return ["peer"]
            case ["client", name, "peer"] if client := self._client(name):
                return [str(peer_id) for peer_id in sorted(client.peers)]
            case ["client", name, "peer", number] if (client := self._client(name)) and _remote(client, number):
                return ["vector"]
            case ["client", name, "peer", number, "vector"] if (client := self._client(name)) and (
                found := _remote(client, number)
            ):
                return [str(index) for index in range(found.vectors)]
            case ["device", name] if self._device(name):
                return ["queue"]
            case ["device", name, "queue"] if device := self._device(name):
                return [str(index) for index in range(device.queue_count)]
        return []

    def listed(self) -> list[tuple[str, View]]:
        """Give all objects below the root that ObjectManager lists."""
        listed: list[str] = []
        for name, region in self._host.regions.items():
            base = paths.region(name)
            listed += [base, *(f"{base}/peer/{peer_id}" for peer_id in region.peers)]
        for device in self._host.devices.values():
            listed += device_paths(device)
        for name, client in self._host.clients.items():
            base = paths.client(name)
            listed += [base, *(f"{base}/peer/{peer_id}" for peer_id in client.peers)]
        listed += [paths.flat(name) for name in self._host.flats]
        return [(path, view) for path in listed if (view := self.find(path)) is not None]

    def drop(self, path: str) -> None:
        """Forget the view of a peer that is gone."""
        self._views.pop(path, None)

    def drop_tree(self, path: str) -> None:
        """Forget the view of a region, a device or a client that is gone, and all below it."""
        for known in [known for known in self._views if known == path or known.startswith(path + "/")]:
            del self._views[known]

    def _keep(self, path: str, view: View) -> View:
        self._views[path] = view
        return view

    def _parts(self, path: str) -> list[str]:
        return path.split("/")[self._depth :] if path.startswith(ROOT + "/") else [] if path == ROOT else [""]

    def _region(self, element: str) -> Region | None:
        region = self._host.regions.get(paths.unescape(element))
        return region if region is not None and paths.escape(region.name) == element else None

    def _device(self, element: str) -> Backend | None:
        device = self._host.devices.get(paths.unescape(element))
        return device if device is not None and paths.escape(device.name) == element else None

    def _client(self, element: str) -> HostClient | None:
        client = self._host.clients.get(paths.unescape(element))
        return client if client is not None and paths.escape(client.name) == element else None

    def _flat(self, element: str) -> HostFlat | None:
        flat = self._host.flats.get(paths.unescape(element))
        return flat if flat is not None and paths.escape(flat.name) == element else None

    @staticmethod
    def _peer(region: Region, number: str) -> Peer | HostAsPeer | None:
        if (peer_id := _number(number, 1 << 16)) is None:
            return None
        if region.host is not None and region.host.member.id == peer_id:
            return HostAsPeer(peer_id, len(region.host.member.eventfds))
        return region.peers.get(peer_id)


def _remote(client: HostClient, number: str) -> RemotePeer | None:
    peer_id = _number(number, 1 << 16)
    return None if peer_id is None else client.peers.get(peer_id)


def device_paths(device: Backend) -> list[str]:
    """Give the path of a device and those of its queues."""
    return [paths.device(device.name), *(paths.queue(device.name, index) for index in range(device.queue_count))]


def _number(element: str, bound: int) -> int | None:
    """Read a canonical number below *bound*: two paths must not name one object."""
    if element.isascii() and element.isdecimal() and len(element) <= 5 and str(int(element)) == element:
        value = int(element)
        return value if value < bound else None
    return None
