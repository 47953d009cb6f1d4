# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import shlex
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from doorbelld.ctl import paste_devices
from doorbelld.ctl.paste import NotPossible

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


def device(virtio_id: int = 2, queues: int = 4, **more: Any) -> dict[str, Any]:
    """Describe a device as the daemon does, with its configuration space."""
    known = {"type": "any", "virtio-id": virtio_id, "socket": "/run/doorbelld/d/socket", "connect": False}
    rights = {"owner": "", "group": "kvm", "mode": "0660"}
    return {**known, **rights, "queues": [{}] * queues, "config-space": "00" * 60, **more}


def test_a_disk_has_all_queues_and_comes_back() -> None:
    made = paste_devices.qemu("d", device())
    assert made.arguments == [
        "-chardev",
        "socket,path=/run/doorbelld/d/socket,id=vud,reconnect=1",
        "-device",
        "vhost-user-blk-pci,chardev=vud,num-queues=4,queue-size=1024",
    ]
    assert "reconnect-ms=1000" in made.notes[0]
    assert shlex.split(str(made).replace("\\\n", "")) == made.arguments


def test_a_random_number_generator_has_one_queue_and_does_not() -> None:
    made = paste_devices.qemu("e", device(4, 1))
    assert made.arguments[1:] == [
        "socket,path=/run/doorbelld/d/socket,id=vue",
        "-device",
        "vhost-user-rng-pci,chardev=vue",
    ]
    assert "does not connect to such a device again" in made.notes[0]
    with pytest.raises(NotPossible, match="leave --queues out"):
        paste_devices.qemu("e", device(4, 1), 1)


@pytest.mark.parametrize(
    ("virtio_id", "queues", "said"),
    [
        (1, 2, "-netdev vhost-user,id=vudn,chardev=vud,queues=1 -device virtio-net-pci,netdev=vudn"),
        (1, 5, "-netdev vhost-user,id=vudn,chardev=vud,queues=2 -device virtio-net-pci,netdev=vudn,mq=on,vectors=6"),
        (8, 6, "-device vhost-user-scsi-pci,chardev=vud,num_queues=4"),
        (18, 2, "-device vhost-user-input-pci,chardev=vud"),
        (19, 3, "-device vhost-user-vsock-pci,chardev=vud"),
        (26, 3, "-device vhost-user-fs-pci,chardev=vud,tag=d,num-request-queues=2"),
        (34, 1, "-device vhost-user-i2c-pci,chardev=vud"),
        (41, 2, "-device vhost-user-gpio-pci,chardev=vud"),
        (63, 2, "-device vhost-user-test-device-pci,chardev=vud,virtio-id=63,num_vqs=2,config_size=60,vq_size=1024"),
    ],
)
def test_other_devices(virtio_id: int, queues: int, said: str) -> None:
    assert shlex.join(paste_devices.qemu("d", device(virtio_id, queues)).arguments).endswith(said)


def test_what_qemu_has_no_front_end_for_comes_with_what_does() -> None:
    notes = " ".join(paste_devices.qemu("d", device(63)).notes)
    assert "10.2 and later" in notes
    assert "virtio_uml.device=/run/doorbelld/d/socket:63" in notes


def test_queues_and_their_size() -> None:
    assert "num-queues=2" in str(paste_devices.qemu("d", device(), 2))
    with pytest.raises(NotPossible, match=r"has 4 queues.*refuses to start with 5; use 4 or less"):
        paste_devices.qemu("d", device(), 5)
    assert ",queue-size=64" in str(paste_devices.qemu("d", device(**{"queue-size": 64})))
    assert ",queue-size=1024" in str(paste_devices.qemu("d", device(**{"queue-size": 4096})))
    assert ",vq_size=64" in str(paste_devices.qemu("d", device(63, **{"queue-size": 64})))
    assert "queue_size='64'" in paste_devices.libvirt("d", device(**{"queue-size": 64}))[0]


