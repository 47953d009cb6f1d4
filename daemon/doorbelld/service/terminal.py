# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The terminal that the daemon was started on, and whether it hung up.

The kernel sends SIGHUP to the foreground processes of a terminal that is closed, or whose connection is lost. For a
daemon, SIGHUP means "read the configuration again". `ForegroundTerminal` tells the two apart: after a hangup, the
process has no controlling terminal any more.
"""

from __future__ import annotations

import os
import signal
from typing import Self

_TTY = "/dev/tty"


class ForegroundTerminal:
    """The controlling terminal of a process that was started in its foreground."""

    @classmethod
    def find(cls) -> Self | None:
        """Find it; None if there is none, if we are in the background, or if SIGHUP is ignored (nohup)."""
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            return None
        try:
            fd = os.open(_TTY, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return cls() if os.tcgetpgrp(fd) == os.getpgrp() else None
        except OSError:
            return None
        finally:
            os.close(fd)

    def hung_up(self) -> bool:
        """Tell whether it was closed since."""
        try:
            os.close(os.open(_TTY, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return True
        return False
