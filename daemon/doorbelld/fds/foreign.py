# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What may be done with a descriptor that somebody else made.

Theory of operation
-------------------
close(2) can wait. The last close of a TCP socket with SO_LINGER waits until its buffer is empty or the time is over,
which its maker chose. The last close of any file takes it out of all epoll instances that watch it: a second for two
million of them, which whoever has an eventfd, or gets one of ours, can bring about. Each close of a file on FUSE waits
for the server of that file system, past SIGKILL. The last close of a UNIX socket closes what is queued in it. The last
unmapping of memory frees it: 0.15 s a GiB.

So nothing that was received is closed by the thread that received it, nor an eventfd that was sent to somebody. All
goes to the `CLOSER`: a queue, and `THREADS` threads which are started when the
first thing comes. SO_LINGER is taken off each socket first.

A thread that is stuck in one close for `PATIENCE` seconds is given up, and another one is started in its place, up to
`STUCK_MAX` of them. While one of a user's descriptors is stuck, that user is refused (`Closer.refusal`). One user has
at most `PER_USER` threads; what else there is to close of theirs waits for these. Beyond `STUCK_MAX`, what comes waits
in the queue. Descriptors are lost then, but no time.

A connection of a stranger is a special case: what its receive queue holds is closed with it. `hang_up` shuts it down,
after which nothing more can be put in the queue, and then closes it at once if the queue is empty.

Invariants
----------
1. Nothing here waits for a close; `Closer.settle` does, for tests.
2. A number that was given to the closer is not used by anybody else until it is closed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from .owned import Fd, FdSet

THREADS = 2
"""Threads that close, besides those that are stuck."""
THREAD_NAME = "doorbelld-closer"
STUCK_MAX = 16
"""How many stuck threads are given up and replaced."""
PER_USER = 4
"""How many threads may be at work for one user."""
PATIENCE = 3.0
"""Seconds after which a thread is stuck."""
REPORT_PERIOD = 60.0
"""Seconds between two reports about one user."""
T = TypeVar("T")
_LINGER_OFF = struct.pack("ii", 0, 0)
_EVENTFD = "anon_inode:[eventfd]"
_F_GET_SEALS = 1034  # <linux/fcntl.h>; the fcntl module names it from Python 3.8 on, where the C library does
_SIGNALS = signal.valid_signals() - {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}


@dataclass(slots=True, eq=False)
class _Task:
    """One thing to do: *work*, which may wait, on account of the user *uid* (None if that is not known)."""

    work: Callable[[], object]
    uid: int | None
    what: str
    begun: float = 0.0
    stuck: bool = False


@dataclass(frozen=True, slots=True)
class Stuck:
    """What is told of a thread that is stuck."""

    what: str
    uid: int | None
    count: int
    """How many threads are stuck now."""

    def __str__(self) -> str:
        whose = f"uid {self.uid}" if self.uid is not None else "a D-Bus caller or a server"
        return (
            f"{self.what} of {whose} has waited for {PATIENCE:g} s, {self.count} in all do; find what it waits for "
            "(a FUSE server that hangs, a TCP peer that reads nothing) and end it, or restart the daemon"
        )


