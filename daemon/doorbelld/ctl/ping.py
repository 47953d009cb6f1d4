# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands ping and echo: how long a ring takes to somebody who rings back, and somebody who does.

Theory of operation
-------------------
A ring says neither who rang nor why. So a peer that rings back does so at the vector that it was rung at, and what
rings us there while we wait is the answer. What comes too late is thrown away before the next ring goes out.

Both wait in `Client.poll` and not in an event loop, so what is measured is the way there and back, two wake-ups and two
turns of this loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from ..errors import DoorbellError, NoSuchPeer
from ..ivshmem.client import Client, Rung
from .arguments import complete_peer, complete_vector, region_argument
from .joining import Attachment, Command, Duration, join
from .session import UINT16_MAX, Daemon, Refused, Session, json_option, pass_session, plural


def percentile(ordered: Sequence[int], share: float) -> int:
    """Give the smallest of *ordered* that at least *share* of them don't exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def microseconds(nanoseconds: float) -> float:
    """Give a time in microseconds, for people and JSON."""
    return round(nanoseconds / 1000, 1)


@dataclass(slots=True)
class Tally:
    """What came of the pings so far; times in nanoseconds."""

    sent: int = 0
    times: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Sum up, as JSON has it; times are None if nothing came back."""
        ordered = sorted(self.times)
        found = {"min": 0.0, "avg": 0.0, "p99": 0.0, "max": 0.0}
        if ordered:
            average = sum(ordered) / len(ordered)
            found = {"min": ordered[0], "avg": average, "p99": percentile(ordered, 0.99), "max": ordered[-1]}
        return {
            "sent": self.sent,
            "answered": len(ordered),
            "lost": self.sent - len(ordered),
            **{f"{name}-us": microseconds(value) if ordered else None for name, value in found.items()},
        }


def round_trip(client: Client, peer_id: int, vector: int, timeout: float) -> int | None:
    """Ring a peer, and give the nanoseconds until it rings back; None if it does not within *timeout* seconds.

    Raises:
        NoSuchPeer, NoSuchVector: nobody is there to be rung, or they leave meanwhile.
        ServerClosed, ProtocolBroken, LimitExceeded: the connection ended.
    """
    client.handle_fds()  # what came too late
    start = time.perf_counter_ns()
    client.notify(peer_id, vector)
    deadline, left = start + int(timeout * 1e9), timeout
    while left > 0:
        events = client.poll(left)
        now = time.perf_counter_ns()
        if any(isinstance(event, Rung) and event.vector == vector for event in events):
            return now - start
        client.search_peer(peer_id)  # whoever has left won't answer
        left = (deadline - now) / 1e9
    return None


class Ping:
    """One run of the command."""

    def __init__(
        self, joined: Attachment, peer_id: int, vector: int, timeout: float, say: Callable[[str], None]
    ) -> None:
        self.tally = Tally()
        self._joined = joined
        self._peer = peer_id
        self._vector = vector
        self._timeout = timeout
        self._say = say

    def run(self, count: int, interval: float) -> None:
        """Ping *count* times (0: without end), one every *interval* seconds.

        Raises:
            DoorbellError: the peer left, or the region ended.
        """
        client = self._joined.client
        self._say(f"PING {self._joined.region}: peer {self._peer}, vector {self._vector}; we are peer {client.id}")
        due = time.monotonic()
        while True:
            self.tally.sent += 1
            self._tell(round_trip(client, self._peer, self._vector, self._timeout))
            if self.tally.sent == count:
                return
            due = max(due + interval, time.monotonic())
            while (left := due - time.monotonic()) > 0:
                client.poll(left)

    def _tell(self, taken: int | None) -> None:
        if taken is not None:
            self.tally.times.append(taken)
            self._say(f"answer from peer {self._peer}: seq={self.tally.sent} time={microseconds(taken)} us")
            return
        self._say(f"no answer from peer {self._peer}: seq={self.tally.sent}, within {self._timeout:g} s")
        if self.tally.sent == 1:
            click.echo(f"doorbellctl: {unanswered(self._joined.region, self._peer)}", err=True)


