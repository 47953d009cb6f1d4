# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether vhost-user devices can do their work: what broke them, their images, and the way to the disk."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .access import READ, WRITE, barrier
from .view import Finding, View, fine, hidden, hint, skipped, wrong

BLK = 2
"""The virtio device ID of a disk."""
_SHARE = "share=on"
_SIZE = "queue-size"
_ORDINARY = ("it closed its connection", "disconnected over D-Bus")
_URING = "io_uring_setup"
_STATE_DIRECTORIES = "/var/lib"


def states(view: View) -> Iterator[Finding]:
    """Each device works: it, its queues and its code are whole, it reaches guest memory, its front-end is found."""
    if not view.devices:
        yield skipped("no device is served")
        return
    for name, device in view.devices.items():
        findings = [*_of_front_end(view, name, device), *_of_requests(name, device), *_of_code(name, device)]
        yield from findings
        if not findings:
            yield fine(f'device "{name}" is {device["state"]}')


def _of_front_end(view: View, name: str, device: Mapping[str, Any]) -> Iterator[Finding]:
    title, why, fault = f'device "{name}"', device["reason"], device.get("fault", "")
    cure = (
        f"journalctl DOORBELLD_DEVICE={name} has more; the guest is to be started as doorbellctl qemu-args {name} says"
    )
    share = f"start the guest with all its memory {_SHARE}: doorbellctl qemu-args {name}"
    if device["state"] == "broken":
        yield wrong(f"{title} is broken: {why}", share if _SHARE in why else cure)
    elif fault:
        sized = f"set {_SIZE} of the device as it says, or leave {_SIZE} out of its configuration; then make it again"
        yield wrong(f"{title}: {fault}", share if _SHARE in fault else sized if _SIZE in fault else cure)
    elif why and not why.startswith(_ORDINARY):
        yield hint(f"{title}: its last front-end is gone: {why}", cure)
    for region in device["memory"]:
        if region["error"]:
            where = f"{region['guest-addr']:#x}, {region['size']} bytes"
            yield wrong(f"{title}: guest memory ({where}) can't be reached: {region['error']}", share)
    if device["state"] == "connecting":
        path = device["socket"]
        if view.served(path):
            cure = f"see who listens there, and whether {view.daemon_user.name} may connect to it"
            yield hint(f"{title}: it can't connect to {path}, though somebody listens there", cure)
        else:
            cure = f"start the guest as doorbellctl qemu-args {name} says; or, if QEMU is to connect, leave connect out"
            yield hint(f"{title}: it is to connect to {path}, and nobody listens there", cure)


def _of_code(name: str, device: Mapping[str, Any]) -> Iterator[Finding]:
    if device.get("error"):
        cure = f"repair the package of type {device['type']}, then restart the daemon; its log has the traceback"
        yield wrong(f'device "{name}": its code fails: {device["error"]}', cure)


def _of_requests(name: str, device: Mapping[str, Any]) -> Iterator[Finding]:
    for queue in device["queues"]:
        if queue["broken"]:
            cure = f"reset the device in the guest (load its driver anew), or here: doorbellctl disconnect {name}"
            yield wrong(f'device "{name}": queue {queue["index"]} is broken: {queue["broken"]}', cure)
    if errors := sum(queue["errors"] for queue in device["queues"]):
        cure = "the guest's kernel log says which; if it is a disk, see dmesg here, and whether its image is whole"
        yield hint(f'device "{name}": {errors} requests failed since it was made', cure)


def images(view: View) -> Iterator[Finding]:
    """The images of the disks in the configuration are there, and the daemon may use them when it starts again."""
    disks = {name: disk for name, disk in view.disks.items() if disk.get("path")}
    if not disks:
        yield skipped("the configuration has no disk")
        return
    for name, disk in disks.items():
        path, read_only = str(disk["path"]), bool(disk.get("read-only"))
        try:
            mode = view.place(path).stat().st_mode
        except PermissionError:
            yield skipped(f'device "{name}": you may not look at {path}; ask as root')
            continue
        except OSError as error:
            cure = (
                f"bring it back, or take [device.{name}] out of the configuration: else the daemon does not start again"
            )
            yield wrong(f'device "{name}": its image {path}: {error.strerror}', cure)
            continue
        findings = [*_rights(view, name, path, read_only), *_of_sandbox(view, name, path, mode, read_only)]
        yield from findings
        if not findings:
            yield fine(f'device "{name}": {view.daemon_user.name} may use {path}')


