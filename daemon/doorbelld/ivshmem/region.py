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

Invariants
----------
1. Each connected peer is in ``peers``, in ``roster`` and has its socket watched; or in none of them.
2. ``ids`` has an ID as used exactly while the roster has a member of that ID.
3. No error that one peer can cause leaves this module as an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ..errors import AccessDenied, DoorbellError, LimitExceeded, NoSuchPeer, NoSuchVector, StateMismatch
from ..fds import eventfd, native
from ..fds.listener import Listener
from ..fds.owned import Fd, FdSet
from ..fds.peercred import Credentials, identify
from ..fds.spare import Spare
from ..wire.ivshmem import REFUSAL, encode
from . import memory
from .courier import Courier, Recipient
from .events import PeerAdded, PeerRefused, PeerRemoved, RegionEvent, Rung
from .hostpeer import HostPeer
from .ids import IdPool
from .outbox import Outbox
from .roster import Member, Roster
from .rules import PeerRule, first_match
from .spec import RegionSpec

STATE_VERSION = 1
_ACCEPT_BURST = 16
_ACCEPT_PAUSE = 0.25
_CLOSED = "it closed its connection"
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class Peer(Recipient):
    """A connected peer. Its region owns the socket and, in ``member``, the eventfds."""

    def __init__(self, member: Member, sock: socket.socket, who: Credentials, since: int, outbox: Outbox) -> None:
        super().__init__(sock.fileno(), outbox)
        self.member = member
        self.sock = sock
        self.who = who
        self.since = since
        """When it connected: microseconds of CLOCK_REALTIME."""

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


