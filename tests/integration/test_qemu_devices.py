# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU guests use the daemon's devices over PCI, disks and entropy beside doorbells, through all that befalls a VM."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.busctl import Busctl
from support.daemon import Daemon
from support.dbusclient import until
from support.diskwork import DiskWork, disk_work
from support.guest.image import VFIO_MODULES, Image, build_image
from support.guest.initramfs import AGENT, DISK
from support.guest.qemu import Qemu, quoted
from support.guest.vm import Guest

HOST = 65535
HALF = 4 << 20
CONTENT = random.Random(7).randbytes(2 * HALF)
OTHER = random.Random(8).randbytes(2 * HALF)
HIGH = 1 << 32
"""Where QEMU's q35 puts memory that is plugged in, in a guest as small as these."""
DIMM = 256 << 20

CONFIG = """\
[region.demo]
[device.disk]
type = "blk"
path = "{folder}/disk"
serial = "disk"
[device.spare]
type = "blk"
path = "{folder}/spare"
serial = "spare"
[device.entropy]
type = "rng"
"""


@pytest.fixture(scope="module")
def image() -> Image:
    return build_image(modules=(*VFIO_MODULES, "virtio_pci", "virtio_blk", "virtio-rng"), programs=(AGENT, DISK))


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    (short_path / "disk").write_bytes(CONTENT)
    (short_path / "spare").write_bytes(OTHER)
    with Daemon(short_path, CONFIG.format(folder=short_path)) as running:
        yield running
        assert '"broken"' not in running.log and "refused" not in running.log, running.log


@pytest.fixture
def bus(daemon: Daemon) -> Busctl:
    return Busctl(daemon.bus)


def connections(daemon: Daemon, *names: str, more: str = "") -> list[str]:
    """QEMU's connections to devices, each called like the device."""
    return [
        word for name in names for word in ("-chardev", f"socket,id={name},path={quoted(daemon.socket(name))}{more}")
    ]


def property_of(bus: Busctl, device: str, name: str) -> object:
    return bus.get(f"/device/{device}", "Device", name)


def requests(bus: Busctl, device: str, queue: int) -> int:
    return int(bus.get(f"/device/{device}/queue/{queue}", "Queue", "Requests"))


def until_busy(bus: Busctl, device: str) -> None:
    """Wait until some more requests are done."""
    before = requests(bus, device, 0)
    until(lambda: requests(bus, device, 0) > before + 50)


def until_rung(bus: Busctl, times: int) -> None:
    """Wait until the guest has rung each of the host's doorbells so often."""
    until(lambda: bus.get("/region/demo", "Region", "HostRings") == [times] * 4)


def memory(bus: Busctl, device: str) -> dict[int, int]:
    """The guest memory that a device has: size by guest address."""
    return {address: size for address, size, *_ in bus.get(f"/device/{device}", "Device", "MemoryRegions")}


def begin(guest: Guest, works: list[DiskWork]) -> None:
    """Have each work done by a processor of its own, in the background."""
    for number, work in enumerate(works):
        guest.put(f"/work{number}", work.script)
        guest.run(f"(taskset {1 << number} sh -e /work{number}; echo status $?) > /said{number} 2>&1 &")


def finish(guest: Guest, works: list[DiskWork]) -> None:
    """Wait for that, and see whether the guest read what it should have."""
    for number, work in enumerate(works):
        guest.run(f"until grep status /said{number}; do usleep 10000; done")
        assert guest.run(f"cat /said{number}").splitlines() == [*work.said, "status 0"]


