# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""qemu-img and qemu-io as front-ends: their driver virtio-blk-vhost-user is libblkio's.

QEMU has that driver since 7.2, and Debian since 13, so these are Debian 13's programs.
"""

import subprocess
from pathlib import Path

from support import debian13

DEADLINE = 30.0


class ProgramFailed(Exception):
    """It ended with another status than 0; the text is what it said."""


def popen(program: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start a program."""
    return subprocess.Popen(
        debian13.command(program, arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(program: str, *arguments: str | Path) -> str:
    """Run a program and return what it said.

    Raises:
        ProgramFailed: its status is not 0.
    """
    with popen(program, *arguments) as process:
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
