# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The load of `support.restartload` as a process of its own, wherever it was started."""

from __future__ import annotations

import json
import select
import subprocess

from support.restartload import PATIENCE


class LoadProcess:
    """The load, started as *process* with pipes at both ends, in text mode; it is ready once this is made."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert self._line(2 * PATIENCE) == "ready\n"

    def _line(self, seconds: float) -> str:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            self.process.kill()
            raise AssertionError("the load is stuck")
        line = self.process.stdout.readline()
        if not line or line.startswith('{"lost"'):
            raise AssertionError(f"the load failed: {line or self.process.wait()}")
        return line

    def check(self) -> None:
        """Fail if it has ended."""
        if self.process.poll() is not None:
            self._line(1.0)
            raise AssertionError(f"the load ended with {self.process.returncode}")

    def finish(self) -> dict[str, int]:
        """Let it come to its end, and give its report.

        Raises:
            AssertionError: something was lost; the text says what.
        """
        assert self.process.stdin is not None
        self.process.stdin.write("stop\n")
        self.process.stdin.flush()
        report: dict[str, int] = json.loads(self._line(6 * PATIENCE))
        assert self.process.wait(PATIENCE) == 0
        return report
