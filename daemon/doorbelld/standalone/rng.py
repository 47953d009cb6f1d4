# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""``doorbelld-vhost-user-rng``: random bytes of the host's kernel for one virtual machine."""

from __future__ import annotations

import click

from ..devices.rng import Rng
from .program import Program, enter

_ABOUT = """\
Give a virtual machine random bytes: a virtio entropy device, filled by the host's kernel.

SIGTERM and SIGINT stop it.
"""
_EXAMPLES = """\
  doorbelld-vhost-user-rng --socket-path=/run/vm1/rng.sock --rate=1M
  qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on \\
      -machine memory-backend=mem -chardev socket,id=rng,path=/run/vm1/rng.sock \\
      -device vhost-user-rng-pci,chardev=rng
"""

program = Program(
    Rng,
    {"type": "rng"},
    [
        click.Option(
            ["--rate"], metavar="SIZE", help='Bytes a second that it gives at most, such as "1M". Default: no limit.'
        )
    ],
    about=_ABOUT,
    examples=_EXAMPLES,
)


def main() -> None:
    """Be ``doorbelld-vhost-user-rng``."""
    enter(program)
