# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts a region together again from what a keeper kept: after a restart, a crash at any instant, an upgrade.

The state comes from the ledger, each descriptor from where `record` put it. What the state speaks of and nobody kept is
lost: without its memory a region can't go on, a peer without its connection has left, and the others are told so. What
was kept and the state does not speak of is a connection that was accepted in the last moment, and is admitted now, or a
left-over, which is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import stat
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InvalidOptions, StateMismatch
from ..fds import eventfd
from ..fds.keeper import Keeper, Kept
from ..fds.ledger import Ledger, damage_told, reopen
from ..fds.listener import Listener
from ..fds.owned import Fd, FdSet
from ..fds.peercred import Credentials
from ..fds.spare import Spare
from ..fds.vault import found_behind
from ..wire.ivshmem import ID_MAX
from .absent import AbsentPeer
from .events import RegionEvent
from .peer import Arrival, Peer
from .record import Record, doorbells_of, proxies_of, region_of, replay, vault_of
from .region import Region
from .relay import Relay
from .roster import Member
from .rules import PeerRule
from .spec import RegionSpec

LOST = "its connection ended while the daemon was away"


def read_state(fd: Fd) -> tuple[Ledger, dict[str, Any]]:
    """Open the ledger *fd*, which is taken over, and say how things stood.

    Raises:
        NewerState: a newer version wrote it.
        StateMismatch: it can't be read.
    """
    return reopen(fd, lambda ledger: replay(ledger.lines(), region_of(ledger)))


def spec_of(state: dict[str, Any], configured: Mapping[str, RegionSpec]) -> RegionSpec:
    """Say how the region of *state* was asked for; what an old state does not say, the configuration does.

    Raises:
        StateMismatch: neither says it.
    """
    name = state["name"]
    try:
        if state["spec"] is not None:
            return RegionSpec.from_raw(name, state["spec"])
    except InvalidOptions as error:
        raise StateMismatch(f"it was asked for as it can't be now: {error}") from error
    if name not in configured:
        raise StateMismatch("its state is of a version that did not say how it was asked for, nor is it configured")
    return configured[name]


def revive(
    spec: RegionSpec,
    state: dict[str, Any],
    ledger: Ledger,
    kept: Kept,
    keeping: tuple[Keeper, str],
    loop: asyncio.AbstractEventLoop,
    emit: Callable[[RegionEvent], None],
    spare: Spare,
    socket_given: Fd | None = None,
) -> Region:
    """Make the region anew and serve; *ledger* is taken over, and of *kept* all that there is.

    Raises:
        StateMismatch: the memory is missing, or the host peer's doorbells, or the relay's table.
        LimitExceeded: there can be no thread for the relay.
        SocketInUse, SocketUnavailable: the listening socket is missing, and can't be made anew.
    """
    keeper, prefix = keeping
    names = ["state", *kept]
    with damage_told(), contextlib.ExitStack() as undo:
        undo.callback(ledger.close)
        undo.callback(kept.close)
        if socket_given is not None:
            undo.enter_context(socket_given)
        if (shared := kept.take("memory")) is None:
            raise StateMismatch("its memory is missing")
        undo.enter_context(shared)
        bells = _bells(kept, state)
        undo.callback(bells.close)
        relay = _relay(spec, kept)
        if relay is not None:
            undo.callback(relay.close)
        listener = _listener(spec, kept, socket_given)
        undo.pop_all()
    region = Region(
        spec, loop, emit, spare, shared=shared, listener=listener, relay=relay, configured=state["configured"]
    )
    try:
        with damage_told():
            lost = _rejoin(region, state, kept, bells)
            lost_absent = _restore_absent(region, state, kept)
            _restore_streams(region, state)
            unused = set() if relay is None else _rejoin_pairs(region, relay, kept, lost, lost_absent)
            arrivals = _arrivals(kept, state["next_seq"])
        still = [name for name in names if name not in unused and (name in arrivals or name not in kept)]
        for name in set(names) - set(still):
            keeper.drop(prefix + name)
        record = Record.resume(keeper, prefix, ledger, region.export, region.overflow, still)
        if listener.ours and "listener" not in still:
            record.keep("listener", listener.sock.fileno())
        region.resume(record, state["next_seq"], ledger)
        if relay is not None:
            relay.begin()
        for peer in lost:
            region.remove(peer, LOST, lost=True)
        for absent in lost_absent:
            region.admission.give_up(absent, "its doorbells were not kept over the restart")
        region.admission.tidy()
        region.clear_if_left()
        for name in arrivals:
            _admit_late(region, int(name), _contents(kept.take(name), 1 + spec.vectors), record)
        region.roster.next_seq = max(region.roster.next_seq, 1 + max(map(_vault_in, still), default=-1))
    except BaseException:
        region.let_go()
        ledger.close()
        raise
    finally:
        kept.close()
    region.serve()
    return region


