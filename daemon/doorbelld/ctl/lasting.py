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
from .agent import Agent
from .answering import check_answers
from .bus_choice import NoDaemon, open_bus
from .session import Refused, Session

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


async def outlive(
    session: Session,
    work: Callable[[Client, bool], Awaitable[T]],
    gone: Callable[[], None],
    make_way: Callable[[], None] = lambda: None,
) -> T:
    """Do *work* with a connection to the bus of *session*; each time that the bus is lost, once more.

    Args:
        session: says which bus, and whether a person may be asked for a password.
        work: gets the connection, and whether it is another one than the first.
        gone: is called when the daemon was lost with the bus; as long as the bus is there, *work* sees by itself.
        make_way: is called before a person is asked for a password on the terminal.

    Raises:
        NoDaemon: there is none at the start.
        CallFailed: as *work* does.
    """
    agent = Agent()

    async def authenticate() -> None:
        make_way()
        await agent.start()

    try:
        return await _outlive(session, work, gone, authenticate)
    finally:
        agent.stop()


async def _outlive(
    session: Session,
    work: Callable[[Client, bool], Awaitable[T]],
    gone: Callable[[], None],
    authenticate: Callable[[], Awaitable[None]],
) -> T:
    client = await open_bus(session.bus)
    try:
        await check_answers(client)
    except BaseException:
        await client.close()
        raise
    address, back = client.address, False
    while True:
        session.let_authenticate(client, authenticate)
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
