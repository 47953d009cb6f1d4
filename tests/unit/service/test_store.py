# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The descriptor store, against a datagram socket that plays systemd."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from doorbelld.fds import eventfd
from doorbelld.fds.owned import FdSet
from doorbelld.service import store as module
from doorbelld.service.store import DescriptorStore, room
from support.fdcount import no_leaks, open_fds
from support.rawclient import identity

DEADLINE = 20.0


class Manager:
    """systemd's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.settimeout(DEADLINE)
        self.client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.client.connect(str(path))

    def read(self) -> tuple[str, list[int]]:
        """Take one message: its text, and which eventfds came with it."""
        data, fds, flags, _ = socket.recv_fds(self.sock, 4096, 4)
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        found = [identity(fd) for fd in fds]
        for fd in fds:
            os.close(fd)
        return data.decode(), found

    def fill(self) -> int:
        """Leave no room in the queue; gives how many messages were put there."""
        count = 0
        while True:
            try:
                self.client.send(b"X=1", socket.MSG_DONTWAIT)
            except BlockingIOError:
                return count
            count += 1

    def close(self) -> None:
        self.sock.close()
        self.client.close()


@pytest.fixture
async def manager(short_path: Path) -> AsyncIterator[Manager]:
    with no_leaks():
        made = Manager(short_path / "notify")
        yield made
        made.close()


@pytest.fixture
async def bells(manager: Manager) -> AsyncIterator[FdSet]:
    made = eventfd.make(3)
    yield made
    made.close()


def store_of(manager: Manager, room: int = 100) -> DescriptorStore:
    return DescriptorStore(asyncio.get_running_loop(), SimpleNamespace(socket=manager.client), room)


async def test_messages_are_as_systemd_wants_them(manager: Manager, bells: FdSet) -> None:
    store = store_of(manager)
    assert store.put("r1.memory", bells[0])
    assert store.put("r1.7", bells[1])
    store.drop("r1.memory")
    assert manager.read() == ("FDSTORE=1\nFDNAME=r1.memory\nFDPOLL=0", [identity(bells[0])])
    assert manager.read() == ("FDSTORE=1\nFDNAME=r1.7\nFDPOLL=0", [identity(bells[1])])
    assert manager.read() == ("FDSTOREREMOVE=1\nFDNAME=r1.memory", [])
    assert len(store) == 1


async def test_entries_are_counted_since_systemd_does_not_say(manager: Manager, bells: FdSet) -> None:
    store = store_of(manager, 3)
    store.came_back("r1.old")
    assert store.put("a", bells[0])
    assert store.put("b", bells[0])
    assert not store.put("c", bells[0])
    store.drop("r1.old")
    assert store.put("c", bells[0])
    assert not store.put("d", bells[0])
    assert len(store) == 3
    said = [manager.read()[0].split("\n")[1] for _ in range(4)]
    assert said == ["FDNAME=a", "FDNAME=b", "FDNAME=r1.old", "FDNAME=c"]


async def until_queue_is_empty(store: DescriptorStore, manager: Manager, junk: int) -> list[tuple[str, list[int]]]:
    """Read all there is, and let the loop send what is queued."""
    got = [manager.read() for _ in range(junk)]
    assert all(text == "X=1" for text, _ in got)
    found = []
    manager.sock.setblocking(False)
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                found.append(manager.read())
            except BlockingIOError:
                if not store._queue:
                    return found
                await asyncio.sleep(0)


async def test_what_does_not_fit_is_queued_in_order(manager: Manager, bells: FdSet) -> None:
    store = store_of(manager, 1000)
    junk = manager.fill()
    before = open_fds()
    originals = eventfd.make(40)
    names = [identity(fd) for fd in originals]
    for number, fd in enumerate(originals):
        assert store.put(f"n{number}", fd)
        if number % 3 == 0:
            store.drop(f"n{number}")
    originals.close()  # they are queued as copies
    want: list[tuple[str, list[int]]] = []
    for number, name in enumerate(names):
        want.append((f"FDSTORE=1\nFDNAME=n{number}\nFDPOLL=0", [name]))
        if number % 3 == 0:
            want.append((f"FDSTOREREMOVE=1\nFDNAME=n{number}", []))
    assert await until_queue_is_empty(store, manager, junk) == want
    assert open_fds() == before
    assert not store._watching
    assert store.put("later", bells[0])
    assert manager.read()[0] == "FDSTORE=1\nFDNAME=later\nFDPOLL=0"


async def test_who_must_wait_is_called_once_there_is_room(manager: Manager, bells: FdSet) -> None:
    store = store_of(manager)
    called: list[str] = []
    one, two = lambda: called.append("one"), lambda: called.append("two")
    assert store.ready(one)
    junk = manager.fill()
    assert not store.ready(one)
    assert not store.ready(one)  # asked again: called once all the same
    assert store.put("a", bells[0])
    assert not store.ready(two)
    await asyncio.sleep(0)
    assert called == []
    assert await until_queue_is_empty(store, manager, junk) == [("FDSTORE=1\nFDNAME=a\nFDPOLL=0", [identity(bells[0])])]
    async with asyncio.timeout(DEADLINE):
        while not called:
            await asyncio.sleep(0)
    assert called == ["one", "two"]
    assert store.ready(one)
    for _ in range(5):
        await asyncio.sleep(0)
    assert called == ["one", "two"]


async def test_room_alone_calls_who_waits(manager: Manager) -> None:
    """Nothing is queued, and yet systemd was too busy to begin anything."""
    store = store_of(manager)
    junk, called = manager.fill(), asyncio.Event()
    assert not store.ready(called.set)
    for _ in range(junk):
        manager.read()
    async with asyncio.timeout(DEADLINE):
        await called.wait()
    assert store.ready(called.set)


async def test_at_the_end_what_is_queued_is_waited_for(manager: Manager, bells: FdSet) -> None:
    store = store_of(manager)
    junk = manager.fill()
    for number in range(3):
        store.put(f"n{number}", bells[number])
    reading = asyncio.to_thread(lambda: [manager.read()[0] for _ in range(junk + 3)])
    task = asyncio.get_running_loop().create_task(reading)
    await asyncio.sleep(0)
    store.flush()  # blocks this thread, and the other reads
    said = await task
    assert [text.split("\n")[1] for text in said[junk:]] == ["FDNAME=n0", "FDNAME=n1", "FDNAME=n2"]
    assert not store._queue
    await asyncio.get_running_loop().shutdown_default_executor()
    asyncio.get_running_loop().remove_writer(manager.client.fileno())


async def test_at_the_end_a_systemd_that_reads_nothing_is_given_up(manager: Manager, bells: FdSet) -> None:
    store = store_of(manager)
    manager.fill()
    for number in range(3):
        store.put(f"n{number}", bells[number])
    store.flush()
    assert manager.client.getblocking()
    store._queue.clear()
    asyncio.get_running_loop().remove_writer(manager.client.fileno())


async def test_without_systemd_nothing_is_kept_and_nothing_is_raised(manager: Manager, bells: FdSet) -> None:
    store = store_of(manager)
    assert store.put("a", bells[0])
    manager.sock.close()
    before = open_fds()
    assert not store.put("b", bells[0])
    store.drop("a")
    assert len(store) == 0
    assert store.ready(lambda: None)  # there is nothing to wait for
    store.flush()
    assert open_fds() == before


async def test_systemd_goes_away_while_something_is_queued(manager: Manager, bells: FdSet) -> None:
    store = store_of(manager)
    manager.fill()
    before = open_fds()
    called = asyncio.Event()
    store.put("a", bells[0])
    store.drop("a")
    assert not store.ready(called.set)
    number = manager.sock.fileno()
    manager.sock.close()
    async with asyncio.timeout(DEADLINE):
        await called.wait()
    assert not store._queue
    assert open_fds() == {fd: target for fd, target in before.items() if fd != number}


async def test_without_a_descriptor_for_the_copy_it_is_not_kept(manager: Manager, bells: FdSet) -> None:
    store = store_of(manager)
    junk = manager.fill()
    free = next(number for number in range(4096) if number not in open_fds())
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            store.put("a", bells[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(store) == 0
    assert await until_queue_is_empty(store, manager, junk) == []


@pytest.mark.parametrize(
    ("variables", "entries"),
    [
        ({}, 0),
        ({"FDSTORE": "512"}, 512),
        ({"DOORBELLD_FDSTORE_MAX": "4096"}, 4096),
        ({"FDSTORE": "512", "DOORBELLD_FDSTORE_MAX": "4096"}, 512),
        ({"FDSTORE": "", "DOORBELLD_FDSTORE_MAX": "7"}, 7),
        ({"FDSTORE": "many"}, 0),
        ({"FDSTORE": "-1"}, 0),
    ],
)
def test_room(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], entries: int) -> None:
    for name in ("FDSTORE", "DOORBELLD_FDSTORE_MAX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert room() == entries


# What systemd hands us: in a process of its own, whose descriptors from 3 on are ours to choose

CHILD = """
import fcntl, json, os, sys
sys.path[:0] = json.loads(sys.argv[2])
given = [int(fd) for fd in json.loads(sys.argv[1])]
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for fd in given]
for number in range(3, 200):
    try: os.close(number)
    except OSError: pass
