# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands for whoever starts guests: qemu-args, libvirt-xml.

What they print is written by `paste` for regions, and by `paste_devices` for devices.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from dataclasses import dataclass
from typing import Any

import click

from . import paste, paste_devices
from .arguments import Number, complete_one_of, kind_option_of
from .session import Daemon, Refused, Session, json_option, pass_session

_SERVED = ("region", "device")
_VECTORS = click.IntRange(1, 1 << 16)
_QUEUES = click.IntRange(1, 256)
_SLOT = Number(1, 31)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says of how a guest is to be attached; None and empty where it says nothing."""

    device: str | None = None
    vectors: int | None = None
    queues: int | None = None
    slot: int | None = None
    irq_qompath: str = ""
    bus_qompath: str = ""

    def fits(self, kind: str, name: str) -> None:
        """Make sure that what is wanted can be said of *name*, which is a *kind*.

        Raises:
            Refused: it is about the other kind.
        """
        about_region = {
            "--device": self.device,
            "--vectors": self.vectors,
            "--irq-qompath": self.irq_qompath,
            "--bus-qompath": self.bus_qompath,
        }
        others = about_region if kind == "device" else {"--queues": self.queues, "--slot": self.slot}
        if given := [flag for flag, value in others.items() if value]:
            other = "regions" if kind == "device" else "devices"
            raise Refused(f'"{name}" is a {kind}, and {given[0]} is for {other}; leave it out')


def _warn(notes: list[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)


def check_socket(path: str, kind: str) -> None:
    """Make sure that whoever runs this could connect to *path*, of a *kind*; nothing connects, so nobody notices.

    Raises:
        Refused: it could not; with cause and cure.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}; is doorbelld on this host, and may you look there?") from None
    if not stat.S_ISSOCK(mode):
        raise Refused(f"{path}: it is no socket; remove it and make the {kind} anew")
    if not os.access(path, os.R_OK | os.W_OK):
        raise Refused(
            f"{path}: uid {os.getuid()} may not connect (mode {stat.S_IMODE(mode):04o}); join its group, or make the "
            f"{kind} with another owner, group or mode"
        )


async def _look_up(daemon: Daemon, name: str, kind: str) -> tuple[str, dict[str, Any]]:
    """Find a region or a device, with what is needed to write of it."""
    from .devices import device_properties

    found, known = await daemon.find(name, kind, _SERVED)
    return found, known if found == "region" else {**known, **await device_properties(daemon, name)}


async def _all(daemon: Daemon, kind: str | None) -> list[tuple[str, str]]:
    """Give all regions and devices, or those of one *kind*: name and kind.

    Raises:
        Refused: there is none.
    """
    known = await daemon.describe()
    found = [(name, each) for each in _SERVED if kind in (None, each) for name in known[f"{each}s"]]
    if not found:
        raise Refused("there is no region and no device; make one with doorbellctl create or create-device")
    return found


def _check(kind: str, known: dict[str, Any], wanted: Wanted) -> None:
    """Check the socket, if there is one to connect to."""
    if not (known["connect"] if kind == "device" else wanted.device == "plain"):
        check_socket(known["socket"], kind)


def _qemu(kind: str, name: str, known: dict[str, Any], wanted: Wanted) -> paste.Paste:
    wanted.fits(kind, name)
    try:
        if kind == "device":
            return paste_devices.qemu(name, known, wanted.queues)
        device = wanted.device or paste.DEVICES[0]
        return paste.qemu(name, known, device, wanted.vectors, wanted.irq_qompath, wanted.bus_qompath)
    except paste.NotPossible as error:
        raise Refused(str(error)) from None


