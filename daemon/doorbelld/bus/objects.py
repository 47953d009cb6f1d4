# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The objects: thin views of the model, and the tree that finds them by path.

Nothing is registered. A path is taken apart, the model is asked, and a view is made; views of regions and peers are
kept as long as these live, so the second call to one is a dictionary lookup. Vectors, and the host peer, answer but
are not listed: a thousand peers of eight vectors are a thousand objects, not nine thousand. The views of devices are
in device_objects.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from .. import __version__, devices
from ..errors import InvalidOptions, LimitExceeded, NoSuchDeviceType, Problem
from ..fds import eventfd
from ..fds.owned import Fd
from ..fds.peercred import Credentials
from ..host.host import Host
from ..ivshmem.peer import Peer
from ..ivshmem.region import Region
from ..ivshmem.spec import RegionSpec
from ..options import parse
from ..vhost.backend import Backend
from ..vhost.spec import DeviceSpec
from . import library, paths
from .authority import Action
from .device_objects import DeviceView, QueueView
from .names import MANAGER, PEER, REGION, ROOT, VECTOR
from .views import View, method, prop

READ_MAX = 1 << 20

T = TypeVar("T")


def _if_room(make: Callable[[], T]) -> T:
    """Give what *make* makes, which takes a descriptor."""
    try:
        return make()
    except OSError as error:
        raise LimitExceeded(f"no descriptor left for it: {error.strerror}; raise LimitNOFILE=") from error


class ManagerView(View, interface=MANAGER):
    """The daemon. *reload* reads the configuration again."""

    def __init__(self, host: Host, reload: Callable[[], Awaitable[None]]) -> None:
        self._host = host
        self._reload = reload
        self._library = library.describe()  # now: it reads files, and there may be no descriptor for that later

    @method("ListRegions", Action.INSPECT)
    def list_regions(self) -> list[list[str]]:
        """Name and path of each."""
        return [[name, paths.region(name)] for name in sorted(self._host.regions)]

    @method("ListPeers", Action.INSPECT)
    def list_peers(self, region: str) -> list[list[Any]]:
        """ID, pid, uid, gid, VM name, path of each."""
        return [
            [p.id, p.who.pid, p.who.uid, p.who.gid & 0xFFFFFFFF, p.who.vm_name, paths.peer(region, p.id)]
            for p in self._host.region(region).peers.values()
        ]

    @method("ListDevices", Action.INSPECT)
    def list_devices(self) -> list[list[str]]:
        """Name, type and path of each."""
        return [[name, device.spec.type, paths.device(name)] for name, device in sorted(self._host.devices.items())]

    @method("ListQueues", Action.INSPECT)
    def list_queues(self, device: str) -> list[list[Any]]:
        """Index and path of each."""
        return [[index, paths.queue(device, index)] for index in range(self._host.device(device).queue_count)]

    @method("Notify", Action.NOTIFY)
    def notify(self, region: str, peer: int, vector: int) -> None:
        """Ring one doorbell."""
        self._host.region(region).notify(peer, vector)

    @method("NotifyMany", Action.NOTIFY)
    def notify_many(self, region: str, targets: list[tuple[int, int]]) -> None:
        """Ring many."""
        self._host.region(region).notify_many(targets)

    @method("CreateRegion", Action.MANAGE)
    async def create_region(self, name: str, options: dict[str, Any]) -> str:
        """Make a region."""
        spec = parse(RegionSpec, library.unwrap(options), f"region.{name}", name=name)
        await self._host.create_region(spec)
        return paths.region(name)

    @method("CreateDevice", Action.MANAGE)
    async def create_device(self, name: str, kind: str, options: dict[str, Any]) -> str:
        """Make a device."""
        await self._host.create_device(_device_spec(name, kind, library.unwrap(options)))
        return paths.device(name)

    @method("RemoveRegion", Action.MANAGE)
    def remove_region(self, name: str) -> None:
        """Remove a region."""
        self._host.remove_region(name)

    @method("RemoveDevice", Action.MANAGE)
    async def remove_device(self, name: str) -> None:
        """Remove a device."""
        await self._host.remove_device(name)

    @method("Describe", Action.INSPECT)
    def describe(self) -> str:
        """Everything as JSON."""
        return json.dumps({"version": __version__, **self._host.describe()})

    @method("Reload", Action.MANAGE)
    def reload(self) -> Awaitable[None]:
        """Read the configuration again."""
        return self._reload()

    @prop("Version")
    def version(self) -> str:
        """Our own version."""
        return __version__

    @prop("Library")
    def library(self) -> str:
        """The D-Bus library's name and version."""
        return self._library

    @prop("DescriptorLimit")
    def descriptor_limit(self) -> int:
        """RLIMIT_NOFILE."""
        return self._host.descriptor_limit

    @prop("DescriptorsInUse")
    def descriptors_in_use(self) -> int:
        """Open descriptors now."""
        return self._host.descriptors_in_use()


