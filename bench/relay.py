# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a relay costs: two peers ring each other through it and directly, by turns."""

from __future__ import annotations

from contextlib import ExitStack

from support import VECTORS, Options, Report, Row, by_turns, column, main, measure, private_bus

PAUSES = {"one after the other": 0, "200 us apart": 200, "2 ms apart": 2000}


def benchmark(options: Options, report: Report) -> None:
    """Time rings close together and with pauses, and count them in a storm."""
    with ExitStack() as stack:
        sockets = {}
        for name, keys in (("relayed", "relay = true\n"), ("direct", "")):
            bus = stack.enter_context(private_bus())
            sockets[name] = stack.enter_context(options.daemon.start(bus, max_peers=2, keys=keys)).socket

        def compare(rounds: int, *mode: object) -> dict[str, list[dict[str, float]]]:
            turns = {
                name: lambda socket=socket: measure("ring_pair", socket, VECTORS, rounds, *mode)
                for name, socket in sockets.items()
            }
            return by_turns(turns, options.rounds)

        compare(1000)  # warm up
        for words, pause in PAUSES.items():
            both = compare(200 if options.quick or pause > 1000 else 2000 if pause else 10_000, pause)
            relayed, direct = column(both["relayed"], "median"), column(both["direct"], "median")
            report.add(Row.against(f"there and back, {words}, median", "us", relayed, direct))
            added = sorted((a - b) / 2 for a, b in zip(relayed, direct, strict=True))
            report.add(Row(f"added to a ring, {words}, median", added[len(added) // 2], "us", None, 10))
        both = compare(100_000 if options.quick else 3_000_000, "storm")
        relayed, direct = column(both["relayed"], "per_second"), column(both["direct"], "per_second")
        report.add(Row.against("storm", "rings/s", relayed, direct))
        report.add(Row("forwarded in a storm", sorted(relayed)[len(relayed) // 2], "rings/s", None, 500_000, True))


if __name__ == "__main__":
    main("relay", benchmark, rounds=6)
