# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux driver in User-Mode Linux: a kernel as a process, whose virtio devices are all vhost-user.

Theory of operation: Debian's UML kernel boots with an initramfs of the drivers asked for, and one ``virtio_uml.device``
for each socket. Its first console is the process's output, the second one carries the line protocol of the guest's
program. It boots in a second or two, has one processor, and its disks are /dev/vda and on in the order of the devices.
"""

import contextlib
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

from support.guest.initramfs import AGENT, DISK, build_initramfs
from support.guest.talk import Linux
from support.needs import require

_MODULES = Path("/usr/lib/uml/modules")


class Uml(Linux):
    """A guest that runs while the `with` block runs; *devices* are (socket, virtio ID)."""

    def __init__(
        self,
        devices: Iterable[tuple[str, int]],
        modules: Sequence[str] = (),
        *,
        name: str = "uml",
        memory: int = 128,
        log_file: Path | None = None,
    ) -> None:
        super().__init__(name, log_file)
        self._devices = list(devices)
        self._modules = modules
        self._memory = memory

    def _command(self, control: int) -> list[str | Path]:
        kernel = require("linux.uml", "user-mode-linux")
        tree = next(require(str(_MODULES), "user-mode-linux").iterdir())
        initrd = build_initramfs(tree, modules=self._modules, programs=(AGENT, DISK))
        words = [f"mem={self._memory}M", f"initrd={initrd}", "quiet", "panic=1"]
        words += [f"virtio_uml.device={path}:{number}" for path, number in self._devices]
        words += ["con=null", "con0=null,fd:1", f"con1=fd:{control},fd:{control}", "program=agent", "port=tty1"]
        return [kernel, *words]

    def kill(self) -> None:
        """Kill it with the processes that run its programs: they would live on, stopped, with all it had open."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it makes itself the first of a group early on
                os.killpg(self.pid, signal.SIGKILL)
        super().kill()