@pytest.mark.parametrize("virtio_id", [1, 2, 4])
def test_a_queue_size_below_that_of_qemu_10_is_noted(virtio_id: int) -> None:
    for size, noted in ((512, 1), (1024, 0), (4096, 0)):
        small = device(virtio_id, **{"queue-size": size})
        for notes in (paste_devices.qemu("d", small).notes, paste_devices.libvirt("d", small)[1]):
            assert sum("leave queue-size out" in note for note in notes) == noted
    assert not any("queue-size" in note for note in paste_devices.qemu("d", device(virtio_id)).notes)


def test_a_front_end_that_listens() -> None:
    made = paste_devices.qemu("d", device(connect=True))
    assert made.arguments[1] == "socket,path=/run/doorbelld/d/socket,id=vud,server=on,wait=on"
    assert "doorbelld connects to it" in made.notes[0]


def test_commas_are_doubled_and_ids_begin_with_a_letter() -> None:
    assert "path=/run/a,,b,id=vu7.a-b" in str(paste_devices.qemu("7.a-b", device(socket="/run/a,b")))


def test_memory_is_shared_and_the_machines() -> None:
    assert paste_devices.memory_arguments(3 << 29) == [
        "-object",
        "memory-backend-memfd,id=vumem,size=1536M,share=on",
        "-machine",
        "memory-backend=vumem",
    ]


# libvirt


def test_libvirt_has_an_element_for_disks() -> None:
    xml, notes = paste_devices.libvirt("d", device(socket="/run/<a>&'b\"/s"), 3)
    disk = ET.fromstring(xml)
    assert (disk.tag, disk.attrib) == ("disk", {"type": "vhostuser", "device": "disk"})
    assert {child.tag: child.attrib for child in disk} == {
        "driver": {"name": "qemu", "type": "raw", "queues": "3", "queue_size": "1024"},
        "source": {"type": "unix", "path": "/run/<a>&'b\"/s"},
        "target": {"dev": "vda", "bus": "virtio"},
    }
    assert disk.find("source/reconnect") is not None
    assert "<access mode='shared'/>" in notes[0]
    assert "the daemon's user and kvm, mode 0660" in notes[1]
    with pytest.raises(NotPossible, match="can't have a disk do that; make the device without connect"):
        paste_devices.libvirt("d", device(connect=True))


@pytest.mark.parametrize(("connect", "mode", "again"), [(False, "client", 1), (True, "server", 0)])
def test_libvirt_has_an_element_for_network_cards(connect: bool, mode: str, again: int) -> None:
    xml, notes = paste_devices.libvirt("n", device(1, 4, connect=connect))
    card = ET.fromstring(xml)
    source, driver = card.find("source"), card.find("driver")
    assert source is not None and driver is not None
    assert (card.get("type"), source.get("mode"), len(source), driver.get("queues")) == ("vhostuser", mode, again, "2")
    assert len(notes) == 2 - connect


def test_other_devices_go_past_libvirt() -> None:
    xml, notes = paste_devices.libvirt("e", device(4, 1, type="rng", socket="/run/<x>/s"))
    commandline = ET.fromstring(xml)
    assert commandline.tag == f"{QEMU}commandline"
    assert [argument.get("value") for argument in commandline.findall(f"{QEMU}arg")] == [
        "-chardev",
        "socket,path=/run/<x>/s,id=vue",
        "-device",
        "vhost-user-rng-pci,chardev=vue,addr=0x19",
    ]
    assert "PCI slot 0x19" in notes[1] and "--slot" in notes[1]
    assert "chardev=vue,addr=0x3" in paste_devices.libvirt("e", device(4, 1, type="rng"), slot=3)[0]
    assert "no element for a vhost-user device of type rng" in notes[0]
    assert any("AppArmor" in note for note in notes)


def test_devices_that_go_past_libvirt_have_slots_of_their_own() -> None:
    devices = {"a": device(4), "b": device(2), "c": device(63), "d": device(1), "e": device(4)}
    assert [paste_devices.slot_of(name, devices) for name in "ace"] == [0x19, 0x18, 0x17]
    many = {f"e{number:02}": device(4) for number in range(11)}
    assert [paste_devices.slot_of(name, many) for name in many] == [*range(0x19, 0xF, -1), 0x19]
