# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A place in a region that a process is started with: descriptors, and the variables that say which is which.

Theory of operation
-------------------
`Place.variables` is what ``doorbellctl attach`` puts into the environment of a command; `inherit` is how a program in
Python finds its place there (``Client.from_environment``). Programs in other languages read the variables themselves
(docs/attach.md)::

    DOORBELL_REGION       the region's name
    DOORBELL_ID           our own ID
    DOORBELL_VECTORS      how many doorbells we have
    DOORBELL_MEMORY_FD    the shared memory, to be mapped
    DOORBELL_MEMORY_SIZE  its bytes
    DOORBELL_FDS          our own doorbells by vector, to be read: eventfds
    DOORBELL_PEERS        the others' IDs
    DOORBELL_PEER_<ID>    the doorbells of one of them by vector, to be written to: eventfds
    DOORBELL_SOCKET_FD    the connection, on which the server tells who comes and goes from now on; or instead
    DOORBELL_GONE_FD      a socket that stays silent, and ends with the connection that somebody else reads

Variables outlive descriptors: a process in between may have closed these, and opened something else under their
numbers. So `inherit` looks at each before it takes any, and removes the variables once it has: nobody after us shall
take them for theirs.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from ..errors import ServerUnavailable
from ..fds import eventfd
from ..fds.owned import Fd
from ..wire.ivshmem import PROTOCOL_VERSION, SHARED_MEMORY, encode

PREFIX = "DOORBELL_"
_PEER = f"{PREFIX}PEER_"
_CURE = "start this program by doorbellctl attach REGION --exec, directly"


@dataclass(frozen=True, slots=True)
class Place:
    """A peer's place in a region; all descriptors are borrowed."""

    id: int
    memory: int
    size: int
    own: Sequence[int]
    """Our own eventfds, by vector."""
    peers: Mapping[int, Sequence[int]]
    """The others' eventfds, by ID and vector."""
    link: int
    """The connection to the server; or, if it is not *live*, what ends with it."""
    live: bool

    @property
    def fds(self) -> list[int]:
        """All descriptors."""
        return [self.memory, *self.own, *(fd for fds in self.peers.values() for fd in fds), self.link]

    def variables(self, region: str) -> dict[str, str]:
        """Say it in variables; *region* is its name."""
        return {
            f"{PREFIX}REGION": region,
            f"{PREFIX}ID": str(self.id),
            f"{PREFIX}VECTORS": str(len(self.own)),
            f"{PREFIX}MEMORY_FD": str(self.memory),
            f"{PREFIX}MEMORY_SIZE": str(self.size),
            f"{PREFIX}FDS": _words(self.own),
            f"{PREFIX}PEERS": _words(self.peers),
            **{f"{_PEER}{peer_id}": _words(fds) for peer_id, fds in self.peers.items()},
            f"{PREFIX}{'SOCKET' if self.live else 'GONE'}_FD": str(self.link),
        }

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> Place:
        """Read it from variables.

        Raises:
            ServerUnavailable: they are not all there, or make no sense.
        """

        def numbers(name: str) -> list[int]:
            try:
                return [int(word) for word in variables[f"{PREFIX}{name}"].split()]
            except KeyError:
                raise ServerUnavailable(
                    f"no place in a region: {PREFIX}{name} is not in the environment; {_CURE}"
                ) from None
            except ValueError:
                raise ServerUnavailable(f"{PREFIX}{name} has a word that is no number; {_CURE}") from None

        def number(name: str) -> int:
            match numbers(name):
                case [one]:
                    return one
            raise ServerUnavailable(f"{PREFIX}{name} is not one number; {_CURE}")

        live = f"{PREFIX}SOCKET_FD" in variables
        return cls(
            id=number("ID"),
            memory=number("MEMORY_FD"),
            size=number("MEMORY_SIZE"),
            own=numbers("FDS"),
            peers={peer_id: numbers(f"PEER_{peer_id}") for peer_id in numbers("PEERS")},
            link=number("SOCKET_FD" if live else "GONE_FD"),
            live=live,
        )

    def check(self) -> None:
        """Look whether the descriptors are what they should be.

        Raises:
            ServerUnavailable: one is not.
        """
        if len(set(self.fds)) != len(self.fds):
            raise ServerUnavailable(f"the variables {PREFIX}* name a descriptor twice; {_CURE}")
        try:
            for fd in self.fds:
                if fd not in (self.memory, self.link):
                    eventfd.pending(fd)
            right = os.fstat(self.memory).st_size == self.size and stat.S_ISSOCK(os.fstat(self.link).st_mode)
        except (OSError, ValueError):
            right = False
        if not right:
            raise ServerUnavailable(
                "the descriptors that the variables DOORBELL_* name are not here any more: a program in between closed "
                f"them (in Python: subprocess, without pass_fds); {_CURE}"
            )

    def greeting(self) -> Iterator[tuple[bytes, list[Fd]]]:
        """Give what a server would have sent that gave us this place; who gets a descriptor owns it."""
        yield encode(PROTOCOL_VERSION) + encode(self.id), []
        yield encode(SHARED_MEMORY), [Fd(self.memory)]
        for peer_id, fds in (*self.peers.items(), (self.id, self.own)):
            for fd in fds:
                yield encode(peer_id), [Fd(fd)]


def inherit(environment: MutableMapping[str, str]) -> tuple[socket.socket, list[tuple[bytes, list[Fd]]]]:
    """Take the place that *environment* names: its connection, and the greeting that gave it, which is to be fed.

    The descriptors are close-on-exec from now on, and the variables are gone.

    Raises:
        ServerUnavailable: there is none; nothing is changed then.
    """
    place = Place.read(environment)
    place.check()
    for fd in place.fds:
        os.set_inheritable(fd, False)
    for name in place.variables(""):
        environment.pop(name, None)
    return socket.socket(fileno=place.link), list(place.greeting())


def _words(numbers: Sequence[int] | Mapping[int, object]) -> str:
    return " ".join(map(str, numbers))
