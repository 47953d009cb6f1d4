# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What every client has to show, however it waits: its ID, the others, the memory, and words for what is not there."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from ..errors import DoorbellError, NoSuchPeer, NoSuchVector, ServerClosed
from ..fds.bells import Bells
from .membership import Membership, RemotePeer
from .spec import VECTORS_MAX


def missing(
    doorbells: Mapping[int, object], own_id: int | None, peer_id: int | None, vector: int | None
) -> DoorbellError:
    """Say what is there in place of a doorbell that is not."""
    if own_id is None or peer_id is None:
        who = "nobody to ring" if peer_id is None else f"no peer {peer_id}"
        return ServerClosed(f"{who}: not connected to a server; connect first")
    if peer_id == own_id and peer_id not in doorbells:
        return NoSuchVector(f"we, peer {own_id}, have no vector yet; wait for them")
    if vector is None:
        others = sorted(each for each in doorbells if each != own_id)
        there = ", ".join(map(str, others[:8])) + (" ..." if len(others) > 8 else "")
        return NoSuchPeer(f"no peer {peer_id}; there is: {there or 'nobody else'} (and we are {own_id})")
    count = len(doorbells[peer_id])  # type: ignore[arg-type]
    return NoSuchVector(f"peer {peer_id} has {f'vectors 0 to {count - 1}' if count else 'no vector'}, not {vector}")


class Joined(Bells):
    """A client of the server at *path*, for `client.Client` and `aioclient.AsyncClient`."""

    def __init__(self, path: str, vectors_max: int = VECTORS_MAX) -> None:
        self.path = path
        self.vectors_max = vectors_max
        self._membership = Membership(vectors_max)
        self._memory: mmap.mmap | None = None

    @property
    def id(self) -> int:
        """Our own ID.

        Raises:
            ServerClosed: there is no connection.
        """
        if self.own_id is None:
            raise self._unconnected()
        return self.own_id

    @property
    def vectors(self) -> int:
        """How many doorbells of our own have come so far."""
        return self._membership.own.vectors

    @property
    def peers(self) -> Mapping[int, RemotePeer]:
        """The others by ID, in the order of joining; a view that changes as they come and go."""
        return MappingProxyType(self._membership.peers)

    def __iter__(self) -> Iterator[RemotePeer]:
        """Go over the others as they are now; the loop may handle events meanwhile."""
        return iter(list(self._membership.peers.values()))

    def search_peer(self, peer_id: int) -> RemotePeer:
        """Find a peer, or ourselves, by ID (ivshmem_client_search_peer).

        Raises:
            NoSuchPeer: naming who is there instead.
        """
        if (peer := self._membership.search(peer_id)) is None:
            raise self.missing(peer_id, None)
        return peer

    @property
    def memory(self) -> mmap.mmap:
        """The shared memory, mapped to be read and written.

        A server whose memory is not sealed can truncate it; to touch what is gone then ends the process (SIGBUS).
        doorbelld's memory of the kinds memfd and hugetlb is sealed.

        Raises:
            ServerClosed: there is no connection.
        """
        if self._memory is None:
            raise self._unconnected()
        return self._memory

    @property
    def memory_fd(self) -> int:
        """The descriptor of the shared memory, borrowed.

        Raises:
            ServerClosed: there is no connection.
        """
        if self._membership.memory is None:
            raise self._unconnected()
        return self._membership.memory.fileno()

    def dump(self) -> str:
        """Describe the client, its peers and all vectors, in lines for people (ivshmem_client_dump)."""
        if self.own_id is None:
            return f"not connected to {self.path or 'a server'}"
        lines = [f"our ID: {self.own_id}", f"memory: {len(self.memory)} bytes", *_vectors(self._membership.own)]
        for peer in self:
            lines += [f"peer {peer.id}", *_vectors(peer)]
        return "\n".join(lines)

    def missing(self, peer_id: int | None, vector: int | None) -> DoorbellError:
        """Say what there is in place of a doorbell that is not there (see `Bells.missing`)."""
        return missing(self.doorbells, self.own_id, peer_id, vector)

    def _unconnected(self) -> ServerClosed:
        return ServerClosed(f"not connected to {self.path or 'a server'}; connect first")

    def _unmap(self) -> None:
        if self._memory is not None:
            with contextlib.suppress(BufferError):  # somebody has a view of it
                self._memory.close()
            self._memory = None


def _vectors(peer: RemotePeer) -> Iterator[str]:
    for vector, fd in enumerate(peer.eventfds):
        yield f"  vector {vector}: eventfd {fd}"
