# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command wait: until somebody rings the host peer, a client or a flat device, and then a command.

Theory of operation
-------------------
The truth is the property ``HostRings`` of a region, or ``Rings`` of a client or a flat device: how often that was rung,
by vector, since it was made. The
daemon's signals say only that it is time to look at it. What was there at the start is subtracted; what comes on top,
at whatever moment, while a command runs or while the daemon is being restarted, is in the next look. Totals survive
a restart with the daemon's state. Where that is not kept (no descriptor store), a daemon starts from nothing: totals
that went down are told as new, all of them; but should as many rings as before have come again until we look, nothing
tells them from the old ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from .arguments import complete_one_of, complete_vector, kind_option_of
from .session import UINT16_MAX, WORDS, Daemon, Refused, Session, json_option, pass_session, place, plural

if TYPE_CHECKING:
    from ..bus.client import Client, Subscription

TIMED_OUT = 124
"""Exit status when the time is over, as timeout(1) has it."""
_SIGNALLED = 128
_RUNG = {"region": ("HostRings", "Rung"), "client": ("Rings", "Rung"), "flat": ("Rings", "Interrupt")}
"""What can be rung: the property with the totals, and the signal that they have grown."""


@dataclass(frozen=True, slots=True)
class Rings:
    """Rings of one vector that nobody has been told of yet, and how many there were in all."""

    vector: int
    count: int
    total: int


class Tally:
    """The rings of *vector*, or of each vector if it is None, on top of *after* or else of what is seen first."""

    def __init__(self, vector: int | None = None, after: int | None = None) -> None:
        self._vector = vector
        self._after = after
        self._totals: list[int] | None = None
        self._new: list[int] = []

    def see(self, totals: Sequence[int]) -> None:
        """Take the totals by vector as they are now."""
        if self._totals is None:
            self._totals = list(totals)
            self._new = [0] * len(totals)
            if self._vector is not None and self._after is not None and self._vector < len(totals):
                self._totals[self._vector] = self._after
        grown = len(totals) - len(self._totals)
        if grown > 0 and all(before <= now for before, now in zip(self._totals, totals, strict=False)):
            self._totals += [0] * grown  # a client gets one vector after the other
            self._new += [0] * grown
        elif grown:  # it was made anew, in another shape
            self._totals = [0] * len(totals)
            self._new = (self._new + [0] * len(totals))[: len(totals)]
        for vector, (before, now) in enumerate(zip(self._totals, totals, strict=True)):
            self._new[vector] += now - before if now >= before else now
        self._totals = list(totals)

    def take(self, least: int = 1) -> Rings | None:
        """Take the new rings of the first vector that has *least* of them; None if none has."""
        for vector, count in enumerate(self._new):
            if count >= least and self._vector in (None, vector):
                self._new[vector] = 0
                assert self._totals is not None
                return Rings(vector, count, self._totals[vector])
        return None


