# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU can be told to do and our devices lack: packed rings, an IOMMU, migration. It is dropped, or refused."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.busctl import Busctl
from support.daemon import Daemon
from support.dbusclient import until
from support.diskwork import disk_work
from support.guest.image import build_image
from support.guest.initramfs import AGENT, DISK
from support.guest.qemu import QEMU_10, IdleQemu, Qemu, quoted
from support.guest.qmp import QmpError
from support.guest.vm import Guest

CONTENT = random.Random(9).randbytes(4 << 20)
PACKED = 34
CONFIG = """\
[region.demo]
[device.disk]
type = "blk"
path = "{folder}/disk"
[device.entropy]
type = "rng"
"""
SHARED = ["-object", "memory-backend-memfd,id=memory,size=32M,share=on", "-machine", "memory-backend=memory"]


def device(daemon: Daemon, name: str, driver: str, more: str) -> list[str]:
    chardev = f"socket,id={name},path={quoted(daemon.socket(name))}"
    return ["-chardev", chardev, "-device", f"{driver},chardev={name},{more}"]


@dataclass(frozen=True)
class Stage:
    """A guest whose disk and entropy are to have packed rings, and who else is there."""

    daemon: Daemon
    qemu: Qemu
    guest: Guest


@pytest.fixture(scope="module")
def stage(qemu: Qemu) -> Iterator[Stage]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="db")))
        (folder / "disk").write_bytes(CONTENT)
        daemon = stack.enter_context(Daemon(folder, CONFIG.format(folder=folder)))
        args = device(daemon, "disk", "vhost-user-blk-pci", "packed=on")
        args += device(daemon, "entropy", "vhost-user-rng-pci", "packed=on")
        modules = ("vfio_iommu_type1", "vfio-pci", "virtio_pci", "virtio_blk", "virtio-rng")
        image = build_image(modules=modules, programs=(AGENT, DISK))
        ivshmem = [(daemon.socket("demo"), 4)]
        guest = stack.enter_context(Guest(image, qemu=qemu, ivshmem=ivshmem, args=args, shared=True))
        guest.ready()
        yield Stage(daemon, qemu, guest)


def packed(guest: Guest, virtio_id: int) -> bool:
    """Tell whether the guest's driver uses packed rings of a device."""
    found = guest.run(f"cat $(dirname $(grep -l 0x{virtio_id:04x} /sys/bus/virtio/devices/*/device))/features")
    return found[PACKED] == "1"


def test_packed_on_is_dropped_and_the_disk_works(stage: Stage) -> None:
    assert not packed(stage.guest, 2)
    names = Busctl(stage.daemon.bus).get("/device/disk", "Device", "AckedFeatureNames")
    assert "VIRTIO_F_VERSION_1" in names and "VIRTIO_F_RING_PACKED" not in names
    work = disk_work(CONTENT, "/dev/vda", seed=70, steps=20)
    assert stage.guest.run(f"set -e\n{work.script}").splitlines() == work.said
    assert (stage.daemon.directory / "disk").read_bytes() == work.content


def test_packed_on_is_dropped_for_entropy_or_the_log_says_why_it_fails(stage: Stage) -> None:
    """QEMU 7.2's vhost-user-rng gives the guest packed rings though the back-end does not offer them."""
    if packed(stage.guest, 4):
        assert stage.qemu is not QEMU_10
        reason = "VIRTIO_F_RING_PACKED was accepted and is not offered: leave packed=on out of QEMU's arguments"
        until(lambda: reason in stage.daemon.log)
    else:
        assert stage.guest.run("dd if=/dev/hwrng bs=64 count=1 status=none | wc -c") == "64"


def test_migration_is_refused_with_the_reasons_and_the_guest_goes_on(stage: Stage) -> None:
    with pytest.raises(QmpError, match=r"non-migratable device|VHOST_USER_PROTOCOL_F_LOG_SHMFD|peer mode"):
        stage.guest.qmp("migrate", uri="exec:cat > /dev/null")
    reasons = "\n".join(stage.guest.qmp("query-migrate")["blocked-reasons"])
    assert "vhost-user backend lacks VHOST_USER_PROTOCOL_F_LOG_SHMFD" in reasons
    assert "'peer mode' in device 'ivshmem'" in reasons
    assert stage.guest.qmp("query-status")["status"] == "running"
    assert stage.guest.run("dd if=/dev/vda bs=4096 count=1 iflag=direct status=none | wc -c") == "4096"


def test_an_iommu_is_refused_at_the_start(qemu: Qemu, short_path: Path) -> None:
    """By QEMU: it is told that the back-end does not offer it."""
    (short_path / "disk").write_bytes(CONTENT)
    drivers = {"disk": "vhost-user-blk-pci"}
    if qemu is QEMU_10:
        drivers["entropy"] = "vhost-user-rng-pci"
    with Daemon(short_path, CONFIG.format(folder=short_path)) as daemon:
        for name, driver in drivers.items():
            args = [*SHARED, *device(daemon, name, driver, "iommu_platform=on")]
            with IdleQemu(qemu, short_path / "output", args=args) as idle:
                assert idle.process.wait(10) == 1
            assert "iommu_platform=true is not supported by the device" in idle.output.read_text()
            bus = Busctl(daemon.bus)
            until(lambda name=name, bus=bus: bus.get(f"/device/{name}", "Device", "State") == "listening")
