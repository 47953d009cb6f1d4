# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets the memory of a region to zero, when the last peer left or when somebody asks for it.

Memory outlives its guests, and some guests take what their predecessors left for their own: NuttX's handshake waits for
ever on a stale table. Gigabytes take a while, so a thread does it, and the region accepts nobody meanwhile: a newcomer
never sees the memory before it is zero, and what it writes stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import time
from collections.abc import Callable

from ..errors import LimitExceeded, MemoryUnavailable
from ..fds.owned import Fd
from .memory import Backing

_CHUNK = 1 << 20


def clear(fd: Fd, size: int, backing: Backing) -> None:
    """Set *size* bytes of memory to zero; *fd* is taken over.

    Anonymous memory is given back to the system. Memory that is reserved or allocated at once is overwritten, so that
    it stays so.

    Raises:
        OSError: it can't be cleared.
    """
    with fd:
        if backing.path:
            for offset in range(0, size, _CHUNK):
                os.pwrite(fd.fileno(), bytes(min(_CHUNK, size - offset)), offset)
            return
        with mmap.mmap(fd.fileno(), size) as mapped:
            for offset in range(0, size, _CHUNK):
                if backing.kind == "memfd":
                    mapped.madvise(mmap.MADV_REMOVE, offset, min(_CHUNK, size - offset))
                else:
                    mapped[offset : offset + _CHUNK] = bytes(min(_CHUNK, size - offset))
                time.sleep(0)  # neither lets the event loop run meanwhile


class Clearing:
    """Clears the memory of a region, which accepts nobody between ``shut()`` and ``open_again()``.

    ``finished(failure)`` is called at the end, with no words if it went well.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        shut: Callable[[], None],
        open_again: Callable[[], None],
        finished: Callable[[str], None],
    ) -> None:
        self.dirty = False
        """Whether the memory is to be cleared since the last peer left."""
        self._loop = loop
        self._shut = shut
        self._open = open_again
        self._finished = finished
        self._was_dirty = False  # when the work began
        self._work: asyncio.Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether the memory is being cleared."""
        return self._work is not None

    def start(self, memory: Fd, size: int, backing: Backing) -> None:
        """Begin to clear *memory*, which stays the caller's, unless that is under way."""
        if self._work is not None:
            return
        self._shut()
        self._was_dirty = self.dirty
        try:
            copy = memory.dup()
        except OSError as error:
            self._end(error)
            return
        self._work = asyncio.ensure_future(asyncio.to_thread(clear, copy, size, backing), loop=self._loop)
        self._work.add_done_callback(self._done)

    def cancel(self) -> None:
        """Tell nobody of what is under way."""
        if self._work is not None:
            self._work.remove_done_callback(self._done)
            self._work = None

    async def wait(self) -> None:
        """Wait until nothing is under way.

        Raises:
            MemoryUnavailable: the memory could not be cleared.
        """
        if self._work is not None:
            await asyncio.wait([work := self._work])
            if not work.cancelled() and (error := work.exception()) is not None:
                raise MemoryUnavailable(f"the memory can't be cleared: {error}") from error

    def check_idle(self, name: str) -> None:
        """Refuse a newcomer while the memory is being cleared.

        Raises:
            LimitExceeded: that is so.
        """
        if self.busy:
            raise LimitExceeded(f'the memory of region "{name}" is being cleared; try again in a moment')

    def _done(self, work: asyncio.Future[None]) -> None:
        self._work = None
        self._end(None if work.cancelled() else work.exception())

    def _end(self, error: BaseException | None) -> None:
        if error is None and self._was_dirty:
            self.dirty = False
        self._open()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is told any more
            self._finished("" if error is None else str(error))