@click.command("qemu-args")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_one_of(*_SERVED))
@kind_option_of(*_SERVED)
@click.option(
    "--device",
    type=click.Choice(paste.DEVICES),
    help="Of a region. doorbell (default): ivshmem-doorbell (PCI). flat: ivshmem-flat (sysbus, for microcontrollers). "
    "plain: memory only.",
)
@click.option("--vectors", type=_VECTORS, metavar="N", help="Doorbells of a region's device. Default: the region's.")
@click.option("--irq-qompath", default="", metavar="PATH", help="flat: the interrupt, where QEMU takes it.")
@click.option("--bus-qompath", default="", metavar="PATH", help="flat: the bus, where QEMU takes it.")
@click.option("--queues", type=_QUEUES, metavar="N", help="Queues of a device for this guest. Default: all.")
@click.option("--memory", type=Number(), metavar="SIZE", help="With a device: the guest's memory. Default: 1G.")
@click.option("--no-memory", is_flag=True, help="With a device: leave memory out, the guest has it already.")
@click.option("--all", "whole", is_flag=True, help="A whole example command line.")
@click.option("--check", is_flag=True, help="Also check that you could connect to the sockets.")
@json_option
@pass_session
def qemu_args(
    session: Session,
    /,
    names: tuple[str, ...],
    kind: str | None,
    memory: int | None,
    no_memory: bool,
    whole: bool,
    check: bool,
    **given: Any,
) -> None:
    r"""Print the QEMU arguments that attach a guest to regions and devices, ready to be pasted.

    NAME is a region or a device; without one, all of them are meant. A device needs guest memory that is shared, so
    arguments for that come along, once for all devices; leave -m out, or give it the same size. A guest that has such
    memory already gets --no-memory.

    Combinations on which QEMU crashes or hangs are refused, with the way out. Into a pipe they go as one line,
    quoted for the shell; notes go to standard error.

    \b
    Examples:
      doorbellctl qemu-args demo
      doorbellctl qemu-args disk0 entropy demo --memory 4G
      doorbellctl qemu-args demo --all --check
      eval qemu-system-x86_64 -m 1G disk.img "$(doorbellctl qemu-args demo)"
    """
    if no_memory and memory is not None:
        raise click.UsageError("--memory and --no-memory contradict each other; use one of them")

    async def look_up(daemon: Daemon) -> list[tuple[str, str, dict[str, Any]]]:
        wanted = [(name, kind or "") for name in names] or await _all(daemon, kind)
        return [(name, *await _look_up(daemon, name, of_kind)) for name, of_kind in wanted]

    wanted = Wanted(**given)
    made: list[paste.Paste] = []
    kinds = set()
    for name, found, known in session.run(look_up):
        kinds.add(found)
        made.append(_qemu(found, name, known, wanted))
        if check:
            _check(found, known, wanted)
    if "device" not in kinds and (no_memory or memory is not None):
        raise Refused("--memory and --no-memory are for devices, and a region has its own; leave them out")
    groups = [group for each in made for group in each.groups]
    if "device" in kinds and not no_memory:
        arguments = paste_devices.memory_arguments(memory or paste_devices.MEMORY)
        groups[:0] = [arguments[at : at + 2] for at in range(0, len(arguments), 2)]
    everything = paste.Paste(groups, list(dict.fromkeys(note for each in made for note in each.notes)))
    if whole:
        everything = paste.command_line(everything, wanted.device or "doorbell", shared="device" in kinds)
    if session.json:
        session.emit({"arguments": everything.arguments, "notes": everything.notes})
        return
    click.echo(str(everything) if sys.stdout.isatty() else shlex.join(everything.arguments))
    _warn(everything.notes)


@click.command("libvirt-xml")
@click.argument("name", shell_complete=complete_one_of(*_SERVED))
@kind_option_of(*_SERVED)
@click.option(
    "--device",
    type=click.Choice(paste.LIBVIRT_DEVICES),
    help="Of a region. doorbell (default): memory and doorbells. plain: memory only, of one with backing shm:NAME.",
)
@click.option("--vectors", type=_VECTORS, metavar="N", help="Doorbells of a region's device. Default: the region's.")
@click.option("--queues", type=_QUEUES, metavar="N", help="Queues of a device for this guest. Default: all.")
@click.option(
    "--slot", type=_SLOT, metavar="N", help="PCI slot of a device that libvirt does not know. Default: one of its own."
)
@click.option("--check", is_flag=True, help="Also check that you could connect to the socket.")
@json_option
@pass_session
def libvirt_xml(session: Session, /, name: str, kind: str | None, check: bool, **given: Any) -> None:
    r"""Print the XML that attaches a libvirt domain to a region or a device.

    For a region that is the <shmem> element, for a disk <disk>, for a network card <interface>: they go into
    <devices>. libvirt knows no other vhost-user devices; for those it is a <qemu:commandline>, which goes into
    <domain>, with a PCI slot that libvirt does not use. Notes, on standard error, say what else the domain needs.

    \b
    Examples:
      doorbellctl libvirt-xml demo
      virsh attach-device --config guest1 <(doorbellctl libvirt-xml demo)
      virsh attach-device --config guest1 <(doorbellctl libvirt-xml disk0 --queues 4)
    """

    async def look_up(daemon: Daemon) -> tuple[str, dict[str, Any], dict[str, Any]]:
        return *await _look_up(daemon, name, kind or ""), (await daemon.describe())["devices"]

    wanted = Wanted(**given)
    found, known, devices = session.run(look_up)
    wanted.fits(found, name)
    if check:
        _check(found, known, wanted)
    try:
        if found == "device":
            slot = wanted.slot or paste_devices.slot_of(name, devices)
            xml, notes = paste_devices.libvirt(name, known, wanted.queues, slot)
        else:
            xml, notes = paste.libvirt(name, known, wanted.device or paste.LIBVIRT_DEVICES[0], wanted.vectors)
    except paste.NotPossible as error:
        raise Refused(str(error)) from None
    if session.json:
        session.emit({"xml": xml, "notes": notes})
        return
    click.echo(xml)
    _warn(notes)
