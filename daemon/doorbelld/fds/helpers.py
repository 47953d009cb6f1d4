# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Helper threads for system calls that somebody else can make wait.

Theory of operation
-------------------
Opening a file on NFS or FUSE waits for as long as its server likes. Reading /proc/PID/cmdline waits for as long as that
process holds its mmap lock. Such calls run here, in threads of their own, each with a deadline. The event loop goes on
meanwhile. When the deadline has passed, the caller gets `HelperTimeout`, and the thread is given up: nothing can
interrupt it. It does no harm except that it exists, so there is a bound on such threads, for each *owner* (a user, a
file) and in total. An owner with as many stuck threads as it may have is refused at once.

A call that ends after its deadline has its result handed to *late*, in its thread, to be released.

Threads are made when they are needed and end when they have had nothing to do for a while. They are daemon threads:
the program does not wait for them at its end.

Invariants
----------
1. At most `PER_OWNER` calls of one owner run at a time, and at most `THREADS_MAX` in total; others wait their turn.
2. Exactly one of *done* and *late* gets the result of a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PER_OWNER = 2
THREADS_MAX = 32
FILE_TIMEOUT = 10.0
"""Seconds that a file system has to open a file, or to say what it is like."""
IDLE = 5.0
"""Seconds after which a thread with nothing to do ends."""


class HelperTimeout(Exception):
    """A call did not end by its deadline, or earlier calls of the same owner are stuck."""


@dataclass(eq=False, slots=True)
class _Call(Generic[T]):
    """One call. *lock* of the pool guards ``over`` and ``running``."""

    owner: Hashable
    work: Callable[[], T]
    loop: asyncio.AbstractEventLoop | None
    done: Callable[[T | None, BaseException | None], None]
    late: Callable[[T], None]
    unbegun: Callable[[], None] = lambda: None
    timer: asyncio.TimerHandle | None = None
    running: bool = False
    over: bool = False
    """Whether *done* has been called or is on its way."""


