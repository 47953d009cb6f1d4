# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Vaults: many descriptors in one, in order, as often as one looks, and nothing left open when that fails."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from doorbelld.fds import eventfd
from doorbelld.fds.owned import Fd, FdSet
from doorbelld.fds.vault import Vault, found_behind, look_into
from support.fdcount import no_leaks, open_fds
from support.rawclient import identity

NOBODY = 54321


@contextmanager
def limited(count: int) -> Iterator[None]:
    """Allow no descriptor from number *count* on."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def many(count: int) -> Iterator[None]:
    """Allow *count* descriptors more than there are, if the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 64 + max(open_fds())
    assert hard >= wanted, f"this test needs a hard limit of {wanted} descriptors"
    with limited(max(soft, wanted)):
        yield


def shut_in(fds: FdSet | list[int]) -> Fd:
    """Give the door of a vault with copies of *fds*, as a keeper has it."""
    vault = Vault()
    try:
        vault.fill(list(fds))
        return Fd(os.dup(vault.door.fileno()))
    finally:
        vault.close()


@pytest.mark.parametrize("count", [0, 1, 2, 252, 253, 254, 506, 507, 2049])
def test_all_come_back_in_order_as_often_as_one_looks(count: int) -> None:
    with no_leaks(), many(3 * count):
        made = eventfd.make(count)
        names = [identity(fd) for fd in made]
        with shut_in(made) as door:
            made.close()  # the vault keeps them
            for _ in range(3):
                found = look_into(door)
                assert [identity(fd) for fd in found] == names
                assert not any(map(os.get_inheritable, found))
                found.close()
            first, second = look_into(door), look_into(door)
            assert [identity(fd) for fd in first] == [identity(fd) for fd in second] == names
            first.close()
            second.close()


def test_descriptors_of_any_kind() -> None:
    with no_leaks():
        ours, theirs = socket.socketpair()
        bells = eventfd.make(2)
        reading, writing = os.pipe()
        with shut_in([ours.fileno(), *bells, writing]) as door:
            found = look_into(door)
            os.write(found[3], b"pipe")
            os.eventfd_write(found[1], 3)
            assert os.read(reading, 9) == b"pipe"
            assert [eventfd.pending(fd) for fd in bells] == [3, 0]
            ours.close()
            assert os.write(found[0], b"socket") == 6
            assert theirs.recv(9) == b"socket"  # open as long as the vault is, or a copy of what is in it
            found.close()
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                theirs.recv(9)
        theirs.settimeout(20)
        assert theirs.recv(9) == b""
        bells.close()
        theirs.close()
        os.close(reading)
        os.close(writing)


def test_one_that_is_still_being_filled_can_be_looked_into() -> None:
    with no_leaks():
        bells = eventfd.make(300)
        vault = Vault()
        with Fd(os.dup(vault.door.fileno())) as door:
            assert len(look_into(door)) == 0
            vault.fill(bells[:3])
            assert len(look_into(door)) == 3
            vault.fill(bells)
            found = look_into(door)
            assert [identity(fd) for fd in found] == [identity(fd) for fd in [*bells[:3], *bells]]
            found.close()
            vault.close()
            vault.close()  # a second time does nothing
            assert len(look_into(door)) == 303
        bells.close()


@pytest.mark.parametrize("room", [1, 2, 100, 253, 254, 300, 600])
def test_out_of_descriptors_half_way_leaves_none_open(room: int) -> None:
    with no_leaks():
        bells = eventfd.make(1)
        with shut_in([bells[0]] * 700) as door:
            before = open_fds()
            free = next(number for number in range(4096) if number not in before)
            with limited(free + room), pytest.raises(OSError, match="Too many open files") as caught:
                look_into(door)
            assert caught.value.errno == errno.EMFILE
            del caught
            assert open_fds() == before
            found = look_into(door)  # nothing is lost by it
            assert len(found) == 700
            found.close()
        bells.close()


def test_no_descriptor_for_the_vault_itself() -> None:
    with no_leaks():
        before = open_fds()
        free = next(number for number in range(4096) if number not in before)
        with limited(free + 1), pytest.raises(OSError, match="Too many open files"):
            Vault()
        assert open_fds() == before


def _as_somebody(work: Callable[[], object]) -> str:
    """Do *work* in a child without privileges; gives what it returned, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.getuid() == 0:
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writing, str(work()).encode())
        except BaseException as error:
            os.write(writing, repr(error).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def test_without_privileges_all_is_the_same() -> None:
    def work() -> list[bool]:
        bells = eventfd.make(20)
        with shut_in(bells) as door:
            found = look_into(door)
            return [identity(one) == identity(other) for one, other in zip(found, bells, strict=True)]

    assert _as_somebody(work) == str([True] * 20)


def test_too_many_in_flight_is_said() -> None:
    """Without privileges, all that this user has in all vaults is bounded by the limit on descriptors."""

    def work() -> str:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        (bell,) = eventfd.make(1).steal()
        doors = []
        try:
            while len(doors) < 100:
                doors.append(shut_in([bell] * 20))
        except OSError as error:
            before = len(os.listdir("/proc/self/fd"))
            found = [len(look_into(door)) for door in doors]  # those that there are can be looked into all the same
            whole = set(found) == {20} and len(os.listdir("/proc/self/fd")) == before
            doors.clear()
            shut_in([bell] * 20).close()  # and there is room again once they are gone
            return f"{errno.errorcode[error.errno or 0]} {whole}"
        return f"{len(doors)} vaults and no end"

    assert _as_somebody(work) == "ETOOMANYREFS True"


@pytest.mark.parametrize(
    "make",
    [lambda: os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), lambda: os.eventfd(0), lambda: os.memfd_create("x")],
    ids=["file", "eventfd", "memfd"],
)
def test_what_is_no_socket_is_an_error(make: Callable[[], int]) -> None:
    with no_leaks(), Fd(make()) as door, pytest.raises(OSError, match="Socket operation on non-socket"):
        look_into(door)


def test_sockets_that_are_no_vaults_hold_nothing() -> None:
    with no_leaks():
        ours, theirs = socket.socketpair()
        with ours, theirs, Fd(os.dup(ours.fileno())) as door:
            assert len(look_into(door)) == 0  # silence
            theirs.send(b"some words")
            assert len(look_into(door)) == 0
            assert ours.recv(20) == b"some words"  # still there
            theirs.close()
            assert len(look_into(door)) == 0
        with socket.socket(socket.AF_UNIX) as lonely, Fd(os.dup(lonely.fileno())) as door, pytest.raises(OSError):
            look_into(door)


def test_behind_what_is_no_door_nothing_is_found() -> None:
    with no_leaks():
        assert found_behind(None) is None
        assert found_behind(Fd(os.eventfd(0))) is None
        with contextlib.closing(Vault()) as vault:
            vault.fill([0, 1])
            found = found_behind(Fd(os.dup(vault.door.fileno())))
        assert found is not None and len(found) == 2
        found.close()