for place, fd in enumerate(high): os.dup2(fd, 3 + place, inheritable=True); os.close(fd)
if os.environ.get("LISTEN_PID") == "me": os.environ["LISTEN_PID"] = str(os.getpid())
from doorbelld.service.store import take_over
kept, sockets = take_over()
left = [name for name in os.environ if name.startswith("LISTEN_")]
def look(found):
    return {name: [os.fstat(fd.fileno()).st_ino, os.get_inheritable(fd.fileno())]
            for name in found for fd in [found.copy(name)]}
def state(number):
    try: return fcntl.fcntl(number, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
    except OSError: return None
again = take_over()
again = [len(again[0]), len(again[1].regions), len(again[1].devices)]
parts = [kept, sockets.regions, sockets.devices]
print(json.dumps([*map(look, parts), left, [state(3 + place) for place in range(len(given))], again]))
"""


def taken_over(count: int, **variables: str) -> list[object]:
    """Start a child with *count* memory files as descriptors from 3 on; gives what it found, with files as numbers."""
    fds = [os.memfd_create(f"file{number}") for number in range(count)]
    inodes = {os.fstat(fd).st_ino: number for number, fd in enumerate(fds)}
    path = [str(Path(module.__file__).parents[2]), *sys.path]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LISTEN_")}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(fds), json.dumps(path)],
        env={**environment, **variables}, pass_fds=fds, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    for fd in fds:
        os.close(fd)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    parts, rest = found[:3], found[3:]
    assert not any(inheritable for part in parts for _, inheritable in part.values())
    return [*({name: inodes[inode] for name, (inode, _) in part.items()} for part in parts), *rest]


def test_taking_over() -> None:
    names = "r1.state:region-demo:r1.0:region-a.b:device-demo"
    got = taken_over(5, LISTEN_PID="me", LISTEN_FDS="5", LISTEN_FDNAMES=names)
    assert got == [{"r1.state": 0, "r1.0": 2}, {"demo": 1, "a.b": 3}, {"demo": 4}, [], [True] * 5, [0, 0, 0]]


def test_taking_over_what_is_meant_for_somebody_else() -> None:
    got = taken_over(1, LISTEN_PID="1", LISTEN_FDS="1", LISTEN_FDNAMES="r1.state")
    assert got[:3] == [{}, {}, {}]
    assert got[4] == [False]  # left alone
    assert taken_over(1)[:2] == [{}, {}]


def test_a_name_that_comes_twice_counts_once_and_the_other_is_closed() -> None:
    got = taken_over(3, LISTEN_PID="me", LISTEN_FDS="3", LISTEN_FDNAMES="a:b:a")
    assert got == [{"a": 0, "b": 1}, {}, {}, [], [True, True, None], [0, 0, 0]]


def test_without_names_or_with_too_few_or_too_many() -> None:
    assert taken_over(2, LISTEN_PID="me", LISTEN_FDS="2")[:2] == [{"": 0}, {}]
    assert taken_over(2, LISTEN_PID="me", LISTEN_FDS="2", LISTEN_FDNAMES="a")[:2] == [{"a": 0, "": 1}, {}]
    assert taken_over(1, LISTEN_PID="me", LISTEN_FDS="1", LISTEN_FDNAMES="a:b:c")[:2] == [{"a": 0}, {}]
    assert taken_over(0, LISTEN_PID="me", LISTEN_FDS="0", LISTEN_FDNAMES="")[:2] == [{}, {}]
