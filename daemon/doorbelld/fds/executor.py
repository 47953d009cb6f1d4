# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The event loop's executor, where threads run out.

`ThreadPoolExecutor` puts a call in its queue and then starts a thread for it. If there can be no more threads, its
``submit`` raises, but the call stays in the queue: a later thread makes it though nobody waits for it any more. That
thread would clear the memory of a region which has peers again, say. Here one thread is there from the beginning, and
a call for which there is no other waits for that one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class SteadyExecutor(ThreadPoolExecutor):
    """An executor whose ``submit`` never fails for want of threads; *initializer* is called in each thread."""

    def __init__(self, initializer: Callable[[], None]) -> None:
        """Start the first thread.

        Raises:
            RuntimeError: there can be none.
        """
        super().__init__(initializer=initializer)
        self.submit(bool).result()

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()  # its name is the same since Python 3.2
        except RuntimeError:
            if not self._threads:
                raise
