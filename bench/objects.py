# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A thousand peers as D-Bus objects: listing them all, reading one, and whether the guests notice.

Guests ring each other through eventfds and never pass the daemon. So the only harm that a busy daemon can do them is
to take their CPU; how much that is depends on the machine, and is told without a target.
"""

from __future__ import annotations

from support import (
    BUS_NAME,
    REGION_PATH,
    ROOT_PATH,
    VECTORS,
    Options,
    Report,
    Row,
    by_turns,
    column,
    main,
    measure,
    medians,
    peers,
    private_bus,
    program,
    running,
)


def benchmark(options: Options, report: Report) -> None:
    """Time GetManagedObjects and Get; then rings with and without a client that lists for ever."""
    count = 100 if options.quick else 1000
    with private_bus() as bus, options.daemon.start(bus) as server, peers(server.socket, count):
        listing = (bus, BUS_NAME, ROOT_PATH, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", "latency")
        reading = (bus, BUS_NAME, f"{REGION_PATH}/peer/{count // 2}", f"{BUS_NAME}.Peer", "Backlog", "get")
        turns = {
            "list": lambda: measure("sdbus_client", *listing, 5),
            "get": lambda: measure("sdbus_client", *reading, 500),
        }
        results = {name: medians(samples) for name, samples in by_turns(turns, options.rounds).items()}
        for number, target in (("median", 250), ("max", None)):
            report.add(
                Row(f"GetManagedObjects, {count} peers, {number}", results["list"][number] / 1e3, "ms", None, target)
            )
        for number, target in (("median", 1), ("p99", None)):
            report.add(Row(f"Properties.Get on a peer, {number}", results["get"][number] / 1e3, "ms", None, target))

        def rings() -> dict[str, float]:
            return measure("ring_pair", server.socket, VECTORS, 2000 if options.quick else 20000)

        def rings_under_load() -> dict[str, float]:
            with running([str(program("sdbus_client")), *listing, "1000000000"]):
                return rings()

        both = by_turns({"loaded": rings_under_load, "idle": rings}, options.rounds)
        for number in ("median", "p99"):
            sides = column(both["loaded"], number), column(both["idle"], number)
            report.add(Row.against(f"ring there and back, while listing, {number}", "us", *sides))


if __name__ == "__main__":
    main("objects", benchmark, rounds=4)
