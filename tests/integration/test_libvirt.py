# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains of libvirt made of what ``doorbellctl libvirt-xml`` prints: they start, work, and take devices meanwhile."""

from __future__ import annotations

import random
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.busctl import Busctl
from support.daemon import BIN, Daemon
from support.dbusclient import until
from support.diskwork import disk_work
from support.guest.image import VFIO_MODULES, Image, build_image
from support.guest.initramfs import AGENT, DISK
from support.libvirt import Domain, Libvirt, VirshError

HOST = 65535
CONTENT = random.Random(11).randbytes(4 << 20)
CONFIG = """\
[region.demo]
group = "nogroup"
mode = "0660"
[[region.demo.peer]]
match = {{ vm = "lv*", uid = "nobody" }}
id = 7
[region.spare]
group = "nogroup"
mode = "0660"
[region.closed]
group = "nogroup"
mode = "0660"
[[region.closed.peer]]
match = {{ vm = "somebody else" }}
[device.disk]
type = "blk"
path = "{folder}/disk"
serial = "disk"
group = "nogroup"
mode = "0660"
[device.entropy]
type = "rng"
group = "nogroup"
mode = "0660"
[device.more]
type = "rng"
group = "nogroup"
mode = "0660"
"""


class Site:
    """A daemon and a libvirt."""

    def __init__(self, folder: Path, daemon: Daemon, libvirt: Libvirt, image: Image) -> None:
        self.folder, self.daemon, self.libvirt, self.image = folder, daemon, libvirt, image
        self.bus = Busctl(daemon.bus)

    def xml(self, name: str) -> str:
        """Have the XML of a region or a device printed."""
        command = [BIN / "doorbellctl", "--bus", self.daemon.bus, "libvirt-xml", name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def peers(self, region: str) -> list[tuple[int, int, str]]:
        """Who is in a region: ID, pid, VM."""
        return [(peer[0], peer[1], peer[4]) for peer in self.bus.call("", "Manager", "ListPeers", "s", region)[0]]

    def front_end(self, device: str) -> str:
        """Which VM has a device."""
        return str(self.bus.get(f"/device/{device}", "Device", "FrontendVmName"))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="db")))
        folder.chmod(0o755)
        (folder / "disk").write_bytes(CONTENT)
        daemon = stack.enter_context(Daemon(folder, CONFIG.format(folder=folder)))
        libvirt = stack.enter_context(Libvirt(folder / "lv"))
        modules = (*VFIO_MODULES, "virtio_pci", "virtio_blk", "virtio-rng")
        yield Site(folder, daemon, libvirt, build_image(modules=modules, programs=(AGENT, DISK)))


@pytest.fixture(scope="module")
def domain(site: Site) -> Iterator[Domain]:
    devices = [site.xml("demo"), site.xml("disk")]
    beside = [site.xml("entropy"), site.xml("more")]
    with Domain(site.libvirt, site.image, name="lv1", devices=devices, beside=beside) as made:
        yield made


def test_a_machine_of_another_kind_starts_with_what_is_printed(site: Site) -> None:
    """Its PCI bus is filled in another way. It has no IOMMU, so the agent in the guest does not get far."""
    devices = [site.xml("spare"), site.xml("disk")]
    beside = [site.xml("entropy"), site.xml("more")]
    with Domain(site.libvirt, site.image, name="old", machine="pc", devices=devices, beside=beside) as domain:
        assert site.peers("spare") == [(0, domain.pid, "old")]
        assert [site.front_end(name) for name in ("disk", "entropy", "more")] == ["old"] * 3
    until(lambda: site.peers("spare") == [])


def test_a_domain_of_what_is_printed_starts_and_works(site: Site, domain: Domain) -> None:
    (device,) = domain.ready()
    assert (device.id, device.vectors) == (7, 4)
    assert site.peers("demo") == [(7, domain.pid, "lv1")]
    domain.command(f"echo {HOST}")
    site.bus.call("/region/demo", "Region", "Notify", "qq", 7, 2)
    assert domain.wait_irq(2) == 1
    until(lambda: site.bus.get("/region/demo", "Region", "HostRings") == [0, 0, 1, 0])

    assert [site.front_end(name) for name in ("disk", "entropy", "more")] == ["lv1"] * 3
    work = disk_work(CONTENT, "/dev/vda", seed=80, steps=20)
    assert domain.run(f"set -e\n{work.script}").splitlines() == work.said
    assert (site.folder / "disk").read_bytes() == work.content
    assert domain.run("cat /sys/class/misc/hw_random/rng_available").split() == ["virtio_rng.0", "virtio_rng.1"]
    for name in ("virtio_rng.0", "virtio_rng.1"):
        domain.run(f"echo {name} > /sys/class/misc/hw_random/rng_current")
        assert domain.run("dd if=/dev/hwrng bs=64 count=1 status=none | wc -c") == "64"


def test_a_disk_is_detached_and_attached(site: Site, domain: Domain) -> None:
    domain.detach(site.xml("disk"))
    until(lambda: site.front_end("disk") == "")
    domain.run("until [ ! -e /dev/vda ]; do usleep 10000; done")
    domain.attach(site.xml("disk"))
    domain.run("until [ -e /dev/vda ]; do usleep 10000; done")
    assert domain.run("cat /sys/block/vda/serial") == "disk"
    assert domain.run("dd if=/dev/vda bs=4096 count=1 iflag=direct status=none | wc -c") == "4096"
    assert site.front_end("disk") == "lv1"


def test_a_region_is_attached_and_detached(site: Site, domain: Domain) -> None:
    count = "grep -l 0x1110 /sys/bus/pci/devices/*/device | wc -l"
    domain.attach(site.xml("spare"))
    until(lambda: site.peers("spare") == [(0, domain.pid, "lv1")])
    domain.run(f"until [ $({count}) = 2 ]; do usleep 10000; done")
    domain.detach(site.xml("spare"))
    until(lambda: site.peers("spare") == [])
    domain.run(f"until [ $({count}) = 1 ]; do usleep 10000; done")


def test_a_region_that_is_closed_to_a_domain_is_not_attached_and_the_guest_goes_on(site: Site, domain: Domain) -> None:
    with pytest.raises(VirshError, match="server sent version"):
        domain.attach(site.xml("closed"))
    assert site.peers("closed") == []
    site.bus.call("/region/demo", "Region", "Notify", "qq", 7, 3)
    assert domain.wait_irq(3) == 1
