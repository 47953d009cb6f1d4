# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command selftest: simulated peers go the whole way through the running daemon, and each step is told.

A step is a coroutine of `Trial` that returns what it found, or raises `StepFailed` with what is wrong and where to
look. The steps build on each other, so the first failure is the last step.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import click

from ..bus import paths
from ..bus.client import CallFailed, Match, Subscription, options
from ..bus.names import REGION
from ..errors import BusUnavailable, DoorbellError, ServerUnavailable
from ..ivshmem.aioclient import AsyncClient
from ..ivshmem.spec import in_units
from .arguments import complete_region
from .devicetrial import DeviceFailed, DeviceTrial
from .session import Daemon, Session, json_option, pass_session, plural

SECONDS = 3.0
"""How long a step waits for what must come."""
STEP_SECONDS = 20.0
"""How long a step may take as a whole."""
ROUNDS = 300
_NAME = "selftest"
_SIZE = 1 << 16
_VECTORS = 2


class StepFailed(Exception):
    """A step went wrong: the message says what, *look* where to look."""

    def __init__(self, what: str, look: str) -> None:
        super().__init__(what)
        self.look = look


@dataclass(frozen=True, slots=True)
class Result:
    """How a step ended."""

    step: str
    ok: bool
    found: str
    look: str = ""

    def show(self) -> None:
        """Print it."""
        mark = click.style("ok    ", fg="green") if self.ok else click.style("FAILED", fg="red", bold=True)
        click.echo(f"{mark}  {self.step}: {self.found}")
        if self.look:
            click.echo(f"        look at: {self.look}")


