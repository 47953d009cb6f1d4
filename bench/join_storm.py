# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Many peers join at once: how long until each of them knows all doorbells of all others, against a plain C server.

On one CPU the time is the work of both ends together; on a CPU each it is also how well the two go hand in hand.
Left to the scheduler it would be now one and now the other, so both are measured by themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

from support import (
    VECTORS,
    Options,
    Report,
    Row,
    Server,
    by_turns,
    column,
    cpu_seconds,
    main,
    medians,
    peers,
    plain_server,
    private_bus,
    rss_mb,
)

Start = Callable[[], AbstractContextManager[Server]]


def storm(start: Start, count: int, cpu: int) -> dict[str, float]:
    """Start a server, let *count* peers join, and look."""
    with start() as server:
        rss, used = rss_mb(server.pid), cpu_seconds(server.pid)
        with peers(server.socket, count, cpu=cpu) as joined:
            return {
                **joined,
                "per_message": joined["seconds"] / joined["messages"] * 1e6,
                "server_cpu": cpu_seconds(server.pid) - used,
                "rss_growth": rss_mb(server.pid) - rss,
            }


def benchmark(options: Options, report: Report) -> None:
    """Storms of 100 peers by turns; then greater ones, for what a message costs and what a peer takes."""
    cpus = sorted(os.sched_getaffinity(0))
    with private_bus() as bus:
        sides: dict[str, Start] = {
            "ours": lambda: options.daemon.start(bus, cpu=cpus[0]),
            "other": lambda: plain_server(cpu=cpus[0]),
        }

        def compare(count: int, cpu: int, rounds: int) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
            turns = {name: lambda start=start: storm(start, count, cpu) for name, start in sides.items()}
            results = by_turns(turns, rounds)
            return results["ours"], results["other"]

        for cpu, where in ((cpus[0], "one CPU"), *([(cpus[1], "a CPU each")] if len(cpus) > 1 else [])):
            ours, other = compare(100, cpu, options.rounds)
            for what, key, target in (("", "seconds", 1.2), (", server's CPU time", "server_cpu", None)):
                row = f"100 peers x {VECTORS}, {where}{what}"
                report.add(Row.against(row, "s", column(ours, key), column(other, key), target))
        first: dict[str, float] = {}
        for count in (250,) if options.quick else (250, 500, 1000):
            ours, other = compare(count, cpus[-1], 1 if count == 1000 else 2)
            what = f"{count} peers x {VECTORS}: a message"
            report.add(Row.against(what, "us", column(ours, "per_message"), column(other, "per_message")))
            for side, samples in (("ours", ours), ("plain", other)):
                cost = medians(samples)["per_message"]
                if count > 250:
                    target = 1.2 if side == "ours" else None
                    report.add(Row.against(f"{what}, against 250 peers: {side}", "us", [cost], [first[side]], target))
                else:
                    first[side] = cost
            if count == 1000:
                growth = medians(ours)["rss_growth"]
                report.add(Row(f"{count} peers x {VECTORS}: growth of resident memory", growth, "MB", target=25))


if __name__ == "__main__":
    main("join_storm", benchmark, rounds=5)
