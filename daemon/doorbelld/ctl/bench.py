# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command bench: how fast rings, D-Bus calls and shared memory are on this machine, through the running daemon.

Theory of operation
-------------------
Two peers join a region. One rings the other as fast as it can; D-Bus rings it; memory is copied through the mapping.
Then the other one moves to a process of its own (fork) and rings back, and round trips are timed. What is written to
memory, or may disturb who is there, is done in a region that is made for it and removed afterwards.

All of it is measured as a host process in Python sees it: it is what a user of `Client` gets, and an upper bound of
the way itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import click

from ..bus.client import options
from . import tables
from .arguments import complete_region
from .child import SIGNALLED
from .joining import Attachment, join
from .layout import Shape
from .ping import answer, microseconds, percentile, round_trip
from .session import Daemon, Refused, Session, json_option, pass_session

IN_FLIGHT = 32
"""D-Bus calls at once."""
_SIZE = "16M"
_BLOCK = 1 << 24  # more than what caches near the processor hold
_BURST = 1000
_LOST_SECONDS = 5.0
"""Without an answer for so long, the other process is not there any more."""
_GIGA = 1e9


class Progress:
    """Says on the terminal what is being measured, while it is."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def say(self, words: str) -> None:
        """Put *words* in the place of those before."""
        if self._shown:
            click.echo(f"\r\x1b[K{words}", nl=False, err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.say("")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two peers of a region, both ours."""

    ours: Attachment
    theirs: Attachment

    @property
    def target(self) -> int:
        """The ID of the one that is rung."""
        return self.theirs.client.id


@contextlib.contextmanager
def pair_in(session: Session, region: str) -> Iterator[Pair]:
    """Have two peers in *region* for the body.

    Raises:
        Refused: the region does not take two of us, or its rules keep us from ringing each other.
    """

    async def enter(daemon: Daemon) -> Pair:
        theirs = await join(daemon, region)
        try:
            return Pair(await join(daemon, region), theirs)
        except BaseException:
            theirs.client.close()
            raise

    pair = session.run(enter)
    with pair.ours.client as ours, pair.theirs.client as theirs:
        known = pair.ours.whole(theirs.id)  # who came before us, and may be rung, is known at once
        if known:
            with contextlib.suppress(TimeoutError):
                theirs.wait_for(lambda: pair.theirs.whole(ours.id), timeout=_LOST_SECONDS)
        if not known or not pair.theirs.whole(ours.id):
            raise Refused(
                f'the rules of region "{region}" (may-ring) keep two peers of ours from ringing each other; '
                "leave REGION out, for a region of its own"
            )
        yield pair


def rings(pair: Pair, seconds: float) -> float:
    """Ring as fast as can be; gives rings a second."""
    notify, target = pair.ours.client.notify, pair.target
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        for _ in range(_BURST):
            notify(target, 0)
        count += _BURST
    return count / taken


def round_trips(pair: Pair, seconds: float) -> dict[str, Any]:
    """Ring the other one, which moves to a process of its own, and be rung back; gives a summary of the times.

    Raises:
        Refused: the other process does not answer.
    """
    target = pair.target
    pid = os.fork()
    if pid == 0:
        _answer(pair)
    try:
        pair.theirs.client.close()
        times: list[int] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or not times:
            taken = round_trip(pair.ours.client, target, 0, _LOST_SECONDS)
            if taken is None:
                raise Refused(f"the second process did not ring back within {_LOST_SECONDS:g} s; is the machine busy?")
            times.append(taken)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return summary(times)


