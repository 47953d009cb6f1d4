# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that are killed in the middle of what they do."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DEADLINE = 20.0


@contextmanager
def doomed(work: Callable[[], None]) -> Iterator[int]:
    """Fork a child that does *work*, and kill it at the end of the body, wherever it is then; gives its process ID."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            work()
        os._exit(1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "it ended before it was killed"


def watch(condition: Callable[[], object]) -> None:
    """Spin until *condition* holds: it looks at what the doomed one writes to, so there is no event to wait for."""
    until = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < until, "waited in vain"


def spin(count: int) -> None:
    """Pass a time that is as random as *count*."""
    for _ in range(count):
        pass
