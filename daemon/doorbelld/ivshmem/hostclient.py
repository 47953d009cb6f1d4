# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon as a client: a member of a region that another server serves, and a flat device in one.

Theory of operation
-------------------
A `HostClient` is there from the moment it is asked for, whether its server is or not; ``state`` and ``reason`` say how
things stand. `link` does the work. What happens is told by events, through *emit*. Nothing here logs, and nothing here
knows D-Bus.

Where there is a keeper, the connection and all that came over it go there (`clientjournal`), and `clientrevival` puts
the client together again in another process: its server notices nothing.

Invariants
----------
1. ``peers`` has exactly those of whom `ClientPeerAdded` was told and `ClientPeerRemoved` was not.
2. Nothing that a server does leaves this module as an exception, and nothing here waits for one.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self

from ..errors import MemoryUnavailable, ServerClosed
from ..fds import limits, native
from ..fds.keeper import Keeper
from ..fds.owned import Fd
from ..wire.ivshmem import MESSAGE
from .client_events import (
    ClientEvent,
    ClientPeerAdded,
    ClientPeerRemoved,
    ClientRung,
    ClientStateChanged,
    ClientUnkept,
)
from .clientjournal import LEDGER, NO_ROOM, ClientJournal
from .clientspec import ClientSpec, FlatSpec
from .flat import FlatDevice
from .joined import missing
from .link import ClientState, Link, PlainSource
from .membership import Change, PeerJoined, PeerLeft, RemotePeer
from .receive import map_memory

STATE_VERSION = 1
"""Of what `HostClient.export` gives."""