def _answer(pair: Pair) -> None:
    """Be the second process: ring back until the first one leaves, however it ends; returns never."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the first process, which ends us
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        theirs, ours = pair.theirs.client, pair.ours.client.id
        pair.ours.client.close()
        while ours in theirs.peers:
            answer(theirs, ours)
    finally:
        os._exit(0)


def copies(pair: Pair, seconds: float, *, into: bool) -> float:
    """Copy a block through the mapping, *into* it or out of it; gives bytes a second."""
    mapped = memoryview(pair.ours.client.memory)
    size = min(len(mapped), _BLOCK)
    block = memoryview(bytearray(size))
    source, target = (block, mapped[:size]) if into else (mapped[:size], block)
    target[:] = source  # pages are there from now on
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        target[:] = source
        count += size
    return count / taken


async def notifies(daemon: Daemon, region: str, peer_id: int, seconds: float) -> dict[str, Any]:
    """Call Notify over D-Bus: for one half of the time one after the other, for the other `IN_FLIGHT` at once."""
    times: list[int] = []
    end = time.perf_counter() + seconds / 2
    while time.perf_counter() < end or not times:
        start = time.perf_counter_ns()
        await daemon.call_region(region, "Notify", "qq", peer_id, 0)
        times.append(time.perf_counter_ns() - start)
    begin, count = time.perf_counter(), 0

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() - begin < seconds / 2:
            await daemon.call_region(region, "Notify", "qq", peer_id, 0)
            count += 1

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return {"per-second": round(count / (time.perf_counter() - begin)), **summary(times)}


def summary(times: list[int]) -> dict[str, Any]:
    """Sum up times in nanoseconds."""
    ordered = sorted(times)
    return {
        "count": len(ordered),
        "min-us": microseconds(ordered[0]),
        "p50-us": microseconds(percentile(ordered, 0.5)),
        "p99-us": microseconds(percentile(ordered, 0.99)),
    }


class Bench:
    """One run of the command, of *seconds* in all: in *region*, or (empty) in regions of its own."""

    def __init__(self, session: Session, region: str, seconds: float, progress: Progress) -> None:
        self._session = session
        self._region = region
        self._seconds = seconds
        self._say = progress.say

    def run(self) -> dict[str, Any]:
        """Measure all there is to measure; gives what JSON shows."""
        relayed = bool(self._region) and self._is_relayed(self._region)
        made: dict[str, Any] = {"region": self._region or None}
        made.update(dict.fromkeys(("relayed", "relay-skipped", "relay-us")))
        named = "" if relayed else self._region
        with self._a_region(named, relay=False) as direct:
            made.update(self._direct(direct, own=not named))
        if named:
            return {**made, "relay-skipped": f'region "{named}" is not relayed'}
        with contextlib.ExitStack() as stack:
            try:
                name = stack.enter_context(self._a_region(self._region, relay=True))
            except Refused as error:
                return {**made, "relay-skipped": str(error)}
            self._say("rings through the relay")
            with pair_in(self._session, name) as pair:
                made["relayed"] = self._bells(pair)
        longer = made["relayed"]["round-trip"]["p50-us"] - made["direct"]["round-trip"]["p50-us"]
        made["relay-us"] = round(longer / 2, 1)
        return made

    def _is_relayed(self, name: str) -> bool:
        async def look(daemon: Daemon) -> bool:
            return bool((await daemon.region(name)).get("relay"))

        return self._session.run(look)

    @contextlib.contextmanager
    def _a_region(self, name: str, *, relay: bool) -> Iterator[str]:
        """Give the region *name*, or (empty) one that is there for the body only."""
        if name:
            yield name
            return
        made = f"bench-{os.getpid()}{'-relay' * relay}"
        asked = options({"size": _SIZE, "vectors": 1, **({"relay": True} if relay else {})})
        self._session.run(lambda daemon: daemon.call("CreateRegion", "sa{sv}", made, asked))
        try:
            yield made
        finally:
            self._session.run(lambda daemon: daemon.call("RemoveRegion", "s", made))

    def _direct(self, region: str, *, own: bool) -> dict[str, Any]:
        share = self._seconds / 8
        with pair_in(self._session, region) as pair:
            self._say("D-Bus calls")
            target = pair.target
            notify = self._session.run(lambda daemon: notifies(daemon, region, target, 2 * share))
            self._say("memory")
            memory = {
                "out-per-second": round(copies(pair, share / 2, into=False)),
                "in-per-second": round(copies(pair, share / 2, into=True)) if own else None,
            }
            self._say("rings")
            return {"direct": self._bells(pair), "notify": notify, "memory": memory}

    def _bells(self, pair: Pair) -> dict[str, Any]:
        share = self._seconds / 8
        return {"rings-per-second": round(rings(pair, share)), "round-trip": round_trips(pair, 1.5 * share)}


def rows(made: dict[str, Any]) -> Iterator[list[object]]:
    """Make the rows of the table."""
    ways = (("direct", ""), ("relayed", ", relayed"))
    for key, how in ways:
        if made[key]:
            rate = f"{made[key]['rings-per-second']:,}/s"
            yield [f"ring, by Client.notify{how}", rate, "", "", ""]
    for key, how in ways:
        if made[key]:
            trip = made[key]["round-trip"]
            yield [f"ring and be rung back{how}", "", trip["min-us"], trip["p50-us"], trip["p99-us"]]
    call = made["notify"]
    yield ["D-Bus Notify, one at a time", "", call["min-us"], call["p50-us"], call["p99-us"]]
    yield [f"D-Bus Notify, {IN_FLIGHT} at once", f"{call['per-second']:,}/s", "", "", ""]
    for key, where in (("in-per-second", "into"), ("out-per-second", "out of")):
        if rate := made["memory"][key]:
            yield [f"copy {where} the shared memory", f"{rate / _GIGA:.1f} GB/s", "", "", ""]


@contextlib.contextmanager
def _sigterm_cleans_up() -> Iterator[None]:
    """Have SIGTERM raise SystemExit, which no event loop keeps to itself, so that what was made is removed."""

    def stop(number: int, _: FrameType | None) -> None:
        sys.exit(SIGNALLED + number)

    before: Callable[[int, FrameType | None], Any] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command()
@click.argument("region", required=False, default="", shell_complete=complete_region)
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=4.0, metavar="S", help="In all. Default: 4.")
@json_option
@pass_session
def bench(session: Session, region: str, seconds: float) -> None:
    r"""Measure on this machine, in seconds, what a host process gets: rings, round trips, D-Bus calls, memory.

    Two peers join a region of their own, which is removed afterwards; and then one that is relayed, to tell what the
    relay adds to a ring. With REGION they join that one: the guests there see two peers come and go, its memory is read
    and not written, and a relayed one is compared with a region of our own that is not.

    A round trip is two rings between two processes, each of which waits in poll. A rate without times is one after
    the other, as fast as one process can.

    \b
    Examples:
      doorbellctl bench
      doorbellctl bench demo --seconds 10 --json
    """
    try:
        with _sigterm_cleans_up(), Progress() as progress:
            made = Bench(session, region, seconds, progress).run()
    except KeyboardInterrupt:
        sys.exit(SIGNALLED + signal.SIGINT)
    if session.json:
        session.emit(made)
        return
    tables.table(Shape(("WHAT", ">RATE", ">MIN US", ">MEDIAN US", ">99 % US")), rows(made))
    if made["relay-us"] is not None:
        click.echo(f"\nThe relay adds {made['relay-us']} us to a ring, at the median.")
    elif not region:
        click.echo(f"\nNo relayed region was measured: {made['relay-skipped']}")
