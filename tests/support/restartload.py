# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A region in full use, for whoever restarts its daemon meanwhile; at the end it says exactly what was lost.

Theory of operation: one process plays everybody, so what one of them does can be held against what the others see.

- Two *residents* connected to the socket and one over D-Bus (Attach) ring each other's doorbells and the host peer's
  all the time, and a host process rings the residents through descriptors from OpenDoorbell. Each ring is one, so the
  sums of what was sent and what arrived must be equal, doorbell by doorbell.
- *Visitors* connect, read and check their greeting, ring a resident and the host, wait until all residents have seen
  them, stay for a while, leave, and wait until all residents have seen that. So each join and each leave must be told
  to each resident exactly once. Hasty ones leave in the middle of their greeting.
- *Dawdlers* read a few messages now and then, so that they are in the middle of their greeting most of the time.
- A *caller* rings over D-Bus. Whether a call that got no answer was carried out can't be told; all others can.

The upper half of the host peer's vectors is left to whoever restarts the daemon.

A connection that ends before its first byte was accepted in the daemon's last moment, before it was kept. That is no
loss, as nothing was said yet: who connected tries again, and it is counted. After the first byte no stream may end.

``python -m support.restartload --socket PATH --bus ADDRESS`` prints "ready" when everybody is there, goes on until a
line comes on standard input, and prints a report as JSON; the exit status is 1 if something was lost. It needs
doorbelld's modules and this folder, and nothing else. `support.loadprocess` is the other side of that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import os
import random
import resource
import socket
import struct
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from doorbelld.bus import address
from doorbelld.bus.client import OWNER_CHANGED, CallFailed, Client, Signal
from doorbelld.bus.names import MANAGER, REGION, ROOT

from support.rawclient import RawClient

PATIENCE = 30.0
"""Seconds for whatever a restart may hold up."""
HOST = 65535
VISITORS, DAWDLERS = 4, 2
IN_SOCKET = 300
"""A little more than the messages that fit into a socket: who has more to read is half-way for the daemon, too."""
PATTERN = random.Random(1).randbytes(1 << 16)
_ONE = struct.pack("=Q", 1)


class Loss(Exception):
    """Something was lost, doubled or wrong; the text says what."""


class Unlucky(Exception):
    """A connection ended before its first byte."""


class Party(RawClient):
    """A client that holds its stream to the protocol, join by join; *name* is for messages."""

    def __init__(self, name: str, vectors: int, path: str = "", *, sock: socket.socket | None = None) -> None:
        self.connected_at = time.monotonic()
        super().__init__(path, sock=sock, keep=True)
        self.name = name
        self.vectors = vectors
        self.joins = 0
        """Whole joins that it was told of so far."""
        self.lefts = 0
        """Leaves, likewise."""
        self.join_place: dict[int, int] = {}
        """By ID: which join it was that was told last, counting from 1."""
        self.left_places: defaultdict[int, list[int]] = defaultdict(list)
        """By ID: which leaves told of it."""
        self._last = -1  # whose doorbell came last

    @property
    def greeted(self) -> bool:
        """Whether its own doorbells have all come, which is the end of the greeting."""
        return self.id is not None and len(self.doorbells.get(self.id, ())) == self.vectors

    @property
    def bells(self) -> list[int]:
        """Its own doorbells' identities, by vector."""
        assert self.id is not None
        return self.doorbells[self.id]

    def _apply(self, value: int, fd: int | None) -> None:
        if self.messages >= 3:
            if fd is not None and value != self._last and (cut := self._cut_short()) is not None:
                raise Loss(f"{self.name} was told of {len(self.doorbells[cut])} vectors of {cut} before {value} joined")
            if fd is None and value not in self.doorbells:
                raise Loss(f"{self.name} was told that {value} left, who was not there")
        super()._apply(value, fd)
        if self.messages < 3:
            return
        if fd is None:
            self.lefts += 1
            self.left_places[value].append(self.lefts)
            return
        self._last = value
        if (count := len(self.doorbells[value])) == self.vectors:
            self.joins += 1
            self.join_place[value] = self.joins
        elif count > self.vectors:
            raise Loss(f"{self.name} was told of {count} vectors of {value}")

    def _cut_short(self) -> int | None:
        """Name the member that was told of last if it is there in part only; who leaves half told never comes whole."""
        last = self._last
        return last if 0 < len(self.doorbells.get(last, ())) < self.vectors else None


