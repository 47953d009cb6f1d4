# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest needs to connect to a region, ready to be pasted: QEMU arguments and libvirt XML.

Pure functions from a region's description to text. What is known to end in a crash, a hang or a guest that silently
lacks something is refused with `NotPossible`, or comes with a note. A size that is no power of two aborts QEMU;
``reconnect-ms=`` on the chardev hangs it at start, and is never written.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import quoteattr

from ..ivshmem.spec import MSIX_VECTORS_MAX, VECTORS_MAX, in_units

DEVICES = ("doorbell", "flat", "plain")
LIBVIRT_DEVICES = ("doorbell", "plain")
_UINT32_MAX = (1 << 32) - 1
_MIB = 1 << 20


class NotPossible(ValueError):
    """There are no arguments that would work; the message has the cause and the cure."""


@dataclass(frozen=True, slots=True)
class Paste:
    """Arguments in groups that belong on one line, and notes for whoever pastes them."""

    groups: Sequence[Sequence[str]]
    notes: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> list[str]:
        """All arguments, in order."""
        return [argument for group in self.groups for argument in group]

    def __str__(self) -> str:
        return " \\\n  ".join(shlex.join(group) for group in self.groups)


def escape(value: str) -> str:
    """Write a value into a QEMU option: commas are doubled."""
    return value.replace(",", ",,")


def chardev_arguments(name: str, socket: str) -> list[str]:
    """Write the chardev that connects to a region's socket."""
    return ["-chardev", f"socket,path={escape(socket)},id={_id(name)}"]


def qemu_arguments(name: str, socket: str, vectors: int) -> list[str]:
    """Write the arguments that attach an ``ivshmem-doorbell`` (PCI) to region *name* at *socket*."""
    device = ["-device", f"ivshmem-doorbell,chardev={_id(name)},vectors={vectors}"]
    return chardev_arguments(name, socket) + device


def qemu(
    name: str,
    region: Mapping[str, Any],
    device: str = "doorbell",
    vectors: int | None = None,
    irq: str = "",
    bus: str = "",
) -> Paste:
    """Write the arguments for *region* (as ``Describe`` gives it) and one of `DEVICES`.

    *vectors* are those of the device, the region's own if None. *irq* and *bus* are QOM paths, for a QEMU whose
    ivshmem-flat takes them.

    Raises:
        NotPossible: QEMU would crash, hang, or refuse it.
    """
    _check_size(name, region)
    if device != "flat" and (irq or bus):
        raise NotPossible("QOM paths of an interrupt and a bus are for --device flat; leave them out")
    if device == "flat":
        return _flat(name, region, vectors, irq, bus)
    if device == "plain":
        return _plain(name, region, vectors)
    notes: list[str] = []
    count = _vectors(name, region, vectors, notes)
    arguments = qemu_arguments(name, region["socket"], count)
    return Paste([*_name(region, notes), arguments[:2], arguments[2:]], notes)


def _name(region: Mapping[str, Any], notes: list[str]) -> list[list[str]]:
    """Write the VM's name where rules of the region go by it, and note what each rule gives."""
    rules = [rule for rule in region.get("rules", ()) if "vm" in rule["match"]]
    if not rules:
        return []
    gives = "; ".join(
        f"{rule['match']['vm']} gets " + (f"ID {rule['id']}" if "id" in rule else "the ID that is free")
        for rule in rules
    )
    notes.append(f"the region knows VMs by the name that -name gives them: {gives}")
    example = rules[0]["match"]["vm"].replace("*", "1").replace("?", "1")
    return [["-name", f"guest={escape(example)}"]]


def command_line(paste: Paste, device: str, name: str = "guest1", shared: bool = False) -> Paste:
    """Put a whole example command line around the arguments; *shared* if they have the guest's memory."""
    if device == "flat":
        head: list[Sequence[str]] = [["qemu-system-arm"], ["-M", "MACHINE"], ["-kernel", "firmware.elf"]]
        return Paste([*head, ["-name", f"guest={name}"], ["-nographic"], *paste.groups], paste.notes)
    head = [["qemu-system-x86_64"], ["-M", "q35", "-accel", "kvm", "-cpu", "host", *([] if shared else ["-m", "1G"])]]
    tail = [["-drive", f"file={name}.qcow2,if=virtio"], ["-nographic"]]
    named = any(group[0] == "-name" for group in paste.groups)
    names = [] if named else [["-name", f"guest={name}"]]
    return Paste([*head, *names, *paste.groups, *tail], paste.notes)


def libvirt(
    name: str, region: Mapping[str, Any], device: str = "doorbell", vectors: int | None = None
) -> tuple[str, list[str]]:
    """Write the ``<shmem>`` element for *region* and one of `LIBVIRT_DEVICES`, and notes.

    A doorbell's has no ``<size>``: the server gives the memory, and with it its size.

    Raises:
        NotPossible: libvirt or QEMU would refuse it.
    """
    _check_size(name, region)
    if device == "plain":
        return _libvirt_plain(name, region, vectors)
    notes: list[str] = []
    count = _vectors(name, region, vectors, notes)
    owner, group = region["owner"] or "the daemon's user", region["group"] or "the daemon's group"
    notes.append(
        f"libvirt neither starts the server nor labels its socket: QEMU's user must be allowed to connect to it, and "
        f"it is of {owner} and {group}, mode {region['mode']}; owner, group and mode of the region change that"
    )
    xml = (
        f"<shmem name={quoteattr(name)}>\n"
        f"  <model type='ivshmem-doorbell'/>\n"
        f"  <server path={quoteattr(region['socket'])}/>\n"
        f"  <msi vectors='{count}' ioeventfd='on'/>\n"
        f"</shmem>"
    )
    return xml, notes


