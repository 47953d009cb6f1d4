# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the guests that run were started so that they work with us: their QEMUs' command lines; and huge pages."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...fds.peercred import vm_name_of
from ..paste_devices import front_end_of
from .access import RUNTIME_DIRECTORY
from .view import Finding, View, fine, hint, skipped, wrong

_QEMU = re.compile(r"qemu(-system-.+|-kvm)?|kvm")
_SHARED_BY_DEFAULT = ("memory-backend-memfd", "memory-backend-shm")
_VECTORS_DEFAULT = 1
"""Vectors of an ivshmem-doorbell that was not told how many."""
_ON = ("on", "true", "yes", "y")
_TRANSPORT = re.compile(r"-(pci(-(non-)?transitional)?|device|ccw)$")
_GENERIC = ("vhost-user-device", "vhost-user-device-pci", "vhost-user-test-device", "vhost-user-test-device-pci")
"""QEMU's front-end for whatever there is, in all its versions."""


@dataclass(frozen=True, slots=True)
class Option:
    """The value of one of QEMU's options: what it makes (a driver, a backend, a type), and its settings."""

    kind: str
    settings: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, head: str) -> Option:
        """Read ``KIND,key=value,...`` or JSON; *head* is the key that KIND stands for."""
        settings: dict[str, str] = {}
        if text.startswith("{"):
            try:
                settings = {key: str(value).lower() if value is True else str(value) for key, value in _object(text)}
            except (ValueError, RecursionError):  # whatever a process says of itself
                return cls("", {})
        else:
            for place, piece in enumerate(text.replace(",,", "\0").split(",")):
                key, equals, value = piece.replace("\0", ",").partition("=")
                if equals:
                    settings[key] = value
                else:
                    settings[head if place == 0 else key] = key if place == 0 else "on"
        return cls(settings.pop(head, ""), settings)

    def get(self, key: str) -> str:
        """Give a setting; empty if it is not there."""
        return self.settings.get(key, "")

    def on(self, key: str) -> bool:
        """Tell whether a setting is on."""
        return self.get(key) in _ON


def _object(text: str) -> list[tuple[str, object]]:
    found = json.loads(text)
    return list(found.items()) if isinstance(found, dict) else []


@dataclass(slots=True)
class Guest:
    """A QEMU that runs: its process, its name, and what of its command line matters to us."""

    pid: int
    name: str
    chardevs: dict[str, Option] = field(default_factory=dict)
    devices: list[Option] = field(default_factory=list)
    netdevs: list[Option] = field(default_factory=list)
    objects: dict[str, Option] = field(default_factory=dict)

    @classmethod
    def read(cls, pid: int, words: Sequence[str]) -> Guest:
        """Read a command line."""
        guest = cls(pid, vm_name_of([word.encode() for word in words]))
        for flag, value in itertools.pairwise(words):
            match flag.lstrip("-") if flag.startswith("-") else "":
                case "chardev":
                    option = Option.parse(value, "backend")
                    guest.chardevs[option.get("id")] = option
                case "device":
                    guest.devices.append(Option.parse(value, "driver"))
                case "netdev":
                    guest.netdevs.append(Option.parse(value, "type"))
                case "object":
                    option = Option.parse(value, "qom-type")
                    guest.objects[option.get("id")] = option
        return guest

    @property
    def title(self) -> str:
        """What to call it."""
        return f"guest {self.name} (pid {self.pid})" if self.name else f"guest of pid {self.pid}"

    def chardev(self, option: Option) -> Option | None:
        """Give the socket chardev that a device uses, if it has a path."""
        found = self.chardevs.get(option.get("chardev"))
        return found if found is not None and found.kind == "socket" and found.get("path") else None


