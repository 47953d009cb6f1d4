# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The first five minutes: what a daemon on a bus of its own says once it serves. Every line can be typed as it is."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from .bus import paths
from .bus.names import BUS_NAME, REGION
from .ctl import paste_devices
from .ctl.paste import qemu_arguments
from .host.host import Host
from .ivshmem.spec import in_units


def text(host: Host, address: str, *, restarts: bool = False) -> str:
    """Say what *host* serves on the bus at *address*, how to attach to it, how to ring, and, if it *restarts*, how."""
    ctl = f"{_beside_us('doorbellctl')} --bus {shlex.quote(address)}"
    lines = ["", "doorbelld serves, on a message bus of its own. Ctrl-C stops it."]
    for region in host.regions.values():
        spec = region.spec
        ring = f"{BUS_NAME} {paths.region(spec.name)} {REGION} Notify qq {spec.first_id} 0"
        lines += [
            "",
            f"Region {spec.name}: {in_units(spec.size)} of shared memory, {spec.vectors} doorbells a peer",
            "  attach a guest: add this to a QEMU command line",
            f"    {shlex.join(qemu_arguments(spec.name, spec.socket, spec.vectors))}",
            "  ring its doorbell 0: either of",
            f"    {ctl} notify {spec.name} {spec.first_id} 0",
            f"    busctl --address={shlex.quote(address)} call {ring}",
        ]
    described = host.describe()["devices"]
    for name, device in host.devices.items():
        needed = paste_devices.qemu(name, {**described[name], "config-space": device.config.hex()})
        memory = paste_devices.memory_arguments(paste_devices.MEMORY)
        lines += [
            "",
            f"Device {name}: {device.spec.type}, a vhost-user device",
            "  give it to a guest: add this to a QEMU command line, the memory once, and -m with its size",
            f"    {shlex.join(memory)}",
            f"    {shlex.join(needed.arguments)}",
            "  see what the guest does with it",
            f"    {ctl} queues {name}",
        ]
    lines += [
        "",
        "See what is there, watch what happens, try it without a guest:",
        f"    {ctl}",
        f"    {ctl} monitor",
        f"    {ctl} selftest",
        "",
    ]
    if restarts:
        lines += ["Restart it, peers stay:", f"    kill -USR2 {os.getpid()}", ""]
    return "\n".join(lines)


def _beside_us(program: str) -> str:
    """Name *program* as one would type it here: it is beside this one, or beside the interpreter, or in $PATH."""
    for ours in (sys.argv[0], sys.executable):
        path = Path(ours).absolute().with_name(program)
        if path.exists():
            relative = os.path.relpath(path)
            return shlex.quote(relative if not relative.startswith("..") else str(path))
    return program