def _rights(view: View, name: str, path: str, read_only: bool) -> Iterator[Finding]:
    user = view.daemon_user
    if (found := barrier(view, path, user, READ if read_only else READ | WRITE)) is None:
        return
    where, what = found
    if where == view.real(path):
        verb = "read" if read_only else "read and write"
        cure = f"chown {user.name} {path}" + ("" if read_only else ", or set read-only = true")
        yield wrong(f'device "{name}": {user.name}, whom the daemon runs as, may not {verb} {what}', cure)
    else:
        cure = f"chmod a+x {where}, or move the image, to /var/lib/doorbelld for one"
        yield wrong(f'device "{name}": {user.name}, whom the daemon runs as, may not pass {what} to its image', cure)


def _of_sandbox(view: View, name: str, path: str, mode: int, read_only: bool) -> Iterator[Finding]:
    """Hold an image against the sandbox of the unit, which may hide it or forbid to write."""
    if not view.of_unit:
        return
    unit, real = view.unit, view.real(path)
    title = f'device "{name}": the sandbox of the unit'
    if stat.S_ISBLK(mode):
        allowed = unit.get("DeviceAllow", "").split()
        if unit.get("PrivateDevices") == "yes" or not (real in allowed or any(e.startswith("block-") for e in allowed)):
            cure = f"systemctl edit doorbelld: PrivateDevices=no and DeviceAllow={real} rw, below [Service]"
            yield wrong(f"{title} hides the disk {real}", cure)
        return
    directory = os.path.dirname(real)
    cure = f"{directory}, below [Service]; or move it to /var/lib/doorbelld"
    bound = [entry.partition(":")[0] for entry in unit.get("BindPaths", "").split()]
    kept = [f"{_STATE_DIRECTORIES}/{entry}" for entry in unit.get("StateDirectory", "").split()]
    if real.startswith(hidden(unit)):
        if not _within(real, bound):
            yield wrong(f"{title} hides {real}", f"systemctl edit doorbelld: BindPaths={cure}")
    elif not read_only and unit.get("ProtectSystem") == "strict":
        writable = [entry.lstrip("+-") for entry in unit.get("ReadWritePaths", "").split()]
        if not _within(real, [*bound, *kept, *writable]):
            yield wrong(f"{title} does not let it write to {real}", f"systemctl edit doorbelld: ReadWritePaths={cure}")


def _within(path: str, places: Sequence[str]) -> bool:
    return any(f"{path}/".startswith(f"{place.rstrip('/')}/") for place in places)


def uring(view: View) -> Iterator[Finding]:
    """The kernel and the unit let disks use io_uring, with which what is not cached is fast."""
    if not any(device["virtio-id"] == BLK for device in view.devices.values()):
        yield skipped("no disk is served")
        return
    slow = "disks make do with threads, which cost more"
    setting = view.read("/proc/sys/kernel/io_uring_disabled").strip()
    if setting == "2":
        cure = "sysctl -w kernel.io_uring_disabled=0, and in /etc/sysctl.d to keep it; then systemctl restart doorbelld"
        yield hint(f"kernel.io_uring_disabled is 2: nobody may use it, {slow}", cure)
        return
    group = view.read("/proc/sys/kernel/io_uring_group").strip()
    user = view.daemon_user
    if setting == "1" and user.uid != 0 and group not in map(str, user.groups):
        cure = f"let {user.name} be in the group that kernel.io_uring_group names, or set io_uring_disabled to 0"
        yield hint(f"kernel.io_uring_disabled is 1, and {user.name} is not in the group that may: {slow}", cure)
        return
    calls = view.unit.get("SystemCallFilter", "") if view.of_unit else ""
    if calls and (_URING in re.split(r"[\s:]+", calls.lstrip("~"))) == calls.startswith("~"):
        cure = f"systemctl edit doorbelld: SystemCallFilter={_URING} io_uring_enter io_uring_register, below [Service]"
        yield hint(f"the sandbox of the unit forbids it: {slow}", cure)
        return
    yield fine("disks may use it")