def test_disk_entropy_and_doorbells_in_a_guest_that_reboots(
    daemon: Daemon, bus: Busctl, image: Image, qemu: Qemu
) -> None:
    content = CONTENT
    drawn = set()
    devices = ["-device", "vhost-user-blk-pci,chardev=disk,num-queues=2"]
    devices += ["-device", "vhost-user-rng-pci,chardev=entropy"]
    args = [*connections(daemon, "disk", "entropy"), *devices]
    ivshmem = [(daemon.socket("demo"), 4)]
    with Guest(image, qemu=qemu, name="all", ivshmem=ivshmem, args=args, shared=True, cpus=2) as guest:
        guest.qmp("set-action", reboot="reset")
        for boot, again in enumerate(("", "by itself", "by reset"), 1):
            if again == "by itself":
                guest.send("run reboot -f")
            elif again == "by reset":
                guest.qmp("system_reset")
            (doorbells,) = guest.ready()
            assert (doorbells.id, doorbells.vectors) == (0, 4)
            assert guest.run("ls /sys/block/vda/mq").split() == ["0", "1"]
            assert guest.run("cat /sys/block/vda/serial") == "disk"
            for device in ("disk", "entropy"):
                assert property_of(bus, device, "State") == "running"
                assert property_of(bus, device, "FrontendVmName") == "all"
                assert property_of(bus, device, "FrontendPid") == guest.pid

            halves = enumerate((content[:HALF], content[HALF:]))
            works = [disk_work(half, "/dev/vda", seed=10 * boot + n, start=n * HALF) for n, half in halves]
            begin(guest, works)
            guest.command(f"echo {HOST}")
            for vector in range(4):
                bus.call("/region/demo", "Region", "Notify", "qq", 0, vector)
                assert guest.wait_irq(vector) == 1
                drawn.add(guest.run("dd if=/dev/hwrng bs=64 count=1 status=none | sha256sum"))
            until_rung(bus, boot)
            assert guest.run("cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0"
            finish(guest, works)
            content = b"".join(work.content for work in works)
            assert (daemon.directory / "disk").read_bytes() == content
        assert len(drawn) == 3 * 4
        assert [requests(bus, "disk", queue) > 50 for queue in range(3)] == [True, True, False]
        assert [property_of(bus, device, "Errors") for device in ("disk", "entropy")] == [0, 0]
        guest.quit()
    until(lambda: property_of(bus, "entropy", "State") == property_of(bus, "disk", "State") == "listening")


def test_memory_and_devices_are_plugged_in_and_out_under_load(
    daemon: Daemon, bus: Busctl, image: Image, qemu: Qemu
) -> None:
    args = [word for port in range(3) for word in ("-device", f"pcie-root-port,id=port{port},chassis={port + 1}")]
    args += connections(daemon, "disk", "spare", "entropy")
    args += ["-device", "vhost-user-blk-pci,chardev=disk,num-queues=2,bus=port0,id=first"]
    args += ["-device", "vhost-user-blk-pci,chardev=spare,num-queues=2,bus=port1,id=other"]
    args += ["-device", "vhost-user-rng-pci,chardev=entropy"]
    online = "memhp_default_state=online_movable"
    with Guest(image, qemu=qemu, name="plug", args=args, append=online, shared=True, slots=1, cpus=2) as guest:
        guest.ready()
        assert guest.run("cat /sys/block/vda/serial /sys/block/vdb/serial") == "diskspare"
        load = "while dd if=/dev/vda of=/dev/null bs=64k iflag=direct status=none; do :; done"
        guest.run(f"(taskset 1 sh -c '{load}'; touch /ended) > /dev/null 2>&1 &")
        until_busy(bus, "disk")

        before = memory(bus, "disk")
        guest.qmp("object-add", qom_type="memory-backend-memfd", id="more", size=DIMM, share=True)
        guest.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more")
        for device in ("disk", "spare", "entropy"):
            assert memory(bus, device) == {**before, HIGH: DIMM}
        block = HIGH // int(guest.run("cat /sys/devices/system/memory/block_size_bytes"), 16)
        state = f"/sys/devices/system/memory/memory{block}/state"
        guest.run(f"until grep -x online {state}; do usleep 10000; done")
        assert int(guest.run(f"disk copy /dev/vda /dev/vdb {HALF} {HIGH}")) > 0
        assert (daemon.directory / "spare").read_bytes() == CONTENT[:HALF] + OTHER[HALF:]

        guest.qmp("device_del", id="dimm")
        guest.qmp.await_event("DEVICE_DELETED", device="dimm")
        for device in ("disk", "spare", "entropy"):
            assert memory(bus, device) == before
        assert guest.run("ls /ended 2>/dev/null || echo goes on") == "goes on"

        guest.qmp("device_del", id="first")
        guest.qmp.await_event("DEVICE_DELETED", device="first")
        guest.run("until [ -e /ended ] && [ ! -e /dev/vda ]; do usleep 10000; done")
        guest.qmp("chardev-remove", id="disk")
        until(lambda: property_of(bus, "disk", "State") == "listening")
        assert property_of(bus, "disk", "Reason") == "it closed its connection"
        address = {"type": "unix", "data": {"path": str(daemon.socket("disk"))}}
        guest.qmp("chardev-add", id="again", backend={"type": "socket", "data": {"addr": address, "server": False}})
        guest.qmp("device_add", driver="vhost-user-blk-pci", chardev="again", num_queues=2, bus="port2", id="second")
        guest.run("until [ -e /dev/vda ]; do usleep 10000; done")
        assert guest.run("cat /sys/block/vda/serial") == "disk"
        work = disk_work(CONTENT, "/dev/vda", seed=40)
        assert guest.run(f"set -e\n{work.script}").splitlines() == work.said
        assert (daemon.directory / "disk").read_bytes() == work.content
        assert guest.run("dd if=/dev/hwrng bs=64 count=1 status=none | wc -c") == "64"

        os.truncate(daemon.directory / "disk", 3 * HALF)
        bus.call("/device/disk", "Device", "Refresh")
        guest.run(f"until [ $(cat /sys/block/vda/size) = {3 * HALF // 512} ]; do usleep 10000; done")
        guest.quit()
    assert [property_of(bus, device, "Errors") for device in ("disk", "spare", "entropy")] == [0, 0, 0]


def test_a_disk_comes_back_with_its_daemon_and_outlives_a_guest(
    daemon: Daemon, bus: Busctl, image: Image, qemu: Qemu
) -> None:
    devices = ["-device", "vhost-user-blk-pci,chardev=disk,num-queues=1"]
    content = CONTENT
    args = [*connections(daemon, "disk", more=",reconnect=1"), *devices]
    with Guest(image, qemu=qemu, name="stays", args=args, shared=True) as guest:
        guest.ready()
        for seed, how in enumerate(("disconnect", "restart"), 50):
            work = disk_work(content, "/dev/vda", seed=seed, steps=80)
            since = property_of(bus, "disk", "FrontendSince")
            begin(guest, [work])
            until_busy(bus, "disk")
            if how == "disconnect":
                bus.call("/device/disk", "Device", "Disconnect")
            else:
                assert daemon.stop() == 0
            assert "status" not in guest.run("cat /said0")
            if how == "restart":
                daemon.start()
            finish(guest, [work])
            assert property_of(bus, "disk", "FrontendSince") != since
            content = work.content
            assert (daemon.directory / "disk").read_bytes() == content

        guest.run("(while dd if=/dev/vda of=/dev/null bs=64k iflag=direct status=none; do :; done) > /dev/null 2>&1 &")
        until_busy(bus, "disk")
        guest.kill()
    with Guest(image, qemu=qemu, name="next", args=[*connections(daemon, "disk"), *devices], shared=True) as guest:
        guest.ready()
        assert property_of(bus, "disk", "FrontendVmName") == "next"
        again = disk_work(content, "/dev/vda", seed=60)
        assert guest.run(f"set -e\n{again.script}").splitlines() == again.said
        guest.quit()
    assert (daemon.directory / "disk").read_bytes() == again.content
    assert property_of(bus, "disk", "Errors") == 0