@dataclass(frozen=True, slots=True)
class Ours:
    """A socket of ours that guests connect to: what it is (region "demo"), and how it is described."""

    kind: str
    name: str
    known: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What to call it."""
        return f'{self.kind} "{self.name}"'

    @property
    def cure(self) -> str:
        """How a guest is to be started."""
        return f"doorbellctl qemu-args {self.name} shows how"


def guests(view: View) -> Iterator[Finding]:
    """Each QEMU that uses one of our sockets, or a region's memory, was started so that it works."""
    count = 0
    kinds = (("region", view.regions), ("device", view.devices))
    sockets = {view.real(k["socket"]): Ours(kind, name, k) for kind, all_ in kinds for name, k in all_.items()}
    memories = {path: name for name, region in view.regions.items() if (path := _memory_path(region["backing"]))}
    for pid, words in sorted(view.processes()):
        if not _QEMU.fullmatch(os.path.basename(words[0])):
            continue
        guest = Guest.read(pid, words)
        findings = [
            *_chardevs(view, guest, sockets),
            *_doorbells(view, guest, sockets),
            *_plain(guest, memories),
            *_vhost_user(view, guest, sockets),
        ]
        ours = any(_path(view, option) in sockets for option in guest.chardevs.values())
        count += ours
        yield from findings
        if ours and not findings:
            yield fine(f"{guest.title}: as it should be")
    if not count:
        yield skipped("no QEMU here uses one of our sockets, or you may not see it")


def _path(view: View, chardev: Option) -> str:
    path = chardev.get("path")
    return view.real(path) if path.startswith("/") else ""


def _memory_path(backing: str) -> str:
    kind, _, target = backing.partition(":")
    return f"/dev/shm/{target}" if kind == "shm" else target


def _chardevs(view: View, guest: Guest, sockets: Mapping[str, Ours]) -> Iterator[Finding]:
    for chardev in guest.chardevs.values():
        path = _path(view, chardev)
        ours = sockets.get(path)
        below = path.startswith(f"{RUNTIME_DIRECTORY}/")
        if chardev.kind != "socket" or not (ours or below):
            continue
        identity = chardev.get("id")
        listens = ours is not None and ours.kind == "device" and ours.known["connect"]
        if chardev.on("server") and not listens:
            cure = (
                "leave server= and wait= out: QEMU is the client, doorbelld the server; doorbellctl qemu-args shows it"
            )
            yield wrong(f"{guest.title}: its chardev {identity} wants to be the server of {path}", cure)
        elif listens and not chardev.on("server"):
            cure = f"add server=on; {ours.cure if ours else ''}"
            yield wrong(f"{guest.title}: its chardev {identity} connects to {path}, and so does doorbelld", cure)
        elif ours is None:
            cure = "doorbellctl lists the regions and devices and their sockets"
            words = "which is no region's or device's socket"
            yield hint(f"{guest.title}: its chardev {identity} connects to {path}, {words}", cure)
        again = {chardev.get("reconnect"), chardev.get("reconnect-ms")} - {"", "0"}
        if again and not (ours and ours.kind == "device"):
            cure = "leave reconnect= out; a restart of doorbelld does not end the connection"
            yield wrong(f"{guest.title}: its chardev {identity} has reconnect=, on which ivshmem hangs", cure)
        if ours and ours.kind == "device" and not again and not listens and _finds_again(ours):
            cure = f"add reconnect=1, or it loses {ours.title} when doorbelld is restarted; {ours.cure}"
            yield hint(f"{guest.title}: its chardev {identity} is without reconnect=", cure)


def _finds_again(ours: Ours) -> bool:
    return front_end_of(ours.known["virtio-id"]).reconnects


def _doorbells(view: View, guest: Guest, sockets: Mapping[str, Ours]) -> Iterator[Finding]:
    for device in guest.devices:
        chardev = guest.chardev(device)
        ours = sockets.get(_path(view, chardev)) if chardev is not None else None
        if device.kind != "ivshmem-doorbell" or ours is None:
            continue
        if ours.kind != "region":
            said = f"{guest.title}: ivshmem-doorbell connects to {ours.title}, which is no region"
            yield wrong(said, f"connect it to a region's socket; for the device, {ours.cure}")
            continue
        have, text = ours.known["vectors"], device.get("vectors") or str(_VECTORS_DEFAULT)
        try:
            count = int(text, 0)
        except ValueError:  # QEMU has refused it, or it is no QEMU
            continue
        if count != have:
            lost = "some doorbells never reach it" if count < have else "some of its vectors are never rung"
            cure = f"start it with vectors={have}; {ours.cure}"
            yield wrong(f"{guest.title}: its device has vectors={count}, {ours.title} has {have}: {lost}", cure)