class Trial:
    """One self-test: in region *name* if there is one, else in a region of its own."""

    def __init__(self, daemon: Daemon, name: str) -> None:
        self.latency: dict[str, dict[str, float]] = {}
        self._daemon = daemon
        self._own_region = not name
        self._name = name or f"{_NAME}-{os.getpid()}"
        self._region: dict[str, Any] = {}
        self._peers: dict[str, AsyncClient] = {}
        self._last_ring = 0.0  # when one was taken, in seconds of `time.perf_counter`
        self._signals: Subscription | None = None
        self._heard: list[tuple[str, list[Any]]] = []
        self._stirred = asyncio.Event()

    async def run(self, report: Callable[[Result], None]) -> bool:
        """Take the steps, in order, until one fails; what was made is removed again, whatever happens."""
        steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("region", self._make),
            ("socket", self._connect_two),
            ("attach", self._attach_one),
            ("notify", self._notify),
            ("peer to peer", self._peer_to_peer),
            ("peer to host", self._peer_to_host),
            ("memory", self._memory),
            ("latency", self._measure),
            ("leave", self._leave),
            ("end", self._end),
            *([("device", self._device)] if self._own_region else []),
        ]
        try:
            for step, take in steps:
                try:
                    async with asyncio.timeout(STEP_SECONDS):
                        found = await take()
                    report(Result(step, True, found))
                except TimeoutError:
                    report(Result(step, False, f"it was not done in {STEP_SECONDS:g} s", "the daemon's log and load"))
                    return False
                except StepFailed as failure:
                    report(Result(step, False, str(failure), failure.look))
                    return False
                except CallFailed as error:
                    look = "who you are (root, or the daemon's user), and the daemon's log"
                    report(Result(step, False, error.text, look))
                    return False
        finally:
            await self._clean_up()
        return True

    async def _clean_up(self) -> None:
        for peer in self._peers.values():
            peer.close()
        with contextlib.suppress(CallFailed, BusUnavailable):
            if self._signals is not None:
                await self._signals.close()
            if self._own_region and self._region:
                await self._daemon.call("RemoveRegion", "s", self._name, timeout=SECONDS)

    # The steps

    async def _make(self) -> str:
        if self._own_region:
            asked = options({"size": _SIZE, "vectors": _VECTORS})
            await self._daemon.call("CreateRegion", "sa{sv}", self._name, asked)
        self._region = await self._daemon.region(self._name)
        match = Match(path=paths.region(self._name), interface=REGION)
        self._signals = await self._daemon.client.subscribe(match, callback=self._hear)
        made = "made" if self._own_region else "found"
        what = f"{in_units(self._region['size'])}, {plural(self._vectors, 'vector')}"
        return f"{self._name} {made} ({what}, {self._region['socket']})"

    async def _connect_two(self) -> str:
        path = self._region["socket"]
        for name in ("A", "B"):
            self._peers[name] = AsyncClient(path, reconnect=False, **self._options)
            try:
                await self._peers[name].connect(SECONDS)
            except ServerUnavailable as error:
                raise StepFailed(str(error), self._socket_facts()) from None
            except DoorbellError as error:
                raise StepFailed(f"{name} was turned away: {error}", self._rule_facts()) from None
            await self._greeted(name)
        await self._all_know_all()
        return f"peers A (ID {self._id('A')}) and B (ID {self._id('B')}) were greeted and know each other"

    async def _attach_one(self) -> str:
        import socket

        fd = await self._daemon.call_region(self._name, "Attach", "a{sv}", {})
        sock = socket.socket(fileno=fd.steal())
        try:
            self._peers["C"] = await AsyncClient.adopt(sock, timeout=SECONDS, **self._options)
        except DoorbellError as error:
            raise StepFailed(f"C was not greeted: {error}", "the daemon's log and load") from None
        await self._greeted("C")
        await self._all_know_all()
        return f"peer C (ID {self._id('C')}) joined over D-Bus, and A and B were told"

    async def _notify(self) -> str:
        for name, peer in self._peers.items():
            for vector in range(self._vectors):
                await self._daemon.call("Notify", "sqq", self._name, peer.id, vector)
                await self._rung(name, vector, 1, "D-Bus Notify")
        return f"D-Bus Notify rang {plural(self._vectors, 'vector')} of A, B and C, each once"

    async def _peer_to_peer(self) -> str:
        last = self._vectors - 1
        self._peers["A"].notify(self._id("B"), last)
        await self._rung("B", last, 2, "A's ring")
        self._peers["B"].notify(self._id("C"), 0)
        await self._rung("C", 0, 2, "B's ring")
        return "A rang B and B rang C, past the daemon"

    async def _peer_to_host(self) -> str:
        if not self._region["host-peer"]:
            return "skipped: the region has no host peer"
        host = int(self._region["host-peer-id"])
        if not await self._knows("B", host):
            raise StepFailed(f"B was not given the doorbells of the host peer {host}", self._rule_facts())
        self._peers["B"].notify(host, self._vectors - 1)
        if not await self._hears(lambda member, body: member == "Rung" and body[0] == self._vectors - 1):
            raise StepFailed("B rang the host, and no signal Rung came", "the daemon's log; the policy of the bus")
        return f"B rang the host peer ({host}), and D-Bus told with the signal Rung"

    async def _memory(self) -> str:
        a, b, c = (peer.memory for peer in self._peers.values())
        if self._own_region:
            a[:5], b[-3:] = b"hello", b"end"
        head, tail = c[:16], c[-16:]
        size = int(self._region["size"])
        seen_head = bytes(await self._daemon.call_region(self._name, "ReadMemory", "tu", 0, 16))
        seen_tail = bytes(await self._daemon.call_region(self._name, "ReadMemory", "tu", size - 16, 16))
        if len({len(a), len(b), len(c), size}) != 1:
            raise StepFailed(f"the memory is {len(a)} bytes long, not {size}", "the region's backing")
        if self._own_region and (head[:5] != b"hello" or tail[-3:] != b"end"):
            raise StepFailed("C does not see what A and B wrote", "the region's backing: is it shared?")
        if self._own_region and (head, tail) != (seen_head, seen_tail):
            raise StepFailed("D-Bus reads something else than the peers", "the region's backing: is it shared?")
        did = "C and D-Bus read what A and B wrote" if self._own_region else "mapped and read, nothing written"
        return f"{did} ({in_units(size)})"

    async def _measure(self) -> str:
        through_bus = [await self._time_notify() for _ in range(ROUNDS)]
        direct = [await self._time_ring() for _ in range(ROUNDS)]
        self.latency = {"notify": _summary(through_bus), "ring": _summary(direct)}
        bus, ring = self.latency["notify"], self.latency["ring"]
        return (
            f"D-Bus Notify {bus['median_us']:.0f} us, eventfd {ring['median_us']:.0f} us until the peer wakes "
            f"(99 %: {bus['p99_us']:.0f} us, {ring['p99_us']:.0f} us)"
        )

    async def _leave(self) -> str:
        gone = self._id("C")
        self._peers["C"].close()
        for name in ("A", "B"):
            peer = self._peers[name]
            if not await _until(peer, lambda peer=peer: gone not in peer.peers):  # type: ignore[misc]
                raise StepFailed(f"{name} was not told that C left", "the daemon's log")
        if not await self._hears(lambda member, body: member == "PeerRemoved" and body[0] == gone):
            raise StepFailed("no signal PeerRemoved came for C", "the daemon's log; the policy of the bus")
        return "C left; A, B and D-Bus were told"

    async def _end(self) -> str:
        if not self._own_region:
            return f"A and B leave; {self._name} is as it was"
        await self._daemon.call("RemoveRegion", "s", self._name)
        path, self._region = self._region["socket"], {}
        for name in ("A", "B"):
            peer = self._peers[name]
            if not await _until(peer, lambda peer=peer: not peer.connected):  # type: ignore[misc]
                raise StepFailed(f"the region is removed, and {name} is still connected", "the daemon's log")
        if os.path.exists(path):
            raise StepFailed(f"the region is removed, and {path} is still there", "who may write to its directory")
        return f"{self._name} removed; A and B were disconnected, the socket is gone"

    async def _device(self) -> str:
        trial = DeviceTrial(self._daemon, self._name)
        try:
            found = await trial.run()
        except DeviceFailed as failure:
            look = f"{self._name} in the daemon's log; who may write to the runtime directory"
            raise StepFailed(str(failure), look) from failure
        self.latency["request"] = _summary(trial.latency)
        return found

    # What the steps need

    @property
    def _vectors(self) -> int:
        return int(self._region["vectors"])

    @property
    def _options(self) -> dict[str, Any]:
        return {"notified": self._note_ring, "vectors_max": self._vectors, "quiet": 0}

    def _id(self, name: str) -> int:
        return self._peers[name].id

    def _note_ring(self, _peer: AsyncClient, _vector: int, _count: int) -> None:
        self._last_ring = time.perf_counter()

    def _hear(self, heard: Any) -> None:
        self._heard.append((heard.member, heard.body))
        self._stirred.set()

    async def _hears(self, wanted: Callable[[str, list[Any]], bool]) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SECONDS):
                while not any(wanted(member, body) for member, body in self._heard):
                    self._stirred.clear()
                    await self._stirred.wait()
                return True
        return False

    async def _greeted(self, name: str) -> None:
        peer = self._peers[name]
        if not await _until(peer, lambda: peer.vectors == self._vectors):
            have = f"{plural(peer.vectors, 'doorbell')} of {self._vectors}"
            raise StepFailed(f"{name} was not greeted in {SECONDS:g} s (so far: {have})", "the daemon's log and load")

    async def _knows(self, name: str, peer_id: int) -> bool:
        """Whether a peer is given all doorbells of another."""
        peer = self._peers[name]
        return await _until(peer, lambda: len(peer.doorbells.get(peer_id, ())) == self._vectors)

    async def _all_know_all(self) -> None:
        for name in self._peers:
            for other in self._peers:
                if not await self._knows(name, self._id(other)):
                    raise StepFailed(f"{name} was not given the doorbells of {other}", self._rule_facts())

    async def _rung(self, name: str, vector: int, count: int, what: str) -> None:
        peer = self._peers[name]
        if not await _until(peer, lambda: peer.rings[vector] == count):
            seen = f"it took {plural(peer.rings[vector], 'ring')} there, not {count}"
            raise StepFailed(f"{what} did not reach {name}'s vector {vector}: {seen}", "the daemon's log and load")

    async def _time_notify(self) -> float:
        peer = self._peers["A"]
        wanted, start = peer.rings[0] + 1, time.perf_counter()
        call = self._daemon.call("Notify", "sqq", self._name, peer.id, 0)
        await asyncio.gather(call, self._rung("A", 0, wanted, "D-Bus Notify"))
        return self._last_ring - start

    async def _time_ring(self) -> float:
        peer = self._peers["A"]
        wanted, start = peer.rings[0] + 1, time.perf_counter()
        self._peers["B"].notify(peer.id, 0)
        await self._rung("A", 0, wanted, "B's ring")
        return self._last_ring - start

    def _socket_facts(self) -> str:
        path = self._region["socket"]
        me = pwd.getpwuid(os.geteuid()).pw_name if _known(pwd.getpwuid, os.geteuid()) else str(os.geteuid())
        try:
            found = os.stat(path)
        except OSError as error:
            return f"{path} ({error.strerror}): the region's socket, and the directories above it"
        group = grp.getgrgid(found.st_gid).gr_name if _known(grp.getgrgid, found.st_gid) else str(found.st_gid)
        return f"{path} is of uid {found.st_uid}, group {group}, mode {found.st_mode & 0o7777:04o}; you are {me}"

    def _rule_facts(self) -> str:
        return f"the rules of the region ([[region.{self._name}.peer]]: match, may-ring), max-peers, the daemon's log"


