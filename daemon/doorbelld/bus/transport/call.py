# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A method call as the reader hands it on: its header read, its body not parsed before somebody asks for it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from ..library import MessageType, parse_body

WEIGHT = 512
"""Bytes that a call takes while it waits, besides its body."""


class BodyMalformed(Exception):
    """The body is not what the signature says."""


class BodyTooLarge(Exception):
    """The body is larger than what is called takes, and was not kept."""


@dataclass(slots=True)
class MethodCall:
    """A call: what its header says, and its arguments once `body` is asked for."""

    path: str
    interface: str | None
    member: str
    sender: str
    signature: str
    flags: int
    serial: int
    raw: bytes | None = b""
    """The bytes of the body; None if it was too large."""
    size: int = 0
    """Bytes of the body as it was sent."""
    size_max: int = 0
    """Bytes that it may have."""
    big: bool = False
    """Whether it is in big-endian byte order."""
    arguments: list[Any] | None = None
    """The arguments, once they are parsed."""
    message_type: Any = MessageType.METHOD_CALL

    @property
    def body(self) -> list[Any]:
        """The arguments.

        Raises:
            BodyTooLarge, BodyMalformed: there are none.
        """
        if self.arguments is None:
            if self.raw is None:
                raise BodyTooLarge(
                    f"{self.member} was called with {self.size} bytes of arguments, and takes {self.size_max} at most; "
                    "call it with less at a time"
                )
            try:
                self.arguments = parse_body(self.signature, self.raw, self.big)
            except Exception as error:  # whatever the library raises
                raise BodyMalformed(f'the arguments are not as their signature "{self.signature}" says') from error
        return self.arguments

    @property
    def weight(self) -> int:
        """Bytes that it takes while it waits."""
        return WEIGHT + len(self.raw or b"")

    def first_text(self) -> str:
        """Give the first argument if it is a string, without parsing the others; "" if it is none."""
        if self.arguments:
            return self.arguments[0] if isinstance(self.arguments[0], str) else ""
        if not self.raw or self.signature[:1] != "s" or len(self.raw) < 4:
            return ""
        (size,) = struct.unpack_from(">I" if self.big else "<I", self.raw)
        return self.raw[4 : 4 + size].decode(errors="replace")
