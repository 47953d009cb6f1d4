# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts a client or a flat device together again from its `clientjournal`: after a restart, a crash at any instant.

Theory of operation
-------------------
What was read, as the ledger tells it, is fed to a new link as if it had just come: first the snapshot, in the form of a
greeting, then each batch. What becomes of it is what became of it then. Descriptors come out of the vaults. Of a peer
that left since the snapshot the doorbells may be gone; while it is fed they are stood in for. Of the last batch a part
may not be taken yet; the socket says how much (SO_PEEK_OFF), and it is taken now.

A connection of which a part is missing is ended, and another one made. That is what happens to one that ended while we
were away, too: nobody needs to know here.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from ..errors import ServerClosed
from ..fds.keeper import Keeper, Kept
from ..fds.ledger import Ledger, check_version, damage_told, reopen
from ..fds.owned import Fd, FdSet
from ..fds.shelf import Shelf
from ..fds.vault import SO_PEEK_OFF, found_behind
from ..wire.ivshmem import ID_MAX, PROTOCOL_VERSION, SHARED_MEMORY, OutOfPlace, encode
from .client_events import ClientEvent
from .clientjournal import ClientJournal, take_exactly
from .hostclient import STATE_VERSION, HostClient
from .link import Pieces
from .spec import MSIX_VECTORS_MAX

One = TypeVar("One", bound=HostClient)
Place: TypeAlias = tuple[int, int]
"""A vault, and an index in it."""
Read: TypeAlias = list[tuple[int, list[tuple[bytes, list[Place]]]]]
"""What was read: when, and pieces with their descriptors, each named by the place where it was first."""
INCOMPLETE = "a part of its connection was not kept"
_RUN_MAX = 1 << 20


def read_state(fd: Fd) -> tuple[Ledger, dict[str, Any]]:
    """Open the ledger *fd*, which is taken over, and say how things stood.

    Raises:
        NewerState: a newer version wrote it.
        StateMismatch: it can't be read.
    """
    return reopen(fd, lambda ledger: replay(ledger.lines()))


def replay(lines: Sequence[bytes]) -> dict[str, Any]:
    """Make the state of the moment from a ledger's lines: the snapshot, and what came since.

    ``batches`` has what was read since; ``places`` says where the descriptor is now that was at a place then;
    ``taking`` says whether the last batch may not be taken as a whole.

    Raises:
        NewerState: they are of a newer version.
        StateMismatch: they are damaged.
    """
    with damage_told():
        state: dict[str, Any] = json.loads(lines[0])
        check_version(state["version"], STATE_VERSION)
        if not isinstance(state["name"], str) or not isinstance(state["spec"], dict):
            raise TypeError("its name or spec is none")
        if not all(isinstance(total, int) and total >= 0 for total in state["rings"]):
            raise ValueError("a total of rings is none")
        now: dict[Place, Place] = {place: place for place in _mentioned(state["connection"])}
        state |= {"batches": [], "taking": False}
        for line in lines[1:]:
            now = _apply(json.loads(line), state, now)
        state["places"] = {first: place for place, first in now.items()}
    return state


def _mentioned(connection: dict[str, Any] | None) -> Iterator[Place]:
    if connection is not None:
        if not isinstance(connection["socket"], int):
            raise TypeError("its socket has no number")
        yield from _places(connection["memory"] + connection["own"])
        for _, _, runs in connection["peers"]:
            yield from _places(runs)
        for _, runs in connection["tail"]:
            yield from _places(runs)


def _places(runs: Iterable[Sequence[int]]) -> list[Place]:
    places = []
    for vault, index, count in runs:
        if not all(isinstance(number, int) and number >= 0 for number in (vault, index)) or not 0 < count < _RUN_MAX:
            raise ValueError(f"{[vault, index, count]} is no place")
        places += [(vault, each) for each in range(index, index + count)]
    return places