def unanswered(region: str, peer_id: int) -> str:
    """Say what it takes to be answered."""
    return (
        f"peer {peer_id} does not ring back; an echo peer rings whoever rang it, at the same vector: to start one "
        f"here, doorbellctl echo {region}; in a guest, have its driver answer so"
    )


async def _find(daemon: Daemon, joined: Attachment, word: str) -> int:
    """Find the peer that *word* means; Refused if it is not there."""
    peer_id = await daemon.peer_id(joined.region, word)
    if peer_id not in joined.client.peers:
        there = ", ".join(map(str, sorted(joined.guests()))) or "nobody else"
        raise Refused(f'region "{joined.region}" has no peer {peer_id}; there is: {there}')
    return peer_id


def _join(session: Session, region: str, word: str) -> tuple[Attachment, int | None]:
    """Join *region*, and find the peer that *word* means, if it is not empty."""

    async def work(daemon: Daemon) -> tuple[Attachment, int | None]:
        joined = await join(daemon, region)
        try:
            return joined, await _find(daemon, joined, word) if word else None
        except BaseException:
            joined.client.close()
            raise

    return session.run(work)


@click.command(cls=Command)
@region_argument
@click.argument("peer", shell_complete=complete_peer)
@click.option(
    "-c", "--count", type=click.IntRange(0), default=0, metavar="N", help="Stop after N rings. Default: Ctrl-C."
)
@click.option(
    "--vector",
    type=click.IntRange(0, UINT16_MAX),
    default=0,
    metavar="V",
    shell_complete=complete_vector,
    help="Ring and listen there. Default: 0.",
)
@click.option("-i", "--interval", type=Duration(), default="1s", metavar="TIME", help="Between rings. Default: 1s.")
@click.option("-q", "--quiet", is_flag=True, help="Only sum up at the end.")
@click.option("--timeout", type=Duration(), default="1s", metavar="TIME", help="For each answer. Default: 1s.")
@json_option
@pass_session
@click.pass_context
def ping(
    ctx: click.Context,
    session: Session,
    region: str,
    peer: str,
    count: int,
    vector: int,
    interval: float,
    timeout: float,
    quiet: bool,
) -> None:
    r"""Measure the way to PEER and back: join REGION, ring PEER, and wait until it rings back.

    PEER is an ID or the name of a VM. It must ring back whoever rings it, at the same vector: doorbellctl echo does, on
    any host process's behalf, and a driver in a guest may. Who rang can't be known, so choose a vector at which
    nobody else rings us. The host peer answers nobody.

    The time is from before the ring until we have heard the answer, so two rings and the wake-ups on both sides.

    \b
    Examples:
      doorbellctl echo demo &
      doorbellctl ping demo 3
      doorbellctl ping demo guest1 --vector 1 -q -c 1000 -i 0

    \b
    Exit status:
      0    an answer came
      1    none did; or refused, or the peer left
    """
    if not timeout:
        raise click.BadParameter("an answer takes some time; write one such as 1s", param_hint="--timeout")
    joined, peer_id = _join(session, region, peer)
    assert peer_id is not None
    with joined.client:
        if peer_id == joined.host:
            raise Refused(
                f'peer {peer_id} is the host peer of region "{region}": the daemon counts its rings, and answers none; '
                f"doorbellctl echo {region} starts a peer that rings back"
            )
        if vector >= len(joined.client.doorbells[peer_id]):
            raise Refused(f'region "{region}": {joined.client.missing(peer_id, vector)}')
        silent = session.json or quiet
        trip = Ping(joined, peer_id, vector, timeout, (lambda words: None) if silent else click.echo)
        reason = ""
        try:
            trip.run(count, interval)
        except KeyboardInterrupt:
            pass
        except NoSuchPeer:
            reason = f"peer {peer_id} left"
        except DoorbellError as error:
            reason = str(error)
        if reason:
            trip.tally.sent -= 1  # the last one was not lost: there was nobody any more to answer
        _sum_up(session, joined, peer_id, vector, trip.tally.summary())
    if reason:
        raise Refused(f'region "{region}": {reason}')
    if not trip.tally.times:
        ctx.exit(1)


