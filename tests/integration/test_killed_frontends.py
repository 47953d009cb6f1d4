# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Front-ends are killed at any moment, hundreds of them: nothing stays behind, and nobody else notices."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.busctl import Busctl
from support.daemon import Daemon
from support.dbusclient import until
from support.frontendload import Nursery, disk_content
from support.rawclient import RawClient

CONFIG = """\
[region.demo]
[device.disk]
type = "blk"
path = "{folder}/disk"
aio = "{aio}"
cache = "{cache}"
[device.entropy]
type = "rng"
[device.echo]
type = "loopback"
[device.calm]
type = "blk"
path = "{folder}/calm"
"""
KILLED = {"disk": "blk", "entropy": "rng", "echo": "loopback"}
SETUP = 30
"""Dots until requests begin, about."""
GROWTH = 1024
"""KiB: less than a page for each front-end that was killed."""


@dataclass(frozen=True)
class Belongings:
    """What a process has."""

    descriptors: dict[str, int]
    """By what they lead to."""
    threads: list[str]
    guest_memory: int
    """Mappings of it."""
    mappings: int
    resident: int
    """KiB"""

    @classmethod
    def of(cls, pid: int) -> Belongings:
        """Look at process *pid*."""
        proc = Path(f"/proc/{pid}")
        descriptors: dict[str, int] = {}
        for fd in os.listdir(proc / "fd"):
            kind = os.readlink(proc / "fd" / fd).partition(":")[0]
            descriptors[kind] = descriptors.get(kind, 0) + 1
        threads = sorted((task / "comm").read_text().strip() for task in (proc / "task").iterdir())
        mappings = (proc / "maps").read_text().splitlines()
        return cls(
            descriptors,
            [name for name in threads if not name.startswith("iou-wrk")],  # the kernel's, which come and go
            sum("/memfd:guest" in mapping for mapping in mappings),
            len(mappings),
            int((proc / "status").read_text().partition("VmRSS:")[2].split()[0]),
        )


def rest(bus: Busctl) -> None:
    """Wait until those that were killed are cleared away."""
    until(lambda: all(bus.get(f"/device/{name}", "Device", "State") == "listening" for name in KILLED))


def kill(nursery: Nursery, daemon: Daemon, chance: random.Random, count: int) -> None:
    """Kill so many front-ends of each device, while they are set up or later, each right before the next one comes."""
    for number in range(count):
        for name, kind in KILLED.items():
            nursery.start(kind, str(daemon.socket(name)), seed=number)
            nursery.kill_after(chance.randint(0, SETUP) if chance.random() < 0.4 else chance.randint(SETUP, 6 * SETUP))


@pytest.mark.parametrize(("aio", "cache"), [("auto", "buffered"), ("threads", "direct")])
def test_a_hundred_of_each_kind(short_path: Path, aio: str, cache: str) -> None:
    chance = random.Random(9)
    for name in ("disk", "calm"):
        (short_path / name).write_bytes(disk_content())
    config = CONFIG.format(folder=short_path, aio=aio, cache=cache)
    with (
        Daemon(short_path, config) as daemon,
        Nursery() as calm,
        Nursery() as nursery,
        RawClient(str(daemon.socket()), keep=True) as peer,
    ):
        bus = Busctl(daemon.bus)
        peer.greet(4)
        calm.start("blk", str(daemon.socket("calm")), steady=True)
        kill(nursery, daemon, chance, 15)
        rest(bus)
        before = Belongings.of(daemon.pid)

        kill(nursery, daemon, chance, 100)
        rest(bus)
        after = Belongings.of(daemon.pid)
        assert (after.descriptors, after.threads) == (before.descriptors, before.threads)
        assert after.guest_memory == before.guest_memory == 1  # of the calm one
        assert after.mappings < before.mappings + 20  # those of the heap come and go
        assert after.resident < before.resident + GROWTH

        for name, kind in KILLED.items():
            assert bus.get(f"/device/{name}", "Device", "Reason") == "it closed its connection"
            nursery.start(kind, str(daemon.socket(name)), steady=True)
            assert nursery.finish() > 0
        assert calm.finish() > 0
        assert [bus.get(f"/device/{name}", "Device", "Errors") for name in ("disk", "calm")] == [0, 0]
        bus.call("/region/demo", "Region", "Notify", "qq", 0, 3)
        assert os.eventfd_read(peer.fds[0][3]) == 1  # the peer is there, and so is its doorbell
        assert "refused" not in daemon.log and "broken" not in daemon.log
    for name in ("disk", "calm"):
        assert (short_path / name).read_bytes() == disk_content()
