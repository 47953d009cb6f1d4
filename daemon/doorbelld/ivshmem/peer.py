# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection to a region: on its way in, and admitted."""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass
from typing import Any

from ..fds.owned import FdSet
from ..fds.peercred import Credentials
from .courier import Recipient
from .outbox import Outbox
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
        vault: str,
    ) -> None:
        super().__init__(sock.fileno(), outbox)
        self.member = member
        self.sock = sock
        self.who = who
        self.rule = rule
        """Under which it came, if there were rules."""
        self.vault = vault
        """The name of the vault with its socket and its doorbells."""
        self.since = since
        """When it connected: microseconds of CLOCK_REALTIME."""
        self.entry = {
            "id": member.id,
            "seq": member.seq,
            "vectors": len(member.eventfds),
            "who": asdict(who),
            "since": since,
            "rule": rule and rule.raw(),
            "keeps": outbox.keeps,
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


@dataclass(slots=True)
class Arrival:
    """A connection that is to be admitted."""

    seq: int
    """Its number, by which it is kept already; -1 if it has none yet, and is not."""
    eventfds: FdSet
