# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import shlex
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from doorbelld.ctl import paste
from doorbelld.ivshmem.spec import RegionSpec
from doorbelld.options import parse


def region(**options: Any) -> dict[str, Any]:
    """Give a region's description as the daemon does."""
    options.setdefault("socket", "/run/doorbelld/demo/socket")
    spec = parse(
        RegionSpec, {key.replace("_", "-"): value for key, value in options.items()}, "region.demo", name="demo"
    )
    return {**spec.as_options(), "peers": []}


def test_doorbell_arguments() -> None:
    made = paste.qemu("demo", region(vectors=8))
    assert made.arguments == [
        "-chardev",
        "socket,path=/run/doorbelld/demo/socket,id=ivdemo",
        "-device",
        "ivshmem-doorbell,chardev=ivdemo,vectors=8",
    ]
    assert made.arguments == paste.qemu_arguments("demo", "/run/doorbelld/demo/socket", 8)
    assert made.notes == []
    assert shlex.split(str(made).replace("\\\n", "")) == made.arguments


RULES = [
    {"match": {"vm": "guest1"}, "id": 7},
    {"match": {"vm": "lab-*"}},
    {"match": {"uid": 1000}, "id": 3},
]


def test_region_with_rules_by_vm_name_gives_the_name_and_says_which_ids() -> None:
    described = {**region(), "rules": RULES}
    made = paste.qemu("demo", described)
    assert made.arguments[:2] == ["-name", "guest=guest1"]
    assert made.arguments[2:] == paste.qemu("demo", region()).arguments
    (note,) = made.notes
    assert "guest1 gets ID 7; lab-* gets the ID that is free" in note and "1000" not in note
    whole = paste.command_line(made, "doorbell").arguments
    assert [whole[at + 1] for at, word in enumerate(whole) if word == "-name"] == ["guest=guest1"]


def test_region_with_other_rules_gives_no_name() -> None:
    assert paste.qemu("demo", {**region(), "rules": RULES[2:]}).arguments[0] == "-chardev"
    assert paste.qemu("demo", {**region(), "rules": RULES[1:]}).arguments[1] == "guest=lab-1"


def test_no_device_ever_gets_reconnect() -> None:
    for device in paste.DEVICES:
        made = paste.qemu("demo", region(backing="shm:demo"), device)
        assert "reconnect" not in str(paste.command_line(made, device))


def test_commas_are_doubled() -> None:
    known = region(socket="/run/a,b/socket", backing="file:/mnt/x,y")
    assert "path=/run/a,,b/socket,id=" in str(paste.qemu("demo", known))
    assert "mem-path=/mnt/x,,y,size=" in str(paste.qemu("demo", known, "plain"))
    assert "x-irq-qompath=/a,,b,x-bus" in str(paste.qemu("demo", known, "flat", irq="/a,b"))


def test_an_id_begins_with_a_letter_whatever_the_region_is_called() -> None:
    assert "id=iv7.a-b_c" in str(paste.qemu("7.a-b_c", region()))


def test_whole_command_line() -> None:
    whole = paste.command_line(paste.qemu("demo", region()), "doorbell")
    words = whole.arguments
    assert words[0] == "qemu-system-x86_64"
    assert words[words.index("-M") + 1] == "q35"
    assert words[words.index("-accel") + 1] == "kvm"
    assert words[words.index("-name") + 1] == "guest=guest1"
    assert "ivshmem-doorbell,chardev=ivdemo,vectors=4" in words
    assert paste.command_line(paste.qemu("demo", region(), "flat"), "flat").arguments[0] == "qemu-system-arm"


@pytest.mark.parametrize(
    ("vectors", "words"), [(2, "rings of vector 2 and up never reach"), (8, "connected to nothing")]
)
def test_a_device_with_other_vectors_comes_with_a_note(vectors: int, words: str) -> None:
    made = paste.qemu("demo", region(), vectors=vectors)
    assert f"vectors={vectors}" in str(made)
    assert words in made.notes[0]
    assert any(words in note for note in paste.libvirt("demo", region(), vectors=vectors)[1])