def _apply(change: list[Any], state: dict[str, Any], now: dict[Place, Place]) -> dict[Place, Place]:
    match change:
        case ["<", int(vault), when, [*pieces]]:
            count, batch = 0, []
            for data, descriptors in pieces:
                firsts = _places([[vault, count, descriptors]] if descriptors else [])
                now |= {first: first for first in firsts}
                count += descriptors
                batch.append((bytes.fromhex(data), firsts))
            state["batches"].append((_time(when), batch))
            state["taking"] = True
        case [">"]:
            state["taking"] = False
        case ["m", int(vault), [*runs]]:
            moved = _places(runs)
            gone = {old for old, _ in moved}
            kept = {place: first for place, first in now.items() if place[0] not in gone}
            return kept | {(vault, index): now[place] for index, place in enumerate(moved) if place in now}
        case ["!", int(vector), int(count)]:
            _add_rings(state["rings"], vector, count)
        case _:
            raise ValueError(f"{change!r} is no change that this version knows")
    return now


def _add_rings(rings: list[int], vector: int, count: int) -> None:
    if not 0 <= vector < MSIX_VECTORS_MAX:
        raise ValueError(f"there is no vector {vector}")
    rings += [0] * (vector + 1 - len(rings))
    rings[vector] += count


def revive_client(
    make: type[One],
    state: dict[str, Any],
    ledger: Ledger,
    kept: Kept,
    keeping: tuple[Keeper, str],
    loop: AbstractEventLoop,
    emit: Callable[[ClientEvent], None],
) -> One:
    """Make a client (*make* is `HostClient`) or a flat device (`HostFlat`) anew, and go on.

    *ledger* is taken over, and of *kept* all that there is. Nothing is told but rings that nobody was told of.

    Raises:
        StateMismatch: the state is damaged, or of something else.
    """
    mouth = _Mouth(emit)
    with damage_told(), contextlib.ExitStack() as undo:
        undo.callback(ledger.close)
        undo.callback(kept.close)
        shelf = Shelf(keeping[0], keeping[1], ["state", *kept])
        if state["kind"] != make.SPEC.KIND or not isinstance(state["configured"], bool):
            raise ValueError("it is of something else")
        client = make(make.SPEC.from_raw(state["name"], state["spec"]), loop, mouth, state["configured"])
        undo.callback(client.let_go)
        connection = state["connection"] or {"socket": 0}
        read = [] if state["connection"] is None else [*_greeting(connection), *state["batches"]]
        next_number = _above(state["next"], kept)
        with _Opened(kept, state["places"]) as opened:
            journal = ClientJournal.resume(
                shelf,
                ledger,
                client.link,
                client.export,
                client.overflow,
                next_number=next_number,
                socket_number=connection["socket"],
                vaults=opened.vaults,
            )
            client.resume(journal, state["rings"])
            _, drained = ledger.unfinished()
            if drained is not None:
                _add_rings(client.link.totals, *drained)
            _connect(client, state, _socket(kept.take(f"s{connection['socket']}")), read, opened)
        journal.resumed()
        client.link.go_on()
        mouth.open = True
        undo.pop_all()
    kept.close()
    if drained is not None:
        client.rung(*drained)
    return client


class _Mouth:
    """Emits once it is open."""

    def __init__(self, emit: Callable[[ClientEvent], None]) -> None:
        self.open = False
        self._emit = emit

    def __call__(self, event: ClientEvent) -> None:
        if self.open:
            self._emit(event)


class _Opened:
    """The descriptors that *places* speak of, out of their vaults in *kept*."""

    def __init__(self, kept: Kept, places: Mapping[Place, Place]) -> None:
        self.vaults: dict[int, list[int]] = {}
        """What each vault has, as the journal wants it."""
        self.stand_ins: set[int] = set()
        self._there: dict[Place, Fd] = {}  # by where it was first
        first_at = {place: first for first, place in places.items()}
        for vault in sorted({vault for vault, _ in first_at}):
            contents = [Fd(number) for number in (found_behind(kept.take(str(vault))) or FdSet()).steal()]
            self.vaults[vault] = [fd.fileno() if (vault, i) in first_at else -1 for i, fd in enumerate(contents)]
            for index, fd in enumerate(contents):
                if (vault, index) in first_at:
                    self._there[first_at[vault, index]] = fd
                else:  # its peer is gone
                    fd.close()

    def give(self, pieces: Iterable[tuple[bytes, list[Place]]]) -> Pieces:
        """Give *pieces* with their descriptors, or with what stands in for those that are missing."""
        for data, places in pieces:
            yield data, [self._take(place) for place in places]

    def __contains__(self, place: Place) -> bool:
        return place in self._there

    def _take(self, place: Place) -> Fd:
        if place in self._there:
            return self._there.pop(place)
        fd = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self.stand_ins.add(fd.fileno())
        return fd

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        while self._there:
            self._there.popitem()[1].close()


