# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What all commands share: which daemon they speak to, how they print, and how they fail.

Exit status: 0 done; 1 the daemon (or we) refused, and standard error says why; 2 the command line is wrong; 69 there
is no daemon.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..bus.client import CallFailed, Client

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

UINT16_MAX = 0xFFFF
BUS_WORDS = ("auto", "system", "session", "private")
KINDS = ("region", "device", "client", "flat")
WORDS = {"region": "region", "device": "device", "client": "client", "flat": "flat device"}
"""What each of `KINDS` is called."""
_LISTS = {"region": "ListPeers", "device": "ListQueues"}
"""Methods of the manager that only look, and tell that one of the kind is not there."""
_NAMES = {"region": "ListRegions", "device": "ListDevices", "client": "ListClients", "flat": "ListFlatDevices"}
"""Methods of the manager that name all of a kind, each name first in its row."""
_NOT_THERE = ("UnknownObject", "UnknownInterface", "UnknownMethod")


class Failure(click.ClickException):
    """What ends a command: a line on standard error, and an exit status of its own."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        context = click.get_current_context(silent=True)
        self._session = context.find_object(Session) if context else None

    def show(self, file: object = None) -> None:
        """Tell it on standard error: in words, or as JSON if that is wanted."""
        if self._session is not None and self._session.json:
            click.echo(json.dumps({"error": self.message, "status": self.exit_code}, ensure_ascii=False), err=True)
        else:
            click.echo(f"doorbellctl: {self.message}", err=True)


class Refused(Failure):
    """What was asked for can't be had: exit status 1, the reason on standard error."""

    exit_code = 1


@dataclass
class Session:
    """One run of doorbellctl: the global options, and the way to the daemon."""

    bus: str = "auto"
    json: bool = False
    ask_password: bool = True
    """Whether a person may be asked to authenticate, where there is a terminal to do so."""
    no_trunc: bool = False
    """Whether tables are printed whole, however narrow the terminal is."""

    def run(self, work: Callable[[Daemon], Coroutine[Any, Any, T]]) -> T:
        """Connect, do *work*, disconnect; errors become exit statuses.

        Raises:
            Refused: the daemon said no.
            NoDaemon: there is none, it went away meanwhile, or it does not answer.
        """
        import asyncio

        from ..bus.client import CallFailed
        from ..errors import BusUnavailable
        from .agent import Agent
        from .answering import while_answering
        from .bus_choice import NoDaemon, open_bus

        async def session() -> T:
            agent = Agent()
            try:
                async with await open_bus(self.bus) as client:
                    self.let_authenticate(client, agent.start)
                    return await while_answering(client, work(Daemon(client)))
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

    def let_authenticate(self, client: Client, start: Callable[[], Awaitable[None]]) -> None:
        """Have *client* use *start* before somebody is asked for a password, if somebody is there and may be asked."""
        if self.ask_password and sys.stdin.isatty():
            client.authenticate = start

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

    async def call_one(self, kind: str, name: str, member: str, signature: str = "", *body: Any) -> Any:
        """Call a method of a region, device, client or flat device; one that is not there is told as such."""
        from ..bus.client import CallFailed

        path, interface = place(kind, name)
        try:
            reply = await self.client.call(path, interface, member, signature, body)
        except CallFailed as error:
            if error.kind in _NOT_THERE:
                await self.one(kind, name)  # which tells what is wrong with the name
            raise
        return reply[0] if reply else None

    async def call_region(self, name: str, member: str, signature: str = "", *body: Any) -> Any:
        """Call a method of a region; a region that is not there is the daemon's NoSuchRegion, not an unknown object."""
        return await self.call_one("region", name, member, signature, *body)

    async def call_device(self, name: str, member: str) -> None:
        """Call a method of a device, without arguments; one that is not there is NoSuchDevice."""
        await self.call_one("device", name, member)

    async def call_queue(self, device: str, queue: int, member: str) -> None:
        """Call a method of a queue, without arguments; device and queue are told apart if one is not there."""
        from ..bus import paths
        from ..bus.client import CallFailed
        from ..bus.names import QUEUE

        try:
            await self.client.call(paths.queue(device, queue), QUEUE, member)
        except CallFailed as error:
            await self._explain(error, device, queue)
            raise

    async def _explain(self, error: CallFailed, device: str, queue: int | None = None) -> None:
        """Say what is not there, if that is why a call failed."""
        if error.kind not in _NOT_THERE:
            return
        count = len((await self.device(device))["queues"])
        if queue is not None and queue >= count:
            raise Refused(f'device "{device}" has queues 0 to {count - 1}, not {queue}') from None

    async def describe(self) -> dict[str, Any]:
        """Everything there is, as plain values, whose keys are spelled as in the configuration; peers by their ID."""
        known = dict(json.loads(await self.call("Describe")))
        for kinds in ("regions", "clients", "flats"):
            for one in known[kinds].values():
                one["peers"].sort(key=lambda peer: peer["id"])
        return known

    async def one(self, kind: str, name: str) -> dict[str, Any]:
        """One thing of `describe`, of one of `KINDS`.

        Raises:
            CallFailed, Refused: it is not there.
        """
        known = await self.describe()
        if name in known[f"{kind}s"]:
            return dict(known[f"{kind}s"][name])
        if others := [other for other in KINDS if name in known[f"{other}s"]]:
            raise _another(kind, name, others[0])
        if kind in _LISTS:
            await self.call(_LISTS[kind], "s", name)  # it knows best how to say so
        there = ", ".join(known[f"{kind}s"]) or f"none; make one with doorbellctl create-{kind}"
        raise Refused(f'no {WORDS[kind]} "{name}"; there is: {there}')

    async def region(self, name: str) -> dict[str, Any]:
        """One region of `describe`; CallFailed (NoSuchRegion) if it is not there."""
        return await self.one("region", name)

    async def device(self, name: str) -> dict[str, Any]:
        """One device of `describe`; CallFailed (NoSuchDevice) if it is not there."""
        return await self.one("device", name)

    async def find(
        self, name: str, kind: str | None = None, among: Sequence[str] = KINDS
    ) -> tuple[str, dict[str, Any]]:
        """Look up one thing of `describe`, of one of the kinds *among*: which kind it is, and what is known of it.

        Raises:
            Refused: there is none of that name, or several and *kind* does not say which.
            CallFailed: it is not of the *kind* given.
        """
        if kind:
            return kind, await self.one(kind, name)
        known = await self.describe()
        found = [kind for kind in among if name in known[f"{kind}s"]]
        if len(found) > 1:
            which = " and ".join(f"a {WORDS[kind]}" for kind in found)
            flags = " or ".join(f"--kind {kind}" for kind in found)
            raise Refused(f'"{name}" is {which}; say which with {flags}')
        if found:
            return found[0], dict(known[f"{found[0]}s"][name])
        if others := [other for other in KINDS if name in known[f"{other}s"]]:
            raise _another(among[0], name, others[0])
        first, *more = [kind for kind in among if kind in _LISTS or known[f"{kind}s"]]
        if not more:
            return first, await self.one(first, name)  # which says that it is not there
        nor = " or ".join(WORDS[kind] for kind in more)
        there = "; ".join(f"{WORDS[kind]}s: {', '.join(known[f'{kind}s']) or 'none'}" for kind in (first, *more))
        raise Refused(f'no {WORDS[first]} "{name}", and no {nor} of that name; there are {there}')

    async def kind_of(self, name: str, among: Sequence[str]) -> str:
        """Tell which kind *name* is, as `find` does, without having everything described if it is of one kind only."""
        found = [kind for kind in among if any(row[0] == name for row in await self.call(_NAMES[kind]))]
        if len(found) == 1:
            return found[0]
        return (await self.find(name, among[0] if len(among) == 1 else None, among))[0]

    async def peer_id(self, region: str, word: str, kind: str = "region") -> int:
        """Read a peer: its ID, ``host``, or a name (see `peernames`); of a client's peers only the ID is known."""
        if word.isascii() and word.isdecimal() and int(word) <= UINT16_MAX:
            return int(word)
        if kind == "client":
            seen = ", ".join(str(peer["id"]) for peer in (await self.one(kind, region))["peers"]) or "nobody"
            raise Refused(f'"{word}" is no ID of a peer that client "{region}" sees; there is: {seen}')
        known = await self.region(region)
        if word == "host":
            if not known["host-peer"]:
                raise Refused(f'region "{region}" has no host peer; make it with --host-peer')
            return int(known["host-peer-id"])
        from . import peernames

        ids = peernames.named(known["peers"], word)
        if len(ids) == 1:
            return ids[0]
        there = ", ".join(f"{peer['id']} ({peernames.sentence(peer)})" for peer in known["peers"]) or "nobody"
        cause = f'several peers called "{word}"' if ids else f'no peer "{word}"'
        raise Refused(f'region "{region}" has {cause}; connected: {there}')


