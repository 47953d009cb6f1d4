# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether guests can reach the sockets: permissions on the way, AppArmor, SELinux, sockets that nobody serves."""

from __future__ import annotations

import glob
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from .view import Finding, User, View, allowed, fine, hint, skipped, wrong

QEMU_USERS = ("libvirt-qemu", "qemu")
"""Whom libvirt runs guests as: Debian, Fedora."""
RUNTIME_DIRECTORY = "/run/doorbelld"
_ABSTRACTION = "/etc/apparmor.d/abstractions/libvirt-qemu"
_LOCAL_ABSTRACTION = "/etc/apparmor.d/local/abstractions/libvirt-qemu"
_RULE = re.compile(r'^\s*(?:owner\s+|file\s+)*"?(?P<path>[/@][^"\s]*)"?\s+(?P<rights>[a-zA-Z]+)\s*,', re.M)
_RULE_REVERSED = re.compile(r'^\s*(?:owner\s+|file\s+)*(?P<rights>[a-zA-Z]+)\s+"?(?P<path>[/@][^"\s]*?)"?\s*,', re.M)
_SVIRT_TYPES = ("svirt_image_t", "svirt_tmpfs_t", "qemu_var_run_t", "virt_var_run_t")
PASS, WRITE, READ = 1, 2, 4


def sockets(view: View) -> Iterator[Finding]:
    """Each socket is there and served, and the users that run guests can reach it; so can whoever asks."""
    if not (served := listening(view)):
        yield skipped("no region or device is served")
        return
    users = [user for name in QEMU_USERS if (user := view.user(name)) is not None]
    for title, path in served:
        try:
            status = view.place(path).stat()
        except FileNotFoundError:
            cure = "somebody removed it; systemctl restart doorbelld makes it anew"
            yield wrong(f"{title}: {path} is not there, so no guest can connect", cure)
            continue
        except PermissionError:
            yield skipped(f"{title}: you may not look at {path}; ask as root")
            continue
        if not stat.S_ISSOCK(status.st_mode):
            yield wrong(f"{title}: {path} is no socket", "remove it, then systemctl restart doorbelld")
            continue
        if view.served(path) is False:
            cure = "systemctl restart doorbelld makes it anew"
            yield wrong(f"{title}: nobody listens on {path}, though the daemon says that it does", cure)
            continue
        obstacles = [finding for user in users if (finding := _obstacle(view, title, path, user, wrong)) is not None]
        if view.me not in users and (finding := _obstacle(view, title, path, view.me, hint)) is not None:
            obstacles.append(finding)
        yield from obstacles
        if not obstacles:
            who = " and ".join(dict.fromkeys([*(user.name for user in users), view.me.name]))
            yield fine(f"{title}: {who} can connect to {path}")


def listening(view: View) -> list[tuple[str, str]]:
    """Give what listens, as it is called (region "demo"), and its socket; a device that connects does not."""
    regions = [(f'region "{name}"', known["socket"]) for name, known in view.regions.items()]
    devices = [(f'device "{name}"', known["socket"]) for name, known in view.devices.items() if not known["connect"]]
    return regions + devices


def barrier(view: View, path: str, user: User, want: int) -> tuple[str, str] | None:
    """Find what keeps *user* from *path*, of which it wants `PASS`, `WRITE`, `READ`: where, and what is there."""
    real = PurePosixPath(view.real(path))
    for part in [*reversed(real.parents), real]:
        try:
            status = view.place(str(part)).stat()
        except OSError:
            continue
        wants = [bit for bit in (PASS, WRITE, READ) if want & bit] if part == real else [PASS]
        acl = view.acl(str(part))
        if all(allowed(user, status, acl, bit) for bit in wants):
            continue
        owner = f"{view.user_name(status.st_uid)}:{view.group_name(status.st_gid)}"
        return str(part), f"{part} ({owner}, mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def _obstacle(view: View, title: str, path: str, user: User, level: Callable[[str, str], Finding]) -> Finding | None:
    """Tell what keeps *user* from connecting to *path*; None if nothing does."""
    if (found := barrier(view, path, user, WRITE)) is None:
        return None
    where, what = found
    if where == view.real(path):
        said = f"{title}: {user.name} may not connect to {what}"
        table = title.replace(" ", ".").replace('"', "")
        cure = f'write group = "{user.group or "kvm"}" in [{table}], or let {user.name} join its group'
    else:
        said = f"{title}: {user.name} may not pass {what} on the way to its socket"
        cure = f"chmod a+x {where}, or choose a socket path elsewhere"
    return level(said, cure)


