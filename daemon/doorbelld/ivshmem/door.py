# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The door of a region: accepts connections, a burst at a time, whatever state the descriptor table is in.

Where the table is full, a connection is accepted with the spare descriptor and turned away with a reason. Where not
even that works, the door stays shut for a moment, so that the event loop does not spin.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable

from ..fds.spare import Spare

_BURST = 16
_PAUSE = 0.25
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class Door:
    """Accepts from *listening* and calls ``arrived(sock)``, which takes the socket over.

    ``refuse(reason, sock, in_words)`` is called for who can't be let in. ``prepared(again)`` is asked before each
    connection whether it may come; if not, the door stays shut until *again* is called. ``rested()`` is called when
    nobody waits any more.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: socket.socket,
        spare: Spare,
        *,
        arrived: Callable[[socket.socket], None],
        refuse: Callable[[str, socket.socket | None, bool], None],
        prepared: Callable[[Callable[[], None]], bool],
        rested: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = listening
        self._spare = spare
        self._arrived = arrived
        self._refuse = refuse
        self._prepared = prepared
        self._rested = rested
        self._watching = False
        self._shut = True
        self._pause: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Begin to accept."""
        self._shut = False
        self._watch()

    def shut(self) -> None:
        """Accept nobody any more."""
        self._shut = True
        self._ignore()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _watch(self) -> None:
        self._pause = None
        if not self._shut and not self._watching:
            self._loop.add_reader(self._sock.fileno(), self._accept)
            self._watching = True

    def _ignore(self) -> None:
        if self._watching:
            self._loop.remove_reader(self._sock.fileno())
            self._watching = False

    def _accept(self) -> None:
        try:
            for _ in range(_BURST):
                if not self._prepared(self._watch):
                    self._ignore()
                    return
                if not self._accept_one() or self._shut:  # who comes may have us shut
                    return
        finally:
            self._rested()

    def _accept_one(self) -> bool:
        """Accept one connection; False if that was the last for now."""
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.ECONNABORTED:
                return True
            if error.errno in _OUT_OF_DESCRIPTORS:
                with contextlib.suppress(BlockingIOError):  # accept(2) wants a descriptor before it looks who waits
                    if self._turn_away(error):
                        return True
                    self._rest(error)
                return False
            self._rest(error)
            return False
        self._arrived(sock)
        return True

    def _rest(self, error: OSError) -> None:
        self._refuse(f"accept: {error.strerror}", None, False)
        self._ignore()
        self._pause = self._loop.call_later(_PAUSE, self._watch)

    def _turn_away(self, cause: OSError) -> bool:
        """Accept and close one connection for which there is no descriptor; False if not even that worked.

        Raises:
            BlockingIOError: nobody waits.
        """
        with self._spare.lent():
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                raise
            except OSError:
                return False
            self._refuse(f"no descriptor left ({cause.strerror}); raise LimitNOFILE= or the hard limit", sock, True)
        return True
