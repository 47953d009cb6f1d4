# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The model: every region there is.

`Host` is handed to whoever needs it; there is no global state. It changes only through its methods and through what
peers do, and tells each change to its listeners, in order, at once. A listener must not raise and must not block.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable
from typing import Any

from ..errors import MemoryUnavailable, NoSuchRegion, RegionExists, SocketUnavailable
from ..fds import limits, listener
from ..fds.spare import Spare
from ..ivshmem import memory
from ..ivshmem.region import Region
from ..ivshmem.spec import RegionSpec
from .events import RegionAdded, RegionEvent, RegionRemoved


class Host:
    """All regions of a daemon whose default sockets live below *runtime_directory*."""

    def __init__(self, loop: asyncio.AbstractEventLoop, runtime_directory: str, descriptor_limit: int) -> None:
        self.regions: dict[str, Region] = {}
        self.runtime_directory = runtime_directory
        self.descriptor_limit = descriptor_limit
        self._loop = loop
        self._listeners: list[Callable[[RegionEvent], None]] = []
        self._spare = Spare()
        self._coming: set[str] = set()

    def listen(self, hear: Callable[[RegionEvent], None]) -> None:
        """Call *hear* with each event from now on."""
        self._listeners.append(hear)

    def _emit(self, event: RegionEvent) -> None:
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

    async def create_region(self, spec: RegionSpec) -> Region:
        """Make a region and serve it.

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
            _clear(spec.socket)  # before the memory: a path in use costs nothing then
            file = spec.backing.path
            born = bool(file) and not os.path.lexists(file)
            shared = await asyncio.to_thread(memory.create, spec.backing, spec.size, spec.name)
            try:
                region = Region.open(spec, self._loop, self._emit, self._spare, shared)
            except BaseException:
                if born:
                    os.unlink(file)
                raise
        finally:
            self._coming.discard(spec.name)
        self.regions[spec.name] = region
        self._emit(RegionAdded(region))
        return region

    def _check_backing(self, spec: RegionSpec) -> None:
        for other in self.regions.values():
            if spec.backing.path and spec.backing.path == other.spec.backing.path:
                raise MemoryUnavailable(
                    f'region "{spec.name}": {spec.backing} is the memory of region "{other.name}"; give each its own'
                )

    def with_defaults(self, spec: RegionSpec) -> RegionSpec:
        """Fill in what a region does not say for itself."""
        if spec.socket:
            return spec
        return dataclasses.replace(spec, socket=os.path.join(self.runtime_directory, spec.name, "socket"))

    def remove_region(self, name: str) -> None:
        """Disconnect a region's peers and let go of it.

        Raises:
            NoSuchRegion: it is not there.
        """
        region = self.region(name)
        region.close()
        del self.regions[name]
        self._emit(RegionRemoved(region))

    def close(self) -> None:
        """Let go of everything; the daemon stops."""
        for name in list(self.regions):
            self.regions.pop(name).close("the daemon stops")
        self._spare.close()

    def descriptors_in_use(self) -> int:
        """Count our open descriptors; when there is none left to count with, all are."""
        try:
            return limits.in_use()
        except OSError:
            return self.descriptor_limit

    def describe(self) -> dict[str, Any]:
        """Put everything there is in plain values (the JSON of ``Describe``)."""
        return {
            "descriptors": {"limit": self.descriptor_limit, "in-use": self.descriptors_in_use()},
            "regions": {name: _describe(region) for name, region in sorted(self.regions.items())},
            "devices": {},
        }


def _clear(socket: str) -> None:
    try:
        listener.clear(socket)
    except OSError as error:
        cure = "give the daemon's user access to its directory, or choose another socket path"
        raise SocketUnavailable(f"{socket}: {error.strerror}; {cure}") from error


def _describe(region: Region) -> dict[str, Any]:
    return {
        **region.spec.as_options(),
        "host-rings": region.host.totals if region.host else [],
        "peers": [
            {
                "id": peer.id,
                "pid": peer.who.pid,
                "uid": peer.who.uid,
                "gid": peer.who.gid,
                "vm": peer.who.vm_name,
                "unit": peer.who.unit,
                "since": peer.since,
                "vectors": peer.vectors,
                "backlog": peer.backlog,
            }
            for peer in region.peers.values()
        ],
    }
