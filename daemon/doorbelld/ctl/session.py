# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What all commands share: which daemon they speak to, how they print, and how they fail.

Exit status: 0 done; 1 the daemon (or we) refused, and standard error says why; 2 the command line is wrong; 69 there
is no daemon.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..bus.client import Client

    _IntType = click.ParamType[int]
else:
    _IntType = click.ParamType

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

UINT16_MAX = 0xFFFF
BUS_WORDS = ("auto", "system", "session", "private")
COMPLETION_SECONDS = 0.7


class Refused(click.ClickException):
    """What was asked for can't be had: exit status 1, the reason on standard error."""

    exit_code = 1

    def show(self, file: object = None) -> None:
        """Tell it on standard error."""
        click.echo(f"doorbellctl: {self.message}", err=True)


@dataclass
class Session:
    """One run of doorbellctl: the global options, and the way to the daemon."""

    bus: str = "auto"
    json: bool = False
    ask_password: bool = True
    """Whether a person may be asked to authenticate, where there is a terminal to do so."""

    def run(self, work: Callable[[Daemon], Awaitable[T]]) -> T:
        """Connect, do *work*, disconnect; errors become exit statuses.

        Raises:
            Refused: the daemon said no.
            NoDaemon: there is none, or it went away meanwhile.
        """
        import asyncio

        from ..bus.client import CallFailed
        from ..errors import BusUnavailable
        from .agent import Agent
        from .bus_choice import NoDaemon, open_bus

        async def session() -> T:
            agent = Agent()
            try:
                async with await open_bus(self.bus) as client:
                    if self.ask_password and sys.stdin.isatty():
                        client.authenticate = agent.start
                    return await work(Daemon(client))
            finally:
                agent.stop()

        try:
            return asyncio.run(session())
        except CallFailed as error:
            if error.nobody_there:
                raise NoDaemon(f"doorbelld went away: {error.text}") from None
            raise Refused(error.text) from None
        except BusUnavailable as error:
            raise NoDaemon(str(error)) from None

    def emit(self, value: Any) -> None:
        """Print *value* as JSON."""
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))

    def done(self, words: str, **values: Any) -> None:
        """Say what was done: in words, or as JSON."""
        if self.json:
            self.emit(values)
        else:
            click.echo(words)


class Daemon:
    """The daemon at the other end of *client*: its methods by name, with plain values."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def call(self, member: str, signature: str = "", *body: Any, timeout: float | None = 60.0) -> Any:
        """Call a method of the manager and give what it returns, if anything."""
        from ..bus.names import MANAGER, ROOT

        reply = await self.client.call(ROOT, MANAGER, member, signature, body, timeout=timeout)
        return reply[0] if reply else None

    async def call_region(self, name: str, member: str, signature: str = "", *body: Any) -> Any:
        """Call a method of a region; a region that is not there is the daemon's NoSuchRegion, not an unknown object."""
        from ..bus import paths
        from ..bus.client import CallFailed
        from ..bus.names import REGION

        try:
            reply = await self.client.call(paths.region(name), REGION, member, signature, body)
        except CallFailed as error:
            if error.kind in ("UnknownObject", "UnknownInterface", "UnknownMethod"):
                await self.call("ListPeers", "s", name)
            raise
        return reply[0] if reply else None

    async def describe(self) -> dict[str, Any]:
        """Everything there is, as plain values."""
        return dict(json.loads(await self.call("Describe")))

    async def region(self, name: str) -> dict[str, Any]:
        """One region of `describe`; CallFailed (NoSuchRegion) if it is not there."""
        regions = (await self.describe())["regions"]
        if name not in regions:
            await self.call("ListPeers", "s", name)  # it knows best how to say so
        return dict(regions[name])

    async def peer_id(self, region: str, word: str) -> int:
        """Read a peer: its ID, ``host``, or the name of its VM."""
        if word.isascii() and word.isdecimal() and int(word) <= UINT16_MAX:
            return int(word)
        known = await self.region(region)
        if word == "host":
            if not known["host-peer"]:
                raise Refused(f'region "{region}" has no host peer; make it with --host-peer')
            return int(known["host-peer-id"])
        ids = [int(peer["id"]) for peer in known["peers"] if peer["vm"] == word]
        if len(ids) == 1:
            return ids[0]
        there = ", ".join(f"{peer['id']} ({peer['vm'] or 'no name'})" for peer in known["peers"]) or "nobody"
        cause = f'several peers called "{word}"' if ids else f'no peer "{word}"'
        raise Refused(f'region "{region}" has {cause}; connected: {there}')


