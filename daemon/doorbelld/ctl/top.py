# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command top: the load of regions, peers and devices, again and again.

Each refresh costs the daemon one call (``Describe``); joins and leaves are counted from its signals. `load` makes
rates of what was seen, and a screen shows them: on the whole terminal, in plain columns, or as a line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from . import tables
from .layout import lay_out
from .load import Sample, all_tables, frame, headline
from .process import usage
from .session import Daemon, Session, json_option, pass_session, table_option

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from ..bus.client import Client, Signal


class JsonScreen:
    """A line of JSON for each refresh, and for the daemon going and coming."""

    def show(self, made: dict[str, Any]) -> None:
        """Print a frame."""
        self._line("frame", made)

    def gone(self) -> None:
        """Say that the daemon went away."""
        self._line("daemon-gone", {})

    def back(self) -> None:
        """Say that it is back."""
        self._line("daemon-back", {})

    @staticmethod
    def _line(event: str, values: dict[str, Any]) -> None:
        click.echo(json.dumps({"time": round(time.time(), 6), "event": event, **values}, ensure_ascii=False))
        sys.stdout.flush()


class PlainScreen:
    """Plain columns, one refresh below the other."""

    def show(self, made: dict[str, Any]) -> None:
        """Print a frame."""
        click.echo(f"{_clock()}  {headline(made)}")
        for shape, rows in all_tables(made):
            click.echo()
            tables.table(shape, rows)
        click.echo()
        sys.stdout.flush()

    def gone(self) -> None:
        """Say that the daemon went away."""
        self._say("the daemon went away; waiting for it")

    def back(self) -> None:
        """Say that it is back."""
        self._say("the daemon is back")

    @staticmethod
    def _say(words: str) -> None:
        click.echo(f"{_clock()}  {words}\n")
        sys.stdout.flush()


class FullScreen:
    """The whole terminal, from the first frame on; what does not fit is cut off at the lower end.

    In ``with`` only: the end restores the terminal and leaves the last look on it. `leave` restores it until the next
    frame. *quit_now* is cancelled when q is typed.
    """

    def __init__(self, delay: float, quit_now: asyncio.Task[Any]) -> None:
        from rich.console import Console

        self._delay = delay
        self._quit_now = quit_now
        self._console = Console(markup=False, emoji=False, highlight=False)
        self._live: Live | None = None
        self._taken = contextlib.ExitStack()
        self._last: dict[str, Any] | None = None

    def __enter__(self) -> FullScreen:
        return self

    def __exit__(self, *_: object) -> None:
        shown = self._live is not None
        self.leave()
        if shown and self._last is not None:
            lines = self._lines(f"every {self._delay:g} s")
            for line in lines[: self._console.height - 1]:  # the shell's prompt takes the last one
                self._console.print(line, no_wrap=True, overflow="crop")

    def leave(self) -> None:
        """Give the terminal back for now: somebody is to be asked for a password on it."""
        self._live = None
        self._taken.close()

    def _enter(self) -> Live:
        from rich.live import Live

        if self._live is None:
            self._taken.enter_context(_keys(self._quit_now))
            live = Live(console=self._console, screen=True, auto_refresh=False, vertical_overflow="crop")
            self._live = self._taken.enter_context(live)
        return self._live

    def show(self, made: dict[str, Any]) -> None:
        """Show a frame."""
        self._last = made
        self._draw(f"every {self._delay:g} s; q quits")

    def gone(self) -> None:
        """Say above the last frame that the daemon went away."""
        self._draw("the daemon went away; waiting for it; q quits", "bold red")

    def back(self) -> None:
        """Nothing: the next frame shows it."""

    def _draw(self, words: str, style: str = "dim") -> None:
        from rich.console import Group

        self._enter().update(Group(*self._lines(words, style)), refresh=True)

    def _lines(self, words: str, style: str = "dim") -> list[Text]:
        from rich.text import Text

        lines = [Text(f"{_clock()}  {words}", style=style)]
        if self._last is None:
            return lines
        width = self._console.width if tables.width() else None
        lines += Text(headline(self._last)).wrap(self._console, self._console.width)
        for shape, rows in all_tables(self._last):
            lines.append(Text())
            for place, row in enumerate(lay_out(shape, rows[: self._console.height], width)):
                line = Text(row.text, style="" if place else "bold reverse", no_wrap=True, overflow="crop")
                if place:
                    line.stylize("cyan", 0, len(row.cells[0]))
                lines.append(line)
        return lines


def _clock() -> str:
    return datetime.datetime.now().strftime("%H:%M:%S")


