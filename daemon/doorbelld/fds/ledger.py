# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger: a memory file that says at any instant how things stand, also for who comes after us.

Theory of operation
-------------------
It is a memfd, mapped here and held by a keeper too. What was stored in a mapping before a process was killed is in the
file, so writing is a copy and one store: text first, then the word that says how much of it counts. There are two
areas; one counts. An area begins with a snapshot and goes on with what happened since, a line of JSON each. When the
lines have grown long the other area gets a new snapshot, and one store makes that one count.

Two things happen in system calls that can't be undone and whose outcome is known only afterwards: sending messages and
taking counters. For these there are slots, which the kernel itself fills (`native`). A slot names the moment (the word
that counted) at which it was begun: if that is still the last moment when we come back, the line that should have told
of it was never written, and the slot tells instead.

Layout, in words of 8 bytes, of this machine's order; the file never leaves it::

    0     magic                     8..10    drain slot: count, key, moment
    1     format                    512..    send slot (`native.Slot`): progress, key, moment, messages
    2     which area counts         8192..   area 0, then area 1
    3, 4  generation << 26 | length, of each area

Invariants
----------
1. Each change of what counts is one aligned store of 8 bytes.
2. A moment never comes twice: the generation grows with each snapshot.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import InvalidOptions, StateMismatch
from . import native
from .owned import Fd

MAGIC = int.from_bytes(b"doorbell", "little")
FORMAT = 1
AREA = 32 << 20
"""Bytes of an area; only what is used takes memory."""
_ACTIVE, _LENGTHS, _DRAIN, _SEND, _AREAS = 2, 3, 8, 512, 8192
_HEAD = struct.Struct("=5Q")
_SIZE = _AREAS * 8 + 2 * AREA
_GENERATION = 26  # bits for the length of an area; the others count for longer than any daemon runs
_LENGTH_MASK = (1 << _GENERATION) - 1


_NEWER_CURE = "start the version that wrote it, or stop the service to let go of everybody"


class NewerState(StateMismatch):
    """A newer version of doorbelld wrote it."""


class LedgerFull(Exception):
    """A line or snapshot does not fit; a new snapshot may."""


def line(value: Any) -> bytes:
    """Put what JSON can hold into a line, for `Ledger.append` and `Ledger.rewrite`."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def check_version(version: Any, known: int) -> None:
    """Look whether *version*, which a state that was read says it has, is one from 1 to *known*.

    Raises:
        NewerState: it is a newer one.
        ValueError: there never was such a one.
    """
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{version!r} is no version")
    if version > known:
        raise NewerState(f"the state has version {version}, and this doorbelld knows up to {known}; {_NEWER_CURE}")


@contextlib.contextmanager
def damage_told() -> Iterator[None]:
    """Say so where a state holds what none can hold.

    Raises:
        StateMismatch: the body found that.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, InvalidOptions) as error:
        raise StateMismatch(f"the state is damaged ({type(error).__name__}: {error})") from error


