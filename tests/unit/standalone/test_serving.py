# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Inherited sockets, and an end that nothing holds up. How it serves is in tests/integration/test_standalone.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from doorbelld.standalone.serving import Inherited, Unusable
from doorbelld.vhost.frontend import BackendFailed, Frontend
from support.blkdriver import until
from support.daemon import DEADLINE
from support.fdcount import no_leaks

STUCK = """
import sys, threading
from doorbelld.log import set_up
from doorbelld.standalone import serving
from doorbelld.vhost.device import Device
from doorbelld.vhost.spec import DeviceSpec


class Stuck(Device):
    name, id = "stuck", 42

    def handle(self, queue, chain):
        print("asked", flush=True)
        threading.Event().wait()


set_up("info")
serving.PATIENCE = 0.05
spec = DeviceSpec.parse("stuck", {"type": "stuck", "socket": sys.argv[1]}, "", lambda _: Stuck)
sys.exit(serving.serve(spec, *map(serving.Inherited, map(int, sys.argv[2:]))))
"""
"""A device whose requests are never done: SOCKET [FDNUM]."""


def test_a_listening_socket(short_path: Path) -> None:
    with no_leaks(), socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(short_path / "s"))
        listening.listen()
        given = Inherited(os.dup(listening.fileno()))
        assert given.listens and given.name == str(short_path / "s")
        assert not given.sock.get_inheritable()
        given.sock.close()


def test_a_listening_socket_without_a_path() -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")  # the kernel gives it a name that is no path
        listening.listen()
        given = Inherited(os.dup(listening.fileno()))
        assert given.listens and given.name == f"fd:{given.sock.fileno()}"
        given.sock.close()


def test_a_connection() -> None:
    with no_leaks():
        ours, theirs = socket.socketpair()
        with ours:
            os.set_inheritable(theirs.fileno(), True)
            number = theirs.detach()
            given = Inherited(number)
            assert (given.listens, given.name, given.sock.fileno()) == (False, f"fd:{number}", number)
            assert not given.sock.get_inheritable()
            given.sock.close()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ((socket.AF_UNIX, socket.SOCK_STREAM), "neither listens nor is connected"),
        ((socket.AF_UNIX, socket.SOCK_DGRAM), "is another kind of socket"),
        ((socket.AF_INET, socket.SOCK_STREAM), "is another kind of socket"),
    ],
)
def test_a_socket_that_is_of_no_use_stays_its_owners(kind: tuple[socket.AddressFamily, int], said: str) -> None:
    with no_leaks(), socket.socket(*kind) as given:
        with pytest.raises(Unusable, match=f"descriptor {given.fileno()} {said}; pass a UNIX stream socket"):
            Inherited(given.fileno())
        os.fstat(given.fileno())


def test_what_is_no_socket() -> None:
    with open("/dev/null") as file, pytest.raises(Unusable, match="is no socket"):
        Inherited(file.fileno())
    for number in (-1, 1 << 20, 1 << 40, 1 << 80):
        with pytest.raises(Unusable, match=f"descriptor {number} is no socket"):
            Inherited(number)


@pytest.mark.parametrize("inherits", [True, False])
def test_requests_that_are_never_done_do_not_hold_up_the_end(short_path: Path, inherits: bool) -> None:
    path = short_path / "s"
    ours, theirs = socket.socketpair() if inherits else (socket.socket(socket.AF_UNIX), None)
    numbers = [theirs.fileno()] if theirs is not None else []
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, path, *map(str, numbers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=numbers,
        text=True,
    ) as process:
        try:
            if theirs is not None:
                theirs.close()
            else:
                until(lambda: ours.connect_ex(str(path)) == 0, "it listens")
            with Frontend(ours) as f:
                (queue,) = f.start()
                queue.add([], [(f.take(8), 8)])
                queue.kick()
                assert process.stdout is not None and process.stdout.readline() == "asked\n"
                process.send_signal(signal.SIGTERM)
                _, log = process.communicate(timeout=DEADLINE)
                with pytest.raises(BackendFailed):
                    f.answer()
        finally:
            process.kill()
    assert process.returncode == 0
    assert "they are given up" in log
    assert not path.exists()
