# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Rings of one system call, and the guard that keeps a hostile sharer of an eventfd from stopping us."""

from __future__ import annotations

import os
import re
import select
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doorbelld.fds import bells, eventfd
from doorbelld.fds.bells import Bells
from doorbelld.fds.owned import FdSet
from support.apart import run_python
from support.fdcount import no_leaks

DEADLINE = 20.0
PREAMBLE = """
import fcntl, os, signal, threading, time
from array import array
from doorbelld.fds import bells, eventfd

made = eventfd.make(3)
us = bells.Bells()
us.own_id = 1
us.doorbells = {7: made.array}

def block(fd):
    # what a sharer can do: our write(2) would wait for ever now
    os.eventfd_write(fd, (1 << 64) - 2 - eventfd.pending(fd))
    clear(fd)

def clear(fd):
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)

def until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)
"""


def apart(code: str) -> None:
    """Run *code* in a process of its own; standing still fails the test."""
    done = run_python(PREAMBLE + code, timeout=60)
    assert done.returncode == 0, done.stderr


def timers() -> int:
    """Count the guards' timers in this process."""
    return len(re.findall(rf"^signal: {bells.SIGNAL}/", Path("/proc/self/timers").read_text(), re.M))


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def us() -> Iterator[Bells]:
    """Peer 1, among peers 2 and 3 with two doorbells each, and with one of its own."""
    with no_leaks():
        owned = [eventfd.make(count) for count in (1, 2, 2)]
        made = Bells()
        made.own_id = 1
        made.doorbells = {peer_id: fds.array for peer_id, fds in enumerate(owned, 1)}
        yield made
        for fds in owned:
            fds.close()


def counts(us: Bells) -> dict[int, list[int]]:
    return {peer_id: [eventfd.pending(fd) for fd in fds] for peer_id, fds in us.doorbells.items()}


# Rings


def test_one_doorbell(us: Bells) -> None:
    us.notify(2, 1)
    us.notify(2, 1)
    us.notify(3, 0)
    us.notify(1, 0)  # our own
    assert counts(us) == {1: [1], 2: [0, 2], 3: [1, 0]}


def test_all_of_a_peer(us: Bells) -> None:
    us.notify_all_vectors(3)
    assert counts(us) == {1: [0], 2: [0, 0], 3: [1, 1]}
    us.notify_all_vectors(1)
    assert counts(us)[1] == [1]


def test_all_of_all_others(us: Bells) -> None:
    us.notify_broadcast()
    assert counts(us) == {1: [0], 2: [1, 1], 3: [1, 1]}


def test_what_is_not_there(us: Bells) -> None:
    for peer_id, vector, said in ((9, 0, (9, None)), (2, 2, (2, 2)), (2, -1, (2, -1)), (2, 1 << 70, (2, 1 << 70))):
        with pytest.raises(LookupError) as caught:
            us.notify(peer_id, vector)
        assert caught.value.args == said
    with pytest.raises(LookupError) as caught:
        us.notify_all_vectors(9)
    assert caught.value.args == (9, None)
    us.own_id = None
    with pytest.raises(LookupError) as caught:
        us.notify_broadcast()
    assert caught.value.args == (None, None)
    with pytest.raises(TypeError):
        us.notify(2, "0")  # type: ignore[arg-type]
    assert counts(us) == {1: [0], 2: [0, 0], 3: [0, 0]}


def test_nobody_else_is_there() -> None:
    us = Bells()
    us.own_id = 1
    us.notify_broadcast()


def test_a_doorbell_that_can_not_be_rung_keeps_no_other_from_it(us: Bells) -> None:
    with no_leaks():
        broken = FdSet([os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)])
        us.doorbells = {4: broken.array, **us.doorbells, 2: array("i", [broken[0], *us.doorbells[2]])}
        for ring in (lambda: us.notify(4, 0), lambda: us.notify_all_vectors(2), us.notify_broadcast):
            with pytest.raises(OSError, match="Bad file descriptor"):
                ring()
        broken.close()
    us.doorbells = {peer_id: fds for peer_id, fds in us.doorbells.items() if peer_id != 4}
    us.doorbells[2] = us.doorbells[2][1:]
    assert counts(us) == {1: [0], 2: [2, 2], 3: [1, 1]}


def test_a_full_counter_counts_as_rung(us: Bells) -> None:
    full = (1 << 64) - 2
    os.eventfd_write(us.doorbells[2][0], full)
    us.notify(2, 0)
    us.notify_all_vectors(2)
    assert counts(us)[2] == [full, 1]


# The guard