def _rejoin(region: Region, state: dict[str, Any], kept: Kept, bells: FdSet) -> list[Peer]:
    """Take in again everybody of the *state*; gives those of whom nothing was kept."""
    lost = []
    for entry in state["members"]:
        _check(region, entry)
        if "outbox" not in entry:
            region.enter_host(Member(entry["id"], bells, entry["seq"]))
            assert region.host is not None
            region.host.totals[:] = state["host"]["totals"]
            continue
        contents = _contents(kept.take(vault_of(entry["seq"], "returned" in entry)), 1 + entry["vectors"])
        peer = _rejoin_one(region, entry, *(contents or _stand_ins(entry["vectors"])))
        if contents is None:
            lost.append(peer)
    if state["next_seq"] < region.roster.next_seq:
        raise ValueError("a member has a number that was never given")
    return lost


def _rejoin_one(region: Region, entry: dict[str, Any], sock: socket.socket, eventfds: FdSet) -> Peer:
    """Take a peer in again, as *entry* of the state says; `_restore_streams` comes when everybody is there."""
    with contextlib.ExitStack() as undo:
        undo.callback(eventfds.close)
        undo.enter_context(sock).setblocking(False)
        rule = None if entry["rule"] is None else PeerRule.from_raw(entry["rule"])
        who, since, keeps = Credentials(**entry["who"]), entry["since"], entry["keeps"]
        returned = entry.get("returned", {})
        member = Member(entry["id"], eventfds, entry["seq"], returned.get("key", -1), returned.get("vault", -1))
        undo.pop_all()
    region.admission.ids.take_this(member.id)
    peer = region.enter(member, sock, who, rule, since, keeps)
    region.admission.joined(peer)
    return peer


def _restore_streams(region: Region, state: dict[str, Any]) -> None:
    """Put the stream of each peer where the *state* says that it was; all members and absent peers are there.

    Raises:
        ValueError: it can't have been there.
    """
    ids = region.admission.ids
    absent = region.admission.absent.doorbells()
    for entry in state["members"]:
        if "outbox" in entry:
            outbox = region.peers[entry["id"]].outbox
            outbox.restore(entry["outbox"], absent)
            for peer_id in entry["outbox"]["leaves"]:
                ids.hold(peer_id)
            for peer_id in outbox.kept:
                ids.remember(peer_id)
    for peer_id, seq in state["retired"]:
        ids.retire(_integer(peer_id, ID_MAX), _integer(seq))
    region.clearing.dirty = bool(state["dirty"])


def _restore_absent(region: Region, state: dict[str, Any], kept: Kept) -> list[AbsentPeer]:
    """Restore the absent peers of the *state*; gives those whose doorbells nobody kept: they have others now."""
    lost = []
    remembered = {peer_id for member in state["members"] for peer_id in member.get("outbox", {}).get("kept", ())}
    for entry in state["absent"]:
        who = Credentials(**entry["who"])
        absent = AbsentPeer(_integer(entry["id"], ID_MAX), who, bool(entry["fixed"]), _integer(entry["left"]))
        if absent.id in region.roster.by_id or region.admission.absent.get(absent.id) is not None:
            raise ValueError("an absent peer has the ID of another member")
        known = entry["doorbells"]
        if known is not None and absent.id in remembered:  # else they may have been let go of already
            eventfds = found_behind(kept.take(doorbells_of(absent.id)))
            if eventfds is None or len(eventfds) != region.spec.vectors:
                eventfds = eventfd.make(region.spec.vectors)
                lost.append(absent)
            absent.member = Member(absent.id, eventfds, *(_integer(known[key]) for key in ("seq", "key", "vault")))
        region.admission.absent.add(absent)
    return lost


def _integer(value: Any, most: int = sys.maxsize) -> int:
    if not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is no number of the state")
    return value


