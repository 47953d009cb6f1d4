# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection to a region: on its way in, and admitted."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..fds.budgets import Account
from ..fds.owned import FdSet
from ..fds.peercred import Credentials
from .courier import Recipient
from .outbox import Outbox
from .record import vault_of
from .roster import Member
from .rules import PeerRule


class Peer(Recipient):
    """A connected peer. Its region owns the socket and, in ``member``, the eventfds."""

    def __init__(
        self,
        member: Member,
        sock: socket.socket,
        who: Credentials,
        rule: PeerRule | None,
        since: int,
        outbox: Outbox,
        arrival: int,
    ) -> None:
        """*arrival* is the number by which it was kept before it was admitted, which is no longer so if it returned."""
        super().__init__(sock.fileno(), outbox)
        self.member = member
        self.sock = sock
        self.who = who
        self.rule = rule
        """Under which it came, if there were rules."""
        self.vault = vault_of(member.seq, returned=True) if member.returned else vault_of(arrival)
        """The name of the vault with its socket and its doorbells."""
        self.account: Account | None = None
        """What it holds of the budgets."""
        self.since = since
        """When it connected: microseconds of CLOCK_REALTIME."""
        self.entry = {
            "id": member.id,
            "seq": member.seq,
            "vectors": len(member.eventfds),
            "who": who.export(),
            "since": since,
            "rule": rule and rule.raw(),
            "keeps": outbox.keeps,
            **({"arrival": arrival} if arrival != member.seq and not member.returned else {}),
            **({"returned": {"key": member.key, "vault": member.vault}} if member.returned else {}),
        }
        """What the region's state says of it and never changes."""

    def export(self) -> dict[str, Any]:
        """Describe it for the region's state."""
        return {**self.entry, "outbox": self.outbox.export()}

    @property
    def id(self) -> int:
        """Its ID in the region."""
        return self.member.id

    @property
    def vectors(self) -> int:
        """How many doorbells it has."""
        return len(self.member.eventfds)

    @property
    def backlog(self) -> int:
        """Messages that it has not taken yet."""
        return self.outbox.backlog


def visibility(rule: PeerRule | None, peers: Mapping[int, Peer]) -> Callable[[Member], bool] | None:
    """Give what tells which members somebody under *rule* sees, of *peers* and the host peer; None for all."""
    if rule is None or rule.allows_all:
        return None

    def visible(member: Member) -> bool:
        peer = peers.get(member.id)
        return rule.allows(member.id, peer.who.vm_name if peer else "", is_host=peer is None)

    return visible


@dataclass(slots=True)
class Arrival:
    """A connection that is to be admitted."""

    number: int
    """By which it is kept already, and by which it joins unless somebody who came later has joined before; -1 if it
    has none yet, and is not kept."""
    eventfds: FdSet
