# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The objects of the daemon itself, of regions, their peers and vectors: thin views of the model.

Those of devices are in device_objects.py, those of clients and flat devices in client_objects.py; tree.py finds all of
them by path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import astuple, dataclass, replace
from typing import Any, TypeVar

from .. import __version__, devices
from ..errors import InvalidOptions, NoSuchDeviceType, Problem, UnusableDeviceType
from ..fds import eventfd
from ..fds.owned import Fd
from ..fds.peercred import Credentials, process_name
from ..host.host import Host
from ..ivshmem.clientspec import ClientSpec, FlatSpec
from ..ivshmem.peer import Peer
from ..ivshmem.region import Region
from ..ivshmem.spec import RegionSpec
from ..ivshmem.table import RATE_MAX
from ..log import get_logger
from ..options import parse
from ..vhost.errors import DeviceFaulty
from ..vhost.spec import DeviceSpec
from . import library, paths
from .authority import Action
from .names import MANAGER, PEER, REGION, VECTOR
from .sharing import DoorbellMethods, MemoryMethods, Ringer, if_room
from .views import View, method, prop

log = get_logger()

Joining = TypeVar("Joining", bound=ClientSpec)

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
"""What a process may call itself: no number, which would be an ID, and nothing that a terminal or a shell minds."""


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

    @method("ListClients", Action.INSPECT)
    def list_clients(self) -> list[list[str]]:
        """Name, socket and path of each."""
        return [[name, one.spec.socket, paths.client(name)] for name, one in sorted(self._host.clients.items())]

    @method("ListFlatDevices", Action.INSPECT)
    def list_flat_devices(self) -> list[list[str]]:
        """Name, socket and path of each."""
        return [[name, one.spec.socket, paths.flat(name)] for name, one in sorted(self._host.flats.items())]

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
        try:
            await self._host.create_device(_device_spec(name, kind, library.unwrap(options)))
        except (DeviceFaulty, UnusableDeviceType) as error:
            log.error("can't serve device", device=name, reason=str(error), exc_info=error)
            raise
        return paths.device(name)

    @method("CreateClient", Action.MANAGE)
    def create_client(self, name: str, socket: str, options: dict[str, Any]) -> str:
        """Make a client."""
        self._host.create_client(_joining(ClientSpec, name, socket, options))
        return paths.client(name)

    @method("CreateFlatDevice", Action.MANAGE)
    def create_flat_device(self, name: str, socket: str, options: dict[str, Any]) -> str:
        """Make a flat device."""
        self._host.create_flat(_joining(FlatSpec, name, socket, options))
        return paths.flat(name)

    @method("RemoveRegion", Action.MANAGE)
    def remove_region(self, name: str) -> None:
        """Remove a region."""
        self._host.remove_region(name)

    @method("RemoveDevice", Action.MANAGE)
    async def remove_device(self, name: str) -> None:
        """Remove a device."""
        await self._host.remove_device(name)

    @method("RemoveClient", Action.MANAGE)
    def remove_client(self, name: str) -> None:
        """Remove a client."""
        self._host.remove_client(name)

    @method("RemoveFlatDevice", Action.MANAGE)
    def remove_flat_device(self, name: str) -> None:
        """Remove a flat device."""
        self._host.remove_flat(name)

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

    @prop("ConfigurationFile")
    def configuration_file(self) -> str:
        """The file of --config."""
        return library.text(self._host.configuration_file)

    @prop("DescriptorLimit")
    def descriptor_limit(self) -> int:
        """RLIMIT_NOFILE."""
        return self._host.descriptor_limit

    @prop("DescriptorsInUse")
    def descriptors_in_use(self) -> int:
        """Open descriptors now."""
        return self._host.descriptors_in_use()


def _joining(table: type[Joining], name: str, socket: str, options: dict[str, Any]) -> Joining:
    """Read the options of a client or a flat device to be made; its socket is no option here."""
    given, prefix = library.unwrap(options), f"{table.KIND}.{name}"
    if "socket" in given:
        raise InvalidOptions([Problem(f"{prefix}.socket", "is no option here", "it is the second argument")])
    return parse(table, {**given, "socket": socket}, prefix, name=name)


def _device_spec(name: str, kind: str, options: dict[str, Any]) -> DeviceSpec:
    """Read the options of a device to be made; its type is no option here."""
    try:
        found = devices.find(kind)
    except NoSuchDeviceType as error:
        raise type(error)(f'device "{name}": {error}') from error
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


def _label(options: dict[str, Any]) -> str:
    """Read the option ``name``: what the caller calls itself."""
    label = library.unwrap(options).get("name", "")
    if label != "" and not (isinstance(label, str) and _LABEL.fullmatch(label)):
        cure = "write a letter, then at most 63 letters, digits or . _ -"
        raise InvalidOptions([Problem("name", f"{str(label)[:80]!r} is no name", cure)])
    return str(label)


def _flag(options: dict[str, Any], name: str, default: bool, *others: str) -> bool:
    """Read a boolean option; the method knows no more of them than that and *others*."""
    given, known = library.unwrap(options), (name, *others)
    cure = f"known here: {', '.join(known)}"
    problems = [Problem(key, "unknown option", cure) for key in sorted(given) if key not in known]
    flag = given.get(name, default)
    if not isinstance(flag, bool):
        problems.append(Problem(name, f"{flag!r} is not a boolean", "write true or false"))
    if problems:
        raise InvalidOptions(problems)
    return bool(flag)


