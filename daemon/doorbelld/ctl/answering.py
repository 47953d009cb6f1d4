# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Notice a daemon that does not answer: one that is stopped, or whose event loop hangs.

A call to the daemon may take as long as it needs, such as one that makes a large region. Meanwhile the daemon answers
other calls. So while a command works, it pings the daemon, and gives up when no answer comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from ..bus.client import CallFailed, Client
from ..bus.names import BUS_NAME, DBUS_PEER, ROOT
from ..errors import BusUnavailable
from .bus_choice import NoDaemon

T = TypeVar("T")

PING_AFTER = 1.0
"""Seconds between two pings; a command that is done before sends none."""
ANSWER_SECONDS = 5.0
"""How long the answer to a ping may take."""
_GIVE_UP_SECONDS = 2.0
"""How long a command that is cancelled may take to clean up."""


async def while_answering(client: Client, work: Coroutine[Any, Any, T]) -> T:
    """Do *work* as long as the daemon at the other end of *client* answers.

    Raises:
        NoDaemon: it does not; *work* was cancelled.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_watch(client))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.wait((working, watching), timeout=_GIVE_UP_SECONDS)
        if working.done() and not working.cancelled():
            working.exception()  # it was seen
    watching.result()
    raise AssertionError("the watch ends with an error only")


async def check_answers(client: Client) -> None:
    """Ping the daemon once.

    Raises:
        NoDaemon: it does not answer.
    """
    try:
        await client.call(ROOT, DBUS_PEER, "Ping", timeout=ANSWER_SECONDS)
    except CallFailed as error:
        if error.kind == "Timeout":
            raise NoDaemon(await _explain(client)) from None


async def _watch(client: Client) -> None:
    with contextlib.suppress(BusUnavailable):  # the command itself tells
        while True:
            await asyncio.sleep(PING_AFTER)
            await check_answers(client)
    await asyncio.Event().wait()


async def _explain(client: Client) -> str:
    """Say that the daemon does not answer, why, and on the next line what to do."""
    pid, state = 0, ""
    with contextlib.suppress(CallFailed, BusUnavailable, OSError, IndexError):
        async with asyncio.timeout(ANSWER_SECONDS):
            pid = int(await client.call_bus("GetConnectionUnixProcessID", "s", BUS_NAME))
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
    what = f"doorbelld (PID {pid or 'unknown'}) has not answered for {ANSWER_SECONDS:g} s: "
    match state:
        case "T" | "t":
            return f"{what}it is stopped, by a signal or a debugger\nlet it go on with: kill -CONT {pid}"
        case "D":
            return f"{what}it waits for a disk or a network file system\nsee which one: cat /proc/{pid}/stack"
    cure = "restart it, guests notice nothing: systemctl restart doorbelld; its log may say why"
    return f"{what}its event loop hangs\n{cure}"
