# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Joining a region as a peer, over D-Bus: what attach, echo, ping and bench begin with.

The daemon's ``Region.Attach`` gives a connected socket, of which a `Client` is made. From then on the daemon is an
ivshmem server like any other; D-Bus is only asked for what the protocol does not tell: how many vectors a peer has, and
which peer is which virtual machine.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ..errors import DoorbellError
from ..ivshmem.client import Client
from ..options import duration
from . import peernames
from .session import Daemon, Failure, Refused, plural

if TYPE_CHECKING:
    _FloatType = click.ParamType[float]
else:
    _FloatType = click.ParamType

GREETING_SECONDS = 10.0
"""How long the daemon may take to greet us: it does so at once."""
_NAMES_MAX = 8


class Command(click.Command):
    """A command whose options complete from the region that was named before."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line; while it is completed, without the option whose value is not there yet."""
        if ctx.resilient_parsing and args and args[-1].startswith("-"):
            args = args[:-1]
        return super().parse_args(ctx, args)


class Duration(_FloatType):
    """A duration as in the configuration: seconds, or ``200ms``, ``1min``."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it, or fail with words."""
        try:
            return duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class NotThere(Failure):
    """Those who were waited for did not come in time."""

    exit_code = 124


@dataclass(frozen=True, slots=True)
class Attachment:
    """A peer of *region*: the connection, and what D-Bus knows that it does not tell."""

    client: Client
    region: str
    vectors: int
    host: int | None
    """The ID of the host peer, if there is one."""
    bus: str
    """The address of the daemon's bus."""
    named: dict[str, int]
    """The IDs of those who were waited for, by the words they were called by."""

    def whole(self, peer_id: int) -> bool:
        """Tell whether all doorbells of a peer have come."""
        return len(self.client.doorbells.get(peer_id, ())) >= self.vectors

    def guests(self) -> list[int]:
        """Give the others that are wholly there, less the host peer."""
        return [peer.id for peer in self.client if peer.id != self.host and self.whole(peer.id)]


async def join(
    daemon: Daemon,
    region: str,
    *,
    name: str = "",
    wait_for: Iterable[str] = (),
    peers: int = 0,
    seconds: float | None = None,
) -> Attachment:
    """Join *region*, and wait until everybody is known who was there before.

    Args:
        daemon: the way to it.
        region: the region's name.
        name: what we call ourselves there, if anything.
        wait_for: IDs and names of virtual machines (or ``host``) that must be there, too.
        peers: so many others, besides the host peer, must be there.
        seconds: how long to wait for those; None is for ever.

    Raises:
        CallFailed: there is no such region, or it does not admit us.
        Refused: the region ended while we waited.
        NotThere: they did not come in time.
    """
    known = await daemon.region(region)
    from ..bus.client import options

    fd = await daemon.call_region(region, "Attach", "a{sv}", options({"name": name} if name else {}))
    try:
        client = Client.adopt(socket.socket(fileno=fd.steal()))
    except DoorbellError as error:
        raise Refused(f'region "{region}": {error}') from None
    host = int(known["host-peer-id"]) if known["host-peer"] else None
    joined = Attachment(client, region, int(known["vectors"]), host, daemon.client.address, {})
    try:
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                await until(client, lambda: joined.whole(client.id))
        except TimeoutError:
            raise Refused(f'region "{region}" does not greet us; look at the daemon\'s log and load') from None
        await _wait(daemon, joined, list(dict.fromkeys(wait_for)), peers, seconds)
    except DoorbellError as error:
        client.close()
        raise Refused(f'region "{region}": {error}') from None
    except BaseException:
        client.close()
        raise
    return joined


async def _wait(daemon: Daemon, joined: Attachment, words: Sequence[str], count: int, seconds: float | None) -> None:
    client = joined.client

    seen: list[int] = []

    def missing() -> list[str]:
        return [word for word in words if not joined.whole(joined.named.get(word, -1))]

    def enough() -> bool:
        return len(client.peers) >= count and len(joined.guests()) >= count

    def news() -> bool:
        return list(client.peers) != seen or (enough() and not missing())

    try:
        async with asyncio.timeout(seconds):
            while True:
                seen = list(client.peers)
                if unknown := [word for word in words if joined.named.get(word) not in client.peers]:
                    joined.named.update(await _look_up(daemon, joined.region, unknown))
                if enough() and not missing():
                    return
                await until(client, news)
    except TimeoutError:
        there = ", ".join(map(str, joined.guests()[:_NAMES_MAX])) or "nobody else"
        wanted = " and ".join([*missing(), *([] if enough() else [plural(count, "peer")])])
        raise NotThere(f'region "{joined.region}": {wanted} not there after {seconds:g} s; there is: {there}') from None


async def _look_up(daemon: Daemon, region: str, words: Iterable[str]) -> dict[str, int]:
    """Find the IDs of those who are meant, as far as the daemon knows them by now."""
    known = await daemon.region(region)
    return {
        word: await daemon.peer_id(region, word)
        for word in words
        if word.isdecimal() or word == "host" or peernames.named(known["peers"], word)
    }


async def until(client: Client, condition: Callable[[], object]) -> None:
    """Take what the server says until *condition* holds; our own doorbells are left alone, so no ring is lost.

    Raises:
        ServerClosed, ProtocolBroken, LimitExceeded: the connection ended.
    """
    loop, stirred = asyncio.get_running_loop(), asyncio.Event()
    connection = client.fds()[0]
    loop.add_reader(connection, stirred.set)
    try:
        while not condition():
            await stirred.wait()
            stirred.clear()
            client.handle_fds([connection])
    finally:
        loop.remove_reader(connection)