@pytest.mark.parametrize("device", paste.DEVICES)
def test_a_size_on_which_qemu_aborts_is_refused(device: str) -> None:
    known = {**region(backing="shm:x"), "size": 3 << 20}
    with pytest.raises(paste.NotPossible, match=r"3M is not a power of two, and QEMU aborts on it; .* size 4M"):
        paste.qemu("demo", known, device)
    if device in paste.LIBVIRT_DEVICES:
        with pytest.raises(paste.NotPossible, match="power of two"):
            paste.libvirt("demo", known, device)


@pytest.mark.parametrize("backing", ["memfd", "hugetlb"])
def test_plain_needs_memory_with_a_name(backing: str) -> None:
    known = {**region(), "backing": backing}
    for write in (paste.qemu, paste.libvirt):
        with pytest.raises(paste.NotPossible, match=r"has no name.*backing shm:NAME"):
            write("demo", known, "plain")


def test_plain_arguments() -> None:
    made = paste.qemu("demo", region(backing="shm:mem", size="2M"), "plain")
    assert made.arguments == [
        "-object",
        "memory-backend-file,id=ivdemo,share=on,mem-path=/dev/shm/mem,size=2097152",
        "-device",
        "ivshmem-plain,memdev=ivdemo",
    ]
    assert "is no peer" in made.notes[0]


def test_flat_as_released_is_set_up_by_globals_with_the_exact_size() -> None:
    made = paste.qemu("demo", region(size="1M"), "flat")
    assert made.arguments == [
        "-chardev",
        "socket,path=/run/doorbelld/demo/socket,id=ivdemo",
        "-global",
        "driver=ivshmem-flat,property=chardev,value=ivdemo",
        "-global",
        "driver=ivshmem-flat,property=shmem-size,value=1048576",
    ]
    assert "refuses it as -device" in made.notes[0]


def test_flat_of_a_patched_qemu() -> None:
    made = paste.qemu("demo", region(size="1M"), "flat", irq="/machine/nvic/unnamed-gpio-in[0]")
    assert made.arguments[3] == (
        "ivshmem-flat,x-irq-qompath=/machine/nvic/unnamed-gpio-in[0],x-bus-qompath=/sysbus,"
        "chardev=ivdemo,shmem-size=1048576"
    )
    assert "no interrupts" in paste.qemu("demo", region(), "flat", bus="/sysbus").notes[-1]


@pytest.mark.parametrize(
    ("known", "given", "words"),
    [
        (region(vectors=65, many_vectors=True), {}, "65 vectors"),
        (region(size="4G"), {}, "4G is more than ivshmem-flat takes"),
        (region(), {"vectors": 2}, "leave --vectors out"),
    ],
)
def test_flat_refusals(known: dict[str, Any], given: dict[str, int], words: str) -> None:
    with pytest.raises(paste.NotPossible, match=words):
        paste.qemu("demo", known, "flat", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "given", "words"),
    [
        ("plain", {"vectors": 2}, "has no vectors"),
        ("doorbell", {"vectors": 4096}, "more than MSI-X has"),
        ("doorbell", {"irq": "/x"}, "for --device flat"),
    ],
)
def test_other_refusals(device: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(paste.NotPossible, match=words):
        paste.qemu("demo", region(backing="shm:x"), device, **given)


def test_libvirt_doorbell_has_no_size() -> None:
    xml, notes = paste.libvirt("demo", region(socket="/run/<a>&'b\"/s", group="root"))
    shmem = ET.fromstring(xml)
    assert shmem.get("name") == "demo"
    assert {child.tag: child.attrib for child in shmem} == {
        "model": {"type": "ivshmem-doorbell"},
        "server": {"path": "/run/<a>&'b\"/s"},
        "msi": {"vectors": "4", "ioeventfd": "on"},
    }
    assert "root, mode 0660" in notes[-1]


def test_libvirt_plain_is_named_after_its_memory() -> None:
    shmem = ET.fromstring(paste.libvirt("demo", region(backing="shm:mem", size="2M"), "plain")[0])
    assert shmem.get("name") == "mem"
    size = shmem.find("size")
    assert size is not None and (size.get("unit"), size.text) == ("M", "2")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"backing": "file:/x"}, "in /dev/shm only"), ({"backing": "shm:x", "size": "64K"}, "1M or more")],
)
def test_libvirt_plain_refusals(options: dict[str, str], words: str) -> None:
    with pytest.raises(paste.NotPossible, match=words):
        paste.libvirt("demo", region(**options), "plain")
