# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What is found out about a newcomer: at once where nobody can make us wait, else in a thread with a deadline."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from doorbelld.fds import identification as module
from doorbelld.fds.identification import Lookup, PidFiles, look_up, pid_in
from doorbelld.fds.peercred import Credentials, identify
from support.fdcount import no_leaks

STRANGER = 54321


@pytest.fixture
def guest(short_path: Path) -> Iterator[socket.socket]:
    """Give the connection of a process that says of itself that it is a VM."""
    path = str(short_path / "s")
    code = f"import socket; s = socket.socket(1); s.connect({path!r}); s.recv(1)"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with subprocess.Popen([sys.executable, "-c", code, "-name", "guest=vm7"]):
            sock, _ = listener.accept()
            with sock:
                yield sock


async def test_the_name_of_a_trusted_process_is_there_at_once(guest: socket.socket) -> None:
    with no_leaks():
        who = identify(guest)
        assert who.unread and not who.vm_name
        found: list[tuple[Credentials, PidFiles]] = []
        Lookup(guest, who, (), lambda *known: found.append(known))
        assert found == [(replace(who, vm_name="vm7", unread=False), {})]


async def test_the_name_of_a_stranger_is_read_in_a_thread(guest: socket.socket) -> None:
    with no_leaks():
        who = replace(identify(guest), uid=STRANGER)
        found: list[Credentials] = []
        Lookup(guest, who, (), lambda known, _: found.append(known))
        assert not found
        known, pids = await look_up(guest, who, ())
        assert (known, pids) == (replace(who, vm_name="vm7", unread=False), {})
        assert found == [known]


async def test_who_does_not_let_the_name_be_read_in_time_has_none(
    guest: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    monkeypatch.setattr(module, "said_name", lambda pid, process: (gate.wait(), process.close(), "late")[-1])
    with no_leaks():
        who = replace(identify(guest), uid=STRANGER)
        found = await asyncio.gather(*(look_up(guest, who, ()) for _ in range(5)))
        assert found == [(who, {})] * 5
        gate.set()


async def test_pid_files_are_read_once_each(guest: socket.socket, tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("4711\n")
    paths = [str(tmp_path / "pid"), str(tmp_path / "none"), str(tmp_path / "pid")]
    with no_leaks():
        _, pids = await look_up(guest, replace(identify(guest), unread=False), paths)
    assert pids == {paths[0]: 4711, paths[1]: -1}


@pytest.mark.parametrize("kind", ["a link", "a FIFO", "a directory", "a socket", "a device", "empty", "words"])
def test_what_is_no_pid_file(short_path: Path, kind: str) -> None:
    path = short_path / "pid"
    with socket.socket(socket.AF_UNIX) as listener:
        match kind:
            case "a link":
                (short_path / "plain").write_text("1\n")
                path.symlink_to("plain")
            case "a FIFO":
                os.mkfifo(path)
            case "a directory":
                path.mkdir()
            case "a socket":
                listener.bind(str(path))
            case "a device":
                path = Path("/dev/zero")
            case _:
                path.write_text("" if kind == "empty" else "not a number\n")
        assert pid_in(str(path)) == -1