def _sum_up(session: Session, joined: Attachment, peer_id: int, vector: int, found: dict[str, Any]) -> None:
    if session.json:
        session.emit({"region": joined.region, "peer": peer_id, "vector": vector, **found})
        return
    share = f" ({100 * found['lost'] / found['sent']:.3g} %)" if found["sent"] else ""
    click.echo(f"\n--- {joined.region}: peer {peer_id}, vector {vector}")
    click.echo(f"{plural(found['sent'], 'ring')}, {plural(found['answered'], 'answer')}, {found['lost']:,} lost{share}")
    if found["answered"]:
        times = "/".join(str(found[f"{name}-us"]) for name in ("min", "avg", "p99", "max"))
        click.echo(f"min/avg/p99/max = {times} us")


def answer(client: Client, peer_id: int | None, host: int | None = None) -> int:
    """Wait until somebody rings, and ring *peer_id* (None: everybody else but the *host* peer) at the same vectors.

    Rings of a vector that came together are answered once. Somebody who is not there is not rung.

    Returns:
        How many vectors were answered.

    Raises:
        ServerClosed, ProtocolBroken, LimitExceeded: the connection ended.
    """
    answered = 0
    for event in client.poll():
        if isinstance(event, Rung):
            everybody = [other for other in client.peers if other != host]
            for target in everybody if peer_id is None else (peer_id,):
                if event.vector < len(client.doorbells.get(target, ())):
                    client.notify(target, event.vector)
            answered += 1
    return answered


class LoopGuess:
    """Tells a loop by how often rings come: two peers that answer every ring, ring each other without end."""

    _RATE = 1000.0
    """Rings a second that nobody makes by hand for long."""
    _SECONDS = 3.0

    def __init__(self, now: float) -> None:
        self._begin = now
        self._count = 0
        self._told = False

    def see(self, answered: int, now: float) -> float:
        """Count rings that were answered; gives how many there are a second, once, when they look like a loop."""
        self._count += answered
        seconds = now - self._begin
        if self._told or seconds < self._SECONDS:
            return 0.0
        rate = self._count / seconds
        self._begin, self._count = now, 0
        self._told = rate >= self._RATE
        return rate if self._told else 0.0


def _loop(client: Client, host: int | None, rate: float) -> str:
    """Say that it looks like a loop, and what ends it."""
    others = [peer for peer in client.peers if peer != host]
    who = f"peer {others[0]} rings" if len(others) == 1 else "somebody rings"
    return (
        f"{who} {rate:,.0f} times a second; a loop? Another peer that answers every ring is answered by us without "
        "end: stop one of the two, or say with --to whom to ring"
    )


@click.command(cls=Command)
@region_argument
@click.option("--to", metavar="PEER", default="", shell_complete=complete_peer, help="Ring PEER only.")
@json_option
@pass_session
def echo(session: Session, region: str, to: str) -> None:
    r"""Join REGION and ring back: whoever rings one of our vectors is rung at the same one, until Ctrl-C.

    A ring does not say who rang, so everybody else is rung, or PEER (an ID, or the name of a VM) with --to. Two of
    these in one region without --to answer each other without end; one that is rung that often says so. Rings that come
    together are answered once. The
    host peer, which answers nobody, is rung by --to host only.

    \b
    Examples:
      doorbellctl echo demo
      doorbellctl echo demo --to guest1

    \b
    Exit status:
      0    Ctrl-C
      1    refused, or the region ended
    """
    joined, peer_id = _join(session, region, to)
    answered = 0
    with joined.client as client:
        whom = "everybody else" if peer_id is None else f"peer {peer_id}"
        if session.json:
            session.emit({"region": region, "peer": client.id, "vectors": joined.vectors, "to": peer_id})
        else:
            click.echo(f"peer {client.id} of {region} rings {whom} back; Ctrl-C ends it")
            click.echo(f"try: doorbellctl ping {region} {client.id}")
        guess = LoopGuess(time.monotonic())
        try:
            while True:
                count = answer(client, peer_id, joined.host)
                answered += count
                if rate := guess.see(count, time.monotonic()):
                    click.echo(f"doorbellctl: {_loop(client, joined.host, rate)}", err=True)
        except KeyboardInterrupt:
            click.echo(f"answered {plural(answered, 'ring')}", err=True)
        except DoorbellError as error:
            raise Refused(f'region "{region}": {error}') from None
