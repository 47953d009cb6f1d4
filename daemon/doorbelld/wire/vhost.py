# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The vhost-user protocol, without a socket (QEMU, docs/interop/vhost-user.rst, "Message Specification").

A message is a header of three 32-bit numbers (request, flags, size of the payload), the payload, and descriptors
beside it. Requests go one way and replies the other, on each of two channels: the main one, where the front-end asks,
and a second one, where the back-end does. So a stream holds requests only or replies only, and there are four kinds
of `Decoder`::

                        main channel                                  back-end channel
    back-end reads      Decoder(FrontendRequest)                      Decoder(BackendRequest, replies=True)
    front-end reads     Decoder(FrontendRequest, replies=True)        Decoder(BackendRequest)

`vhost_requests.py` and `vhost_messages.py` say what each message looks like. What looks different is refused here, with
the request's name and the cause; whether it may come now, and whether it was negotiated, is the session's business. A
request that nobody knows is no error: it comes out as it is, to be refused with `Message.ack` and a number but 0.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..fds.owned import Fd
from .vhost_messages import FDS_MAX, U64, Empty, Flags, Opaque, Payload
from .vhost_requests import Answer, Form, Request, Unknown, Vocabulary

HEADER = struct.Struct("=III")


class ProtocolError(ValueError):
    """The other side sent what is no message, or we are about to."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message; who gets it from a `Decoder` owns its descriptors."""

    request: Request
    payload: Payload = Empty()
    fds: tuple[Fd, ...] = ()
    flags: Flags = Flags.VERSION

    @property
    def is_reply(self) -> bool:
        """Whether it answers a request."""
        return bool(self.flags & Flags.REPLY)

    @property
    def need_reply(self) -> bool:
        """Whether the sender waits for an acknowledgement, should this message have no reply of its own."""
        return bool(self.flags & Flags.NEED_REPLY)

    @property
    def awaits_answer(self) -> bool:
        """Whether the sender waits for anything: the message always has a reply, or it asks for one."""
        return self.request.exchange.answer is Answer.ALWAYS or self.need_reply

    @property
    def fd(self) -> Fd | None:
        """The only descriptor of a message that has at most one."""
        return self.fds[0] if self.fds else None

    def reply(self, payload: Payload | None = None, fds: tuple[Fd, ...] = ()) -> Message:
        """Make the answer to this request; its flags are exactly 0x5, for QEMU and Linux take no other."""
        return Message(self.request, Empty() if payload is None else payload, fds, Flags.VERSION | Flags.REPLY)

    def ack(self, result: int = 0) -> Message:
        """Make the acknowledgement of this request; 0 is success ("VHOST_USER_PROTOCOL_F_REPLY_ACK")."""
        number = U64(result)
        return self.reply(Opaque(number.pack()) if isinstance(self.request, Unknown) else number)

    def close(self) -> None:
        """Close all descriptors that are still in it."""
        for fd in self.fds:
            fd.close()


def encode(message: Message) -> tuple[bytes, list[int]]:
    """Put *message* in the form that goes over the wire: bytes, and descriptors that stay its own.

    They go into one ``sendmsg``.

    Raises:
        ProtocolError: the specification has no such message; this is a mistake of ours.
    """
    request, payload = message.request, message.payload
    try:
        _check_flags(message.flags, message.is_reply)
        forms = _forms(request, message.is_reply)
        form = next((form for form in forms if form.payload is type(payload)), None)
        if form is None:
            raise ProtocolError(f"payload {type(payload).__name__}, {_one_of([f.payload.__name__ for f in forms])}")
        data = payload.pack()
        _choose([form], len(data))
        _check_fds(form, payload, len(message.fds))
    except (ValueError, struct.error) as error:
        raise ProtocolError(f"{request.name}: {error}") from None
    return HEADER.pack(request, message.flags, len(data)) + data, [fd.fileno() for fd in message.fds]


