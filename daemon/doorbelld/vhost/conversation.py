# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The main channel while a front-end is served: messages, and what has to be done between them, one after the other.

What needs the session but is no message (a reset that somebody asked for) is put down as a job, and done before the
next message. Whatever ends the conversation is put down too, by `Conversation.fail`, from anywhere on the event loop;
it is found before the next message, and wherever the front-end is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NoReturn

from ..errors import in_words
from ..wire.vhost import Decoder, Message, ProtocolError, encode
from ..wire.vhost_requests import FrontendRequest
from .channel import receive, send
from .errors import DeviceFaulty
from .session import Session, SessionEnded

_CLOSED = "it closed its connection"
_TURN_SECONDS = 0.001

Job = Callable[[Session], Awaitable[None]]


class _Gone(Exception):
    """The front-end went away, or is to."""


class Conversation:
    """One front-end, behind *sock*, which is taken over, and *session*; *spoke* is called at its first message."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, session: Session, spoke: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._session = session
        self._decoder = Decoder(FrontendRequest)
        self._news = asyncio.Event()
        self._jobs: deque[Job] = deque()
        self._failure: tuple[str, bool] | None = None
        self._spoke = spoke
        self.fruitful = False
        """Whether a message was handled."""

    def job(self, job: Job) -> None:
        """Have *job* done between two messages."""
        self._jobs.append(job)
        self._news.set()

    def fail(self, reason: str, broken: bool) -> None:
        """End it, unless somebody did already; *broken* says that the front-end is to blame."""
        if self._failure is None:
            self._failure = reason, broken
        self._news.set()

    async def run(self) -> tuple[str, bool]:
        """Take one thing after the other until the end; returns its reason, and whether the front-end is to blame."""
        try:
            await self._talk()
        except _Gone as error:
            return self._failure or (str(error), False)
        except (ProtocolError, SessionEnded, DeviceFaulty) as error:
            return self._failure or (str(error), True)
        except Exception as error:  # a bug of ours
            return self._failure or (in_words(error), True)

    def close(self) -> None:
        """Close the connection, and the descriptors that came and that no message carried out."""
        self._decoder.close()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    async def _talk(self) -> NoReturn:
        """Take one thing after the other; raises what ends it."""
        while True:
            await self._catch_up()
            try:
                data, fds = receive(self._sock)
            except BlockingIOError:
                await self._wait(self._loop.add_reader, self._loop.remove_reader)
                continue
            except ConnectionError:
                raise _Gone(_CLOSED) from None
            except OSError as error:
                raise _Gone(f"its connection broke: {error.strerror}") from error
            if not data:
                raise _Gone(f"{_CLOSED} in the middle of a message" if self._decoder.pending else _CLOSED)
            turn_ends = 0.0  # whoever talks without end does not keep others from their turn
            for message in self._decoder.feed(data, fds):
                if self._loop.time() > turn_ends:
                    await asyncio.sleep(0)
                    turn_ends = self._loop.time() + _TURN_SECONDS
                if not self.fruitful:
                    self._spoke()
                answer = await self._session.handle(message)
                if answer is not None:
                    await self._answer(answer)
                self.fruitful = True
                await self._catch_up()

    async def _catch_up(self) -> None:
        """Do what waits besides messages."""
        self._news.clear()
        while self._jobs and self._failure is None:
            await self._jobs.popleft()(self._session)
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise _Gone(self._failure[0])

    async def _wait(self, watch: Callable[..., object], unwatch: Callable[[int], object]) -> None:
        """Wait until the socket is ready, or there is a job, or a failure."""
        watch(self._sock.fileno(), self._news.set)
        try:
            await self._news.wait()
        finally:
            unwatch(self._sock.fileno())

    async def _answer(self, answer: Message) -> None:
        with contextlib.closing(answer):
            data, fds = encode(answer)
            while data:
                try:
                    data, fds = data[send(self._sock, data, fds) :], []
                except BlockingIOError:
                    await self._wait(self._loop.add_writer, self._loop.remove_writer)
                    self._check()
                    self._news.clear()
                except OSError:
                    raise _Gone(_CLOSED) from None
