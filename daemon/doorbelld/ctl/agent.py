# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Has polkit ask on this terminal, for a session that has nothing else to ask with: that of an ssh login, say.

Where a desktop has an authentication agent of its own, that one asks.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess

PROGRAM = "pkttyagent"


class Agent:
    """polkit's agent for terminals, as long as it is needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, once; gives back when it is ready, or can't be had."""
        if self._process is not None or (program := shutil.which(PROGRAM)) is None:
            return
        ready, told = os.pipe()
        try:
            self._process = subprocess.Popen(
                [program, "--process", str(os.getpid()), "--notify-fd", str(told), "--fallback"], pass_fds=[told]
            )
        finally:
            os.close(told)
        with open(ready, "rb") as pipe:  # it closes its end when it is ready, or ends
            await asyncio.to_thread(pipe.read)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
