# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Readiness: what systemd is told (sd_notify(3)), when, and nothing where there is none."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from doorbelld.service import readiness as module
from doorbelld.service.readiness import Readiness, Watchdog, notifier
from structlog.testing import capture_logs
from support.fdcount import no_leaks

DEADLINE = 20.0


class Service:
    """A daemon's status, and how systemd sees it."""

    def __init__(self, path: Path) -> None:
        self.status = "1 region, 0 peers"
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.settimeout(DEADLINE)
        self.notifier = notifier()
        assert self.notifier is not None
        self.told = Readiness(asyncio.get_running_loop(), self.notifier, lambda: self.status)

    def read(self) -> bytes:
        return self.sock.recv(4096)

    async def next(self) -> bytes:
        """Wait for a message while the loop goes on."""
        self.sock.setblocking(False)
        async with asyncio.timeout(DEADLINE):
            return await asyncio.get_running_loop().sock_recv(self.sock, 4096)

    def silent(self) -> bool:
        return not select.select([self.sock], [], [], 0)[0]

    def close(self) -> None:
        self.sock.close()
        self.notifier.socket.close()  # it lives as long as the daemon, so sdnotify has no way to close it


@pytest.fixture
async def service(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(short_path / "notify"))
    monkeypatch.setattr(module, "_STATUS_SECONDS", 0.01)
    with no_leaks():
        made = Service(short_path / "notify")
        yield made
        made.told.stopping()
        made.close()


async def test_ready_and_stopping(service: Service) -> None:
    service.told.ready()
    assert service.read() == b"READY=1\nSTATUS=1 region, 0 peers"
    service.told.stopping()
    assert service.read() == b"STOPPING=1\nSTATUS=stopping"


async def test_reloading_says_since_when_in_one_datagram(service: Service) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    service.told.reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    state, since, status = service.read().split(b"\n")
    assert (state, status) == (b"RELOADING=1", b"STATUS=reading the configuration again")
    assert since.startswith(b"MONOTONIC_USEC=")
    assert before <= int(since.partition(b"=")[2]) <= after
    service.told.ready()
    assert service.read().startswith(b"READY=1\n")


async def test_the_status_is_told_once_for_many_changes(service: Service) -> None:
    service.told.ready()
    service.read()
    for count in range(1, 100):
        service.status = f"1 region, {count} peers"
        service.told.changed()
    assert service.silent()
    assert await service.next() == b"STATUS=1 region, 99 peers"
    assert service.silent()
    service.told.changed()  # but nothing has
    service.status = "2 regions, 99 peers"
    service.told.changed()
    assert await service.next() == b"STATUS=2 regions, 99 peers"
    assert service.silent()


async def test_what_is_as_it_was_is_not_told(service: Service) -> None:
    service.told.ready()
    service.read()
    service.status = "something else"
    service.told.changed()
    service.status = "1 region, 0 peers"
    timer = service.told._timer
    assert timer is not None
    async with asyncio.timeout(DEADLINE):
        while service.told._timer is not None:
            await asyncio.sleep(0)
    assert service.silent()


async def test_after_stopping_no_status_comes(service: Service) -> None:
    service.told.ready()
    service.status = "new"
    service.told.changed()
    service.told.stopping()
    assert service.read().startswith(b"READY=1")
    assert service.read().startswith(b"STOPPING=1")
    assert service.told._timer is None


async def test_a_systemd_that_reads_nothing_holds_up_nobody(service: Service) -> None:
    """Watchdog and status wait for better times; they would block the loop, and with it every guest."""
    service.told.ready()
    count = 0
    service.notifier.socket.setblocking(False)
    while True:
        try:
            service.notifier.socket.send(b"X=1")
        except BlockingIOError:
            break
        count += 1
    service.notifier.socket.setblocking(True)
    service.told.progress()
    service.status = "later"
    service.told.changed()
    async with asyncio.timeout(DEADLINE):
        first = service.told._timer
        while service.told._timer is first:  # it looked, and will look again
            await asyncio.sleep(0)
    assert service.told._timer is not None
    assert service.read().startswith(b"READY=1")
    assert {service.read() for _ in range(count)} == {b"X=1"}
    assert await service.next() == b"STATUS=later"
    service.told.progress()
    assert await service.next() == b"WATCHDOG=1"


# Where there is no systemd


@pytest.fixture
def quiet() -> Iterator[None]:
    with no_leaks():
        yield


async def test_without_a_manager_nothing_happens(quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notifier() is None
    told = Readiness(asyncio.get_running_loop(), None, lambda: "")
    told.ready()
    told.reloading()
    told.changed()
    told.progress()
    told.stopping()
    assert told._timer is None


async def test_a_manager_that_goes_away_does_not_matter(service: Service) -> None:
    service.sock.close()
    service.told.ready()
    service.told.progress()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sdnotify forgets to close its socket
def test_a_manager_that_was_never_there_is_none(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(short_path / "notify"))
    assert notifier() is None
    gc.collect()


async def test_children_do_not_inherit_the_way_to_systemd(service: Service) -> None:
    assert not service.notifier.socket.get_inheritable()


# Watchdog


def dog(service: Service, monkeypatch: pytest.MonkeyPatch, stuck: Any, **variables: str) -> Watchdog:
    for name in ("WATCHDOG_PID", "WATCHDOG_USEC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Watchdog(asyncio.get_running_loop(), service.told, stuck)


async def test_the_watchdog_is_fed_while_there_is_progress(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A region may be busy at one look, and another one at the next."""
    answers = iter([[], ["a"], ["b"], ["a"], []] * 2)
    watchdog = dog(
        service, monkeypatch, lambda: next(answers, []), WATCHDOG_USEC="20000", WATCHDOG_PID=str(os.getpid())
    )
    watchdog.start()
    with capture_logs() as logs:
        for _ in range(8):
            assert await service.next() == b"WATCHDOG=1"
    assert not [entry for entry in logs if entry["log_level"] == "error"]
    watchdog.stop()


async def test_who_is_stuck_twice_stops_the_food(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, enough = 0, asyncio.Event()

    def stuck() -> list[str]:
        nonlocal looks
        looks += 1
        if looks == 6:
            enough.set()
        return ["demo"] if looks < 6 else []

    watchdog = dog(service, monkeypatch, stuck, WATCHDOG_USEC="20000")
    with capture_logs() as logs:
        watchdog.start()
        assert service.read() == b"WATCHDOG=1"  # once may be chance
        async with asyncio.timeout(DEADLINE):
            await enough.wait()
        assert await service.next() == b"WATCHDOG=1"  # it has come round
    errors = [entry for entry in logs if entry["log_level"] == "error"]
    assert [entry["reason"] for entry in errors] == ["nobody in region demo gets a turn"] * 4
    assert looks >= 6
    watchdog.stop()


@pytest.mark.parametrize(
    "variables",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}],
)
async def test_no_food_for_who_wants_none(
    service: Service, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    watchdog = dog(service, monkeypatch, list, **variables)
    watchdog.start()
    assert watchdog._timer is None
    assert service.silent()
    watchdog.stop()


async def test_it_looks_four_times_in_the_time_that_it_has(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dog(service, monkeypatch, list, WATCHDOG_USEC="30000000")._period == 7.5
