# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The ivshmem client-server protocol (QEMU, docs/specs/ivshmem-spec.rst, "Client-Server protocol").

The server talks, the client listens. A message is an 8-byte little-endian signed integer with at most one
descriptor beside it; what it means depends on what came before::

    0                    protocol version
    own ID
    -1        + memory   the shared memory
    ID        + eventfd  once per vector, for each peer that is there, in vector order
    own ID    + eventfd  once per vector: the own doorbells
    then for ever:
    ID        + eventfd  a peer joined (once per vector)
    ID                   a peer left

`Decoder` takes pieces of any length, as a stream socket gives them, and yields `Message` objects; it checks each
against the protocol's order, so its user sees only what may come.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from ..fds.owned import Fd

PROTOCOL_VERSION = 0
SHARED_MEMORY = -1
REFUSAL = -2
"""A version that no client knows: what a QEMU is told that may not connect (docs/decisions/0005)."""
ID_MAX = 65535
MESSAGE = struct.Struct("<q")


class ProtocolError(ValueError):
    """The server broke the protocol."""


class WrongVersion(ProtocolError):
    """The server speaks another version of the protocol, or refuses us (`REFUSAL`)."""


class OutOfPlace(ProtocolError):
    """The server sent what may not come at this place: another value, a descriptor too many, or one missing."""


class TooManyVectors(ProtocolError):
    """A peer has more vectors than its user takes."""


class Kind(Enum):
    """What a message says."""

    VERSION = auto()
    OWN_ID = auto()
    MEMORY = auto()
    VECTOR = auto()
    """One more doorbell of the peer `value`; of ourselves, if that is our own ID."""
    LEFT = auto()
    """The peer `value` is gone."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message; who gets it owns `fd`."""

    kind: Kind
    value: int
    fd: Fd | None = None


def encode(value: int) -> bytes:
    """Put *value* in the form that goes over the wire."""
    return MESSAGE.pack(value)


class Decoder:
    """Turn the server's stream into messages.

    Invariant: descriptors that were fed are owned by the decoder until a message carries them out, and `close`
    closes those that none did.
    """

    _GREETING = (Kind.VERSION, Kind.OWN_ID, Kind.MEMORY)

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: deque[tuple[int, Fd]] = deque()  # (place in the stream of the byte it came with, descriptor)
        self._taken = 0
        self._messages = 0

    def feed(self, data: bytes, fds: Sequence[Fd] = ()) -> Iterator[Message]:
        """Take what one ``recvmsg`` gave and yield the messages that are whole now.

        The kernel goes on reading over messages without a descriptor, and stops after the bytes that came with one:
        so *fds* belong to the message that the last byte of *data* is of.

        Raises:
            WrongVersion: at the first message.
            OutOfPlace: a descriptor missing or too many, an ID out of range.
        """
        self._data += data
        last = max(0, self._taken + len(self._data) - 1)
        self._fds.extend((last, fd) for fd in fds)
        while len(self._data) >= MESSAGE.size:
            (value,) = MESSAGE.unpack_from(self._data)
            del self._data[: MESSAGE.size]
            self._taken += MESSAGE.size
            fd = None
            while self._fds and self._fds[0][0] < self._taken:
                if fd is not None:
                    fd.close()
                    raise OutOfPlace(f"message {self._messages} carries more than one descriptor")
                fd = self._fds.popleft()[1]
            try:
                message = self._interpret(value, fd)
            except ProtocolError:
                if fd is not None:
                    fd.close()
                raise
            self._messages += 1
            yield message

    def close(self) -> None:
        """Close the descriptors that no message has carried out."""
        while self._fds:
            self._fds.popleft()[1].close()

    def _interpret(self, value: int, fd: Fd | None) -> Message:
        if self._messages < len(self._GREETING):
            kind = self._GREETING[self._messages]
        else:
            kind = Kind.LEFT if fd is None else Kind.VECTOR
        if kind is Kind.VERSION and value == REFUSAL:
            raise WrongVersion("it refuses us; ask who runs it to let us in")
        if kind is Kind.VERSION and value != PROTOCOL_VERSION:
            raise WrongVersion(f"server speaks protocol version {value}, we speak {PROTOCOL_VERSION}")
        if kind is Kind.MEMORY and value != SHARED_MEMORY:
            raise OutOfPlace(f"expected the shared memory ({SHARED_MEMORY}), got {value}")
        if kind in (Kind.OWN_ID, Kind.VECTOR, Kind.LEFT) and not 0 <= value <= ID_MAX:
            raise OutOfPlace(f"peer ID {value} is not within 0..{ID_MAX}")
        if (fd is None) is (kind in (Kind.MEMORY, Kind.VECTOR)):
            raise OutOfPlace(f"{kind.name} message comes {'without' if fd is None else 'with'} a descriptor")
        return Message(kind, value, fd)
