# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a client knows of the region it is in, made from what the server sends; knows no socket and no loop.

Theory of operation
-------------------
`Membership.feed` takes what one ``recvmsg`` gave, and yields a change for each message that matters. The protocol does
not say how many vectors a peer has, nor when the greeting is over: a peer is there with its first vector, and grows.
Peers are told before our own vectors, so with our own first vector everybody is known who was there before us.

A leave of somebody unknown is a `StrayLeave`, and no error: QEMU's own server sends them, since it can lose the joins.

Invariants
----------
1. Each descriptor that was fed is in ``peers``, in ``own`` or is ``memory``; or was closed.
2. ``peers`` never has our own ID.
3. After an error nothing more is taken; `close` is all that is left to do.
4. Doorbells are no files, pipes or sockets: a ring disturbs nothing but an eventfd.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..fds.owned import Fd, FdSet
from ..wire.ivshmem import Decoder, Kind, Message, OutOfPlace, TooManyVectors
from .spec import VECTORS_MAX


class RemotePeer:
    """Somebody in the region: an ID, and an eventfd for each vector (the seed's IvshmemClientPeer)."""

    __slots__ = ("eventfds", "id")

    def __init__(self, peer_id: int) -> None:
        self.id = peer_id
        self.eventfds = FdSet()
        """``eventfds[v]`` is the doorbell of vector v."""

    @property
    def vectors(self) -> int:
        """How many doorbells of it have come so far."""
        return len(self.eventfds)

    def __repr__(self) -> str:
        return f"RemotePeer(id={self.id}, vectors={self.vectors})"


@dataclass(frozen=True, slots=True)
class Welcomed:
    """Version, our own ID and the memory have come."""

    id: int


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """Another peer is there; its first vector has come."""

    peer: RemotePeer


@dataclass(frozen=True, slots=True)
class VectorAdded:
    """One more doorbell of *peer*, or of ourselves."""

    peer: RemotePeer
    vector: int


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """*peer* is gone; its eventfds are closed once this change is handled."""

    peer: RemotePeer


@dataclass(frozen=True, slots=True)
class StrayLeave:
    """The server tells that somebody left of whom it never told."""

    id: int


Change: TypeAlias = Welcomed | PeerJoined | VectorAdded | PeerLeft | StrayLeave


class Membership:
    """A client's view of one region.

    *vectors_max* is how many vectors of a peer are taken; a server that sends more breaks the protocol (the seed's
    IVSHMEM_CLIENT_MAX_VECTORS).
    """

    def __init__(self, vectors_max: int = VECTORS_MAX) -> None:
        self.vectors_max = vectors_max
        self.peers: dict[int, RemotePeer] = {}
        """The others, by ID, in the order of joining."""
        self.own = RemotePeer(-1)
        """Ourselves; the ID is -1 until it has come."""
        self.memory: Fd | None = None
        self.doorbells: dict[int, array[int]] = {}
        """The eventfds of everybody, ourselves too, by ID, in the form that native code takes."""
        self._decoder = Decoder()

    @property
    def id(self) -> int | None:
        """Our own ID, once it has come."""
        return self.own.id if self.own.id >= 0 else None

    @property
    def welcome(self) -> bool:
        """Whether version, ID and memory have come."""
        return self.memory is not None

    def feed(self, data: bytes, fds: Sequence[Fd] = ()) -> Iterator[Change]:
        """Take what one ``recvmsg`` gave (see `Decoder.feed`) and yield what has changed.

        Raises:
            WrongVersion, OutOfPlace, TooManyVectors: the server broke the protocol.
        """
        for message in self._decoder.feed(data, fds):
            yield from self._take(message)

    def search(self, peer_id: int) -> RemotePeer | None:
        """Find a peer, or ourselves, by ID (ivshmem_client_search_peer)."""
        return self.own if peer_id == self.id else self.peers.get(peer_id)

    def close(self) -> None:
        """Close all descriptors; a second time does nothing."""
        self._decoder.close()
        self.doorbells.clear()
        for peer in (self.own, *self.peers.values()):
            peer.eventfds.close()
        self.peers.clear()
        self.own = RemotePeer(-1)
        if self.memory is not None:
            self.memory.close()
            self.memory = None

    def _take(self, message: Message) -> Iterator[Change]:
        match message:
            case Message(Kind.VECTOR, value, Fd() as fd):  # nearly all are
                yield from self._add(value, fd)
            case Message(Kind.OWN_ID, value):
                self.own.id = value
            case Message(Kind.MEMORY, _, Fd() as fd):
                self.memory = fd
                yield Welcomed(self.own.id)
            case Message(Kind.LEFT, value) if value == self.own.id:
                raise OutOfPlace(f"the server says that we, peer {value}, left")
            case Message(Kind.LEFT, value) if value in self.peers:
                peer = self.peers.pop(value)
                del self.doorbells[value]
                try:
                    yield PeerLeft(peer)
                finally:
                    peer.eventfds.close()
            case Message(Kind.LEFT, value):
                yield StrayLeave(value)

    def _add(self, peer_id: int, fd: Fd) -> Iterator[Change]:
        known = self.search(peer_id)
        peer = known or RemotePeer(peer_id)
        eventfds = peer.eventfds.array
        vector = len(eventfds)
        with fd:
            if vector >= self.vectors_max:
                raise TooManyVectors(f"peer {peer_id} has more than {self.vectors_max} vectors")
            if stat.S_IFMT(os.fstat(fd.fileno()).st_mode):  # an eventfd is of no type; to write to a file does harm
                raise OutOfPlace(f"what came as a doorbell of peer {peer_id} is no eventfd")
            eventfds.append(fd.steal())
        self.doorbells[peer_id] = eventfds
        if known is None:
            self.peers[peer_id] = peer
            yield PeerJoined(peer)
        yield VectorAdded(peer, vector)
