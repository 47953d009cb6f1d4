# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Notice a front-end that connects and says nothing.

A vhost-user front-end speaks first, and at once. One that does not is no such front-end: it is an ivshmem device that
was given the wrong socket, say, or a chardev of QEMU's that no device uses. It is worth a line in the log after some
seconds: a device serves one front-end at a time, so this one keeps all others away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

SILENCE = 5.0
"""Seconds after which a front-end that has said nothing is told of."""


class Silence:
    """The silence of one front-end after the other; *heard* is called when one lasts, and when that ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, heard: Callable[[], None]) -> None:
        self.lasts = False
        """Whether it has lasted for `SILENCE`."""
        self._loop = loop
        self._heard = heard
        self._began: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def seconds(self) -> float | None:
        """How long the front-end has said nothing; None if it spoke, or there is none."""
        return None if self._began is None else self._loop.time() - self._began

    def begin(self) -> None:
        """A front-end connected."""
        self._began = self._loop.time()
        self._timer = self._loop.call_later(SILENCE, self._last)

    def end(self) -> None:
        """It spoke, or is gone; again does nothing."""
        self._began = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.lasts:
            self.lasts = False
            self._heard()

    def _last(self) -> None:
        self._timer = None
        self.lasts = True
        self._heard()
