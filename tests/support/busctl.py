# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""D-Bus as an administrator types it: through busctl(1)."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .needs import require

NAME = "org.doorbelld.Doorbell1"
ROOT = "/org/doorbelld/Doorbell1"
DEADLINE = 20.0
NOBODY = 65534


class CallFailed(Exception):
    """busctl said no; the text is the error's."""


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    """Run *command* as a user who may do nothing; we have to be root for that."""
    prefix = [require("setpriv", "util-linux"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=DEADLINE, check=False)


def without_rights(*command: str | Path) -> list[str | Path]:
    """Give *command* as one that runs as `NOBODY`, but may read any file: our interpreter may be in root's home."""
    caps = "+dac_read_search"
    prefix = [require("setpriv", "util-linux"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return [*prefix, f"--inh-caps={caps}", f"--ambient-caps={caps}", *command]


class Busctl:
    """busctl on one bus."""

    def __init__(self, address: str) -> None:
        self._command = ["busctl", f"--address={address}", "--json=short"]

    def run(self, *arguments: str) -> str:
        """Run it and give what it printed."""
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        if done.returncode:
            raise CallFailed(done.stderr.strip())
        return done.stdout

    def call(self, path: str, interface: str, method: str, *arguments: object) -> Any:
        """Call a method of ours; *path* and *interface* are relative. Gives the reply's body."""
        said = self.run("call", NAME, ROOT + path, f"{NAME}.{interface}", method, *map(str, arguments))
        return json.loads(said)["data"] if said.strip() else None

    def get(self, path: str, interface: str, name: str) -> Any:
        """Read a property."""
        return json.loads(self.run("get-property", NAME, ROOT + path, f"{NAME}.{interface}", name))["data"]

    @contextmanager
    def monitor(self, member: str) -> Iterator[Iterator[list[Any]]]:
        """Yield an iterator over the bodies of the signals *member* that come while the body runs."""
        match = f"type='signal',member='{member}'"
        process = subprocess.Popen(
            [*self._command, "monitor", f"--match={match}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            while not re.search("Monitoring", line := process.stderr.readline()):
                assert line, "busctl monitor ended"
            yield (
                message["payload"]["data"]
                for message in map(json.loads, process.stdout)
                if message["type"] == "signal" and message["member"] == member
            )
        finally:
            process.kill()
            process.communicate()
