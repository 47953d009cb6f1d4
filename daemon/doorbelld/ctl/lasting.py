# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What commands that go on for long share: they end when they are told to, and outlive the daemon and its bus."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..bus.client import CallFailed, Client
from ..errors import BusUnavailable
from .bus_choice import NoDaemon, open_bus
from .session import Refused

T = TypeVar("T")

_RETRY_FIRST = 0.1
_RETRY_MAX = 2.0


class Stopped(Exception):
    """SIGINT or SIGTERM came; ``number`` is which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_until_stopped(work: Callable[[], Awaitable[T]]) -> T:
    """Run *work* to its end; SIGINT and SIGTERM cancel it.

    Raises:
        Stopped: by one of these.
        Refused: the daemon said no.
        NoDaemon: there is none.
    """
    got: list[int] = []

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            got.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        return await work()

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise Stopped(got[0] if got else signal.SIGINT) from None
    except CallFailed as error:
        if error.nobody_there:
            raise NoDaemon(f"doorbelld went away: {error.text}") from None
        raise Refused(error.text) from None
    except BusUnavailable as error:
        raise NoDaemon(str(error)) from None


async def outlive(word: str, work: Callable[[Client, bool], Awaitable[T]], gone: Callable[[], None]) -> T:
    """Do *work* with a connection to the bus that *word* names; each time that the bus is lost, once more.

    Args:
        word: as `open_bus` takes it.
        work: gets the connection, and whether it is another one than the first.
        gone: is called when the daemon was lost with the bus; as long as the bus is there, *work* sees by itself.

    Raises:
        NoDaemon: there is none at the start.
        CallFailed: as *work* does.
    """
    client = await open_bus(word)
    address, back = client.address, False
    while True:
        try:
            return await work(client, back)
        except BusUnavailable:
            if client.known_owner:  # else it has been told
                gone()
        except CallFailed as error:
            if not (back and error.nobody_there):
                raise
            gone()
        finally:
            await client.close()
        delay = _RETRY_FIRST
        while True:
            await asyncio.sleep(delay)
            try:
                client = await _reopen(address)
                break
            except BusUnavailable:
                delay = min(delay * 2, _RETRY_MAX)
        back = True


async def _reopen(address: str) -> Client:
    client = await Client.connect(address)
    try:
        await client.wait_for_owner()
    except BaseException:
        await client.close()
        raise
    return client
