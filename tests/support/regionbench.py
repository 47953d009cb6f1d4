# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A region step by step, and the end of its process at any of them.

The event loop never runs: nothing happens but what a test does.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import shutil
import socket
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from doorbelld.errors import AccessDenied, LimitExceeded
from doorbelld.fds.keeper import Kept, Satchel
from doorbelld.fds.owned import Fd
from doorbelld.fds.peercred import Credentials
from doorbelld.fds.spare import Spare
from doorbelld.ivshmem.absent import AbsentPeer
from doorbelld.ivshmem.admission import Admission
from doorbelld.ivshmem.events import RegionEvent
from doorbelld.ivshmem.peer import Peer
from doorbelld.ivshmem.record import Record
from doorbelld.ivshmem.region import Region
from doorbelld.ivshmem.revival import read_state, revive, spec_of
from doorbelld.ivshmem.roster import Member
from doorbelld.ivshmem.spec import RegionSpec

from .fdcount import no_leaks
from .rawclient import QemuClient, RawClient, identity


class Killed(BaseException):
    """The end of the process, at this very step."""


@contextmanager
def killed_at(step: str, of: Any = Record, after: int = 0) -> Iterator[None]:
    """End the body when it comes to *step* of a record (or *of* something else), if it does, *after* so many times."""
    real, times = getattr(of, step), itertools.count()

    def killed(*args: Any, **options: Any) -> Any:
        if next(times) >= after:
            raise Killed
        return real(*args, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # nobody closes what a killed process had in its hands
        try:
            with mock.patch.object(of, step, killed):
                yield
        except Killed as end:
            for error in (end, end.__context__):
                traceback.clear_frames(error and error.__traceback__)
        gc.collect()


class Store(Satchel):
    """A keeper that may be full."""

    full = False

    def put(self, name: str, fd: int) -> bool:
        assert name not in self.copies, f"{name} is kept already"
        return not self.full and super().put(name, fd)


class Bench:
    """A kept region on a loop that never runs: nothing happens but what is done here."""

    def __init__(self, *, keep: bool = False, **options: Any) -> None:
        """Make one; with *keep*, clients keep the eventfds that they are given."""
        self.keep = keep
        self.undo = ExitStack()
        self.undo.enter_context(no_leaks())
        folder = tempfile.mkdtemp(prefix="db", dir="/tmp")
        self.undo.callback(shutil.rmtree, folder)
        self.loop = asyncio.new_event_loop()
        self.undo.callback(self.loop.close)
        self.spare = Spare()
        self.undo.callback(self.spare.close)
        self.keeper = Store()
        self.events: list[RegionEvent] = []
        self.undo.callback(self.events.clear)
        self.clients: dict[int, RawClient] = {}
        """Those who joined by `join`, by sequence number."""
        self.strangers: list[RawClient] = []
        """Those who connected by `knock`."""
        self.cut_off: set[int] = set()
        """IDs that got other doorbells while somebody remembered them."""
        self._watch()
        options = {"vectors": 3, "size": 1 << 16, "stall_timeout": 0.0, **options}
        spec = RegionSpec("demo", socket=f"{folder}/s", **options)
        self.region = Region.open(spec, self.loop, self.events.append, self.spare, keeping=(self.keeper, "r1."))

    def _watch(self) -> None:
        """Note the IDs that get other doorbells while somebody remembers them."""
        cut_off = Admission.cut_off

        def note(admission: Admission, absent: AbsentPeer) -> None:
            if absent.member is not None:
                self.cut_off.add(absent.id)
            cut_off(admission, absent)

        self.undo.enter_context(mock.patch.object(Admission, "cut_off", note))

    def join(self, name: str, keeps: bool = False) -> Peer | None:
        """Have a VM of that *name* join; one that *keeps* IDs is told no leaves, as QEMU is."""
        try:
            end = self.region.attach(Credentials(os.getpid(), 0, 0, name), leaves=not keeps)
        except (AccessDenied, LimitExceeded):
            return None
        peer = list(self.region.peers.values())[-1]
        kind = QemuClient if keeps else RawClient
        self.clients[peer.member.seq] = kind(sock=socket.socket(fileno=end.steal()), keep=self.keep)
        return peer

    def knock_as(self, name: str, keeps: bool, step: str, after: int) -> None:
        """Have a VM of that *name* connect to the socket, and the process end at a *step* of letting it in."""
        who = Credentials(os.getpid(), 0, 0, name, program="qemu-system" if keeps else "python3")
        client = (QemuClient if keeps else RawClient)(self.region.spec.socket, keep=self.keep)
        with mock.patch("doorbelld.ivshmem.region.identify", return_value=who):
            with killed_at(step, after=after):
                self.region._door._accept()
            self.restart()
            self.region._door._accept()
        late = [peer for peer in self.peers() if peer.member.seq not in self.clients]
        for peer in late:
            self.clients[peer.member.seq] = client
        if not late:
            client.close()

    def leave(self, peer: Peer, by_itself: bool = True) -> None:
        self.clients.pop(peer.member.seq).close()
        if by_itself:
            self.region._hear(peer)
        else:
            self.region.remove(peer, "shown out")

    def post(self, peer: Peer, limit: int, count: int) -> int:
        """Send up to *count* messages of a batch."""
        values, fds = peer.outbox.batch(limit)
        sent, _ = self.region._post(peer, values[:count], fds[:count])
        self.clients[peer.member.seq].take()
        return sent

    def knock(self) -> RawClient:
        """Have somebody connect to the socket, and let them in."""
        client = RawClient(self.region.spec.socket)
        self.strangers.append(client)
        self.region._door._accept()
        return client

    def pump(self) -> None:
        """Hear all farewells, and tell everybody everything."""
        for _ in range(2):
            for peer in list(self.region.peers.values()):
                if peer.id in self.region.peers:
                    self.region._hear(peer)  # silence is nothing
        clients = [client for client in (*self.clients.values(), *self.strangers) if client.sock.fileno() >= 0]
        more = True
        while more:
            more = any(
                self.region._post(peer, *batch)[0] for peer in self.peers() if (batch := peer.outbox.batch(64))[0]
            )
            for client in clients:
                client.take()

    def peers(self) -> list[Peer]:
        return list(self.region.peers.values())

    def sweep(self) -> None:
        """Have the host peer look at its doorbells now."""
        host = self.region.host
        assert host is not None
        if host._pause is not None:
            host._pause.cancel()
            host._listen()
        host._sweep()

    def restart(self) -> None:
        """End the region as a crash would, and put it together anew."""
        self.region.let_go()
        self.events.clear()
        self.region = self.revive()

    def revive(self, spoil: Callable[[dict[str, Any]], Any] = lambda _: None, given: Fd | None = None) -> Region:
        """Make a region of what is kept, once *spoil* has had its way with the state."""
        kept = Kept({name: fd.dup() for name, fd in self.keeper.copies.items()}).below("r1.")
        fd = kept.take("state")
        assert fd is not None
        try:
            ledger, state = read_state(fd)
            spoil(state)
            try:
                spec = spec_of(state, {})
            except BaseException:
                ledger.close()
                raise
        except BaseException:
            kept.close()
            raise
        keeping = self.keeper, "r1."
        return revive(spec, state, ledger, kept, keeping, self.loop, self.events.append, self.spare, given)

    def lines(self) -> list[bytes]:
        assert self.region._record is not None
        return self.region._record._ledger.lines()

    def plain(self, state: dict[str, Any]) -> dict[str, Any]:
        """Bring *state* to a form in which what makes no difference makes none.

        Where a peer's cursor stands before members that it is never told of, it may as well stand behind them. What is
        kept for absent peers and nobody remembers may be gone. A number that was drawn for somebody who was refused is
        free again.
        """
        state = json.loads(json.dumps(state))
        peers = self.region.peers.values()
        oldest = min((peer.member.seq for peer in peers if peer.outbox.keeps), default=state["next_seq"])
        assert state["next_seq"] > max((entry["seq"] for entry in state["members"]), default=-1)
        del state["next_seq"]
        state["retired"] = [[peer_id, seq] for peer_id, seq in state["retired"] if oldest < seq]
        for entry in state["absent"]:
            if not any(entry["id"] in peer.outbox.kept for peer in peers):
                entry["doorbells"] = None
        for entry in state["members"]:
            if "outbox" not in entry:
                continue
            entry["outbox"]["kept"].sort()
            if not entry["outbox"]["offset"]:
                outbox = self.region.peers[entry["id"]].outbox
                cursor = entry["outbox"]["cursor"]
                ahead = (m.seq for m in self.region.roster.ordered if m.seq >= cursor and outbox._to_tell(m))
                entry["outbox"]["cursor"] = next(ahead, -1)
        return state

    def export(self) -> dict[str, Any]:
        return self.plain(self.region.export())

    def bells(self, peer: Peer, member: Member) -> Sequence[int]:
        """Give the eventfds by which *peer* should ring *member*."""
        relay = self.region.relay
        return member.fds if relay is None or member is peer.member else relay.bells(peer.member, member)

    def close(self) -> None:
        """Tell everybody everything, see that those who joined know what they may know, and end it."""
        try:
            self.pump()
            for peer in self.peers():
                if (client := self.clients.get(peer.member.seq)) is not None:
                    seen = [member for member in self.region.roster.ordered if not peer.outbox.blind_to(member)]
                    seen += [m for m in self.region.admission.absent.doorbells() if m.id in peer.outbox.kept]
                    want = {m.id: list(map(identity, self.bells(peer, m))) for m in seen}
                    same = {peer_id for peer_id in want if peer_id not in self.cut_off}
                    assert {i: client.doorbells[i] for i in same} == {i: want[i] for i in same}
                    assert client.doorbells.keys() - self.cut_off == same
            assert not self.region.admission.ids._held
        finally:
            self.abandon()

    def abandon(self) -> None:
        self.region.close()
        for client in (*self.clients.values(), *self.strangers):
            client.close()
        assert not self.keeper.copies
        self.undo.close()