@dataclass
class Closer:
    """Does in threads of its own what may wait."""

    report: Callable[[Stuck], object] = lambda stuck: None
    """Called in a thread of the closer when one is stuck, but at most once in `REPORT_PERIOD` for each user."""
    _lock: threading.Condition = field(default_factory=threading.Condition)
    _tasks: deque[_Task] = field(default_factory=deque)
    _busy: set[_Task] = field(default_factory=set)
    _parked: dict[int | None, deque[_Task]] = field(default_factory=dict)
    """What waits for other work of the same user."""
    _threads: int = 0  # that are not stuck
    _idle: int = 0
    _minder: bool = False
    _told: dict[int | None, float] = field(default_factory=dict)

    def close(self, fds: Iterable[int], uid: int | None = None) -> None:
        """Take over *fds*, which user *uid* sent, and close them."""
        for fd in fds:
            self.call(lambda fd=fd: _close(fd), uid, "a close of a descriptor")  # type: ignore[misc]

    def call(self, work: Callable[[], object], uid: int | None = None, what: str = "a call") -> None:
        """Have *work* done, in any thread; it must raise nothing but OSError, which is dropped."""
        with self._lock:
            self._tasks.append(_Task(work, uid, what))
            if self._idle < len(self._tasks) and self._threads < THREADS:
                self._threads += self._start(self._run)
            if not self._minder:
                self._minder = self._start(self._mind)
            self._lock.notify_all()

    @property
    def stuck(self) -> int:
        """How many descriptors can't be closed: those at which a thread is stuck, and those behind them."""
        with self._lock:
            return sum(task.stuck for task in self._busy) + sum(map(len, self._parked.values()))

    def refusal(self, uid: int) -> str:
        """Say why user *uid* is refused now; empty if it is not."""
        if not self._busy:  # nearly always
            return ""
        with self._lock:
            count = sum(task.stuck and task.uid == uid for task in self._busy) + len(self._parked.get(uid, ()))
        if not count:
            return ""
        return (
            f"{count} descriptors that uid {uid} sent can't be closed: each close waits (a file on a FUSE server that "
            "hangs, a TCP socket that lingers); end what they wait for"
        )

    def settle(self, seconds: float = PATIENCE) -> bool:
        """Wait until all is done that is not stuck; tell whether it is."""
        with self._lock:
            return self._lock.wait_for(
                lambda: not self._tasks and all(task.stuck for task in self._busy), timeout=seconds
            )

    def _start(self, target: Callable[[], None]) -> bool:
        """Start a thread; where there is none to be had, the next `call` tries again, and its thread does the work."""
        try:
            threading.Thread(target=target, name=THREAD_NAME, daemon=True).start()
        except RuntimeError:
            return False
        return True

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        while True:
            with self._lock:
                self._idle += 1
                while (task := self._take()) is None:
                    self._lock.wait()
                self._idle -= 1
                task.begun = time.monotonic()
                self._busy.add(task)
            with contextlib.suppress(OSError):
                task.work()
            with self._lock:
                self._busy.discard(task)
                if parked := self._parked.get(task.uid):
                    self._tasks.append(parked.popleft())
                    if not parked:
                        del self._parked[task.uid]
                self._lock.notify_all()
                if task.stuck:  # another thread does its work now
                    return
            del task

    def _take(self) -> _Task | None:
        """Take the next task of a user who has not as many threads as one may have."""
        while self._tasks:
            task = self._tasks.popleft()
            if sum(other.uid == task.uid for other in self._busy) < PER_USER:
                return task
            self._parked.setdefault(task.uid, deque()).append(task)
        return None

    def _mind(self) -> None:
        """Look for threads that are stuck, as long as one is busy."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        while True:
            told: list[Stuck] = []
            with self._lock:
                while not self._tasks and all(task.stuck for task in self._busy):
                    self._lock.wait()
                self._lock.wait(PATIENCE / 4)
                now = time.monotonic()
                for task in self._busy:
                    if not task.stuck and now - task.begun >= PATIENCE and self._give_up(task):
                        told += self._note(task, now)
            for stuck in told:
                with contextlib.suppress(Exception):
                    self.report(stuck)

    def _give_up(self, task: _Task) -> bool:
        if sum(other.stuck for other in self._busy) >= STUCK_MAX:
            return False
        task.stuck = True
        self._threads += self._start(self._run) - 1
        self._lock.notify_all()
        return True

    def _note(self, task: _Task, now: float) -> list[Stuck]:
        if now - self._told.get(task.uid, -REPORT_PERIOD) < REPORT_PERIOD:
            return []
        self._told[task.uid] = now
        return [Stuck(task.what, task.uid, sum(other.stuck for other in self._busy))]


CLOSER = Closer()
"""The closer of this process."""


class ForeignFd(Fd):
    """A descriptor that user *uid* sent (None if that is not known); the closer closes it."""

    __slots__ = ("uid",)

    def __init__(self, fd: int, uid: int | None = None) -> None:
        super().__init__(fd)
        self.uid = uid

    def dup(self) -> ForeignFd:
        """Duplicate it, close-on-exec."""
        return ForeignFd(os.dup(self.fileno()), self.uid)

    def close(self) -> None:
        """Have it closed; a second time does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close(fd, self.uid)

    __del__ = close


