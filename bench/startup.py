# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""From starting the process until it greets a client and owns its bus name; and what it takes when idle."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from statistics import median

from support import Options, Report, Row, Server, main, private_bus, rss_mb, wait_for_name, wait_until


def greets(path: Path) -> bool:
    """Connect and tell whether a greeting comes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
            client.settimeout(5)
            return len(client.recv(8)) == 8
        except (FileNotFoundError, ConnectionRefusedError):
            return False


def started(options: Options, bus: str) -> tuple[float, float, float]:
    """Start it once: seconds until it greets, until it owns its name, and its idle memory."""
    start = time.monotonic()
    with options.daemon.start(bus, wait=False) as server:
        wait_until(lambda: greets(server.socket), "a greeting", server.process)
        greeted = time.monotonic() - start
        owned = wait_for_name(bus, server.process) - start
        settle(server)
        return greeted, owned, rss_mb(server.pid)


def settle(server: Server) -> None:
    """Wait until its memory stands still."""
    before = -1.0
    while before != (before := rss_mb(server.pid)):
        time.sleep(0.2)


def benchmark(options: Options, report: Report) -> None:
    """Start it a few times, each time on the same bus."""
    with private_bus() as bus:
        started(options, bus)  # its files are in the page cache from now on
        runs = [started(options, bus) for _ in range(options.rounds)]
    greeted, owned, rss = (median(column) for column in zip(*runs, strict=True))
    report.add(Row("start to greeting", greeted * 1e3, "ms"))
    report.add(Row("start to bus name", owned * 1e3, "ms"))
    report.add(Row("start to serving", max(greeted, owned) * 1e3, "ms", target=400))
    report.add(Row("idle resident memory", rss, "MB", target=39))


if __name__ == "__main__":
    main("startup", benchmark, rounds=7)