class Visit:
    """The stay of *party*, whose greeting is over, as it is held against what the residents saw."""

    def __init__(self, party: Party) -> None:
        assert party.id is not None
        self.name = party.name
        self.id = party.id
        self.bells = party.bells
        self.connected_at = party.connected_at
        self.greeted_at = time.monotonic()
        self.seen_at = 0.0
        """When all residents had seen it; 0 before."""
        self.joined: list[int] = []
        """Which join it was, for each resident."""
        self.left: list[int] = []


class Load:
    """Everybody, against the region *region* at *path* on the bus at *bus*."""

    def __init__(self, path: str, bus: str, region: str, seed: int) -> None:
        self.path = path
        self.bus = bus
        self.region = f"{ROOT}/region/{region}"
        self.region_name = region
        self.vectors = 0
        self.random = random.Random(seed)
        self.residents: list[Party] = []
        self.dawdlers: set[Party] = set()
        """Those in the middle of their greeting."""
        self.visits: list[Visit] = []
        """Those that are over."""
        self.present: set[Visit] = set()
        """Those whom everybody should know."""
        self.stopping = False
        self.sent: Counter[tuple[str, int]] = Counter()
        """Rings by (name of who was rung, vector)."""
        self.arrived: Counter[tuple[str, int]] = Counter()
        self.counts: Counter[str] = Counter()
        self.unanswered = 0
        """Calls of which nobody knows whether they rang."""
        self._opened: list[tuple[str, int, int]] = []  # through D-Bus: who, which vector, eventfd
        self._pulse = asyncio.Event()
        self._trouble: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._client: Client | None = None

    # What everybody needs

    @property
    def client(self) -> Client:
        """The connection to the bus."""
        assert self._client is not None
        return self._client

    async def until(self, condition: Callable[[], object], what: Callable[[], str]) -> None:
        """Wait for something that messages bring about.

        Raises:
            Loss: it does not come about; *what* says what is missing.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    await self._pulse.wait()
        except TimeoutError:
            raise Loss(f"within {PATIENCE:g} s: {what()}") from None

    def _changed(self) -> None:
        pulse, self._pulse = self._pulse, asyncio.Event()
        pulse.set()

    def _watch(self, fd: int, act: Callable[[], None]) -> None:
        """Call *act* when *fd* can be read; what it raises ends everything."""

        def guarded() -> None:
            try:
                act()
            except (Loss, AssertionError, OSError) as error:
                asyncio.get_running_loop().remove_reader(fd)
                if not self._trouble.done():
                    self._trouble.set_exception(error if isinstance(error, Loss) else Loss(str(error)))
            self._changed()

        asyncio.get_running_loop().add_reader(fd, guarded)

    def _ring(self, eventfd: int, who: str, vector: int) -> None:
        os.write(eventfd, _ONE)
        self.sent[who, vector] += 1

    def _ring_host(self, party: Party, vector: int) -> None:
        vector %= self.vectors // 2
        self._ring(party.fds[HOST][vector], "host", vector)

    def _connect(self, name: str) -> Party:
        try:
            return Party(name, self.vectors, self.path)
        except OSError as error:
            raise Loss(f"{name} can't connect to {self.path}: {error.strerror}") from error

    def _read(self, party: Party, limit: int | None = None) -> None:
        """Read what has come for *party*.

        Raises:
            Unlucky: its stream ended before the first byte.
            Loss: it ended later.
        """
        party.take(limit)
        if party.eof and not party.messages:
            raise Unlucky
        if party.eof:
            raise Loss(f"the stream of {party.name} (ID {party.id}) ended after {party.messages} messages")

    def _follow(self, party: Party) -> None:
        self._watch(party.sock.fileno(), lambda: self._read(party))

    def _leave(self, party: Party) -> None:
        if party.sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(party.sock.fileno())
            party.close()

    # Residents

    async def prepare(self) -> None:
        """Let the residents move in."""
        self._client = await Client.connect(self.bus)
        self.vectors = await self.client.get(self.region, REGION, "Vectors")
        await self.client.subscribe(OWNER_CHANGED, callback=self._owner_changed)
        (attached,) = await self.client.call(self.region, REGION, "Attach", "a{sv}", [{}])
        self.residents = [
            Party("first", self.vectors, self.path),
            Party("second", self.vectors, self.path),
            Party("attached", self.vectors, sock=socket.socket(fileno=attached.steal())),
        ]
        for resident in self.residents:
            self._follow(resident)
        await self.until(
            lambda: all(r.greeted and len(r.doorbells) == len(self.residents) + 1 for r in self.residents),
            lambda: f"not all residents know each other: {[sorted(r.doorbells) for r in self.residents]}",
        )
        for resident in self.residents:
            self._listen(resident)
        for resident in self.residents[:2]:
            for vector in range(0, self.vectors - 1, 8):
                body = [resident.id, vector]
                (bell,) = await self.client.call(self.region, REGION, "OpenDoorbell", "qq", body)
                self._opened.append((resident.name, vector, bell.steal()))
        assert self.residents[0].memory is not None
        os.pwrite(self.residents[0].memory, PATTERN, 0)

    def _listen(self, resident: Party) -> None:
        assert resident.id is not None
        for vector, fd in enumerate(resident.fds[resident.id]):
            self._watch(fd, functools.partial(self._take, resident.name, vector, fd))

    def _take(self, name: str, vector: int, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self.arrived[name, vector] += struct.unpack("=Q", os.read(fd, 8))[0]

    async def _ring_on(self) -> None:
        """Ring everybody, now and then; the last vector is the caller's."""
        while not self.stopping:
            vector = self.random.randrange(self.vectors - 1)
            for here in self.residents:
                for there in self.residents:
                    if there is not here and there.id is not None:
                        self._ring(here.fds[there.id][vector], there.name, vector)
                self._ring_host(here, vector)
            name, vector, bell = self.random.choice(self._opened)
            self._ring(bell, name, vector)
            await asyncio.sleep(0.003)

    async def _call_on(self) -> None:
        """Ring the attached one over D-Bus."""
        body = [self.residents[2].id, self.vectors - 1]
        while not self.stopping:
            try:
                await self.client.call(self.region, REGION, "Notify", "qq", body, timeout=PATIENCE)
            except CallFailed as error:
                if error.ours:
                    raise Loss(f"Notify failed: {error}") from error
                self.unanswered += not error.name.endswith((".ServiceUnknown", ".NameHasNoOwner"))
                await asyncio.wait_for(self.client.wait_for_owner(), PATIENCE)
            else:
                self.counts["calls"] += 1
            await asyncio.sleep(0.01)

    def _owner_changed(self, signal: Signal) -> None:
        if not signal.body[2]:
            self.counts["restarts"] += 1
            total = 3 + self.vectors * len(self.residents[0].doorbells)
            self.counts["restarts in the middle of a greeting"] += any(
                total - party.messages > IN_SOCKET for party in self.dawdlers
            )

    # Those who come and go

    async def _visit_on(self, name: str) -> None:
        number = 0
        while not self.stopping:
            number += 1
            try:
                if self.random.random() < 0.2:
                    await self._drop_in(f"{name}, stay {number} (hasty)")
                else:
                    await self._visit(f"{name}, stay {number}")
            except Unlucky:
                self.counts["ended before the first byte"] += 1

    async def _drop_in(self, name: str) -> None:
        """Leave in the middle of the greeting."""
        party = self._connect(name)
        try:
            wanted = self.random.randrange(2 * self.vectors)
            deadline = time.monotonic() + PATIENCE
            while party.messages < wanted:
                self._read(party, wanted - party.messages)
                if time.monotonic() > deadline:
                    raise Loss(f"{name} waits for a greeting in vain")
                await asyncio.sleep(0.002)
            self.counts["hasty visits"] += 1
        finally:
            party.close()

    async def _visit(self, name: str) -> None:
        party = self._connect(name)
        try:
            await self._be_greeted(party)
            visit = Visit(party)
            self._check_greeting(party)
            await self._be_seen(visit)
            vector = self.random.randrange(self.vectors - 1)
            resident = self.random.choice(self.residents)
            self._ring(party.fds[resident.id or 0][vector], resident.name, vector)
            self._ring_host(party, vector)
            await asyncio.sleep(self.random.random() * 0.3)
            await self._go(visit, party)
            self.counts["visits"] += 1
        finally:
            self._leave(party)

    async def _be_greeted(self, party: Party) -> None:
        deadline = time.monotonic() + PATIENCE
        loop = asyncio.get_running_loop()
        while not party.messages:  # until then an end is no loss
            if time.monotonic() > deadline:
                raise Loss(f"{party.name} waits for a greeting in vain")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_readable(loop, party.sock), 1)
            self._read(party, 1)
        self._follow(party)
        await self.until(lambda: party.greeted, lambda: f"{party.name} got {party.messages} messages of its greeting")

    def _check_greeting(self, party: Party) -> None:
        """Hold what a newcomer was told against what there is.

        Raises:
            Loss: something is missing or wrong.
        """
        first = self.residents[0]
        assert party.memory is not None
        assert first.memory is not None
        if party.version != 0:
            raise Loss(f"{party.name} was greeted with version {party.version}")
        if os.fstat(party.memory).st_ino != os.fstat(first.memory).st_ino:
            raise Loss(f"{party.name} got another memory than the residents")
        place = self.random.randrange(len(PATTERN) - 4096)
        if os.pread(party.memory, 4096, place) != PATTERN[place : place + 4096]:
            raise Loss(f"the memory that {party.name} got does not hold at {place} what was written there")
        expected = {(r.name, r.id): r.bells for r in self.residents} | {("host", HOST): first.doorbells[HOST]}
        for visit in self.present:
            if visit.seen_at < party.connected_at:
                expected[visit.name, visit.id] = visit.bells
        for (name, peer_id), bells in expected.items():
            if (told := party.doorbells.get(peer_id or 0)) != bells:
                raise Loss(f"{party.name} was told {told} of the doorbells of {name} (ID {peer_id}), which are {bells}")

    async def _be_seen(self, visit: Visit) -> None:
        """Wait until all residents know of a visitor."""

        def blind() -> list[str]:
            return [r.name for r in self.residents if r.doorbells.get(visit.id) != visit.bells]

        text = f"of the join of {visit.name} (ID {visit.id}, doorbells {visit.bells[0]} ..)"
        await self.until(lambda: not blind(), lambda: f"{', '.join(blind())} not told {text}")
        visit.joined = [resident.join_place[visit.id] for resident in self.residents]
        visit.seen_at = time.monotonic()
        self.present.add(visit)

    async def _go(self, visit: Visit, party: Party) -> None:
        """Leave, and wait until all residents know."""
        if lost := [r.name for r in self.residents if r.doorbells.get(visit.id) != visit.bells]:
            raise Loss(f"{', '.join(lost)} took {visit.name} (ID {visit.id}) for gone before it left")
        before = [len(resident.left_places[visit.id]) for resident in self.residents]
        self.present.discard(visit)
        self._leave(party)

        def blind() -> list[str]:
            known = zip(self.residents, before, strict=True)
            return [resident.name for resident, count in known if len(resident.left_places[visit.id]) == count]

        text = f"of the leave of {visit.name} (ID {visit.id})"
        await self.until(lambda: not blind(), lambda: f"{', '.join(blind())} not told {text}")
        # not the last: somebody else may have had the ID meanwhile
        visit.left = [r.left_places[visit.id][count] for r, count in zip(self.residents, before, strict=True)]
        self.visits.append(visit)

    async def _dawdle_on(self, name: str) -> None:
        number = 0
        while not self.stopping:
            number += 1
            party = self._connect(f"{name}, stay {number}")
            self.dawdlers.add(party)
            try:
                await self._dawdle(party)
            except Unlucky:
                self.counts["ended before the first byte"] += 1
            finally:
                self.dawdlers.discard(party)
                self._leave(party)

    async def _dawdle(self, party: Party) -> None:
        deadline = time.monotonic() + 4 * PATIENCE
        while not party.greeted:
            hurry = self.stopping or party.messages > IN_SOCKET
            self._read(party, None if hurry else self.random.randint(1, 8))
            if time.monotonic() > deadline:
                raise Loss(f"{party.name} got {party.messages} messages of its greeting")
            await asyncio.sleep(0.02)
        visit = Visit(party)
        self._check_greeting(party)
        self._follow(party)
        await self._be_seen(visit)
        await self._go(visit, party)
        self.counts["slow greetings"] += 1

    # All of it

    async def run(self, stop: asyncio.Event) -> None:
        """Go on until *stop*, let everybody leave, and settle the accounts.

        Raises:
            ExceptionGroup: of `Loss`.
        """
        async with asyncio.TaskGroup() as group:
            guard = group.create_task(_await(self._trouble))
            tasks = [group.create_task(work) for work in (self._ring_on(), self._call_on())]
            tasks += [group.create_task(self._visit_on(f"visitor {i}")) for i in range(VISITORS)]
            tasks += [group.create_task(self._dawdle_on(f"dawdler {i}")) for i in range(DAWDLERS)]
            await stop.wait()
            self.stopping = True
            await asyncio.gather(*tasks)
            await self._settle()
            guard.cancel()

    async def _settle(self) -> None:
        """Hold all that was done against all that arrived.

        Raises:
            Loss: something was lost or doubled.
        """
        there = {HOST, *(resident.id for resident in self.residents if resident.id is not None)}
        await self.until(
            lambda: all(resident.doorbells.keys() == there for resident in self.residents),
            lambda: f"after all left, {[(r.name, sorted(r.doorbells)) for r in self.residents]} are told of",
        )
        listed = {row[0] for row in (await self.client.call(ROOT, MANAGER, "ListPeers", "s", [self.region_name]))[0]}
        if listed != there - {HOST}:
            raise Loss(f"the daemon has the peers {sorted(listed)}, and there are {sorted(there - {HOST})}")
        deadline = time.monotonic() + PATIENCE
        while problems := await self._accounts():
            if time.monotonic() > deadline:
                raise Loss("; ".join(problems))
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)  # what is doubled may come late
        if problems := await self._accounts():
            raise Loss("; ".join(problems))
        self._check_order()
        for resident in self.residents:
            assert resident.memory is not None
            if os.pread(resident.memory, len(PATTERN), 0) != PATTERN:
                raise Loss(f"the memory of {resident.name} does not hold what was written there")

    async def _accounts(self) -> list[str]:
        """Say where sums are not equal."""
        host = await self.client.get(self.region, REGION, "HostRings")
        for vector, total in enumerate(host[: self.vectors // 2]):
            self.arrived["host", vector] = total
        problems = []
        for name, vector in sorted(self.sent.keys() | self.arrived.keys()):
            sent = most = self.sent[name, vector]
            if (name, vector) == ("attached", self.vectors - 1):
                sent, most = self.counts["calls"], self.counts["calls"] + self.unanswered
            if not sent <= (came := self.arrived[name, vector]) <= most:
                problems.append(f"vector {vector} of {name} was rung {sent} times, and {came} rings came")
        return problems

    def _check_order(self) -> None:
        """Joins and leaves were told to all residents in the same order, and joins in that in which they happened.

        Raises:
            Loss: they were not.
        """
        for what in ("joined", "left"):
            visits = sorted(self.visits, key=lambda visit: getattr(visit, what)[0])
            for before, after in itertools.pairwise(visits):
                places = zip(getattr(before, what), getattr(after, what), strict=True)
                if not all(one < other for one, other in places):
                    pair = f"{before.name} and {after.name}"
                    raise Loss(f"the residents were not told in the same order that {pair} {what}")
            if what == "joined":
                latest = 0.0
                for visit in visits:
                    if visit.greeted_at < latest:
                        raise Loss(f"somebody who came after {visit.name} was greeted was told of before it")
                    latest = max(latest, visit.connected_at)

    def report(self) -> dict[str, int]:
        """Say how much went on."""
        return {**self.counts, "rings": self.sent.total(), "calls without an answer": self.unanswered}

    async def close(self) -> None:
        """Let the residents move out."""
        for resident in self.residents:
            for fd in resident.fds.get(resident.id or 0, ()):
                asyncio.get_running_loop().remove_reader(fd)
            self._leave(resident)
        for _, _, bell in self._opened:
            os.close(bell)
        if self._client is not None:
            await self._client.close()


async def _await(future: asyncio.Future[None]) -> None:
    await future


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Wait until *sock* can be read."""
    future = loop.create_future()
    loop.add_reader(sock.fileno(), _resolve, future)
    try:
        await future
    finally:
        loop.remove_reader(sock.fileno())


async def _main(path: str, bus: str, region: str, seed: int) -> int:
    stop = asyncio.Event()
    load = Load(path, address.resolve(bus), region, seed)
    try:
        async with asyncio.timeout(PATIENCE):
            await load.prepare()
        print("ready", flush=True)
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
        await load.run(stop)
    except* (Loss, AssertionError) as group:
        report: dict[str, Any] = {"lost": [str(error) for error in _leaves(group)], **load.report()}
        print(json.dumps(report), flush=True)
    else:
        print(json.dumps(load.report()), flush=True)
        return 0
    finally:
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        await load.close()
    return 1


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--bus", required=True)
    parser.add_argument("--region", default="demo")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.exit(asyncio.run(_main(given.socket, given.bus, given.region, given.seed)))
