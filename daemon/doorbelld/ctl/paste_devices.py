# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest needs to use vhost-user devices, ready to be pasted: QEMU arguments and libvirt XML.

Pure functions from a device's description to text, as in `paste`. A front-end is chosen by virtio device ID, since a
type may be anybody's; an ID that QEMU has no front-end for gets its generic one.

*Memory.* The back-end maps the guest's memory, so that has to be a file that is shared; one such for the whole guest.

*Reconnecting.* QEMU finds a back-end again that went away for a disk, SCSI and a network card, and only where the
chardev has ``reconnect=``; for others it has no use, or does harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

from ..ivshmem.spec import in_units
from .paste import NotPossible, Paste, escape

MEMORY = 1 << 30
"""How much a guest gets if nobody says."""
_MEMORY_ID = "vumem"
_RECONNECT_SECONDS = 1
_QUEUE_SIZE_MAX = 1024
"""Entries of a queue in QEMU, at most (VIRTQUEUE_MAX_SIZE). QEMU 10.0 gives every queue so many."""
_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
_SLOTS = range(0x19, 0x0F, -1)
"""PCI slots of a guest's first bus that libvirt does not use: it fills the bus from below, and has 0x1a and up for what
belongs to the machine. It knows nothing of a device that goes past it, which takes the first slot that is free, and
with it one that libvirt has given away."""

Write = Callable[[str, str, Mapping[str, Any], int], Sequence[str]]


def _plain(driver: str, name: str, device: Mapping[str, Any], queues: int) -> Sequence[str]:
    return ["-device", f"{driver},chardev={_id(name)}"]


def _blk(driver: str, name: str, device: Mapping[str, Any], queues: int) -> Sequence[str]:
    return ["-device", f"{driver},chardev={_id(name)},num-queues={queues},queue-size={_queue_size(device)}"]


def _net(driver: str, name: str, device: Mapping[str, Any], queues: int) -> Sequence[str]:
    pairs = _pairs(queues)
    several = f",mq=on,vectors={2 * pairs + 2}" * (pairs > 1)
    return [
        *("-netdev", f"{driver},id={_id(name)}n,chardev={_id(name)},queues={pairs}"),
        *("-device", f"virtio-net-pci,netdev={_id(name)}n{several}"),
    ]


def _scsi(driver: str, name: str, device: Mapping[str, Any], queues: int) -> Sequence[str]:
    requests = max(1, queues - 2)  # beside the control and the event queue
    return ["-device", f"{driver},chardev={_id(name)},num_queues={requests}"]


def _fs(driver: str, name: str, device: Mapping[str, Any], queues: int) -> Sequence[str]:
    requests = max(1, queues - 1)  # beside the one for what is urgent
    return ["-device", f"{driver},chardev={_id(name)},tag={escape(name)},num-request-queues={requests}"]


def _generic(driver: str, name: str, device: Mapping[str, Any], queues: int) -> Sequence[str]:
    space = len(bytes.fromhex(device["config-space"]))
    options = f"virtio-id={device['virtio-id']},num_vqs={queues},config_size={space}"
    return ["-device", f"{driver},chardev={_id(name)},{options},vq_size={_queue_size(device)}"]


def _queue_size(device: Mapping[str, Any]) -> int:
    """Give the entries of a queue that both the device and QEMU can do."""
    return min(int(device.get("queue-size", _QUEUE_SIZE_MAX)), _QUEUE_SIZE_MAX)


