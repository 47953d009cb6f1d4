# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices on an event loop in a thread of its own, so that the front-ends in the tests may be simple and blocking."""

from __future__ import annotations

import asyncio
import select
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from doorbelld.devices import find
from doorbelld.fds.spare import Spare
from doorbelld.ring.chain import Chain
from doorbelld.ring.queue import VirtQueue
from doorbelld.vhost.backend import Backend
from doorbelld.vhost.device import Device
from doorbelld.vhost.events import DeviceEvent, FrontendDetached, State, StateChanged
from doorbelld.vhost.frontend import Frontend
from doorbelld.vhost.spec import DeviceSpec
from doorbelld.wire.vhost_requests import FrontendRequest

from support.fdcount import no_leaks, no_memory_left

DEADLINE = 10.0
T = TypeVar("T")


def pending(fd: int) -> bool:
    """Tell whether *fd* is readable now."""
    return bool(select.select([fd], [], [], 0)[0])


def readable(fd: int) -> bool:
    """Wait until *fd* is readable; False if that takes too long."""
    return bool(select.select([fd], [], [], DEADLINE)[0])


class Echo(Device):
    """Writes back what it reads, has a configuration space, and notes what its hooks are called with."""

    name = "echo"
    id = 42
    queues_max = 8
    queues = 2
    features = 1 << 5
    feature_names = {5: "ECHO_F_LOUD"}  # noqa: RUF012
    config = bytes(range(24))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hooks: list[tuple[str, Any]] = []
        self.handled = 0
        self.gate: threading.Event | None = None
        """If set, each request waits for it."""

    def handle(self, queue: VirtQueue, chain: Chain) -> None:
        self.handled += 1
        if self.gate is not None:
            self.gate.wait(DEADLINE)
        data = chain.read()
        if data == b"raise":
            raise ValueError("so be it")
        chain.write(data)
        queue.push(chain)

    def ack(self, features: int) -> None:
        self.hooks.append(("ack", features))

    def start(self, queue: VirtQueue) -> None:
        self.hooks.append(("start", queue.index))

    def stop(self, queue: VirtQueue) -> None:
        self.hooks.append(("stop", queue.index))

    def reset(self) -> None:
        self.hooks.append(("reset", None))

    def close(self) -> None:
        self.hooks.append(("close", None))


class DeviceSite:
    """A loop in a thread, the devices on it, and what they emitted."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.events: list[DeviceEvent] = []
        self.news = threading.Condition()
        self.failures: list[dict[str, Any]] = []
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.spare = Spare()
        self.backends: list[Backend] = []
        self.frontends: list[Frontend] = []

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* on the loop and return its result."""
        return self.begin(coroutine).result(DEADLINE)

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run *coroutine* on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run *function* on the loop and return its result."""

        async def run() -> T:
            return function(*args)

        return self.run(run())

    def emit(self, event: DeviceEvent) -> None:
        with self.news:
            self.events.append(event)
            self.news.notify_all()

    def of(self, kind: type[T]) -> list[T]:
        """Return the events of one kind so far."""
        return [event for event in list(self.events) if isinstance(event, kind)]

    def wait(self, happened: Callable[[], Any]) -> None:
        """Wait until *happened* is true; looked at after each event, and now and then."""
        until = time.monotonic() + DEADLINE
        with self.news:
            while not happened():
                assert time.monotonic() < until, f"waited in vain; events: {self.events[-8:]}"
                self.news.wait(0.01)

    def wait_state(self, backend: Backend, state: State) -> None:
        """Wait until *backend* stands so, and has told it."""

        def told() -> bool:
            changes = [event.new for event in self.of(StateChanged) if event.device is backend]
            return backend.state is state and changes[-1:] in ([], [state])

        self.wait(told)

    def farewell(self, count: int = 1) -> FrontendDetached:
        """Wait until *count* front-ends in all are gone, and return how the last of them went."""
        self.wait(lambda: len(self.of(FrontendDetached)) >= count)
        return self.of(FrontendDetached)[count - 1]

    def told_off(self, backend: Backend, said: str) -> None:
        """Wait until the front-end of *backend* was dropped, and told why, once; the next one is served."""
        end = self.farewell()
        assert end.device is backend and end.broken and said in end.reason, end.reason
        self.wait_state(backend, State.LISTENING)
        changes = [(event.old, event.new) for event in self.of(StateChanged) if event.device is backend]
        assert changes[-1] == (State.BROKEN, State.LISTENING) and changes[-2][1] is State.BROKEN
        assert backend.reason == end.reason
        with Frontend.connect(backend.spec.socket, timeout=DEADLINE) as fresh:
            assert fresh.ask_number(FrontendRequest.GET_FEATURES) == backend.offered_features
            assert len([event for event in self.of(FrontendDetached) if event.device is backend]) == 1

    def open(self, kind: type[Device] | str = Echo, **options: Any) -> Backend:
        """Make a device and serve it; options are spelled as in the configuration."""
        name = f"dev{len(self.backends)}"
        found = find(kind) if isinstance(kind, str) else kind
        raw = {"type": found.name, "socket": f"{self.folder}/{name}", **options}
        spec = DeviceSpec.parse(name, raw, f"device.{name}", lambda _: found)
        backend = self.call(lambda: Backend.open(spec, self.loop, self.emit, self.spare))
        self.backends.append(backend)
        return backend

    def connect(self, backend: Backend | None = None, **options: Any) -> Frontend:
        """Connect a front-end."""
        frontend = Frontend.connect((backend or self.backends[-1]).spec.socket, timeout=DEADLINE, **options)
        self.frontends.append(frontend)
        return frontend

    def started(self, kind: type[Device] | str = Echo, queues: int = 1, **options: Any) -> tuple[Backend, Frontend]:
        """Make a device and connect a front-end with *queues* queues to it."""
        backend = self.open(kind, **options)
        frontend = self.connect(backend)
        frontend.start(queues)
        return backend, frontend

    def states(self) -> list[State]:
        """Return the states that devices went through."""
        return [event.new for event in self.of(StateChanged)]

    def end(self) -> None:
        """Close everything, and fail if something went wrong on the loop."""
        for frontend in self.frontends:
            frontend.close()
        for backend in self.backends:
            self.run(backend.close())
        self.call(self.spare.close)
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(DEADLINE)
        self.loop.close()
        assert not self.failures, self.failures


@contextmanager
def device_site() -> Iterator[DeviceSite]:
    """Give a site, and fail if it leaves descriptors, threads or mapped memory behind."""
    folder = tempfile.mkdtemp(prefix="db")
    try:
        with no_leaks(), no_memory_left():
            site = DeviceSite(folder)
            try:
                yield site
            finally:
                site.end()
                site.frontends.clear()
                site.backends.clear()
                site.events.clear()
    finally:
        shutil.rmtree(folder)
