# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Terms: what holds for each pair of a sender and a target in a relayed region.

Whom a peer is told of, and so which pairs there are, is settled by the rule under which it came. How often it may ring
them, and whether it still may, is what the configuration says now. What a call said of a pair holds until the
configuration says something else than before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .peer import Peer
from .roster import Member
from .rules import PeerRule, first_match
from .spec import RegionSpec


@dataclass(frozen=True, slots=True)
class Terms:
    """Deliveries a second (0: no limit), and whether the sender may ring at all."""

    rate: int
    permitted: bool


def terms_of(spec: RegionSpec, rule: PeerRule | None, target: Member, target_peer: Peer | None) -> Terms:
    """Say what *spec* wants for a sender whom *rule* matches; without a *target_peer*, it is about the host peer."""
    vm_name = target_peer.who.vm_name if target_peer is not None else ""
    return Terms(
        spec.relay_rate if rule is None or rule.rate is None else rule.rate,
        not spec.peer or (rule is not None and rule.allows(target.id, vm_name, is_host=target_peer is None)),
    )


def pairs_of(
    peer: Peer, spec: RegionSpec, members: Sequence[Member], peers: Mapping[int, Peer]
) -> Iterator[tuple[Member, Member, Terms]]:
    """Say whom *peer*, who is new, rings, who rings it, and on which terms."""
    rule = first_match(spec.peer, peer.who)
    for member in members:
        other = peers.get(member.id)
        if other is peer:
            continue
        if not peer.outbox.blind_to(member):
            yield peer.member, member, terms_of(spec, rule, member, other)
        if other is not None and not other.outbox.blind_to(peer.member):
            yield member, peer.member, terms_of(spec, first_match(spec.peer, other.who), peer.member, peer)


def changes(
    before: RegionSpec, after: RegionSpec, members: Sequence[Member], peers: Mapping[int, Peer]
) -> Iterator[tuple[Peer, Member, Terms, Terms]]:
    """Give each sender and target for whom *after* wants other terms than *before*, and both of these."""
    if (before.peer, before.relay_rate) == (after.peer, after.relay_rate):
        return
    for peer in peers.values():
        old_rule, new_rule = first_match(before.peer, peer.who), first_match(after.peer, peer.who)
        for member in members:
            other = peers.get(member.id)
            old, new = terms_of(before, old_rule, member, other), terms_of(after, new_rule, member, other)
            if other is not peer and old != new:
                yield peer, member, old, new


def merged(now: Terms, old: Terms, new: Terms) -> Terms:
    """Change in *now* what is different in *new* from *old*."""
    return Terms(
        new.rate if new.rate != old.rate else now.rate,
        new.permitted if new.permitted != old.permitted else now.permitted,
    )
