# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Ringing over D-Bus: ours with either D-Bus library against a service in C (sd-bus) that does nothing else.

Each side has a dbus-daemon of its own, all alike, and the same client in C calls them by turns.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from support import (
    BUS_NAME,
    REGION_PATH,
    VECTORS,
    Options,
    Report,
    Row,
    by_turns,
    column,
    main,
    measure,
    peers,
    private_bus,
    sdbus_service,
)

DEPTH = 32
ENTRIES = 64


def benchmark(options: Options, report: Report) -> None:
    """Latency of one call, rate of many in flight, and many rings in one call."""
    calls = 300 if options.quick else 10_000  # fewer say more of where the scheduler put us
    with ExitStack() as stack:
        buses = {name: stack.enter_context(private_bus()) for name in ("dbus_fast", "dbus_next", "sd-bus")}
        for library in ("dbus_fast", "dbus_next"):
            server = stack.enter_context(replace(options.daemon, library=library).start(buses[library]))
            stack.enter_context(peers(server.socket, 1))
        stack.enter_context(sdbus_service(buses["sd-bus"]))

        def compare(method: str, mode: str, *arguments: int) -> dict[str, list[dict[str, float]]]:
            turns = {
                name: lambda bus=bus: measure(
                    "sdbus_client", bus, BUS_NAME, REGION_PATH, f"{BUS_NAME}.Region", method, mode, *arguments
                )
                for name, bus in buses.items()
            }
            return by_turns(turns, options.rounds)

        compare("Notify", "latency", 1000, 0, 0)  # warm up
        one = compare("Notify", "latency", calls, 0, 0)
        many = compare("NotifyMany", "many", calls, ENTRIES, 0, VECTORS)
        rate = compare("Notify", "pipeline", calls * 5, DEPTH, 0, 0)
    plain = "sd-bus"
    for name, judged in (("dbus_fast", True), ("dbus_next", False)):

        def add(
            what: str,
            key: str,
            unit: str,
            ours: list[dict[str, float]],
            other: list[dict[str, float]],
            target: float | None,
            at_least: bool = False,
            name: str = name,
            judged: bool = judged,
        ) -> None:
            target = target if judged else None
            sides = column(ours, key), column(other, key)
            report.add(Row.against(f"{what}: {name}", unit, *sides, target, at_least=at_least))

        add("Notify, median", "median", "us", one[name], one[plain], 1.5)
        add("Notify, p99", "p99", "us", one[name], one[plain], None)
        add(f"Notify, {DEPTH} in flight", "per_second", "calls/s", rate[name], rate[plain], 0.5, at_least=True)
        add(f"NotifyMany of {ENTRIES} against one Notify", "median", "us", many[name], one[name], 1.5)
        add(f"NotifyMany of {ENTRIES}", "median", "us", many[name], many[plain], None)
    sides = column(many[plain], "median"), column(one[plain], "median")
    report.add(Row.against(f"NotifyMany of {ENTRIES} against one Notify: {plain}", "us", *sides))


if __name__ == "__main__":
    main("dbus_notify", benchmark, rounds=6)
