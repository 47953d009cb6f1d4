# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a client and a flat device can be told: the keys of ``[client.NAME]`` and ``[flat.NAME]``, and of D-Bus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from ..errors import Problem
from ..fds.listener import PATH_MAX
from ..options import boolean, integer, option, parse, path, size
from .spec import MSIX_VECTORS_MAX, NAME, VECTORS_MAX

_JOINED = "it has joined the region there"


def _size_or_none(raw: object) -> int:
    return 0 if raw == 0 and not isinstance(raw, bool) else size(raw)


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """A client as it was asked for: the daemon joins the region of another server, whose socket is ``socket``."""

    KIND: ClassVar[str] = "client"
    """The table of the configuration that it is in."""

    name: str
    socket: str = option(path, frozen=_JOINED)
    vectors_max: int = option(integer(1, MSIX_VECTORS_MAX), default=VECTORS_MAX)
    reconnect: bool = option(boolean, default=True)

    def check(self, prefix: str) -> list[Problem]:
        """Look at the values together."""
        problems = []
        if not NAME.fullmatch(self.name):
            cause = f"{self.name!r} can't be the name of a client or a flat device"
            problems.append(Problem(prefix, cause, "use letters, digits, _ . -, at most 64"))
        if len(self.socket.encode()) > PATH_MAX:
            cause = f"{self.socket} is longer than a UNIX socket's path may be"
            problems.append(Problem(f"{prefix}.socket", cause, f"use {PATH_MAX} bytes or less"))
        return problems

    def as_options(self) -> dict[str, Any]:
        """Put it in plain values, the form that it is asked for in."""
        return {"socket": self.socket, "vectors-max": self.vectors_max, "reconnect": self.reconnect}

    def raw(self) -> dict[str, Any]:
        """Put it in the form that `parse` reads; only the name goes beside it."""
        return self.as_options()

    @classmethod
    def from_raw(cls, name: str, raw: Mapping[str, Any]) -> Self:
        """Read what `raw` gave.

        Raises:
            InvalidOptions: it does not hold here and now.
        """
        return parse(cls, raw, f"{cls.KIND}.{name}", name=name)


@dataclass(frozen=True, slots=True)
class FlatSpec(ClientSpec):
    """A flat device as it was asked for. ``memory_size`` is QEMU's shmem-size; 0 takes any memory."""

    KIND: ClassVar[str] = "flat"

    memory_size: int = option(_size_or_none, default=0, frozen="the device was made with memory of that size")

    def as_options(self) -> dict[str, Any]:
        """Put it in plain values, the form that it is asked for in."""
        return {
            "socket": self.socket,
            "memory-size": self.memory_size,
            "vectors-max": self.vectors_max,
            "reconnect": self.reconnect,
        }
