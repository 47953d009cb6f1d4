# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The model: regions come and go whole, or not at all, and every change is told in order."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import gc
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from doorbelld.errors import (
    DoorbellError,
    MemoryUnavailable,
    NoSuchPeer,
    NoSuchRegion,
    RegionExists,
    SocketInUse,
    SocketUnavailable,
)
from doorbelld.fds import eventfd, limits
from doorbelld.fds.keeper import Kept, Satchel
from doorbelld.fds.ledger import Ledger, NewerState
from doorbelld.fds.owned import Fd
from doorbelld.host.events import PeerAdded, PeerRemoved, RegionAdded, RegionChanged, RegionEvent, RegionRemoved
from doorbelld.host.host import Host
from doorbelld.ivshmem.memory import Backing
from doorbelld.ivshmem.spec import RegionSpec

DEADLINE = 20.0


class Heard:
    """A listener that keeps what it hears and can be waited on."""

    def __init__(self) -> None:
        self.events: list[RegionEvent] = []
        self._changed = asyncio.Event()

    def __call__(self, event: RegionEvent) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, condition: Callable[[list[RegionEvent]], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition(self.events):
                self._changed.clear()
                await self._changed.wait()

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


@pytest.fixture
def heard(host: Host) -> Heard:
    made = Heard()
    host.listen(made)
    return made


async def test_a_region_is_made_told_and_found(host: Host, heard: Heard, short_path: Path) -> None:
    region = await host.create_region(RegionSpec("demo"))
    assert heard.events == [RegionAdded(region)]
    assert host.region("demo") is region
    assert region.spec.socket == str(short_path / "run" / "demo" / "socket")
    assert os.path.exists(region.spec.socket)
    assert os.fstat(region.memory.fileno()).st_size == 4 << 20


async def test_a_region_that_is_not_there_is_named_with_those_that_are(host: Host) -> None:
    with pytest.raises(NoSuchRegion, match='no region "x"; there is: none; make one with CreateRegion'):
        host.region("x")
    await host.create_region(RegionSpec("b"))
    await host.create_region(RegionSpec("a"))
    with pytest.raises(NoSuchRegion, match=r'no region "x"; there is: a, b$'):
        host.region("x")
    with pytest.raises(NoSuchRegion):
        host.remove_region("x")


async def test_the_same_name_twice_also_while_the_first_is_coming(host: Host, heard: Heard) -> None:
    both = await asyncio.gather(
        host.create_region(RegionSpec("demo")), host.create_region(RegionSpec("demo")), return_exceptions=True
    )
    assert [isinstance(one, RegionExists) for one in both] == [False, True]
    assert heard.kinds() == ["RegionAdded"]
    with pytest.raises(RegionExists, match='"demo" is there already; remove it first'):
        await host.create_region(RegionSpec("demo"))


def spec_with(short_path: Path, **changes: object) -> RegionSpec:
    return RegionSpec("demo", **{"backing": Backing("file", str(short_path / "memory")), **changes})  # type: ignore[arg-type]


async def _refused(host: Host, heard: Heard, short_path: Path, spec: RegionSpec, kind: type[DoorbellError]) -> str:
    """Make a region that can't be made, see that nothing is left, and that it can be made with other options."""
    before = sorted(short_path.rglob("*"))
    used = limits.in_use()
    with pytest.raises(kind) as caught:
        await host.create_region(spec)
    left = [path for path in sorted(short_path.rglob("*")) if path not in before and not path.is_dir()]
    assert (left, host.regions, heard.events, limits.in_use()) == ([], {}, [], used)
    await host.create_region(RegionSpec("demo"))
    return str(caught.value)


async def test_memory_that_can_not_be_had(host: Host, heard: Heard, short_path: Path) -> None:
    spec = spec_with(short_path, backing=Backing("file", str(short_path / "no" / "such" / "memory")))
    said = await _refused(host, heard, short_path, spec, MemoryUnavailable)
    assert "No such file or directory; make its directory" in said


async def test_a_full_disk_gets_its_space_back_at_once(
    host: Host, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unlinked file that is still open keeps its blocks; that the error lives on must not keep it open."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    used = limits.in_use()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MemoryUnavailable, match="free some space there or use another backing") as caught:
        await host.create_region(spec_with(short_path))
    assert not (short_path / "memory").exists()
    left_open = limits.in_use() - used  # while the error is alive
    del caught
    gc.collect()
    assert left_open == 0


async def test_a_live_socket_in_the_way(host: Host, heard: Heard, short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(short_path / "s"))
        live.listen()
        said = await _refused(host, heard, short_path, spec_with(short_path, socket=str(short_path / "s")), SocketInUse)
    assert "a live server" in said
    assert str(os.getpid()) in said


async def test_a_file_in_the_way_stays(host: Host, heard: Heard, short_path: Path) -> None:
    (short_path / "s").write_text("mine")
    await _refused(host, heard, short_path, spec_with(short_path, socket=str(short_path / "s")), SocketInUse)
    assert (short_path / "s").read_text() == "mine"


async def test_a_socket_below_a_file(host: Host, heard: Heard, short_path: Path) -> None:
    (short_path / "file").touch()
    spec = spec_with(short_path, socket=str(short_path / "file" / "socket"))
    assert "choose another socket path" in await _refused(host, heard, short_path, spec, SocketUnavailable)


async def test_memory_that_was_made_goes_when_the_socket_can_not_be(
    host: Host, heard: Heard, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "chown", refuse)
        spec = spec_with(short_path, group="0")
        with pytest.raises(SocketUnavailable, match="only root may give a socket"):
            await host.create_region(spec)
        assert not (short_path / "memory").exists()
        assert not os.path.exists(host.with_defaults(spec).socket)
        (short_path / "memory").write_bytes(b"x" * (4 << 20))
        with pytest.raises(SocketUnavailable):
            await host.create_region(spec)
    assert (short_path / "memory").read_bytes() == b"x" * (4 << 20)  # what was there before is not ours to remove
    await host.create_region(spec)
    assert heard.kinds() == ["RegionAdded"]


async def test_removing_tells_of_peers_first(host: Host, heard: Heard) -> None:
    region = await host.create_region(RegionSpec("demo"))
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for client in (one, two):
            client.connect(region.spec.socket)
        await heard.until(lambda events: len(events) == 3)
        peers = list(region.peers.values())
        host.remove_region("demo")
        assert heard.events == [
            RegionAdded(region),
            *(PeerAdded(region, peer) for peer in peers),
            *(PeerRemoved(region, peer, "the region is removed") for peer in peers),
            RegionRemoved(region),
        ]
    assert host.regions == {}
    assert not os.path.exists(region.spec.socket)
    again = await host.create_region(RegionSpec("demo"))
    assert again is not region


async def test_all_listeners_hear_all_in_order(host: Host) -> None:
    said: list[tuple[int, str]] = []
    for number in range(2):
        host.listen(lambda event, number=number: said.append((number, type(event).__name__)))
    await host.create_region(RegionSpec("demo"))
    host.remove_region("demo")
    assert said == [(0, "RegionAdded"), (1, "RegionAdded"), (0, "RegionRemoved"), (1, "RegionRemoved")]


async def test_describe_is_json_of_everything(host: Host, heard: Heard) -> None:
    region = await host.create_region(RegionSpec("demo", vectors=2))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(region.spec.socket)
        await heard.until(lambda events: len(events) == 2)
        said = json.loads(json.dumps(host.describe()))
    assert said["descriptors"]["limit"] == 4096
    assert 0 < said["descriptors"]["in-use"] < 4096
    demo = said["regions"]["demo"]
    assert (demo["size"], demo["vectors"], demo["socket"], demo["host-rings"]) == (
        4 << 20,
        2,
        region.spec.socket,
        [0, 0],
    )
    (peer,) = demo["peers"]
    assert (peer["id"], peer["pid"], peer["uid"], peer["vectors"]) == (0, os.getpid(), os.getuid(), 2)


async def test_with_no_descriptor_left_to_count_with_all_are_in_use(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(limits, "in_use", fail)
    assert host.describe()["descriptors"] == {"limit": 4096, "in-use": 4096}


async def test_closing_ends_every_peer(host: Host, heard: Heard) -> None:
    region = await host.create_region(RegionSpec("demo"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(region.spec.socket)
        await heard.until(lambda events: len(events) == 2)
        await host.close()
        assert heard.events[-1].reason == "the daemon stops"  # type: ignore[attr-defined]
        client.settimeout(DEADLINE)
        while client.recv(4096):
            pass
    assert not os.path.exists(region.spec.socket)
    with pytest.raises(NoSuchPeer):
        region.disconnect(0, "")


# Over a restart


def kept_by(satchel: Satchel) -> Kept:
    """Give what a keeper would give back."""
    return Kept({name: fd.dup() for name, fd in satchel.copies.items()})


@pytest.fixture
async def second(short_path: Path) -> AsyncIterator[Host]:
    made = Host(asyncio.get_running_loop(), str(short_path / "run"), 4096)
    yield made
    await made.close()


@pytest.fixture
async def satchel(host: Host, second: Host) -> AsyncIterator[Satchel]:
    made = Satchel()
    host.keeper = second.keeper = made
    yield made
    await second.close()
    await host.close()
    made.close()


def keep_line(satchel: Satchel, prefix: str, line: bytes) -> None:
    """Have a ledger kept that says *line*."""
    satchel.drop(f"{prefix}state")
    book = Ledger.create("doorbelld:x:state")
    book.rewrite(line + b"\n")
    satchel.put(f"{prefix}state", book.fd.fileno())
    book.close()


async def test_regions_are_kept_each_under_a_number_of_its_own(host: Host, satchel: Satchel) -> None:
    await host.create_region(RegionSpec("a"))
    await host.create_region(RegionSpec("b", host_peer=False))
    names = {f"r1.{part}" for part in ("state", "memory", "listener", "host")}
    assert set(satchel.copies) == names | {f"r2.{part}" for part in ("state", "memory", "listener")}
    host.remove_region("a")
    assert not names & set(satchel.copies)
    await host.create_region(RegionSpec("a"))
    assert "r3.state" in satchel.copies
    assert "r1.state" not in satchel.copies


async def test_several_regions_come_back_and_one_does_not(host: Host, second: Host, satchel: Satchel) -> None:
    heard = Heard()
    second.listen(heard)
    for name in ("a", "b", "c", "d"):
        await host.create_region(RegionSpec(name), configured=name == "a")
    specs = {name: region.spec for name, region in host.regions.items()}
    await host.close()
    keep_line(satchel, "r2.", b"nonsense")
    satchel.drop("r3.state")
    bells = eventfd.make(1)
    satchel.put("stranger", bells[0])
    bells.close()
    kept = kept_by(satchel)
    unusable = second.revive(kept, {}, Kept())
    assert [(found.name, found.reason.split(" (")[0]) for found in unusable] == [
        ("r2", "the state is damaged"),
        ("r3", "its state is missing"),
    ]
    assert {name: region.spec for name, region in second.regions.items()} == {"a": specs["a"], "d": specs["d"]}
    assert [(event.region.name, event.revived) for event in heard.events if isinstance(event, RegionAdded)] == [
        ("a", True),
        ("d", True),
    ]
    assert [region.configured for region in second.regions.values()] == [True, False]
    assert list(kept) == ["stranger"]  # whoever gave it decides
    kept.close()
    assert {name.split(".")[0] for name in satchel.copies} == {"r1", "r4", "stranger"}
    await second.create_region(RegionSpec("b"))
    assert "r5.state" in satchel.copies  # a number is never used again
    for name in list(second.regions):
        second.remove_region(name)
    assert list(satchel.copies) == ["stranger"]


async def test_region_restored_after_restart_removes_directory_that_predecessor_made(
    host: Host, second: Host, satchel: Satchel, short_path: Path
) -> None:
    for name in ("a", "b", "c"):
        await host.create_region(RegionSpec(name))
    await host.close()
    keep_line(satchel, "r2.", b"nonsense")
    second.revive(kept_by(satchel), {}, Kept())
    assert sorted(os.listdir(short_path / "run")) == ["a", "c"]
    (short_path / "run" / "c" / "else").touch()
    second.remove_region("a")
    second.remove_region("c")
    assert os.listdir(short_path / "run") == ["c"]


async def test_what_a_newer_version_left_is_not_touched(host: Host, second: Host, satchel: Satchel) -> None:
    for name in ("a", "b"):
        await host.create_region(RegionSpec(name))
    await host.close()
    keep_line(satchel, "r2.", b'{"version":99}')
    before = {name: fd.fileno() for name, fd in satchel.copies.items()}
    with pytest.raises(NewerState, match="version 99"):
        second.revive(kept_by(satchel), {}, Kept())
    assert {name: fd.fileno() for name, fd in satchel.copies.items()} == before
    assert second.regions == {}
    keep_line(satchel, "r2.", b"nonsense")
    assert [found.name for found in second.revive(kept_by(satchel), {}, Kept())] == ["r2"]
    assert list(second.regions) == ["a"]


async def test_two_of_one_name_are_one(host: Host, second: Host, satchel: Satchel) -> None:
    await host.create_region(RegionSpec("a"))
    for name in list(satchel.copies):
        satchel.put(name.replace("r1.", "r7."), satchel.copies[name].fileno())
    await host.close()
    (unusable,) = second.revive(kept_by(satchel), {}, Kept())
    assert (unusable.name, unusable.reason) == ("a", "another region of that name is there")
    assert {name.split(".")[0] for name in satchel.copies} == {"r1"}
    assert os.path.exists(second.region("a").spec.socket)  # the path is the living one's


async def test_a_socket_that_somebody_else_made_is_used_or_left(
    host: Host, second: Host, satchel: Satchel, short_path: Path
) -> None:
    """If the region can't be made anew, the socket is there for the one that takes its place."""
    for name in ("a", "b"):
        await host.create_region(RegionSpec(name, socket=str(short_path / name)))
    await host.close()
    satchel.drop("r2.memory")
    given: dict[str, Fd] = {}
    for name in ("a", "b"):
        os.unlink(short_path / name)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(short_path / name))
            made.listen()
            given[name] = Fd(os.dup(made.fileno()))
    sockets = Kept(given)
    assert [found.name for found in second.revive(kept_by(satchel), {}, sockets)] == ["b"]
    assert list(sockets) == ["b"]
    await second.create_region(RegionSpec("b", socket=str(short_path / "b")), socket_given=sockets.take("b"))
    for name in ("a", "b"):
        with socket.socket(socket.AF_UNIX) as client:
            assert client.connect_ex(str(short_path / name)) == 0
    assert "r1.listener" not in satchel.copies
    sockets.close()


async def test_without_descriptors_a_region_is_lost_and_nobody_else(
    host: Host, second: Host, satchel: Satchel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        await host.create_region(RegionSpec(name))
    await host.close()
    real, count = Ledger.adopt, 0

    def adopt(fd: Fd) -> Ledger:
        nonlocal count
        count += 1
        if count == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(fd)

    monkeypatch.setattr(Ledger, "adopt", adopt)
    (unusable,) = second.revive(kept_by(satchel), {}, Kept())
    assert "Too many open files" in unusable.reason
    assert list(second.regions) == ["b"]


async def test_keeping_for_a_while(host: Host, short_path: Path) -> None:
    """What SIGUSR2 does: all that there is, and what comes meanwhile, until it is taken back."""
    await host.create_region(RegionSpec("a"))
    satchel = Satchel()
    assert host.keep(satchel)
    assert host.region("a").kept
    await host.create_region(RegionSpec("b", host_peer=False))
    assert {name.split(".")[0] for name in satchel.copies} == {"r1", "r2"}
    host.unkeep()
    assert satchel.copies == {}
    assert not host.region("a").kept
    await host.create_region(RegionSpec("c"))
    assert satchel.copies == {}


async def test_keeping_that_does_not_work_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    await host.create_region(RegionSpec("a"))
    await host.create_region(RegionSpec("b"))
    satchel = Satchel()
    monkeypatch.setattr(satchel, "put", lambda name, fd: len(satchel.copies) < 5 and Satchel.put(satchel, name, fd))
    assert not host.keep(satchel)
    assert [host.region(name).kept for name in "ab"] == [True, False]
    host.unkeep()
    assert satchel.copies == {}


async def test_closing_leaves_what_is_kept(host: Host, heard: Heard, satchel: Satchel) -> None:
    """The end of the process may be half of a restart: no peer sees the end of its stream."""
    region = await host.create_region(RegionSpec("demo"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(region.spec.socket)
        await heard.until(lambda events: len(events) == 2)
        await host.close()
        assert os.path.exists(region.spec.socket)
        assert heard.kinds() == ["RegionAdded", "PeerAdded"]
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            while client.recv(4096):
                pass
        assert sorted(satchel.copies)[:1] == ["r1.1"]


async def test_a_change_is_told(host: Host, heard: Heard) -> None:
    region = await host.create_region(RegionSpec("demo"))
    wanted = dataclasses.replace(region.spec, max_peers=3)
    host.change_region(wanted, configured=True)
    assert (region.spec, region.configured) == (wanted, True)
    assert heard.events[1:] == [RegionChanged(region)]
    with pytest.raises(NoSuchRegion):
        host.change_region(RegionSpec("x"), configured=True)


async def test_who_makes_no_progress_is_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    await host.create_region(RegionSpec("a"))
    await host.create_region(RegionSpec("b"))
    assert host.stuck == []
    assert host.stuck == []  # idle is not stuck
    courier = host.region("b")._courier
    monkeypatch.setattr(type(courier), "busy", property(lambda self: self is courier))
    assert host.stuck == ["b"]
    courier.turns += 1
    assert host.stuck == []
    assert host.stuck == ["b"]
