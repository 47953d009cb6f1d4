# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Views of clients and flat devices, over a model in this process; what callers see is in test_bus_clients."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from doorbelld.bus import paths
from doorbelld.bus.client_objects import UNKNOWN, ClientView, FlatDeviceView, ForeignPeerView
from doorbelld.bus.objects import VectorView
from doorbelld.bus.sharing import READ_MAX
from doorbelld.bus.tree import Tree
from doorbelld.errors import (
    AccessDenied,
    InvalidOptions,
    InvalidRegister,
    LimitExceeded,
    NoSuchPeer,
    NoSuchVector,
    ServerClosed,
)
from doorbelld.host.host import Host
from doorbelld.ivshmem.clientspec import ClientSpec, FlatSpec
from doorbelld.ivshmem.spec import RegionSpec
from support.fdcount import no_leaks

SIZE = 4 << 20
LAB, MCU = paths.client("lab"), paths.flat("mcu")


class Site:
    """A host whose client "lab" and flat device "mcu" are in its region "demo"; "far" and "off" are nowhere."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.tree = Tree(host, self._reload)

    async def _reload(self) -> None: ...

    async def open(self) -> None:
        region = await self.host.create_region(RegionSpec("demo", vectors=2, size=SIZE))
        self.lab = self.host.create_client(ClientSpec("lab", region.spec.socket))
        self.mcu = self.host.create_flat(FlatSpec("mcu", region.spec.socket))
        self.host.create_client(ClientSpec("far", "/nowhere/x\udc80"))
        self.host.create_flat(FlatSpec("off", "/nowhere/x"))
        async with asyncio.timeout(20):
            while any(one.vectors < 2 or len(one.peers) < 2 for one in (self.lab, self.mcu)):
                await asyncio.sleep(0)

    def view(self, path: str) -> Any:
        found = self.tree.find(path)
        assert found is not None
        return found


@pytest.fixture
async def site(short_path: Path) -> AsyncIterator[Site]:
    with no_leaks():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(executor := ThreadPoolExecutor(1))
        made = Site(Host(loop, str(short_path), 4096))
        await made.open()
        yield made
        await made.host.close()
        executor.shutdown()


def values(view: Any) -> dict[str, Any]:
    return {name: variant.value for name, variant in view.get_all().items()}


async def test_the_tree_finds_them(site: Site) -> None:
    assert isinstance(site.view(LAB), ClientView)
    assert isinstance(site.view(f"{LAB}/peer/1"), ForeignPeerView)
    assert isinstance(site.view(f"{LAB}/peer/1/vector/1"), VectorView)
    assert isinstance(site.view(MCU), FlatDeviceView)
    assert site.view(LAB) is site.view(LAB)
    for path in (
        *(f"{LAB}/peer/{odd}" for odd in ("0", "2", "01", "-1", "65536", "x", "")),
        *(f"{LAB}/peer/1/vector/{odd}" for odd in ("2", "00", "")),
        *(f"{LAB}/peer", f"{MCU}/peer/0", f"{LAB}/", paths.client("mcu"), paths.flat("lab"), f"{LAB}/peer/1/vector"),
    ):
        assert site.tree.find(path) is None, path
    assert site.tree.children(paths.ROOT) == ["client", "flat", "region"]
    assert site.tree.children(f"{paths.ROOT}/client") == ["far", "lab"]
    assert site.tree.children(f"{LAB}/peer") == ["1", "65535"]
    assert site.tree.children(f"{LAB}/peer/1") == ["vector"]
    assert site.tree.children(f"{LAB}/peer/1/vector") == ["0", "1"]
    assert site.tree.children(paths.client("far")) == site.tree.children(MCU) == []
    listed = [path for path, _ in site.tree.listed()]
    assert {LAB, f"{LAB}/peer/1", MCU, paths.flat("off")} <= set(listed)
    assert not [path for path in listed if "/vector/" in path]


async def test_one_that_is_not_connected(site: Site) -> None:
    far, off = site.view(paths.client("far")), site.view(paths.flat("off"))
    found = values(far)
    assert (found["Id"], found["Size"], found["Since"], found["Rings"]) == (UNKNOWN, 0, 0, [])
    assert found["Reason"].isprintable(), "it fits the bus, whatever the path is"
    assert values(off)["IvPosition"] == 0
    for call in (
        lambda: far.notify(0, 0),
        lambda: far.notify_peer(0),
        lambda: far.notify_many([(0, 0)]),
        far.broadcast,
        far.open_memory,
        lambda: far.open_doorbell(0, 0),
        lambda: far.read_memory(0, 0),
        lambda: off.write_memory(0, b""),
        lambda: off.write(12, 0),
    ):
        with pytest.raises(ServerClosed, match="not connected"):
            call()


async def test_doorbells_of_others(site: Site) -> None:
    lab, peer = site.view(LAB), site.view(f"{LAB}/peer/1")
    with lab.open_doorbell(1, 1) as eventfd:
        os.eventfd_write(eventfd.fileno(), 1)
    peer.notify(0)
    assert site.view(f"{LAB}/peer/1/vector/0").pending_count() == 1
    for call, error in (
        (lambda: lab.notify(9, 0), NoSuchPeer),
        (lambda: lab.open_doorbell(1, 2), NoSuchVector),
        (lambda: peer.notify(2), NoSuchVector),
        (peer.disconnect, AccessDenied),
    ):
        with pytest.raises(error):
            call()
    site.host.remove_flat("mcu")
    async with asyncio.timeout(20):
        while 1 in site.lab.peers:
            await asyncio.sleep(0)
    with pytest.raises(NoSuchPeer):
        peer.notify_all()


async def test_memory(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, mcu = site.view(LAB), site.view(MCU)
    lab.write_memory(SIZE - 2, b"ab")
    assert mcu.read_memory(SIZE - 2, 2) == b"ab"
    assert lab.read_memory(SIZE, 0) == b""
    for view in (lab, mcu):
        with view.open_memory() as memory:
            assert os.pread(memory.fileno(), 2, SIZE - 2) == b"ab"
        for call in (
            lambda view=view: view.read_memory(SIZE - 1, 2),
            lambda view=view: view.read_memory(SIZE + 1, 0),
            lambda view=view: view.read_memory(0, READ_MAX + 1),
            lambda view=view: view.write_memory(SIZE, b"x"),
        ):
            with pytest.raises(InvalidOptions, match="ask for less"):
                call()

    def full(_: object) -> None:
        raise OSError(24, "Too many open files")

    assert site.lab.memory is not None
    monkeypatch.setattr(type(site.lab.memory), "dup", full)
    with pytest.raises(LimitExceeded, match="LimitNOFILE"):
        lab.open_memory()


async def test_registers(site: Site) -> None:
    mcu = site.view(MCU)
    assert [mcu.read(offset) for offset in (0, 4, 8, 12)] == [0, 0, 1, 0]
    mcu.write(0, 0xFFFFFFFF)
    mcu.write(12, 0 << 16 | 1)
    async with asyncio.timeout(20):
        while site.lab.rings != [0, 1]:
            await asyncio.sleep(0)
    for call in (lambda: mcu.read(2), lambda: mcu.read(16), lambda: mcu.write(8, 0), lambda: mcu.write(13, 0)):
        with pytest.raises(InvalidRegister):
            call()
    with pytest.raises(NoSuchPeer):
        mcu.write(12, 9 << 16)


async def test_sums_wrap_as_an_eventfd_would(site: Site) -> None:
    site.lab.rings[0] = (1 << 64) + 5
    site.mcu.rings[:] = [(1 << 64) - 1, 3]
    assert values(site.view(LAB))["Rings"] == [5, 0]
    assert values(site.view(MCU))["Interrupts"] == 2
