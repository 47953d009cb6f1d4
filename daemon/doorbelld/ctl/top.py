# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command top: the load of regions and peers, again and again.

Each refresh costs the daemon one call (``Describe``); joins and leaves are counted from its signals. A `Sample` is
what was seen at one moment, `frame` puts two of them together into rates, and a `Screen` shows that: on the whole
terminal, in plain columns, or as a line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from . import tables
from .process import Usage, in_words, usage
from .session import Daemon, Session, json_option, pass_session, plural

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from ..bus.client import Client, Signal

_REGIONS = ("REGION", ">PEERS", ">BACKLOG", ">RINGS/S", "BY VECTOR", ">RINGS", ">JOINS/S", ">LEAVES/S")
_PEERS = ("REGION", ">PEER", "VM", ">PID", ">VECTORS", "SINCE", ">BACKLOG")
_NOT_YET = "-"


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at a moment: when (monotonic), of which daemon, and its joins and leaves heard of so far."""

    at: float
    owner: str
    pid: int
    known: dict[str, Any]
    usage: Usage | None
    joins: Counter[str]
    leaves: Counter[str]


def frame(before: Sample | None, now: Sample) -> dict[str, Any]:
    """Put two samples together: what there is *now*, and rates since *before*; rates are None without that."""
    seconds = None if before is None else now.at - before.at
    same = before is not None and before.owner == now.owner
    cpu = None
    if same and before is not None and before.usage and now.usage and seconds:
        cpu = round(100 * (now.usage.cpu - before.usage.cpu) / seconds, 1)
    regions = {}
    for name, region in now.known["regions"].items():
        totals = region["host-rings"]
        earlier = before.known["regions"].get(name, {}).get("host-rings", []) if before is not None else []
        rates: dict[str, Any] = {"rings-per-second": None, "joins-per-second": None, "leaves-per-second": None}
        if before is not None and seconds:
            rates = {
                "rings-per-second": [round(count / seconds, 1) for count in _since(earlier, totals)],
                "joins-per-second": round((now.joins[name] - before.joins[name]) / seconds, 1),
                "leaves-per-second": round((now.leaves[name] - before.leaves[name]) / seconds, 1),
            }
        regions[name] = {
            "vectors": region["vectors"],
            "max-peers": region["max-peers"],
            "backlog": sum(peer["backlog"] for peer in region["peers"]),
            "rings": totals,
            **rates,
            "peers": region["peers"],
        }
    return {
        "version": now.known["version"],
        "interval": None if seconds is None else round(seconds, 3),
        "pid": now.pid,
        "cpu-percent": cpu,
        "memory": now.usage.memory if now.usage else None,
        "descriptors": now.known["descriptors"],
        "regions": regions,
    }


def _since(before: Sequence[int], now: Sequence[int]) -> list[int]:
    """Give what was added to each total; one that went down, or is new, counts from nothing."""
    earlier = [*before, *[0] * len(now)][: len(now)]
    return [total - first if total >= first else total for first, total in zip(earlier, now, strict=True)]


def headline(made: dict[str, Any]) -> str:
    """Say how the daemon is."""
    peers = sum(len(region["peers"]) for region in made["regions"].values())
    cpu = _NOT_YET if made["cpu-percent"] is None else f"{made['cpu-percent']} %"
    memory = _NOT_YET if made["memory"] is None else in_words(made["memory"])
    used = made["descriptors"]
    return (
        f"doorbelld {made['version']}, pid {made['pid']}: CPU {cpu}, memory {memory}, "
        f"{used['in-use']} of {used['limit']} descriptors; {plural(len(made['regions']), 'region')}, "
        f"{plural(peers, 'peer')}"
    )


def region_rows(made: dict[str, Any]) -> Iterator[list[object]]:
    """Give the rows of the table of regions, the busiest first."""

    def busy(item: tuple[str, Any]) -> tuple[float, str]:
        return -sum(item[1]["rings-per-second"] or ()), item[0]

    for name, region in sorted(made["regions"].items(), key=busy):
        rates = region["rings-per-second"]
        by_vector = ", ".join(f"{vector}: {rate:g}" for vector, rate in enumerate(rates or ()) if rate)
        yield [
            *(name, len(region["peers"]), region["backlog"]),
            *(_NOT_YET if rates is None else f"{sum(rates):.1f}", by_vector or _NOT_YET, sum(region["rings"])),
            *(_rate(region["joins-per-second"]), _rate(region["leaves-per-second"])),
        ]


def _rate(value: float | None) -> object:
    return _NOT_YET if value is None else value


def peer_rows(made: dict[str, Any]) -> list[list[object]]:
    """Give the rows of the table of peers, those that most waits for first."""
    peers = [(name, peer) for name, region in made["regions"].items() for peer in region["peers"]]
    peers.sort(key=lambda item: (-item[1]["backlog"], item[0], item[1]["id"]))
    return [
        [name, p["id"], p["vm"] or _NOT_YET, p["pid"], p["vectors"], tables.when(p["since"]), p["backlog"]]
        for name, p in peers
    ]


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
        if made["regions"]:
            click.echo()
            tables.table(_REGIONS, region_rows(made))
        if rows := peer_rows(made):
            click.echo()
            tables.table(_PEERS, rows)
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
    """The whole terminal; what does not fit is cut off at the lower end. In ``with`` only: the end restores it."""

    def __init__(self, delay: float) -> None:
        from rich.console import Console
        from rich.live import Live

        self._delay = delay
        self._live = Live(
            console=Console(markup=False, emoji=False, highlight=False),
            screen=True,
            auto_refresh=False,
            vertical_overflow="crop",
        )
        self._last: dict[str, Any] | None = None

    def __enter__(self) -> FullScreen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

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
        from rich.text import Text

        parts: list[RenderableType] = [Text(f"{_clock()}  {words}", style=style)]
        if self._last is not None:
            parts += [Text(headline(self._last)), Text(), _grid(_REGIONS, region_rows(self._last))]
            peers = peer_rows(self._last)[: self._live.console.height]
            parts += [Text(), _grid(_PEERS, peers)] if peers else []
        self._live.update(Group(*parts), refresh=True)


def _grid(headings: Sequence[str], rows: Iterator[list[object]] | list[list[object]]) -> Table:
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold reverse")
    for place, heading in enumerate(headings):
        made.add_column(
            heading.removeprefix(tables.RIGHT),
            justify="right" if heading.startswith(tables.RIGHT) else "left",
            no_wrap=True,
            style=None if place else "cyan",
        )
    for row in rows:
        made.add_row(*map(str, row))
    return made


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
@json_option
@pass_session
def top(session: Session, delay: float, iterations: int | None, batch: bool) -> None:
    r"""Show the load of regions and peers, live, until q or Ctrl-C.

    Regions: how many peers there are, messages that wait for them, rings of the host peer per second, in all and by
    vector, joins and leaves per second. Peers: those that most waits for come first. The daemon: its CPU, memory and
    descriptors. Guests ring each other without the daemon, so those rings are not seen. The first look has no
    rates yet. If the daemon goes away, top waits for it.

    Into a pipe it prints plain columns; with --json, one object per line and look.

    \b
    Examples:
      doorbellctl top -d 0.5
      doorbellctl top --batch -n 2 -d 10                  the load of ten seconds
      doorbellctl top --json | jq '.regions.demo."rings-per-second"'
    """
    from .lasting import Stopped, outlive, run_until_stopped

    async def on_terminal() -> None:
        task = asyncio.current_task()
        assert task is not None
        with FullScreen(delay) as screen, _keys(task):
            await run(screen)

    async def run(screen: JsonScreen | PlainScreen | FullScreen) -> None:
        work = Top(screen, delay, iterations or 0)
        await outlive(session.bus, work.watch, work.lose)

    async def elsewhere() -> None:
        await run(JsonScreen() if session.json else PlainScreen())

    with contextlib.suppress(Stopped):
        run_until_stopped(elsewhere if batch or session.json or not sys.stdout.isatty() else on_terminal)
