# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a change costs: this tree's daemon and that of another commit, by turns, on what must never become slower.

The other commit is checked out into build/before and installed there, once: that takes a minute or two.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from blk import SMALL, images, table
from join_storm import storm
from startup import started
from support import (
    BUILD,
    BUS_NAME,
    REGION_PATH,
    Daemon,
    Options,
    Report,
    Row,
    Server,
    by_turns,
    column,
    main,
    measure,
    output,
    peers,
    private_bus,
    two_cpus,
)

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = 1.03
"""How much slower it may be, by the median of the rounds."""
DEPTH = 32


def daemon_of(commit: str) -> Path:
    """Give the doorbelld of *commit*, which is built if it is not there yet."""
    name = output(["git", "-C", str(ROOT), "rev-parse", "--verify", f"{commit}^{{commit}}"]).strip()
    tree = BUILD.parent / "before" / name[:12]
    program = tree / ".venv" / "bin" / "doorbelld"
    if not program.exists():
        print(f"building {tree.name} ...", file=sys.stderr)
        tree.mkdir(parents=True, exist_ok=True)
        output(["sh", "-c", 'git -C "$0" archive "$1" | tar -x -C "$2"', str(ROOT), name, str(tree)])
        output([sys.executable, "-m", "venv", str(tree / ".venv")])
        output([str(program.with_name("pip")), "install", "--quiet", "--editable", f"{tree}[fast]"])
    return program


@contextlib.contextmanager
def disk(options: Options, image: Path, cpu: int) -> Iterator[Server]:
    """Run a daemon with a disk."""
    with private_bus() as bus, options.daemon.start(bus, cpu=cpu, devices={"disk": table(image)}) as server:
        yield server


def benchmark(options: Options, report: Report, commit: str) -> None:
    """A storm of joins, calls of Notify, a disk, and the start."""
    sides = {"ours": options, "before": replace(options, daemon=Daemon(daemon_of(commit)))}
    here, there = two_cpus()

    def add(what: str, unit: str, found: dict[str, list[dict[str, float]]], key: str) -> None:
        mine, theirs = (column(each, key) for each in found.values())
        rate = unit.endswith("/s")
        report.add(Row.against(what, unit, mine, theirs, 1 / ALLOWED if rate else ALLOWED, at_least=rate))

    with private_bus() as bus:
        start = {name: functools.partial(side.daemon.start, bus, cpu=here) for name, side in sides.items()}
        found = by_turns({name: functools.partial(storm, start[name], 100, here) for name in sides}, 3 * options.rounds)
    add("100 peers join, one CPU", "s", found, "seconds")
    add("100 peers join, the daemon's CPU time", "s", found, "server_cpu")

    calls = 300 if options.quick else 10_000
    with contextlib.ExitStack() as stack:
        buses = {name: stack.enter_context(private_bus()) for name in sides}
        for name, side in sides.items():
            stack.enter_context(peers(stack.enter_context(side.daemon.start(buses[name])).socket, 1))

        def notify(mode: str, *arguments: int) -> dict[str, list[dict[str, float]]]:
            call = (BUS_NAME, REGION_PATH, f"{BUS_NAME}.Region", "Notify", mode, *arguments)
            turns = {name: functools.partial(measure, "sdbus_client", bus, *call) for name, bus in buses.items()}
            return by_turns(turns, 2 * options.rounds)

        add("Notify, median", "us", notify("latency", calls, 0, 0), "median")
        add(f"Notify, {DEPTH} in flight", "calls/s", notify("pipeline", calls * 5, DEPTH, 0, 0), "per_second")

    with contextlib.ExitStack() as stack:
        image, _ = stack.enter_context(images(16 if options.quick else 64, SMALL))
        disks = {name: stack.enter_context(disk(side, image, there)).device("disk") for name, side in sides.items()}
        for depth in (64, 1):
            load = functools.partial(measure, "blk_load", "read", depth, 256, 0.1 if options.quick else 0.5)
            found = by_turns(
                {name: functools.partial(load, socket, cpu=here) for name, socket in disks.items()}, 3 * options.rounds
            )
            if depth == 1:
                add("cached read, alone", "us", found, "median")
            else:
                add(f"cached reads, {depth} in flight", "1/s", found, "per_second")

    with private_bus() as bus:

        def begin(side: Options) -> dict[str, float]:
            greeted, owned, memory = started(side, bus)
            return {"seconds": max(greeted, owned), "memory": memory}

        found = by_turns({name: functools.partial(begin, side) for name, side in sides.items()}, 2 * options.rounds)
    add("start to serving", "s", found, "seconds")
    add("idle resident memory", "MB", found, "memory")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: bench/before.py COMMIT [--rounds N] [--quick] [--daemon PATH]")
    main("before", functools.partial(benchmark, commit=sys.argv.pop(1)), rounds=5)
