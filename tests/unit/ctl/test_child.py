# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What is told of a command that can't be started, and which signals go on to one; the rest takes real processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from doorbelld.ctl.child import cannot_run, forward_signals


@pytest.mark.parametrize(
    ("program", "number", "status", "said"),
    [
        ("worker", errno.ENOENT, 127, "PATH"),
        ("echo hi", errno.ENOENT, 127, "bash -c 'echo hi'"),
        ("/etc/passwd", errno.EACCES, 126, "chmod"),
        ("worker", errno.E2BIG, 126, "Argument list too long"),
    ],
)
def test_a_command_that_can_not_be_run(program: str, number: int, status: int, said: str) -> None:
    failure = cannot_run(program, OSError(number, os.strerror(number)))
    assert failure.exit_code == status
    assert said in failure.message and program in failure.message


def test_signals_of_the_terminal_are_not_sent_on() -> None:
    """They have reached the command already; what was sent to us has not. And its end is the end of it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        pidfd = os.pidfd_open(process.pid)
        came = iter([(0x80, signal.SIGINT), (0, signal.SIGUSR1), (0, signal.SIGUSR2)])

        def wait(_: Iterable[int]) -> Any:
            code, number = next(came)
            if number == signal.SIGUSR2:
                process.wait(20)
            return SimpleNamespace(si_code=code, si_signo=number)

        forward_signals(pidfd, wait)
        os.close(pidfd)
        assert process.returncode == -signal.SIGUSR1
        assert next(came, None) is None
