# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's own use of a region: ringing whoever is in it, and writing to its memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

from ..errors import NoSuchPeer, NoSuchVector, NotRelayed
from ..fds import native
from ..fds.owned import Fd
from .admission import Admission
from .peer import Peer
from .relay import Relay
from .roster import Member, Roster
from .spec import RegionSpec


class Ringing:
    """What callers do with a region, beside coming and going; `Region` has what this works on."""

    spec: RegionSpec
    roster: Roster
    peers: dict[int, Peer]
    memory: Fd
    relay: Relay | None
    admission: Admission

    @property
    def name(self) -> str:
        """The region's name."""
        return self.spec.name

    def notify(self, peer_id: int, vector: int) -> None:
        """Ring one doorbell (the seed's ivshmem_client_notify).

        Raises:
            NoSuchPeer, NoSuchVector: naming what is there instead.
        """
        native.ring_one(self.doorbell(peer_id, vector))

    def notify_peer(self, peer_id: int) -> None:
        """Ring all doorbells of a peer (ivshmem_client_notify_all_vects)."""
        native.ring(self.member(peer_id).fds)

    def broadcast(self) -> None:
        """Ring all doorbells of all peers but the host peer (ivshmem_client_notify_broadcast)."""
        for peer in self.peers.values():
            native.ring(peer.member.fds)

    def notify_many(self, targets: Sequence[Sequence[int]]) -> None:
        """Ring many (peer ID, vector); all are looked up before the first is rung."""
        try:
            native.ring(native.look_up(self.roster.doorbells, targets))
        except LookupError as error:
            self.doorbell(*error.args[0])  # raises, with words

    def member(self, peer_id: int) -> Member:
        """Find a member by ID (ivshmem_client_search_peer)."""
        member = self.roster.by_id.get(peer_id)
        if member is None:
            what = f'region "{self.name}" has no peer {peer_id}'
            if (absent := self.admission.absent.get(peer_id)) is not None and absent.member is not None:
                owner = f'VM "{absent.who.vm_name}"' if absent.who.vm_name else f"uid {absent.who.uid}"
                what = f'peer {peer_id} of region "{self.name}" is absent: it left, and the ID waits for {owner}'
            raise NoSuchPeer(f"{what}; {self._who_is_there()}")
        return member

    def doorbell(self, peer_id: int, vector: int) -> int:
        """Find the eventfd of a doorbell, borrowed."""
        eventfds = self.roster.doorbells.get(peer_id)
        if eventfds is None:
            eventfds = self.member(peer_id).fds  # raises, with words
        if not 0 <= vector < len(eventfds):
            raise NoSuchVector(
                f'peer {peer_id} of region "{self.name}" has vectors 0 to {len(eventfds) - 1}, not {vector}'
            )
        return eventfds[vector]

    def _who_is_there(self) -> str:
        ids = sorted(self.peers)
        if not ids:
            return f"nobody is connected; a guest attaches at {self.spec.socket}"
        return f"connected: {', '.join(map(str, ids[:8]))}{' ...' if len(ids) > 8 else ''}"

    def write_memory(self, offset: int, data: bytes) -> None:
        """Write to the shared memory; the caller has checked the bounds.

        Sealed memory is mapped for it, since huge pages know no write(2). Memory that others may truncate is written
        by pwrite(2): a mapping of it could raise SIGBUS in us.
        """
        if self.spec.backing.path:
            os.pwrite(self.memory.fileno(), data, offset)
            return
        with mmap.mmap(self.memory.fileno(), self.spec.size) as mapped:
            mapped[offset : offset + len(data)] = data

    def relayed(self) -> Relay:
        """Give the region's relay.

        Raises:
            NotRelayed: it has none.
        """
        if self.relay is None:
            raise NotRelayed(
                f'region "{self.name}" has no relay: its peers hold each other\'s doorbells; make it with relay = true'
            )
        return self.relay
