# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json

import pytest
from doorbelld.ctl.checks import guests
from doorbelld.ctl.checks.guests import Option
from hypothesis import given
from hypothesis import strategies as st

from .conftest import Stage, device, levels, only, region

SOCKET = "/run/doorbelld/demo/socket"
CHARDEV = ("-chardev", f"socket,path={SOCKET},id=iv")
DOORBELL = ("-device", "ivshmem-doorbell,chardev=iv,vectors=4")


def run(stage: Stage, *words: str, **more: object) -> None:
    stage.process(42, "/usr/bin/qemu-system-x86_64", "-name", "guest=vm1", *words)
    stage.serve(demo=region(**more))  # type: ignore[arg-type]


def test_a_guest_as_it_should_be(stage: Stage) -> None:
    run(stage, *CHARDEV, *DOORBELL)
    assert only(guests.guests, stage) == ("ok", "guest vm1 (pid 42): as it should be | ")


def test_a_guest_of_libvirt(stage: Stage) -> None:
    run(stage, *CHARDEV, "-device", "ivshmem-doorbell,chardev=iv,vectors=0x4", "-device", '{"a":' * 9999)
    assert levels(guests.guests, stage) == ["ok"]
    device = json.dumps({"driver": "ivshmem-doorbell", "id": "shmem0", "chardev": "iv", "vectors": 4, "master": True})
    run(stage, *CHARDEV, "-device", device)
    assert levels(guests.guests, stage) == ["ok"]


@pytest.mark.parametrize(
    "words",
    [
        ("-chardev", "socket,path=/else,id=iv", *DOORBELL),
        ("-device", "ivshmem-doorbell,chardev=iv"),
        ("-device", "{broken", "-chardev", "null,id=x"),
        ("-chardev",),
        (),
    ],
)
def test_guests_of_others_are_left_alone(stage: Stage, words: tuple[str, ...]) -> None:
    run(stage, *words)
    assert levels(guests.guests, stage) == ["skipped"]


def test_other_programs_are_left_alone(stage: Stage) -> None:
    stage.process(42, "/usr/bin/python3", *CHARDEV, "-device", "ivshmem-doorbell,chardev=iv,vectors=1")
    stage.serve(demo=region())
    assert levels(guests.guests, stage) == ["skipped"]


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("ivshmem-doorbell,chardev=iv,vectors=2", "some doorbells never reach it"),
        ("ivshmem-doorbell,chardev=iv", "vectors=1"),
        ("ivshmem-doorbell,chardev=iv,vectors=8", "never rung"),
    ],
)
def test_other_vectors_than_the_regions(stage: Stage, device: str, said: str) -> None:
    run(stage, *CHARDEV, "-device", device)
    level, words = only(guests.guests, stage)
    assert (level, said in words, "start it with vectors=4" in words) == ("wrong", True, True)


@pytest.mark.parametrize("server", ["server=on", "server=on,wait=off", "server,nowait", "server=yes"])
def test_qemu_as_the_server(stage: Stage, server: str) -> None:
    run(stage, "-chardev", f"socket,path={SOCKET},id=iv,{server}", *DOORBELL)
    assert "wants to be the server" in only(guests.guests, stage)[1]


@pytest.mark.parametrize("setting", ["reconnect=1", "reconnect-ms=500"])
def test_reconnect(stage: Stage, setting: str) -> None:
    run(stage, "-chardev", f"socket,path={SOCKET},id=iv,server=off,{setting}", *DOORBELL)
    level, said = only(guests.guests, stage)
    assert (level, "leave reconnect= out" in said) == ("wrong", True)


def test_a_region_that_is_not_there(stage: Stage) -> None:
    run(stage, "-chardev", "socket,path=/run/doorbelld/dmeo/socket,id=iv", *DOORBELL)
    found = list(guests.guests(stage.view))
    assert "/run/doorbelld/dmeo/socket, which is no region's or device's socket" in found[0].found


@pytest.mark.parametrize(("share", "levels_"), [("share=on,", []), ("", ["wrong"]), ("share=off,", ["wrong"])])
def test_plain_needs_share(stage: Stage, share: str, levels_: list[str]) -> None:
    memory = f"memory-backend-file,id=m,{share}mem-path=/dev/shm/mem,size=4M"
    run(stage, "-object", memory, "-device", "ivshmem-plain,memdev=m", backing="shm:mem")
    assert [level for level in levels(guests.guests, stage) if level != "skipped"] == levels_


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        (("memory-backend-file,id=ram,mem-path=/x,size=1G",), ["without share=on"]),
        (("memory-backend-ram,id=ram,size=1G", "memory-backend-ram,id=r2,share=on,size=1G"), ["its memory ram is"]),
        (("memory-backend-memfd,id=ram,size=1G,share=off",), ["without share=on"]),
        ((), ["without memory that can be shared"]),
        (("memory-backend-memfd,id=ram,size=1G",), []),
        (('{"qom-type":"memory-backend-ram","id":"ram","share":true,"size":1}',), []),
    ],
)
@pytest.mark.parametrize("end", [("-device", "vhost-user-blk-pci,chardev=v"), ("-netdev", "vhost-user,chardev=v,id=n")])
def test_vhost_user_needs_share(stage: Stage, memory: tuple[str, ...], said: list[str], end: tuple[str, ...]) -> None:
    objects = [word for one in memory for word in ("-object", one)]
    run(stage, "-chardev", "socket,path=/run/doorbelld/disk/vhost,id=v", *end, *objects)
    found = [finding.found for finding in guests.guests(stage.view) if finding.level == "wrong"]
    assert len(found) == len(said)
    for words, finding in zip(said, found, strict=True):
        assert words in finding


