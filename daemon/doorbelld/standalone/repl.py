# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Words for an ivshmem client: ``int 0 1``, ``dump``, ``quit``; what ``doorbell-client`` and ``doorbellctl attach`` do.

Theory of operation
-------------------
Two threads share the client. The main thread reads lines and does what they say; the watcher tells what happens, and
connects again when the server went away. While there is no connection the client is the watcher's alone; while there is
one (`_connected`), it is whose who has `_lock`. Signals come to the main thread only, which never waits for the watcher
to connect: a server that is silent holds up nobody who wants to leave.

The protocol does not say when a greeting is over, and a script's first line is there before the server's first message.
So commands wait until we have as many doorbells as the others have; if there are no others, until the server has been
quiet for a moment. Somebody who is not there even then may be about to come, so the first rings wait for them, for half
a second at most.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from ..errors import DoorbellError, NoSuchPeer, NoSuchVector
from ..ivshmem.client import Client, Event, Rung
from ..ivshmem.membership import PeerJoined, PeerLeft, StrayLeave
from ..ivshmem.receive import Backoff
from .terminal import Screen, open_screen

CONNECT_SECONDS = 5.0
GREETING = 2.0
"""Seconds that we wait for a doorbell of our own, with which everybody is known who was there before; not all servers
give any."""
QUIET = 0.05
SETTLE = 0.5
PATIENCE = 0.5
"""How long the watcher may take to end."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
FAILED = 1

WORDS = ("dump", "help", "int", "quit")
HELP = """\
int <peer> <vector>  ring one doorbell of a peer
int <peer> all       ring all doorbells of a peer
int all              ring all doorbells of all others
dump                 show who is there, ourselves first
help, ?              show this
quit                 end; Ctrl-D does it too
Several on a line are separated by ;"""


class Wrong(DoorbellError):
    """A command that can't be done, with what to do instead."""