async def _until(peer: AsyncClient, condition: Callable[[], bool]) -> bool:
    """Wait until *condition* holds; False if it does not in time, or the connection is over."""
    with contextlib.suppress(TimeoutError, DoorbellError):
        await peer.wait_for(condition, SECONDS)
    return condition()


def _known(look_up: Callable[[int], object], number: int) -> bool:
    try:
        look_up(number)
    except KeyError:
        return False
    return True


def _summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "median_us": round(statistics.median(ordered) * 1e6, 1),
        "p99_us": round(ordered[int(len(ordered) * 0.99)] * 1e6, 1),
        "min_us": round(ordered[0] * 1e6, 1),
    }


@click.command()
@click.argument("region", required=False, default="", shell_complete=complete_region)
@json_option
@pass_session
@click.pass_context
def selftest(ctx: click.Context, session: Session, region: str) -> None:
    r"""Find out in a second whether everything works, through the running daemon.

    Three simulated peers join a region (two at its socket, one over D-Bus), are rung, ring each other and the host,
    share memory and leave. Then a simulated guest drives a vhost-user device. It takes a region and a device of its own
    and removes them; with REGION it takes that one, where the
    guests see three peers come and go, the host peer is rung once, and the memory is read but not written.

    Each step says what was found or, when it fails, where to look. Exit status 1 if a step failed.

    \b
    Examples:
      doorbellctl selftest
      doorbellctl selftest demo --json
    """
    results: list[Result] = []

    def report(result: Result) -> None:
        results.append(result)
        if not session.json:
            result.show()

    async def work(daemon: Daemon) -> tuple[bool, dict[str, dict[str, float]]]:
        trial = Trial(daemon, region)
        return await trial.run(report), trial.latency

    fine, latency = session.run(work)
    if session.json:
        steps = [{"step": r.step, "ok": r.ok, "found": r.found} | ({"look": r.look} if r.look else {}) for r in results]
        session.emit({"ok": fine, "steps": steps, "latency": latency})
    else:
        click.echo()
        if fine:
            click.echo(click.style("Everything works.", fg="green", bold=True))
        else:
            click.echo(click.style(f'It does not work: the step "{results[-1].step}" failed.', fg="red", bold=True))
    if not fine:
        ctx.exit(1)