@contextlib.contextmanager
def _keys(quit_now: asyncio.Task[Any]) -> Iterator[None]:
    """Cancel *quit_now* when q is typed; the terminal is as it was afterwards."""
    if not sys.stdin.isatty():
        yield
        return
    import os
    import termios
    import tty

    stdin = sys.stdin.fileno()
    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(stdin)

    def read() -> None:
        typed = os.read(stdin, 64)
        if not typed:
            loop.remove_reader(stdin)
        elif b"q" in typed.lower():
            quit_now.cancel()

    tty.setcbreak(stdin)
    quiet = termios.tcgetattr(stdin)
    quiet[6][termios.VSUSP] = b"\0"  # stopped, it would leave the shell on our screen
    termios.tcsetattr(stdin, termios.TCSANOW, quiet)
    loop.add_reader(stdin, read)
    try:
        yield
    finally:
        loop.remove_reader(stdin)
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


class Top:
    """One run of the command: looks every *delay* seconds, *iterations* times (0: without end), and shows it."""

    def __init__(self, screen: JsonScreen | PlainScreen | FullScreen, delay: float, iterations: int) -> None:
        self._screen = screen
        self._delay = delay
        self._left = iterations or -1
        self._before: Sample | None = None
        self._joins: Counter[str] = Counter()
        self._leaves: Counter[str] = Counter()
        self._gone = False

    async def watch(self, client: Client, back: bool) -> None:
        """Look and show until it is enough; BusUnavailable when the bus is lost."""
        from ..bus.client import CallFailed, Match
        from ..bus.names import BUS_NAME, REGION

        added, removed = (Match(interface=REGION, member=member) for member in ("PeerAdded", "PeerRemoved"))
        await client.subscribe(added, removed, callback=self._count)
        owner, pid = "", 0
        while True:
            if not client.known_owner:  # asking would have the bus start the daemon
                self.lose()
                await client.wait_for_owner()
            try:
                if owner != client.known_owner:
                    pid = int(await client.call_bus("GetConnectionUnixProcessID", "s", BUS_NAME))
                    owner = client.known_owner
                known = await Daemon(client).describe()
            except CallFailed as error:
                if not error.nobody_there:
                    raise
                self.lose()
                await self._pause(client)
                continue
            if self._gone:
                self._gone = False
                self._screen.back()
            self._show(Sample(time.monotonic(), owner, pid, known, usage(pid), +self._joins, +self._leaves))
            self._left -= 1
            if not self._left:
                return
            await self._pause(client)

    async def _pause(self, client: Client) -> None:
        """Let the time between two looks go by, or less if the daemon goes away meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._delay):
                await client.wait_for_owner(there=False)

    def lose(self) -> None:
        """Say that the daemon went away, once."""
        if not self._gone:
            self._gone = True
            self._screen.gone()

    def _show(self, now: Sample) -> None:
        self._screen.show(frame(self._before, now))
        self._before = now

    def _count(self, heard: Signal) -> None:
        from ..bus import paths

        name = paths.unescape(heard.path.rpartition("/")[2])
        (self._joins if heard.member == "PeerAdded" else self._leaves)[name] += 1


@click.command()
@click.option(
    "-d",
    "--delay",
    type=click.FloatRange(0.05),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between looks.",
)
@click.option("-n", "--iterations", type=click.IntRange(1), metavar="N", help="End after N looks. Default: never.")
@click.option("-b", "--batch", is_flag=True, help="Plain columns, one look below the other, on a terminal too.")
@table_option
@json_option
@pass_session
def top(session: Session, delay: float, iterations: int | None, batch: bool) -> None:
    r"""Show the load of regions, peers and devices, live, until q or Ctrl-C.

    Regions: how many peers there are, messages that wait for them, rings of the host peer per second, in all and by
    vector, joins and leaves per second. Peers: those that most waits for come first; in a relayed region, the rings
    that each made and that each was delivered per second. Devices: requests and bytes per
    second, what is in flight, kicks that came and interrupts that went, the busiest first. The daemon: its CPU,
    memory and descriptors. In other regions guests ring each other without the daemon, so those rings are not seen. The
    first look has no rates yet. If the daemon goes away, top waits for it.

    Into a pipe it prints plain columns; with --json, one object per line and look.

    \b
    Examples:
      doorbellctl top -d 0.5
      doorbellctl top --batch -n 2 -d 10                  the load of ten seconds
      doorbellctl top --json | jq '.regions.demo."rings-per-second"'
      doorbellctl top --json | jq '.devices.disk0."requests-per-second"'
    """
    from .lasting import Stopped, outlive, run_until_stopped

    async def on_terminal() -> None:
        task = asyncio.current_task()
        assert task is not None
        with FullScreen(delay, task) as screen:
            await run(screen, screen.leave)

    async def run(screen: JsonScreen | PlainScreen | FullScreen, make_way: Callable[[], None]) -> None:
        work = Top(screen, delay, iterations or 0)
        await outlive(session, work.watch, work.lose, make_way)

    async def elsewhere() -> None:
        await run(JsonScreen() if session.json else PlainScreen(), lambda: None)

    with contextlib.suppress(Stopped):
        run_until_stopped(elsewhere if batch or session.json or not sys.stdout.isatty() else on_terminal)
