# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""``doorbelld-vhost-user-blk``: a raw file or a block device of the host as a disk for one virtual machine."""

from __future__ import annotations

import click

from ..devices.blk import Blk
from ..vhost.device import QUEUES_MAX
from .program import Program, enter

_ABOUT = """\
Give a virtual machine a disk: a virtio block device, on a raw file or a block device of the host.

What is in the host's page cache is read and written at once; what has to wait is done with io_uring, and holds up
nothing else. The image is locked as QEMU locks it, so nobody else writes to it meanwhile.

SIGTERM and SIGINT stop it. SIGHUP has it look at the size of the image again, and tell the guest.
"""
_EXAMPLES = """\
  doorbelld-vhost-user-blk --socket-path=/run/vm1/disk.sock --blk-file=/srv/vm1.raw
  qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on \\
      -machine memory-backend=mem -chardev socket,id=disk,path=/run/vm1/disk.sock \\
      -device vhost-user-blk-pci,chardev=disk
"""

program = Program(
    Blk,
    {"type": "block", "features": ["read-only", "blk-file"]},
    [
        click.Option(["--blk-file"], metavar="PATH", help="The disk: a raw image, or a block device. Required."),
        click.Option(["--read-only"], is_flag=True, default=None, help="Let the guest read only."),
        click.Option(
            ["--cache"],
            metavar="[buffered|direct]",
            help="Go through the host's page cache, or past it. Default: buffered.",
        ),
        click.Option(
            ["--aio"],
            metavar="[auto|io_uring|threads]",
            help="Who does what has to wait for the disk. Default: auto, which is io_uring where that is permitted.",
        ),
        click.Option(
            ["--discard/--no-discard"],
            default=None,
            help="Whether what the guest discards is given back to the host. Default: it is.",
        ),
        click.Option(["--serial"], metavar="TEXT", help="Serial number of the disk, up to 20 characters."),
        click.Option(
            ["--block-size"],
            type=int,
            metavar="N",
            help="Smallest unit that the guest should use, in bytes: 512 to 4096. Default: that of the image.",
        ),
        click.Option(
            ["--queues"],
            type=int,
            metavar="N",
            help=f"Queues that the guest may use, at most {QUEUES_MAX}; one for each of its CPUs is right. "
            f"Default: {Blk.queues}.",
        ),
        click.Option(["--threads"], type=int, metavar="N", help="Threads that share the queues. Default: 1."),
    ],
    about=_ABOUT,
    examples=_EXAMPLES,
    renamed={"path": "blk-file"},
)


def main() -> None:
    """Be ``doorbelld-vhost-user-blk``."""
    enter(program)