def _connect(
    client: HostClient, state: dict[str, Any], sock: socket.socket | None, read: Read, opened: _Opened
) -> None:
    """Have *client* be where it was."""
    link = client.link
    if sock is None:
        if state["connection"] is not None:
            link.fail(ServerClosed(f"{INCOMPLETE}: the socket is missing"))
        elif state["over"]:
            link.rest(str(state["over"]))
        return
    first = next((places[0] for _, pieces in read for _, places in pieces if places), None)
    memory_missing = first is not None and first not in opened
    again = [] if memory_missing else [(when, opened.give(pieces)) for when, pieces in read]
    snapshot = len(again) - len(state["batches"])
    link.membership.vectors_max = MSIX_VECTORS_MAX  # they may have come before it was lowered
    link.replay(sock, again[:snapshot])
    link.membership.vectors_max = client.spec.vectors_max
    if link.sock is sock:
        link.replay(sock, again[snapshot:])
    if memory_missing:
        link.fail(ServerClosed(f"{INCOMPLETE}: the memory is missing"))
    if link.sock is None:
        return
    members = (link.membership.own, *link.membership.peers.values())
    in_use = {fd for member in members for fd in member.eventfds} | {fd for _, with_it in link.tail for fd in with_it}
    if opened.stand_ins & in_use:
        link.fail(ServerClosed(f"{INCOMPLETE}: doorbells are missing"))
        return
    if state["taking"]:
        try:
            left = sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
            if not 0 <= left <= sum(len(data) for data, _ in read[-1][1]):
                raise OutOfPlace(f"{left} bytes can't be left of a batch")
            take_exactly(sock, left)
        except (OSError, OutOfPlace) as error:
            link.fail(ServerClosed(f"the connection broke while the daemon was away: {error}"))


def _greeting(connection: dict[str, Any]) -> Read:
    """Say what a server would send to whom it tells all that *connection* has."""
    own, since = connection["id"], _time(connection["since"])
    told: list[tuple[bytes, list[Place]]] = [(encode(PROTOCOL_VERSION), [])]
    if connection["messages"] > 1:
        told.append((_id(own), []))
    read: Read = []
    if connection["messages"] > 2:
        told.append((encode(SHARED_MEMORY), _places(connection["memory"])))
        read += [(_time(joined), _vectors(peer, runs)) for peer, joined, runs in connection["peers"]]
        read.append((since, _vectors(own, connection["own"])))
    read.insert(0, (since, told if connection["messages"] else []))
    return [*read, (since, [(bytes.fromhex(data), _places(runs)) for data, runs in connection["tail"]])]


def _vectors(peer_id: int, runs: list[list[int]]) -> list[tuple[bytes, list[Place]]]:
    return [(_id(peer_id), [place]) for place in _places(runs)]


def _id(value: Any) -> bytes:
    if not isinstance(value, int) or not 0 <= value <= ID_MAX:
        raise ValueError(f"{value!r} is no ID")
    return encode(value)


def _time(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is no time")
    return value


def _above(number: int, kept: Kept) -> int:
    """Give a number that is above *number* and all in the names that are kept."""
    used = (int(name.lstrip("s")) for name in kept if name.lstrip("s").isdecimal())
    return max([number, *(each + 1 for each in used)])


def _socket(fd: Fd | None) -> socket.socket | None:
    """Give the socket that *fd* is; None if it is not what it should be."""
    if fd is None:
        return None
    with fd:
        if stat.S_ISSOCK(os.fstat(fd.fileno()).st_mode):
            sock = socket.socket(fileno=fd.steal())
            if (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
                return sock
            sock.close()
    return None
