# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The model: every region and every vhost-user device there is, and every client and flat device of other regions.

Where there is a keeper, each region is kept under a number of its own: what it keeps is called ``r<number>.<part>``.
`revive` makes the regions anew from what came back. Devices are not kept: their front-ends connect anew. Clients and
flat devices are alike, and kept too: see `clients`.

`Host` is handed to whoever needs it; there is no global state. It changes only through its methods and through what
peers do, and tells each change to its listeners, in order, at once. A listener must not raise and must not block.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ..errors import (
    DeviceExists,
    DoorbellError,
    MemoryUnavailable,
    NoSuchDevice,
    NoSuchRegion,
    RegionExists,
    StateMismatch,
)
from ..fds import limits, listener
from ..fds.keeper import Keeper, Kept
from ..fds.owned import Fd
from ..fds.spare import Spare
from ..ivshmem import memory
from ..ivshmem.clientspec import ClientSpec, FlatSpec
from ..ivshmem.hostclient import HostClient, HostFlat
from ..ivshmem.region import Region
from ..ivshmem.revival import read_state, revive, spec_of
from ..ivshmem.spec import RegionSpec
from ..vhost.backend import Backend
from ..vhost.spec import DeviceSpec
from .clients import CLIENT, FLAT, Dock
from .describe import describe_client, describe_device, describe_region, name_our_own
from .events import (
    DeviceAdded,
    DeviceRemoved,
    HostEvent,
    PeerRefused,
    RegionAdded,
    RegionChanged,
    RegionRemoved,
    Reloaded,
)
from .remains import Remains, Unusable, numbers_in

Spec = TypeVar("Spec", RegionSpec, DeviceSpec)
_REFUSALS_KEPT = 10


class _RegionRemains(Remains):
    """What of one region came back."""

    def __init__(self, prefix: str, kept: Kept) -> None:
        super().__init__(prefix, kept, read_state)
        self.socket = listener.bound_to(self.kept.copy("listener"))

    def clear(self, in_use: set[str]) -> None:
        """Make room for a new region where its socket is, unless that path is *in_use*."""
        if self.socket and self.socket not in in_use:
            with contextlib.suppress(OSError):
                os.unlink(self.socket)