pass_session = click.make_pass_decorator(Session, ensure=True)


def json_option(function: F) -> F:
    """Add ``--json`` to a command: the same flag as the global one, where people look for it."""

    def turn_on(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            ctx.ensure_object(Session).json = True

    option = click.option("--json", is_flag=True, expose_value=False, callback=turn_on, help="Print JSON.")
    return option(function)


class Number(_IntType):
    """A number of bytes: decimal, 0x hexadecimal, or with K, M or G."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it, or fail with words."""
        if isinstance(value, int):
            return value
        text, factor = str(value).strip(), 1
        if text[-1:].upper() in ("K", "M", "G") and not text.lower().startswith("0x"):
            factor = 1 << {"K": 10, "M": 20, "G": 30}[text[-1].upper()]
            text = text[:-1]
        try:
            number = int(text, 16 if text.lower().startswith("0x") else 10) * factor
        except ValueError:
            self.fail(f"{value!r} is no number; write one such as 4096, 0x1000 or 4K", param, ctx)
        if not 0 <= number < 1 << 63:
            self.fail(f"{value!r} is out of range", param, ctx)
        return number


def _ask(ctx: click.Context) -> dict[str, Any]:
    """Describe the daemon for shell completion: quickly, or not at all."""
    import asyncio

    from . import remote

    async def ask() -> dict[str, Any]:
        from .bus_choice import open_bus

        async with asyncio.timeout(COMPLETION_SECONDS):
            async with await open_bus(ctx.find_root().params.get("bus") or "auto") as client:
                return await Daemon(client).describe()

    try:
        if host := ctx.find_root().params.get("host"):
            return remote.describe(host)
        return asyncio.run(ask())
    except Exception:  # completion never disturbs whoever types
        return {"regions": {}}


def complete_region(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a region."""
    return [name for name in _ask(ctx)["regions"] if name.startswith(incomplete)]


def complete_peer(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[Any]:
    """Complete a peer of the region before it: IDs, with the VM's name beside."""
    from click.shell_completion import CompletionItem

    region = _ask(ctx)["regions"].get(ctx.params.get("region") or "", {"peers": []})
    return [
        CompletionItem(str(peer["id"]), help=peer["vm"] or f"pid {peer['pid']}")
        for peer in region["peers"]
        if str(peer["id"]).startswith(incomplete)
    ]


def complete_vector(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Complete a vector of the region before it."""
    vectors = _ask(ctx)["regions"].get(ctx.params.get("region") or "", {"vectors": 0})["vectors"]
    return [number for number in map(str, range(vectors)) if number.startswith(incomplete)]


def region_argument(function: F) -> F:
    """Add the argument REGION."""
    return click.argument("region", shell_complete=complete_region)(function)


def peer_argument(function: F) -> F:
    """Add the argument PEER."""
    return click.argument("peer", shell_complete=complete_peer)(function)


def validate_bus(_: click.Context, __: click.Parameter, value: str) -> str:
    """Check the word of ``--bus``."""
    if value not in BUS_WORDS and ":" not in value:
        raise click.BadParameter(f'"{value}" is no bus; use system, session, private or unix:path=/SOCKET')
    return value


def plural(count: int, noun: str) -> str:
    """Write a count with its noun: 1 peer, 2 peers."""
    return f"{count} {noun}{'s' * (count != 1)}"
