# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory of the kind that is allowed, with which its owner makes the kernel wait: nobody else notices."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from array import array
from pathlib import Path

from support.heartbeat import Attack, under_way, watched
from support.needs import require

NOBODY = 65534
PROCESSES = 6
MAPPINGS = 50_000
PAGE = 4096
SIZE = 1 << 20
USER_BASE = 1 << 30
SECONDS = 5.0
CONFIG = '[device.attacked-rng]\ntype = "rng"\nmode = "0666"\n'
SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR = 5, 8, 9
PUNCH_HOLE_KEEP_SIZE = 3
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def map_often_and_punch(memory: int) -> None:
    """Have *memory* mapped so often that each hole that is punched in it takes long, and punch holes."""
    ready, told = os.pipe()
    for _ in range(PROCESSES):
        if not os.fork():
            libc.prctl(1, 9)  # PR_SET_PDEATHSIG
            for turn in range(MAPPINGS):  # neighbours differ, so that they are not merged
                libc.mmap(None, 2 * PAGE, 1, 1, memory, turn % 2 * 8 * PAGE)
            os.write(told, b"x")
            time.sleep(1000)
    for _ in range(PROCESSES):
        os.read(ready, 1)
    if not os.fork():
        libc.prctl(1, 9)
        while True:
            libc.fallocate(memory, PUNCH_HOLE_KEEP_SIZE, 0, SIZE)


def set_rings_up(path: str) -> None:
    """Set a ring up in memory whose pages are taken away all the time."""
    memory = os.memfd_create("guest")
    os.ftruncate(memory, SIZE)
    map_often_and_punch(memory)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [memory]))]
    regions = struct.pack("=IIIIIQQQQ", SET_MEM_TABLE, 1, 40, 1, 0, 0, SIZE, USER_BASE, 0)
    places = (USER_BASE, USER_BASE + 8 * PAGE, USER_BASE + 16 * PAGE, 0)
    sock.sendmsg([regions], fds)
    sock.send(struct.pack("=IIIII", SET_VRING_NUM, 1, 8, 0, 256))
    under_way()
    while True:
        sock.send(struct.pack("=IIIIIQQQQ", SET_VRING_ADDR, 1, 40, 0, 0, *places))


def test_pages_that_are_taken_away_all_the_time_delay_nobody(short_path: Path) -> None:
    require("dbus-daemon", "dbus-daemon")
    short_path.chmod(0o755)
    with (
        watched(short_path, CONFIG) as site,
        Attack(set_rings_up, str(site.daemon.socket("attacked-rng")), uid=NOBODY),
    ):
        time.sleep(SECONDS)
