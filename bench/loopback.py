# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A device in Python: how many requests a second it answers, in the daemon, and how long one takes.

The device is the loopback, which copies what it is sent. The front-end has one CPU, the daemon the other.
"""

from __future__ import annotations

from statistics import median

from support import Options, Report, Row, by_turns, column, drive, main, private_bus, two_cpus

BYTES = 64
DEPTH = 64


def benchmark(options: Options, report: Report) -> None:
    """Answer small requests, many at once and one at a time; then larger ones."""
    seconds = 0.2 if options.quick else 1.0
    here, there = two_cpus()
    with private_bus() as bus, options.daemon.start(bus, cpu=there, devices={"echo": 'type = "loopback"'}) as server:
        socket = server.device("echo")
        found = by_turns(
            {
                "many": lambda: drive(socket, BYTES, BYTES, DEPTH, seconds, cpu=here),
                "alone": lambda: drive(socket, BYTES, BYTES, 1, seconds, cpu=here),
                "large": lambda: drive(socket, 4096, 4096, DEPTH, seconds, cpu=here),
            },
            options.rounds,
        )
    many, large = (median(column(found[name], "per_second")) for name in ("many", "large"))
    report.add(Row(f"{BYTES} bytes there and back, {DEPTH} in flight", many, "1/s", target=60_000, at_least=True))
    report.add(Row(f"4096 bytes there and back, {DEPTH} in flight", large, "1/s"))
    report.add(Row(f"{BYTES} bytes there and back, alone", median(column(found["alone"], "mean")), "us"))


if __name__ == "__main__":
    main("loopback", benchmark, rounds=7)
