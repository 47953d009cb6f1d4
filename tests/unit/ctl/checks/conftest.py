# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A staged system: a directory that stands for the root of one, and what the daemon on it would say."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doorbelld.ctl.checks.view import Finding, User, View

PASSWD = """root:x:0:0::/root:/bin/sh
doorbelld:x:990:990::/:/usr/sbin/nologin
libvirt-qemu:x:64055:109::/:/usr/sbin/nologin
"""
GROUP = "root:x:0:\nkvm:x:109:\nvideo:x:44:libvirt-qemu\ndoorbelld:x:990:\n"


def region(path: str = "/run/doorbelld/demo/socket", **more: Any) -> dict[str, Any]:
    """Describe a region as the daemon does, as far as checks look at it."""
    return {"socket": path, "vectors": 4, "max-peers": 8, "size": 4 << 20, "backing": "memfd", "peers": [], **more}


def device(**more: Any) -> dict[str, Any]:
    """Describe a disk as the daemon does, as far as checks look at it."""
    queue = {"index": 0, "errors": 0, "broken": ""}
    known = {
        "socket": "/run/doorbelld/disk0/socket",
        "type": "blk",
        "virtio-id": 2,
        "connect": False,
        "state": "listening",
        "reason": "",
        "fault": "",
    }
    return {**known, "memory": [], "queues": [queue], **more}


class Stage:
    """A system below a directory; ``view`` is how checks see it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.view = View(root=root, own_version="1", address="unix:path=/bus", pid=7, me=User("me", 0, frozenset()))
        self._listening: list[socket.socket] = []
        self.file("/etc/passwd", PASSWD)
        self.file("/etc/group", GROUP)

    def file(self, path: str, text: str) -> Path:
        """Write a file, with its directories."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    def process(self, pid: int, *words: str) -> None:
        """Have a process run."""
        self.file(f"/proc/{pid}/cmdline", "".join(f"{word}\0" for word in words))

    def listen(self, path: str, mode: int = 0o666) -> socket.socket:
        """Have somebody listen on a socket."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(place))
        sock.listen()
        place.chmod(mode)
        self._listening.append(sock)
        return sock

    def serve(self, devices: dict[str, Any] | None = None, **regions: dict[str, Any]) -> None:
        """Have the daemon answer, with these devices and regions."""
        known = {"version": "1", "descriptors": {"limit": 1024, "in-use": 20}}
        self.view.known = {**known, "regions": regions, "devices": devices or {}}

    def close(self) -> None:
        """Stop listening."""
        for sock in self._listening:
            sock.close()


@pytest.fixture
def stage(short_path: Path) -> Iterator[Stage]:
    short_path.chmod(0o755)
    staged = Stage(short_path)
    yield staged
    staged.close()


Check = Callable[[View], Iterator[Finding]]


def levels(check: Check, stage: Stage) -> list[str]:
    """Make a check and give how bad its findings are."""
    return [str(finding.level) for finding in check(stage.view)]


def only(check: Check, stage: Stage) -> tuple[str, str]:
    """Make a check that has one finding, and give how bad it is and all that it says."""
    (finding,) = check(stage.view)
    if finding.level in ("hint", "wrong"):
        assert finding.cure, "what is not fine has a cure"
    return str(finding.level), f"{finding.found} | {finding.cure}"
