# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The objects of clients, of whom they see in the regions they joined, and of flat devices: thin views of the model.

The region is another server's, so what is known of its peers is what that says: their IDs and their doorbells. Who they
are it does not tell, and to drop them is its business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import AccessDenied, ServerClosed
from ..fds.owned import Fd
from ..ivshmem.flat import Register
from ..ivshmem.hostclient import HostClient, HostFlat
from . import paths
from .authority import Action
from .library import text
from .names import CLIENT, FLAT, PEER
from .sharing import DoorbellMethods, MemoryMethods
from .views import View, method, prop

UNKNOWN = 0xFFFFFFFF
"""The ID of a client that has none, and the user and group of a peer that is another server's."""


@dataclass(frozen=True, slots=True)
class ForeignMemory:
    """The memory of the region that *client* is in."""

    client: HostClient

    @property
    def size(self) -> int:
        """Bytes."""
        return self.client.memory_size

    def dup(self) -> Fd:
        """Give another descriptor of it."""
        assert self.client.memory is not None
        return self.client.memory.dup()

    def read(self, offset: int, length: int) -> bytes:
        """Read within the bounds."""
        return self.client.read_memory(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Write within the bounds."""
        self.client.write_memory(offset, data)


def _memory_of(client: HostClient) -> ForeignMemory:
    if client.memory is None:
        raise ServerClosed(f'"{client.name}" is not connected to {client.spec.socket}: {client.reason}')
    return ForeignMemory(client)


class _Joined:
    """What clients and flat devices have in common."""

    def __init__(self, client: HostClient) -> None:
        self._client = client

    def _shared(self) -> ForeignMemory:
        return _memory_of(self._client)

    @prop("Name")
    def name(self) -> str:
        """Its name."""
        return self._client.name

    @prop("Socket")
    def socket(self) -> str:
        """Where its server listens."""
        return self._client.spec.socket

    @prop("State")
    def state(self) -> str:
        """How it stands."""
        return self._client.state.value

    @prop("Reason")
    def reason(self) -> str:
        """Why it is not connected."""
        return text(self._client.reason)

    @prop("Vectors")
    def vectors(self) -> int:
        """Our doorbells there."""
        return self._client.vectors

    @prop("PeerCount")
    def peer_count(self) -> int:
        """The others there."""
        return len(self._client.peers)

    @prop("Since")
    def since(self) -> int:
        """When it was let in."""
        return self._client.since

    @prop("Rings")
    def rings(self) -> list[int]:
        """Rings taken, by vector."""
        return [total % (1 << 64) for total in self._client.rings]  # whoever rings can add nearly 2^64 at a time


class ClientView(_Joined, DoorbellMethods, MemoryMethods, View, interface=CLIENT):
    """A client."""

    def __init__(self, client: HostClient) -> None:
        super().__init__(client)
        self._ringer = client

    @method("ListPeers", Action.INSPECT)
    def list_peers(self) -> list[list[Any]]:
        """ID, number of doorbells, path of each."""
        name = self._client.name
        return [[peer.id, peer.vectors, paths.client_peer(name, peer.id)] for peer in self._client.peers.values()]

    @prop("Id")
    def id(self) -> int:
        """Our ID there."""
        return UNKNOWN if self._client.id is None else self._client.id

    @prop("Size")
    def size(self) -> int:
        """Bytes of its memory."""
        return self._client.memory_size

    @prop("Reconnect")
    def reconnect(self) -> bool:
        """Whether it tries again."""
        return self._client.spec.reconnect


class ForeignPeerView(View, interface=PEER):
    """A peer in the region of another server."""

    def __init__(self, client: HostClient, peer_id: int) -> None:
        self._client = client
        self._id = peer_id

    @method("Notify", Action.NOTIFY)
    def notify(self, vector: int) -> None:
        """Ring one of its doorbells."""
        self._client.notify(self._id, vector)

    @method("NotifyAll", Action.NOTIFY)
    def notify_all(self) -> None:
        """Ring all of them."""
        self._client.notify_peer(self._id)

    @method("Disconnect", Action.MANAGE)
    def disconnect(self) -> None:
        """Refuse: it is not ours."""
        raise AccessDenied(
            f'peer {self._id} of client "{self._client.name}" is connected to another server, the one at '
            f"{self._client.spec.socket}; have that one disconnect it"
        )

    @prop("Id")
    def id(self) -> int:
        """Its ID."""
        return self._id

    @prop("Pid")
    def pid(self) -> int:
        """Not known."""
        return 0

    @prop("Uid")
    def uid(self) -> int:
        """Not known."""
        return UNKNOWN

    @prop("Gid")
    def gid(self) -> int:
        """Not known."""
        return UNKNOWN

    @prop("VmName")
    def vm_name(self) -> str:
        """Not known."""
        return ""

    @prop("Unit")
    def unit(self) -> str:
        """Not known."""
        return ""

    @prop("Since")
    def since(self) -> int:
        """When the server told of it."""
        return self._client.seen(self._id)

    @prop("Vectors")
    def vectors(self) -> int:
        """How many of its doorbells have come."""
        return self._client.peers[self._id].vectors

    @prop("Backlog")
    def backlog(self) -> int:
        """Its server knows."""
        return 0

    @prop("RingsSent")
    def rings_sent(self) -> int:
        """Its server knows, if anybody does."""
        return 0

    @prop("RingsReceived")
    def rings_received(self) -> int:
        """Its server knows, if anybody does."""
        return 0


class FlatDeviceView(_Joined, MemoryMethods, View, interface=FLAT):
    """A flat device."""

    def __init__(self, flat: HostFlat) -> None:
        super().__init__(flat)
        self._flat = flat

    @method("Read", Action.INSPECT)
    def read(self, offset: int) -> int:
        """Read a register."""
        return self._flat.read(offset)

    @method("Write", Action.NOTIFY)
    def write(self, offset: int, value: int) -> None:
        """Write one; what a guest would not notice is an error."""
        self._flat.write(offset, value)

    @prop("IvPosition")
    def iv_position(self) -> int:
        """What the register reads."""
        return self._flat.read(Register.IVPOSITION)

    @prop("MemorySize")
    def memory_size(self) -> int:
        """Bytes of its memory."""
        return self._flat.memory_size

    @prop("Interrupts")
    def interrupts(self) -> int:
        """Rings that pulsed the line."""
        return self._flat.interrupts % (1 << 64)
