# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An rng device of the daemon against a loop that calls getrandom.

What a guest draws comes out of the same system call, so the loop is what is left if all that we do were free. The
front-end has one CPU; the daemon, and the loop in its turn, have the other.
"""

from __future__ import annotations

from support import Options, Report, Row, by_turns, column, drive, main, measure, private_bus, two_cpus

PIECE = 4096
DEPTH = 64


def benchmark(options: Options, report: Report) -> None:
    """Draw 4 KiB at a time, many at once and one at a time."""
    seconds = 0.2 if options.quick else 1.0
    here, there = two_cpus()
    with private_bus() as bus, options.daemon.start(bus, cpu=there, devices={"entropy": 'type = "rng"'}) as server:
        socket = server.device("entropy")
        found = by_turns(
            {
                "ours": lambda: drive(socket, 0, PIECE, DEPTH, seconds, cpu=here),
                "loop": lambda: measure("getrandom_loop", PIECE, seconds, cpu=there),
                "alone": lambda: drive(socket, 0, PIECE, 1, seconds, cpu=here),
            },
            options.rounds,
        )
    rates = {side: column(samples, "per_second") for side, samples in found.items()}
    what = f"{PIECE} bytes"
    report.add(
        Row.against(f"{what}, {DEPTH} in flight, bare loop", "1/s", rates["ours"], rates["loop"], 0.8, at_least=True)
    )
    report.add(Row.against(f"{what}, alone, bare loop", "1/s", rates["alone"], rates["loop"], at_least=True))


if __name__ == "__main__":
    main("rng", benchmark, rounds=7)
