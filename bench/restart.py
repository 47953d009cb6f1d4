# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How long nobody is there when the daemon is killed and comes back, and whether rings between peers notice.

The service manager is the tests' (`tests/support/fakesystemd.py`): it starts the next process at once, so what is
measured is ours. A client calls all the time; somebody connects while nobody is there.

Rings between peers never pass the daemon, so the only harm that a restart can do them is to take their CPU. Hence the
other side of that comparison is another daemon, with peers of its own, that is restarted just as often.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from doorbelld.bus.client import CallFailed, Client
from doorbelld.bus.names import MANAGER
from support import (
    ROOT,
    ROOT_PATH,
    VECTORS,
    Malfunction,
    Options,
    Report,
    Row,
    by_turns,
    column,
    directory,
    main,
    measure,
    peers,
    private_bus,
)

sys.path.append(str(ROOT / "tests" / "support"))  # not above: the name "support" is taken by the benchmarks' own

from fakesystemd import FakeSystemd

PATIENCE = 30.0


@contextlib.contextmanager
def site(options: Options, bus: str) -> Iterator[tuple[FakeSystemd, Path]]:
    """Run a daemon under the service manager, with one region; gives the region's socket too."""
    with directory() as place:
        config, path = place / "doorbelld.toml", place / "bench.sock"
        config.write_text(
            f'[daemon]\nruntime-directory = "{place}"\n[region.bench]\nsize = "4M"\nvectors = {VECTORS}\n'
            f'socket = "{path}"\nmax-peers = 2000\nhost-peer = false\n',
            "utf-8",
        )
        command = [options.daemon.executable, "--config", config, "--bus", bus, "--log-level", "warning"]
        environment = {"DOORBELLD_DBUS_LIBRARY": options.daemon.library}
        with FakeSystemd(place, command, environment=environment) as systemd:
            yield systemd.start(), path


def greeted(path: Path) -> float:
    """Connect, and tell when the greeting begins."""
    with socket.socket(socket.AF_UNIX) as newcomer:
        newcomer.settimeout(PATIENCE)
        newcomer.connect(str(path))
        if len(newcomer.recv(8)) != 8:
            raise Malfunction("a newcomer was not greeted")
        return time.monotonic()


async def restart(systemd: FakeSystemd, path: Path, bus: str) -> dict[str, float]:
    """Kill it and start it again while a client calls: milliseconds from the last answer on."""
    answers: list[float] = []

    async def call_on(client: Client) -> None:
        while True:
            try:
                await client.get(ROOT_PATH, MANAGER, "Version")
                answers.append(time.monotonic())
            except CallFailed:
                await asyncio.sleep(0.001)

    async with await Client.connect(bus) as client:
        caller = asyncio.create_task(call_on(client))
        await asyncio.sleep(0.2)
        systemd.end(signal.SIGKILL)
        newcomer = asyncio.create_task(asyncio.to_thread(greeted, path))
        systemd.start(wait=False)
        await asyncio.to_thread(systemd.wait_ready)
        first_byte = await newcomer
        await asyncio.sleep(0.2)
        caller.cancel()
    before, after = max(itertools.pairwise(answers), key=lambda pair: pair[1] - pair[0])
    return {"answer": (after - before) * 1e3, "greeting": (first_byte - before) * 1e3}


def gaps(options: Options, bus: str, count: int) -> list[dict[str, float]]:
    """Restart a daemon with that many peers a few times."""
    with site(options, bus) as (systemd, path), peers(path, count):
        return [asyncio.run(restart(systemd, path, bus)) for _ in range(options.rounds)]


@contextlib.contextmanager
def restarting(systemd: FakeSystemd) -> Iterator[None]:
    """Kill and start it over and over while the body runs."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.1):
            systemd.restart(signal.SIGKILL)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def benchmark(options: Options, report: Report) -> None:
    """Time restarts with few and with many peers; then rings while a daemon is restarted, theirs or another."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    few, many = (10, 50) if options.quick else (100, 1000)
    with private_bus() as bus:
        sides = {str(few): gaps(options, bus, few), str(many): gaps(options, bus, many)}
    report.add(
        Row(f"{few} peers: last answer to next", sorted(column(sides[str(few)], "answer"))[-1], "ms", target=500)
    )
    for key, what in (("answer", "next"), ("greeting", "first greeting")):
        ours, other = (column(sides[name], key) for name in (str(many), str(few)))
        report.add(Row.against(f"last answer to {what}, {many} : {few} peers", "ms", ours, other, 2))
    rounds = 5_000 if options.quick else 50_000
    with (
        private_bus() as bus,
        private_bus() as other_bus,
        site(options, bus) as (systemd, path),
        site(options, other_bus) as (elsewhere, other_path),
        peers(path, 10),
        peers(other_path, 10),
    ):

        def rings(of: FakeSystemd | None) -> dict[str, float]:
            with contextlib.nullcontext() if of is None else restarting(of):
                return measure("ring_pair", path, VECTORS, rounds)

        results = by_turns(
            {"here": lambda: rings(systemd), "elsewhere": lambda: rings(elsewhere), "none": lambda: rings(None)},
            options.rounds,
        )
    for number, target in (("median", 1.1), ("p99", None)):
        ours, other, none = (column(results[name], number) for name in ("here", "elsewhere", "none"))
        report.add(Row.against(f"rings during restarts, {number}, here : elsewhere", "us", ours, other, target))
        report.add(Row.against(f"rings during restarts, {number}, here : none", "us", ours, none))


if __name__ == "__main__":
    main("restart", benchmark, rounds=7)
