# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A region: the server side of ivshmem.

Theory of operation
-------------------
A region owns a piece of memory, a listening socket, and its peers. Whoever connects is identified, held against the
rules, given an ID and doorbells, entered in the roster, and greeted at once (QEMU hangs on a silent server). The
roster's change is all that the others need: the courier is woken and each outbox finds out by itself what its peer
is still to be told. A peer never speaks; its first byte, or the end of its stream, is its farewell.

An ID and its doorbells belong to an owner (`admission`, `absent`). When the owner leaves and a QEMU that stays has the
doorbells, they are kept for the owner: the QEMU is told neither the leave nor the return.

What happens is told by events, through *emit*. Nothing here logs, and nothing here knows D-Bus.

Where there is a keeper, the region leaves a record (`record`) with it, from which `revival` puts it together again in
another process: nothing but the process has changed then.

Invariants
----------
1. Each connected peer is in ``peers``, in ``roster`` and has its socket watched; or in none of them.
2. ``admission.ids`` has an ID as used exactly while the roster has a member of that ID.
3. ``admission.absent`` has the doorbells of an ID exactly while nobody has the ID and a connected peer remembers it.
4. No error that one peer can cause leaves this module as an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import DoorbellError, LimitExceeded, MemoryUnavailable, NoSuchPeer, RegionInUse
from ..fds import eventfd, native
from ..fds.keeper import Keeper
from ..fds.ledger import Ledger
from ..fds.listener import Listener
from ..fds.owned import Fd, FdSet
from ..fds.peercred import Credentials, identify
from ..fds.spare import Spare
from ..fds.vault import Vault
from . import memory
from .absent import AbsentPeer
from .admission import CLOSED, Admission
from .clearing import Clearing
from .courier import Courier
from .door import Door
from .events import AbsentGivenUp, MemoryCleared, PeerAdded, PeerRefused, PeerRemoved, RegionEvent, Rung, Unkept
from .hostpeer import HostPeer
from .outbox import Leave, Outbox
from .peer import Arrival, Peer
from .record import STATE_VERSION, Record, doorbells_of, proxies_of, vault_of
from .refused import Refused, end_connection, send_refusal
from .relay import Relay
from .ringing import Ringing
from .roster import Member, Roster
from .rules import PeerRule, takes_leaves
from .spec import RegionSpec
from .terms import changes, merged, pairs_of


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
        self.admission = Admission(self)
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
        self.clearing = Clearing(loop, self._door.shut, self._door.open, self._cleared)
        self._waiting: list[tuple[socket.socket, Arrival | None]] = []
        """Connections that were accepted when it was found that the memory is to be cleared first."""
        self._closing = False
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
            region.enter_host(Member(spec.host_peer_id, eventfds))
            if relay is not None and region.host is not None:
                relay.join(region.host.member, ())
        if keeping is not None:
            region.keep(*keeping)
        region.serve()
        return region

    def close(self, reason: str = "the region is removed") -> None:
        """Disconnect everybody, remove the socket, let go of the memory."""
        self._closing = True
        self._door.shut()
        self._listener.close()
        self.unkeep()  # first: nothing of those who leave now is to be kept
        for peer in list(self.peers.values()):
            self.remove(peer, reason)
        self.let_go()

    def let_go(self) -> None:
        """Close what we have and tell nobody, as the end of the process would; what is kept stays kept."""
        self.clearing.cancel()
        self._door.shut()
        self._listener.steal().close()
        self._refused.close()
        self._courier.close()
        for sock, arrival in self._waiting:
            sock.close()
            if arrival is not None:
                arrival.eventfds.close()
        for peer in self.peers.values():
            self._loop.remove_reader(peer.sock.fileno())
            peer.sock.close()
            peer.member.eventfds.close()
        for member in self.admission.absent.doorbells():
            member.eventfds.close()
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
        self.admission.change()
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

    # The memory

    async def clear(self, force: bool = False) -> None:
        """Set the memory to zero; nobody is accepted meanwhile.

        Raises:
            RegionInUse: peers are connected, and it is not *force*.
            MemoryUnavailable: it can't be cleared.
        """
        if self.peers and not force:
            raise RegionInUse(f'region "{self.name}" has {len(self.peers)} peers; disconnect them, or use force')
        self.clearing.start(self.memory, self.spec.size, self.spec.backing)
        await self.clearing.wait()

    async def ready(self) -> None:
        """Wait while the memory is being cleared."""
        with contextlib.suppress(MemoryUnavailable):
            await self.clearing.wait()

    def clear_if_left(self) -> None:
        """Begin to set the memory to zero if the last peer left it, and that is wanted then."""
        if self.clearing.dirty and not self.peers and self.spec.clear == "when-empty" and not self._closing:
            self.clearing.start(self.memory, self.spec.size, self.spec.backing)

    def _cleared(self, failure: str) -> None:
        if self._record is not None and not self.clearing.dirty:
            self._record.cleared()
        self._emit(MemoryCleared(self, failure))
        if not failure:
            self.clear_if_left()  # by somebody who was there while it was cleared by force
        waiting, self._waiting = self._waiting, []
        for sock, arrival in waiting:
            self.receive(sock, arrival)

    # Coming and going

    def attach(self, who: Credentials, *, leaves: bool = True) -> Fd:
        """Admit *who* as a peer over a fresh socket and return their end of it.

        With *leaves*, they are told that peers leave and return (`rules.takes_leaves`), unless a rule says otherwise.

        Raises:
            AccessDenied, LimitExceeded: the rules or the limits say no.
        """
        self.clearing.check_idle(self.name)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError as error:
            raise LimitExceeded(f"no descriptor for a connection: {error.strerror}; raise LimitNOFILE=") from error
        try:
            self._admit_new(ours, who, None, leaves)
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
                eventfds = self._make_doorbells()
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
            self._admit_new(sock, who, arrival)
        except DoorbellError as error:
            if self.clearing.busy:  # the last peer was found to be gone
                self._waiting.append((sock, arrival))
                return
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

    def _admit_new(
        self, sock: socket.socket, who: Credentials, arrival: Arrival | None, leaves: bool | None = None
    ) -> None:
        """Make a peer of a connection; on an error the socket is still the caller's, and the *arrival* if given.

        Doorbells are made before it is known who gets which ID: absent peers may be given up for them, the one that
        comes back here as well.
        """
        if arrival is not None:
            self._admit(sock, who, arrival, leaves)
            return
        made = Arrival(-1, self._make_doorbells())
        try:
            self._admit(sock, who, made, leaves)
        except DoorbellError:
            self._drop(made)
            raise

    def _admit(self, sock: socket.socket, who: Credentials, arrival: Arrival, leaves: bool | None) -> None:
        grant = self.admission.admit(who)
        keeps = not takes_leaves(grant.rule, who, leaves)
        sock.setblocking(False)
        former = returned = None
        try:
            self.clearing.check_idle(self.name)  # it may have been found that the last peer is gone
            if arrival.seq < 0:
                arrival.seq = self.roster.number()
                if self._record is not None:
                    self._stow(arrival, sock)
            if grant.absent is not None and grant.absent.member is not None:
                if grant.is_owner:
                    former = grant.absent.member
                    returned = self._return(former, arrival, sock)
                else:
                    self.admission.cut_off(grant.absent)
            member = returned or Member(grant.id, arrival.eventfds, arrival.seq)
            peer = self.enter(member, sock, who, grant.rule, time.time_ns() // 1000, keeps)
            if self.relay is not None:
                self._relay(peer, self.relay)
        except LimitExceeded:
            self.admission.ids.give_back(grant.id)
            if returned is not None and self._record is not None:
                self._record.drop(vault_of(returned.seq, returned=True))
            raise
        self._settle(peer, arrival, former)
        self._courier.wake(self.peers.values())
        self._emit(PeerAdded(self, peer))

    def _return(self, kept: Member, arrival: Arrival, sock: socket.socket) -> Member:
        """Make a member of an owner who is back, with the doorbells that were *kept*, and drained now."""
        for fd in kept.eventfds:
            native.drain(fd)
        if self._record is not None:
            self._stow_as(vault_of(arrival.seq, returned=True), [sock.fileno(), *kept.eventfds])
        vault = self.roster.number()
        while self._record is not None and proxies_of(vault) in self._record:  # kept just before a restart
            vault = self.roster.number()
        return Member(kept.id, kept.eventfds, arrival.seq, kept.key, vault)

    def _settle(self, peer: Peer, arrival: Arrival, former: Member | None) -> None:
        """Write that *peer* joined, and let go of what its doorbells (if *former* had them) were kept as before."""
        self.admission.joined(peer)
        if (record := self._record) is not None:
            record.joined(peer.entry)
            if former is not None:
                record.drop(doorbells_of(peer.id))
                record.drop(proxies_of(former.vault))
                record.drop(vault_of(arrival.seq))
        if former is not None:
            arrival.eventfds.close()

    def enter(
        self, member: Member, sock: socket.socket, who: Credentials, rule: PeerRule | None, since: int, keeps: bool
    ) -> Peer:
        """Make *member* a peer that is connected by *sock*, both of which are taken over."""
        bells = None if self.relay is None else partial(self.relay.bells, member)
        told, visible = self.admission.ids.release, self._visibility(rule)
        outbox = Outbox(self.roster, member, self.memory.fileno(), visible, told, bells, keeps=keeps)
        self.roster.add(member)
        peer = Peer(member, sock, who, rule, since, outbox, vault_of(member.seq, member.returned))
        self.peers[member.id] = peer
        self._loop.add_reader(sock.fileno(), self._hear, peer)
        return peer

    def enter_host(self, member: Member) -> None:
        """Make *member*, which is taken over, the host peer."""
        self.admission.ids.take_this(member.id)
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
            self.remove(peer, CLOSED)

    def remove(self, peer: Peer, reason: str, lost: bool = False) -> None:
        """End a peer's connection, if it has not ended, and tell the others that it left.

        Its doorbells are kept for its owner if a peer remembers them, unless they are *lost*.
        """
        self._courier.forget(peer)
        self._loop.remove_reader(peer.sock.fileno())
        member, ids = peer.member, self.admission.ids
        peer.outbox.abandon()
        blind, kept_by = [], set()
        for other in self.peers.values():
            if other is peer:
                continue
            left = other.outbox.leave(member)
            if left is Leave.OWED:
                ids.hold(peer.id)
            elif left is Leave.KEPT:
                ids.remember(peer.id)
            elif other.outbox.blind_to(member):
                blind.append(other.member.seq)
            if peer.id in other.outbox.kept:
                kept_by.add(other.id)
        fixed, left_at = ids.is_reserved(peer.id), time.time_ns() // 1000
        absent = AbsentPeer(peer.id, peer.who, fixed, left_at, member if kept_by else None)
        ended = self.relay.silence(member, kept_by) if self.relay is not None else []
        self.roster.remove(member)
        del self.peers[peer.id]
        self.admission.left(peer, absent)
        if not self.peers and self.spec.clear == "when-empty" and not self._closing:
            self.clearing.dirty = True
        if (record := self._record) is not None:
            if kept_by and not lost:
                self._stow_as(doorbells_of(peer.id), list(member.eventfds))
            record.left(member.seq, blind, absent.left, bool(kept_by), len(self.peers))
            record.drop(peer.vault)
            if not kept_by:
                record.drop(proxies_of(member.vault))
        if self.relay is not None:
            self.relay.forget(member, ended, absent=bool(kept_by))
        end_connection(peer.sock)
        self._courier.wake(self.peers.values())
        self._emit(PeerRemoved(self, peer, reason))
        if not kept_by:
            member.eventfds.close()
        elif lost:
            self.admission.give_up(absent, "its doorbells were lost")
        self.admission.tidy()
        self.clear_if_left()

    # Those who are away

    def write_given_up(self, peer_id: int, since: int | None) -> None:
        """Write that an ID is kept for its owner no longer; see `Members`."""
        if self._record is not None:
            self._record.given_up(peer_id, since, len(self.peers))

    def given_up(self, absent: AbsentPeer, reason: str) -> None:
        """Tell that the doorbells of an absent peer are given up."""
        self._courier.wake(self.peers.values())
        self._emit(AbsentGivenUp(self, absent, reason))

    def close_doorbells(self, member: Member) -> None:
        """Let go of the doorbells of an absent peer."""
        if self.relay is not None:
            self.relay.forget(member, self.relay.silence(member))
        if self._record is not None:
            self._record.drop(doorbells_of(member.id))
            self._record.drop(proxies_of(member.vault))
        member.eventfds.close()

    def _make_doorbells(self) -> FdSet:
        """Make the doorbells of a peer, giving up absent peers where there are no descriptors.

        Raises:
            LimitExceeded: there are not enough.
        """
        while True:
            try:
                return _doorbells(self.spec.vectors)
            except LimitExceeded:
                if (oldest := self.admission.absent.oldest(with_doorbells=True)) is None:
                    raise
                self.admission.give_up(oldest, "there are no descriptors left; raise LimitNOFILE=")

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
        stowed = self._stow_as(proxies_of(peer.member.vault), fds)
        self.relay.placed(peer.member)
        return stowed

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
        stowed = [self._stow_as(peer.vault, [peer.sock_fd, *peer.member.eventfds]) for peer in self.peers.values()]
        absent = self.admission.absent.doorbells()
        stowed += [self._stow_as(doorbells_of(member.id), list(member.eventfds)) for member in absent]
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
            "absent": [absent.export() for absent in self.admission.absent],
            "retired": list(self.admission.ids.retired.items()),
            "dirty": self.clearing.dirty,
        }

    def _export_member(self, member: Member) -> dict[str, Any]:
        if (peer := self.peers.get(member.id)) is not None:
            return peer.export()
        return {"id": member.id, "seq": member.seq, "vectors": len(member.eventfds)}

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
        """Accept connections, and send everybody what they are still to be told."""
        if not self.clearing.busy:
            self._door.open()
        self._courier.wake(self.peers.values())


def _doorbells(vectors: int) -> FdSet:
    try:
        return eventfd.make(vectors)
    except OSError as error:
        raise LimitExceeded(f"no descriptors for {vectors} doorbells: {error.strerror}; raise LimitNOFILE=") from error
