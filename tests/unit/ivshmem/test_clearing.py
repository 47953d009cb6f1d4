# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory is zero before a newcomer sees it, and what it writes stays."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from unittest import mock

import pytest
from doorbelld.errors import LimitExceeded, MemoryUnavailable
from doorbelld.fds.owned import Fd
from doorbelld.ivshmem import clearing as module
from doorbelld.ivshmem import record as record_module
from doorbelld.ivshmem.clearing import clear
from doorbelld.ivshmem.events import MemoryCleared, PeerAdded, PeerRemoved
from doorbelld.ivshmem.memory import Backing, create
from doorbelld.ivshmem.record import replay
from support.regionbench import Bench

DIRT = b"a stale table"


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(clear="when-empty")
    yield made
    made.loop.run_until_complete(made.loop.shutdown_default_executor())
    made.abandon()


def dirty(bench: Bench) -> None:
    os.pwrite(bench.region.memory.fileno(), DIRT, 4096)


def content(bench: Bench) -> bytes:
    return os.pread(bench.region.memory.fileno(), len(DIRT), 4096)


def wait(bench: Bench) -> None:
    """Wait until nothing is being cleared, and what comes next is done."""

    async def settle() -> None:
        while bench.region.clearing.busy:
            await bench.region.ready()
            await asyncio.sleep(0)

    bench.loop.run_until_complete(settle())


@pytest.mark.parametrize("kind", ["memfd", "file"])
def test_memory_of_each_backing_is_set_to_zero(kind: str, tmp_path: os.PathLike[str]) -> None:
    backing = Backing(kind, f"{tmp_path}/x" if kind == "file" else "")
    with create(backing, 3 << 20, "demo") as memory:
        for offset in (0, (1 << 20) - 3, (3 << 20) - 5):
            os.pwrite(memory.fileno(), b"stale", offset)
        clear(memory.dup(), 3 << 20, backing)
        assert os.pread(memory.fileno(), 4 << 20, 0) == bytes(3 << 20)


def test_newcomer_waits_when_it_is_found_that_the_last_peer_is_gone(bench: Bench) -> None:
    """A VM is restarted so quickly that its new connection is accepted before the end of the former one is read."""
    former = bench.knock()
    dirty(bench)
    former.close()
    newcomer, another = bench.knock(), bench.knock()
    assert not bench.region.peers
    with pytest.raises(LimitExceeded, match="is being cleared"):
        bench.region.clearing.check_idle("demo")
    assert newcomer.take() == 0
    wait(bench)
    assert content(bench) == bytes(len(DIRT))
    bench.region._door._accept()
    bench.pump()
    assert (newcomer.id, another.id) == (0, 1)
    kinds = [type(event) for event in bench.events]
    assert kinds == [PeerAdded, PeerRemoved, MemoryCleared, PeerAdded, PeerAdded]


def test_newcomer_that_waits_is_let_in_by_the_next_process(bench: Bench) -> None:
    former = bench.knock()
    dirty(bench)
    former.close()
    newcomer = bench.knock()
    bench.restart()
    wait(bench)
    assert content(bench) == bytes(len(DIRT))
    bench.pump()
    assert newcomer.id == 0


def test_newcomer_that_waits_is_closed_with_the_region(bench: Bench) -> None:
    bench.knock().close()
    newcomer = bench.knock()
    bench.region.close()
    newcomer.until_eof()


@pytest.mark.parametrize("lines_max", [0, 1, 4096])
def test_that_memory_is_to_be_cleared_outlives_the_process(lines_max: int) -> None:
    with mock.patch.object(record_module, "_LINES_MAX", lines_max):
        bench = Bench(clear="when-empty")
        peer = bench.join("a")
        assert peer is not None
        with mock.patch.object(bench.region.clearing, "start"):
            bench.leave(peer)
        assert replay(bench.lines())["dirty"]
        bench.abandon()


def test_memory_that_was_written_while_it_was_cleared_by_force_is_cleared_again(bench: Bench) -> None:
    peer = bench.join("a")
    assert peer is not None
    bench.region.clearing.start(bench.region.memory, 1 << 16, bench.region.spec.backing)
    bench.leave(peer)
    assert bench.region.clearing.dirty
    wait(bench)
    assert [type(event) for event in bench.events].count(MemoryCleared) == 2
    assert not bench.region.clearing.dirty
    assert not replay(bench.lines())["dirty"]


def test_memory_that_can_not_be_cleared_stays_to_be_cleared(bench: Bench) -> None:
    peer = bench.join("a")
    assert peer is not None
    with mock.patch.object(module, "clear", side_effect=lambda fd, *_: (fd.close(), os.close(-1))):
        bench.leave(peer)
        with pytest.raises(MemoryUnavailable, match=r"can't be cleared: .*Bad file descriptor"):
            bench.loop.run_until_complete(bench.region.clearing.wait())
        wait(bench)
    assert bench.region.clearing.dirty
    bench.knock()
    assert sorted(bench.region.peers) == [0]  # it is told, and the region goes on


def test_no_descriptor_for_the_work_is_a_failure(bench: Bench) -> None:
    bench.region.clearing.dirty = True
    with mock.patch.object(Fd, "dup", side_effect=OSError(24, "Too many open files")):
        bench.region.clear_if_left()
    (event,) = bench.events
    assert isinstance(event, MemoryCleared)
    assert "Too many open files" in event.failure
    assert bench.region.clearing.dirty


def test_region_that_is_closed_meanwhile_is_told_nothing(bench: Bench) -> None:
    peer = bench.join("a")
    assert peer is not None
    bench.leave(peer)
    bench.region.close()
    bench.loop.run_until_complete(bench.loop.shutdown_default_executor())
    assert MemoryCleared not in map(type, bench.events)


def test_other_threads_run_while_memory_is_cleared() -> None:
    """A call that gave back all of it at once would hold the interpreter's lock for 0.4 s a GiB."""
    size, turns = 256 << 20, 0
    backing = Backing("memfd")
    with create(backing, size, "demo") as memory:
        for offset in range(0, size, 1 << 20):
            os.pwrite(memory.fileno(), b"x" * (1 << 20), offset)
        thread = threading.Thread(target=clear, args=(memory.dup(), size, backing))
        thread.start()
        while thread.is_alive():
            turns += 1
            time.sleep(0)
    assert turns > 20
