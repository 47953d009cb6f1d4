# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What moves a device's data: guest memory, queues and worker threads, which outlive front-ends.

Workers touch rings and guest memory whenever they run, so everything else is done while they are still: inside
``async with engine.still()``. Coming to rest means that all requests in flight are finished. That is a matter of
microseconds, unless a disk is slow; then it is waited for in a helper thread, and the event loop goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from ..ring.memory import MemoryMap
from ..ring.queue import VirtQueue
from ..ring.worker import Worker
from .device import QUEUE_SIZE_MAX, QUEUES_MAX
from .hooks import Hooks

THREADS_MAX = QUEUES_MAX
_AT_ONCE = 0.002
"""Seconds that the event loop itself waits for workers."""
_PAUSE = 0.02
_PATIENCE = 10.0
"""Seconds after which waiting for workers is begun anew."""


class Engine:
    """Memory, queues and workers of *device*; *broke* is called when a queue breaks (see `damage`)."""

    def __init__(
        self, device: Hooks, loop: asyncio.AbstractEventLoop, name: str, poll_us: int, broke: Callable[[], None]
    ) -> None:
        """Start the workers.

        Raises:
            DeviceFaulty: the device wants a number of queues, entries or threads that can't be.
            OSError: there are no descriptors or threads left; nothing is left behind.
        """
        self.device = device
        self._loop = loop
        self._attached: set[int] = set()
        self._lock = asyncio.Lock()
        self.memory = MemoryMap()
        queues, threads = device.count("queues", QUEUES_MAX), device.count("threads", THREADS_MAX)
        size = device.count("queue_size", QUEUE_SIZE_MAX, power_of_two=True)
        self.queues = [VirtQueue(self.memory, index, size) for index in range(queues)]
        self.workers: list[Worker] = []
        try:
            for number in range(min(threads, queues)):
                self.workers.append(Worker(f"{name[:12]}/{number}", poll_us=poll_us))
                loop.add_reader(self.workers[-1].event_fd, self._broke, self.workers[-1], broke)
        except BaseException:
            self._end_workers()
            for queue in self.queues:
                queue.close()
            raise

    def _broke(self, worker: Worker, broke: Callable[[], None]) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(worker.event_fd)
        broke()

    @property
    def damage(self) -> str:
        """Why a queue that is served broke; empty if none did."""
        broken = (self.queues[index] for index in sorted(self._attached) if self.queues[index].broken)
        return next((f"queue {queue.index}: {queue.broken}" for queue in broken), "")

    def handler_failures(self) -> list[BaseException]:
        """Take what handlers of queues raised since the last time."""
        return [error for queue in self.queues if (error := queue.take_failure()) is not None]

    def set_poll(self, poll_us: int) -> None:
        """Let workers look at idle queues for so long before they sleep."""
        for worker in self.workers:
            worker.poll_us = poll_us

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Bring all workers to rest for the body: no request is in flight, nothing touches rings or guest memory."""
        async with self._lock:
            try:
                for worker in self.workers:
                    await self._quiesce(worker)
                yield
            finally:
                for worker in self.workers:
                    worker.resume()

    async def _quiesce(self, worker: Worker) -> None:
        try:
            worker.quiesce(_AT_ONCE)
            return
        except TimeoutError:
            pass
        with ThreadPoolExecutor(1, "quiesce") as helper:
            while not worker.quiesced:  # nothing else is right while a device writes to guest memory
                try:
                    await self._loop.run_in_executor(helper, worker.quiesce, _PATIENCE)
                except TimeoutError:
                    pass
                except RuntimeError:  # there is no thread left; so the event loop itself waits, by the bit
                    await asyncio.sleep(_PAUSE)
                    with contextlib.suppress(TimeoutError):
                        worker.quiesce(_AT_ONCE)

    # Inside of `still`

    def attach(self, index: int) -> None:
        """Have queue *index*, which runs, served."""
        if index not in self._attached:
            with self._or_not_at_all(index):
                self.device.attach(self._worker(index), self.queues[index])
            self._attached.add(index)

    def detach(self, index: int) -> None:
        """Have queue *index* served no more."""
        if index in self._attached:
            self._attached.discard(index)
            with self._or_not_at_all(index):
                self.device.detach(self._worker(index), self.queues[index])

    @contextlib.contextmanager
    def _or_not_at_all(self, index: int) -> Iterator[None]:
        """Whatever the device raises, leave its queue to nobody."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(ValueError):  # it is not attached
                self._worker(index).detach(self.queues[index])
            raise

    # At any time

    def rouse(self, index: int) -> bool:
        """Have queue *index* looked at now; False if it is not served."""
        if index not in self._attached:
            return False
        self._worker(index).rouse(self.queues[index])
        return True

    async def close(self) -> None:
        """End the workers; all queues must be detached."""
        async with self.still():
            pass
        self._end_workers()
        for queue in self.queues:
            queue.close()
        self.memory.close()

    def _worker(self, index: int) -> Worker:
        return self.workers[index % len(self.workers)]

    def _end_workers(self) -> None:
        for worker in self.workers:
            self._loop.remove_reader(worker.event_fd)
            worker.stop()
