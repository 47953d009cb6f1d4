# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a disk's guest notices while somebody attacks the daemon that serves it.

The attackers, ``attacker.py``, are user nobody and may open a region's and a device's socket. They take a CPU wherever
they are, and so does a daemon that refuses them: the other side is the same attack on a daemon next to it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attacker import KINDS
from blk import SMALL, images, table
from support import (
    ROOT,
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
    private_bus,
    running,
    two_cpus,
)

DOUBLE = 2.0
"""How much longer the slowest hundredth of the requests may take."""


@dataclass(frozen=True)
class Site:
    """A daemon with a disk, and what is attacked beside it."""

    server: Server

    @property
    def targets(self) -> list[str]:
        """The sockets that everybody may open."""
        return [str(self.server.socket), str(self.server.device("other"))]

    def read(self, depth: int, seconds: float, cpu: int) -> dict[str, float]:
        """Read from the disk."""
        return measure("blk_load", "read", depth, 256, seconds, self.server.device("disk"), cpu=cpu)


@contextlib.contextmanager
def site(options: Options, image: Path, cpu: int) -> Iterator[Site]:
    """Run a daemon."""
    devices = {"disk": table(image), "other": 'type = "rng"\nmode = "0666"\n'}
    with private_bus() as bus, options.daemon.start(bus, cpu=cpu, devices=devices, keys='mode = "0666"\n') as server:
        place = server.socket.parent
        for folder in (place, *(path.parent for path in (server.device("disk"), server.device("other")))):
            os.chmod(folder, 0o755)
        yield Site(server)


def attacked(kind: str, victim: Site, measured: Site, depth: int, seconds: float) -> dict[str, float]:
    """Measure one daemon while *victim*, which may be the same, is attacked."""
    here, _ = two_cpus()
    script = str(ROOT / "bench" / "attacker.py")
    with running([*on_cpu(here), sys.executable, script, kind, *victim.targets]) as attacker:
        found = measured.read(depth, seconds, here)
        if attacker.poll() is not None:
            raise Malfunction(f"attacker.py {kind} ended with {attacker.returncode}")
    return found


def benchmark(options: Options, report: Report) -> None:
    """Each attack by turns on the daemon that is measured, and on the one beside it."""
    seconds = 0.3 if options.quick else 2.0
    _, there = two_cpus()
    with (
        images(16 if options.quick else 64, SMALL) as (image, _),
        site(options, image, there) as ours,
        site(options, image, there) as other,
    ):
        for kind in KINDS:
            for depth in (1, 64):
                turn = functools.partial(attacked, kind, measured=ours, depth=depth, seconds=seconds)
                sides = {
                    "here": functools.partial(turn, victim=ours),
                    "elsewhere": functools.partial(turn, victim=other),
                }
                found = by_turns(sides, options.rounds)
                mine, theirs = (column(each, "p99") for each in found.values())
                report.add(Row.against(f"read p99, depth {depth}, {kind}", "us", mine, theirs, DOUBLE))


if __name__ == "__main__":
    main("attacked", benchmark, rounds=5)