def _plain(guest: Guest, memories: Mapping[str, str]) -> Iterator[Finding]:
    for device in guest.devices:
        memory = guest.objects.get(device.get("memdev"))
        if device.kind != "ivshmem-plain" or memory is None or memory.get("mem-path") not in memories:
            continue
        if not _shared(memory):
            name = memories[memory.get("mem-path")]
            cure = f"start it with share=on; doorbellctl qemu-args {name} --device plain shows how"
            yield wrong(f'{guest.title}: it has a copy of its own of the memory of region "{name}"', cure)


def _vhost_user(view: View, guest: Guest, sockets: Mapping[str, Ours]) -> Iterator[Finding]:
    """Look at vhost-user front-ends on our sockets: they need the right device, and guest memory that is shared."""
    ends = [device for device in guest.devices if device.kind.startswith("vhost-user-")]
    ends += [netdev for netdev in guest.netdevs if netdev.kind == "vhost-user"]
    on_ours = False
    for end in ends:
        chardev = guest.chardev(end)
        path = _path(view, chardev) if chardev is not None else ""
        ours = sockets.get(path)
        if ours is not None and ours.kind == "region":
            cure = f"connect it to a device's socket; this one is for: doorbellctl qemu-args {ours.name}"
            yield wrong(f"{guest.title}: {end.kind} connects to {path}, which is an ivshmem region's", cure)
        elif ours is not None and not _suits(end.kind, ours.known["virtio-id"]):
            said = f"{guest.title}: {end.kind} connects to {ours.title}, which is of type {ours.known['type']}"
            yield wrong(f"{said}: the guest's driver can't use it", f"{ours.cure}")
        on_ours |= ours is not None or path.startswith(f"{RUNTIME_DIRECTORY}/")
    if not on_ours:
        return
    plain = {device.get("memdev") for device in guest.devices if device.kind == "ivshmem-plain"}
    memories = {
        identity: memory
        for identity, memory in guest.objects.items()
        if memory.kind.startswith("memory-backend-") and identity not in plain
    }
    cure = "give all its memory share=on: -object memory-backend-memfd,id=ram,size=SIZE,share=on -M memory-backend=ram"
    if not memories:
        yield wrong(f"{guest.title}: vhost-user without memory that can be shared: no queue can work", cure)
    for identity, memory in memories.items():
        if not _shared(memory):
            yield wrong(f"{guest.title}: vhost-user, and its memory {identity} is without share=on", cure)


def _suits(driver: str, virtio_id: int) -> bool:
    """Tell whether QEMU's *driver* is a front-end for devices with *virtio_id*; a generic one is for all."""
    wanted = front_end_of(virtio_id).driver
    return driver in _GENERIC or _stem(driver) == _stem(wanted)


def _stem(driver: str) -> str:
    """Take off what says how the guest sees it: over PCI, MMIO or channel I/O."""
    return _TRANSPORT.sub("", driver)


def _shared(memory: Option) -> bool:
    return memory.on("share") or (memory.kind in _SHARED_BY_DEFAULT and not memory.get("share"))


def huge_pages(view: View) -> Iterator[Finding]:
    """The host still has the huge pages that regions with backing hugetlb are made of."""
    regions = {name: region for name, region in view.regions.items() if region["backing"] == "hugetlb"}
    if not regions:
        yield skipped("no region uses them")
        return
    found = dict(
        re.findall(r"^(HugePages_Total|HugePages_Free|Hugepagesize):\s+(\d+)", view.read("/proc/meminfo"), re.M)
    )
    total, free, size = (int(found.get(key, 0)) for key in ("HugePages_Total", "HugePages_Free", "Hugepagesize"))
    need = sum(region["size"] for region in regions.values()) // ((size << 10) or 1)
    if total < need:
        cure = f"sysctl -w vm.nr_hugepages={need}, and in /etc/sysctl.d to have them after the next boot"
        yield wrong(f"{', '.join(regions)} need {need} of {size} KiB, the host has {total}", cure)
    else:
        yield fine(f"{need} of {total} are for {', '.join(regions)}, {free} are free")
