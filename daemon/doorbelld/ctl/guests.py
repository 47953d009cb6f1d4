# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands for whoever starts guests: qemu-args, libvirt-xml. What they print is written by `paste`."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from typing import Any

import click

from . import paste
from .session import Refused, Session, json_option, pass_session, region_argument

_VECTORS = click.IntRange(1, 1 << 16)


def _warn(notes: list[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)


def check_socket(path: str) -> None:
    """Make sure that whoever runs this could connect to *path*; nothing connects, so no peer comes and goes.

    Raises:
        Refused: it could not; with cause and cure.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}; is doorbelld on this host, and may you look there?") from None
    if not stat.S_ISSOCK(mode):
        raise Refused(f"{path}: it is no socket; remove it and make the region anew")
    if not os.access(path, os.R_OK | os.W_OK):
        raise Refused(
            f"{path}: uid {os.getuid()} may not connect (mode {stat.S_IMODE(mode):04o}); join its group, or make the "
            "region with another owner, group or mode"
        )


@click.command("qemu-args")
@region_argument
@click.option(
    "--device",
    type=click.Choice(paste.DEVICES),
    default="doorbell",
    show_default=True,
    help="doorbell: ivshmem-doorbell (PCI). flat: ivshmem-flat (sysbus, for microcontrollers). plain: memory only.",
)
@click.option("--vectors", type=_VECTORS, metavar="N", help="Doorbells of the device. Default: the region's.")
@click.option("--irq-qompath", default="", metavar="PATH", help="flat: the interrupt, where QEMU takes it.")
@click.option("--bus-qompath", default="", metavar="PATH", help="flat: the bus, where QEMU takes it.")
@click.option("--all", "whole", is_flag=True, help="A whole example command line.")
@click.option("--check", is_flag=True, help="Also check that you could connect to the region's socket.")
@json_option
@pass_session
def qemu_args(
    session: Session,
    region: str,
    device: str,
    vectors: int | None,
    irq_qompath: str,
    bus_qompath: str,
    whole: bool,
    check: bool,
) -> None:
    r"""Print the QEMU arguments that attach a guest to a region, ready to be pasted.

    Combinations on which QEMU crashes or hangs are refused, with the way out. Into a pipe they go as one line,
    quoted for the shell; notes go to standard error.

    \b
    Examples:
      doorbellctl qemu-args demo
      doorbellctl qemu-args demo --all --check
      eval qemu-system-x86_64 -m 1G disk.img "$(doorbellctl qemu-args demo)"
    """
    known = session.run(lambda daemon: daemon.region(region))
    if check and device != "plain":
        check_socket(known["socket"])
    try:
        made = paste.qemu(region, known, device, vectors, irq_qompath, bus_qompath)
    except paste.NotPossible as error:
        raise Refused(str(error)) from None
    if whole:
        made = paste.command_line(made, device)
    if session.json:
        session.emit({"arguments": made.arguments, "notes": made.notes})
        return
    click.echo(str(made) if sys.stdout.isatty() else shlex.join(made.arguments))
    _warn(made.notes)


@click.command("libvirt-xml")
@region_argument
@click.option(
    "--device",
    type=click.Choice(paste.LIBVIRT_DEVICES),
    default="doorbell",
    show_default=True,
    help="doorbell: memory and doorbells. plain: memory only, of a region with backing shm:NAME.",
)
@click.option("--vectors", type=_VECTORS, metavar="N", help="Doorbells of the device. Default: the region's.")
@click.option("--check", is_flag=True, help="Also check that you could connect to the region's socket.")
@json_option
@pass_session
def libvirt_xml(session: Session, region: str, device: str, vectors: int | None, check: bool) -> None:
    r"""Print the <shmem> element for a region, to go into <devices> of a libvirt domain.

    \b
    Examples:
      doorbellctl libvirt-xml demo
      virsh attach-device --config guest1 <(doorbellctl libvirt-xml demo)
    """
    known: dict[str, Any] = session.run(lambda daemon: daemon.region(region))
    if check and device != "plain":
        check_socket(known["socket"])
    try:
        xml, notes = paste.libvirt(region, known, device, vectors)
    except paste.NotPossible as error:
        raise Refused(str(error)) from None
    if session.json:
        session.emit({"xml": xml, "notes": notes})
        return
    click.echo(xml)
    _warn(notes)