@dataclass(frozen=True, slots=True)
class RegionMemory:
    """The memory of *region*."""

    region: Region

    @property
    def size(self) -> int:
        """Bytes."""
        return self.region.spec.size

    def dup(self) -> Fd:
        """Give another descriptor of it."""
        return self.region.memory.dup()

    def read(self, offset: int, length: int) -> bytes:
        """Read within the bounds."""
        return os.pread(self.region.memory.fileno(), length, offset)

    def write(self, offset: int, data: bytes) -> None:
        """Write within the bounds."""
        self.region.write_memory(offset, data)


class RegionView(DoorbellMethods, MemoryMethods, View, interface=REGION):
    """A region."""

    def __init__(self, region: Region) -> None:
        self._region = self._ringer = region

    @method("Attach", Action.MANAGE, wants_caller=True)
    async def attach(self, caller: Credentials, options: dict[str, Any]) -> Fd:
        """Join as a peer."""
        label, leaves = _label(options), _flag(options, "tell-leaves", True, "name")
        await self._region.ready()
        who = replace(caller, program=process_name(caller.pid), label=label)
        return self._region.attach(who, leaves=leaves)

    @method("Clear", Action.MANAGE)
    async def clear(self, options: dict[str, Any]) -> None:
        """Set the memory to zero."""
        await self._region.clear(_flag(options, "force", False))

    def _shared(self) -> RegionMemory:
        return RegionMemory(self._region)

    @method("Disconnect", Action.MANAGE)
    def disconnect(self, peer: int) -> None:
        """Drop a peer."""
        self._region.disconnect(peer, "disconnected over D-Bus")

    @method("ListPairs", Action.INSPECT)
    def list_pairs(self) -> list[list[Any]]:
        """Sender, target, rings, deliveries, refused, rate, permitted of each."""
        return [list(astuple(pair)) for pair in self._region.relayed().pairs()]

    @method("LimitPair", Action.MANAGE)
    def limit_pair(self, sender: int, target: int, rate: int) -> None:
        """Limit how often a pair rings."""
        if rate > RATE_MAX:
            raise InvalidOptions([Problem("rate", f"{rate} is more than {RATE_MAX} a second", "use less, or 0")])
        relay = self._region.relayed()
        relay.change(sender, target, replace(relay.terms(sender, target), rate=rate))

    @method("PermitPair", Action.MANAGE)
    def permit_pair(self, sender: int, target: int, permitted: bool) -> None:
        """Permit or forbid a pair to ring."""
        relay = self._region.relayed()
        relay.change(sender, target, replace(relay.terms(sender, target), permitted=permitted))

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

    @prop("MaxAbsent")
    def max_absent(self) -> int:
        """For how many absent peers IDs are kept."""
        return self._region.spec.max_absent

    @prop("AbsentPeers")
    def absent_peers(self) -> list[list[Any]]:
        """ID, VM name, uid and time of leaving of each."""
        return [
            [absent.id, absent.who.vm_name, absent.who.uid, absent.left]
            for absent in self._region.admission.absent.waiting()
        ]

    @prop("ClearPolicy")
    def clear_policy(self) -> str:
        """When the memory is cleared by itself."""
        return self._region.spec.clear

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

    @prop("Relay")
    def relay(self) -> bool:
        """Whether rings pass us."""
        return self._region.spec.relay

    @prop("RelayRate")
    def relay_rate(self) -> int:
        """Deliveries a second of a pair."""
        return self._region.spec.relay_rate

    @prop("PeerCount")
    def peer_count(self) -> int:
        """Connected peers."""
        return len(self._region.peers)


@dataclass(frozen=True, slots=True)
class HostAsPeer:
    """The host peer, in the shape of a connected one."""

    id: int
    vectors: int
    since: int = 0
    backlog: int = 0
    who: Credentials = Credentials(os.getpid(), os.getuid(), os.getgid(), "host")


class PeerView(View, interface=PEER):
    """A peer."""

    def __init__(self, region: Region, peer: Peer | HostAsPeer) -> None:
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

    @prop("RingsSent")
    def rings_sent(self) -> int:
        """Rings that it made."""
        return self._totals()[0]

    @prop("RingsReceived")
    def rings_received(self) -> int:
        """Rings that it was delivered."""
        return self._totals()[1]

    def _totals(self) -> tuple[int, int]:
        relay = self._region.relay
        return relay.totals(self._peer.id) if relay is not None else (0, 0)


class VectorView(View, interface=VECTOR):
    """A doorbell of a peer in what *ringer* is, or is in."""

    def __init__(self, ringer: Ringer, peer_id: int, index: int) -> None:
        self._ringer = ringer
        self._peer_id = peer_id
        self._index = index

    @method("Notify", Action.NOTIFY)
    def notify(self) -> None:
        """Ring it."""
        self._ringer.notify(self._peer_id, self._index)

    @prop("Index")
    def index(self) -> int:
        """Its number."""
        return self._index

    @prop("PendingCount")
    def pending_count(self) -> int:
        """Rings not yet taken."""
        doorbell = self._ringer.doorbell(self._peer_id, self._index)
        return if_room(lambda: eventfd.pending(doorbell))
