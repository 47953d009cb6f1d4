# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Executing ourselves anew, in the same process, with everything kept: a restart for where there is no systemd.

What is kept are the copies in a `Satchel`; they stay open across execve(2). Which number is what is told in a memfd,
whose own number is in an environment variable, since all the names together can be longer than one may be.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import NoReturn

from ..fds.keeper import Kept, Satchel
from ..fds.owned import Fd

VARIABLE = "DOORBELLD_KEPT"
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""What we handle. They are blocked while there is nobody to handle them, since they would end the new image."""


def hold() -> None:
    """Hold back our signals from this thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def release() -> None:
    """Let them come, also those that came meanwhile."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def command() -> list[str]:
    """Give the command line that we were started with, interpreter and all."""
    return [sys.executable, *sys.orig_argv[1:]]


def execute(satchel: Satchel) -> NoReturn:
    """Become a new process image that finds what is in *satchel*, with our signals held back.

    Raises:
        OSError: that did not work; everything is as it was.
    """
    numbers = {name: fd.fileno() for name, fd in satchel.copies.items()}
    with Fd(os.memfd_create("doorbelld:kept", 0)) as table:
        os.write(table.fileno(), json.dumps(numbers).encode())
        hold()
        try:
            for number in numbers.values():
                os.set_inheritable(number, True)
            sys.stdout.flush()
            sys.stderr.flush()
            os.execve(sys.executable, command(), {**os.environ, VARIABLE: str(table.fileno())})
        finally:
            for number in numbers.values():
                os.set_inheritable(number, False)
            release()


def take_back() -> Kept:
    """Take what we kept before we were executed anew; nothing if we were not."""
    if not (said := os.environ.pop(VARIABLE, "")).isdecimal():
        return Kept()
    with Fd(int(said)) as table:
        numbers = json.loads(os.pread(table.fileno(), os.fstat(table.fileno()).st_size, 0))
    for number in numbers.values():
        os.set_inheritable(number, False)
    return Kept({name: Fd(number) for name, number in numbers.items()})