class Helpers:
    """A pool of helper threads."""

    def __init__(self, per_owner: int = PER_OWNER, threads_max: int = THREADS_MAX) -> None:
        self._per_owner = per_owner
        self._threads_max = threads_max
        self._condition = threading.Condition()
        self._ready: deque[_Call[Any]] = deque()
        """Calls that wait for a thread."""
        self._held: dict[Hashable, deque[_Call[Any]]] = {}
        """Calls that wait for an earlier one of their owner."""
        self._running: Counter[Hashable] = Counter()
        """Calls of each owner that are ready or in a thread."""
        self._stuck: Counter[Hashable] = Counter()
        self._threads = 0
        self._idle = 0

    @property
    def stuck(self) -> int:
        """How many calls run that are past their deadline."""
        with self._condition:
            return self._stuck.total()

    def submit(
        self,
        owner: Hashable,
        work: Callable[[], T],
        timeout: float,
        done: Callable[[T | None, BaseException | None], None],
        *,
        late: Callable[[T], None] = lambda result: None,
        unbegun: Callable[[], None] = lambda: None,
    ) -> None:
        """Call *work* in a thread, then *done* with its result or its exception on the running event loop.

        *done* gets `HelperTimeout` after *timeout* seconds. *late* gets a result that comes after that, in the thread.
        *unbegun* is called if *work* never will be: it releases what *work* would have released.

        Raises:
            HelperTimeout: *owner* has as many stuck calls as it may, or no thread can be had; *work* is not called.
        """
        loop = asyncio.get_running_loop()
        try:
            with self._condition:
                if self._stuck[owner] >= self._per_owner or self._stuck.total() >= self._threads_max:
                    raise HelperTimeout("earlier calls of that kind have not ended yet")
                call = _Call(owner, work, loop, done, late, unbegun)
                self._enter(call)
                call.timer = loop.call_later(timeout, self._expire, call, timeout)
        except HelperTimeout:
            unbegun()
            raise

    def forget(self, owner: Hashable, work: Callable[[], object]) -> None:
        """Call *work* in a thread, whose result and errors are of no interest to anybody: a close, say.

        It is not called at all if *owner* has as many stuck calls as it may, or if no thread can be had.
        """
        with self._condition, contextlib.suppress(HelperTimeout):
            if self._stuck[owner] < self._per_owner:
                self._enter(_Call(owner, work, None, lambda result, error: None, lambda result: None))

    def _enter(self, call: _Call[Any]) -> None:
        """Queue *call*, and see that there is a thread for it."""
        if self._running[call.owner] >= self._per_owner:
            self._held.setdefault(call.owner, deque()).append(call)
            return
        self._make_ready(call)
        if len(self._ready) <= self._idle or self._threads >= self._threads_max:
            self._condition.notify()
            return
        try:
            self._start()
        except RuntimeError as error:
            if not self._threads:
                self._ready.remove(call)
                self._release(call.owner)
                raise HelperTimeout(f"no thread for it ({error}); raise TasksMax=") from error

    def _make_ready(self, call: _Call[Any]) -> None:
        self._running[call.owner] += 1
        self._ready.append(call)

    def _release(self, owner: Hashable) -> None:
        """Note that one call of *owner* is no longer running; the next one of its held calls is ready then."""
        _take(self._running, owner)
        if held := self._held.get(owner):
            self._make_ready(held.popleft())
            if not held:
                del self._held[owner]

    async def run(
        self, owner: Hashable, work: Callable[[], T], timeout: float, *, late: Callable[[T], None] = lambda result: None
    ) -> T:
        """Call *work* in a thread and give its result; also if that has to be released, after a cancellation.

        Raises:
            HelperTimeout: see `submit`.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(result: T | None, error: BaseException | None) -> None:
            if future.cancelled():
                if error is None:
                    late(result)  # type: ignore[arg-type]  # with no error it is a result
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        self.submit(owner, work, timeout, done, late=late)
        return await future

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name="doorbelld-helper", daemon=True)
        thread.start()
        self._threads += 1

    def _expire(self, call: _Call[Any], timeout: float) -> None:
        with self._condition:
            if call.over:
                return
            call.over = True
            if call.running:
                self._stuck[call.owner] += 1
            elif call in self._ready:
                self._ready.remove(call)
                self._release(call.owner)
            else:
                self._held[call.owner].remove(call)
                if not self._held[call.owner]:
                    del self._held[call.owner]
        if not call.running:
            call.unbegun()
        call.done(None, HelperTimeout(f"no answer within {timeout:g} s"))

    def _serve(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # signals are for the event loop's thread
        while (call := self._next()) is not None:
            result, error = None, None
            try:
                result = call.work()
            except BaseException as raised:  # of whatever kind, it is the caller's to know
                error = raised
            self._finish(call, result, error)
            del call, result, error

    def _next(self) -> _Call[Any] | None:
        """Take the next call; None if nothing came for a while."""
        with self._condition:
            while not self._ready:
                self._idle += 1
                woken = self._condition.wait(IDLE)
                self._idle -= 1
                if not woken and not self._ready:
                    self._threads -= 1
                    return None
            call = self._ready.popleft()
            call.running = True
            return call

    def _finish(self, call: _Call[Any], result: Any, error: BaseException | None) -> None:
        with self._condition:
            self._release(call.owner)
            late = call.over
            if late:
                _take(self._stuck, call.owner)
            else:
                call.over = True
        if not late and call.loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                call.loop.call_soon_threadsafe(self._deliver, call, result, error)
                return
        if error is None:
            call.late(result)

    @staticmethod
    def _deliver(call: _Call[Any], result: Any, error: BaseException | None) -> None:
        if call.timer is not None:
            call.timer.cancel()
        call.done(result, error)


def _take(counts: Counter[Hashable], key: Hashable) -> None:
    """Count down, and keep no zeros."""
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]


shared = Helpers()
"""The pool of this process: threads are its property as a whole."""
