# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay of a region: rings pass through us, so that they are counted, limited and permitted by the pair.

Theory of operation
-------------------
Without a relay a peer holds the others' doorbells, and nobody sees it ring, nor can take them back. With one it gets
proxies: for each member that it may ring, one eventfd for each vector, which nobody else has. A sender and a target are
a *pair*. A thread, the `forwarder`, passes on what the proxies of all pairs are rung. The daemon's own rings need no
proxy.

What is counted, and the terms of each pair (its rate, and whether it is permitted), are records in a table: a memory
file that a keeper holds too, so all of it outlives us, as do rings that wait in proxies. With the keeper is, for each
peer, a vault with the proxies between it and those who were there before it (`packed`); a record says where in it.

How things are ordered decides what a crash between two of them means:

- A newcomer's records are written and its vault is kept before the region's record tells that it joined. Records of
  somebody who never joined are erased by the successor, and they are made anew.
- When a peer leaves, its rings are delivered first (`silence`), then the region's record tells of it, then the pairs
  are erased (`forget`), as the successor does with pairs one of whose ends it does not know.
- A pair outlives the leave of its target if the sender keeps the target's ID (`outbox`): the sender has the proxies,
  and what it rings waits in the target's doorbells. When the target is back, all its pairs go into a new vault. A
  record says in which vault its proxies are, so it is right before and after.
"""

from __future__ import annotations

import contextlib
import heapq
import mmap
import os
import signal
import threading
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..errors import LimitExceeded, NoSuchPeer, StateMismatch
from ..fds import eventfd, native
from ..fds.owned import Fd, FdSet
from .forwarder import Forwarder
from .roster import Member
from .table import record_size
from .terms import Terms

MAGIC = int.from_bytes(b"dbrelay\0", "little")
FORMAT = 1
"""Whoever changes it raises `record.STATE_VERSION` too, so that nobody gets here with another one."""
CHANNELS_MAX = 1 << 20
"""Proxies that a table has room for; each is a descriptor. Only what is used takes memory."""
_HEAD = 4096
_MAGIC, _FORMAT, _VECTORS, _HIGH = range(4)  # words of the head; the last one is how many records were ever used
_PLACE = 24
"""Bits for the place in a vault; above them is the number of the vault."""
_NONE = array("i")
_SIGNALS = {signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, native.GUARD}


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A sender, a target, and the proxies by which the one rings the other."""

    sender: Member
    target: Member
    proxies: FdSet
    index: int


@dataclass(frozen=True, slots=True)
class PairState:
    """What there is to say of a pair; ``rings`` counts the ``refused`` ones too."""

    sender: int
    target: int
    rings: int
    deliveries: int
    refused: int
    rate: int
    permitted: bool


