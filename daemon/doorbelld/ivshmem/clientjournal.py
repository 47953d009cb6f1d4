# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a client leaves for who comes after it: its connection and all that came over it, at each instant.

Theory of operation
-------------------
A message that was taken from a socket is gone, and its descriptor with it. So nothing is taken that is not kept: a
batch of messages is looked at first (MSG_PEEK gives copies of the descriptors), its descriptors go into a vault with
the keeper, what it says into the ledger; only then it is taken, and the descriptors that come with it are not asked
for. The kernel counts with us: SO_PEEK_OFF, which moves on with what is looked at, moves back with what is taken, in
the same moment. So the socket itself, whoever holds it, says how much of the last batch is still to be taken.

The ledger's first line is a snapshot (`hostclient.HostClient.export`); it describes the connection as the greeting that
a server would send now. What came since are lines, and who comes after us feeds both to a new `Link`
(`clientrevival`)::

    ["<", vault, time, [[hex, descriptors]...]]     a batch that is in the vault (0: it has no descriptors); it is being
                                                    taken from now on
    [">"]                                           it was taken
    ["m", vault, [[vault, index, count]...]]        a vault that has what is of use in others, which are gone
    ["!", vector, count]                            one of our doorbells was rung

A vault's contents are known by their places in it. Eventfds of peers that left stay in their vaults until there is
little else in them; vaults of like size are put together. So there are never more vaults than the number of descriptors
has binary digits, give or take some, and each descriptor is moved a few times at most.

With the keeper are ``state``, ``s<number>`` (the socket; there before it is connected) and ``<number>`` (vaults). A
number is never used twice.

Invariants
----------
1. What was taken from the socket is kept and written down.
2. Each open descriptor that came over the connection is in exactly one vault, where ``_where`` says.
3. A snapshot is written between two batches only.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import LimitExceeded
from ..fds.keeper import Keeper
from ..fds.ledger import AREA, Ledger, LedgerFull, line
from ..fds.owned import Fd
from ..fds.shelf import Shelf
from ..fds.vault import SO_PEEK_OFF
from ..wire.ivshmem import OutOfPlace
from .link import Link, Pieces, PlainSource
from .receive import receive

LEDGER = "doorbelld:{}:{}:state"
BATCH = 128
"""Messages with a descriptor that are taken together."""
_PIECES_MAX = 256
_LINES_MAX = 4096
_VAULT = 8192  # descriptors that go into one at once; a socket's queue takes some more
_SPARSE = 16
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
NO_ROOM = "there is no room for its descriptors (FileDescriptorStoreMax=, LimitNOFILE=)"
TOO_LARGE = "its state has become too large to be kept; lower vectors-max"


def take_exactly(sock: socket.socket, size: int) -> bytes:
    """Take *size* bytes that are there, and none of the descriptors that come with them.

    Raises:
        OutOfPlace: they are not there, though they were.
        OSError: the connection broke.
    """
    taken = b""
    with contextlib.suppress(BlockingIOError):
        while len(taken) < size and (more := sock.recv(size - len(taken), socket.MSG_DONTWAIT)):
            taken += more
    if len(taken) < size:
        raise OutOfPlace("what it had sent can't be read again")
    return taken