class Decoder:
    """Turn one side's stream into messages.

    Invariants: descriptors that were fed are owned by the decoder until a message carries them out, and `close` closes
    those that none did. After a `ProtocolError` nothing is held, and nothing of the stream is looked at any more.
    """

    def __init__(self, requests: Vocabulary, *, replies: bool = False) -> None:
        self._requests = requests
        self._replies = replies
        self._data = bytearray()
        self._fds: deque[tuple[int, Fd]] = deque()  # (place in the stream of the byte it came with, descriptor)
        self._taken = 0
        self._failure: str | None = None

    @property
    def pending(self) -> int:
        """Bytes of a message that is not whole: more than 0 at the end of a stream is a message cut off."""
        return len(self._data)

    def feed(self, data: bytes, fds: Sequence[Fd] = ()) -> Iterator[Message]:
        """Take what one ``recvmsg`` gave, of any length, and return the messages that are whole now.

        The kernel reads on over what came without descriptors, and stops after what came with some: so *fds* belong
        to the message that the last byte of *data* is of. All is taken at once; messages that the caller leaves in
        the iterator come with the next.

        Raises:
            ProtocolError: from the iterator, after the messages before it: flags, size or payload that the request
                can't have, a descriptor missing or too many.
        """
        last = max(0, self._taken + len(self._data) + len(data) - 1)
        self._fds.extend((last, fd) for fd in fds)
        self._data += data
        return self._messages()

    def close(self) -> None:
        """Drop what is not a message yet, and close the descriptors that no message has carried out."""
        self._data.clear()
        while self._fds:
            self._fds.popleft()[1].close()

    def _messages(self) -> Iterator[Message]:
        try:
            if self._failure is not None:
                raise ProtocolError(self._failure)
            while (message := self._next()) is not None:
                yield message
        except ProtocolError as error:
            self._failure = str(error)
            self.close()
            raise

    def _next(self) -> Message | None:
        if len(self._data) < HEADER.size:
            self._wait("a header")
            return None
        number, flags, size = HEADER.unpack_from(self._data)
        request = self._name(number)
        try:
            _check_flags(flags, self._replies)
            form = _choose(_forms(request, self._replies), size)
        except ProtocolError as error:
            raise ProtocolError(f"{request.name}: {error}") from None
        end = HEADER.size + size
        if len(self._data) < end:
            self._wait(request.name)
            return None
        raw = bytes(self._data[HEADER.size : end])
        del self._data[:end]
        self._taken += end
        fds = []
        while self._fds and self._fds[0][0] < self._taken:
            fds.append(self._fds.popleft()[1])
        try:
            payload = form.payload.unpack(raw)
            _check_fds(form, payload, len(fds))
        except ValueError as error:
            for fd in fds:
                fd.close()
            raise ProtocolError(f"{request.name}: {error}") from None
        return Message(request, payload, tuple(fds), Flags(flags))

    def _name(self, number: int) -> Request:
        try:
            return self._requests(number)
        except ValueError:
            return Unknown(number)

    def _wait(self, what: str) -> None:
        # All that is left belongs to the message that is not whole yet.
        if len(self._fds) > FDS_MAX:
            raise ProtocolError(f"{what}: {len(self._fds)} descriptors so far, at most {FDS_MAX} come with a message")


def _forms(request: Request, reply: bool) -> tuple[Form, ...]:
    return request.exchange.reply if reply else request.exchange.request


def _check_flags(flags: int, reply: bool) -> None:
    good = (Flags.VERSION | Flags.REPLY,) if reply else (Flags.VERSION, Flags.VERSION | Flags.NEED_REPLY)
    if flags not in good:
        raise ProtocolError(f"flags {flags:#x}, {_one_of([f'{each:#x}' for each in good])}")


def _choose(forms: Sequence[Form], size: int) -> Form:
    for form in forms:
        if size in form.payload.sizes():
            return form
    raise ProtocolError(f"payload of {size} bytes, {_one_of([_span(form.payload.sizes()) for form in forms])}")


def _check_fds(form: Form, payload: Payload, count: int) -> None:
    allowed = form.allowed(payload)
    if count not in allowed:
        raise ProtocolError(f"comes with {count} descriptors, {_one_of([_span(allowed)])}")


def _span(numbers: range) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}..{numbers[-1]}"


def _one_of(good: Sequence[str]) -> str:
    return f"must be {' or '.join(good)}"
