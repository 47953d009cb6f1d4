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
import socket
import stat
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InvalidOptions, StateMismatch
from ..fds import eventfd
from ..fds.keeper import Keeper, Kept
from ..fds.ledger import Ledger, damage_told, reopen
from ..fds.listener import Listener
from ..fds.owned import Fd, FdSet
from ..fds.spare import Spare
from ..fds.vault import found_behind
from ..wire.ivshmem import ID_MAX
from .events import RegionEvent
from .peer import Arrival, Peer
from .record import Record, proxies_of, region_of, replay
from .region import Region
from .relay import Relay
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
            if relay is not None:
                lost = _rejoin_pairs(region, relay, kept, lost)
            arrivals = _arrivals(kept, state["next_seq"])
        still = [name for name in names if name in arrivals or name not in kept]
        for name in set(names) - set(still):
            keeper.drop(prefix + name)
        record = Record.resume(keeper, prefix, ledger, region.export, region.overflow, still)
        if listener.ours and "listener" not in still:
            record.keep("listener", listener.sock.fileno())
        region.resume(record, state["next_seq"], ledger)
        if relay is not None:
            relay.begin()
        for peer in lost:
            region.remove(peer, LOST)
        for name in arrivals:
            _admit_late(region, int(name), _contents(kept.take(name), 1 + spec.vectors), record)
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
            region.rejoin_host(entry, state["host"]["totals"], bells)
            continue
        contents = _contents(kept.take(str(entry["seq"])), 1 + entry["vectors"])
        peer = region.rejoin(entry, *(contents or _stand_ins(entry["vectors"])))
        if contents is None:
            lost.append(peer)
    if state["next_seq"] < region.roster.next_seq or not all(peer.outbox.sound for peer in region.peers.values()):
        raise ValueError("somebody was told of what never was")
    return lost


def _rejoin_pairs(region: Region, relay: Relay, kept: Kept, lost: list[Peer]) -> list[Peer]:
    """Take up the pairs of everybody, and add to those who are *lost* whose proxies nobody kept."""
    members = {member.seq: member for member in region.roster.ordered}
    vaults = {seq: fds for seq in members if (fds := found_behind(kept.take(proxies_of(seq)))) is not None}
    missing = relay.restore(members, vaults)
    for peer in region.peers.values():
        for member in region.roster.ordered:
            if member is not peer.member and not peer.outbox.blind_to(member) and (peer.id, member.id) not in relay:
                raise ValueError("a pair is missing")
    return lost + [peer for peer in region.peers.values() if peer.member.seq in missing and peer not in lost]


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
