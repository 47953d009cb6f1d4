# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A polkit that says what a test tells it to, on the bus of the test; and callers that are somebody else."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from jeepney import DBusAddress, HeaderFields, Message, MessageType, new_error, new_method_return, new_signal

from .dbusclient import DEADLINE, Client

NAME = "org.freedesktop.PolicyKit1"
PATH = "/org/freedesktop/PolicyKit1/Authority"
INTERFACE = "org.freedesktop.PolicyKit1.Authority"
FAILED = "org.freedesktop.PolicyKit1.Error.Failed"

YES = (True, False, {})
NO = (False, False, {})
CHALLENGE = (False, True, {})
DISMISSED = (False, False, {"polkit.dismissed": "true"})
HANG = "hang"
ERROR = "error"
VANISH = "vanish"


@dataclass(frozen=True)
class Asked:
    """A question: about whom, what for, with which details, and whether a person may be bothered."""

    sender: str
    action: str
    details: dict[str, str]
    interactive: bool
    cancellation: str


class FakePolkit:
    """Answers CheckAuthorization by ``answer``, or by ``challenged`` if a person may be bothered, in a thread.

    An answer is one of those above; HANG keeps the question until `release`, VANISH leaves the bus.
    """

    def __init__(self, address: str, answer: Any = YES, challenged: Any = YES) -> None:
        self.answer = answer
        self.challenged = challenged
        self.asked: list[Asked] = []
        self.cancelled: list[str] = []
        self._hanging: list[Message] = []
        self._changed = threading.Condition()
        self._client = Client(address)
        self._client.bus("RequestName", "su", NAME, 4)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> FakePolkit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.leave()

    def leave(self) -> None:
        """Leave the bus; a second time does nothing."""
        with contextlib.suppress(OSError):  # it has left already
            self._client.connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def changed(self) -> None:
        """Say that something changed."""
        self._client.connection.send(new_signal(DBusAddress(PATH, interface=INTERFACE), "Changed"))

    def release(self, answer: Any = YES) -> None:
        """Answer all questions that hang, and the next ones so, too."""
        with self._changed:
            self.answer = self.challenged = answer
            hanging, self._hanging = self._hanging, []
            for message in hanging:
                self._reply(message, answer)

    def wait_for(self, questions: int) -> list[Asked]:
        """Wait until so many were asked in all; gives them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked) >= questions, DEADLINE), self.asked
            return list(self.asked)

    def _serve(self) -> None:
        with self._client:
            while True:
                try:
                    message = self._client.connection.receive()
                except (ConnectionError, OSError):
                    return
                if message.header.message_type is MessageType.method_call and not self._take(message):
                    return

    def _take(self, message: Message) -> bool:
        with self._changed:
            if message.header.fields[HeaderFields.member] == "CancelCheckAuthorization":
                self.cancelled.append(message.body[0])
                return True
            (kind, subject), action, details, flags, cancellation = message.body
            assert kind == "system-bus-name"
            self.asked.append(Asked(subject["name"][1], action, details, bool(flags & 1), cancellation))
            self._changed.notify_all()
            answer = self.challenged if flags & 1 else self.answer
            if answer == HANG:
                self._hanging.append(message)
            elif answer != VANISH:
                self._reply(message, answer)
            return answer != VANISH

    def _reply(self, message: Message, answer: Any) -> None:
        if answer == ERROR:
            reply = new_error(message, FAILED, "s", ("Action is not registered",))
        else:
            reply = new_method_return(message, "(bba{ss})", (answer,))
        self._client.connection.send(reply)


@contextmanager
def being(uid: int) -> Iterator[None]:
    """Be the user *uid* to whatever is connected to meanwhile; only root can."""
    os.setresgid(uid, uid, 0)
    os.setresuid(uid, uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
