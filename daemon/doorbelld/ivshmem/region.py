# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A region: the server side of ivshmem.

Theory of operation
-------------------
A region owns a piece of memory, a listening socket, and its peers. Whoever connects is identified, held against the
rules, given an ID and doorbells, entered in the roster, and greeted at once (QEMU hangs on a silent server). The
roster's change is all that the others need: the courier is woken and each outbox finds out by itself what its peer
is still to be told. A peer never speaks; its first byte, or the end of its stream, is its farewell.

What happens is told by events, through *emit*. Nothing here logs, and nothing here knows D-Bus.

Where there is a keeper, the region leaves a record (`record`) with it, from which `revival` puts it together again in
another process: nothing but the process has changed then.

Invariants
----------
1. Each connected peer is in ``peers``, in ``roster`` and has its socket watched; or in none of them.
2. ``ids`` has an ID as used exactly while the roster has a member of that ID.
3. No error that one peer can cause leaves this module as an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import AccessDenied, DoorbellError, LimitExceeded, NoSuchPeer
from ..fds import eventfd, native
from ..fds.keeper import Keeper
from ..fds.ledger import Ledger
from ..fds.listener import Listener
from ..fds.owned import Fd, FdSet
from ..fds.peercred import Credentials, identify
from ..fds.spare import Spare
from ..fds.vault import Vault
from . import memory
from .courier import Courier
from .door import Door
from .events import PeerAdded, PeerRefused, PeerRemoved, RegionEvent, Rung, Unkept
from .hostpeer import HostPeer
from .ids import IdPool
from .outbox import Outbox
from .peer import Arrival, Peer
from .record import STATE_VERSION, Record, proxies_of
from .refused import Refused, end_connection, send_refusal
from .relay import Relay
from .ringing import Ringing
from .roster import Member, Roster
from .rules import PeerRule, first_match
from .spec import RegionSpec
from .terms import changes, merged, pairs_of

_CLOSED = "it closed its connection"


