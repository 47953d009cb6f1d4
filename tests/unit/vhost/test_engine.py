# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Workers come to rest, however long that takes, and the loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import pytest
from doorbelld.vhost import engine as engine_module
from doorbelld.vhost.engine import Engine
from doorbelld.vhost.hooks import Hooks
from doorbelld.wire.vhost_messages import VringState
from doorbelld.wire.vhost_requests import FrontendRequest
from support.devicesite import DEADLINE, DeviceSite, Echo
from support.fdcount import no_leaks


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    with no_leaks():
        made = Engine(Hooks(Echo()), asyncio.get_running_loop(), "engine", 0, lambda: None)
        yield made
        await made.close()


def test_threads_are_as_many_as_make_sense() -> None:
    class Wide(Echo):
        threads = 8
        queues = 3

    async def run() -> int:
        engine = Engine(Hooks(Wide()), asyncio.get_running_loop(), "wide", 0, lambda: None)
        engine.set_poll(10)
        count = len(engine.workers)
        await engine.close()
        return count

    with no_leaks():
        assert asyncio.run(run()) == 3


async def test_rest_is_exclusive_and_ends(engine: Engine) -> None:
    order: list[str] = []

    async def rest(name: str) -> None:
        async with engine.still():
            assert all(worker.quiesced for worker in engine.workers)
            order.append(f"{name} in")
            await asyncio.sleep(0)
            order.append(f"{name} out")

    await asyncio.gather(rest("a"), rest("b"))
    assert order == ["a in", "a out", "b in", "b out"]
    assert not any(worker.quiesced for worker in engine.workers)


async def test_an_error_in_the_body_ends_the_rest(engine: Engine) -> None:
    with pytest.raises(ValueError, match="this"):
        async with engine.still():
            raise ValueError("this")
    assert not any(worker.quiesced for worker in engine.workers)


async def test_a_queue_that_is_not_served_can_not_be_roused(engine: Engine) -> None:
    assert not engine.rouse(0)
    async with engine.still():
        engine.detach(0)


def test_a_device_that_is_slow_is_waited_for_without_a_thread_too(
    site: DeviceSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have none left (TasksMax=); memory is let go all the same, when nothing touches it any more."""

    class Full(ThreadPoolExecutor):
        def submit(self, *_: object, **__: object) -> NoReturn:  # type: ignore[override]
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(engine_module, "ThreadPoolExecutor", Full)
    backend, f = site.started()
    device = backend.device
    assert isinstance(device, Echo)
    device.gate = threading.Event()
    queue = f.queues[0]
    queue.add([(f.take(16), 1)], [])
    queue.kick()
    site.wait(lambda: backend.queue(0).in_flight)
    site.call(backend.disconnect, "enough")
    site.wait(lambda: site.call(lambda: backend._engine._lock.locked()))
    assert len(backend.memory_regions) == 1
    device.gate.set()
    assert site.farewell().reason == "enough" and backend.memory_regions == []


def test_a_device_that_is_slow_is_waited_for_again_and_again(site: DeviceSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_PATIENCE", 0.02)
    backend, f = site.started()
    device = backend.device
    assert isinstance(device, Echo)
    device.gate = threading.Event()
    queue = f.queues[0]
    queue.add([(f.take(16), 1)], [])
    queue.kick()
    site.wait(lambda: backend.queue(0).in_flight)
    f.send(FrontendRequest.GET_VRING_BASE, VringState(0, 0))
    ticks = threading.Semaphore(0)
    for tick in range(10):  # the loop goes on meanwhile
        site.loop.call_soon_threadsafe(site.loop.call_later, tick / 100, ticks.release)
    for _ in range(10):
        assert ticks.acquire(timeout=DEADLINE)
    assert backend.queue(0).started
    device.gate.set()
    assert f.answer().payload == VringState(0, 1)
