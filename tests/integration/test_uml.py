# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's own virtio drivers, in User-Mode Linux, against our devices."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doorbelld.devices.blk import Blk
from doorbelld.ring.chain import Chain
from doorbelld.ring.queue import VirtQueue
from doorbelld.vhost.backend import Backend
from doorbelld.vhost.device import Device
from doorbelld.vhost.events import RequestRefused, State
from doorbelld.wire.vhost_messages import ProtocolFeature
from support.devicesite import DeviceSite, device_site
from support.diskwork import disk_work
from support.guest.talk import CommandError
from support.uml import Uml

CONTENT = random.Random(4).randbytes(8 << 20)

TALK = """\
set -e
exec 3<>/dev/hvc0
stty raw -echo <&3
for word in one two three; do
    echo $word >&3
    read -r answer <&3
    echo "answer: $answer"
done
"""


class Console(Device):
    """A console (VIRTIO 1.2, 5.3) that answers in upper case: what one queue brings, the other takes back."""

    name = "console"
    id = 3
    queues_max = queues = 2
    config = bytes(12)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.room: list[tuple[VirtQueue, Chain]] = []

    def handle(self, queue: VirtQueue, chain: Chain) -> None:
        if queue.index == 0:  # receiveq: kept until there is something to say
            self.room.append((queue, chain))
            return
        data = chain.read()
        queue.push(chain, 0)
        receiving, room = self.room.pop(0)
        room.write(data.upper())
        receiving.push(room)
        receiving.notify()

    def reset(self) -> None:
        self.room.clear()


class InbandConsole(Console):
    protocol_features = ProtocolFeature.INBAND_NOTIFICATIONS


class InbandBlk(Blk):
    protocol_features = ProtocolFeature.INBAND_NOTIFICATIONS


@pytest.fixture
def site() -> Iterator[DeviceSite]:
    with device_site() as made:
        yield made


def console(*backends: Backend) -> Uml:
    return Uml([(backend.spec.socket, Console.id) for backend in backends], ["virtio_console"])


def disk(site: DeviceSite, kind: type[Device] | str = "blk", **options: Any) -> tuple[Backend, Path, Uml]:
    """Make a disk, its image, and a machine that has it as /dev/vda."""
    image = Path(site.folder) / "image"
    image.write_bytes(CONTENT)
    backend = site.open(kind, path=str(image), **options)
    return backend, image, Uml([(backend.spec.socket, Blk.id)], ["virtio_blk"])


@pytest.mark.parametrize("kind", [Console, InbandConsole])
def test_a_driver_and_a_device_in_python(site: DeviceSite, kind: type[Device]) -> None:
    backend = site.open(kind)
    for _ in range(2):  # the device goes on listening
        with console(backend) as linux:
            linux.ready()
            assert linux.run(TALK).splitlines() == ["answer: ONE", "answer: TWO", "answer: THREE"]
            linux.quit()
        site.wait_state(backend, State.LISTENING)
    assert backend.reason == "it closed its connection"
    assert site.of(RequestRefused) == []
    inband = kind is InbandConsole
    assert (backend.queue(1).kicks > 0, backend.queue(1).calls > 0) == (True, True)
    assert inband == bool(backend.offered_protocol_features & ProtocolFeature.INBAND_NOTIFICATIONS)