def test_vhost_user_at_a_regions_socket(stage: Stage) -> None:
    ram = ("-object", "memory-backend-memfd,id=ram,size=1G")
    run(stage, *CHARDEV, "-device", "vhost-user-blk-pci,chardev=iv", *ram)
    assert "which is an ivshmem region's" in only(guests.guests, stage)[1]


# Devices

DISK = "/run/doorbelld/disk0/socket"
RAM = ("-object", "memory-backend-memfd,id=ram,size=1G,share=on", "-machine", "memory-backend=ram")


def use(stage: Stage, chardev: str, *words: str, **more: object) -> None:
    stage.process(42, "/usr/bin/qemu-system-x86_64", "-name", "guest=vm1", "-chardev", f"socket,id=c,{chardev}", *words)
    stage.serve({"disk0": device(**more)}, demo=region())  # type: ignore[arg-type]


@pytest.mark.parametrize("driver", ["vhost-user-blk-pci", "vhost-user-blk-pci-non-transitional", "vhost-user-blk"])
def test_a_guest_with_a_disk_as_it_should_be(stage: Stage, driver: str) -> None:
    use(stage, f"path={DISK},reconnect=1", *RAM, "-device", f"{driver},chardev=c,num-queues=1")
    assert only(guests.guests, stage) == ("ok", "guest vm1 (pid 42): as it should be | ")


def test_a_disk_without_reconnect(stage: Stage) -> None:
    use(stage, f"path={DISK}", *RAM, "-device", "vhost-user-blk-pci,chardev=c")
    level, said = only(guests.guests, stage)
    assert (level, "without reconnect=" in said, "qemu-args disk0" in said) == ("hint", True, True)
    entropy = {"type": "rng", "virtio-id": 4}
    use(stage, f"path={DISK}", *RAM, "-device", "vhost-user-rng-pci,chardev=c", **entropy)
    assert levels(guests.guests, stage) == ["ok"]


@pytest.mark.parametrize(
    "words",
    [
        ("-device", "vhost-user-rng-pci,chardev=c"),
        ("-netdev", "vhost-user,id=n,chardev=c", "-device", "virtio-net-pci,netdev=n"),
    ],
)
def test_another_device_than_the_sockets(stage: Stage, words: tuple[str, ...]) -> None:
    use(stage, f"path={DISK},reconnect=1", *RAM, *words)
    level, said = only(guests.guests, stage)
    assert (level, 'device "disk0", which is of type blk' in said) == ("wrong", True)


@pytest.mark.parametrize("driver", ["vhost-user-device-pci", "vhost-user-test-device-pci"])
def test_the_generic_front_end_takes_any(stage: Stage, driver: str) -> None:
    odd = {"type": "loopback", "virtio-id": 63}
    use(stage, f"path={DISK}", *RAM, "-device", f"{driver},chardev=c", **odd)
    assert levels(guests.guests, stage) == ["ok"]


def test_ivshmem_at_a_devices_socket(stage: Stage) -> None:
    use(stage, f"path={DISK},reconnect=1", "-device", "ivshmem-doorbell,chardev=c,vectors=4")
    assert 'connects to device "disk0", which is no region' in only(guests.guests, stage)[1]


def test_a_device_elsewhere_needs_share_too(stage: Stage) -> None:
    end = ("-device", "vhost-user-blk-pci,chardev=c")
    use(stage, "path=/srv/s,reconnect=1", *end, socket="/srv/s")
    assert "without memory that can be shared" in only(guests.guests, stage)[1]


def test_who_listens(stage: Stage) -> None:
    end = (*RAM, "-device", "vhost-user-blk-pci,chardev=c")
    use(stage, f"path={DISK},server=on,reconnect=1", *end)
    assert "wants to be the server" in only(guests.guests, stage)[1]
    use(stage, f"path={DISK},server=on,wait=off", *end, connect=True)
    assert levels(guests.guests, stage) == ["ok"]
    use(stage, f"path={DISK}", *end, connect=True)
    level, said = only(guests.guests, stage)
    assert (level, "and so does doorbelld" in said, "server=on" in said) == ("wrong", True, True)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z-]{0,8}", fullmatch=True).filter(lambda key: key != "driver"),
        st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12),
        max_size=5,
    )
)
def test_options_are_read_as_qemu_writes_them(settings: dict[str, str]) -> None:
    text = "".join(f",{key}={value.replace(',', ',,')}" for key, value in settings.items())
    assert Option.parse(f"virtio-x{text}", "driver") == Option("virtio-x", settings)
    assert Option.parse(json.dumps({"driver": "virtio-x", **settings}), "driver") == Option("virtio-x", settings)


@given(st.text(max_size=40))
def test_any_text_is_read_somehow(text: str) -> None:
    assert isinstance(Option.parse(text, "driver"), Option)


@pytest.mark.parametrize(("total", "level"), [(4, "ok"), (1, "wrong"), (0, "wrong")])
def test_huge_pages(stage: Stage, total: int, level: str) -> None:
    stage.file("/proc/meminfo", f"HugePages_Total:  {total}\nHugePages_Free:  0\nHugepagesize:    2048 kB\n")
    stage.serve(demo=region(backing="hugetlb"))
    assert only(guests.huge_pages, stage)[0] == level
    stage.serve(demo=region())
    assert only(guests.huge_pages, stage)[0] == "skipped"
