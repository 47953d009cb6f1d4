# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who passes for somebody else, and who makes the daemon wait while it finds out who they are."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.dbusclient import Client, until
from support.fuse import HangingFiles
from support.heartbeat import Attack, under_way, watched
from support.needs import require
from support.rawclient import RawClient

DEADLINE = 30.0
NOBODY = 65534
VECTORS = 2
PAGE = mmap.PAGESIZE
RULED = f"""
[region.open]
mode = "0666"
vectors = {VECTORS}
[region.named]
mode = "0666"
vectors = {VECTORS}
[[region.named.peer]]
match = {{ vm = "guest*" }}
[device.ruled]
mode = "0666"
type = "rng"
[[device.ruled.peer]]
match = {{ vm = "guest*" }}
"""


def hold_mmap_lock(file: str) -> None:
    """Have nobody read our memory, nor our command line, from now on."""
    with open(file, "r+b") as opened:
        mapping = mmap.mmap(opened.fileno(), PAGE, mmap.MAP_SHARED, mmap.PROT_READ)
    mapping.madvise(mmap.MADV_RANDOM)  # no readahead: the very page fault reads

    libc = ctypes.CDLL(None)  # whose functions are called without the GIL

    ready = threading.Barrier(3)  # a new thread's stack takes the lock too

    def fault() -> None:
        ready.wait()
        os.write(os.pipe()[1], memoryview(mapping)[:1])

    def change() -> None:
        ready.wait()
        while True:
            libc.munmap(ctypes.c_void_p(1 << 16), PAGE)  # where nothing is; it takes the lock for writing

    for attack in (fault, change):
        threading.Thread(target=attack, daemon=True).start()
    ready.wait()


def connect_unreadable(file: str, paths: list[str]) -> None:
    """Connect to each of *paths*, once nobody can read our command line any more."""
    socks = [socket.socket(socket.AF_UNIX) for _ in paths]
    go, done = os.pipe(), os.pipe()
    witness = os.fork()  # before the lock is held: the child has memory of its own
    if not witness:
        os.read(go[0], 1)
        until(lambda: hangs(os.getppid()), "a held lock")
        os.write(done[1], b"x")
        os._exit(0)
    hold_mmap_lock(file)
    os.write(go[1], b"x")
    assert select.select([done[0]], [], [], DEADLINE)[0]
    for sock, path in zip(socks, paths, strict=True):
        sock.connect(path)
    under_way()
    select.select(socks, [], [], DEADLINE)
    threading.Event().wait()


def hangs(pid: int) -> bool:
    """Say whether /proc/PID/cmdline can't be read."""
    reader = subprocess.Popen(["cat", f"/proc/{pid}/cmdline"], stdout=subprocess.DEVNULL)
    try:
        reader.wait(0.5)
    except subprocess.TimeoutExpired:
        reader.kill()
        return True
    return False


@pytest.fixture
def silent(short_path: Path) -> Iterator[HangingFiles]:
    short_path.chmod(0o755)
    with HangingFiles(short_path / "fuse", "SECOND_READ") as files:
        yield files


def test_newcomer_whose_command_line_hangs_delays_nobody(short_path: Path, silent: HangingFiles) -> None:
    require("dbus-daemon", "dbus-daemon")
    with watched(short_path, RULED) as site:
        paths = [str(site.daemon.socket(name)) for name in ("open", "open", "named", "ruled")]
        attack = Attack(connect_unreadable, silent.path(), paths, uid=NOBODY)
        with attack, closing(silent), Client(site.daemon.bus) as client:  # what hangs in it can't even be killed
            # it is let in without a name where no rule wants one, and refused else
            until(lambda: client.get("/region/open", "Region", "PeerCount") == 2, "both of them")
            until(lambda: "no rule of region" in site.daemon.log, "a refusal")
            until(lambda: "no rule of device" in site.daemon.log, "another one")
            with RawClient(str(site.daemon.socket("open"))) as other:
                other.greet(VECTORS)
