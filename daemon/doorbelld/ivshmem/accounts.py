# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the peers of a region cost, counted in the budgets of all.

A peer costs a connection, a descriptor for it, and one for each of its doorbells. In a relayed region it costs the
proxies between it and those who were there before it, too: whoever comes last pays, for as long as both are there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ..errors import LimitExceeded
from ..fds import eventfd
from ..fds.budgets import Account, Budgets, narrow
from ..fds.owned import FdSet
from .peer import Peer
from .relay import Pair, Relay
from .roster import Member


class Accounts:
    """Counts what the peers of the region *name* with *vectors* doorbells each hold of *budgets*."""

    def __init__(self, budgets: Budgets, name: str, vectors: int, relay: Relay | None) -> None:
        self._budgets = budgets
        self._name = name
        self._vectors = vectors
        if relay is not None:
            relay.budgets = budgets

    def check(self, uid: int) -> None:
        """See whether there is room for one more peer of user *uid*.

        Raises:
            LimitExceeded: there is not.
        """
        self._budgets.check("connections", uid, 1)
        self._budgets.check("descriptors", uid, 1 + self._vectors)
        if window := self._budgets.window(uid):
            self._budgets.check("in-flight", uid, window)

    def opened(self, peer: Peer, kept: bool) -> None:
        """Count a peer that is there now, and let so much be in flight to it as its window allows.

        What is *kept* of it over a restart is in a vault, and so in flight too.
        """
        account = peer.account = Account(self._budgets, peer.who.uid, self._name)
        account.count("connections", 1)
        account.count("descriptors", 1 + len(peer.member.eventfds))
        if window := self._budgets.window(peer.who.uid):
            account.count("in-flight", window + kept * (1 + self._vectors))
            narrow(peer.sock, window)

    def pair(self, peer: Peer, pairs: Collection[object]) -> None:
        """Count the *pairs* between *peer*, who is new, and the others.

        Raises:
            LimitExceeded: there is no room for them.
        """
        if peer.account is not None:
            peer.account.hold("descriptors", 1 + self._vectors + len(pairs) * self._vectors)

    def restored(self, relay: Relay | None, peers: Mapping[int, Peer]) -> None:
        """Count the pairs that came back from before a restart."""
        self._count(relay.of_all() if relay is not None else (), peers, self._vectors)

    def closed(self, peer: Peer, ended: Iterable[Pair], peers: Mapping[int, Peer]) -> None:
        """Give back what *peer* held, and what others held for the pairs that *ended* with it."""
        if peer.account is not None:
            peer.account.close()
        self._count((pair for pair in ended if _later(pair) is not peer.member), peers, -self._vectors)

    def _count(self, pairs: Iterable[Pair], peers: Mapping[int, Peer], each: int) -> None:
        for pair in pairs:
            payer = peers.get(_later(pair).id)
            if payer is not None and payer.account is not None:
                payer.account.count("descriptors", each)


def _later(pair: Pair) -> Member:
    return max(pair.sender, pair.target, key=lambda member: member.seq)


def doorbells(vectors: int, budgets: Budgets | None = None) -> FdSet:
    """Make the doorbells of a peer; of a newcomer, to whom *budgets* apply, if they are given.

    Raises:
        LimitExceeded: there are not enough descriptors.
    """
    try:
        return eventfd.make(vectors) if budgets is None else budgets.for_newcomer(eventfd.make(vectors))
    except OSError as error:
        raise LimitExceeded(f"no descriptors for {vectors} doorbells: {error.strerror}; raise LimitNOFILE=") from error
