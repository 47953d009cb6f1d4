# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""qemu-img and qemu-io as front-ends: their driver virtio-blk-vhost-user is libblkio's.

Theory of operation: QEMU has that driver since 7.2, and Debian since 13. So the programs come from there, whatever
Debian this host is: unpacked with all that they depend on, not installed, and run by a dynamic loader and with
libraries of their own. There is no other root for them, so sockets and images have the paths that they have here.
"""

import os
import subprocess
from pathlib import Path

import pytest

from support.machine.root import bootstrap

SUITE = "trixie"
PACKAGES = ("qemu-utils", "qemu-block-extra")
DEADLINE = 30.0


class ProgramFailed(Exception):
    """It ended with another status than 0; the text is what it said."""


class Tools:
    """The programs; made once."""

    def __init__(self) -> None:
        if os.geteuid():
            pytest.skip("unpacking another Debian needs root")
        self._root = bootstrap(SUITE, PACKAGES, variant="extract")
        (loader,) = self._root.glob("usr/lib*/ld-linux*.so.*")
        (modules,) = self._root.glob("usr/lib/*/qemu")
        self._start = [str(loader), "--library-path", str(modules.parent)]
        self._environment = {**os.environ, "QEMU_MODULE_DIR": str(modules)}

    def popen(self, program: str, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start a program."""
        return subprocess.Popen(
            [*self._start, self._root / "usr/bin" / program, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run a program and return what it said.

        Raises:
            ProgramFailed: its status is not 0.
        """
        with self.popen(program, *arguments) as process:
            try:
                said, _ = process.communicate(timeout=DEADLINE)
            finally:
                process.kill()
        if process.returncode:
            raise ProgramFailed(said)
        return said


def disk(socket: str) -> str:
    """Name the disk behind *socket* as ``--image-opts`` wants it."""
    return f"driver=virtio-blk-vhost-user,path={socket.replace(',', ',,')},cache.direct=on"
