# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMU runs: this host's, or that of Debian 13; and one that runs without a guest.

A test that takes the fixture `qemu` (tests/conftest.py) runs once with each of them.
"""

import contextlib
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from support import debian13
from support.guest.qmp import Qmp
from support.needs import require

PROGRAM = "qemu-system-x86_64"

_END_TIMEOUT = 10.0


@dataclass(frozen=True)
class Qemu:
    """One of the QEMUs."""

    name: str
    debian13: bool

    def __str__(self) -> str:
        return self.name

    def command(self, arguments: Sequence[str | Path], *, valgrind: Path | None = None) -> list[str | Path]:
        """Tell how to start it; the process that is started becomes QEMU.

        With *valgrind* (Debian 13's only) it becomes valgrind that runs QEMU, under QEMU's name, and writes what it
        finds to that file.
        """
        if valgrind is not None:
            if not self.debian13:
                raise ValueError("valgrind is Debian 13's, so QEMU must be too; use QEMU_10")
            words = [f"--log-file={valgrind}", PROGRAM]
            return debian13.command("valgrind.bin", [*words, *arguments], name=PROGRAM)
        if self.debian13:
            return debian13.command(PROGRAM, arguments)
        return [require(PROGRAM, "qemu-system-x86"), *arguments]


HOST_QEMU = Qemu("qemu", debian13=False)
"""This host's: 7.2 in Debian 12."""

QEMU_10 = Qemu("qemu10", debian13=True)
"""Debian 13's: 10.0."""

QEMUS = (HOST_QEMU, QEMU_10)


class IdleQemu:
    """A QEMU whose guest never starts (``-S``), while the `with` block runs; it serves its devices all the same.

    `ivshmem` and `args` are as in `support.guest.vm.Guest`, `valgrind` as in `Qemu.command`; it takes 10 seconds to
    start. `environment` is added to ours; MALLOC_CHECK_ works only with LD_PRELOAD=libc_malloc_debug.so.0.
    `output` has what QEMU says.
    """

    def __init__(
        self,
        qemu: Qemu,
        output: Path,
        *,
        name: str = "idle",
        ivshmem: Sequence[tuple[Path | str, int]] = (),
        args: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        valgrind: Path | None = None,
    ) -> None:
        self.name = name
        self.output = output
        self._qemu = qemu
        self._arguments = ["-name", f"guest={name}", "-nodefaults", "-no-user-config", "-S"]
        self._arguments += ["-display", "none", "-accel", "tcg", "-machine", "q35", "-m", "32M"]
        self._arguments += [*ivshmem_arguments(ivshmem), *args]
        self._environment = environment or {}
        self._valgrind = valgrind

    def __enter__(self) -> Self:
        ours, monitor = socket.socketpair()
        with monitor, contextlib.ExitStack() as undo, self.output.open("wb") as output:
            self.qmp = Qmp(ours)
            undo.callback(self.qmp.close)
            arguments = [*self._arguments, *qmp_arguments(monitor.fileno())]
            command = self._qemu.command(arguments, valgrind=self._valgrind)
            self.process = subprocess.Popen(
                [require("setpriv", "util-linux"), "--pdeathsig", "KILL", *command],
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[monitor.fileno()],
            )
            undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self.qmp.close()

    @property
    def pid(self) -> int:
        """The ID of its process."""
        return self.process.pid

    def quit(self) -> int:
        """Let it end by itself, and return its status: negative if a signal ended it, 0 if all is well."""
        self.process.terminate()
        return self.process.wait(_END_TIMEOUT)


def qmp_arguments(monitor: int) -> list[str]:
    """Write the arguments that give QEMU's end of QMP, a descriptor."""
    return ["-chardev", f"socket,id=qmp,fd={monitor}", "-mon", "qmp,mode=control"]


def ivshmem_arguments(devices: Sequence[tuple[Path | str, int]]) -> list[str]:
    """Write the arguments of ivshmem devices: (path of the server's socket, number of vectors)."""
    arguments = []
    for index, (path, vectors) in enumerate(devices):
        arguments += ["-chardev", f"socket,id=ivshmem{index},path={quoted(path)}"]
        arguments += ["-device", f"ivshmem-doorbell,chardev=ivshmem{index},vectors={vectors}"]
    return arguments


def quoted(path: Path | str) -> str:
    """Write a path so that it can stand in an option of QEMU's."""
    return str(path).replace(",", ",,")