def _device_spec(name: str, kind: str, options: dict[str, Any]) -> DeviceSpec:
    """Read the options of a device to be made; its type is no option here."""
    try:
        found = devices.find(kind)
    except NoSuchDeviceType as error:
        raise NoSuchDeviceType(f'device "{name}": {error}') from error
    prefix = f"device.{name}"
    problems = []
    if "type" in options:
        problems = [Problem(f"{prefix}.type", "is no option here", "it is the second argument of CreateDevice")]
    try:
        spec = DeviceSpec.parse(name, {**options, "type": kind}, prefix, lambda _: found)
    except InvalidOptions as error:
        raise InvalidOptions([*problems, *error.problems]) from error
    if problems:
        raise InvalidOptions(problems)
    return spec


class RegionView(View, interface=REGION):
    """A region."""

    def __init__(self, region: Region) -> None:
        self._region = region

    @method("Notify", Action.NOTIFY)
    def notify(self, peer: int, vector: int) -> None:
        """Ring one doorbell."""
        self._region.notify(peer, vector)

    @method("NotifyPeer", Action.NOTIFY)
    def notify_peer(self, peer: int) -> None:
        """Ring all doorbells of a peer."""
        self._region.notify_peer(peer)

    @method("Broadcast", Action.NOTIFY)
    def broadcast(self) -> None:
        """Ring everybody."""
        self._region.broadcast()

    @method("NotifyMany", Action.NOTIFY)
    def notify_many(self, targets: list[tuple[int, int]]) -> None:
        """Ring many."""
        self._region.notify_many(targets)

    @method("Attach", Action.MANAGE, wants_caller=True)
    def attach(self, caller: Credentials, options: dict[str, Any]) -> Fd:
        """Join as a peer."""
        if options:
            raise InvalidOptions([Problem(key, "unknown option", "none is known yet") for key in sorted(options)])
        return self._region.attach(caller)

    @method("OpenMemory", Action.OPEN_MEMORY)
    def open_memory(self) -> Fd:
        """Hand out the memory."""
        return _if_room(self._region.memory.dup)

    @method("OpenDoorbell", Action.NOTIFY)
    def open_doorbell(self, peer: int, vector: int) -> Fd:
        """Hand out an eventfd."""
        doorbell = self._region.doorbell(peer, vector)
        return _if_room(lambda: Fd(os.dup(doorbell)))

    @method("ReadMemory", Action.OPEN_MEMORY)
    def read_memory(self, offset: int, length: int) -> bytes:
        """Read some of the memory."""
        self._check_range(offset, length)
        return os.pread(self._region.memory.fileno(), length, offset)

    @method("WriteMemory", Action.OPEN_MEMORY)
    def write_memory(self, offset: int, data: bytes) -> None:
        """Write some of the memory."""
        self._check_range(offset, len(data))
        self._region.write_memory(offset, bytes(data))

    def _check_range(self, offset: int, length: int) -> None:
        size = self._region.spec.size
        if length > READ_MAX or offset > size or length > size - offset:
            cause = f"{length} bytes at {offset} are not within the {size} bytes of the memory, or more than {READ_MAX}"
            raise InvalidOptions([Problem("offset, length", cause, "ask for less")])

    @method("Disconnect", Action.MANAGE)
    def disconnect(self, peer: int) -> None:
        """Drop a peer."""
        self._region.disconnect(peer, "disconnected over D-Bus")

    @prop("Name")
    def name(self) -> str:
        """Its name."""
        return self._region.spec.name

    @prop("Socket")
    def socket(self) -> str:
        """Where guests connect."""
        return self._region.spec.socket

    @prop("Size")
    def size(self) -> int:
        """Bytes."""
        return self._region.spec.size

    @prop("Vectors")
    def vectors(self) -> int:
        """Doorbells per peer."""
        return self._region.spec.vectors

    @prop("Backing")
    def backing(self) -> str:
        """Where the memory comes from."""
        return str(self._region.spec.backing)

    @prop("MaxPeers")
    def max_peers(self) -> int:
        """How many may connect."""
        return self._region.spec.max_peers

    @prop("FirstId")
    def first_id(self) -> int:
        """The first client's ID."""
        return self._region.spec.first_id

    @prop("HostPeer")
    def host_peer(self) -> bool:
        """Whether there is one."""
        return self._region.spec.host_peer

    @prop("HostPeerId")
    def host_peer_id(self) -> int:
        """Its ID."""
        return self._region.spec.host_peer_id

    @prop("HostRings")
    def host_rings(self) -> list[int]:
        """Rings taken, by vector."""
        # a guest can add nearly 2^64 to an eventfd at a time, so the sum wraps, as an eventfd would
        return [total % (1 << 64) for total in self._region.host.totals] if self._region.host else []

    @prop("StallTimeoutUSec")
    def stall_timeout(self) -> int:
        """Microseconds."""
        return int(self._region.spec.stall_timeout * 1e6)

    @prop("PeerCount")
    def peer_count(self) -> int:
        """Connected peers."""
        return len(self._region.peers)


