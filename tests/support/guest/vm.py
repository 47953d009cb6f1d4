# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a QEMU guest.

Theory of operation: QEMU runs without KVM, with an IOMMU (vfio-pci wants one) and two serial ports. The first one is
the kernel's console; it comes with QEMU's own messages. The second one carries the line protocol of the guest's
program, which `talk` speaks. QMP comes over a third connection.
"""

import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from support.guest.image import Image
from support.guest.qemu import HOST_QEMU, Qemu, ivshmem_arguments, qmp_arguments
from support.guest.qmp import Qmp
from support.guest.talk import Linux

KERNEL_WORDS = "console=ttyS0 quiet panic=-1 no_timer_check intel_iommu=on port=ttyS1 speed=115200"
"""Of the command line of a kernel whose first serial port is the console, and the second the program's."""


class Guest(Linux):
    """A guest that runs while the `with` block runs.

    `name` is what QEMU is told with `-name guest=`. `ivshmem` lists the devices as (path of the server's socket, number
    of vectors). `args` are more arguments for QEMU, `append` more words for the kernel's command line. `memory` is in
    MiB; with `shared` QEMU gives vhost-user back-ends its descriptors, and `slots` is how many pieces may be plugged in
    later. `program` is the program of the image that the guest runs. `qemu` is what runs it.
    """

    def __init__(
        self,
        image: Image,
        *,
        qemu: Qemu = HOST_QEMU,
        name: str = "guest",
        ivshmem: Sequence[tuple[Path | str, int]] = (),
        args: Sequence[str] = (),
        append: str = "",
        memory: int = 256,
        shared: bool = False,
        slots: int = 0,
        cpus: int = 1,
        program: str = "agent",
        log_file: Path | None = None,
    ) -> None:
        super().__init__(name, log_file)
        self._image = image
        self._qemu = qemu
        self._ivshmem = ivshmem
        self._args = args
        self._append = append
        self._memory = memory
        self._shared = shared
        self._slots = slots
        self._cpus = cpus
        self._program = program

    def __enter__(self) -> Self:
        ours, self._monitor = socket.socketpair()
        with self._monitor, contextlib.ExitStack() as undo:
            self.qmp = Qmp(ours)
            undo.callback(self.qmp.close)
            super().__enter__()
            undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            super().__exit__(kind, error, tb)
        finally:
            self.qmp.close()

    def _inherited(self, control: int) -> Sequence[int]:
        return [control, self._monitor.fileno()]

    def _command(self, control: int) -> list[str | Path]:
        arguments = ["-name", f"guest={self.name}", "-nodefaults", "-no-user-config", "-no-reboot"]
        arguments += ["-display", "none", "-accel", "tcg", "-smp", str(self._cpus), *self._memory_arguments()]
        arguments += ["-machine", "q35,kernel-irqchip=split", "-device", "intel-iommu,intremap=on"]
        arguments += ["-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd)]
        arguments += ["-append", " ".join([KERNEL_WORDS, f"program={self._program}", *self._append.split()])]
        arguments += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
        arguments += ["-chardev", f"socket,id=control,fd={control}", "-serial", "chardev:control"]
        arguments += qmp_arguments(self._monitor.fileno())
        return self._qemu.command([*arguments, *ivshmem_arguments(self._ivshmem), *self._args])

    def _memory_arguments(self) -> list[str]:
        size = f"{self._memory}M"
        if self._slots:
            size += f",slots={self._slots},maxmem={self._memory * (self._slots + 1)}M"
        if not self._shared:
            return ["-m", size]
        memory = f"memory-backend-memfd,id=memory,size={self._memory}M,share=on"
        return ["-m", size, "-object", memory, "-numa", "node,memdev=memory"]
