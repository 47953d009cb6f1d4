# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether guests can reach the sockets: permissions on the way, AppArmor, SELinux, sockets that nobody serves."""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from .view import Finding, User, View, allowed, fine, hint, skipped, wrong

QEMU_USERS = ("libvirt-qemu", "qemu")
"""Whom libvirt runs guests as: Debian, Fedora."""
RUNTIME_DIRECTORY = "/run/doorbelld"
_ABSTRACTION = "/etc/apparmor.d/abstractions/libvirt-qemu"
_LOCAL_ABSTRACTION = "/etc/apparmor.d/local/abstractions/libvirt-qemu"
_RULE = re.compile(r'^\s*(?:owner\s+|file\s+)*"?(?P<path>[/@][^"\s]*)"?\s+(?P<rights>[a-zA-Z]+)\s*,', re.M)
_RULE_REVERSED = re.compile(r'^\s*(?:owner\s+|file\s+)*(?P<rights>[a-zA-Z]+)\s+"?(?P<path>[/@][^"\s]*?)"?\s*,', re.M)
_SVIRT_TYPES = ("svirt_image_t", "svirt_tmpfs_t", "qemu_var_run_t", "virt_var_run_t")
_PASS, _WRITE = 1, 2


def sockets(view: View) -> Iterator[Finding]:
    """Each region's socket is there and served, and the users that run guests can reach it; so can whoever asks."""
    if not view.regions:
        yield skipped("no region is served")
        return
    users = [user for name in QEMU_USERS if (user := view.user(name)) is not None]
    for name, region in view.regions.items():
        path = region["socket"]
        try:
            status = view.place(path).stat()
        except FileNotFoundError:
            cure = "somebody removed it; systemctl restart doorbelld makes it anew"
            yield wrong(f'region "{name}": {path} is not there, so no guest can connect', cure)
            continue
        except PermissionError:
            yield skipped(f'region "{name}": you may not look at {path}; ask as root')
            continue
        if not stat.S_ISSOCK(status.st_mode):
            yield wrong(f'region "{name}": {path} is no socket', "remove it, then systemctl restart doorbelld")
            continue
        if view.served(path) is False:
            cure = "systemctl restart doorbelld makes it anew"
            yield wrong(f'region "{name}": nobody listens on {path}, though the daemon says that it does', cure)
            continue
        obstacles = [finding for user in users if (finding := _obstacle(view, name, path, user, wrong)) is not None]
        if view.me not in users and (finding := _obstacle(view, name, path, view.me, hint)) is not None:
            obstacles.append(finding)
        yield from obstacles
        if not obstacles:
            who = " and ".join(dict.fromkeys([*(user.name for user in users), view.me.name]))
            yield fine(f'region "{name}": {who} can connect to {path}')


def _obstacle(view: View, region: str, path: str, user: User, level: Callable[[str, str], Finding]) -> Finding | None:
    """Find what keeps *user* from connecting to *path*; None if nothing does."""
    real = PurePosixPath(view.real(path))
    for part in [*reversed(real.parents), real]:
        last = part == real
        try:
            status = view.place(str(part)).stat()
        except OSError:
            continue
        if allowed(user, status, view.acl(str(part)), _WRITE if last else _PASS):
            continue
        owner = f"{view.user_name(status.st_uid)}:{view.group_name(status.st_gid)}"
        what = f"{part} ({owner}, mode {stat.S_IMODE(status.st_mode):04o})"
        if last:
            found = f'region "{region}": {user.name} may not connect to {what}'
            cure = f'write group = "{user.group or "kvm"}" in [region.{region}], or let {user.name} join its group'
        else:
            found = f'region "{region}": {user.name} may not pass {what} on the way to its socket'
            cure = f"chmod a+x {part}, or choose a socket path elsewhere"
        return level(found, cure)
    return None


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
    missing = [path for region in view.regions.values() if not permits(text, path := view.real(region["socket"]))]
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
    for name, region in view.regions.items():
        path = region["socket"]
        label = view.label(path)
        kind = (label.split(":") + [""] * 3)[2]
        if kind in _SVIRT_TYPES:
            yield fine(f'region "{name}": {path} has the type {kind}')
            continue
        directory = os.path.dirname(path)
        yield hint(
            f'region "{name}": {path} has the context {label or "unknown"}, and guests confined by sVirt may not be '
            "let in",
            f"semanage fcontext -a -t svirt_image_t '{directory}(/.*)?' && restorecon -R {directory}; what is denied "
            "then, ausearch -m avc -ts recent shows",
        )


def stale(view: View) -> Iterator[Finding]:
    """No socket lies about that nobody serves: a guest that was told of it is refused."""
    served = {region["socket"] for region in view.regions.values()}
    directories = {RUNTIME_DIRECTORY, *(os.path.dirname(os.path.dirname(path)) for path in served)}
    found = False
    for directory in sorted(directories):
        for place in sorted(view.place(directory).glob("*/socket")):
            path = f"{directory}/{place.parent.name}/socket"
            if path in served or not place.is_socket() or view.served(path) is not False:
                continue
            found = True
            cure = f"rm {path}; or, if guests are to connect there, make region {place.parent.name} again"
            yield hint(f"{path}: nobody listens there", cure)
    if not found:
        yield fine("there is none")
