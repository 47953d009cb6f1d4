# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells systemd how we are (sd_notify(3)): ready, what we serve, stopping. Without systemd it does nothing."""

from __future__ import annotations

import os
from typing import Any


class Readiness:
    """The service manager's view of us."""

    def __init__(self) -> None:
        self._notifier: Any = None
        if os.environ.get("NOTIFY_SOCKET"):
            import sdnotify

            self._notifier = sdnotify.SystemdNotifier()

    def _tell(self, state: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(state)

    def ready(self, status: str) -> None:
        """Sockets listen and the bus name is ours."""
        self._tell(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """We are on our way out."""
        self._tell("STOPPING=1\nSTATUS=stopping")
