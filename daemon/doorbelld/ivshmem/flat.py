# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The ivshmem-flat device: what a guest without PCI sees of a region. To play such a guest takes no VM.

>>> from doorbelld.ivshmem.flat import FlatDevice, Register, doorbell
>>> with FlatDevice.connect("/run/doorbelld/demo/socket", irq=print) as device:      # doctest: +SKIP
...     print("we are peer", device.read(Register.IVPOSITION))
...     device.memory[0:5] = b"hello"                          # the shared memory, mapped
...     device.wait_for(lambda: device.client.peers, 10)       # somebody else is there
...     device.write(Register.DOORBELL, doorbell(65535, 0))    # ring vector 0 of the host peer
...     device.poll(timeout=10)                                # calls irq(vector, count) if we are rung meanwhile

Theory of operation
-------------------
A `FlatDevice` is four registers of 32 bits, the device's memory region 0, and one interrupt line, which is pulsed for
each of our own vectors::

    0x0  INTMASK      reads 0, ignores what is written
    0x4  INTSTATUS    reads 0, ignores what is written
    0x8  IVPOSITION   reads our own ID; read-only
    0xc  DOORBELL     reads 0; write PEER << 16 | VECTOR to ring

It knows no socket and no loop: whoever owns it gives it `Doorbells` to ring, and calls `interrupt` when one of our own
was rung. What a guest may get wrong is no error to it, as on a bus: an access that meets no register reads 0 and
changes nothing, and so does a doorbell that is not there. It is counted (`guest_errors`) and told (``trouble``).
Callers who want to know ask with ``strict``. Before there is an ID, IVPOSITION reads 0, as QEMU's state does and as the
specification says of a device that can't be rung.

On a connection of its own it is a `flatguest.FlatGuest`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from ..errors import DoorbellError, InvalidRegister, MemoryUnavailable
from .receive import CONNECT_SECONDS
from .spec import VECTORS_MAX

if TYPE_CHECKING:
    from .flatguest import FlatGuest


class Register(IntEnum):
    """The registers, by their offset (the seed's ivshmem_registers)."""

    INTMASK = 0
    INTSTATUS = 4
    IVPOSITION = 8
    DOORBELL = 12


def register_at(offset: int) -> Register:
    """Tell which register is at *offset*.

    Raises:
        InvalidRegister: none; it names them all.
    """
    try:
        return Register(offset)
    except ValueError:
        there = ", ".join(f"{register.name} at {register:#x}" for register in Register)
        raise InvalidRegister(f"no register at {offset:#x}; there is {there}") from None


def doorbell(peer: int, vector: int) -> int:
    """Give the value that rings *vector* of *peer* when it is written to DOORBELL."""
    return (peer & 0xFFFF) << 16 | vector & 0xFFFF


class Doorbells(Protocol):
    """What a device rings: a `Client`, or any `fds.bells.Bells`."""

    @property
    def own_id(self) -> int | None:
        """Our own ID; None while there is none."""

    def notify(self, peer_id: int, vector: int, /) -> None:
        """Ring; raise a DoorbellError, a LookupError or an OSError if that can't be done."""


class FlatDevice:
    """Registers and an interrupt line over *bells* (the seed's IvshmemFTState, TYPE_IVSHMEM_FLAT).

    `connect` makes one on a connection of its own; the module's docstring has a guest in six lines.

    Args:
        bells: our ID and everybody's doorbells.
        irq: the interrupt line: called with ``(vector, count)`` for each pulse; *count* rings made it.
        trouble: told in words what a guest did wrong.
        memory_size: what the shared memory's size must be; 0 takes any (the seed's shmem-size).
    """

    def __init__(
        self,
        bells: Doorbells,
        *,
        irq: Callable[[int, int], object] | None = None,
        trouble: Callable[[str], object] | None = None,
        memory_size: int = 0,
    ) -> None:
        self.bells = bells
        self.irq = irq
        self.trouble = trouble
        self.memory_size = memory_size
        self.interrupts: Counter[int] = Counter()
        """How often we were rung, by own vector."""
        self.guest_errors = 0
        """Accesses that met no register, wrote one that is read-only, or rang what can't be rung."""

    @staticmethod
    def connect(
        path: str | os.PathLike[str],
        *,
        irq: Callable[[int, int], object] | None = None,
        trouble: Callable[[str], object] | None = None,
        memory_size: int = 0,
        vectors_max: int = VECTORS_MAX,
        timeout: float | None = CONNECT_SECONDS,
    ) -> FlatGuest:
        """Join the region whose server's socket is at *path*: be a guest with such a device.

        Raises:
            ServerUnavailable, ProtocolBroken, LimitExceeded: as `Client.connect`.
            MemoryUnavailable: the memory is not of *memory_size*.
        """
        from .client import Client  # not with the daemon, which has a device but no client that blocks
        from .flatguest import FlatGuest

        client = Client(path, vectors_max=vectors_max)
        return FlatGuest(client, irq=irq, trouble=trouble, memory_size=memory_size).join(timeout)

    def read(self, offset: int, *, strict: bool = False) -> int:
        """Read the 32 bits at *offset*, as a guest does; 0 where no register begins.

        Raises:
            InvalidRegister: none begins there, if *strict*.
        """
        try:
            register = register_at(offset)
        except InvalidRegister as error:
            self._complain("reads", error, strict)
            return 0
        return (self.bells.own_id or 0) if register is Register.IVPOSITION else 0

    def write(self, offset: int, value: int, *, strict: bool = False) -> None:
        """Write the low 32 bits of *value* at *offset*, as a guest does.

        Raises:
            InvalidRegister: no register begins there, or it is read-only, if *strict*.
            NoSuchPeer, NoSuchVector, or what else the doorbells raise: it can't be rung, if *strict*.
        """
        try:
            match register_at(offset):
                case Register.IVPOSITION:
                    raise InvalidRegister(f"IVPOSITION at {offset:#x} is read-only; DOORBELL at 0xc rings")
                case Register.DOORBELL:
                    self.bells.notify(value >> 16 & 0xFFFF, value & 0xFFFF)
        except (DoorbellError, LookupError, OSError) as error:
            self._complain(f"writes {value & 0xFFFFFFFF:#x}", error, strict)

    def interrupt(self, vector: int, count: int = 1) -> None:
        """Pulse the line: our own *vector* was rung *count* times since it was last looked at."""
        self.interrupts[vector] += count
        if self.irq is not None:
            self.irq(vector, count)

    def check_memory(self, size: int) -> None:
        """Look whether the server's memory, of *size* bytes, is the device's.

        Raises:
            MemoryUnavailable: it has another size than this device was told.
        """
        if self.memory_size not in (0, size):
            raise MemoryUnavailable(
                f"the server's memory has {size} bytes, the device {self.memory_size}; make them the same"
            )

    def _complain(self, does: str, error: Exception, strict: bool) -> None:
        self.guest_errors += 1
        if strict:
            raise error
        if self.trouble is not None:
            self.trouble(f"guest {does}: {error}")
