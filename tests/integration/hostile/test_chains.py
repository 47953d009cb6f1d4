# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests whose requests are all of a device's time and memory: everybody else is served as before."""

from __future__ import annotations

import contextlib
import os
import re
import select
from pathlib import Path

import pytest
from doorbelld.vhost.frontend import BackendFailed, Frontend
from support.daemon import DEADLINE
from support.devicepackage import device_package
from support.heartbeat import Attack, under_way, watched
from support.needs import require

GUEST = 4 << 20
"""Bytes of the attacker's guest memory, to which all its descriptors point."""
DOCS = Path(__file__).parents[3] / "docs" / "devices.md"


def documented() -> str:
    """Give the device that docs/devices.md has as an example."""
    found = re.search(r"^```python\n(.*?)^```$", DOCS.read_text(), re.M | re.S)
    assert found is not None
    return found[1].replace("class Reverse", "class Its")


def ask_for_everything(path: str, readable: int, writable: int) -> None:
    """Send requests of so many buffers, each of which is half of guest memory, and connect again when that fails."""
    under_way()
    while True:
        with contextlib.suppress(BackendFailed, OSError), Frontend.connect(path, memory_size=GUEST) as frontend:
            (ring,) = frontend.start(num=1024)
            memory = frontend.take(GUEST // 2)
            ring.add([(memory, GUEST // 2)] * readable, [(memory, GUEST // 2)] * writable)
            os.eventfd_read(ring.call_fd)  # a new call descriptor is signalled once
            ring.kick()
            select.select([frontend.sock, ring.call_fd], [], [], DEADLINE)
            print("answered", flush=True)


@pytest.mark.parametrize("kind", ["reverse", "loopback"])
def test_chain_of_overlapping_buffers_costs_nobody_else(short_path: Path, kind: str) -> None:
    require("dbus-daemon", "dbus-daemon")
    environment = device_package(short_path / "packages", {"reverse": documented()})
    config = f'[device.victim]\ntype = "{kind}"\n'
    with watched(short_path, config, environment=environment) as site:
        with Attack(ask_for_everything, str(site.daemon.socket("victim")), 512, 500) as attack:
            for _ in range(4):
                attack.line()
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{site.daemon.pid}/status").read_text(), re.M)
        assert peak is not None and (int(peak[1]) << 10) - site.before.memory < 64 << 20, "memory, at its peak"