class Repl:
    """Reads commands, does them with *client*, and tells what happens; *verbose* tells who comes and goes, too.

    A *client* that is not connected is connected to its path. With *again* that is done over and over when the server
    is not there or goes away; else its end is ours. *names* are words for IDs of peers, such as ``host``. *hint* is
    told to a person at the start. *screen* is for tests.
    """

    def __init__(
        self,
        client: Client,
        *,
        verbose: bool = False,
        again: bool = True,
        screen: Screen | None = None,
        names: Mapping[str, int] | None = None,
        hint: str = "type help for the words",
    ) -> None:
        self._client = client
        self._verbose = verbose
        self._again = again
        self._screen = screen
        self._names = names or {}
        self._hint = hint
        self._lock = threading.Condition()
        self._connected = False  # and greeted
        self._since = 0.0
        self._over = False
        self._end = -1
        self._failed = False  # a command did
        self._lost = False  # the server, for good

    def run(self) -> int:
        """Go on until ``quit`` or the end of the input; gives the exit status.

        It is 1 if a command of a script failed, or if there is no server and we don't wait for one.

        The client is left as it is then, connected or not. For the main thread.

        Raises:
            KeyboardInterrupt: SIGINT came, and not for a line at a terminal.
        """
        screen = self._screen = self._screen or open_screen(self.complete)
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # the watcher inherits it
        watcher.start()
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            if self._wait() and screen.interactive:
                screen.tell(self._hint)
            while not self._over and (line := screen.read()) is not None and self.do(line):
                pass
        finally:
            self._over = True
            os.eventfd_write(self._end, 1)
            watcher.join(PATIENCE)
            if not watcher.is_alive():  # else a silent server has it, and it ends with the process
                os.close(self._end)
                self._tell_the_rest()
            screen.close()
        return FAILED if self._lost or (self._failed and not screen.interactive) else os.EX_OK

    # Words

    def do(self, line: str) -> bool:
        """Do what *line* says; tells whether to go on."""
        assert self._screen is not None
        for command in line.replace("\r", ";").split(";"):
            words = command.split()
            if words == ["quit"]:
                return False
            try:
                if words and (said := self._do(*words)):
                    self._screen.tell(said)
            except (DoorbellError, OSError) as error:
                self._failed = True
                self._screen.tell(str(error))
        return True

    def _do(self, word: str, *arguments: str) -> str:
        """Do one command; gives the answer."""
        match word, *arguments:
            case ["help" | "?"]:
                return HELP
            case ["dump"]:
                with self._connection():
                    return self._client.dump()
            case ["int", "all"]:
                self._ring(self._client.notify_broadcast)
            case ["int", peer, "all"]:
                peer_id = self._peer(peer)
                self._ring(lambda: self._client.notify_all_vectors(peer_id))
            case ["int", peer, vector]:
                peer_id, number = self._peer(peer), _number(vector, "vector")
                self._ring(lambda: self._client.notify(peer_id, number))
            case ["int", *_]:
                raise Wrong('int takes a peer and a vector: write "int 0 1", "int 0 all" or "int all"')
            case ["help" | "?" | "dump" | "quit", *_]:
                raise Wrong(f"{word} takes nothing after it; separate commands by ;")
            case _:
                close = difflib.get_close_matches(word, WORDS, 1)
                meant = f"did you mean {close[0]}?" if close else "type help for those there are"
                raise Wrong(f"{word!r} is no command; {meant}")
        return ""

    def _peer(self, word: str) -> int:
        """Read a peer: its ID, or the name that *names* has for it."""
        return self._names[word] if word in self._names else _number(word, "peer ID")

    def _ring(self, ring: Callable[[], None]) -> None:
        """Do *ring*, for which the peer may have to arrive yet."""
        with self._connection():
            while True:
                try:
                    return ring()
                except (NoSuchPeer, NoSuchVector):
                    left = self._since + SETTLE - time.monotonic()
                    if left <= 0:
                        raise
                    self._lock.wait(left)
                    if not self._connected:
                        raise

    @contextlib.contextmanager
    def _connection(self) -> Iterator[None]:
        """Have a connection, and the client, in the body; a script waits for it, a person is told."""
        assert self._screen is not None
        with self._lock:
            if not self._connected and (self._screen.interactive or not self._wait()):
                cure = "we try again and again, so wait for it" if self._again else "begin anew"
                raise Wrong(f"not connected to {self._client.path or 'a server'}; {cure}")
            yield

    def _wait(self) -> bool:
        """Wait for a connection; tells whether there is one, rather than our end."""
        with self._lock:
            self._lock.wait_for(lambda: self._connected or self._over)
            return self._connected

    def complete(self, line: str, word: str) -> list[str]:
        """Give what *word* can become, which comes after *line*."""
        before = line.rpartition(";")[2].split()
        everybody: dict[int, int] = {}
        with self._lock:
            if self._connected:
                everybody = {peer_id: len(of) for peer_id, of in self._client.doorbells.items()}
        match before:
            case []:
                choices = [f"{each} " if each == "int" else each for each in WORDS]
            case ["int"]:
                choices = [
                    "all",
                    *(f"{peer_id} " for peer_id in sorted(everybody)),
                    *(f"{name} " for name in self._names),
                ]
            case ["int", peer] if peer.isdecimal():
                choices = ["all", *map(str, range(everybody.get(int(peer), 0)))]
            case _:
                choices = []
        return [choice for choice in choices if choice.startswith(word)]

    # What happens

    def _watch(self) -> None:
        """Be the watcher."""
        assert self._screen is not None
        try:
            while not self._over and self._connect():
                self._follow()
                if not self._again:
                    break
            self._lost = not self._over
        finally:
            if not self._over:
                with self._lock:
                    self._over = True
                    self._lock.notify_all()
                self._screen.interrupt()

    def _connect(self) -> bool:
        """Have a connection, whatever it takes; tells whether there is one, rather than our end."""
        assert self._screen is not None
        backoff, told = Backoff(), ""
        while not self._over:
            try:
                if not self._client.connected:
                    self._client.connect(CONNECT_SECONDS)
                self._be_greeted()
                self._screen.note(self._greeting())
                with self._lock:
                    self._connected, self._since = True, time.monotonic()
                    self._lock.notify_all()
                return True
            except (DoorbellError, OSError) as error:
                if not self._again:
                    self._screen.note(str(error))
                    return False
                if (reason := str(error)) != told:
                    self._screen.note(f"{reason}; trying again until it works")
                    told = reason
            if self._ends_within(backoff.next()):
                break
        return False

    def _be_greeted(self) -> None:
        """Hear the server out, as far as one can know; rings are told, and who was there before is not."""
        client, events = self._client, []
        with contextlib.suppress(TimeoutError):
            events = client.wait_for(lambda: client.vectors, GREETING)
            while client.vectors < max((peer.vectors for peer in client), default=client.vectors_max):
                if not (more := client.poll(QUIET)):
                    break
                events += more
        self._tell_of([event for event in events if isinstance(event, Rung)])

    def _follow(self) -> None:
        """Tell what happens until the connection ends."""
        assert self._screen is not None
        poll = select.poll()
        poll.register(self._client.fileno(), select.POLLIN)
        poll.register(self._end, select.POLLIN)
        vectors = self._client.vectors
        while not self._over:
            poll.poll()
            try:
                with self._lock:
                    self._tell_of(self._client.handle_fds())
                    self._lock.notify_all()
                if self._client.vectors > vectors:  # the server was not yet done when we were greeted
                    vectors = self._client.vectors
                    self._screen.note(f"peer {self._client.id}, which is us, has {vectors} vectors now")
            except (DoorbellError, OSError) as error:
                with self._lock:
                    self._connected = False
                    self._lock.notify_all()
                self._client.close()
                self._screen.note(f"{error}; {'connecting again' if self._again else 'that is the end'}")
                return

    def _ends_within(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _tell_the_rest(self) -> None:
        """Tell what has come by now: a script may end before the watcher's turn came."""
        with contextlib.suppress(DoorbellError, OSError):
            while events := self._client.handle_fds() if self._client.connected else []:
                self._tell_of(events)

    def _greeting(self) -> str:
        client = self._client
        others = ", ".join(map(str, client.peers)) or "nobody"
        path = f" to {client.path}" if client.path else ""
        return f"connected{path} as peer {client.id} with {client.vectors} vectors; others here: {others}"

    def _tell_of(self, events: list[Event]) -> None:
        assert self._screen is not None
        for event in events:
            match event:
                case Rung(vector, count):  # it names us, since who rang can't be known
                    times = f" ({count} times)" if self._verbose and count > 1 else ""
                    self._screen.tell(f"receive notification from peer_id={self._client.id} vector={vector}{times}")
                case PeerJoined(peer) if self._verbose:
                    self._screen.tell(f"peer {peer.id} joined")
                case PeerLeft(peer) if self._verbose:
                    self._screen.tell(f"peer {peer.id} left")
                case StrayLeave(peer_id) if self._verbose:
                    self._screen.tell(f"peer {peer_id} left, of whom the server never told")


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise Wrong(f"{text!r} is no {what}; write a number, or all (dump shows what there is)")
    return int(text)