async def aside(work: Callable[[], T], uid: int | None = None, *, briefly: bool = False) -> T:
    """Do *work* in the closer, on account of user *uid*, and wait for it, however long it takes.

    What takes long only if its user makes it (*briefly*) has a thread of its own, if one can be had: it waits for
    nobody else's, and is not told of. Who is cancelled meanwhile waits on: *work* uses what is theirs.

    Raises:
        Exception: what *work* raises.
    """
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    if briefly:
        begin(run, uid, "an access to guest memory")
    else:
        CLOSER.call(run, uid, "an access to guest memory")
    waiting = asyncio.wrap_future(done)
    while True:
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if waiting.done():
                raise


_ALONE_MAX = 8
"""How many threads of their own what is begun for one user may have."""
_alone: Counter[int | None] = Counter()
_alone_lock = threading.Lock()


def begin(work: Callable[[], object], uid: int | None, what: str) -> None:
    """Do *work* for user *uid* in a thread of its own, or, if there can be none, in the closer; it must raise nothing.

    It waits for nobody else's work then, as long as that user has few of these.
    """

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            work()
        finally:
            with _alone_lock:
                _alone[uid] -= 1
                if not _alone[uid]:
                    del _alone[uid]

    with _alone_lock:
        alone = _alone[uid] < _ALONE_MAX
        if alone:
            _alone[uid] += 1
            try:
                threading.Thread(target=run, name=THREAD_NAME, daemon=True).start()
            except RuntimeError:
                _alone[uid] -= 1
                alone = False
    if not alone:
        CLOSER.call(work, uid, what)


def close(fd: int, uid: int | None = None) -> None:
    """Have *fd*, which user *uid* sent, closed in the closer."""
    CLOSER.close((fd,), uid)


def close_all(fds: FdSet, uid: int | None = None) -> None:
    """Have eventfds closed that user *uid* has, too; *fds* is empty then."""
    if numbers := fds.steal():
        CLOSER.call(FdSet(numbers).close, uid, "a close of doorbells")


def kind(fd: int) -> str:
    """Tell what *fd* is as /proc has it, without asking a file system: ``anon_inode:[eventfd]``, ``pipe:[123]``."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # no memory, or its path is too long
        return ""


def is_eventfd(fd: int) -> bool:
    """Tell whether *fd* is an eventfd, without asking a file system."""
    return kind(fd) == _EVENTFD


def is_shared_memory(fd: int) -> bool:
    """Tell whether *fd* is a file of shmem (memfd, /dev/shm) or of hugetlbfs, without asking a file system.

    Only those can be sealed.
    """
    try:
        fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        return False
    return True


def hang_up(sock: socket.socket, uid: int | None = None) -> None:
    """Close a connection of user *uid*, for everybody who has a copy of it; what it has queued is closed elsewhere."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # from now on nothing can be queued
    let_go(sock, uid)


def let_go(sock: socket.socket, uid: int | None = None) -> None:
    """Close our descriptor of a connection of user *uid*; what it has queued is closed elsewhere."""
    if sock.fileno() < 0:
        return
    if _is_empty(sock):
        sock.close()
    else:
        CLOSER.close((sock.detach(),), uid)


def stop_listening(sock: socket.socket) -> None:
    """Close a listening UNIX socket, with those who wait to be accepted; what they have queued is closed elsewhere."""
    if sock.fileno() < 0:
        return
    try:
        sock.shutdown(socket.SHUT_RDWR)  # from now on nobody can connect
        sock.setblocking(False)
        let_go(sock.accept()[0])
    except OSError as error:
        if error.errno == errno.EINVAL:  # nobody waits
            sock.close()
            return
    CLOSER.close((sock.detach(),))


def _is_empty(sock: socket.socket) -> bool:
    """Tell whether nothing is in the receive queue of *sock*, which nobody adds to."""
    held = array("i", [0])
    urgent = select.poll()
    urgent.register(sock, select.POLLPRI)  # an urgent byte is not counted
    try:
        fcntl.ioctl(sock.fileno(), termios.FIONREAD, held)
        return not held[0] and not any(found & select.POLLPRI for _, found in urgent.poll(0))
    except OSError:
        return False


def _close(fd: int) -> None:
    """Close *fd* in a thread that may wait."""
    with contextlib.suppress(OSError):
        _set_linger_off(fd)
    os.close(fd)


def _set_linger_off(fd: int) -> None:
    if not kind(fd).startswith("socket:["):
        return
    sock = socket.socket(fileno=fd)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
    finally:
        sock.detach()
