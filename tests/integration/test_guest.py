# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole way: D-Bus, the daemon, QEMU, an interrupt in a Linux guest, shared memory, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.busctl import Busctl
from support.daemon import Daemon
from support.dbusclient import until
from support.guest.image import Image, build_image
from support.guest.qemu import IdleQemu, Qemu
from support.guest.qmp import QmpError
from support.guest.talk import GuestError
from support.guest.vm import Guest

HOST = 65535
REGION = "/region/demo"


@pytest.fixture(scope="module")
def image() -> Image:
    return build_image()


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    with Daemon(short_path) as running:
        yield running


def test_notify_interrupts_the_guest_which_writes_memory_and_rings_back(
    daemon: Daemon, image: Image, qemu: Qemu, short_path: Path
) -> None:
    bus = Busctl(daemon.bus)
    with (
        bus.monitor("Rung") as rung,
        Guest(
            image, qemu=qemu, name="guest1", ivshmem=[(daemon.socket(), 4)], log_file=short_path / "guest.log"
        ) as guest,
    ):
        (device,) = guest.ready()
        assert (device.id, device.vectors, device.size) == (0, 4, 4 << 20)
        ((peer_id, pid, _, _, vm_name, path),) = bus.call("", "Manager", "ListPeers", "s", "demo")[0]
        assert (peer_id, pid, vm_name) == (0, guest.pid, "guest1")
        assert path.endswith("/region/demo/peer/0")

        guest.command(f"echo {HOST}")
        for vector in range(4):
            bus.call(REGION, "Region", "Notify", "qq", 0, vector)
            assert guest.wait_irq(vector) == 1
            assert next(rung) == [vector, 1]
            seen = bytes(bus.call(REGION, "Region", "ReadMemory", "tu", vector * 64, 9)[0])
            assert seen == f"irq {vector} #1\0".encode()
        assert bus.get(REGION, "Region", "HostRings") == [1, 1, 1, 1]

        bus.call(REGION, "Region", "WriteMemory", "tay", 8192, 5, *b"hello")
        assert guest.read(8192, 5) == b"hello"
        guest.quit()


def test_two_guests_ring_each_other_and_outlive_the_other(daemon: Daemon, image: Image, qemu: Qemu) -> None:
    socket = [(daemon.socket(), 4)]
    with (
        Guest(image, qemu=qemu, name="one", ivshmem=socket) as one,
        Guest(image, qemu=qemu, name="two", ivshmem=socket) as two,
    ):
        one_id, two_id = one.ready()[0].id, two.ready()[0].id
        assert {one_id, two_id} == {0, 1}
        two.command(f"echo {one_id}")
        one.command(f"ring {two_id} 2")
        assert two.wait_irq(2) == 1
        assert one.wait_irq(2) == 1
        assert one.read(128, 8) == b"irq 2 #1"
        with Busctl(daemon.bus).monitor("PeerRemoved") as removed:
            one.kill()
            assert next(removed) == [one_id, "it closed its connection"]
        two.command("write 0 still here")
        assert two.read(0, 10) == b"still here"


def test_a_guest_that_no_rule_admits_is_told_at_once(short_path: Path, image: Image, qemu: Qemu) -> None:
    rules = '[region.demo]\n[[region.demo.peer]]\nmatch = { vm = "friend" }\nid = 7\n'
    with Daemon(short_path, rules) as daemon:
        with Guest(image, qemu=qemu, name="friend", ivshmem=[(daemon.socket(), 4)]) as friend:
            assert friend.ready()[0].id == 7
            friend.quit()
        with (
            Guest(image, qemu=qemu, name="stranger", ivshmem=[(daemon.socket(), 4)]) as stranger,
            pytest.raises(GuestError),
        ):
            stranger.ready()
        assert 'VM "stranger"' in daemon.log


def test_a_qemu_that_no_rule_admits_goes_on_when_it_plugs_a_region_in(short_path: Path, qemu: Qemu) -> None:
    """It connects first and reads later; if there was an end to read, it would read that for ever."""
    rules = '[region.demo]\n[[region.demo.peer]]\nmatch = { vm = "friend" }\n'
    port = ["-device", "pcie-root-port,id=root1,chassis=1"]
    with Daemon(short_path, rules) as daemon, IdleQemu(qemu, short_path / "output", name="stranger", args=port) as idle:
        address = {"type": "unix", "data": {"path": str(daemon.socket())}}
        for _ in range(3):
            idle.qmp("chardev-add", id="iv", backend={"type": "socket", "data": {"addr": address, "server": False}})
            until(lambda: 'VM "stranger"' in daemon.log)
            with pytest.raises(QmpError, match="server sent version -2"):
                idle.qmp("device_add", driver="ivshmem-doorbell", chardev="iv", vectors=4, bus="root1")
            idle.qmp("chardev-remove", id="iv")
        assert idle.qmp("query-status")["status"] == "prelaunch"
        assert idle.quit() == 0