def _pairs(queues: int) -> int:
    """Count the pairs of queues, one in each direction, that a network card has beside a control queue."""
    return max(1, queues // 2)


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """How QEMU is told of a device with a certain virtio ID."""

    driver: str
    """What connects: a device, or for a network card the type of its netdev."""
    write: Write = _plain
    """Gives the arguments after the chardev: of the driver, a name, a description, and the queues of the guest."""
    reconnects: bool = False
    per_guest: bool = False
    """Whether the guest may have another number of queues than the device."""


_FRONT_ENDS = {
    1: FrontEnd("vhost-user", _net, reconnects=True, per_guest=True),
    2: FrontEnd("vhost-user-blk-pci", _blk, reconnects=True, per_guest=True),
    4: FrontEnd("vhost-user-rng-pci"),
    8: FrontEnd("vhost-user-scsi-pci", _scsi, reconnects=True, per_guest=True),
    18: FrontEnd("vhost-user-input-pci"),
    19: FrontEnd("vhost-user-vsock-pci"),
    26: FrontEnd("vhost-user-fs-pci", _fs, per_guest=True),
    34: FrontEnd("vhost-user-i2c-pci"),
    41: FrontEnd("vhost-user-gpio-pci"),
}
"""By virtio device ID (VIRTIO 1.2, 5)."""
_GENERIC = FrontEnd("vhost-user-test-device-pci", _generic, per_guest=True)


def front_end_of(virtio_id: int) -> FrontEnd:
    """Tell how QEMU is told of a device with *virtio_id*."""
    return _FRONT_ENDS.get(virtio_id, _GENERIC)


def qemu(name: str, device: Mapping[str, Any], queues: int | None = None) -> Paste:
    """Write the arguments for *device*: its description, with ``config-space``; memory is `memory_arguments`.

    *queues* are those that the guest gets, all that the device has if None.

    Raises:
        NotPossible: QEMU would refuse it, or the guest would.
    """
    end = front_end_of(device["virtio-id"])
    count = _queues(name, device, end, queues)
    notes = _notes(name, device, end)
    chardev = f"socket,path={escape(device['socket'])},id={_id(name)}"
    if device["connect"]:
        chardev += ",server=on,wait=on"
    elif end.reconnects:
        chardev += f",reconnect={_RECONNECT_SECONDS}"
    arguments = list(end.write(end.driver, name, device, count))
    return Paste([["-chardev", chardev], *(arguments[at : at + 2] for at in range(0, len(arguments), 2))], notes)


def memory_arguments(size: int) -> list[str]:
    """Write the arguments that give a guest *size* bytes of memory that back-ends can map."""
    backend = f"memory-backend-memfd,id={_MEMORY_ID},size={in_units(size)},share=on"
    return ["-object", backend, "-machine", f"memory-backend={_MEMORY_ID}"]


def past_libvirt(virtio_id: int) -> bool:
    """Whether libvirt has no element for a device."""
    return virtio_id not in (1, 2)


def slot_of(name: str, devices: Mapping[str, Mapping[str, Any]]) -> int:
    """Choose a PCI slot for a device that goes past libvirt: another for each of *devices*, as far as there are any."""
    rank = sum(other < name for other, known in devices.items() if past_libvirt(known["virtio-id"]))
    return _SLOTS[rank % len(_SLOTS)]


def libvirt(
    name: str, device: Mapping[str, Any], queues: int | None = None, slot: int = _SLOTS[0]
) -> tuple[str, list[str]]:
    """Write what a libvirt domain needs for *device*, and notes.

    Disks and network cards have elements of their own, to go into <devices>; all others go past libvirt, to a PCI
    *slot* of their own.

    Raises:
        NotPossible: libvirt or QEMU would refuse it.
    """
    end = front_end_of(device["virtio-id"])
    count = _queues(name, device, end, queues)
    notes = [
        "the domain's memory has to be shared: <memoryBacking><source type='memfd'/><access mode='shared'/>"
        "</memoryBacking>, beside <devices>"
    ]
    owner, group = device["owner"] or "the daemon's user", device["group"] or "the daemon's group"
    rights = (
        "libvirt neither starts the daemon nor labels the socket: QEMU's user must be allowed to connect to it, and it "
        f"is of {owner} and {group}, mode {device['mode']}; owner, group and mode of the device change that"
    )
    notes += [rights] * (not device["connect"])
    match device["virtio-id"]:
        case 2:
            if device["connect"]:
                raise NotPossible(
                    f'device "{name}" connects to a front-end that listens, and libvirt can\'t have a disk do that; '
                    "make the device without connect"
                )
            vda = "vda is an example: take a name that the domain does not have yet"
            return _disk(device, count), [*notes, vda, *_size_notes(device)]
        case 1:
            return _interface(device, count), [*notes, *_size_notes(device)]
    made = qemu(name, device, queues)
    *before, driver = made.arguments
    arguments = "\n".join(f"  <qemu:arg value={quoteattr(each)}/>" for each in (*before, f"{driver},addr={slot:#x}"))
    xml = f'<qemu:commandline xmlns:qemu="{_QEMU_NAMESPACE}">\n{arguments}\n</qemu:commandline>'
    past = (
        f"libvirt has no element for a vhost-user device of type {device['type']}: this goes past it to QEMU, and "
        "stands in <domain>, after <devices>; it can't be attached to a domain that runs"
    )
    address = (
        f"it gets PCI slot {slot:#x}, and libvirt does not know that; should something else of the domain have it, the "
        "domain does not start: --slot takes another"
    )
    confined = (
        "libvirt does not know of the socket: where AppArmor or SELinux confine guests, it has to be allowed by hand; "
        "doorbellctl doctor tells how"
    )
    return xml, [past, address, *notes, confined, *made.notes]


def _disk(device: Mapping[str, Any], queues: int) -> str:
    return (
        "<disk type='vhostuser' device='disk'>\n"
        f"  <driver name='qemu' type='raw' queues='{queues}' queue_size='{_queue_size(device)}'/>\n"
        f"  <source type='unix' path={quoteattr(device['socket'])}>\n"
        f"    <reconnect enabled='yes' timeout='{_RECONNECT_SECONDS}'/>\n"
        "  </source>\n"
        "  <target dev='vda' bus='virtio'/>\n"
        "</disk>"
    )


def _interface(device: Mapping[str, Any], queues: int) -> str:
    source = f"<source type='unix' path={quoteattr(device['socket'])}"
    if device["connect"]:
        source += " mode='server'/>"
    else:
        again = f"<reconnect enabled='yes' timeout='{_RECONNECT_SECONDS}'/>"
        source += f" mode='client'>\n    {again}\n  </source>"
    return (
        "<interface type='vhostuser'>\n"
        f"  {source}\n"
        "  <model type='virtio'/>\n"
        f"  <driver queues='{_pairs(queues)}'/>\n"
        "</interface>"
    )


def _id(name: str) -> str:
    return f"vu{name}"  # a device's name may begin with a digit, an ID of QEMU may not


def _queues(name: str, device: Mapping[str, Any], end: FrontEnd, wanted: int | None) -> int:
    have = len(device["queues"])
    if wanted is None:
        return have
    if not end.per_guest:
        raise NotPossible(f'device "{name}": QEMU takes no number of queues for it; leave --queues out')
    if wanted > have:
        raise NotPossible(
            f'device "{name}" has {have} queues, and QEMU refuses to start with {wanted}; use {have} or less, or make '
            f"the device with queues = {wanted}"
        )
    return wanted


def _size_notes(device: Mapping[str, Any]) -> list[str]:
    size = _queue_size(device)
    if size == _QUEUE_SIZE_MAX:
        return []
    return [
        f"QEMU 10.0 gives each queue {_QUEUE_SIZE_MAX} entries whatever it is told, and this device refuses more than "
        f"queue-size = {size}; such a guest hangs: leave queue-size out"
    ]


def _notes(name: str, device: Mapping[str, Any], end: FrontEnd) -> list[str]:
    notes = _size_notes(device)
    if device["connect"]:
        notes.append(f"QEMU listens at {device['socket']}, and doorbelld connects to it; QEMU waits for that")
    elif end.reconnects:
        notes.append(
            f"reconnect= is deprecated since QEMU 9.2; a QEMU that refuses it wants "
            f"reconnect-ms={_RECONNECT_SECONDS * 1000}"
        )
    else:
        notes.append(
            f"QEMU does not connect to such a device again: once doorbelld is restarted, {name} is dead for the guest "
            "until that is started anew"
        )
    if end is _GENERIC:
        notes.append(
            f"QEMU has no front-end of its own for virtio ID {device['virtio-id']}; vhost-user-test-device-pci is in "
            "10.2 and later, 8.2 to 10.1 call it vhost-user-device-pci and refuse it on the command line"
        )
        notes.append(f"User-Mode Linux takes any device: virtio_uml.device={device['socket']}:{device['virtio-id']}")
    return notes
