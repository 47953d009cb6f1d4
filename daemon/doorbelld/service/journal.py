# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Events into systemd's journal, in its native protocol: a datagram per event, fields as they are.

A field is ``NAME=value`` and a newline; or, should there be a newline in the value, the name, a newline, the length
(64 bit, little endian), the value, and a newline. An event that is too large for a datagram travels in a sealed memfd.

The log never holds up a guest. The socket is not connected, so it needs no care when journald stops and comes back,
and nothing waits: what doesn't get through at once (journald is behind, or not there) is dropped and counted, and the
first event that gets through again is followed by a line that tells how many were lost. It comes after that event and
not before it, since where there is room for one only, the event is worth more.

What is done for each event is kept little: fields that are the same for each event of a kind are made once, and
newlines, which are rare, are looked for in all values at once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import syslog
import traceback
from array import array
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from ..fds.owned import Fd
from ..log import LOST, Where, exception_of
from .messages import MESSAGE_IDS

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "doorbelld"
PREFIX = "DOORBELLD_"

NAME_MAX = 64
"""Longer names of fields journald does not take."""
CACHE_MAX = 1000
"""How many names and places are remembered; the source has far fewer."""
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
"""What journald wants of a memfd, so that nobody changes it under its hands."""


def field_name(key: str) -> str:
    """Name the field for *key*: ``peer`` is ``DOORBELLD_PEER``; ``errno`` alone has a well-known one."""
    if key == "errno":
        return "ERRNO"
    return PREFIX + re.sub(r"[^A-Z0-9_]", "_", key.upper())[: NAME_MAX - len(PREFIX)]


def encode(fields: list[str]) -> bytes:
    """Encode fields that are given as ``NAME=value``."""
    text = "\n".join([*fields, ""])
    if text.count("\n") == len(fields):
        try:
            return text.encode()
        except UnicodeEncodeError:
            pass
    return b"".join(map(_encode_one, fields))


def _encode_one(field: str) -> bytes:
    name, _, value = field.partition("=")
    try:
        data = value.encode(errors="surrogateescape")  # a path that isn't UTF-8 is given as it is
    except UnicodeEncodeError:
        data = value.encode(errors="backslashreplace")
    if b"\n" in data:
        return b"%b\n%b%b\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
    return b"%b=%b\n" % (name.encode(), data)


def in_words(value: object) -> str:
    """Show a value in a line: as it is if it is one plain word, else quoted, with all that is odd escaped."""
    text = str(value)
    return text if text.isprintable() and " " not in text and text else repr(text)


class Journal:
    """A sink for events (`log.Sink`) that sends them to journald at *path*."""

    def __init__(self, path: str = SOCKET) -> None:
        self.lost = 0
        """Events that did not get through and of which the journal doesn't know yet."""
        self._path = os.fsencode(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._names: dict[str, str] = {}
        self._places: dict[Where, bytes] = {}
        self._heads: dict[tuple[int, str], bytes] = {}

    @classmethod
    def of_stderr(cls, environ: Mapping[str, str] = os.environ, fd: int = 2, path: str = SOCKET) -> Self | None:
        """Make one if standard error (*fd*) goes to the journal anyway, and its socket at *path* takes what we send.

        What systemd connected to the journal it names in ``$JOURNAL_STREAM``, by device and inode. The variable may
        have been inherited by who has other streams, so it only counts if it names ours.
        """
        try:
            status = os.fstat(fd)
        except OSError:
            return None
        if environ.get("JOURNAL_STREAM") != f"{status.st_dev}:{status.st_ino}":
            return None
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as attempt:
            try:
                attempt.connect(path)
            except OSError:
                return None
        return cls(path)

    def close(self) -> None:
        """Send nothing from now on; what is given still counts as lost."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __call__(self, priority: int, event: str, values: dict[str, Any], where: Where) -> None:
        """Send an event, or count it as lost."""
        if not self._send(self._render(priority, event, values, where)):
            self.lost += 1
        elif self.lost:
            count = self.lost
            if self._send(self._render(syslog.LOG_WARNING, LOST, {"count": count}, where)):
                self.lost -= count

    def _render(self, priority: int, event: str, values: dict[str, Any], where: Where) -> bytes:
        message = [str(event)]
        fields = []
        for key, value in values.items():
            if key == "exc_info":
                if (error := exception_of(value)) is not None:
                    message.append(f"exception={in_words(''.join(traceback.format_exception_only(error)).strip())}")
                    fields.append("EXCEPTION=" + "".join(traceback.format_exception(error)).rstrip())
                continue
            name = self._names.get(key) or self._name(key)
            fields.append(f"{name}{value}")
            message.append(f"{key}={value if type(value) is int else in_words(value)}")
        fields.append("MESSAGE=" + " ".join(message))
        head = self._heads.get((priority, event)) or self._head(priority, event)
        place = self._places.get(where) or self._place(where)
        return head + place + encode(fields)

    def _name(self, key: str) -> str:
        """Make the beginning of the field for *key*, and remember it."""
        if len(self._names) >= CACHE_MAX:
            self._names.clear()
        name = self._names[key] = f"{field_name(key)}="
        return name

    def _head(self, priority: int, event: str) -> bytes:
        """Make the fields that are the same for each event of a kind; remember those that we know."""
        fields = [f"SYSLOG_IDENTIFIER={IDENTIFIER}", f"PRIORITY={priority}"]
        identity = MESSAGE_IDS.get(event)
        if identity is None:
            return encode(fields)
        head = self._heads[priority, event] = encode([*fields, f"MESSAGE_ID={identity}"])
        return head

    def _place(self, where: Where) -> bytes:
        """Make the fields for a place in the source, and remember them."""
        if len(self._places) >= CACHE_MAX:
            self._places.clear()
        file, line, function = where
        place = self._places[where] = encode([f"CODE_FILE={file}", f"CODE_LINE={line}", f"CODE_FUNC={function}"])
        return place

    def _send(self, data: bytes) -> bool:
        """Send an encoded event; tells whether journald has it."""
        try:
            self._socket.sendto(data, socket.MSG_DONTWAIT, self._path)
        except OSError as error:
            return error.errno == errno.EMSGSIZE and self._send_large(data)
        return True

    def _send_large(self, data: bytes) -> bool:
        """Send one that is too large for a datagram: in a memfd, which comes with an empty one."""
        try:
            with Fd(os.memfd_create("doorbelld-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)) as fd:
                with open(fd.fileno(), "wb", closefd=False) as file:
                    file.write(data)
                fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, SEALS)
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd.fileno()]))
                self._socket.sendmsg([b""], [rights], socket.MSG_DONTWAIT, self._path)
        except OSError:
            return False
        return True
