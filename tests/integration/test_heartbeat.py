# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The kit for attacks notices what it is to notice, and nothing else."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
from support.dbusclient import until
from support.fuse import HangingFiles
from support.heartbeat import Attack, under_way, watched

NOBODY = 65534
STOPPED = 1.0
"""Seconds for which the daemon is stopped: ten times of what a heartbeat may take."""


def hold_a_connection(path: str) -> None:
    """Connect as whoever we are, and do nothing."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        under_way(str(os.getuid()))
        signal.pause()


def close_a_file(path: str) -> None:
    """Open a file of another's file system, and close it."""
    fd = os.open(path, os.O_RDWR)
    under_way()
    os.close(fd)


def test_attack_that_harms_nobody_passes(short_path: Path) -> None:
    short_path.chmod(0o755)
    with (
        watched(short_path, '[region.demo]\nmode = "0666"\n') as site,
        Attack(hold_a_connection, str(site.daemon.socket()), uid=NOBODY) as attack,
    ):
        assert attack.first == str(NOBODY)
        assert site.daemon.alive


def test_daemon_that_stands_still_fails(short_path: Path) -> None:
    with pytest.raises(AssertionError, match=r" s at worst of \d+, which may take "), watched(short_path) as site:
        os.kill(site.daemon.pid, signal.SIGSTOP)
        time.sleep(STOPPED)
        os.kill(site.daemon.pid, signal.SIGCONT)


def test_descriptors_that_are_left_fail(short_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="the daemon held "):
        patch.setattr("support.dbusclient.DEADLINE", 0.5)
        with watched(short_path, "[region.demo]\n") as site:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(site.daemon.socket()))
            sock.recv(8)
    sock.close()


def test_close_of_a_hanging_file_outlasts_sigkill_and_ends_with_its_server(short_path: Path) -> None:
    with HangingFiles(short_path / "files", "FLUSH") as files:
        attack = Attack(close_a_file, files.path())
        state = Path(f"/proc/{attack.process.pid}/stat")
        until(lambda: state.read_text().rpartition(")")[2].split()[0] in "DS", "the close")
        attack.process.send_signal(signal.SIGKILL)
        until(lambda: state.read_text().rpartition(")")[2].split()[0] == "D", "a close that nothing interrupts")
        assert attack.process.poll() is None
        files.end_server()
        assert attack.process.wait(20) == -signal.SIGKILL
        attack.kill()
