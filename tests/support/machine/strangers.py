# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on a machine's daemon, by processes of that machine: the same ones that tests/integration/hostile makes.

`within` is for `support.heartbeat.Attack`. Its process has imported all that it needs before it moves into the machine,
where our interpreter and its libraries are not.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import time
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection

from support.busctl import NAME, ROOT
from support.heartbeat import under_way

BUS = "unix:path=/run/dbus/system_bus_socket"
HOSTILE = Path(__file__).parents[2] / "integration/hostile"
NAMESPACES = ("pid", "ipc", "uts", "net", "cgroup", "mnt")
_SET_PDEATHSIG = 1


def load(name: str) -> ModuleType:
    """Load a test module of tests/integration/hostile."""
    spec = importlib.util.spec_from_file_location(name, HOSTILE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DESCRIPTORS, DBUS = load("test_descriptors"), load("test_dbus")
FUNCTIONS = {"sockets": DESCRIPTORS.attack_sockets, "large": DBUS.send_large, "flood": DBUS.flood}


def within(init: int, uid: int, gid: int, attack: str, *arguments: object) -> NoReturn:
    """Make an attack as user *uid* in the machine with that *init*: one of `FUNCTIONS`, or "calls"."""
    libc = ctypes.CDLL(None, use_errno=True)
    namespaces = [os.open(f"/proc/{init}/ns/{name}", os.O_RDONLY) for name in NAMESPACES]
    for name, namespace in zip(NAMESPACES, namespaces, strict=True):
        if libc.setns(namespace, 0):
            raise OSError(ctypes.get_errno(), f"no way into the {name} namespace")
        os.close(namespace)
    if child := os.fork():  # only children of ours are in the process namespace
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
    os.chdir("/")
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    libc.prctl(_SET_PDEATHSIG, signal.SIGKILL)  # after setuid(2), which clears it
    {"calls": calls, **FUNCTIONS}[attack](*arguments)
    os._exit(0)


def calls(what: str, times: int) -> None:
    """Call what a stranger may not call, and what is not there, with a descriptor of *what* each time."""
    connection = open_dbus_connection(BUS, enable_fds=True)
    region = DBusAddress(f"{ROOT}/region/beaten", NAME, f"{NAME}.Region")
    for number in range(times):
        sent = DESCRIPTORS.hanging(what)
        call = new_method_call(region, ("Attach", "Explode")[number % 2], "h", (sent,))
        connection.send(call, serial=next(connection.outgoing_serial))
        DESCRIPTORS.let_go(sent)
    under_way()
    time.sleep(DESCRIPTORS.LINGER)
