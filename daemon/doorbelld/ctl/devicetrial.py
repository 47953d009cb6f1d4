# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The step of the self-test that is about devices: a front-end with a driver goes through a loopback device of its own.

The front-end is blocking, so it has a thread to itself; the D-Bus calls stay on the loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field

from ..bus.client import options
from ..vhost.frontend import BackendFailed, Frontend
from .session import Daemon

SECONDS = 3.0
ROUNDS = 300
_SIZE = 64


class DeviceFailed(Exception):
    """Something about the device is wrong; the message says what."""


@dataclass(slots=True)
class DeviceTrial:
    """A device *name* that is made, driven and removed; *latency* is that of each request, in seconds."""

    daemon: Daemon
    name: str
    latency: list[float] = field(default_factory=list)

    async def run(self) -> str:
        """Do it all, and say what was found.

        Raises:
            DeviceFailed: saying what is wrong.
            CallFailed: the daemon refuses a call.
        """
        await self.daemon.call("CreateDevice", "ssa{sv}", self.name, "loopback", options({}))
        try:
            device = await self.daemon.device(self.name)
            await asyncio.to_thread(self._drive, device["socket"])
            seen = (await self.daemon.device(self.name))["queues"][0]["requests"]
        finally:
            await self.daemon.call("RemoveDevice", "s", self.name)
        if seen != ROUNDS:
            raise DeviceFailed(f"{ROUNDS} requests were served, and D-Bus says {seen}")
        if os.path.exists(device["socket"]):
            raise DeviceFailed(f"the device is removed, and {device['socket']} is still there")
        median = sorted(self.latency)[ROUNDS // 2] * 1e6
        return f"a front-end attached to {self.name}, and {ROUNDS} requests came back right, each in {median:.0f} us"

    def _drive(self, path: str) -> None:
        try:
            with Frontend.connect(path, timeout=SECONDS) as frontend:
                (queue,) = frontend.start()
                for number in range(ROUNDS):
                    sent, start = number.to_bytes(_SIZE, "little"), time.perf_counter()
                    got = frontend.request(queue, sent, room=_SIZE)
                    self.latency.append(time.perf_counter() - start)
                    if got != sent:
                        raise DeviceFailed(f"request {number} came back as {got[:8].hex()}..., not {sent[:8].hex()}...")
        except OSError as error:
            raise DeviceFailed(f"can't connect to {path}: {error.strerror or error}") from error
        except BackendFailed as error:
            raise DeviceFailed(str(error)) from error