def runs(places: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Write places as ``[vault, index, count]``."""
    found: list[list[int]] = []
    for vault, index in places:
        if found and found[-1][0] == vault and found[-1][1] + found[-1][2] == index:
            found[-1][2] += 1
        else:
            found.append([vault, index, 1])
    return found


@dataclass(slots=True)
class _Batch:
    """What was looked at and not taken yet."""

    time: int
    vault: int
    pieces: deque[tuple[bytes, list[Fd]]] = field(default_factory=deque)

    @property
    def fds(self) -> list[int]:
        return [fd.fileno() for _, fds in self.pieces for fd in fds]

    def close(self) -> None:
        for _, fds in self.pieces:
            for fd in fds:
                fd.close()


class ClientJournal:
    """The journal of *link*, a `link.Source`; *snapshot* gives the client's state.

    *failed* is called with the reason when it can't be kept any more; it has the link read plainly from then on, and
    calls `discard`.
    """

    def __init__(
        self,
        shelf: Shelf,
        ledger: Ledger,
        link: Link,
        snapshot: Callable[[ClientJournal], dict[str, Any]],
        failed: Callable[[str], None],
    ) -> None:
        self.next = 1
        """The next number."""
        self.socket = 0
        """The number of the socket; 0 if there is none."""
        self._shelf = shelf
        self._ledger = ledger
        self._link = link
        self._snapshot = snapshot
        self._failed = failed
        self._vaults: dict[int, list[int]] = {}  # our descriptors by place; -1 for those that are closed
        self._live: dict[int, int] = {}  # how many are not
        self._where: dict[int, tuple[int, int]] = {}
        self._batch: _Batch | None = None
        self._merging: tuple[int, list[int], list[tuple[int, int]]] | None = None
        self._merge_max = 8 * _VAULT
        self._handling = False
        self._resuming = False
        self._stale = False
        self._weight = 0

    @classmethod
    def start(
        cls,
        keeper: Keeper,
        prefix: str,
        name: str,
        link: Link,
        snapshot: Callable[[ClientJournal], dict[str, Any]],
        failed: Callable[[str], None],
    ) -> ClientJournal | None:
        """Keep *link* and all that it has; None if there is no room for all of it: nothing is kept then."""
        try:
            ledger = Ledger.create(name)
        except OSError:
            return None
        journal = cls(Shelf(keeper, prefix), ledger, link, snapshot, failed)
        if journal._keep_all():
            link.source = journal
            return journal
        journal.discard()
        return None

    @classmethod
    def resume(
        cls,
        shelf: Shelf,
        ledger: Ledger,
        link: Link,
        snapshot: Callable[[ClientJournal], dict[str, Any]],
        failed: Callable[[str], None],
        *,
        next_number: int,
        socket_number: int,
        vaults: Mapping[int, Sequence[int]],
    ) -> ClientJournal:
        """Go on with what is kept; `resumed` is called when *link* is where it was. *vaults* say what is where."""
        journal = cls(shelf, ledger, link, snapshot, failed)
        journal.next, journal.socket = next_number, socket_number
        for vault, fds in vaults.items():
            journal.place(vault, fds)
        journal._handling = journal._resuming = True
        link.source = journal
        return journal

    def resumed(self) -> None:
        """Write down how things are now, and drop what is of no use."""
        self._resuming, self._stale = False, True
        self.settle()
        self._shelf.drop_others({"state", f"s{self.socket}", *map(str, self._vaults)})

    def _keep_all(self) -> bool:
        link, shelf = self._link, self._shelf
        fds = [fd for peer in (link.membership.own, *link.membership.peers.values()) for fd in peer.eventfds]
        fds += [fd for _, with_it in link.tail for fd in with_it]
        if link.membership.memory is not None:
            fds.append(link.membership.memory.fileno())
        if link.sock is not None:
            self.socket = self._number()
            if not shelf.keep(f"s{self.socket}", link.sock.fileno()):
                return False
        for start in range(0, len(fds), _VAULT):
            vault = self._number()
            if not shelf.stow(str(vault), fds[start : start + _VAULT]):
                return False
            self.place(vault, fds[start : start + _VAULT])
        try:
            self._ledger.rewrite(line(self._snapshot_now()))
        except LedgerFull:
            return False
        return shelf.keep("state", self._ledger.fd.fileno())

    def discard(self) -> None:
        """Keep nothing any more."""
        self._shelf.drop_all()
        self.close()

    def close(self) -> None:
        """Stop writing; what is kept stays kept."""
        if self._batch is not None:
            self._batch.close()
        self._ledger.close()

    # What the snapshot says of the connection

    def place(self, vault: int, fds: Sequence[int]) -> None:
        """Learn that *fds*, in order, are in a vault; -1 for what is of no use."""
        self._vaults[vault] = list(fds)
        self._live[vault] = 0
        for index, fd in enumerate(fds):
            if fd >= 0:
                self._where[fd] = vault, index
                self._live[vault] += 1

    def find(self, fds: Iterable[int]) -> list[list[int]]:
        """Say where *fds* are."""
        return runs(self._where[fd] for fd in fds)

    def _number(self) -> int:
        self.next += 1
        return self.next - 1

    # As a source

    def ready(self) -> bool:
        """See `Source`."""
        return self._shelf.ready(_nothing)

    def begin(self, sock: socket.socket) -> None:
        """See `Source`."""
        self.socket = self._number()
        if self._shelf.keep(f"s{self.socket}", sock.fileno()):
            self.renew()
        else:
            self._failed(NO_ROOM)

    def take(self, sock: socket.socket, resume: Callable[[], None]) -> tuple[int, Pieces] | None:
        """See `Source`."""
        if not self._shelf.ready(resume):
            return None
        self._finish_merge()
        if self._batch is None:
            if self._ledger.length > AREA // 2:
                self.renew()
            self._batch = self._look(sock)
            if (fds := self._batch.fds) and not self._shelf.stow(str(self._batch.vault), fds):
                return self._give_up(NO_ROOM, sock, resume)
            if fds and not self._shelf.ready(resume):  # it may be on its way to the keeper still
                return None
        batch = self._batch
        if sum(len(data) for data, _ in batch.pieces):
            try:
                self._announce(batch)
            except LedgerFull:
                return self._give_up(TOO_LARGE, sock, resume)
            self._batch = None
            self._take_now(sock, batch)
        self._batch = None
        return batch.time, _giving(batch)

    def _give_up(self, reason: str, sock: socket.socket, resume: Callable[[], None]) -> tuple[int, Pieces] | None:
        self._failed(reason)
        return PlainSource().take(sock, resume)

    def _look(self, sock: socket.socket) -> _Batch:
        """Look at what is there; a piece b"" is the end, and comes alone."""
        batch = _Batch(time.time_ns() // 1000, self._number())
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        count = 0
        try:
            while count < BATCH and len(batch.pieces) < _PIECES_MAX:
                data, fds = receive(sock, flags=_PEEK)
                if not data and batch.pieces:
                    break
                batch.pieces.append((data, fds))
                count += len(fds)
                if not data:
                    break
        except BlockingIOError:
            pass
        except (OSError, LimitExceeded):
            if not batch.pieces:  # else it comes again
                raise
        except BaseException:
            batch.close()
            raise
        return batch

    def _announce(self, batch: _Batch) -> None:
        """Write down what is taken from now on."""
        fds = batch.fds
        told = [[data.hex(), len(with_it)] for data, with_it in batch.pieces]
        self._append(["<", batch.vault if fds else 0, batch.time, told], len(told))
        if fds:
            self.place(batch.vault, fds)
        self._handling = True

    def _take_now(self, sock: socket.socket, batch: _Batch) -> None:
        try:
            for data, _ in batch.pieces:
                if take_exactly(sock, len(data)) != data:
                    raise OutOfPlace("it sends something else than it had sent")
        except BaseException:
            batch.close()
            raise
        with contextlib.suppress(LedgerFull):  # there is room: it is half empty
            self._append([">"], 1)

    def forget(self, fds: Iterator[int]) -> None:
        """See `Source`."""
        for fd in fds:
            if (place := self._where.pop(fd, None)) is not None:
                vault, index = place
                self._vaults[vault][index] = -1
                self._live[vault] -= 1

    def settle(self) -> None:
        """See `Source`."""
        if self._resuming:
            return
        self._handling = False
        if self._stale or self._weight > _LINES_MAX:
            self.renew()
        self._tidy()

    def slot(self, vector: int) -> memoryview | None:
        """See `Source`."""
        return self._ledger.begin_draining(vector)

    def rung(self, vector: int, count: int) -> None:
        """See `Source`."""
        try:
            self._append(["!", vector, count], 1)
        except LedgerFull:
            self._stale = True
        if (self._stale or self._weight > _LINES_MAX) and not self._handling:
            self.renew()

    def end(self) -> None:
        """See `Source`."""
        self._drop_batch()
        gone = [str(vault) for vault in self._vaults] + [f"s{self.socket}"]
        if self._merging is not None:
            gone.append(str(self._merging[0]))
        self.socket, self._merging, self._merge_max = 0, None, 8 * _VAULT
        self._vaults.clear()
        self._live.clear()
        self._where.clear()
        self._handling = False
        self.renew()
        for name in gone:
            self._shelf.drop(name)

    def _drop_batch(self) -> None:
        if self._batch is not None:
            self._batch.close()
            self._shelf.drop(str(self._batch.vault))
            self._batch = None

    # The ledger

    def renew(self) -> None:
        """Write the state as a whole."""
        if self._handling:
            self._stale = True
            return
        try:
            self._ledger.rewrite(line(self._snapshot_now()))
        except LedgerFull:
            self._failed(TOO_LARGE)
        self._stale, self._weight = False, 0

    def _snapshot_now(self) -> dict[str, Any]:
        return {**self._snapshot(self), "next": self.next}

    def _append(self, change: list[Any], weight: int) -> None:
        self._ledger.append(line(change))
        self._weight += weight

    # The vaults

    def _tidy(self) -> None:
        """Drop vaults that are of no use, and put together those of like size."""
        if self._merging is not None:
            return
        for vault in [vault for vault, live in self._live.items() if not live]:
            self._drop_vault(vault)
        while self._merging is None and (olds := self._alike()) and self._shelf.ready(_nothing):
            places = [(old, index) for old in olds for index, fd in enumerate(self._vaults[old]) if fd >= 0]
            vault = self._number()
            if not self._shelf.stow(str(vault), [self._vaults[old][index] for old, index in places]):
                self._merge_max = len(places)  # go on with more vaults; one this large can't be
                return
            self._merging = vault, olds, places
            if self._shelf.ready(_nothing):
                self._finish_merge()

    def _alike(self) -> list[int]:
        """Find vaults to be put together: the smallest two of like size, or one that has little of use."""
        by_size = sorted(self._live, key=lambda vault: self._live[vault])
        for small, large in itertools.pairwise(by_size):
            both = self._live[small] + self._live[large]
            if self._live[large] < 2 * self._live[small] and both < self._merge_max:
                return [small, large]
        for vault in by_size:
            if self._live[vault] < self._merge_max and len(self._vaults[vault]) > 2 * self._live[vault] + _SPARSE:
                return [vault]
        return []

    def _finish_merge(self) -> None:
        if self._merging is None:
            return
        (vault, olds, places), self._merging = self._merging, None
        fds = [self._vaults[old][index] for old, index in places]
        try:
            self._append(["m", vault, runs(places)], len(places) // 64 + 1)
        except LedgerFull:
            self._shelf.drop(str(vault))
            self._stale = True
            return
        self.place(vault, fds)
        for old in olds:
            self._drop_vault(old)

    def _drop_vault(self, vault: int) -> None:
        del self._vaults[vault], self._live[vault]
        self._shelf.drop(str(vault))


def _giving(batch: _Batch) -> Pieces:
    try:
        while batch.pieces:
            yield batch.pieces.popleft()
    finally:
        batch.close()


def _nothing() -> None:
    """Nobody waits for it."""