def apparmor(view: View) -> Iterator[Finding]:
    """Where AppArmor confines libvirt's guests, its abstraction names our sockets."""
    if not view.read("/sys/module/apparmor/parameters/enabled").startswith("Y"):
        yield skipped("it is not in use")
        return
    if not view.place(_ABSTRACTION).exists():
        yield skipped("it does not confine guests here: libvirt's profiles are not installed")
        return
    more = [f"{_ABSTRACTION}.d/{file.name}" for file in sorted(view.place(f"{_ABSTRACTION}.d").glob("*"))]
    text = "\n".join(view.read(path) for path in (_ABSTRACTION, _LOCAL_ABSTRACTION, *more))
    missing = [path for _, socket in listening(view) if not permits(text, path := view.real(socket))]
    if not missing:
        yield fine("libvirt's guests may open our sockets")
        return
    directories = sorted({os.path.dirname(os.path.dirname(path)) for path in missing})
    lines = " ".join(f'"{directory}/**" rw,' for directory in directories)
    yield hint(
        f"it keeps guests of libvirt that connect by <qemu:commandline> from {', '.join(missing)}; those with a "
        "<shmem> and its <server> are let in by libvirt",
        f"put this into {_LOCAL_ABSTRACTION}, and start the guests anew: {lines}",
    )


def permits(rules: str, path: str) -> bool:
    """Tell whether AppArmor's *rules* allow to write to *path*; a deny counts before all that allows."""
    rules = re.sub(r"#.*", "", rules).replace("@{run}", "/{,var/}run")
    denied = "\n".join(line for line in rules.splitlines() if re.match(r"\s*(audit\s+)?deny\s", line))
    denied = re.sub(r"^\s*(audit\s+)?deny\s+", "", denied, flags=re.M)
    return not _covers(denied, path) and _covers(rules, path)


def _covers(rules: str, path: str) -> bool:
    return any(
        "w" in match["rights"] and re.fullmatch(_pattern(match["path"]), path) is not None
        for match in itertools.chain(_RULE.finditer(rules), _RULE_REVERSED.finditer(rules))
    )


def _pattern(glob: str) -> str:
    """Turn AppArmor's globbing (apparmor.d(5)) into a regular expression."""
    pieces = {"**": ".*", "*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|"}
    words = re.findall(r"\*\*|\[[^]]*\]|.", glob)
    return "".join(pieces.get(word) or (word if len(word) > 1 else re.escape(word)) for word in words)


def selinux(view: View) -> Iterator[Finding]:
    """Where SELinux is enforced, sockets have a type that confined guests may connect to."""
    if view.read("/sys/fs/selinux/enforce").strip() != "1":
        yield skipped("it is not enforced")
        return
    for title, path in listening(view):
        label = view.label(path)
        kind = (label.split(":") + [""] * 3)[2]
        if kind in _SVIRT_TYPES:
            yield fine(f"{title}: {path} has the type {kind}")
            continue
        directory = os.path.dirname(path)
        yield hint(
            f"{title}: {path} has the context {label or 'unknown'}, and guests confined by sVirt may not be let in",
            f"semanage fcontext -a -t svirt_image_t '{directory}(/.*)?' && restorecon -R {directory}; what is denied "
            "then, ausearch -m avc -ts recent shows",
        )


def stale(view: View) -> Iterator[Finding]:
    """No socket lies about that nobody serves: a guest that was told of it is refused. Nor does an empty directory."""
    served = {path for _, path in listening(view)}
    directories = {RUNTIME_DIRECTORY, *(os.path.dirname(os.path.dirname(path)) for path in served)}
    found = False
    for directory in sorted(directories):
        # not Path.glob(): that stops at a file system whose server is gone
        for name in sorted(glob.glob(f"{glob.escape(str(view.place(directory)))}/*/socket")):
            place = Path(name)
            path = f"{directory}/{place.parent.name}/socket"
            if path in served or not place.is_socket() or view.served(path) is not False:
                continue
            found = True
            cure = f"rm {path}; or, if guests are to connect there, make {place.parent.name} again"
            yield hint(f"{path}: nobody listens there", cure)
        if empty := list(_empty(view, directory)):
            found = True
            said = f"{', '.join(empty)}: nothing is in there; a daemon was killed that served it"
            yield hint(said, f"rmdir {' '.join(empty)}")
    if not found:
        yield fine("there is none")


def _empty(view: View, directory: str) -> Iterator[str]:
    """Give the empty directories in *directory*, as far as we may look into them."""
    for place in sorted(view.place(directory).glob("*/")):
        try:
            if place.is_dir() and not place.is_symlink() and not any(place.iterdir()):
                yield f"{directory}/{place.name}"
        except OSError:
            continue
