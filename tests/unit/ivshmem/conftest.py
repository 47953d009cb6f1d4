# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Regions on an event loop in a thread of its own, so that the clients in the tests may be simple and blocking."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from doorbelld.fds.keeper import Kept, Satchel
from doorbelld.fds.spare import Spare
from doorbelld.ivshmem.events import PeerRemoved, RegionEvent
from doorbelld.ivshmem.region import Region
from doorbelld.ivshmem.revival import read_state, revive, spec_of
from doorbelld.ivshmem.spec import RegionSpec
from support.fdcount import no_leaks
from support.rawclient import DEADLINE, RawClient, identity


class Site:
    """A loop in a thread, the regions on it, what they emitted, and the clients."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.events: list[RegionEvent] = []
        self.news = threading.Condition()
        self.loop = asyncio.new_event_loop()
        self.failures: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.spare = Spare()
        self.keeper = Satchel()
        self.regions: list[Region] = []
        self.clients: list[RawClient] = []

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run *function* on the loop and return its result."""

        async def run() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(DEADLINE)

    def emit(self, event: RegionEvent) -> None:
        with self.news:
            self.events.append(event)
            self.news.notify_all()

    def of(self, kind: type) -> list[Any]:
        """Return the events of one kind so far."""
        return [event for event in list(self.events) if isinstance(event, kind)]

    def wait(self, happened: Callable[[], Any], also: Callable[[], Any] = lambda: None, tick: float = DEADLINE) -> None:
        """Wait for an event that makes *happened* true; do *also* each *tick* seconds meanwhile."""
        until = time.monotonic() + DEADLINE
        while True:
            with self.news:
                if happened():
                    return
                assert time.monotonic() < until, f"waited in vain; events: {self.events[-5:]}"
                self.news.wait(min(tick, DEADLINE))
            also()

    def spec(self, **options: Any) -> RegionSpec:
        options = {"name": "demo", "size": 1 << 16, "vectors": 4, "host_peer": False, "stall_timeout": 0.0, **options}
        return RegionSpec(**{"socket": f"{self.folder}/{options['name']}.sock", **options})

    def open(self, kept: bool = False, **options: Any) -> Region:
        """Make a region; one that is *kept* can be restarted."""
        keeping = (self.keeper, f"r{len(self.regions)}.") if kept else None

        def make() -> Region:
            return Region.open(self.spec(**options), self.loop, self.emit, self.spare, keeping=keeping)

        region = self.call(make)
        self.regions.append(region)
        return region

    def restart(self, region: Region, meanwhile: Callable[[], Any] = lambda: None) -> Region:
        """End a kept *region* as a crash would, do something *meanwhile*, and put it together anew."""
        prefix = f"r{self.regions.index(region)}."

        def turn() -> Region:
            region.let_go()
            meanwhile()
            kept = Kept({name: fd.dup() for name, fd in self.keeper.copies.items()}).below(prefix)
            fd = kept.take("state")
            assert fd is not None
            ledger, state = read_state(fd)
            spec = spec_of(state, {})
            return revive(spec, state, ledger, kept, (self.keeper, prefix), self.loop, self.emit, self.spare)

        self.events.clear()
        new: Region = self.call(turn)
        self.regions[self.regions.index(region)] = new
        return new

    def connect(self, region: Region, **options: Any) -> RawClient:
        client = RawClient(region.spec.socket, **options)
        self.clients.append(client)
        return client

    def join(self, region: Region, **options: Any) -> RawClient:
        """Connect and read the greeting."""
        return self.connect(region, **options).greet(region.spec.vectors)

    def settle(self, region: Region, clients: list[RawClient], silent: int | None = None) -> None:
        """Let *clients* read until nobody but *silent* has anything to come."""
        until = time.monotonic() + 3 * DEADLINE
        while True:
            got = sum(client.take() for client in clients)
            left = self.call(lambda: sum(p.backlog for p in region.peers.values() if p.id != silent))
            if not left:
                break
            assert time.monotonic() < until, f"{left} messages never came"
            if not got:
                clients[0].message(0.005)
        for client in clients:
            client.take()

    def gone(self, count: int) -> None:
        self.wait(lambda: len(self.of(PeerRemoved)) >= count)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for region in self.regions:
            self.call(region.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(DEADLINE)
        self.loop.close()
        self.spare.close()
        assert not self.keeper.copies  # all regions are closed
        assert not self.failures, self.failures


def membership(region: Region) -> dict[int, list[int]]:
    """Tell what a client should know when it has been told all."""
    return {member.id: [identity(fd) for fd in member.eventfds] for member in region.roster.ordered}


@pytest.fixture
def folder() -> Iterator[str]:
    """A folder with a short name (socket paths are short) that any user may write to."""
    made = tempfile.mkdtemp(prefix="doorbelld-", dir="/tmp")
    os.chmod(made, 0o777)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def site(folder: str) -> Iterator[Site]:
    with no_leaks():
        made = Site(folder)
        yield made
        made.close()
        made.events.clear()
