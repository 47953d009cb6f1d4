# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Those of a host's objects that join other regions: clients and flat devices, by name.

Both are looked up, made, changed, removed, kept and revived alike; what differs is a `Kind`. All of one kind are in a
`Dock`. Where there is a keeper, each is kept under a number of its own: what it keeps is called ``c<number>.<part>``,
or ``f<number>.<part>``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..errors import (
    ClientExists,
    DoorbellError,
    FlatDeviceExists,
    NoSuchClient,
    NoSuchFlatDevice,
    StateMismatch,
)
from ..fds.keeper import Keeper, Kept
from ..ivshmem.clientrevival import read_state, revive_client
from ..ivshmem.clientspec import ClientSpec
from ..ivshmem.hostclient import HostClient, HostFlat
from .events import ClientAdded, ClientChanged, ClientRemoved, HostEvent
from .remains import Remains, Unusable, numbers_in

One = TypeVar("One", bound=HostClient)
"""A client, or a flat device."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[One]):
    """What differs between clients and flat devices."""

    word: str
    """What it is called in what people read."""
    table: str
    """The table of the configuration."""
    letter: str
    """What the names of what is kept begin with."""
    method: str
    """The D-Bus method that makes one."""
    make: type[One]
    missing: type[DoorbellError]
    exists: type[DoorbellError]


CLIENT = Kind("client", "client", "c", "CreateClient", HostClient, NoSuchClient, ClientExists)
FLAT = Kind("flat device", "flat", "f", "CreateFlatDevice", HostFlat, NoSuchFlatDevice, FlatDeviceExists)


class _Gate:
    """Passes events on once it is open: nothing is told of what nobody knows of."""

    def __init__(self, emit: Callable[[HostEvent], None]) -> None:
        self._emit = emit
        self._waiting: list[HostEvent] | None = []

    def __call__(self, event: HostEvent) -> None:
        if self._waiting is None:
            self._emit(event)
        else:
            self._waiting.append(event)

    def open(self) -> None:
        waiting, self._waiting = self._waiting or [], None
        for event in waiting:
            self._emit(event)


class Dock(Generic[One]):
    """All of one kind that a host has, in `there`."""

    def __init__(self, kind: Kind[One], loop: asyncio.AbstractEventLoop, emit: Callable[[HostEvent], None]) -> None:
        self.kind = kind
        self.there: dict[str, One] = {}
        self._loop = loop
        self._emit = emit
        self._number = 0

    def find(self, name: str) -> One:
        """Find one by name; the kind's error names those that there are."""
        if (one := self.there.get(name)) is None:
            cure = f"none; make one with {self.kind.method} or in the configuration"
            raise self.kind.missing(f'no {self.kind.word} "{name}"; there is: {", ".join(sorted(self.there)) or cure}')
        return one

    def create(self, spec: ClientSpec, configured: bool, keeper: Keeper | None) -> One:
        """Make one, which begins to look for its server."""
        if spec.name in self.there:
            raise self.kind.exists(
                f'{self.kind.word} "{spec.name}" is there already; remove it first or choose another name'
            )
        hear = _Gate(self._emit)
        one = self.kind.make.open(spec, self._loop, hear, keeping=self._keeping(keeper), configured=configured)
        self._add(one, ClientAdded(one), hear)
        return one

    def _add(self, one: One, added: ClientAdded, hear: _Gate) -> None:
        self.there[one.name] = one
        self._emit(added)
        hear.open()

    def change(self, spec: ClientSpec, configured: bool) -> None:
        """Have one go by another spec, which differs in nothing that is frozen."""
        one = self.find(spec.name)
        one.change(spec, configured)
        self._emit(ClientChanged(one))

    def remove(self, name: str) -> None:
        """Have one leave its region, and let go of it."""
        one = self.find(name)
        one.close(f"the {self.kind.word} is removed")
        del self.there[name]
        self._emit(ClientRemoved(one))

    def close(self) -> None:
        """Let go of all; the daemon stops. What is kept stays kept, and its server notices nothing."""
        for name in list(self.there):
            one = self.there.pop(name)
            if one.kept:
                one.let_go()
            else:
                one.close("the daemon stops")

    # Over a restart

    def keep(self, keeper: Keeper) -> bool:
        """Leave a record of all with *keeper*; False if there is no room."""
        return all(one.keep(*keeping) for one in self.there.values() if (keeping := self._keeping(keeper)) is not None)

    def unkeep(self) -> None:
        """Take the record of all back."""
        for one in self.there.values():
            one.unkeep()

    def _keeping(self, keeper: Keeper | None) -> tuple[Keeper, str] | None:
        if keeper is None:
            return None
        self._number += 1
        return keeper, f"{self.kind.letter}{self._number}."

    def remains(self, kept: Kept) -> list[Remains]:
        """Read what of this kind is in *kept*.

        Raises:
            NewerState: a newer version wrote it.
        """
        letter = self.kind.letter
        numbers = numbers_in(kept, letter)
        self._number = max([self._number, *numbers])
        return [Remains(f"{letter}{number}.", kept, read_state) for number in numbers]

    def revive(self, found: list[Remains], keeper: Keeper | None) -> list[Unusable]:
        """Make those anew that *found* are the remains of; gives those that can't be, which are let go of."""
        unusable = []
        for remains in found:
            assert keeper is not None
            hear = _Gate(self._emit)
            try:
                one = self._revive_one(remains, keeper, hear)
            except (DoorbellError, OSError) as error:
                remains.drop(keeper)
                remains.close()
                unusable.append(Unusable(remains.name, str(error), self.kind.table))
            else:
                self._add(one, ClientAdded(one, revived=True), hear)
        return unusable

    def _revive_one(self, remains: Remains, keeper: Keeper, hear: _Gate) -> One:
        if remains.ledger is None:
            raise StateMismatch(remains.trouble)
        if remains.name in self.there:
            raise StateMismatch(f"another {self.kind.word} of that name is there")
        ledger, remains.ledger = remains.ledger, None
        keeping = keeper, remains.prefix
        return revive_client(self.kind.make, remains.state, ledger, remains.kept, keeping, self._loop, hear)
