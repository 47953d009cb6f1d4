# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What strangers sent is closed elsewhere, and who makes a close wait is refused meanwhile."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import tempfile
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doorbelld.fds import foreign
from doorbelld.fds.foreign import CLOSER, Closer, ForeignFd, Stuck
from doorbelld.fds.owned import FdSet
from support.dbusclient import until
from support.fdcount import no_leaks

MALLORY, ALICE = 1000, 1001


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class Gate:
    """Work that waits until the test lets it go."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._passed: list[int] = []

    def __call__(self) -> None:
        self._open.wait()
        self._passed.append(1)

    @property
    def passed(self) -> int:
        return len(self._passed)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open()


@pytest.fixture
def told() -> list[Stuck]:
    return []


@pytest.fixture
def closer(monkeypatch: pytest.MonkeyPatch, told: list[Stuck]) -> Closer:
    monkeypatch.setattr(foreign, "PATIENCE", 0.05)
    return Closer(told.append)


def test_a_descriptor_is_closed_in_another_thread() -> None:
    with no_leaks():
        read, write = os.pipe()
        threads: list[int] = []
        CLOSER.call(lambda: threads.append(threading.get_ident()))
        foreign.close(read)
        foreign.close(write, MALLORY)
        assert CLOSER.settle()
        assert not is_open(read) and not is_open(write)
        assert threads != [threading.get_ident()]


def test_an_eventfd_is_closed_elsewhere() -> None:
    fds = [os.eventfd(0) for _ in range(3)]
    foreign.close(fds[0])
    foreign.close_all(doorbells := FdSet(fds[1:]))
    assert not doorbells
    foreign.CLOSER.settle()
    assert not any(map(is_open, fds))


def test_an_owned_one_is_closed_once_and_keeps_its_user() -> None:
    with no_leaks():
        read, write = os.pipe()
        os.close(write)
        one = ForeignFd(read, MALLORY)
        again = one.dup()
        assert again.uid == MALLORY
        for _ in range(2):
            one.close()
        del again
        assert CLOSER.settle() and not is_open(read)


def test_who_makes_a_close_wait_is_told_of_and_refused_until_it_ends(
    closer: Closer, gate: Gate, told: list[Stuck]
) -> None:
    closer.call(gate, MALLORY, "a close of a descriptor")
    until(lambda: told)
    assert told == [Stuck("a close of a descriptor", MALLORY, 1)]
    assert "of uid 1000 has waited" in str(told[0]) and "restart the daemon" in str(told[0])
    assert closer.stuck == 1
    assert "1 descriptors that uid 1000 sent can't be closed" in closer.refusal(MALLORY)
    assert closer.refusal(ALICE) == ""
    gate.open()
    until(lambda: closer.refusal(MALLORY) == "")
    assert closer.stuck == 0


def test_one_user_is_told_of_once_a_minute(closer: Closer, gate: Gate, told: list[Stuck]) -> None:
    for uid in (MALLORY, MALLORY, None):
        closer.call(gate, uid, "a call")
        until(lambda: closer.settle(0))
    until(lambda: len(told) == 2)
    assert [(stuck.uid, stuck.count) for stuck in told] == [(MALLORY, 1), (None, 3)]
    assert "of a D-Bus caller or a server" in str(told[1])


def test_one_user_has_few_threads_and_others_are_served(closer: Closer, gate: Gate) -> None:
    for _ in range(100):
        closer.call(gate, MALLORY)
    until(lambda: closer.stuck == 100)
    assert f"100 descriptors that uid {MALLORY} sent" in closer.refusal(MALLORY)
    assert len(closer._busy) == foreign.PER_USER
    done: list[int] = []
    closer.call(lambda: done.append(1), ALICE)
    until(lambda: done)
    gate.open()
    until(lambda: gate.passed == 100)
    until(lambda: closer.stuck == 0)
    assert not closer._parked


def test_beyond_the_bound_what_comes_waits_and_is_done_later(closer: Closer, gate: Gate) -> None:
    for uid in range(foreign.STUCK_MAX + foreign.THREADS):
        closer.call(gate, uid)
    until(lambda: closer.stuck == foreign.STUCK_MAX)
    done: list[int] = []
    closer.call(lambda: done.append(1), ALICE)
    assert not closer.settle(0.2) and not done
    gate.open()
    until(lambda: done and gate.passed == foreign.STUCK_MAX + foreign.THREADS)


def test_work_that_found_no_thread_is_done_with_the_next(closer: Closer, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        for number in range(3):
            closer.call(lambda number=number: done.append(number))  # type: ignore[misc]
    closer.call(lambda: done.append(3))
    until(lambda: sorted(done) == [0, 1, 2, 3])


def test_an_error_of_a_close_ends_no_thread(closer: Closer) -> None:
    def fails() -> None:
        raise OSError

    done: list[int] = []
    closer.call(fails)
    closer.call(lambda: done.append(1))
    until(lambda: done)


def test_a_tcp_socket_that_lingers_is_closed_without_waiting() -> None:
    with no_leaks(), socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                ours.send(bytes(1 << 16))
        foreign.close(ours.detach(), MALLORY)
        assert CLOSER.settle(), "it is closed at once"
        theirs.close()


@pytest.mark.parametrize(
    ("make", "shared"),
    [
        (lambda _: os.memfd_create("a"), True),
        (lambda _: os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR), True),
        (lambda _: os.eventfd(0), False),
        (lambda _: os.open("/dev/null", os.O_RDWR), False),
        (lambda _: os.open("/proc/self/mem", os.O_RDWR), False),
        (lambda path: os.open(path / "file", os.O_CREAT | os.O_RDWR), None),
        (lambda path: os.open(path, os.O_RDONLY | os.O_DIRECTORY), None),
    ],
    ids=["memfd", "/dev/shm", "eventfd", "device", "proc", "file", "directory"],
)
def test_shared_memory_is_known_without_asking_its_file_system(
    tmp_path: Path, make: Callable[[Path], int], shared: bool | None
) -> None:
    fd = make(tmp_path)
    try:
        if shared is None:  # /tmp may be a tmpfs
            shared = os.stat(tmp_path).st_dev in _devices_of_tmpfs()
        assert foreign.is_shared_memory(fd) == shared
    finally:
        os.close(fd)


def _devices_of_tmpfs() -> set[int]:
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {os.makedev(*map(int, row[2].split(":"))) for row in rows if row[row.index("-") + 1] == "tmpfs"}


def send_file(sock: socket.socket) -> None:
    """Queue a descriptor that is no eventfd."""
    with tempfile.TemporaryFile() as file:
        socket.send_fds(sock, [b"x"], [file.fileno()])


@pytest.mark.parametrize("queued", ["nothing", "a byte", "a file", "an urgent byte"])
def test_who_is_hung_up_on_sees_the_end_and_what_they_queued_is_closed_elsewhere(
    queued: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[int] = []
    plain = CLOSER.close
    monkeypatch.setattr(CLOSER, "close", lambda fds, uid=None: (handed.extend(fds), plain(fds, uid)))
    with no_leaks():
        ours, theirs = socket.socketpair()
        match queued:
            case "a byte":
                theirs.send(b"x")
            case "a file":
                send_file(theirs)
            case "an urgent byte":
                try:
                    theirs.send(b"x", socket.MSG_OOB)
                except OSError:
                    theirs.send(b"x")  # a kernel without
        foreign.hang_up(ours, MALLORY)
        assert bool(handed) == (queued != "nothing")
        with theirs:
            assert theirs.recv(1) == b"" if queued == "nothing" else theirs.fileno() >= 0
        foreign.let_go(ours)  # again does nothing
        assert CLOSER.settle()


def test_who_waits_to_be_accepted_is_closed_elsewhere(short_path: Path) -> None:
    with no_leaks():
        for waiting in (0, 1, 3):
            listener = socket.socket(socket.AF_UNIX)
            path = str(short_path / f"s{waiting}")
            listener.bind(path)
            listener.listen()
            clients = [socket.socket(socket.AF_UNIX) for _ in range(waiting)]
            for client in clients:
                client.connect(path)
                send_file(client)
            foreign.stop_listening(listener)
            foreign.stop_listening(listener)  # again does nothing
            for client in clients:
                with client, pytest.raises(ConnectionResetError):
                    client.recv(1)
            with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
                late.connect(path)
            assert CLOSER.settle()


def test_what_is_begun_has_a_thread_of_its_own_as_long_as_its_user_has_few(
    closer: Closer, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "CLOSER", closer)
    for _ in range(foreign._ALONE_MAX):
        foreign.begin(gate, MALLORY, "a call")
    assert not closer._busy and not closer._tasks
    foreign.begin(gate, MALLORY, "a call")
    until(lambda: closer.stuck == 1)
    done: list[int] = []
    foreign.begin(lambda: done.append(1), ALICE, "a call")
    until(lambda: done)
    gate.open()
    until(lambda: gate.passed == foreign._ALONE_MAX + 1)
    until(lambda: not foreign._alone)


async def test_what_is_done_aside_gives_its_result_or_its_error() -> None:
    assert await foreign.aside(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await foreign.aside(lambda: 1 // 0)


async def test_who_is_cancelled_waits_for_what_is_done_aside(gate: Gate) -> None:
    task = asyncio.create_task(foreign.aside(gate))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    gate.open()
    await task
    assert gate.passed == 1


def test_the_queue_of_a_socket_is_known_to_be_empty() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert foreign._is_empty(ours)
        theirs.send(b"x")
        assert not foreign._is_empty(ours)
        held = array("i", [0])
        fcntl.ioctl(ours.fileno(), 0x541B, held)
        assert held[0] == 1