class Wait:
    """One run of the command: what is waited for, and what happens then.

    *limit* is how many rings are told of before it ends; None is no limit, but for *last*: the first time ends it.
    *begin* is told on standard error once nothing is missed any more. With *clock* the time stands before each line.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        kind: str | None,
        vector: int | None = None,
        after: int | None = None,
        least: int = 1,
        command: str = "",
        last: bool = False,
        limit: int | None = None,
        begin: str = "",
        clock: bool = False,
    ) -> None:
        self._session = session
        self._name = name
        self._kind = kind
        self._limit = limit
        self._begin = begin
        self._clock = clock
        self._vector = vector
        self._least = least
        self._command = command
        self._last = last
        self._tally = Tally(vector, after)
        self._checked = False
        self._time: asyncio.Timeout | None = None
        self._seconds: float | None = None

    async def run(self, seconds: float | None) -> int:
        """Wait, *seconds* at most if they are given; gives the exit status."""
        from .lasting import outlive

        self._seconds = seconds
        try:
            async with asyncio.timeout(seconds) as self._time:
                return await outlive(self._session, self._on_bus, self._gone)
        except TimeoutError:
            click.echo(f"doorbellctl: {self._name}: nobody rang in {seconds:g} s", err=True)
            return TIMED_OUT

    async def _on_bus(self, client: Client, back: bool) -> int:
        """Wait on one bus; it is lost with BusUnavailable."""
        from ..bus.client import OWNER_CHANGED, Match
        from ..bus.names import OBJECT_MANAGER, ROOT

        if self._kind is None:
            self._kind = await Daemon(client).kind_of(self._name, tuple(_RUNG))
        path, interface = place(self._kind, self._name)
        rung = Match(path=path, interface=interface, member=_RUNG[self._kind][1])
        removed = Match(path=ROOT, interface=OBJECT_MANAGER, member="InterfacesRemoved")
        async with await client.subscribe(rung, removed, OWNER_CHANGED) as signals:
            time_to_look = asyncio.Event()
            listening = asyncio.create_task(self._listen(signals, path, interface, time_to_look))
            try:
                while True:
                    time_to_look.clear()
                    await self._look(client, path, interface)
                    if self._begin:
                        click.echo(self._begin, err=True)
                        self._begin = ""
                    while (rings := self._tally.take(self._least)) is not None:
                        status = await self._tell(rings)
                        if self._limit is not None:
                            self._limit -= rings.count
                        if self._last or (self._limit is not None and self._limit <= 0):
                            return status
                    await _first_of(listening, time_to_look)
            finally:
                listening.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):  # what ended it has been raised above
                    await listening

    async def _listen(self, signals: Subscription, path: str, interface: str, time_to_look: asyncio.Event) -> None:
        async for heard in signals:
            match heard.member, heard.body:
                case "NameOwnerChanged", [_, _, ""]:
                    self._gone()
                case "InterfacesRemoved", [gone, interfaces]:
                    if gone == path and interface in interfaces:
                        raise Refused(f"{self._what} was removed; nobody can ring there any more")
                case _:
                    time_to_look.set()

    @property
    def _what(self) -> str:
        return f'{WORDS[self._kind or "region"]} "{self._name}"'

    async def _look(self, client: Client, path: str, interface: str) -> None:
        from ..bus.client import CallFailed

        assert self._kind is not None
        if not self._checked:
            known = await Daemon(client).one(self._kind, self._name)
            if not known.get("host-peer", True):
                cure = "so no guest can ring the host there; make it with --host-peer"
                raise Refused(f"{self._what} has no host peer, {cure}")
            if self._vector is not None and 0 < known["vectors"] <= self._vector:
                raise Refused(f"{self._what} has vectors 0 to {known['vectors'] - 1}, not {self._vector}")
            self._checked = True
        try:
            self._tally.see(await client.get(path, interface, _RUNG[self._kind][0]))
        except CallFailed as error:
            if error.nobody_there:  # it comes back, and its name with it
                return
            if error.kind in ("UnknownObject", "UnknownInterface", "UnknownMethod"):
                await Daemon(client).one(self._kind, self._name)  # which knows how to say so
            raise

    async def _tell(self, rings: Rings) -> int:
        """Say that somebody rang, or run the command; gives the exit status. The time stands still meanwhile."""
        assert self._time is not None
        self._time.reschedule(None)
        try:
            if self._command:
                return await self._execute(rings)
            values = {str(self._kind): self._name, "vector": rings.vector, "count": rings.count, "total": rings.total}
            if self._session.json:
                click.echo(json.dumps(values))
            else:
                times = plural(rings.count, "ring")
                clock = f"{datetime.datetime.now():%H:%M:%S}  " if self._clock else ""
                click.echo(f"{clock}{self._name}: vector {rings.vector}: {times}, {rings.total:,} in all")
            sys.stdout.flush()
            return 0
        finally:
            if self._seconds is not None and not self._last:
                self._time.reschedule(asyncio.get_running_loop().time() + self._seconds)

    async def _execute(self, rings: Rings) -> int:
        environment = {
            **os.environ,
            f"DOORBELLD_{str(self._kind).upper()}": self._name,
            "DOORBELLD_VECTOR": str(rings.vector),
            "DOORBELLD_COUNT": str(rings.count),
            "DOORBELLD_TOTAL": str(rings.total),
        }
        process = await asyncio.create_subprocess_shell(self._command, env=environment)
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            raise
        if status and not self._last:
            how = f"status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"
            click.echo(f"doorbellctl: {self._command}: ended with {how}; waiting on", err=True)
        return status if status >= 0 else _SIGNALLED - status

    @staticmethod
    def _gone() -> None:
        click.echo("doorbellctl: the daemon went away; waiting for it", err=True)


async def _first_of(task: asyncio.Task[None], event: asyncio.Event) -> None:
    """Wait for *event*; raise what *task* ends with, should it end before."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if task.done():
        task.result()