def test_two_devices_in_one_machine(site: DeviceSite) -> None:
    consoles = [site.open(Console) for _ in range(2)]
    with console(*consoles) as linux:
        linux.ready()
        for number in range(2):
            assert "answer: TWO" in linux.run(TALK.replace("hvc0", f"hvc{number}"))
    assert [backend.queue(1).errors for backend in consoles] == [0, 0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("blk", {}, id="buffered"),
        pytest.param("blk", {"cache": "direct"}, id="direct"),
        pytest.param("blk", {"aio": "threads"}, id="threads"),
        pytest.param(InbandBlk, {"queues": 1}, id="in band"),
    ],
)
def test_what_linux_does_to_a_disk(site: DeviceSite, kind: type[Device] | str, options: dict[str, Any]) -> None:
    backend, image, machine = disk(site, kind, **options)
    work = disk_work(CONTENT, "/dev/vda", seed=1)
    with machine as linux:
        linux.ready()
        assert linux.run(f"set -e\n{work.script}").splitlines() == work.said
        *_, flushes, _ = map(int, linux.run("cat /sys/block/vda/stat").split())
        assert flushes > 0
        inband = backend.accepted_protocol_features & ProtocolFeature.INBAND_NOTIFICATIONS
        assert bool(inband) == (kind is InbandBlk)
        linux.run("disk discard /dev/vda 1048576 4194304")
        linux.quit()
    content = bytearray(work.content)
    content[1 << 20 : 5 << 20] = bytes(4 << 20)
    assert image.read_bytes() == content
    with image.open("rb") as file:
        assert os.lseek(file.fileno(), 1 << 20, os.SEEK_HOLE) == 1 << 20
    queue = backend.queue(0)
    assert (queue.errors, queue.in_flight) == (0, 0)
    assert queue.requests > 100 and queue.bytes > len(CONTENT)
    assert site.of(RequestRefused) == []


def test_a_file_system_lives_on_a_disk(site: DeviceSite) -> None:
    _, image, machine = disk(site)
    with machine as linux:
        linux.ready()
        linux.run("set -e; mkdir /mnt; mke2fs -F /dev/vda; mount -t ext4 /dev/vda /mnt")
        linux.run("for i in 1 2 3; do cp /bin/busybox /mnt/$i; done; rm /mnt/2; umount /mnt")
        linux.run("mount -t ext4 -o ro /dev/vda /mnt; cmp /bin/busybox /mnt/1; cmp /bin/busybox /mnt/3; umount /mnt")
        linux.quit()
    assert image.read_bytes()[0x438:0x43A] == b"\x53\xef"  # the magic number of a superblock


def test_what_linux_sees_of_a_disk(site: DeviceSite) -> None:
    backend, image, machine = disk(site, serial="serial-0123456789abc", queues=4)
    with machine as linux:
        linux.ready()
        linux.run("ln -s /sys/block/vda disk")
        assert linux.run("cat disk/serial") == "serial-0123456789abc"
        assert backend.queue_count == 4
        assert linux.run("ls disk/mq") == "0"  # one for each processor, and this machine has one
        assert linux.run("cat disk/size disk/ro disk/queue/max_segments").split() == ["16384", "0", "126"]
        assert linux.run("cat disk/cache_type") == "write back"
        linux.run('echo "write through" > disk/cache_type')
        device = backend.device
        assert isinstance(device, Blk) and device.disk.writethrough

        os.truncate(image, 12 << 20)
        site.call(backend.refresh)
        linux.run("until [ $(cat disk/size) = 24576 ]; do usleep 10000; done")
        linux.run("dd if=/dev/vda of=/dev/vda bs=1M count=2 seek=10 conv=notrunc,fsync")
        assert image.read_bytes() == CONTENT + bytes(2 << 20) + CONTENT[: 2 << 20]
        linux.quit()
    assert site.of(RequestRefused) == []


def test_linux_cannot_write_to_a_disk_that_is_read_only(site: DeviceSite) -> None:
    backend, image, machine = disk(site, "blk", **{"read-only": True})
    with machine as linux:
        linux.ready()
        assert linux.run("cat /sys/block/vda/ro") == "1"
        for write in (
            "dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync",
            "disk discard /dev/vda 0 4096",
            "disk zero /dev/vda 0 4096",
            "blockdev --setrw /dev/vda; disk zero /dev/vda 0 4096",
        ):
            with pytest.raises(CommandError):
                linux.run(write)
        assert linux.run("cmp /dev/vda /dev/vda && echo same") == "same"
        linux.quit()
    assert image.read_bytes() == CONTENT
    assert backend.queue(0).requests > 0
