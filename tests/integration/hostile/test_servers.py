# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers of regions that the daemon joins as a client, and that send what can't be mapped or closed in a moment."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest
from support.dbusclient import Client, until
from support.fuse import HangingFiles
from support.heartbeat import Attack, under_way, watched
from support.otherserver import message, play

TRIES = 3
KINDS = {"client": "Client", "flat": "FlatDevice"}


def serve(path: str, file: str) -> None:
    """Greet whoever comes with *file* as the memory."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen()
        under_way()
        for number in range(TRIES):
            sock, _ = listener.accept()
            fd = os.open(file, os.O_RDWR)
            play(sock, [message(0), message(7), message(-1, fd), message(7, fd)])
            print(number, flush=True)
        listener.accept()


@pytest.mark.skipif(os.getuid() != 0, reason="FUSE is mounted as root")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operations", [("GETATTR", "FLUSH"), ("READ", "FLUSH")], ids=["GETATTR", "READ"])
def test_memory_of_a_server_on_a_file_system_that_hangs_delays_nobody(
    short_path: Path, kind: str, operations: tuple[str, ...]
) -> None:
    short_path.chmod(0o755)
    path = short_path / "server"
    with (
        watched(short_path, f'[{kind}.lab]\nsocket = "{path}"\n') as site,
        HangingFiles(short_path / "fuse", *operations) as files,
        Client(site.daemon.bus) as client,
        Attack(serve, str(path), files.path()) as attack,
        closing(files),  # first: the attacker can't end before
    ):
        for number in range(TRIES):
            assert attack.line() == str(number)
        reason = client.get(f"/{'flat' if kind == 'flat' else 'client'}/lab", KINDS[kind], "Reason")
        assert "neither of shmem nor of hugetlbfs" in reason
        until(lambda: client.get("", "Manager", "StuckDescriptors"))
        files.close()
        until(lambda: not client.get("", "Manager", "StuckDescriptors"))