@dataclass(frozen=True, slots=True)
class _HostAsPeer:
    """The host peer, in the shape of a connected one."""

    id: int
    vectors: int
    since: int = 0
    backlog: int = 0
    who: Credentials = Credentials(os.getpid(), os.getuid(), os.getgid(), "host")


class PeerView(View, interface=PEER):
    """A peer."""

    def __init__(self, region: Region, peer: Peer | _HostAsPeer) -> None:
        self._region = region
        self._peer = peer

    @method("Notify", Action.NOTIFY)
    def notify(self, vector: int) -> None:
        """Ring one of its doorbells."""
        self._region.notify(self._peer.id, vector)

    @method("NotifyAll", Action.NOTIFY)
    def notify_all(self) -> None:
        """Ring all of them."""
        self._region.notify_peer(self._peer.id)

    @method("Disconnect", Action.MANAGE)
    def disconnect(self) -> None:
        """Drop it."""
        self._region.disconnect(self._peer.id, "disconnected over D-Bus")

    @prop("Id")
    def id(self) -> int:
        """Its ID."""
        return self._peer.id

    @prop("Pid")
    def pid(self) -> int:
        """Its process."""
        return self._peer.who.pid

    @prop("Uid")
    def uid(self) -> int:
        """Its user."""
        return self._peer.who.uid

    @prop("Gid")
    def gid(self) -> int:
        """Its group."""
        return self._peer.who.gid & 0xFFFFFFFF

    @prop("VmName")
    def vm_name(self) -> str:
        """What it calls itself."""
        return self._peer.who.vm_name

    @prop("Unit")
    def unit(self) -> str:
        """Its systemd unit."""
        return self._peer.who.unit

    @prop("Since")
    def since(self) -> int:
        """When it connected."""
        return self._peer.since

    @prop("Vectors")
    def vectors(self) -> int:
        """How many doorbells."""
        return self._peer.vectors

    @prop("Backlog")
    def backlog(self) -> int:
        """Messages not taken yet."""
        return self._peer.backlog


class VectorView(View, interface=VECTOR):
    """A doorbell."""

    def __init__(self, region: Region, peer_id: int, index: int) -> None:
        self._region = region
        self._peer_id = peer_id
        self._index = index

    @method("Notify", Action.NOTIFY)
    def notify(self) -> None:
        """Ring it."""
        self._region.notify(self._peer_id, self._index)

    @prop("Index")
    def index(self) -> int:
        """Its number."""
        return self._index

    @prop("PendingCount")
    def pending_count(self) -> int:
        """Rings not yet taken."""
        doorbell = self._region.doorbell(self._peer_id, self._index)
        return _if_room(lambda: eventfd.pending(doorbell))


class Tree:
    """Finds views by path."""

    def __init__(self, host: Host, reload: Callable[[], Awaitable[None]]) -> None:
        self._host = host
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
                kinds = {"device": self._host.devices, "region": self._host.regions}
                return [kind for kind, there in kinds.items() if there]
            case ["region"]:
                return sorted(paths.escape(name) for name in self._host.regions)
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
            case ["device"]:
                return sorted(paths.escape(name) for name in self._host.devices)
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
        return [(path, view) for path in listed if (view := self.find(path)) is not None]

    def drop(self, path: str) -> None:
        """Forget the view of a peer that is gone."""
        self._views.pop(path, None)

    def drop_tree(self, path: str) -> None:
        """Forget the view of a region or a device that is gone, and all below it."""
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

    @staticmethod
    def _peer(region: Region, number: str) -> Peer | _HostAsPeer | None:
        if (peer_id := _number(number, 1 << 16)) is None:
            return None
        if region.host is not None and region.host.member.id == peer_id:
            return _HostAsPeer(peer_id, len(region.host.member.eventfds))
        return region.peers.get(peer_id)


def device_paths(device: Backend) -> list[str]:
    """Give the path of a device and those of its queues."""
    return [paths.device(device.name), *(paths.queue(device.name, index) for index in range(device.queue_count))]


def _number(element: str, bound: int) -> int | None:
    """Read a canonical number below *bound*: two paths must not name one object."""
    if element.isascii() and element.isdecimal() and len(element) <= 5 and str(int(element)) == element:
        value = int(element)
        return value if value < bound else None
    return None