class Region(Ringing):
    """One ivshmem region, serving from the moment it is made until `close`."""

    def __init__(
        self,
        spec: RegionSpec,
        loop: asyncio.AbstractEventLoop,
        emit: Callable[[RegionEvent], None],
        spare: Spare,
        *,
        shared: Fd,
        listener: Listener,
        relay: Relay | None = None,
        configured: bool = False,
    ) -> None:
        """Take over *shared* memory, *listener* and *relay*; `open` makes them."""
        self.spec = spec
        self.configured = configured
        """Whether the configuration asked for it, rather than a call."""
        self.peers: dict[int, Peer] = {}
        self.roster = Roster()
        self.host: HostPeer | None = None
        self.memory = shared
        self.relay = relay
        self._listener = listener
        self._loop = loop
        self._emit = emit
        self._spare = spare
        self._ids = IdPool(spec.first_id, _reserved(spec))
        self._courier: Courier[Peer] = Courier(
            loop, self.remove, spec.stall_timeout, lambda: list(self.peers.values()), self._post
        )
        self._door = Door(
            loop,
            listener.sock,
            spare,
            arrived=self._arrive,
            refuse=self._refuse,
            prepared=self._prepare,
            rested=self._unprepare,
        )
        self._refused = Refused(loop)
        self._turns_seen = -1
        self._record: Record | None = None
        self._berth: tuple[FdSet, Vault] | None = None

    @classmethod
    def open(
        cls,
        spec: RegionSpec,
        loop: asyncio.AbstractEventLoop,
        emit: Callable[[RegionEvent], None],
        spare: Spare,
        shared: Fd | None = None,
        *,
        keeping: tuple[Keeper, str] | None = None,
        socket_given: Fd | None = None,
        configured: bool = False,
    ) -> Region:
        """Make the memory (or take over *shared*) and the socket that *spec* asks for, and serve.

        *keeping* is a keeper, and what goes before the names that it gets. *socket_given* is a listening socket that
        somebody else owns, to be used instead of one of our own; it is taken over.

        Raises:
            MemoryUnavailable, SocketInUse, SocketUnavailable, LimitExceeded: nothing is left behind then.
        """
        with contextlib.ExitStack() as undo:
            if shared is not None:
                undo.enter_context(shared)
            if socket_given is not None:
                listener = Listener.adopt(socket_given, spec.socket, ours=False)
            else:
                listener = Listener.open(spec.socket, owner=spec.owner, group=spec.group, mode=spec.mode)
            undo.callback(listener.close)
            if shared is None:
                shared = undo.enter_context(memory.create(spec.backing, spec.size, spec.name))
            relay = None
            if spec.relay:
                relay = Relay.create(spec.name, spec.vectors, spec.relay_poll_us)
                undo.callback(relay.close)
            eventfds = _doorbells(spec.vectors) if spec.host_peer else None
            if relay is not None:
                relay.begin()
            undo.pop_all()
        region = cls(spec, loop, emit, spare, shared=shared, listener=listener, relay=relay, configured=configured)
        if eventfds is not None:
            region._enter_host(Member(spec.host_peer_id, eventfds))
            if relay is not None and region.host is not None:
                relay.join(region.host.member, ())
        if keeping is not None:
            region.keep(*keeping)
        region.serve()
        return region

    def close(self, reason: str = "the region is removed") -> None:
        """Disconnect everybody, remove the socket, let go of the memory."""
        self._door.shut()
        self._listener.close()
        for peer in list(self.peers.values()):
            self.remove(peer, reason)
        self.unkeep()
        self.let_go()

    def let_go(self) -> None:
        """Close what we have and tell nobody, as the end of the process would; what is kept stays kept."""
        self._door.shut()
        self._listener.steal().close()
        self._refused.close()
        self._courier.close()
        for peer in self.peers.values():
            self._loop.remove_reader(peer.sock.fileno())
            peer.sock.close()
            peer.member.eventfds.close()
        if self.host is not None:
            self.host.close()
            self.host.member.eventfds.close()
        if self.relay is not None:
            self.relay.close()
        if self._record is not None:
            self._record.close()
        self.memory.close()

    def change(self, spec: RegionSpec, configured: bool) -> None:
        """Go over to *spec*, which differs in nothing that is frozen; rules hold for who comes from now on.

        What they say of rings holds at once where there is a relay, for each pair of which they say something else
        than before; so what a call said of a pair holds until then.

        Raises:
            SocketUnavailable: the socket can't be given to the new owner; nothing is changed then.
        """
        access = (self.spec.owner, self.spec.group, self.spec.mode)
        if self._listener.ours and (spec.owner, spec.group, spec.mode) != access:
            self._listener.give_to(spec.owner, spec.group, spec.mode)
        before, self.spec, self.configured = self.spec, spec, configured
        if self.relay is not None:
            self._change_terms(self.relay, before)
        self._courier.change(spec.stall_timeout)
        self._ids.reserve(_reserved(spec))
        if self._record is not None:
            self._record.renew()

    @property
    def kept(self) -> bool:
        """Whether it would survive our end."""
        return self._record is not None

    @property
    def stuck(self) -> bool:
        """Whether peers wait to be told something since the last time that this was asked, and nobody's turn came.

        Or the relay's thread ended, and nobody's rings arrive.
        """
        before, self._turns_seen = self._turns_seen, self._courier.turns
        return (self._courier.busy and before == self._courier.turns) or (self.relay is not None and self.relay.dead)

    # Coming and going

    def attach(self, who: Credentials) -> Fd:
        """Admit *who* as a peer over a fresh socket and return their end of it.

        Raises:
            AccessDenied, LimitExceeded: the rules or the limits say no.
        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError as error:
            raise LimitExceeded(f"no descriptor for a connection: {error.strerror}; raise LimitNOFILE=") from error
        try:
            self._admit(ours, who, None)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        theirs.setblocking(True)
        return Fd(theirs.detach())

    def disconnect(self, peer_id: int, reason: str) -> None:
        """Drop a peer.

        Raises:
            NoSuchPeer: nobody of that ID is connected (the host peer is not a connection).
        """
        if (peer := self.peers.get(peer_id)) is None:
            raise NoSuchPeer(f'region "{self.name}" has no connected peer {peer_id}; {self._who_is_there()}')
        self.remove(peer, reason)

    def _prepare(self, again: Callable[[], None]) -> bool:
        """Make ready what a connection needs before it is accepted, so that it is kept the very next moment."""
        if self._record is None:
            return True
        if not self._record.ready(again):
            return False
        if self._berth is None:
            with contextlib.suppress(OSError, LimitExceeded):  # if so, `_admit` says it
                eventfds = _doorbells(self.spec.vectors)
                self._berth = eventfds, Vault()
        return True

    def _unprepare(self) -> None:
        if self._berth is not None:
            for part in self._berth:
                part.close()
            self._berth = None

    def _arrive(self, sock: socket.socket) -> None:
        """Take a new connection."""
        arrival = None
        if self._berth is not None:
            (eventfds, vault), self._berth = self._berth, None
            arrival = Arrival(self.roster.number(), eventfds)
            self._stow(arrival, sock, vault)
        self.receive(sock, arrival)

    def receive(self, sock: socket.socket, arrival: Arrival | None) -> None:
        """Find out who connected, and admit them or not."""
        try:
            who = identify(sock)
        except OSError as error:  # it is gone already
            self._drop(arrival)
            sock.close()
            self._refuse(f"it went away while being greeted: {error.strerror}")
            return
        try:
            self._admit(sock, who, arrival)
        except DoorbellError as error:
            self._drop(arrival)
            if who.program.startswith("qemu"):
                self._refused.tell(sock)
                self._refuse(str(error))
            else:
                self._refuse(str(error), sock)

    def _stow(self, arrival: Arrival, sock: socket.socket, vault: Vault | None = None) -> bool:
        return self._stow_as(str(arrival.seq), [sock.fileno(), *arrival.eventfds], vault)

    def _stow_as(self, name: str, fds: list[int], vault: Vault | None = None) -> bool:
        assert self._record is not None
        stowed = self._record.stow(name, fds, vault)
        if not stowed:
            self._emit(Unkept(self, "there is no room for its descriptors (FileDescriptorStoreMax=, LimitNOFILE=)"))
        return stowed

    def _drop(self, arrival: Arrival | None) -> None:
        if arrival is not None:
            arrival.eventfds.close()
            if self._record is not None:
                self._record.drop(str(arrival.seq))

    def _refuse(self, reason: str, sock: socket.socket | None = None, in_words: bool = False) -> None:
        """Tell of a refusal, and close the connection if there is one; *in_words* because it may be a QEMU's."""
        if sock is not None:
            if in_words:
                send_refusal(sock)
            end_connection(sock)
        self._emit(PeerRefused(self, reason))

    def _admit(self, sock: socket.socket, who: Credentials, arrival: Arrival | None) -> Peer:
        """Make a peer of a connection; on an error the socket is still the caller's."""
        if len(self.peers) >= self.spec.max_peers and not self._bury_the_dead():
            raise LimitExceeded(f'region "{self.name}" has its {self.spec.max_peers} peers; raise max-peers')
        rule = first_match(self.spec.peer, who)
        if self.spec.peer and rule is None:
            name = f' "{who.vm_name}"' if who.vm_name else ""
            raise AccessDenied(
                f'no rule of region "{self.name}" admits pid {who.pid}, uid {who.uid}, VM{name or " unknown"}, '
                f"unit {who.unit or 'unknown'}; add a [[region.{self.name}.peer]]"
            )
        sock.setblocking(False)
        peer_id = self._choose_id(rule)
        made = None
        try:
            if arrival is None:
                arrival = made = Arrival(self.roster.number(), _doorbells(self.spec.vectors))
                if self._record is not None:
                    self._stow(arrival, sock)
            peer = self._enter(Member(peer_id, arrival.eventfds, arrival.seq), sock, who, rule, time.time_ns() // 1000)
            if self.relay is not None:
                self._relay(peer, self.relay)
        except LimitExceeded:
            self._ids.give_back(peer_id)
            self._drop(made)
            raise
        if self._record is not None:
            self._record.joined(peer.entry)
        self._courier.wake(self.peers.values())
        self._emit(PeerAdded(self, peer))
        return peer

    def _bury_the_dead(self) -> bool:
        """Remove who hung up but was not heard yet; tell whether that made room."""
        for peer in [peer for peer in self.peers.values() if _hung_up(peer.sock)]:
            self.remove(peer, _CLOSED)
        return len(self.peers) < self.spec.max_peers

    def _choose_id(self, rule: PeerRule | None) -> int:
        if rule is None or rule.id is None:
            if (peer_id := self._ids.take()) is None:
                raise LimitExceeded(f'region "{self.name}" has no free ID left')
            return peer_id
        holder = self.peers.get(rule.id)
        if holder is not None and _hung_up(holder.sock):  # a rebooted VM may be back before we read its farewell
            self.remove(holder, _CLOSED)
        if not self._ids.take_reserved(rule.id):
            by = f"pid {holder.who.pid}" if holder is not None else "another member"
            raise LimitExceeded(f'ID {rule.id} of region "{self.name}" is in use by {by}; disconnect that one first')
        return rule.id

    def _enter(self, member: Member, sock: socket.socket, who: Credentials, rule: PeerRule | None, since: int) -> Peer:
        bells = None if self.relay is None else partial(self.relay.bells, member)
        outbox = Outbox(self.roster, member, self.memory.fileno(), self._visibility(rule), self._ids.release, bells)
        self.roster.add(member)
        peer = Peer(member, sock, who, rule, since, outbox)
        self.peers[member.id] = peer
        self._loop.add_reader(sock.fileno(), self._hear, peer)
        return peer

    def _enter_host(self, member: Member) -> None:
        self._ids.take_reserved(member.id)
        self.roster.add(member)
        self.host = HostPeer(
            self._loop, member, self._rung, lambda v: self._record.begin_draining(v) if self._record else None
        )

    def _rung(self, vector: int, count: int) -> None:
        if self._record is not None:
            self._record.rung(vector, count)
        self._emit(Rung(self, vector, count))

    def _post(self, peer: Peer, values: array[int], fds: array[int]) -> tuple[int, int]:
        """Send a batch to *peer*, and note how much of it went out."""
        record, seq = self._record, peer.member.seq
        slot = record.begin_sending(seq) if record is not None else None
        sent, error = native.send_messages(peer.sock_fd, values, fds, slot)
        if sent:
            peer.outbox.sent(sent)
            if record is not None:
                record.told(seq, peer.outbox)
        return sent, error

    def _visibility(self, rule: PeerRule | None) -> Callable[[Member], bool] | None:
        if rule is None or rule.allows_all:
            return None

        def visible(member: Member) -> bool:
            peer = self.peers.get(member.id)
            return rule.allows(member.id, peer.who.vm_name if peer else "", is_host=peer is None)

        return visible

    def _hear(self, peer: Peer) -> None:
        try:
            data = peer.sock.recv(4096)
        except BlockingIOError:
            return
        except ConnectionResetError:  # it closed with something of ours unread
            data = b""
        except OSError as error:
            self.remove(peer, f"its connection broke: {error.strerror}")
            return
        if data:
            self.remove(peer, f"it sent {len(data)} bytes, and an ivshmem client never sends")
        else:
            self.remove(peer, _CLOSED)

    def remove(self, peer: Peer, reason: str) -> None:
        """End a peer's connection, if it has not ended, and tell the others that it left."""
        self._courier.forget(peer)
        self._loop.remove_reader(peer.sock.fileno())
        peer.outbox.abandon()
        blind = []
        for other in self.peers.values():
            if other is not peer and other.outbox.leave(peer.member):
                self._ids.hold(peer.id)
            elif other.outbox.blind_to(peer.member):
                blind.append(other.member.seq)
        ended = self.relay.silence(peer.member) if self.relay is not None else []
        self.roster.remove(peer.member)
        del self.peers[peer.id]
        self._ids.give_back(peer.id)
        if (record := self._record) is not None:
            record.left(peer.member.seq, blind, len(self.peers))
            record.drop(str(peer.member.seq))
            record.drop(proxies_of(peer.member.seq))
        if self.relay is not None:
            self.relay.forget(peer.member, ended)
        end_connection(peer.sock)
        self._courier.wake(self.peers.values())
        self._emit(PeerRemoved(self, peer, reason))
        peer.member.eventfds.close()

    # The relay

    def _relay(self, peer: Peer, relay: Relay) -> None:
        """Make what is between *peer*, who is new, and all others; if there is no room for it, forget *peer*.

        Raises:
            LimitExceeded: that is so.
        """
        try:
            relay.join(peer.member, pairs_of(peer, self.spec, self.roster.ordered, self.peers))
        except LimitExceeded:
            self._loop.remove_reader(peer.sock.fileno())
            self.roster.remove(peer.member)
            del self.peers[peer.id]
            raise
        self._stow_proxies(peer)

    def _change_terms(self, relay: Relay, before: RegionSpec) -> None:
        """Apply to each pair what is different for it from what it was *before*."""
        relay.poll(self.spec.relay_poll_us)
        for peer, member, old, new in changes(before, self.spec, self.roster.ordered, self.peers):
            if (peer.id, member.id) in relay:
                relay.change(peer.id, member.id, merged(relay.terms(peer.id, member.id), old, new))

    def _stow_proxies(self, peer: Peer) -> bool:
        """Keep the proxies between *peer* and those who were there before it."""
        if self._record is None or self.relay is None or not (fds := self.relay.packed(peer.member)):
            return True
        return self._stow_as(proxies_of(peer.member.seq), fds)

    # Restart: everything that holds descriptors can be kept, and put together again from what was kept

    def keep(self, keeper: Keeper, prefix: str) -> bool:
        """Leave a record with *keeper*, all names in which begin with *prefix*; tell whether there was room."""
        host = self.host.member.eventfds if self.host is not None else None
        parts = {"memory": self.memory.fileno()}
        if self._listener.ours:
            parts["listener"] = self._listener.sock.fileno()
        if self.relay is not None:
            parts["relay"] = self.relay.fd.fileno()
        try:
            self._record = Record.begin(keeper, prefix, self.name, self.export, self.overflow, parts, host)
        except OSError:
            self._record = None
        if self._record is None:
            self._emit(Unkept(self, "there is no room for the region's descriptors (FileDescriptorStoreMax=)"))
            return False
        stowed = [self._stow(Arrival(peer.member.seq, peer.member.eventfds), peer.sock) for peer in self.peers.values()]
        return all([*stowed, *map(self._stow_proxies, self.peers.values())])

    def overflow(self) -> None:
        """Give up the record: the state has become too large for one."""
        self.unkeep()
        self._emit(Unkept(self, "its state has become too large to be kept; lower max-peers"))

    def unkeep(self) -> None:
        """Take the record back."""
        if self._record is not None:
            self._record.drop_all()
            self._record.close()
            self._record = None

    def export(self) -> dict[str, Any]:
        """Describe the region for `restore`, in values that JSON can hold."""
        return {
            "version": STATE_VERSION,
            "name": self.name,
            "spec": self.spec.raw(),
            "configured": self.configured,
            "next_seq": self.roster.next_seq,
            "host": self.host and {"id": self.host.member.id, "totals": self.host.totals},
            "members": [self._export_member(member) for member in self.roster.ordered],
        }

    def _export_member(self, member: Member) -> dict[str, Any]:
        if (peer := self.peers.get(member.id)) is not None:
            return peer.export()
        return {"id": member.id, "seq": member.seq, "vectors": len(member.eventfds)}

    def rejoin(self, entry: dict[str, Any], sock: socket.socket, eventfds: FdSet) -> Peer:
        """Take a peer in again, as *entry* of the state says; what it was told of must be there already."""
        with contextlib.ExitStack() as undo:
            undo.callback(eventfds.close)
            undo.enter_context(sock).setblocking(False)
            rule = None if entry["rule"] is None else PeerRule.from_raw(entry["rule"])
            who, since = Credentials(**entry["who"]), entry["since"]
            member = Member(entry["id"], eventfds, entry["seq"])
            undo.pop_all()
        self._ids.restore(member.id)
        peer = self._enter(member, sock, who, rule, since)
        peer.outbox.restore(entry["outbox"])
        for owed in entry["outbox"]["leaves"]:
            self._ids.hold(owed)
        return peer

    def rejoin_host(self, entry: dict[str, Any], totals: list[int], eventfds: FdSet) -> None:
        """Take the host peer's place again."""
        self._enter_host(Member(entry["id"], eventfds, entry["seq"]))
        assert self.host is not None
        self.host.totals[:] = totals

    def resume(self, record: Record, next_seq: int, ledger: Ledger) -> None:
        """Go on with the *record*; what its *ledger* has no line of happens now."""
        sent, drained = ledger.unfinished()
        self.roster.next_seq = max(next_seq, self.roster.next_seq)
        by_seq = {peer.member.seq: peer for peer in self.peers.values()}
        if sent is not None and (peer := by_seq.get(sent[0])) is not None:
            peer.outbox.batch(sent[1])  # proposes again what it proposed then
            peer.outbox.sent(sent[1])
        if drained is not None and self.host is not None:
            self.host.totals[drained[0]] += drained[1]
        self._record = record
        record.renew()
        if drained is not None:
            self._emit(Rung(self, *drained))

    def serve(self) -> None:
        """Let in who knocks, and tell everybody what they are still to be told."""
        self._door.open()
        self._courier.wake(self.peers.values())


def _reserved(spec: RegionSpec) -> set[int]:
    ids = {rule.id for rule in spec.peer if rule.id is not None}
    return ids | {spec.host_peer_id} if spec.host_peer else ids


def _doorbells(vectors: int) -> FdSet:
    try:
        return eventfd.make(vectors)
    except OSError as error:
        raise LimitExceeded(f"no descriptors for {vectors} doorbells: {error.strerror}; raise LimitNOFILE=") from error


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
