# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may join a region, and under which ID.

The first rule that matches says whether a newcomer may join. The ID is the one that the rule fixes; else the one that
the newcomer had before (`absent`); else the lowest available (`ids`). A newcomer that owns the ID gets the doorbells
that were kept for it. A rule can also fix an ID for somebody else than the last owner, after a reload: then the ID gets
new doorbells, and who has the old ones can't ring it.

A newcomer may come before the end of its former connection was read: a VM that was restarted quickly, or while the
daemon was away. So connections of the same owner are looked at first, and removed if they have ended.

What is kept for absent peers is let go of as soon as no connected peer remembers it. When there is too much of it, the
peer that has been absent for the longest is given up.
"""

from __future__ import annotations

import select
import socket
from dataclasses import dataclass
from typing import Protocol

from ..errors import AccessDenied, LimitExceeded
from ..fds.peercred import Credentials, Identity
from .absent import AbsentPeer, AbsentPeers
from .ids import IdPool
from .peer import Peer
from .roster import Member, Roster
from .rules import PeerRule, first_match
from .spec import RegionSpec

CLOSED = "it closed its connection"
_LOOK_MAX = 16
"""Where more peers than this have one identity, they are no restarted VMs; nobody looks whether they have ended."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a newcomer gets."""

    id: int
    rule: PeerRule | None
    absent: AbsentPeer | None
    """Whose ID it was."""
    is_owner: bool
    """Whether the newcomer owns the ID, and so gets its doorbells."""


class Members(Protocol):
    """The region, as far as admission knows it."""

    spec: RegionSpec
    roster: Roster
    peers: dict[int, Peer]
    """Who is connected, in the order of joining."""

    def remove(self, peer: Peer, reason: str) -> None:
        """End a connection."""

    def close_doorbells(self, member: Member) -> None:
        """Let go of the doorbells of an absent peer."""

    def write_given_up(self, peer_id: int, since: int | None) -> None:
        """Write that an ID is kept for its owner no longer.

        It is retired *since* that number, and its leave told to those who remember it; or neither.
        """

    def given_up(self, absent: AbsentPeer, reason: str) -> None:
        """Tell that the doorbells of an absent peer are given up."""


