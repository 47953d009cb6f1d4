# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of Debian 13, whatever Debian this host is: today's QEMU, its block layer with libblkio, libvirt, valgrind.

Theory of operation: mmdebstrap unpacks the packages with all that they depend on into a cached folder; nothing is
installed or configured. A program runs in a mount namespace of its own where that folder's /usr lies over the host's.
All else is the host's: sockets, images, /dev, /proc, process IDs and users. The namespace ends with the last process
in it. What is below /usr of the host can't be seen from there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from support.machine.root import bootstrap
from support.needs import require

_PACKAGES = (
    *("qemu-system-x86", "qemu-utils", "qemu-block-extra"),
    *("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients"),
    *("valgrind", "libc6-dbg"),
    "util-linux",
)

_START = 'mount --bind "$0/usr" /usr && name=$1 && shift && exec -a "$name" "$@"'


def command(program: str, arguments: Sequence[str | Path], *, name: str = "") -> list[str | Path]:
    """Tell how to start a program of Debian 13; the process that is started becomes the program.

    *name* is what it is called in /proc/PID/cmdline, if not *program*.
    """
    unshare = require("unshare", "util-linux")
    bash = require("bash", "bash")
    require("mount", "mount")
    return [unshare, "--mount", bash, "-c", _START, _root(), name or program, program, *arguments]


@cache
def _root() -> Path:
    if os.geteuid():
        pytest.skip("unpacking another Debian needs root")
    return bootstrap("trixie", _PACKAGES, variant="extract")