class Region:
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
    ) -> None:
        """Take over *shared* memory and *listener*; `open` makes both."""
        self.spec = spec
        self.peers: dict[int, Peer] = {}
        self.roster = Roster()
        self.host: HostPeer | None = None
        self.memory = shared
        self._listener = listener
        self._loop = loop
        self._emit = emit
        self._spare = spare
        self._ids = IdPool(spec.first_id, _reserved(spec))
        self._courier: Courier[Peer] = Courier(
            loop, self._remove, spec.stall_timeout, lambda: list(self.peers.values())
        )
        self._accept_pause: asyncio.TimerHandle | None = None

    @classmethod
    def open(
        cls,
        spec: RegionSpec,
        loop: asyncio.AbstractEventLoop,
        emit: Callable[[RegionEvent], None],
        spare: Spare,
        shared: Fd | None = None,
    ) -> Region:
        """Make the memory (or take over *shared*) and the socket that *spec* asks for, and serve.

        Raises:
            MemoryUnavailable, SocketInUse, SocketUnavailable, LimitExceeded: nothing is left behind then.
        """
        with contextlib.ExitStack() as undo:
            if shared is not None:
                undo.enter_context(shared)
            listener = Listener.open(spec.socket, owner=spec.owner, group=spec.group, mode=spec.mode)
            undo.callback(listener.close)
            if shared is None:
                shared = undo.enter_context(memory.create(spec.backing, spec.size, spec.name))
            eventfds = _doorbells(spec.vectors) if spec.host_peer else None
            undo.pop_all()
        region = cls(spec, loop, emit, spare, shared=shared, listener=listener)
        if eventfds is not None:
            region._enter_host(Member(spec.host_peer_id, eventfds))
        region._serve()
        return region

    @property
    def name(self) -> str:
        """The region's name."""
        return self.spec.name

    def close(self, reason: str = "the region is removed") -> None:
        """Disconnect everybody, remove the socket, let go of the memory."""
        self._pause_accepting()
        self._listener.close()
        for peer in list(self.peers.values()):
            self._remove(peer, reason)
        self._courier.close()
        if self.host is not None:
            self.host.close()
            self.host.member.eventfds.close()
        self.memory.close()

    # Ringing

    def notify(self, peer_id: int, vector: int) -> None:
        """Ring one doorbell (the seed's ivshmem_client_notify).

        Raises:
            NoSuchPeer, NoSuchVector: naming what is there instead.
        """
        native.ring_one(self.doorbell(peer_id, vector))

    def notify_peer(self, peer_id: int) -> None:
        """Ring all doorbells of a peer (ivshmem_client_notify_all_vects)."""
        native.ring(self.member(peer_id).fds)

    def broadcast(self) -> None:
        """Ring all doorbells of all peers but the host peer (ivshmem_client_notify_broadcast)."""
        for peer in self.peers.values():
            native.ring(peer.member.fds)

    def notify_many(self, targets: Sequence[Sequence[int]]) -> None:
        """Ring many (peer ID, vector); all are looked up before the first is rung."""
        try:
            native.ring(native.look_up(self.roster.doorbells, targets))
        except LookupError as error:
            self.doorbell(*error.args[0])  # raises, with words

    def member(self, peer_id: int) -> Member:
        """Find a member by ID (ivshmem_client_search_peer)."""
        member = self.roster.by_id.get(peer_id)
        if member is None:
            raise NoSuchPeer(f'region "{self.name}" has no peer {peer_id}; {self._who_is_there()}')
        return member

    def doorbell(self, peer_id: int, vector: int) -> int:
        """Find the eventfd of a doorbell, borrowed."""
        eventfds = self.roster.doorbells.get(peer_id)
        if eventfds is None:
            eventfds = self.member(peer_id).fds  # raises, with words
        if not 0 <= vector < len(eventfds):
            raise NoSuchVector(
                f'peer {peer_id} of region "{self.name}" has vectors 0 to {len(eventfds) - 1}, not {vector}'
            )
        return eventfds[vector]

    def _who_is_there(self) -> str:
        ids = sorted(self.peers)
        if not ids:
            return f"nobody is connected; a guest attaches at {self.spec.socket}"
        return f"connected: {', '.join(map(str, ids[:8]))}{' ...' if len(ids) > 8 else ''}"

    def write_memory(self, offset: int, data: bytes) -> None:
        """Write to the shared memory; the caller has checked the bounds.

        Sealed memory is mapped for it, since huge pages know no write(2). Memory that others may truncate is written
        by pwrite(2): a mapping of it could raise SIGBUS in us.
        """
        if self.spec.backing.path:
            os.pwrite(self.memory.fileno(), data, offset)
            return
        with mmap.mmap(self.memory.fileno(), self.spec.size) as mapped:
            mapped[offset : offset + len(data)] = data

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
            self._admit(ours, who)
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
        self._remove(peer, reason)

    def _serve(self) -> None:
        self._accept_pause = None
        self._loop.add_reader(self._listener.sock.fileno(), self._accept)

    def _pause_accepting(self) -> None:
        if self._accept_pause is not None:
            self._accept_pause.cancel()
        elif self._listener.sock.fileno() >= 0:
            self._loop.remove_reader(self._listener.sock.fileno())
        self._accept_pause = None

    def _accept(self) -> None:
        for _ in range(_ACCEPT_BURST):
            try:
                sock, _ = self._listener.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    try:
                        if self._turn_away(error):
                            continue
                    except BlockingIOError:  # accept(2) wants a descriptor before it looks whether anybody waits
                        return
                if error.errno == errno.ECONNABORTED:
                    continue
                self._refuse(f"accept: {error.strerror}")
                self._pause_accepting()
                self._accept_pause = self._loop.call_later(_ACCEPT_PAUSE, self._serve)
                return
            try:
                who = identify(sock)
            except OSError as error:  # it is gone already
                sock.close()
                self._refuse(f"it went away while being greeted: {error.strerror}")
                continue
            try:
                self._admit(sock, who)
            except DoorbellError as error:
                self._refuse(str(error), sock, who.program.startswith("qemu"))

    def _turn_away(self, cause: OSError) -> bool:
        """Accept and close one connection for which there is no descriptor; False if not even that worked.

        Raises:
            BlockingIOError: nobody waits.
        """
        with self._spare.lent():
            try:
                sock, _ = self._listener.sock.accept()
            except BlockingIOError:
                raise
            except OSError:
                return False
            self._refuse(
                f"no descriptor left ({cause.strerror}); raise LimitNOFILE= or the hard limit", sock, in_words=True
            )
        return True

    def _refuse(self, reason: str, sock: socket.socket | None = None, in_words: bool = False) -> None:
        """Tell of a refusal, and close the connection if there is one.

        *in_words* sends a version that nobody knows first: QEMU (seen with 7.2) reads an early end of the stream
        over and over, at full speed, but gives up on a wrong version with an error.
        """
        if sock is not None:
            with contextlib.suppress(OSError):
                if in_words:
                    sock.send(encode(REFUSAL), socket.MSG_DONTWAIT)
            sock.close()
        self._emit(PeerRefused(self, reason))

    def _admit(self, sock: socket.socket, who: Credentials) -> Peer:
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
        eventfds = _doorbells(self.spec.vectors)
        try:
            member = Member(self._choose_id(rule), eventfds)
        except BaseException:
            eventfds.close()
            raise
        peer = self._enter(member, sock, who, rule, time.time_ns() // 1000)
        self._courier.wake(self.peers.values())
        self._emit(PeerAdded(self, peer))
        return peer

    def _bury_the_dead(self) -> bool:
        """Remove who hung up but was not heard yet; tell whether that made room."""
        for peer in [peer for peer in self.peers.values() if _hung_up(peer.sock)]:
            self._remove(peer, _CLOSED)
        return len(self.peers) < self.spec.max_peers

    def _choose_id(self, rule: PeerRule | None) -> int:
        if rule is None or rule.id is None:
            if (peer_id := self._ids.take()) is None:
                raise LimitExceeded(f'region "{self.name}" has no free ID left')
            return peer_id
        holder = self.peers.get(rule.id)
        if holder is not None and _hung_up(holder.sock):  # a rebooted VM may be back before we read its farewell
            self._remove(holder, _CLOSED)
        if not self._ids.take_reserved(rule.id):
            by = f"pid {holder.who.pid}" if holder is not None else "another member"
            raise LimitExceeded(f'ID {rule.id} of region "{self.name}" is in use by {by}; disconnect that one first')
        return rule.id

    def _enter(self, member: Member, sock: socket.socket, who: Credentials, rule: PeerRule | None, since: int) -> Peer:
        outbox = Outbox(self.roster, member, self.memory.fileno(), self._visibility(rule), self._ids.release)
        peer = Peer(member, sock, who, since, outbox)
        self.roster.add(member)
        self.peers[member.id] = peer
        self._loop.add_reader(sock.fileno(), self._hear, peer)
        return peer

    def _enter_host(self, member: Member) -> None:
        self._ids.take_reserved(member.id)
        self.roster.add(member)
        self.host = HostPeer(self._loop, member, lambda vector, count: self._emit(Rung(self, vector, count)))

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
            self._remove(peer, f"its connection broke: {error.strerror}")
            return
        if data:
            self._remove(peer, f"it sent {len(data)} bytes, and an ivshmem client never sends")
        else:
            self._remove(peer, _CLOSED)

    def _remove(self, peer: Peer, reason: str) -> None:
        self._courier.forget(peer)
        self._loop.remove_reader(peer.sock.fileno())
        peer.outbox.abandon()
        for other in self.peers.values():
            if other is not peer and other.outbox.leave(peer.member):
                self._ids.hold(peer.id)
        self.roster.remove(peer.member)
        del self.peers[peer.id]
        self._ids.give_back(peer.id)
        peer.sock.close()
        self._courier.wake(self.peers.values())
        self._emit(PeerRemoved(self, peer, reason))
        peer.member.eventfds.close()

    # Restart: everything that holds descriptors can be taken apart and put together again

    def export(self) -> tuple[dict[str, Any], dict[str, Fd]]:
        """Describe the region for `restore`, with its descriptors (duplicates, owned by the caller) by name."""
        fds = {"memory": self.memory.dup(), "listener": Fd(os.dup(self._listener.sock.fileno()))}
        for member in self.roster.ordered:
            for vector, fd in enumerate(member.eventfds):
                fds[f"vector.{member.id}.{vector}"] = Fd(os.dup(fd))
        for peer in self.peers.values():
            fds[f"peer.{peer.id}"] = Fd(os.dup(peer.sock.fileno()))
        state = {
            "version": STATE_VERSION,
            "next_seq": self.roster.next_seq,
            "host": self.host and {"id": self.host.member.id, "totals": self.host.totals},
            "members": [
                {"id": m.id, "seq": m.seq, "vectors": len(m.eventfds), **self._export_peer(m.id)}
                for m in self.roster.ordered
            ],
        }
        return state, fds

    def _export_peer(self, peer_id: int) -> dict[str, Any]:
        peer = self.peers.get(peer_id)
        return {} if peer is None else {"who": asdict(peer.who), "since": peer.since, "outbox": peer.outbox.export()}

    @classmethod
    def restore(
        cls,
        spec: RegionSpec,
        loop: asyncio.AbstractEventLoop,
        emit: Callable[[RegionEvent], None],
        spare: Spare,
        state: dict[str, Any],
        fds: dict[str, Fd],
    ) -> Region:
        """Put an exported region together again and go on serving where it stopped.

        Takes what it needs out of *fds*; what stays there is the caller's.

        Raises:
            StateMismatch: an unknown version, or a descriptor that the state speaks of is missing.
        """
        if state.get("version") != STATE_VERSION:
            raise StateMismatch(
                f'region "{spec.name}": state version {state.get("version")} is not {STATE_VERSION}; '
                "stop the daemon and start it anew"
            )
        needed = ["memory", "listener"]
        for entry in state["members"]:
            needed += [f"vector.{entry['id']}.{vector}" for vector in range(entry["vectors"])]
            needed += [f"peer.{entry['id']}"] * ("outbox" in entry)
        if missing := [name for name in needed if name not in fds]:
            raise StateMismatch(f'region "{spec.name}": descriptor {missing[0]} is missing; start the daemon anew')
        taken = {name: fds.pop(name) for name in needed}
        listener = Listener.adopt(taken["listener"], spec.socket)
        region = cls(spec, loop, emit, spare, shared=taken["memory"], listener=listener)
        for entry in state["members"]:
            eventfds = FdSet(taken[f"vector.{entry['id']}.{v}"].steal() for v in range(entry["vectors"]))
            member = Member(entry["id"], eventfds, entry["seq"])
            if "outbox" not in entry:
                region._enter_host(member)
                assert region.host is not None
                region.host.totals[:] = state["host"]["totals"]
                continue
            sock = socket.socket(fileno=taken[f"peer.{entry['id']}"].steal())
            sock.setblocking(False)
            who = Credentials(**entry["who"])
            region._ids.restore(entry["id"])
            peer = region._enter(member, sock, who, first_match(spec.peer, who), entry["since"])
            peer.outbox.restore(entry["outbox"])
            for owed in entry["outbox"]["leaves"]:
                region._ids.hold(owed)
        region.roster.next_seq = state["next_seq"]
        region._serve()
        region._courier.wake(region.peers.values())
        return region


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