class Admission:
    """Decides who becomes a peer of *region*, and what is kept for those who were."""

    def __init__(self, region: Members) -> None:
        self.ids = IdPool(region.spec.first_id, _reserved(region.spec))
        self.absent = AbsentPeers(region.spec.max_absent)
        self._region = region
        self._present: dict[Identity, set[Peer]] = {}

    def change(self) -> None:
        """Go by what the region's spec says now."""
        spec = self._region.spec
        self.ids.reserve(_reserved(spec))
        self.absent.fix(self.ids.is_reserved)
        self.absent.limit = spec.max_absent
        self.tidy()

    def admit(self, who: Credentials) -> Grant:
        """Grant *who* an ID, which is used then: `joined` or ``ids.give_back`` comes next.

        Raises:
            AccessDenied, LimitExceeded: the rules or the limits say no.
        """
        spec, peers = self._region.spec, self._region.peers
        if len(peers) >= spec.max_peers and not self._remove_ended():
            raise LimitExceeded(f'region "{spec.name}" has its {spec.max_peers} peers; raise max-peers')
        rule = first_match(spec.peer, who)
        if spec.peer and rule is None:
            name = f' "{who.vm_name}"' if who.vm_name else ""
            raise AccessDenied(
                f'no rule of region "{spec.name}" admits pid {who.pid}, uid {who.uid}, VM{name or " unknown"}, '
                f"unit {who.unit or 'unknown'}; add a [[region.{spec.name}.peer]]"
            )
        return self._fixed(rule, rule.id, who) if rule is not None and rule.id is not None else self._free(rule, who)

    def _fixed(self, rule: PeerRule, peer_id: int, who: Credentials) -> Grant:
        holder = self._region.peers.get(peer_id)
        if holder is not None and _has_ended(holder.sock):
            self._region.remove(holder, CLOSED)
        if not self.ids.take_this(peer_id):
            name = f'ID {peer_id} of region "{self._region.spec.name}"'
            if peer_id in self.ids.retired:
                raise LimitExceeded(
                    f"{name} belonged to somebody else, and QEMUs were told of the leave; restart these, or use another"
                )
            by = f"pid {holder.who.pid}" if holder is not None else "another member"
            raise LimitExceeded(f"{name} is in use by {by}; disconnect that one first")
        absent = self.absent.get(peer_id)
        return Grant(peer_id, rule, absent, absent is not None and self._owns(rule, absent, who))

    def _owns(self, rule: PeerRule, absent: AbsentPeer, who: Credentials) -> bool:
        """Tell whether *who*, for whom *rule* fixes the ID, owns what the *absent* last holder had.

        The rule may match several VMs, one after the other. Somebody who was told of one may be blind to the next.
        """
        if absent.who.identity == who.identity:
            return True
        if first_match(self._region.spec.peer, absent.who) is not rule:
            return False
        keeping = (peer for peer in self._region.peers.values() if absent.id in peer.outbox.kept)
        return all(peer.rule is None or peer.rule.allows(absent.id, who.vm_name, is_host=False) for peer in keeping)

    def _free(self, rule: PeerRule | None, who: Credentials) -> Grant:
        there = self._present.get(who.identity, ())
        if len(there) <= _LOOK_MAX:
            for peer in [peer for peer in there if _has_ended(peer.sock)]:
                self._region.remove(peer, CLOSED)
        for absent in self.absent.of(who):
            if absent.id < self._region.spec.first_id and absent.member is None:
                continue  # it was given under another configuration, and nobody remembers it
            if not self.ids.is_reserved(absent.id) and self.ids.take_this(absent.id):
                return Grant(absent.id, rule, absent, True)
        if (peer_id := self.ids.take()) is None:
            name, remembered = self._region.spec.name, len(self.absent.doorbells()) + len(self.ids.retired)
            raise LimitExceeded(
                f'region "{name}" has no free ID left: {len(self._region.peers)} peers are connected, and QEMUs '
                f"remember {remembered} that left; restart the QEMU that has been connected for the longest"
            )
        return Grant(peer_id, rule, self.absent.get(peer_id), False)

    def joined(self, peer: Peer) -> None:
        """Note that *peer* has its ID: its owner is not absent any more."""
        self.absent.remove(peer.id)
        self._present.setdefault(peer.who.identity, set()).add(peer)

    def left(self, peer: Peer, absent: AbsentPeer) -> None:
        """Note that *peer* is gone, is *absent* now, and remembers nothing any more; `tidy` comes next."""
        identity = peer.who.identity
        self._present[identity].discard(peer)
        if not self._present[identity]:
            del self._present[identity]
        self.ids.give_back(peer.id)
        self.absent.add(absent)
        for peer_id in peer.outbox.kept:
            self.ids.forget(peer_id)

    def tidy(self) -> None:
        """Let go of what is kept for absent peers and nobody remembers, and of what is too much."""
        for member in self.absent.doorbells():
            if not self.ids.is_remembered(member.id):
                self.release(member)
        if self.ids.retired:
            keeping = (peer.member.seq for peer in self._region.peers.values() if peer.outbox.keeps)
            self.ids.unretire(next(keeping, None))
        while (excess := self.absent.excess()) is not None:
            self.give_up(excess, f"more than {self.absent.limit} are absent (max-absent)")

    def release(self, member: Member) -> None:
        """Let go of the doorbells that are kept for an absent peer; the ID stays its owner's."""
        self.absent.release(member)
        self._region.close_doorbells(member)

    def give_up(self, absent: AbsentPeer, reason: str) -> None:
        """Keep an ID for its owner no longer, if it still is.

        Those who remember the ID are told its leave, and it is retired until they are gone. With an ID that a rule
        fixes that can't be: they are told nothing, and can't ring who has it next.
        """
        if self.absent.get(absent.id) is not absent:
            return
        if absent.member is None or self.ids.is_reserved(absent.id):
            self.cut_off(absent)
        else:
            for other in self._region.peers.values():
                if other.outbox.give_up(absent.id):
                    self.ids.hold(absent.id)
                    self.ids.forget(absent.id)
            self.ids.retire(absent.id, self._region.roster.next_seq)
            self._end(absent, self._region.roster.next_seq)
        if absent.member is not None:
            self._region.given_up(absent, reason)

    def cut_off(self, absent: AbsentPeer) -> None:
        """Let go of what is kept for an absent peer; those who remember its ID can't ring who has it next."""
        for other in self._region.peers.values():
            other.outbox.cut_off(absent.id)
        self._end(absent, None)

    def _end(self, absent: AbsentPeer, since: int | None) -> None:
        self.absent.remove(absent.id)
        self._region.write_given_up(absent.id, since)
        if absent.member is not None:
            self._region.close_doorbells(absent.member)

    def _remove_ended(self) -> bool:
        """Remove all peers whose connection has ended; tell whether that made room."""
        for peer in [peer for peer in self._region.peers.values() if _has_ended(peer.sock)]:
            self._region.remove(peer, CLOSED)
        return len(self._region.peers) < self._region.spec.max_peers


def _reserved(spec: RegionSpec) -> set[int]:
    ids = {rule.id for rule in spec.peer if rule.id is not None}
    return ids | {spec.host_peer_id} if spec.host_peer else ids


def _has_ended(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
