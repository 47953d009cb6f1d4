# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One ring, as a session has it: how it stands, and the descriptors that came with it.

A kick, call or error descriptor is watched or written to as long as it is there, by threads that must not wait for it.
So it has to be of a kind that can't do more than signal. What kind it is, /proc tells without asking a file system,
which may be one that never answers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import DoorbellError
from ..fds.owned import Fd
from ..ring.queue import VirtQueue
from ..wire.vhost import Message

_SIGNALS = ("anon_inode:[eventfd]", "pipe:[", "socket:[")


class Refused(DoorbellError):
    """A request that can't be granted; the front-end is told, if it wants to be."""


@dataclass(slots=True)
class Ring:
    """How one ring stands in this session."""

    queue: VirtQueue
    enabled: bool = False
    placed: bool = False
    """Its addresses were set."""
    due: bool = False
    """It starts as soon as it is placed."""
    kick: Fd | None = None
    """With kicks in band: what they write to, and the queue listens to."""
    call: Fd | None = None
    """With calls in band: what the queue signals, and the session listens to."""
    err: Fd | None = None

    def forget_kick(self) -> None:
        """Close `kick`; again does nothing."""
        if self.kick is not None:
            self.kick.close()
            self.kick = None


def own_eventfd() -> Fd:
    """Make an eventfd of our own, for what goes in band."""
    return Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))


def check_signal(message: Message) -> None:
    """See whether what came with a SET_VRING_KICK, _CALL or _ERR can be used.

    Raises:
        Refused: it is neither an eventfd nor, as User-Mode Linux has it, a pipe or a socket.
    """
    fd = message.fd
    if fd is not None and not os.readlink(f"/proc/self/fd/{fd.fileno()}").startswith(_SIGNALS):
        raise Refused("its descriptor is neither an eventfd nor a pipe nor a socket")
