# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Readiness: what systemd is told (sd_notify(3)), and nothing where there is none."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from doorbelld.service.readiness import Readiness
from support.fdcount import no_leaks


@pytest.fixture
def manager(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(short_path / "notify"))
        listening.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(short_path / "notify"))
        yield listening


@pytest.fixture
def told(manager: socket.socket) -> Iterator[Readiness]:
    made = Readiness()
    yield made
    made._notifier.socket.close()  # it lives as long as the daemon, so sdnotify has no way to close it


def test_what_is_told(manager: socket.socket, told: Readiness) -> None:
    told.ready("1 region, 0 peers")
    assert manager.recv(1000) == b"READY=1\nSTATUS=1 region, 0 peers"
    told.stopping()
    assert manager.recv(1000).split(b"\n")[0] == b"STOPPING=1"


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with no_leaks():
        told = Readiness()
        told.ready("")
        told.stopping()


def test_a_manager_that_goes_away_does_not_matter(manager: socket.socket, told: Readiness) -> None:
    manager.close()
    told.ready("")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sdnotify forgets to close its socket
def test_a_manager_that_was_never_there_does_not_matter(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(short_path / "notify"))
    Readiness().ready("")
    gc.collect()