def _id(name: str) -> str:
    return f"iv{name}"  # a region's name may begin with a digit, an ID of QEMU may not


def _check_size(name: str, region: Mapping[str, Any]) -> None:
    size = region["size"]
    if size & (size - 1):
        up = in_units(1 << size.bit_length())
        raise NotPossible(
            f'region "{name}": size {in_units(size)} is not a power of two, and QEMU aborts on it; '
            f"make the region with size {up}"
        )


def _vectors(name: str, region: Mapping[str, Any], wanted: int | None, notes: list[str]) -> int:
    """Choose how many vectors the device gets; a note tells what a number other than the region's means."""
    have = int(region["vectors"])
    count = have if wanted is None else wanted
    if count > MSIX_VECTORS_MAX:
        raise NotPossible(f"{count} vectors are more than MSI-X has; use {MSIX_VECTORS_MAX} or less")
    if count < have:
        notes.append(
            f"the region gives each peer {have} vectors, the device takes {count}: rings of vector {count} and up "
            "never reach this guest"
        )
    elif count > have:
        notes.append(
            f"the region gives each peer {have} vectors, the device has {count}: its vectors from {have} on are "
            f'connected to nothing; make region "{name}" with vectors = {count} to have them all'
        )
    return count


def _flat(name: str, region: Mapping[str, Any], vectors: int | None, irq: str, bus: str) -> Paste:
    size, have = int(region["size"]), int(region["vectors"])
    if vectors is not None and vectors != have:
        raise NotPossible(f"ivshmem-flat has no vectors of its own, it takes the region's {have}; leave --vectors out")
    if have > VECTORS_MAX:
        raise NotPossible(
            f'region "{name}" has {have} vectors, and ivshmem-flat goes wrong when one from {VECTORS_MAX} on is '
            f"rung; make the region with {VECTORS_MAX} or less"
        )
    if size > _UINT32_MAX:
        raise NotPossible(f'region "{name}": {in_units(size)} is more than ivshmem-flat takes; make it 2G or less')
    chardev = chardev_arguments(name, region["socket"])
    if not irq and not bus:
        settings = (("chardev", _id(name)), ("shmem-size", str(size)))
        globals_ = [["-global", f"driver=ivshmem-flat,property={key},value={value}"] for key, value in settings]
        return Paste(
            [chardev, *globals_],
            [
                "QEMU (10.0 and later) has ivshmem-flat for machines that create it in their code, and refuses it as "
                "-device; these arguments set it up in such a machine",
                "a QEMU that has the options x-irq-qompath and x-bus-qompath (a patch): add --irq-qompath PATH "
                "(info qom-tree in QEMU's monitor lists them) and --bus-qompath /sysbus",
            ],
        )
    options = [f"x-irq-qompath={escape(irq)}"] * bool(irq) + [f"x-bus-qompath={escape(bus or '/sysbus')}"]
    line = ",".join(["ivshmem-flat", *options, f"chardev={_id(name)}", f"shmem-size={size}"])
    notes = ["x-irq-qompath and x-bus-qompath are options of a patch; QEMU as released does not know them"]
    if not irq:
        notes.append("without --irq-qompath the device has the memory and no interrupts")
    return Paste([chardev, ["-device", line]], notes)


def _named_memory(name: str, region: Mapping[str, Any]) -> tuple[str, str]:
    """Give the kind and the target of memory that another process can open by name."""
    kind, _, target = str(region["backing"]).partition(":")
    if not target:
        raise NotPossible(
            f'region "{name}": its memory ({kind}) has no name by which QEMU could open it, as ivshmem-plain must; '
            "use --device doorbell, or make the region with backing shm:NAME or file:/PATH"
        )
    return kind, target


def _plain(name: str, region: Mapping[str, Any], vectors: int | None) -> Paste:
    if vectors is not None:
        raise NotPossible("ivshmem-plain has no vectors; leave --vectors out, or use --device doorbell")
    kind, target = _named_memory(name, region)
    path = f"/dev/shm/{target}" if kind == "shm" else target
    memory = f"memory-backend-file,id={_id(name)},share=on,mem-path={escape(path)},size={region['size']}"
    return Paste(
        [["-object", memory], ["-device", f"ivshmem-plain,memdev={_id(name)}"]],
        [
            "with ivshmem-plain the guest has the memory only: it is no peer, can't ring and can't be rung",
            f"QEMU's user must be allowed to read and write {path}",
        ],
    )


def _libvirt_plain(name: str, region: Mapping[str, Any], vectors: int | None) -> tuple[str, list[str]]:
    if vectors is not None:
        raise NotPossible("ivshmem-plain has no vectors; leave --vectors out, or use --device doorbell")
    kind, target = _named_memory(name, region)
    if kind != "shm":
        raise NotPossible(
            f'region "{name}": libvirt finds the memory of ivshmem-plain in /dev/shm only, and this is {target}; '
            "use --device doorbell, or make the region with backing shm:NAME"
        )
    if region["size"] < _MIB:
        raise NotPossible(f'region "{name}": libvirt wants 1M or more, and this is {in_units(region["size"])}')
    xml = (
        f"<shmem name={quoteattr(target)}>\n"
        f"  <model type='ivshmem-plain'/>\n"
        f"  <size unit='M'>{region['size'] // _MIB}</size>\n"
        f"</shmem>"
    )
    return xml, [
        "with ivshmem-plain the guest has the memory only: it is no peer, can't ring and can't be rung",
        f"the name is that of the memory (/dev/shm/{target}); QEMU's user must be allowed to read and write it",
    ]