def reopen(fd: Fd, replay: Callable[[Ledger], dict[str, Any]]) -> tuple[Ledger, dict[str, Any]]:
    """Open the ledger *fd*, which is taken over, and have *replay* say how things stood.

    Raises:
        NewerState: a newer version wrote it.
        StateMismatch: it can't be read.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(fd)
        ledger = Ledger.adopt(fd)
        undo.callback(ledger.close)
        state = replay(ledger)
        undo.pop_all()
    return ledger, state


class Ledger:
    """A ledger that is written to; `create` or `adopt` makes one."""

    def __init__(self, fd: Fd) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd.fileno(), _SIZE)
        self._words = memoryview(self._map).cast("Q")
        self.send_slot = memoryview(self._map)[_SEND * 8 : _SEND * 8 + native.SLOT_SIZE]
        self.drain_slot = memoryview(self._map)[_DRAIN * 8 : _DRAIN * 8 + 8]
        self._area = self._words[_ACTIVE]
        self._moment = self._words[_LENGTHS + self._area]

    @classmethod
    def create(cls, name: str) -> Ledger:
        """Make an empty one, called *name* in /proc.

        Raises:
            OSError: no descriptor or no memory left.
        """
        with contextlib.ExitStack() as undo:
            fd = undo.enter_context(Fd(os.memfd_create(name, os.MFD_CLOEXEC)))
            os.ftruncate(fd.fileno(), _SIZE)
            made = cls(fd)
            made._words[0], made._words[1] = MAGIC, FORMAT
            undo.pop_all()
        return made

    @classmethod
    def adopt(cls, fd: Fd) -> Ledger:
        """Go on with one that was kept; *fd* is taken over if nothing is raised.

        Raises:
            StateMismatch: it is none, or damaged.
            NewerState: a newer version wrote it.
        """
        try:
            size = os.fstat(fd.fileno()).st_size
            head = os.pread(fd.fileno(), _HEAD.size, 0).ljust(_HEAD.size, b"\0")
        except OSError as error:
            raise StateMismatch(f"the record can't be read: {error.strerror}") from error
        magic, form, area, *moments = _HEAD.unpack(head)
        if magic != MAGIC:
            raise StateMismatch("the record is none of doorbelld's")
        if form > FORMAT:
            raise NewerState(f"the record has format {form}, and this doorbelld knows up to {FORMAT}; {_NEWER_CURE}")
        if form < FORMAT or size != _SIZE:
            raise StateMismatch(f"the record is damaged: format {form}, {size} bytes")
        if area >= len(moments) or moments[area] & _LENGTH_MASK > AREA:
            raise StateMismatch("the record is damaged: what counts is outside of it")
        return cls(fd)

    def close(self) -> None:
        """Let go of it."""
        for view in (self._words, self.send_slot, self.drain_slot):
            view.release()
        self._map.close()  # a second time does nothing, as with the rest
        self.fd.close()

    @property
    def name(self) -> str:
        """What `create` called it."""
        return os.readlink(f"/proc/self/fd/{self.fd.fileno()}").removeprefix("/memfd:").removesuffix(" (deleted)")

    @property
    def length(self) -> int:
        """Bytes that count."""
        return self._moment & _LENGTH_MASK

    def rewrite(self, snapshot: bytes) -> None:
        """Begin anew with *snapshot*, which ends with a line break.

        Raises:
            LedgerFull: it is too long; what counted still counts.
        """
        if len(snapshot) > AREA:
            raise LedgerFull
        area = 1 - self._area
        start = _AREAS * 8 + area * AREA
        self._map[start : start + len(snapshot)] = snapshot
        moment = (((self._moment >> _GENERATION) + 1) << _GENERATION) + len(snapshot)
        self._words[_LENGTHS + area] = moment
        self._words[_ACTIVE] = area  # from this store on
        old = _AREAS * 8 + self._area * AREA
        self._area, self._moment = area, moment
        self._map.madvise(mmap.MADV_REMOVE, old, AREA)

    def append(self, line: bytes) -> None:
        """Add *line*, which ends with a line break.

        Raises:
            LedgerFull: there is no room; nothing was added.
        """
        length = self.length
        if length + len(line) > AREA:
            raise LedgerFull
        start = _AREAS * 8 + self._area * AREA + length
        self._map[start : start + len(line)] = line
        self._moment += len(line)
        self._words[_LENGTHS + self._area] = self._moment  # from this store on

    def lines(self) -> list[bytes]:
        """Give all that counts: the snapshot first."""
        start = _AREAS * 8 + self._area * AREA
        return self._map[start : start + self.length].splitlines()

    def begin_sending(self, key: int) -> memoryview:
        """Prepare the send slot for a batch to whom *key* stands for; the next line ends it."""
        words = self._words
        words[_SEND], words[_SEND + 1], words[_SEND + 2] = 0, key, self._moment
        return self.send_slot

    def begin_draining(self, key: int) -> memoryview:
        """Prepare the drain slot for the counter that *key* stands for; the next line ends it."""
        words = self._words
        words[_DRAIN], words[_DRAIN + 1], words[_DRAIN + 2] = 0, key, self._moment
        return self.drain_slot

    def unfinished(self) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
        """Give what happened and no line tells of: ``(key, messages sent)`` and ``(key, counter taken)``, or None."""
        words = self._words
        sent = drained = None
        if words[_SEND + 2] == self._moment and (count := native.count_sent(self.send_slot)):
            sent = words[_SEND + 1], count
        if words[_DRAIN + 2] == self._moment and words[_DRAIN]:
            drained = words[_DRAIN + 1], words[_DRAIN]
        return sent, drained