class Host:
    """All that a daemon has, whose default sockets live below *runtime_directory*.

    *keeper*, if any, keeps the regions, the clients and the flat devices.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        runtime_directory: str,
        descriptor_limit: int,
        keeper: Keeper | None = None,
    ) -> None:
        self.regions: dict[str, Region] = {}
        self.devices: dict[str, Backend] = {}
        self.keeper = keeper
        self._number = 0
        self.runtime_directory = runtime_directory
        self.configuration_file = ""
        """The one file that the configuration is read from; empty for the usual folders."""
        self._refusals: dict[str, deque[tuple[int, str]]] = {}
        """The last refusals of each region: microseconds since 1970, and the reason."""
        self.descriptor_limit = descriptor_limit
        self._loop = loop
        self._listeners: list[Callable[[HostEvent], None]] = []
        self._spare = Spare()
        self._coming: set[str] = set()
        self._going: set[str] = set()
        self._clients = Dock(CLIENT, loop, self._emit)
        self._flats = Dock(FLAT, loop, self._emit)
        self.clients: dict[str, HostClient] = self._clients.there
        self.flats: dict[str, HostFlat] = self._flats.there

    def listen(self, hear: Callable[[HostEvent], None]) -> None:
        """Call *hear* with each event from now on."""
        self._listeners.append(hear)

    def _emit(self, event: HostEvent) -> None:
        match event:
            case PeerRefused(region=region, reason=reason):
                refusals = self._refusals.setdefault(region.name, deque(maxlen=_REFUSALS_KEPT))
                refusals.append((time.time_ns() // 1000, reason))
            case RegionRemoved(region=region):
                self._refusals.pop(region.name, None)
        for hear in self._listeners:
            hear(event)

    def region(self, name: str) -> Region:
        """Find a region by name.

        Raises:
            NoSuchRegion: naming those that there are.
        """
        if (region := self.regions.get(name)) is None:
            there = ", ".join(sorted(self.regions)) or "none; make one with CreateRegion or in the configuration"
            raise NoSuchRegion(f'no region "{name}"; there is: {there}')
        return region

    async def create_region(self, spec: RegionSpec, configured: bool = False, socket_given: Fd | None = None) -> Region:
        """Make a region and serve it, on *socket_given* if somebody else made its listening socket.

        Memory is made in a thread, since allocating gigabytes of a file or of huge pages takes its time.

        Raises:
            RegionExists, and what `Region.open` raises: nothing is left behind then.
        """
        if spec.name in self.regions or spec.name in self._coming:
            raise RegionExists(f'region "{spec.name}" is there already; remove it first or choose another name')
        spec = self.with_defaults(spec)
        self._coming.add(spec.name)
        try:
            self._check_backing(spec)
            if socket_given is None:
                listener.clear(spec.socket)  # before the memory: a path in use costs nothing then
            file = spec.backing.path
            born = bool(file) and not os.path.lexists(file)
            shared = await asyncio.to_thread(memory.create, spec.backing, spec.size, spec.name)
            try:
                region = Region.open(
                    spec,
                    self._loop,
                    self._emit,
                    self._spare,
                    shared,
                    keeping=self._keeping(),
                    socket_given=socket_given,
                    configured=configured,
                )
            except BaseException:
                if born:
                    os.unlink(file)
                raise
        finally:
            self._coming.discard(spec.name)
        self.regions[spec.name] = region
        self._emit(RegionAdded(region))
        return region

    def _keeping(self) -> tuple[Keeper, str] | None:
        if self.keeper is None:
            return None
        self._number += 1
        return self.keeper, f"r{self._number}."

    def revive(self, kept: Kept, configured: Mapping[str, RegionSpec], sockets: Kept) -> list[Unusable]:
        """Make anew what is in *kept*: regions, with the listening sockets that others gave us for them; then the rest.

        What can't be made anew is let go of, and returned. What is in *kept* and of none of them stays there.

        Raises:
            NewerState: a newer version wrote it; nothing was touched.
        """
        numbers = numbers_in(kept, "r")
        self._number = max([self._number, *numbers])
        found = [_RegionRemains(f"r{number}.", kept) for number in numbers]
        joined = self._clients.remains(kept), self._flats.remains(kept)
        for remains in found:
            self._revive_one(remains, configured, sockets)
        unusable = [remains for remains in found if remains.trouble]
        in_use = {region.spec.socket for region in self.regions.values()}
        in_use |= {listener.bound_to(sockets.copy(name)) for name in sockets}
        for remains in unusable:
            remains.clear(in_use)
            self._tidy(remains.socket)
            remains.close()
        return [
            *(Unusable(remains.name, remains.trouble) for remains in unusable),
            *self._clients.revive(joined[0], self.keeper),
            *self._flats.revive(joined[1], self.keeper),
        ]

    def _revive_one(self, remains: _RegionRemains, configured: Mapping[str, RegionSpec], sockets: Kept) -> None:
        assert self.keeper is not None
        try:
            if remains.ledger is None:
                raise StateMismatch(remains.trouble)
            if remains.name in self.regions:
                raise StateMismatch("another region of that name is there")
            spec = self.with_defaults(spec_of(remains.state, configured))
            region = revive(
                spec,
                remains.state,
                remains.ledger,
                remains.kept,
                (self.keeper, remains.prefix),
                self._loop,
                self._emit,
                self._spare,
                sockets.copy(remains.name),  # the socket itself is for a new region, if this one can't be revived
            )
        except (DoorbellError, OSError) as error:
            remains.trouble = str(error)
            remains.drop(self.keeper)
            return
        if (given := sockets.take(remains.name)) is not None:
            given.close()
        self.regions[remains.name] = region
        self._emit(RegionAdded(region, revived=True))

    def keep(self, keeper: Keeper) -> bool:
        """Leave a record of all regions, clients and flat devices with *keeper*; False if there is no room."""
        self.keeper = keeper
        regions = all(
            region.keep(*keeping) for region in self.regions.values() if (keeping := self._keeping()) is not None
        )
        return regions and self._clients.keep(keeper) and self._flats.keep(keeper)

    def unkeep(self) -> None:
        """Take all records back, and leave none any more."""
        self.keeper = None
        for region in self.regions.values():
            region.unkeep()
        self._clients.unkeep()
        self._flats.unkeep()

    def change_region(self, spec: RegionSpec, configured: bool) -> None:
        """Have a region go by another spec, which differs in nothing that is frozen.

        Raises:
            NoSuchRegion, SocketUnavailable: nothing is changed then.
        """
        region = self.region(spec.name)
        region.change(spec, configured)
        self._emit(RegionChanged(region))

    def _check_backing(self, spec: RegionSpec) -> None:
        for other in self.regions.values():
            if spec.backing.path and spec.backing.path == other.spec.backing.path:
                raise MemoryUnavailable(
                    f'region "{spec.name}": {spec.backing} is the memory of region "{other.name}"; give each its own'
                )

    def with_defaults(self, spec: Spec) -> Spec:
        """Fill in what a region or a device does not say for itself."""
        if spec.socket:
            return spec
        return dataclasses.replace(spec, socket=os.path.join(self.runtime_directory, spec.name, "socket"))

    def _tidy(self, socket: str) -> None:
        """Remove the directory of a *socket* that is gone, if it is empty and directly below our own directory.

        A listener removes the directories that it made. This one may have been made before a restart, by our
        predecessor.
        """
        directory = os.path.dirname(socket)
        if os.path.dirname(directory) == self.runtime_directory:
            listener.remove_empty([directory])

    def remove_region(self, name: str) -> None:
        """Disconnect a region's peers and let go of it.

        Raises:
            NoSuchRegion: it is not there.
        """
        region = self.region(name)
        region.close()
        del self.regions[name]
        self._tidy(region.spec.socket)
        self._emit(RegionRemoved(region))

    # Devices

    def device(self, name: str) -> Backend:
        """Find a device by name.

        Raises:
            NoSuchDevice: naming those that there are.
        """
        if (device := self.devices.get(name)) is None:
            there = ", ".join(sorted(self.devices)) or "none; make one with CreateDevice or in the configuration"
            raise NoSuchDevice(f'no device "{name}"; there is: {there}')
        return device

    async def create_device(
        self, spec: DeviceSpec, configured: bool = False, socket_given: Fd | None = None
    ) -> Backend:
        """Make a device and serve it, on *socket_given* if somebody else made its listening socket.

        Raises:
            DeviceExists, and what `Backend.open` raises: nothing is left behind then.
        """
        if spec.name in self.devices:
            raise DeviceExists(f'device "{spec.name}" is there already; remove it first or choose another name')
        device = Backend.open(
            self.with_defaults(spec),
            self._loop,
            self._emit,
            self._spare,
            socket_given=socket_given,
            configured=configured,
        )
        self.devices[spec.name] = device
        self._emit(DeviceAdded(device))
        return device

    def change_device(self, spec: DeviceSpec, configured: bool) -> None:
        """Have a device go by another spec, which differs in nothing that is frozen.

        Raises:
            NoSuchDevice, SocketUnavailable: nothing is changed then.
        """
        self.device(spec.name).change(spec, configured)

    async def remove_device(self, name: str) -> None:
        """Bring a device to rest, disconnect its front-end, and let go of it.

        Raises:
            NoSuchDevice: it is not there.
        """
        device = self.device(name)
        if name in self._going:
            raise NoSuchDevice(f'device "{name}" is being removed already')
        self._going.add(name)
        try:
            await device.close()
        finally:
            self._going.discard(name)
            self.devices.pop(name, None)
            self._tidy(device.spec.socket)
            self._emit(DeviceRemoved(device))

    # Clients and flat devices

    def client(self, name: str) -> HostClient:
        """Find a client by name.

        Raises:
            NoSuchClient: naming those that there are.
        """
        return self._clients.find(name)

    def create_client(self, spec: ClientSpec, configured: bool = False) -> HostClient:
        """Make a client, which looks for its server from now on.

        Raises:
            ClientExists: there is one of that name.
        """
        return self._clients.create(spec, configured, self.keeper)

    def change_client(self, spec: ClientSpec, configured: bool) -> None:
        """Have a client go by another spec, which differs in nothing that is frozen.

        Raises:
            NoSuchClient: it is not there.
        """
        self._clients.change(spec, configured)

    def remove_client(self, name: str) -> None:
        """Have a client leave its region, and let go of it.

        Raises:
            NoSuchClient: it is not there.
        """
        self._clients.remove(name)

    def flat(self, name: str) -> HostFlat:
        """Find a flat device by name.

        Raises:
            NoSuchFlatDevice: naming those that there are.
        """
        return self._flats.find(name)

    def create_flat(self, spec: FlatSpec, configured: bool = False) -> HostFlat:
        """Make a flat device, which looks for its server from now on.

        Raises:
            FlatDeviceExists: there is one of that name.
        """
        return self._flats.create(spec, configured, self.keeper)

    def change_flat(self, spec: FlatSpec, configured: bool) -> None:
        """Have a flat device go by another spec, which differs in nothing that is frozen.

        Raises:
            NoSuchFlatDevice: it is not there.
        """
        self._flats.change(spec, configured)

    def remove_flat(self, name: str) -> None:
        """Have a flat device leave its region, and let go of it.

        Raises:
            NoSuchFlatDevice: it is not there.
        """
        self._flats.remove(name)

    def reloaded(self, changes: Iterable[tuple[str, str, str]]) -> None:
        """Tell that the configuration was read again, and what was done for it: action, kind and name each."""
        self._emit(Reloaded(tuple(changes)))

    # The end

    async def close_devices(self, reason: str) -> list[Backend]:
        """Bring all devices to rest and let go of them, without a word; gives what they were."""
        devices = [self.devices.pop(name) for name in list(self.devices)]
        await asyncio.gather(*(device.close(reason) for device in devices))
        for device in devices:
            self._tidy(device.spec.socket)
        return devices

    async def close(self) -> None:
        """Let go of everything; the daemon stops. What is kept stays kept: this may be a restart."""
        await self.close_devices("the daemon stops")
        self._clients.close()
        self._flats.close()
        for name in list(self.regions):
            region = self.regions.pop(name)
            if region.kept:
                region.let_go()
            else:
                region.close("the daemon stops")
                self._tidy(region.spec.socket)
        self._spare.close()

    @property
    def stuck(self) -> list[str]:
        """Name the regions that have made no progress since the last time that this was asked, though they should."""
        return [name for name, region in self.regions.items() if region.stuck]

    def descriptors_in_use(self) -> int:
        """Count our open descriptors; when there is none left to count with, all are."""
        try:
            return limits.in_use()
        except OSError:
            return self.descriptor_limit

    def describe(self) -> dict[str, Any]:
        """Put everything there is in plain values (the JSON of ``Describe``)."""
        known = {
            "descriptors": {"limit": self.descriptor_limit, "in-use": self.descriptors_in_use()},
            "regions": {
                name: describe_region(region, self._refusals.get(name, ()))
                for name, region in sorted(self.regions.items())
            },
            "devices": {name: describe_device(device) for name, device in sorted(self.devices.items())},
            "clients": {name: describe_client(client) for name, client in sorted(self.clients.items())},
            "flats": {name: describe_client(flat) for name, flat in sorted(self.flats.items())},
        }
        name_our_own(known)
        return known
