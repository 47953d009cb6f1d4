# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Peer IDs: which number a peer gets, and which numbers nobody may get now.

The lowest available number is given. Numbers that were never given are a counter, those that became available again are
a heap: either way the next one is found in O(log n).

A number is not available while

- a peer has it (``used``), or a rule or the host peer reserves it;
- a peer is still to be told that its last holder left (`hold`);
- a connected QEMU remembers it (`remember`): it has the doorbells of the number's owner, and it would corrupt its own
  memory if the number joined again with others (docs/decisions/0011);
- it is retired (`retire`): QEMUs were told of a leave, after which they can't take a join of the same number. Numbers
  are retired until all peers are gone that were there then; sequence numbers of the roster tell which.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable

from ..wire.ivshmem import ID_MAX


class IdPool:
    """The IDs *first* .. 65535, less those *reserved* for a rule or the host peer, which are given by number only."""

    def __init__(self, first: int = 0, reserved: Iterable[int] = ()) -> None:
        self._first = self._next = first
        self._reserved = frozenset(reserved)
        self._free: list[int] = []  # a heap of numbers below the counter, some of which may be unavailable again
        self._queued: set[int] = set()  # the same
        self._used: set[int] = set()
        self._held: Counter[int] = Counter()
        self._remembered: Counter[int] = Counter()
        self._retired: dict[int, int] = {}  # since which sequence number, in the order of that

    def take(self) -> int | None:
        """Give the lowest available ID, or None if there is none."""
        while self._free:
            peer_id = heapq.heappop(self._free)
            self._queued.discard(peer_id)
            if self._available(peer_id):
                self._used.add(peer_id)
                return peer_id
        while self._next <= ID_MAX:
            peer_id, self._next = self._next, self._next + 1
            if self._available(peer_id):
                self._used.add(peer_id)
                return peer_id
        return None

    def take_this(self, peer_id: int) -> bool:
        """Give this very ID, to its owner; False if a peer has it, or if it is retired.

        It may still be held or remembered: the stream of a peer tells the leave first, and the owner has the doorbells
        that are remembered.
        """
        if peer_id in self._used or peer_id in self._retired:
            return False
        self._used.add(peer_id)
        return True

    def is_reserved(self, peer_id: int) -> bool:
        """Tell whether only a rule or the host peer may have it."""
        return peer_id in self._reserved

    def reserve(self, reserved: Iterable[int]) -> None:
        """Reserve other IDs than before; a peer that has one of them now keeps it while it is connected."""
        before, self._reserved = self._reserved, frozenset(reserved)
        for peer_id in before - self._reserved:
            self._offer(peer_id)

    def give_back(self, peer_id: int) -> None:
        """Take back an ID whose holder left."""
        self._used.discard(peer_id)
        self._offer(peer_id)

    def hold(self, peer_id: int) -> None:
        """Note that one more peer is still to be told that the holder left."""
        self._held[peer_id] += 1

    def release(self, peer_id: int) -> None:
        """Undo one `hold`."""
        self._uncount(self._held, peer_id)

    def remember(self, peer_id: int) -> None:
        """Note that one more connected peer has the doorbells of this ID, and is not told that its owner left."""
        self._remembered[peer_id] += 1

    def forget(self, peer_id: int) -> None:
        """Undo one `remember`."""
        self._uncount(self._remembered, peer_id)

    def is_remembered(self, peer_id: int) -> bool:
        """Tell whether a connected peer has the doorbells of this ID, and was not told that its owner left."""
        return peer_id in self._remembered

    def retire(self, peer_id: int, seq: int) -> None:
        """Give the ID to nobody until all members below sequence number *seq* are gone (`unretire`)."""
        self._retired.pop(peer_id, None)
        self._retired[peer_id] = seq

    def unretire(self, oldest: int | None) -> None:
        """Make retired IDs available, given the number of the *oldest* member that can't take a returning ID."""
        while self._retired:
            peer_id, seq = next(iter(self._retired.items()))
            if oldest is not None and oldest < seq:
                return
            del self._retired[peer_id]
            self._offer(peer_id)

    @property
    def retired(self) -> dict[int, int]:
        """The retired IDs, each with its sequence number, in the order of that."""
        return self._retired

    def _uncount(self, counter: Counter[int], peer_id: int) -> None:
        counter[peer_id] -= 1
        if counter[peer_id] <= 0:
            del counter[peer_id]
            self._offer(peer_id)

    def _available(self, peer_id: int) -> bool:
        return not (
            peer_id in self._used
            or peer_id in self._reserved
            or peer_id in self._held
            or peer_id in self._remembered
            or peer_id in self._retired
        )

    def _offer(self, peer_id: int) -> None:
        # numbers below the first were given under another configuration, those above the counter come by it
        if self._first <= peer_id < self._next and peer_id not in self._queued and self._available(peer_id):
            self._queued.add(peer_id)
            heapq.heappush(self._free, peer_id)
