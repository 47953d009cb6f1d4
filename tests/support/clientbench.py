# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A client of the daemon step by step, a server that says what a test wants, and the end of the process at any step.

The event loop runs when a test says so. The process ends within a step (a call that others can see: to the keeper, the
ledger, the socket): before it, after it, or with half of it done. From then on no step is taken any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import socket
import struct
import tempfile
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

from doorbelld.fds import native
from doorbelld.fds.keeper import Kept, Satchel
from doorbelld.fds.ledger import Ledger
from doorbelld.ivshmem import clientjournal, hostpeer
from doorbelld.ivshmem.client_events import ClientEvent
from doorbelld.ivshmem.clientrevival import read_state, revive_client
from doorbelld.ivshmem.hostclient import HostClient
from doorbelld.ivshmem.link import ClientState, Link

from .busykeeper import Store
from .fdcount import no_leaks
from .rawclient import identity

PREFIX = "c1."
PATIENCE = 20.0


class Killed(SystemExit):
    """The end of the process; one that asyncio lets through."""


class Trap:
    """Ends the process at the step that ``left`` counts down to; ``how``: "before", "after" or "half" of it."""

    def __init__(self) -> None:
        self.left = -1
        self.how = "before"
        self.dead = False

    def step(self, work: Callable[..., Any], half: Callable[..., Any], *args: Any) -> Any:
        if self.dead:
            raise Killed
        if self.left < 0:
            return work(*args)
        self.left -= 1
        if self.left >= 0:
            return work(*args)
        self.dead = True
        if self.how == "after":
            work(*args)
        elif self.how == "half":
            half(*args)
        raise Killed

    @contextlib.contextmanager
    def laid(self) -> Iterator[None]:
        """Have all steps go through the trap."""

        def trapped(work: Callable[..., Any], half: Callable[..., Any] = lambda *_: None) -> Callable[..., Any]:
            return lambda *args: self.step(work, half, *args)

        def half_taken(sock: socket.socket, size: int) -> None:
            sock.recv(size // 2)

        with ExitStack() as undo:
            for of, name in [
                *((Ledger, name) for name in ("append", "rewrite", "begin_draining")),
                *((Satchel, name) for name in ("put", "drop")),
                (Link, "_await_welcome"),
            ]:
                undo.enter_context(mock.patch.object(of, name, trapped(getattr(of, name))))
            undo.enter_context(
                mock.patch.object(clientjournal, "take_exactly", trapped(clientjournal.take_exactly, half_taken))
            )
            drain = SimpleNamespace(drain=trapped(native.drain))
            undo.enter_context(mock.patch.object(hostpeer, "native", drain))
            yield


class ClientBench:
    """A kept client, its server, and what it should know once it has been told all."""

    def __init__(self, make: type[HostClient] = HostClient, **options: Any) -> None:
        self.undo = ExitStack()
        self.undo.enter_context(no_leaks())
        self.trap = Trap()
        folder = tempfile.mkdtemp(prefix="db", dir="/tmp")
        self.undo.callback(shutil.rmtree, folder)
        self.loop = asyncio.new_event_loop()
        self.undo.callback(self.loop.close)
        self.failures: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.listener = self.undo.enter_context(socket.socket(socket.AF_UNIX))
        self.listener.bind(f"{folder}/s")
        self.listener.listen()
        self.listener.setblocking(False)
        self.keeper = Store()
        self.events: list[ClientEvent] = []
        self.conn: socket.socket | None = None
        self.connections = 0
        self.waiting: deque[tuple[bytes, list[int]]] = deque()
        self.members: dict[int, list[int]] = {}
        """Doorbells of the others, in the order of joining; ours to close."""
        self.own: list[int] = []
        self.rings: list[int] = []
        self.make = make
        self.spec = make.SPEC.from_raw("demo", {"socket": f"{folder}/s", **options})
        self.client = make.open(self.spec, self.loop, self.events.append, keeping=(self.keeper, PREFIX))

    # The server

    def accept(self) -> None:
        """Wait for the client, and welcome it as 7."""
        self.until(self._accepted)
        memory = os.memfd_create("memory")
        os.ftruncate(memory, 4096)
        self.say(0)
        self.say(7)
        self.say(-1, memory)
        os.close(memory)

    def _accepted(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self.conn, _ = self.listener.accept()
            self.conn.setblocking(False)
            self.connections += 1
            return True
        return False

    def say(self, value: int, *fds: int, cut: int = 0) -> None:
        """Have a message wait to be sent, in two pieces if it is *cut*."""
        data = struct.pack("<q", value)
        copies = [os.dup(fd) for fd in fds]
        self.waiting.append((data[: cut or 8], copies))
        if cut:
            self.waiting.append((data[cut:], []))

    def add(self, peer_id: int, cut: int = 0) -> None:
        """Tell of one more vector; 7 is the client itself."""
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        if peer_id == 7:
            self.own.append(fd)
            self.rings.append(0)
        else:
            self.members.setdefault(peer_id, []).append(fd)
        self.say(peer_id, fd, cut=cut)

    def leave(self, peer_id: int, cut: int = 0) -> None:
        for fd in self.members.pop(peer_id, []):
            os.close(fd)
        self.say(peer_id, cut=cut)

    def ring(self, vector: int, count: int = 1) -> None:
        if vector < len(self.own):
            os.eventfd_write(self.own[vector], count)
            self.rings[vector] += count

    def deliver(self, count: int | None = None) -> None:
        """Send as many pieces as there are, or *count*."""
        assert self.conn is not None
        while self.waiting and count != 0:
            data, fds = self.waiting[0]
            try:
                socket.send_fds(self.conn, [data], fds) if fds else self.conn.send(data)
            except BlockingIOError:
                return
            self.waiting.popleft()
            for fd in fds:
                os.close(fd)
            count = None if count is None else count - 1

    def hang_up(self) -> None:
        """Close the connection, and forget all."""
        if self.conn is not None:
            self.conn.close()
        for _, fds in self.waiting:
            for fd in fds:
                os.close(fd)
        self.waiting.clear()
        for each in (self.own, *self.members.values()):
            for fd in each:
                os.close(fd)
        self.own, self.members, self.conn = [], {}, None

    # The client

    def turn(self, count: int = 1) -> None:
        """Let the loop run; the process may end meanwhile."""
        with self.trap.laid(), contextlib.suppress(Killed):
            try:
                for _ in range(count):
                    self.loop.call_soon(self.loop.stop)
                    self.loop.run_forever()
            except Killed as end:
                traceback.clear_frames(end.__traceback__)
                end.__traceback__ = None
        assert not self.failures, self.failures

    def until(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < deadline, f"waited in vain: {self.client.state} {self.client.reason}"
            self.turn()
            if self.trap.dead:
                self.restart()

    def until_dead(self) -> None:
        """Let the loop run until the process has ended."""
        deadline = time.monotonic() + PATIENCE
        while not self.trap.dead:
            assert time.monotonic() < deadline, "it lives"
            self.turn()

    def restart(self) -> HostClient:
        """End the process, and put the client together anew; ending it again on the way is possible, too."""
        while True:
            self._end()
            with self.trap.laid():
                try:
                    self.client = self.revive()
                except Killed as end:
                    traceback.clear_frames(end.__traceback__)
                    continue
            return self.client

    def _end(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # nobody closes what a killed process had in its hands
            self.client.let_go()
            self.trap.dead, self.trap.left = False, -1
            self.events.clear()
            for handle in list(self.loop._scheduled):  # type: ignore[attr-defined]
                handle.cancel()
            gc.collect()

    def revive(self, spoil: Callable[[dict[str, Any]], Any] = lambda _: None) -> HostClient:
        """Make a client of what is kept, once *spoil* has had its way with the state."""
        kept = Kept({name: fd.dup() for name, fd in self.keeper.copies.items()}).below(PREFIX)
        fd = kept.take("state")
        assert fd is not None
        try:
            ledger, state = read_state(fd)
        except BaseException:
            kept.close()
            raise
        spoil(state)
        return revive_client(self.make, state, ledger, kept, (self.keeper, PREFIX), self.loop, self.events.append)

    def agrees(self) -> bool:
        """Whether the client knows what it was told, and has counted what it was rung."""
        client = self.client
        return (
            client.state is ClientState.CONNECTED
            and client.id == 7
            and {peer.id: [*map(identity, peer.eventfds)] for peer in client.peers.values()}
            == {peer_id: [*map(identity, fds)] for peer_id, fds in self.members.items()}
            and list(client.peers) == list(self.members)
            and [*map(identity, client.link.membership.own.eventfds)] == [*map(identity, self.own)]
            and client.rings == self.rings
        )

    def settle(self) -> None:
        """Tell everything, and see that the client knows it and the server has noticed nothing."""

        def told() -> bool:
            self.deliver()
            return not self.waiting and self.agrees()

        self.until(told)
        assert self.conn is not None
        with contextlib.suppress(BlockingIOError):
            raise AssertionError(f"the server heard {self.conn.recv(1)!r}")
        assert self.connections == 1

    def close(self) -> None:
        self.hang_up()
        self.client.close()
        assert not self.keeper.copies
        self.events.clear()
        self.undo.close()
