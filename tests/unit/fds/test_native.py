# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import signal
import socket
import struct
import sys
from array import array
from collections.abc import Iterator

import pytest
from doorbelld.fds import eventfd, native
from doorbelld.fds.ledger import Ledger
from doorbelld.fds.owned import FdSet
from hypothesis import given, settings
from hypothesis import strategies as st
from support.crash import doomed, spin, watch
from support.fdcount import no_leaks
from support.rawclient import identity

FULL = (1 << 64) - 2
COUNT = struct.Struct("Q")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with no_leaks():
        ours, theirs = socket.socketpair()
        yield ours, theirs
        ours.close()
        theirs.close()


@pytest.fixture
def bells() -> Iterator[FdSet]:
    with no_leaks():
        made = eventfd.make(3)
        yield made
        made.close()


def set_blocking(fd: int) -> None:
    """What a hostile sharer of the eventfd does."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)


def receive(sock: socket.socket) -> tuple[int, int | None]:
    data, fds, _, _ = socket.recv_fds(sock, 8, 2)
    found = None
    for fd in fds:
        found = identity(fd)
        os.close(fd)
    return int.from_bytes(data, "little", signed=True), found


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-1, 2)), max_size=250))
def test_messages_arrive_in_order_with_their_descriptors(script: list[tuple[int, int]]) -> None:
    with no_leaks():
        bells = eventfd.make(3)
        names = [identity(fd) for fd in bells]
        ours, theirs = socket.socketpair()
        with ours, theirs:
            values = array("q", [value for value, _ in script])
            fds = array("i", [-1 if bell < 0 else bells[bell] for _, bell in script])
            assert native.send_messages(ours.fileno(), values, fds) == (len(script), 0)
            want = [(value, None if bell < 0 else names[bell]) for value, bell in script]
            assert [receive(theirs) for _ in script] == want
        bells.close()


def test_a_full_socket_says_how_far_it_got(pair: tuple[socket.socket, socket.socket], bells: FdSet) -> None:
    ours, theirs = pair
    ours.setblocking(True)  # it must not matter
    values, fds = array("q", range(2000)), array("i", [bells[0]] * 2000)
    sent, error = native.send_messages(ours.fileno(), values, fds)
    assert error == errno.EAGAIN
    assert 0 < sent < 2000
    assert [receive(theirs)[0] for _ in range(sent)] == list(range(sent))
    again, _ = native.send_messages(ours.fileno(), values[sent:], fds[sent:])
    assert again > 0
    assert receive(theirs)[0] == sent


def test_more_than_one_batch(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
    values = array("q", range(600))
    sent, error = native.send_messages(ours.fileno(), values, array("i", [-1] * 600))
    theirs.setblocking(False)
    got = [receive(theirs)[0] for _ in range(sent)]
    assert got == list(range(sent))
    assert (sent, error) == (600, 0) or error == errno.EAGAIN
    assert sent >= 256


def test_send_errors_are_numbers(pair: tuple[socket.socket, socket.socket], bells: FdSet) -> None:
    ours, theirs = pair
    one, none = array("q", [1]), array("i", [-1])
    assert native.send_messages(ours.fileno(), array("q"), array("i")) == (0, 0)
    bad = array("i", [bells[0], 1 << 20])
    assert native.send_messages(ours.fileno(), array("q", [1, 2]), bad) == (1, errno.EBADF)
    theirs.shutdown(socket.SHUT_RDWR)
    assert native.send_messages(ours.fileno(), one, none) == (0, errno.EPIPE)
    assert native.send_messages(1 << 20, one, none) == (0, errno.EBADF)


@pytest.mark.parametrize(
    ("values", "fds"),
    [(array("i", [1]), array("i", [1])), (array("q", [1]), array("q", [1])), (array("q", [1]), array("i"))],
)
def test_send_wrong_arrays(values: array, fds: array) -> None:
    with pytest.raises(ValueError, match="same length"):
        native.send_messages(0, values, fds)


def test_ring_and_drain(bells: FdSet) -> None:
    assert native.ring(bells.array) == 0
    assert native.ring_one(bells[1]) == 0
    assert [native.drain(fd) for fd in bells] == [(1, 0), (2, 0), (1, 0)]
    assert native.drain(bells[0]) == (0, 0)


def test_a_bad_one_does_not_keep_the_others_from_being_rung(bells: FdSet) -> None:
    assert native.ring(array("i", [1 << 20, *bells])) == errno.EBADF
    assert [eventfd.pending(fd) for fd in bells] == [1, 1, 1]
    assert native.ring_one(1 << 20) == errno.EBADF
    assert native.drain(1 << 20) == (0, errno.EBADF)


def test_full_counts_as_rung(bells: FdSet) -> None:
    os.eventfd_write(bells[0], FULL)
    assert native.ring(bells.array) == 0
    assert native.ring_one(bells[0]) == 0
    assert [eventfd.pending(fd) for fd in bells] == [FULL, 1, 1]


def test_a_hostile_sharer_does_not_make_us_wait(bells: FdSet) -> None:
    for fd in bells:
        set_blocking(fd)
    assert native.drain(bells[0]) == (0, 0)
    os.eventfd_write(bells[0], FULL)
    assert native.ring_one(bells[0]) == 0
    assert native.ring(bells.array) == 0
    assert native.drain(bells[0]) == (FULL, 0)


def _toggle(fd: int, rounds: int, rings: mmap.mmap) -> None:
    """Be the hostile process: make room for an instant, fill it, and stay so until the other rang twice more."""

    def tick(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, tick)
    for _ in range(rounds):
        with contextlib.suppress(OSError):
            set_blocking(fd)
            signal.setitimer(signal.ITIMER_REAL, 0.002)  # a ring came in between: it is not us who shall block
            native.drain(fd)
            os.eventfd_write(fd, FULL)
            signal.setitimer(signal.ITIMER_REAL, 0)
            (before,) = COUNT.unpack_from(rings)
            while COUNT.unpack_from(rings)[0] < before + 2:
                pass
    os._exit(0)


def test_a_sharer_that_wins_the_race_is_overcome_by_the_guard(bells: FdSet) -> None:
    """We look, see room, and then block: nothing but the guard gets us out."""
    fd, count = bells[0], 0
    with mmap.mmap(-1, COUNT.size) as rings:
        child = os.fork()
        if not child:
            _toggle(fd, 500, rings)

        def hung(*_: object) -> None:
            raise AssertionError("a ring hung")

        before = signal.signal(signal.SIGALRM, hung)
        signal.setitimer(signal.ITIMER_REAL, 30)
        try:
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                for _ in range(100):
                    assert native.ring_one(fd) == 0
                    count += 1
                    COUNT.pack_into(rings, 0, count)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if sys.exc_info()[0]:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def test_ring_after_fork_has_a_guard_of_its_own(bells: FdSet) -> None:
    """A timer does not survive a fork; the child must make its own."""
    assert native.ring_one(bells[0]) == 0
    child = os.fork()
    if not child:
        os._exit(native.ring_one(bells[0]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert eventfd.pending(bells[0]) == 2


# Slots: what a killed process had done


@pytest.fixture
def slot() -> Iterator[memoryview]:
    with mmap.mmap(-1, native.SLOT_SIZE) as memory, memoryview(memory) as made:
        yield made


@settings(deadline=None, max_examples=60)
@given(count=st.integers(0, 700), junk=st.binary(min_size=16, max_size=16), bad=st.integers(0, 800))
def test_the_slot_says_what_went_out(count: int, junk: bytes, bad: int) -> None:
    """Through any number of calls to the kernel, over what was in the slot before, and with a bad descriptor."""
    with no_leaks(), mmap.mmap(-1, native.SLOT_SIZE) as memory:
        memory[:] = (junk * (native.SLOT_SIZE // 16 + 1))[: native.SLOT_SIZE]
        with memoryview(memory) as slot:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
                fds = array("i", [-1] * count)
                if bad < count:
                    fds[bad] = 1 << 20
                memory[:8] = bytes(8)  # as the ledger does before each batch
                sent, error = native.send_messages(ours.fileno(), array("q", range(count)), fds, slot)
                assert (sent, error) in ((min(count, bad), errno.EBADF if bad < count else 0), (sent, errno.EAGAIN))
                assert native.count_sent(slot) == sent
                assert len(theirs.recv(1 << 16, socket.MSG_DONTWAIT) if sent else b"") == 8 * sent


def test_the_slot_leaves_the_ledgers_words_alone(slot: memoryview, pair: tuple[socket.socket, socket.socket]) -> None:
    slot[8:24] = b"k" * 8 + b"m" * 8
    assert native.send_messages(pair[0].fileno(), array("q", [1]), array("i", [-1]), slot) == (1, 0)
    assert bytes(slot[8:24]) == b"k" * 8 + b"m" * 8


def test_a_slot_that_says_nonsense_is_read_within_its_bounds(slot: memoryview) -> None:
    slot[:] = b"\xff" * native.SLOT_SIZE
    assert native.count_sent(slot) == (1 << 32) - 1 + 256


@pytest.mark.parametrize("size", [0, 8, native.SLOT_SIZE - 1, native.SLOT_SIZE + 1])
def test_slots_of_another_size_are_refused(size: int, bells: FdSet) -> None:
    with memoryview(bytearray(size)) as wrong:
        with pytest.raises(ValueError, match="a send slot has"):
            native.send_messages(0, array("q"), array("i"), wrong)
        with pytest.raises(ValueError, match="a send slot has"):
            native.count_sent(wrong)
        if size != COUNT.size:
            with pytest.raises(ValueError, match="a counter has 8 bytes"):
                native.drain(bells[0], wrong)


def test_a_counter_is_taken_into_its_slot(bells: FdSet) -> None:
    slot = bytearray(8)
    os.eventfd_write(bells[0], FULL)
    assert native.drain(bells[0], memoryview(slot)) == (FULL, 0)
    assert COUNT.unpack(slot) == (FULL,)
    assert native.drain(bells[0], memoryview(slot)) == (0, 0)
    assert COUNT.unpack(slot) == (FULL,)  # nothing was taken, so nothing was put there: the ledger empties it before
    assert native.drain(1 << 20, memoryview(slot)) == (0, errno.EBADF)


def _send_for_ever(book: Ledger, sock: socket.socket, bell: int, seed: int) -> None:
    dice = random.Random(seed)
    while True:
        count = dice.choice((1, 3, 30, 300, 700))
        fds = array("i", [bell if dice.random() < 0.2 else -1 for _ in range(count)])
        sent, _ = native.send_messages(sock.fileno(), array("q", range(count)), fds, book.begin_sending(5))
        if sent:
            book.append(b"%d\n" % sent)


def _receive(sock: socket.socket, count: int) -> int:
    """Receive up to *count* messages, less what is not there; descriptors are let go of on the way."""
    try:
        return len(sock.recv(8 * count, socket.MSG_DONTWAIT)) // 8
    except BlockingIOError:
        return 0


def test_a_killed_sender_leaves_no_doubt(bells: FdSet) -> None:
    dice = random.Random(1)
    unfinished = 0
    for turn in range(200):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            book = Ledger.create("test")
            target, got = dice.randrange(3000), 0
            with doomed(lambda book=book, sock=ours, turn=turn: _send_for_ever(book, sock, bells[0], turn)):
                while got <= target:
                    got += _receive(theirs, 100)
                spin(dice.randrange(3000))
            while more := _receive(theirs, 1000):
                got += more
            found = Ledger.adopt(book.fd.dup())
            book.close()
            said, sent = sum(map(int, found.lines())), found.unfinished()[0]
            assert sent is None or sent[0] == 5
            assert got == said + (sent[1] if sent else 0), f"turn {turn}: {said} in lines, {sent} in the slot"
            unfinished += sent is not None
            found.close()
    assert unfinished  # else it was not about that; how often depends on the machine's load


def _drain_for_ever(book: Ledger, fd: int) -> None:
    while True:
        count, _ = native.drain(fd, book.begin_draining(6))
        if count:
            book.append(b"%d\n" % count)


def test_a_killed_reader_of_counters_leaves_no_doubt(bells: FdSet) -> None:
    dice = random.Random(2)
    unfinished = 0
    for turn in range(200):
        book, fd, rings = Ledger.create("test"), bells[turn % 3], 0
        with doomed(lambda book=book, fd=fd: _drain_for_ever(book, fd)):
            watch(lambda book=book: book._words[10] == book._words[3] and book._words[9] == 6)  # it is at it
            for _ in range(dice.randrange(1, 200)):
                step = dice.randrange(1, 5)
                os.eventfd_write(fd, step)
                rings += step
        found = Ledger.adopt(book.fd.dup())
        book.close()
        said, taken = sum(map(int, found.lines())), found.unfinished()[1]
        assert taken is None or taken[0] == 6
        left, _ = native.drain(fd)
        assert rings == said + (taken[1] if taken else 0) + left, f"turn {turn}: {said} in lines, {taken}, {left} left"
        unfinished += taken is not None
        found.close()
    assert unfinished
