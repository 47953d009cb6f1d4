# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sixteen devices of one daemon, all busy: do they move as much as one alone, and does anybody else notice?

They are disks, which read what is in the page cache: no disk sets the pace, so the CPUs do, and what counts is what is
lost to sixteen threads getting in each other's way. The front-ends, ``c/blk_load.c``, have one CPU, the daemon has the
other.

Who else there is: callers on D-Bus, whom the daemon's one event loop serves beside sixteen busy threads, and rings
between ivshmem peers, which never pass the daemon. With as many CPUs taken as there are, both have to wait for one. So
the other side is the same load on a daemon next to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from blk import SMALL, images, table
from support import (
    BUS_NAME,
    ROOT_PATH,
    VECTORS,
    Malfunction,
    Options,
    Report,
    Row,
    Server,
    by_turns,
    column,
    main,
    measure,
    on_cpu,
    peers,
    private_bus,
    program,
    running,
    two_cpus,
)

DEVICES = 16
DEPTH = 64
ENTRIES = 128
FOR_EVER = 100_000
"""Seconds."""


@dataclass(frozen=True)
class Site:
    """A daemon with its devices."""

    bus: str
    server: Server
    sockets: Sequence[Path]

    def move(self, count: int, seconds: float, cpu: int) -> float:
        """Have *count* devices read; requests a second in all."""
        return measure("blk_load", "read", DEPTH, ENTRIES, seconds, *self.sockets[:count], cpu=cpu)["per_second"]

    @contextlib.contextmanager
    def busy(self, cpu: int) -> Iterator[None]:
        """Have all devices read while the body runs."""
        command = [
            *on_cpu(cpu),
            str(program("blk_load")),
            "read",
            str(DEPTH),
            str(ENTRIES),
            str(FOR_EVER),
            *map(str, self.sockets),
        ]
        with running(command) as load:
            yield
            if load.poll() is not None:
                raise Malfunction(f"blk_load ended with {load.returncode}")

    def notify(self, calls: int) -> dict[str, float]:
        """Ring a peer through the manager, one call after the other; microseconds."""
        manager = (BUS_NAME, ROOT_PATH, f"{BUS_NAME}.Manager")
        return measure("sdbus_client", self.bus, *manager, "Notify", "region", calls, 0, 0, "bench")

    def look(self, calls: int) -> dict[str, float]:
        """Ask a device for a number that changes all the time, one call after the other; microseconds."""
        device = (BUS_NAME, f"{ROOT_PATH}/device/disk0", f"{BUS_NAME}.Device")
        return measure("sdbus_client", self.bus, *device, "Requests", "get", calls)


@contextlib.contextmanager
def site(options: Options, image: Path, cpu: int) -> Iterator[Site]:
    """Run a daemon with that many disks, all of the same image, and one peer to ring."""
    names = [f"disk{number}" for number in range(DEVICES)]
    with (
        private_bus() as bus,
        options.daemon.start(bus, cpu=cpu, devices=dict.fromkeys(names, table(image))) as server,
        peers(server.socket, 1),
    ):
        yield Site(bus, server, [server.device(name) for name in names])


def benchmark(options: Options, report: Report) -> None:
    """Compare sixteen with one, then see what others notice."""
    seconds, calls, rings = (0.2, 200, 2_000) if options.quick else (1.0, 2_000, 20_000)
    here, there = two_cpus()
    with (
        images(16 if options.quick else 256, SMALL) as (image, _),
        site(options, image, there) as ours,
        site(options, image, there) as other,
    ):
        moved = by_turns(
            {
                "all": lambda: ours.move(DEVICES, seconds, here),
                "one": lambda: ours.move(1, seconds, here),
            },
            options.rounds,
        )
        report.add(
            Row.against(
                f"{DEVICES} devices, in all, against one", "1/s", moved["all"], moved["one"], 0.9, at_least=True
            )
        )

        def others_notice(loaded: Site | None) -> dict[str, dict[str, float]]:
            with contextlib.nullcontext() if loaded is None else loaded.busy(here):
                return {
                    "Notify": ours.notify(calls),
                    "Get": ours.look(calls),
                    "ring": measure("ring_pair", ours.server.socket, VECTORS, rings),
                }

        found = by_turns(
            {
                "here": lambda: others_notice(ours),
                "elsewhere": lambda: others_notice(other),
                "none": lambda: others_notice(None),
            },
            options.rounds,
        )
    for what, number, target in (
        ("Notify", "median", None),
        ("Notify", "p99", 5),
        ("Get", "median", None),
        ("Get", "p99", 5),
        ("ring", "median", None),
        ("ring", "p99", None),
    ):
        mine, theirs, quiet = (
            column([sample[what] for sample in found[side]], number) for side in ("here", "elsewhere", "none")
        )
        if target is not None:
            report.add(Row(f"{what} meanwhile, {number}", median(mine) / 1e3, "ms", target=target))
        against = 1.1 if (what, number) == ("ring", "median") else None
        report.add(Row.against(f"{what} meanwhile, {number}, here : elsewhere", "us", mine, theirs, against))
        report.add(Row.against(f"{what} meanwhile, {number}, here : none", "us", mine, quiet))


if __name__ == "__main__":
    main("devices", benchmark, rounds=5)