def place(kind: str, name: str) -> tuple[str, str]:
    """Give path and interface of what is of one of `KINDS`."""
    from ..bus import names, paths

    make, interface = {
        "region": (paths.region, names.REGION),
        "device": (paths.device, names.DEVICE),
        "client": (paths.client, names.CLIENT),
        "flat": (paths.flat, names.FLAT),
    }[kind]
    return make(name), interface


def _another(kind: str, name: str, other: str) -> Refused:
    """Say that what is called so is of another kind."""
    return Refused(f'no {WORDS[kind]} "{name}", but a {WORDS[other]}; doorbellctl status {name} shows it')


def ask_first(cause: str, action: str, otherwise: str) -> None:
    """Ask the person at the terminal whether to do *action*, given the *cause* not to.

    Raises:
        Refused: the answer is no (the message is *otherwise*), or there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise Refused(f"{cause}; to {action}, add --yes")
    if not click.confirm(f"{cause[:1].upper()}{cause[1:]}. {action.capitalize()}?", err=True):
        raise Refused(otherwise)


pass_session = click.make_pass_decorator(Session, ensure=True)


def _flag(name: str, words: str) -> Callable[[F], F]:
    """Make what adds a flag of the whole program to a command, where people look for it."""

    def turn_on(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            setattr(ctx.ensure_object(Session), str(param.name), True)

    return click.option(name, is_flag=True, expose_value=False, callback=turn_on, help=words)


json_option = _flag("--json", "Print JSON.")
"""Adds ``--json`` to a command."""
table_option = _flag("--no-trunc", "Print all columns, with dates, even if they do not fit on the terminal.")
"""Adds ``--no-trunc`` to a command that prints a table."""


def validate_bus(_: click.Context, __: click.Parameter, value: str) -> str:
    """Check the word of ``--bus``."""
    if value not in BUS_WORDS and ":" not in value:
        raise click.BadParameter(f'"{value}" is no bus; use system, session, private or unix:path=/SOCKET')
    return value


def plural(count: int, noun: str) -> str:
    """Write a count with its noun: 1 peer, 2,000 peers."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
