# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""doorbelld.service in a machine, as an administrator handles it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from support.busctl import Busctl
from support.machine.container import DEADLINE, Machine, MachineError

UNIT = "doorbelld.service"
CONFIG = "/etc/doorbelld/doorbelld.toml"


class MachineBus(Busctl):
    """busctl in a machine, on its system bus, as root or as *user*."""

    def __init__(self, machine: Machine, user: str = "") -> None:
        self._command = [*machine.command("busctl", user=user), "--system", "--json=short"]


class Service:
    """The service, its sockets and its configuration."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.bus = MachineBus(machine)

    def configure(self, regions: str) -> None:
        """Replace the configuration file."""
        self.machine.path(CONFIG).write_text(regions)

    def start(self) -> None:
        """Start it; it is ready then."""
        self.machine.systemctl("start", UNIT)

    def stop_all(self) -> None:
        """Stop it with all of its sockets, and forget that anything failed."""
        self.machine.systemctl("stop", "doorbelld.socket", "doorbelld@*.socket", "doorbelld-device@*.socket", UNIT)
        self.machine.systemctl("reset-failed")

    def show(self, name: str) -> str:
        """Read a property of the service, such as ActiveState or NRestarts."""
        return self.machine.show(UNIT, name)

    @property
    def pid(self) -> int:
        """The daemon's process, as the machine numbers it; 0 if there is none."""
        return int(self.show("MainPID"))

    def socket(self, region: str = "demo") -> Path:
        """Where guests of *region* connect, as seen from this host."""
        return self.machine.path(f"/run/doorbelld/{region}/socket")

    def until(self, name: str, fits: Callable[[str], bool], timeout: float = DEADLINE) -> str:
        """Wait until a property of the service fits, and give it.

        Raises:
            MachineError: it does not come to that in time.
        """
        deadline = time.monotonic() + timeout
        while not fits(value := self.show(name)):
            if time.monotonic() > deadline:
                raise MachineError(f"{name} stays {value!r}\n{self.log()}")
            time.sleep(0.02)
        return value

    def until_back(self, pid: int) -> int:
        """Wait until it is ready again in another process than *pid*, and give that."""
        self.until("MainPID", lambda value: value not in ("0", str(pid)))
        self.until("ActiveState", lambda value: value == "active")
        return self.pid

    def log(self) -> str:
        """The last lines of its journal."""
        return self.machine.run("journalctl", "--no-pager", "--lines=40", f"--unit={UNIT}", "--output=short").stdout