def test_a_sharer_that_makes_our_write_block_holds_up_no_ring() -> None:
    apart("""
for ring in (lambda: us.notify(7, 1), lambda: us.notify_all_vectors(7), us.notify_broadcast):
    block(made[1])
    ring()
    assert eventfd.pending(made[1]) == (1 << 64) - 2
    assert os.get_blocking(made[1]) is False  # set anew
assert [eventfd.pending(fd) for fd in (made[0], made[2])] == [2, 2]
""")


def test_a_sharer_that_never_stops() -> None:
    apart("""
block(made[0])
sharer = os.fork()
if not sharer:
    while True:
        clear(made[0])
try:
    os.set_blocking(made[0], False)
    until(lambda: os.get_blocking(made[0]))  # it runs
    for _ in range(40):
        us.notify(7, 0)
        us.notify(7, 1)
finally:
    os.kill(sharer, signal.SIGKILL)
    os.waitpid(sharer, 0)
assert eventfd.pending(made[1]) == 40
""")


def test_the_guard_is_armed_by_a_ring_and_disarmed_by_silence(us: Bells) -> None:
    seen: list[bool] = []

    def run() -> None:
        for _ in range(2):
            seen.append(bells.armed())
            us.notify(2, 0)
            seen.append(bells.armed())
            until(lambda: not bells.armed())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(DEADLINE)
    assert seen == [False, True, False, True]


def test_the_guard_works_again_after_it_was_disarmed() -> None:
    apart("""
us.notify(7, 0)
until(lambda: not bells.armed())
block(made[0])
us.notify(7, 0)
""")


def test_each_thread_has_a_guard_of_its_own_and_takes_it_along(us: Bells) -> None:
    """A POSIX timer outlives its thread, unless it is deleted."""
    before = timers()
    met, over = threading.Barrier(9), threading.Event()
    seen: list[bool] = []

    def run() -> None:
        seen.append(bells.armed())
        us.notify(2, 0)
        seen.append(bells.armed())
        met.wait(DEADLINE)
        over.wait(DEADLINE)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    met.wait(DEADLINE)
    assert timers() == before + 8
    over.set()
    for thread in threads:
        thread.join(DEADLINE)
    until(lambda: timers() == before)  # a joined thread of Python's may still be on its way out
    assert sorted(seen) == [False] * 8 + [True] * 8
    assert counts(us)[2] == [8, 0]


def test_threads_are_guarded_each_for_itself() -> None:
    apart("""
for fd in made:
    block(fd)
threads = [threading.Thread(target=us.notify, args=(7, vector)) for vector in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
""")


def test_the_child_of_a_fork_makes_a_guard_of_its_own() -> None:
    apart("""
us.notify(7, 0)
assert bells.armed()
child = os.fork()
if not child:
    good = not bells.armed()
    block(made[0])
    us.notify(7, 0)
    os._exit(0 if good and bells.armed() else 1)
assert os.waitpid(child, 0)[1] == 0
block(made[0])
us.notify(7, 0)
""")


def test_a_thread_that_blocks_the_signal_rings_without_a_guard() -> None:
    apart("""
signal.pthread_sigmask(signal.SIG_BLOCK, {bells.SIGNAL})
for _ in range(100):
    us.notify(7, 0)
    time.sleep(0.001)  # so that the timer fires
assert eventfd.pending(made[0]) == 100
signal.pthread_sigmask(signal.SIG_UNBLOCK, {bells.SIGNAL})
block(made[0])
us.notify(7, 0)
until(lambda: not bells.armed())
""")


def test_other_calls_of_python_go_on_meanwhile(us: Bells) -> None:
    """The signal interrupts them; they are made again, for the time that is left."""
    here, there = os.pipe()
    try:
        us.notify(2, 0)
        started = time.monotonic()
        assert select.select([here], [], [], 0.04) == ([], [], [])
        us.notify(2, 0)
        time.sleep(0.04)
        us.notify(2, 0)
        poll = select.epoll()
        poll.register(here, select.EPOLLIN)
        assert poll.poll(0.04) == []
        poll.close()
        assert time.monotonic() - started >= 0.119
        thread = threading.Thread(target=lambda: (time.sleep(0.05), os.write(there, b"x")))
        thread.start()
        us.notify(2, 0)
        assert os.read(here, 1) == b"x"
        thread.join(DEADLINE)
    finally:
        os.close(here)
        os.close(there)


def test_the_signal_is_none_of_pythons(us: Bells) -> None:
    us.notify(2, 0)
    assert signal.SIGRTMIN + 8 == bells.SIGNAL
    assert signal.getsignal(bells.SIGNAL) in (None, signal.SIG_DFL)
    os.kill(os.getpid(), bells.SIGNAL)  # whoever sends it: it does nothing
    us.notify(2, 0)
    assert counts(us)[2] == [2, 0]
