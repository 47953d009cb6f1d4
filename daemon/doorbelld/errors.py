# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The one hierarchy of errors.

Every message names the thing, the cause and the cure. The class decides what a D-Bus caller sees
(``org.doorbelld.Doorbell1.Error.<class name>``), so a class exists for each thing that a program
may want to tell apart, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class DoorbellError(Exception):
    """Base of all errors that doorbelld raises on purpose."""


class NoSuchRegion(DoorbellError):
    """No region of that name."""


class NoSuchPeer(DoorbellError):
    """No peer of that ID in the region."""


class NoSuchVector(DoorbellError):
    """The peer has fewer vectors."""


class InvalidRegister(DoorbellError):
    """A flat device has no register at the offset, or none that can be written."""


class NotRelayed(DoorbellError):
    """The region has no relay, so its rings do not pass the daemon."""


class NoSuchDevice(DoorbellError):
    """No vhost-user device of that name."""


class NoSuchClient(DoorbellError):
    """No client of that name."""


class NoSuchFlatDevice(DoorbellError):
    """No flat device of that name."""


class NoSuchDeviceType(DoorbellError):
    """This build has no device of that type."""


class RegionInUse(DoorbellError):
    """Peers are connected to the region."""


class UnusableDeviceType(NoSuchDeviceType):
    """There is a device of that type, but its package can't be imported, or its class is wrong."""


class RegionExists(DoorbellError):
    """A region of that name is there already."""


class DeviceExists(DoorbellError):
    """A device of that name is there already."""


class ClientExists(DoorbellError):
    """A client of that name is there already."""


class FlatDeviceExists(DoorbellError):
    """A flat device of that name is there already."""


class SocketInUse(DoorbellError):
    """A live server listens on the socket path."""


class SocketUnavailable(DoorbellError):
    """A socket can't be made: no permission, no directory, a path that can't be."""


class ServerUnavailable(DoorbellError):
    """No ivshmem server can be reached at a path, or it says nothing."""


class ServerClosed(DoorbellError):
    """The ivshmem server closed the connection, or there is none."""


class ProtocolBroken(DoorbellError):
    """The ivshmem server sent what may not come; ``__cause__`` is the `wire.ivshmem.ProtocolError`."""


class MemoryUnavailable(DoorbellError):
    """The backing memory can't be had: disk full, no huge pages, no permission, wrong size."""


class LimitExceeded(DoorbellError):
    """A configured or a system limit (descriptors, peers, IDs) is reached."""


class AccessDenied(DoorbellError):
    """The caller may not do this."""


class BusUnavailable(DoorbellError):
    """The D-Bus message bus can't be reached or refuses the name."""


class BusForbidden(BusUnavailable):
    """The message bus belongs to another user, and does not let us in."""


class StateMismatch(DoorbellError):
    """Exported state does not fit what it is to be restored into."""


def printable(text: str, limit: int = 255) -> str:
    """Make *text* one line that a terminal, the log and D-Bus take: at most *limit* characters, all printable."""
    line = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def in_words(error: BaseException) -> str:
    """Say what *error* is in one line, whatever it is: its type and its text."""
    try:
        text = printable(str(error))
    except BaseException:  # of a class of somebody's own, whose __str__ fails
        text = "(its text can't be had)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a set of options.

    ``key`` is the dotted name of the option, ``cause`` says what is wrong with its value, ``cure`` what to write
    instead. ``where`` is the file and line, once somebody who knows them has filled it in.
    """

    key: str
    cause: str
    cure: str
    where: str = ""

    def __str__(self) -> str:
        prefix = f"{self.where}: " if self.where else ""
        return f"{prefix}{self.key}: {self.cause}; {self.cure}"


class InvalidOptions(DoorbellError):
    """Options or configuration with problems; all of them are listed, not just the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)