class Relay:
    """The relay of one region of members with *vectors* doorbells; takes over the table *fd*."""

    def __init__(self, name: str, fd: Fd, vectors: int, poll_us: int) -> None:
        self.fd = fd
        self._name = name
        self._vectors = vectors
        self._map = mmap.mmap(fd.fileno(), _size(vectors))
        self._head = memoryview(self._map)[:_HEAD].cast("Q")
        self._table = memoryview(self._map)[_HEAD:]
        self._free: list[int] = []  # records below the highest used, a heap
        self._pairs: dict[tuple[int, int], Pair] = {}
        self._own: dict[int, int] = {}  # the record of each member itself, by ID
        self._thread: threading.Thread | None = None
        self._forwarder = Forwarder(self._table, vectors, poll_us=poll_us)

    @classmethod
    def create(cls, name: str, vectors: int, poll_us: int = 0) -> Relay:
        """Make one for the region *name*.

        Raises:
            LimitExceeded: there are no descriptors or no memory left.
        """
        try:
            with contextlib.ExitStack() as undo:
                fd = undo.enter_context(Fd(os.memfd_create(f"doorbelld:{name}:relay", os.MFD_CLOEXEC)))
                os.ftruncate(fd.fileno(), _size(vectors))
                made = cls(name, fd, vectors, poll_us)
                undo.pop_all()
        except OSError as error:
            raise LimitExceeded(
                f'no room for the relay of region "{name}": {error.strerror}; raise LimitNOFILE='
            ) from error
        made._head[_MAGIC], made._head[_FORMAT], made._head[_VECTORS] = MAGIC, FORMAT, vectors
        return made

    @classmethod
    def adopt(cls, name: str, fd: Fd, vectors: int, poll_us: int = 0) -> Relay:
        """Go on with one that was kept; *fd* is taken over. `restore` comes next.

        Raises:
            StateMismatch: it is none, or damaged.
        """
        with contextlib.ExitStack() as undo:
            undo.enter_context(fd)
            head = array("Q", os.pread(fd.fileno(), 4 * 8, 0).ljust(4 * 8, b"\0"))
            if head[_MAGIC] != MAGIC:
                raise StateMismatch("the table of its relay is none of doorbelld's")
            size = os.fstat(fd.fileno()).st_size
            capacity = (_size(vectors) - _HEAD) // record_size(vectors)
            if head[_FORMAT] != FORMAT or head[_VECTORS] != vectors or size != _size(vectors) or head[_HIGH] > capacity:
                raise StateMismatch("the table of its relay is damaged")
            made = cls(name, fd, vectors, poll_us)
            undo.pop_all()
        return made

    def close(self) -> None:
        """End the thread and close what we have; what is kept stays kept, and rings stay where they are."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._forwarder.end()
            thread.join()
        self._forwarder.close()
        for pair in self._pairs.values():
            pair.proxies.close()
        self._pairs.clear()
        self._head.release()
        self._table.release()
        self._map.close()
        self.fd.close()

    # The thread

    def begin(self) -> None:
        """Start to forward.

        Raises:
            LimitExceeded: there can be no more threads.
        """
        # should the daemon fail, the thread must not keep the process
        self._thread = threading.Thread(target=self._main, name=f"relay {self._name}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread = None
            raise LimitExceeded(f'no thread for the relay of region "{self._name}"; raise TasksMax=') from error

    def _main(self) -> None:
        # signals are for the loop's thread, but for the guard's and for those that are about this thread
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _SIGNALS)
        with contextlib.suppress(OSError), open("/proc/thread-self/comm", "w") as comm:
            comm.write(f"relay {self._name}"[:15])
        self._forwarder.run()

    @property
    def dead(self) -> bool:
        """Whether the thread ended though nobody ended it: nobody's rings arrive."""
        return self._thread is not None and not self._thread.is_alive()

    def poll(self, poll_us: int) -> None:
        """Have the thread look for more rings for so many microseconds before it sleeps."""
        self._forwarder.poll_us = poll_us

    def turn(self, now: int) -> int:
        """Do what the thread would do at time *now*, in nanoseconds, where there is none; see `Forwarder.turn`."""
        return self._forwarder.turn(now)

    # Coming and going

    def join(self, member: Member, pairs: Iterable[tuple[Member, Member, Terms]]) -> None:
        """Make *pairs* of senders and targets, one of each being *member*, who is new; the others are known.

        Pairs that outlived the absence of *member* go by the terms given from now on.

        Raises:
            LimitExceeded: there are not enough descriptors; nothing is made then.
        """
        made: list[Pair] = []
        try:
            if not (returned := member.id in self._own):
                self._enter(member)
            for sender, target, terms in pairs:
                if (kept := self._pairs.get((sender.id, target.id))) is not None:
                    self._pairs[sender.id, target.id] = replace(kept, target=target)
                    self._forwarder.change(kept.index, terms.rate, terms.permitted)
                else:
                    made.append(self._make(sender, target, terms))
        except (OSError, LimitExceeded) as error:
            for pair in made:
                self._end(pair, flush=False)
                self._erase(pair.index)
            if not returned:
                self._exit(member)
            if isinstance(error, LimitExceeded):
                raise
            cure = "raise fs.epoll.max_user_watches" if error.errno == 28 else "raise LimitNOFILE="
            raise LimitExceeded(
                f'no descriptors for {self._vectors} proxies for each pair of region "{self._name}": '
                f"{error.strerror}; {cure}"
            ) from error

    def _enter(self, member: Member) -> None:
        index = self._allot()
        self._forwarder.open(index, member.key, member.key)
        self._forwarder.start(index, index, _NONE, _NONE)
        self._own[member.id] = index

    def _exit(self, member: Member) -> None:
        if (index := self._own.pop(member.id, None)) is not None:
            self._forwarder.stop(index)
            self._erase(index)

    def _make(self, sender: Member, target: Member, terms: Terms) -> Pair:
        proxies = eventfd.make(self._vectors)
        try:
            index = self._allot()
        except LimitExceeded:
            proxies.close()
            raise
        self._forwarder.open(index, sender.key, target.key, terms.rate, terms.permitted)
        return self._start(Pair(sender, target, proxies, index))

    def _start(self, pair: Pair) -> Pair:
        try:
            self._forwarder.start(pair.index, self._own[pair.target.id], pair.proxies.array, pair.target.fds)
        except BaseException:
            pair.proxies.close()
            self._erase(pair.index)
            raise
        self._pairs[pair.sender.id, pair.target.id] = pair
        return pair

    def _end(self, pair: Pair, flush: bool) -> None:
        del self._pairs[pair.sender.id, pair.target.id]
        self._forwarder.stop(pair.index, flush)
        pair.proxies.close()

    def silence(self, member: Member, kept_by: Container[int] = ()) -> list[Pair]:
        """End the pairs of *member*: what it has rung is delivered, then nothing more. Gives them, for `forget`.

        Pairs outlive it whose sender's ID is in *kept_by*.
        """
        ended = [pair for pair in self._of(member.id) if pair.sender.id == member.id or pair.sender.id not in kept_by]
        for pair in ended:
            self._end(pair, flush=pair.sender is member)
        return ended

    def forget(self, member: Member, ended: Iterable[Pair], absent: bool = False) -> None:
        """Erase the pairs that `silence` ended, and *member*, unless it is *absent* only."""
        for pair in ended:
            rings, _, _, passed = self._forwarder.counts(pair.index)
            if pair.sender is member:
                self._forwarder.credit(self._own[pair.target.id], 0, passed)
            else:
                self._forwarder.credit(self._own[pair.sender.id], rings, 0)
            self._erase(pair.index)
        if not absent:
            self._exit(member)

    def _allot(self) -> int:
        """Find a free record."""
        if self._free:
            return heapq.heappop(self._free)
        high = self._head[_HIGH]
        if high == self._forwarder.capacity:
            raise LimitExceeded(f'region "{self._name}" has {high} pairs, as many as a relay can have; lower max-peers')
        self._head[_HIGH] = high + 1
        return high

    def _erase(self, index: int) -> None:
        self._forwarder.erase(index)
        heapq.heappush(self._free, index)

    # Restart

    def packed(self, member: Member) -> list[int]:
        """Give all proxies between *member*, who just joined, and the others, for its vault; `placed` comes next."""
        return [fd for pair in self._of(member.id) for fd in pair.proxies]

    def placed(self, member: Member) -> None:
        """Note in the records that what `packed` gave is in the vault of *member* now."""
        for index, pair in enumerate(self._of(member.id)):
            self._forwarder.place(pair.index, member.vault << _PLACE | index * self._vectors)

    def restore(
        self, members: Mapping[int, Member], vaults: Mapping[int, FdSet], lives: Callable[[Member, Member], bool]
    ) -> tuple[set[int], set[int]]:
        """Take up all pairs of *members*, by key, with the proxies in *vaults*, by number.

        ``lives(sender, target)`` tells whether there should be such a pair. Where proxies are missing there are others
        in their place. The vaults are empty afterwards.

        Returns:
            The numbers of the vaults in which proxies are missing, and of those that are in use.

        Raises:
            OSError: there are not enough descriptors.
            ValueError: the table is damaged.
        """
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for index in range(self._head[_HIGH]):
            if (of := self._forwarder.read(index)) is None:
                heapq.heappush(self._free, index)
            elif (of[0], of[1]) in found:
                raise ValueError("a pair is there twice")
            else:
                found[of[0], of[1]] = index, of[2]
        for key, member in members.items():
            if (key, key) in found:
                self._own[member.id] = index = found.pop((key, key))[0]
                self._forwarder.start(index, index, _NONE, _NONE)
            else:
                self._enter(member)
        contents = {number: vault.steal() for number, vault in vaults.items()}
        lost, used = set(), set()
        try:
            for (sent, to), (index, where) in found.items():
                if sent not in members or to not in members or not lives(members[sent], members[to]):
                    self._bury(members.get(sent), members.get(to), index)
                    continue
                vault = where >> _PLACE or max(sent, to)  # as it was before there were numbers of vaults
                place = where & (1 << _PLACE) - 1
                used.add(vault)
                fds = contents.get(vault, [])[place : place + self._vectors]
                if len(fds) == self._vectors and all(fd >= 0 for fd in fds):
                    contents[vault][place : place + self._vectors] = [-1] * self._vectors
                    proxies = FdSet(fds)
                else:
                    lost.add(vault)
                    proxies = eventfd.make(self._vectors)
                self._start(Pair(members[sent], members[to], proxies, index))
        finally:
            for fds in contents.values():
                for fd in fds:
                    if fd >= 0:
                        os.close(fd)
        return lost, used

    def _bury(self, sender: Member | None, target: Member | None, index: int) -> None:
        """Erase a pair one of whose ends is gone, or both."""
        rings, _, _, passed = self._forwarder.counts(index)
        if sender is not None:
            self._forwarder.credit(self._own[sender.id], rings, 0)
        if target is not None:
            self._forwarder.credit(self._own[target.id], 0, passed)
        self._erase(index)

    # Looking and changing

    def bells(self, sender: Member, target: Member) -> array[int]:
        """Give the eventfds, borrowed, by which *sender* rings *target*."""
        return self._pairs[sender.id, target.id].proxies.array

    def __contains__(self, ends: tuple[int, int]) -> bool:
        """Tell whether there is a pair of a sender and a target of these IDs."""
        return ends in self._pairs

    def pairs(self) -> Iterator[PairState]:
        """Describe all pairs, by sender and target."""
        for ends in sorted(self._pairs):
            pair = self._pairs[ends]
            rings, deliveries, refused, _ = self._forwarder.counts(pair.index)
            yield PairState(*ends, rings, deliveries, refused, *self._forwarder.terms(pair.index))

    def totals(self, peer_id: int) -> tuple[int, int]:
        """Tell how many rings a member has sent, those that were refused too, and how many were delivered to it.

        Of who has left, nothing is known any more.
        """
        if peer_id not in self._own:
            return 0, 0
        sent, _, _, received = self._forwarder.counts(self._own[peer_id])
        for pair in self._of(peer_id):
            rings, _, _, passed = self._forwarder.counts(pair.index)
            if pair.sender.id == peer_id:
                sent += rings
            else:
                received += passed
        return sent % (1 << 64), received % (1 << 64)

    def _of(self, peer_id: int) -> Iterator[Pair]:
        """Find all pairs that a member is in."""
        for other in self._own:
            for ends in ((peer_id, other), (other, peer_id)):
                if (pair := self._pairs.get(ends)) is not None:
                    yield pair

    def terms(self, sender: int, target: int) -> Terms:
        """Tell what holds for a pair.

        Raises:
            NoSuchPeer: there is no such pair.
        """
        return Terms(*self._forwarder.terms(self._pair(sender, target).index))

    def change(self, sender: int, target: int, terms: Terms) -> None:
        """Have other terms hold for a pair from now on; what waits in its proxies goes by them too.

        Raises:
            NoSuchPeer: there is no such pair.
        """
        self._forwarder.change(self._pair(sender, target).index, terms.rate, terms.permitted)

    def _pair(self, sender: int, target: int) -> Pair:
        if (pair := self._pairs.get((sender, target))) is not None:
            return pair
        for peer_id in (sender, target):
            if peer_id not in self._own:
                here = sorted(self._own)
                listed = f"{', '.join(map(str, here[:8]))}{' ...' if len(here) > 8 else ''}" if here else "nobody"
                raise NoSuchPeer(f'region "{self._name}" has no peer {peer_id}; it has {listed}')
        raise NoSuchPeer(
            f'{sender} does not ring {target} in region "{self._name}": it was never given its doorbells '
            "(itself, the host peer as a sender, or may-ring leaves it out); doorbellctl pairs lists all pairs"
        )


def _size(vectors: int) -> int:
    return _HEAD + max(CHANNELS_MAX // vectors, 1) * record_size(vectors)