class HostClient:
    """The daemon's place in the region of the server at ``spec.socket``; `open` makes one."""

    SPEC: ClassVar[type[ClientSpec]] = ClientSpec
    spec: ClientSpec

    def __init__(
        self,
        spec: ClientSpec,
        loop: asyncio.AbstractEventLoop,
        emit: Callable[[ClientEvent], None],
        configured: bool = False,
    ) -> None:
        self.spec = spec
        self.configured = configured
        """Whether the configuration asked for it, rather than a call."""
        self.link = Link(
            spec.socket,
            loop,
            changed=self._changed,
            rung=self.rung,
            moved=self._moved,
            accept=self._accept,
            vectors_max=spec.vectors_max,
            reconnect=spec.reconnect,
            fd_end=limits.for_other_servers(),
        )
        self._journal: ClientJournal | None = None
        self._emit = emit
        self._joined: dict[int, int] = {}  # when each of the others was first told of

    @classmethod
    def open(
        cls,
        spec: ClientSpec,
        loop: asyncio.AbstractEventLoop,
        emit: Callable[[ClientEvent], None],
        *,
        keeping: tuple[Keeper, str] | None = None,
        configured: bool = False,
    ) -> Self:
        """Begin to connect; what comes of it is told by events, which may come before this returns.

        *keeping* is a keeper, and what goes before the names that it gets.
        """
        made = cls(spec, loop, emit, configured)
        if keeping is not None:
            made.keep(*keeping)
        made.link.start()
        return made

    def close(self, reason: str = "it is removed") -> None:
        """Leave the region and let go of everything; a second time does nothing."""
        old = self.state
        self.link.close(reason)
        self.unkeep()
        self._forget()
        if old is not ClientState.CLOSED:
            self._emit(ClientStateChanged(self, old, ClientState.CLOSED))

    def let_go(self) -> None:
        """Close what we have and tell nobody, as the end of the process would; what is kept stays kept."""
        self.link.let_go()
        if self._journal is not None:
            self._journal.close()

    def change(self, spec: ClientSpec, configured: bool) -> None:
        """Go over to *spec*, which differs in nothing that is frozen; fewer vectors hold for those who come."""
        self.spec, self.configured = spec, configured
        self.link.membership.vectors_max = spec.vectors_max
        self.link.restart(spec.reconnect)
        if self._journal is not None:
            self._journal.renew()

    # Restart

    @property
    def kept(self) -> bool:
        """Whether it would survive our end."""
        return self._journal is not None

    def keep(self, keeper: Keeper, prefix: str) -> bool:
        """Leave a record with *keeper*, all names in which begin with *prefix*; tell whether there was room."""
        name = LEDGER.format(self.spec.KIND, self.name)
        self._journal = ClientJournal.start(keeper, prefix, name, self.link, self.export, self.overflow)
        if self._journal is None:
            self._emit(ClientUnkept(self, NO_ROOM))
        return self.kept

    def overflow(self, reason: str) -> None:
        """Give up the record, for *reason*."""
        self.unkeep()
        self._emit(ClientUnkept(self, reason))

    def unkeep(self) -> None:
        """Take the record back."""
        if self._journal is not None:
            journal, self._journal = self._journal, None
            self.link.read_by(PlainSource())
            journal.discard()

    def resume(self, journal: ClientJournal, rings: Sequence[int]) -> None:
        """Go on with a record that another process left; *rings* were counted there."""
        self._journal = journal
        self.link.totals[:] = rings

    def export(self, journal: ClientJournal) -> dict[str, Any]:
        """Describe the client for `clientrevival.revive_client`, in values that JSON can hold.

        *journal* knows where the descriptors are.
        """
        return {
            "version": STATE_VERSION,
            "kind": self.spec.KIND,
            "name": self.name,
            "spec": self.spec.raw(),
            "configured": self.configured,
            "rings": self.link.totals,
            "over": self.reason if self.link.over and self.state is ClientState.BROKEN else "",
            "connection": None if self.link.sock is None else self._export_connection(journal),
        }

    def _export_connection(self, journal: ClientJournal) -> dict[str, Any]:
        link, membership = self.link, self.link.membership
        memory = [] if membership.memory is None else [membership.memory.fileno()]
        return {
            "socket": journal.socket,
            "messages": min(link.taken // MESSAGE.size, 3),
            "id": membership.id,
            "since": link.since,
            "memory": journal.find(memory),
            "own": journal.find(membership.own.eventfds),
            "peers": [[p.id, self._joined[p.id], journal.find(p.eventfds)] for p in membership.peers.values()],
            "tail": [[data.hex(), journal.find(fds)] for data, fds in link.tail],
        }

    # What there is

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def state(self) -> ClientState:
        """How things stand with the server."""
        return self.link.state

    @property
    def reason(self) -> str:
        """Why it is not connected; empty if it is."""
        return self.link.reason

    @property
    def id(self) -> int | None:
        """Our own ID, while we are connected."""
        return self.link.membership.id if self.state is ClientState.CONNECTED else None

    @property
    def own_id(self) -> int | None:
        """The same, for who rings (`flat.Doorbells`)."""
        return self.id

    @property
    def vectors(self) -> int:
        """How many doorbells of our own have come so far."""
        return self.link.membership.own.vectors

    @property
    def peers(self) -> Mapping[int, RemotePeer]:
        """The others by ID, in the order of joining; a view that changes as they come and go."""
        return MappingProxyType(self.link.membership.peers)

    @property
    def since(self) -> int:
        """When the server welcomed us, in us of CLOCK_REALTIME; 0 while we are not connected."""
        return self.link.since

    def seen(self, peer_id: int) -> int:
        """Tell when the server first told us of a peer, in us of CLOCK_REALTIME.

        Raises:
            NoSuchPeer, ServerClosed: naming what is there instead.
        """
        if peer_id not in self._joined:
            raise self._missing(peer_id, None)
        return self._joined[peer_id]

    @property
    def rings(self) -> list[int]:
        """How often we were rung, by own vector; they count on over connections."""
        return self.link.totals

    @property
    def interrupts(self) -> int:
        """How often we were rung."""
        return sum(self.link.totals)

    # The memory

    @property
    def memory(self) -> Fd | None:
        """The shared memory, while we are connected."""
        return self.link.membership.memory if self.state is ClientState.CONNECTED else None

    @property
    def memory_size(self) -> int:
        """Bytes of the memory; 0 while we are not connected."""
        return 0 if self.memory is None else os.fstat(self.memory.fileno()).st_size

    def read_memory(self, offset: int, length: int) -> bytes:
        """Read from the shared memory; the caller has checked the bounds.

        Raises:
            ServerClosed: we are not connected.
            MemoryUnavailable: it can't be read.
        """
        try:
            return os.pread(self._shared().fileno(), length, offset)
        except OSError as error:
            raise MemoryUnavailable(f"the memory can't be read: {error.strerror}; it is the server's") from error

    def write_memory(self, offset: int, data: bytes) -> None:
        """Write to the shared memory; the caller has checked the bounds.

        It is the server's, who may truncate it unless it is sealed: a mapping of it could raise SIGBUS in us. So it is
        mapped only where it is sealed and write(2) does not work, as on huge pages.

        Raises:
            ServerClosed: we are not connected.
            MemoryUnavailable: it can't be written.
        """
        memory = self._shared().fileno()
        try:
            try:
                os.pwrite(memory, data, offset)
            except OSError as error:
                if error.errno != errno.EINVAL or not fcntl.fcntl(memory, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                    raise
                with mmap.mmap(memory, self.memory_size) as mapped:
                    mapped[offset : offset + len(data)] = data
        except OSError as error:
            raise MemoryUnavailable(f"the memory can't be written: {error.strerror}; it is the server's") from error

    def _shared(self) -> Fd:
        if self.memory is None:
            raise self._unconnected()
        return self.memory

    # Ringing

    def notify(self, peer_id: int, vector: int) -> None:
        """Ring one doorbell (the seed's ivshmem_client_notify).

        Raises:
            ServerClosed: we are not connected.
            NoSuchPeer, NoSuchVector: naming what is there instead.
        """
        native.ring_one(self.doorbell(peer_id, vector))

    def notify_peer(self, peer_id: int) -> None:
        """Ring all doorbells of a peer (ivshmem_client_notify_all_vects)."""
        eventfds = self.link.membership.doorbells.get(peer_id)
        if eventfds is None:
            raise self._missing(peer_id, None)
        native.ring(eventfds)

    def broadcast(self) -> None:
        """Ring all doorbells of all peers but ourselves (ivshmem_client_notify_broadcast)."""
        if self.id is None:
            raise self._unconnected()
        for peer in self.peers.values():
            native.ring(peer.eventfds.array)

    def notify_many(self, targets: Sequence[Sequence[int]]) -> None:
        """Ring many (peer ID, vector); all are looked up before the first is rung."""
        try:
            native.ring(native.look_up(self.link.membership.doorbells, targets))
        except LookupError as error:
            raise self._missing(*error.args[0]) from None

    def doorbell(self, peer_id: int, vector: int) -> int:
        """Find the eventfd of a doorbell, borrowed; errors as `notify`."""
        eventfds = self.link.membership.doorbells.get(peer_id)
        if eventfds is None or not 0 <= vector < len(eventfds):
            raise self._missing(peer_id, vector)
        return eventfds[vector]

    def _missing(self, peer_id: int, vector: int | None) -> Exception:
        if self.id is None:
            return self._unconnected()
        doorbells = self.link.membership.doorbells
        return missing(doorbells, self.id, peer_id, vector if peer_id in doorbells else None)

    def _unconnected(self) -> ServerClosed:
        return ServerClosed(f'"{self.name}" is not connected to {self.spec.socket}: {self.reason}')

    def rung(self, vector: int, count: int) -> None:
        """Tell of rings that were taken."""
        self._emit(ClientRung(self, vector, count))

    # What the link tells

    def _accept(self, memory: Fd) -> None:
        map_memory(memory).close()

    def _changed(self, change: Change) -> None:
        match change:
            case PeerJoined(peer):
                self._joined[peer.id] = self.link.now
                self._emit(ClientPeerAdded(self, peer.id))
            case PeerLeft(peer):
                del self._joined[peer.id]
                self._emit(ClientPeerRemoved(self, peer.id))

    def _moved(self, old: ClientState, new: ClientState) -> None:
        if new is not ClientState.CONNECTED:
            self._forget()
        if self._journal is not None and self.link.over:
            self._journal.renew()
        self._emit(ClientStateChanged(self, old, new))

    def _forget(self) -> None:
        """Everybody has left, since we have."""
        gone, self._joined = self._joined, {}
        for peer_id in gone:
            self._emit(ClientPeerRemoved(self, peer_id))


class HostFlat(HostClient):
    """A flat device in the region of the server at ``spec.socket``."""

    SPEC: ClassVar[type[ClientSpec]] = FlatSpec
    spec: FlatSpec

    def __init__(
        self,
        spec: FlatSpec,
        loop: asyncio.AbstractEventLoop,
        emit: Callable[[ClientEvent], None],
        configured: bool = False,
    ) -> None:
        super().__init__(spec, loop, emit, configured)
        self.device = FlatDevice(self, irq=self._pulsed, memory_size=spec.memory_size)
        """Its registers and its interrupt line."""

    def read(self, offset: int) -> int:
        """Read the register at *offset*.

        Raises:
            InvalidRegister: there is none.
        """
        return self.device.read(offset, strict=True)

    def write(self, offset: int, value: int) -> None:
        """Write to the register at *offset*.

        Raises:
            InvalidRegister: there is none, or it can't be written.
            ServerClosed, NoSuchPeer, NoSuchVector: what a doorbell rings is not there.
        """
        self.device.write(offset, value, strict=True)

    def _accept(self, memory: Fd) -> None:
        super()._accept(memory)
        self.device.check_memory(os.fstat(memory.fileno()).st_size)

    def resume(self, journal: ClientJournal, rings: Sequence[int]) -> None:
        """Go on with a record that another process left; *rings* were counted there."""
        super().resume(journal, rings)
        self.device.interrupts.update(dict(enumerate(rings)))

    def rung(self, vector: int, count: int) -> None:
        """Pulse the line, which tells."""
        self.device.interrupt(vector, count)

    def _pulsed(self, vector: int, count: int) -> None:
        self._emit(ClientRung(self, vector, count))