def _duration(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    from ..options import duration

    try:
        return None if value is None else duration(value) or None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("name", shell_complete=complete_one_of(*_RUNG))
@click.argument("vector", type=click.IntRange(0, UINT16_MAX), required=False, shell_complete=complete_vector)
@kind_option_of(*_RUNG)
@click.option("--exec", "command", metavar="CMD", default="", help="Run CMD, by the shell, instead of printing.")
@click.option("--forever", is_flag=True, help="Go on with the next ring, until Ctrl-C.")
@click.option("--count", type=click.IntRange(1), default=1, metavar="N", help="Wait for N rings of a vector, not one.")
@click.option(
    "--timeout", metavar="TIME", callback=_duration, help="Give up after so long without: 30s, 5min. Default: never."
)
@click.option(
    "--after", type=click.IntRange(0), metavar="TOTAL", help="Count the rings beyond TOTAL, not those from now on."
)
@json_option
@pass_session
def wait(session: Session, /, name: str, vector: int | None, kind: str | None, **given: Any) -> None:
    r"""Wait until a guest rings the host peer of a region, a client or a flat device: at VECTOR, or at any.

    Then say so, or run a command. With --forever, each time; rings that come while the command runs add up, and the
    next run is told how many they were. None is lost, not even while the daemon is restarted, since its totals count
    (and systemd keeps them for it). If the daemon goes away, wait waits for it, too.

    --exec runs CMD with these in its environment: DOORBELLD_REGION (or DOORBELLD_CLIENT, DOORBELLD_FLAT),
    DOORBELLD_VECTOR, DOORBELLD_COUNT (rings that nobody has been told of yet) and DOORBELLD_TOTAL (all rings of that
    vector so far).

    A script that calls wait again and again misses nothing in between if it hands the total that it was told to
    --after.

    \b
    Examples:
      doorbellctl wait demo                           who rings first?
      doorbellctl wait demo 1 --timeout 30s || echo nobody rang
      doorbellctl wait demo --forever --exec 'logger "rung: vector $DOORBELLD_VECTOR"'
      doorbellctl wait demo 0 --after 41 --json

    \b
    Exit status:
      0    somebody rang; with --exec, what CMD ended with (128 + N for signal N)
      1    refused, or what was waited for was removed
      69   there was no daemon at the start
      124  the time is over
      130  Ctrl-C (143: SIGTERM)
    """
    from .lasting import Stopped, run_until_stopped

    if given["after"] is not None and vector is None:
        raise click.UsageError("--after is a total of one vector; name the VECTOR")
    least, command = given["count"], given["command"]
    begin = f"waiting for a ring of {name}; Ctrl-C ends it" if sys.stderr.isatty() else ""
    waiting = Wait(session, name, kind, vector, given["after"], least, command, last=not given["forever"], begin=begin)
    try:
        status = run_until_stopped(lambda: waiting.run(given["timeout"]))
    except Stopped as stopped:
        status = _SIGNALLED + stopped.number
    sys.exit(status)