def _rejoin_pairs(region: Region, relay: Relay, kept: Kept, lost: list[Peer], absent: list[AbsentPeer]) -> set[str]:
    """Restore the pairs of everybody, and add to *lost* and *absent* those whose proxies nobody kept.

    Returns:
        The names of vaults that are of no use any more.
    """
    away = {member.id: member for member in region.admission.absent.doorbells()}
    members = {member.key: member for member in (*region.roster.ordered, *away.values())}

    def lives(sender: Member, target: Member) -> bool:
        peer = region.peers.get(sender.id)
        return peer is not None and (target.id not in away or target.id in peer.outbox.kept)

    numbers = set(map(_vault_in, kept)) - {-1}
    vaults = {}
    for number in numbers:
        if (fds := found_behind(kept.take(proxies_of(number)))) is not None:
            vaults[number] = fds
    missing, used = relay.restore(members, vaults, lives)
    for peer in region.peers.values():
        for member in region.roster.ordered:
            if member is not peer.member and not peer.outbox.blind_to(member) and (peer.id, member.id) not in relay:
                raise ValueError("a pair is missing")
    lost += [peer for peer in region.peers.values() if peer.member.vault in missing and peer not in lost]
    gone = [one for one in region.admission.absent if one.member is not None and one.member.vault in missing]
    absent += [one for one in gone if one not in absent]
    return {proxies_of(number) for number in numbers - used - {member.vault for member in members.values()}}


def _check(region: Region, entry: dict[str, Any]) -> None:
    """Look whether *entry* can be the next member of *region*.

    Raises:
        ValueError, and more: it can't.
    """
    roster, spec = region.roster, region.spec
    host = spec.host_peer and entry["id"] == spec.host_peer_id
    if (
        not all(isinstance(entry[key], int) for key in ("id", "seq", "vectors"))
        or entry["seq"] < roster.next_seq
        or entry["id"] in roster.by_id
        or not 0 <= entry["id"] <= ID_MAX
        or entry["vectors"] != spec.vectors
        or host == ("outbox" in entry)
    ):
        raise ValueError("a member can't be who it is said to be")


def _bells(kept: Kept, state: dict[str, Any]) -> FdSet:
    """Take the host peer's doorbells out of their vault."""
    if state["host"] is None:
        return FdSet()
    count = len(state["host"]["totals"])
    if not all(isinstance(total, int) and total >= 0 for total in state["host"]["totals"]):
        raise ValueError("a total of rings is none")
    fds = found_behind(kept.take("host"))
    if fds is None or len(fds) != count:
        raise StateMismatch("the host peer's doorbells are missing")
    return fds


def _relay(spec: RegionSpec, kept: Kept) -> Relay | None:
    """Take the relay's table out, if there should be one."""
    if not spec.relay:
        return None
    if (table := kept.take("relay")) is None:
        raise StateMismatch("the table of its relay is missing")
    return Relay.adopt(spec.name, table, spec.vectors, spec.relay_poll_us)


def _listener(spec: RegionSpec, kept: Kept, socket_given: Fd | None) -> Listener:
    if socket_given is not None:
        return Listener.adopt(socket_given, spec.socket, ours=False)
    if (fd := kept.take("listener")) is not None:
        return Listener.adopt(fd, spec.socket)
    return Listener.open(spec.socket, owner=spec.owner, group=spec.group, mode=spec.mode)


def _contents(door: Fd | None, count: int) -> tuple[socket.socket, FdSet] | None:
    """Take a peer's socket and doorbells out of their vault; None if it is not what it should be."""
    fds = found_behind(door)
    if fds is None:
        return None
    if len(fds) != count or not stat.S_ISSOCK(os.fstat(fds[0]).st_mode):
        fds.close()
        return None
    sock = socket.socket(fileno=fds[0])
    return sock, FdSet(fds.steal()[1:])


def _stand_ins(vectors: int) -> tuple[socket.socket, FdSet]:
    """Make what a lost peer had, as if it had just hung up."""
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours, eventfd.make(vectors)


def _vault_in(name: str) -> int:
    """Give the number of a vault with proxies; -1 for any other name."""
    match = re.fullmatch("([0-9]+)p", name)
    return int(match[1]) if match else -1


def _arrivals(kept: Kept, next_seq: int) -> list[str]:
    """Name the connections that were accepted and not yet written down, in the order of coming."""
    numbers = (name for name in kept if name.isdecimal() and name == str(int(name)))
    return sorted((name for name in numbers if int(name) >= next_seq), key=int)


def _admit_late(region: Region, seq: int, contents: tuple[socket.socket, FdSet] | None, record: Record) -> None:
    if contents is None:
        record.drop(str(seq))
        return
    sock, eventfds = contents
    region.roster.next_seq = max(region.roster.next_seq, seq + 1)
    region.receive(sock, Arrival(seq, eventfds))
