# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What systemd knows of the daemon, by way of systemctl and journalctl; nothing, where they are not there."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

UNIT = "doorbelld.service"
SECONDS = 5.0
"""How long one of these programs may take."""

PROPERTIES = (
    *("LoadState", "ActiveState", "SubState", "Result", "UnitFileState", "FragmentPath", "DropInPaths"),
    *("NeedDaemonReload", "MainPID", "User", "NRestarts", "ActiveEnterTimestamp", "StatusText", "LimitNOFILE"),
    *("FileDescriptorStoreMax", "NFileDescriptorStore", "WatchdogUSec", "Restart"),
    *("ProtectSystem", "ProtectHome", "PrivateTmp", "NoNewPrivileges", "MemoryDenyWriteExecute", "DevicePolicy"),
    *("RestrictNamespaces", "ReadWritePaths", "RuntimeDirectory", "StateDirectory"),
    *("BindPaths", "PrivateDevices", "DeviceAllow", "SystemCallFilter"),
)


def output(command: Sequence[str]) -> str | None:
    """Give what *command* prints; None if it is not there, fails, or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def unit() -> dict[str, str]:
    """Give the properties of the daemon's unit; none where there is no systemd, or no such unit."""
    said = output(["systemctl", "show", UNIT, f"--property={','.join(PROPERTIES)}"]) or ""
    found: dict[str, str] = {}
    for line in said.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            found[key] = f"{found[key]} {value}" if key in found else value  # a list may come in several lines
    return {} if found.get("LoadState", "not-found") == "not-found" else found


def journal(matches: Sequence[str], lines: int) -> list[str]:
    """Give the last *lines* lines of the journal for *matches*, as journalctl takes them."""
    if not lines:
        return []
    said = output(["journalctl", *matches, "-n", str(lines), "--no-pager", "-q"])
    return (said or "").splitlines()
